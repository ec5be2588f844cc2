"""The fully connected networks of Tables 2, 3 and 5."""

from collections.abc import Sequence
from typing import Any

import keras

from ._methods import classified
from ._methods import dropouts
from ._methods import kernels
from ._methods import scaled


def mnist_mlp(
    dropout: str = "invariant",
    activation: Any = "relu",
    hidden_units: Sequence[int] = (1000, 1000),
    width: float = 1.0,
    input_rate: float = 0.2,
    hidden_rate: float | Sequence[float] = 0.5,
    beta_regularizer: Any = None,
    max_norm: float | None | Sequence[float | None] = None,
    initial_stddev: float | None | Sequence[float | None] = None,
    kernel_regularizer: Any = None,
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    classifier_activation: Any = "softmax",
    name: str = "mnist_mlp",
) -> keras.Model:
    """The fully connected network of Table 2: 784-1000-1000-10.

    Dropout precedes every dense layer: it acts on the input and on each hidden
    layer.

    Args:
        dropout: One of the methods of Table 2, or `"none"`: `"standard"`
            (`keras.layers.Dropout`), `"invariant"`, `"invariant_input"`
            (invariant dropout on the input, standard dropout on the hidden
            units), `"invariant_hidden"` (the reverse) and
            `"running_average"`.
        activation: Activation function of the hidden units; the paper reports
            results for `"relu"` and similar improvements for `"sigmoid"` and
            `"tanh"` (section 3.1).
        hidden_units: Units of each hidden layer.
        width: Multiplier of the hidden units.
        input_rate: Fraction of the input to drop.
        hidden_rate: Fraction of the hidden units to drop: one value for all
            hidden layers or one per layer.
        beta_regularizer: Prior on beta, for the invariant methods.
        max_norm: Largest norm of the incoming weights of a unit: one value
            for all dense layers, one per layer, or None.
        initial_stddev: Standard deviation of the initial weights: one value
            for all dense layers, one per layer, or None for Keras' default
            weights.
        kernel_regularizer: Prior on the weights of the dense layers.
        input_shape: Shape of one example, without the batch. Examples with more
            than one axis are flattened.
        classes: Number of classes.
        classifier_activation: Activation function of the last layer, or None
            to return the logits.
        name: Name of the model.

    Returns:
        An uncompiled functional model, from `(batch, *input_shape)` to
        `(batch, classes)`.

    Raises:
        ValueError: If `dropout` is not one of the methods, `max_norm` is not
            positive, `initial_stddev` is negative, or `width` leaves a layer
            empty.

    Example:

    >>> model = mnist_mlp(dropout="invariant")
    >>> model.count_params()  # 784-1000-1000-10, and 2,784 betas.
    1798794
    """
    drop_input, drop = dropouts(
        dropout, input_rate, hidden_rate, beta_regularizer, len(hidden_units)
    )
    options = kernels(
        [0] * (len(hidden_units) + 1),
        max_norm,
        initial_stddev,
        kernel_regularizer,
    )
    inputs = x = keras.Input(tuple(input_shape), name="input")
    if len(x.shape) > 2:
        x = keras.layers.Flatten(name="flatten")(x)
    x = drop_input(x, "input_dropout")
    for i, units in enumerate(hidden_units, start=1):
        x = keras.layers.Dense(
            scaled(units, width),
            activation,
            **next(options),
            name=f"hidden_{i}",
        )(x)
        x = drop(x, f"hidden_{i}_dropout")
    return classified(
        inputs, x, classes, classifier_activation, next(options), name
    )


def cifar10_mlp(
    dropout: str = "invariant",
    hidden_units: Sequence[int] = (2000, 2000),
    width: float = 1.0,
    input_shape: Sequence[int] = (32, 32, 3),
    classes: int = 10,
    name: str = "cifar10_mlp",
    **options: Any,
) -> keras.Model:
    """The fully connected network of Table 3 ("DNN 2000-2000").

    Args:
        dropout: One of the methods of `mnist_mlp`.
        hidden_units: Units of each hidden layer.
        width: Multiplier of the hidden units.
        input_shape: Shape of one image, without the batch. The network
            flattens images.
        classes: Number of classes.
        name: Name of the model.
        **options: The other arguments of `mnist_mlp`.

    Returns:
        An uncompiled functional model, from `(batch, *input_shape)` to
        `(batch, classes)`.

    Example:

    >>> cifar10_mlp(dropout="standard").count_params()
    10168010
    """
    return mnist_mlp(
        dropout,
        hidden_units=hidden_units,
        width=width,
        input_shape=input_shape,
        classes=classes,
        name=name,
        **options,
    )


def mas_mlp(
    dropout: str = "invariant",
    hidden_units: Sequence[int] = (1000,),
    width: float = 1.0,
    input_shape: Sequence[int] = (1014,),
    classes: int = 3,
    tissues: int = 4,
    classifier_activation: Any = "softmax",
    name: str = "mas_mlp",
    **options: Any,
) -> keras.Model:
    """The splicing network of Table 5: one layer of 1000 ReLU units.

    Args:
        dropout: One of the methods of `mnist_mlp`; Table 5 has `"none"`,
            `"standard"` and `"invariant"`.
        hidden_units: Units of each hidden layer.
        width: Multiplier of the hidden units.
        input_shape: Shape of one example, without the batch.
        classes: Number of outcomes in each tissue.
        tissues: Number of tissues. The paper does not print it; Barash et al.
            (2010) have four.
        classifier_activation: Activation function over the outcomes of each
            tissue, or None to return the logits.
        name: Name of the model.
        **options: The other arguments of `mnist_mlp`.

    Returns:
        An uncompiled functional model, from `(batch, *input_shape)` to
        `(batch, tissues, classes)`, a distribution for each tissue.

    Example:

    >>> mas_mlp(dropout="none").output_shape
    (None, 4, 3)
    """
    network = mnist_mlp(
        dropout,
        hidden_units=hidden_units,
        width=width,
        input_shape=input_shape,
        classes=tissues * classes,
        classifier_activation=None,
        **options,
    )
    # In mixed precision the logits have 32 bits; keep them.
    dtype = network.output.dtype
    x = keras.layers.Reshape((tissues, classes), dtype=dtype, name="tissues")(
        network.output
    )
    x = keras.layers.Activation(
        classifier_activation, dtype=dtype, name="outcomes"
    )(x)
    return keras.Model(network.input, x, name=name)
