"""The paper's networks: functions that return an uncompiled model."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop.validation import check_choice
from keras_invdrop.validation import check_positive_number

# The columns of Table 2 and "none": the layer on the input and the layer on
# the hidden units.
METHODS: dict[str, tuple[type | None, type | None]] = {
    "none": (None, None),
    "standard": (keras.layers.Dropout, keras.layers.Dropout),
    "invariant": (InvariantDropout, InvariantDropout),
    "invariant_input": (InvariantDropout, keras.layers.Dropout),
    "invariant_hidden": (keras.layers.Dropout, InvariantDropout),
    "running_average": (RunningAverageDropout, RunningAverageDropout),
}


def mnist_mlp(
    dropout: str = "invariant",
    activation: Any = "relu",
    hidden_units: Sequence[int] = (1000, 1000),
    input_rate: float = 0.2,
    hidden_rate: float = 0.5,
    beta_regularizer: Any = None,
    max_norm: float | None = None,
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    classifier_activation: Any = "softmax",
    name: str = "mnist_mlp",
) -> keras.Model:
    """The fully connected network of Table 2: 784-1000-1000-10.

    Dropout stands before every dense layer: on the input and on each layer of
    hidden units.

    Args:
        dropout: One of the methods of Table 2, or `"none"`: `"standard"`
            (`keras.layers.Dropout`), `"invariant"`, `"invariant_input"`
            (invariant dropout on the input, standard dropout on the hidden
            units), `"invariant_hidden"` (the other way round) and
            `"running_average"`.
        activation: Activation function of the hidden units; the paper has
            results for `"relu"` and says that `"sigmoid"` and `"tanh"`
            improve alike (section 3.1).
        hidden_units: Units of each hidden layer.
        input_rate: Fraction of the input to drop.
        hidden_rate: Fraction of the hidden units to drop.
        beta_regularizer: Prior on beta, for the invariant methods.
        max_norm: Largest norm of the incoming weights of a unit, or None.
        input_shape: Shape of one example, without the batch.
        classes: Number of classes.
        classifier_activation: Activation function of the last layer, or None
            to return the logits.
        name: Name of the model.

    Returns:
        An uncompiled functional model, from `(batch, *input_shape)` to
        `(batch, classes)`.

    Example:

    >>> model = mnist_mlp(dropout="invariant")
    >>> model.count_params()  # 784-1000-1000-10, and 2,784 betas.
    1798794
    """
    check_choice("dropout", dropout, tuple(METHODS))
    if max_norm is not None:
        check_positive_number("max_norm", max_norm)
    on_input, on_hidden = METHODS[dropout]

    def drop(x, layer, rate, layer_name):
        if layer is None:
            return x
        options = {}
        if layer is InvariantDropout:
            options["beta_regularizer"] = beta_regularizer
        return layer(rate, name=layer_name, **options)(x)

    def dense(units, activation, layer_name):
        constraint = None
        if max_norm is not None:
            constraint = keras.constraints.MaxNorm(max_norm, axis=0)
        return keras.layers.Dense(
            units, activation, kernel_constraint=constraint, name=layer_name
        )

    inputs = keras.Input(tuple(input_shape), name="image")
    x = drop(inputs, on_input, input_rate, "input_dropout")
    for i, units in enumerate(hidden_units, start=1):
        x = dense(units, activation, f"hidden_{i}")(x)
        x = drop(x, on_hidden, hidden_rate, f"hidden_{i}_dropout")
    outputs = dense(classes, classifier_activation, "classifier")(x)
    return keras.Model(inputs, outputs, name=name)
