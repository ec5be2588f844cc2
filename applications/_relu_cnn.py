"""The ReLU convolutional networks of Tables 3 and 4."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_invdrop import LocallyConnected2D
from keras_invdrop import StochasticPooling2D
from keras_invdrop._checks import check_choice

from ._methods import classified
from ._methods import dropouts
from ._methods import image_shape
from ._methods import kernels
from ._methods import scaled

POOLINGS = {
    "max": keras.layers.MaxPooling2D,
    "stochastic": StochasticPooling2D,
}


def relu_cnn(
    dropout: str = "invariant",
    filters: Sequence[int] = (128, 128, 128),
    locally_connected: int | None = None,
    hidden_units: Sequence[int] = (1000,),
    pooling: str = "max",
    width: float = 1.0,
    input_rate: float = 0.2,
    hidden_rate: float | Sequence[float] = 0.5,
    beta_regularizer: Any = None,
    max_norm: float | None | Sequence[float | None] = None,
    initial_stddev: float | None | Sequence[float | None] = None,
    kernel_regularizer: Any = None,
    input_shape: Sequence[int] | None = None,
    classes: int = 10,
    classifier_activation: Any = "softmax",
    name: str = "relu_cnn",
) -> keras.Model:
    """The network of Tables 3 and 4: 128c-p-128c-p-128c-p-1000fc.

    Each 5 x 5 ReLU convolution, with zero padding of 2, is followed by 3 x 3
    pooling with stride 2, which halves the resolution. Dropout acts on the
    input and on every hidden layer, after its pooling (section 3.2), with one
    beta per feature map (section 2.1).

    The other networks in the tables have 64 or 128 `filters`,
    `locally_connected=16` ("16lc", with 3 x 3 windows as in Hinton et al.,
    2012), `pooling="stochastic"`, or two dense hidden layers ("fc-fc").

    Args:
        dropout: One of the methods of `mnist_mlp`.
        filters: Feature maps of each convolution.
        locally_connected: Feature maps of a locally connected layer after the
            convolutions, or None.
        hidden_units: Units of each dense layer before the classifier.
        pooling: `"max"` or `"stochastic"` (Zeiler and Fergus, 2013).
        width: Multiplier of the feature maps and hidden units.
        input_rate: Fraction of the input to drop.
        hidden_rate: Fraction of the hidden activities to drop: one value for
            all hidden layers or one per layer.
        beta_regularizer: Prior on beta, for the invariant methods.
        max_norm: Largest norm of the incoming weights of a unit: one value
            for all layers, one per layer, or None.
        initial_stddev: Standard deviation of the initial weights: one value
            for all layers, one per layer, or None for Keras' default
            weights.
        kernel_regularizer: Prior on the weights.
        input_shape: Shape of one image, without the batch, in the image data
            format of the Keras configuration. Defaults to CIFAR-10's:
            `(32, 32, 3)`, or `(3, 32, 32)` with channels first.
        classes: Number of classes.
        classifier_activation: Activation function of the last layer, or None
            to return the logits.
        name: Name of the model.

    Returns:
        An uncompiled functional model, from `(batch, *input_shape)` to
        `(batch, classes)`.

    Raises:
        ValueError: If `dropout` or `pooling` is not one of the listed values,
            `max_norm` is not positive, `initial_stddev` is negative, or
            `width` leaves a layer empty.

    Example:

    >>> relu_cnn(dropout="standard").count_params()
    2888194
    """
    check_choice("pooling", pooling, tuple(POOLINGS))
    drop_input, drop = dropouts(
        dropout,
        input_rate,
        hidden_rate,
        beta_regularizer,
        len(filters) + (locally_connected is not None) + len(hidden_units),
    )
    options = kernels(
        [[0, 1, 2]] * len(filters)
        + [1] * (locally_connected is not None)
        + [0] * (len(hidden_units) + 1),
        max_norm,
        initial_stddev,
        kernel_regularizer,
    )
    inputs = keras.Input(image_shape(input_shape), name="input")
    x = drop_input(inputs, "input_dropout")
    for i, maps in enumerate(filters, start=1):
        x = keras.layers.Conv2D(
            scaled(maps, width),
            5,
            padding="same",
            activation="relu",
            **next(options),
            name=f"convolution_{i}",
        )(x)
        pool = POOLINGS[pooling](3, 2, "same", name=f"pooling_{i}")
        x = drop(pool(x), f"convolution_{i}_dropout")
    if locally_connected is not None:
        x = LocallyConnected2D(
            scaled(locally_connected, width),
            3,
            padding="same",
            activation="relu",
            **next(options),
            name="locally_connected",
        )(x)
        x = drop(x, "locally_connected_dropout")
    x = keras.layers.Flatten(name="flatten")(x)
    for i, units in enumerate(hidden_units, start=1):
        x = keras.layers.Dense(
            scaled(units, width), "relu", **next(options), name=f"hidden_{i}"
        )(x)
        x = drop(x, f"hidden_{i}_dropout")
    return classified(
        inputs, x, classes, classifier_activation, next(options), name
    )
