"""The maxout convolutional networks of Table 6."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense

from ._methods import classified
from ._methods import dropouts
from ._methods import image_shape
from ._methods import kernels
from ._methods import scaled
from ._methods import spatial_axes


class Convolution(NamedTuple):
    """A maxout convolution followed by max pooling with stride 2.

    Attributes:
        filters: Number of feature maps.
        kernel_size: Height and width of the convolution window.
        zero_padding: Zeros on each side of the image.
        pool_size: Height and width of the pooling window.

    Example:

    >>> model = maxout_cnn(
    ...     convolutions=[Convolution(8, 5, 2, pool_size=2)], hidden_units=20
    ... )
    >>> model.get_layer("pooling_1").output.shape
    (None, 16, 16, 8)
    """

    filters: int
    kernel_size: int
    zero_padding: int
    pool_size: int


# Published settings; Table 6 builds on them.
CIFAR10_CONVOLUTIONS = (
    Convolution(96, 8, 4, pool_size=4),
    Convolution(192, 8, 3, pool_size=4),
    Convolution(192, 5, 3, pool_size=2),
)
SVHN_CONVOLUTIONS = (
    Convolution(64, 5, 4, pool_size=3),
    Convolution(128, 5, 3, pool_size=3),
    Convolution(128, 5, 3, pool_size=3),
)


def maxout_cnn(
    dropout: str = "invariant",
    convolutions: Sequence[Convolution] = CIFAR10_CONVOLUTIONS,
    hidden_units: int = 500,
    convolution_pieces: int = 2,
    hidden_pieces: int = 5,
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
    name: str = "maxout_cnn",
) -> keras.Model:
    """The maxout network of Table 6: 96c-p-192c-p-192c-p-500fc for CIFAR-10.

    The SVHN network, 64c-p-128c-p-128c-p-400fc, has
    `convolutions=SVHN_CONVOLUTIONS` and `hidden_units=400`. Both networks
    have the geometry of Goodfellow et al. (2013): pooling windows may extend
    past the right and bottom borders, so the last, partial window counts.
    Initial weights are uniform in +-0.005. Dropout acts on the input and on
    every hidden layer, after its pooling, with one beta per feature map.

    Args:
        dropout: One of the methods of `mnist_mlp`.
        convolutions: The convolutions, each with its zero padding and its max
            pooling.
        hidden_units: Units of the dense maxout layer.
        convolution_pieces: Linear pieces of each feature map.
        hidden_pieces: Linear pieces of each dense unit.
        width: Multiplier of the feature maps and hidden units.
        input_rate: Fraction of the input to drop.
        hidden_rate: Fraction of the hidden activities to drop: one value for
            all hidden layers or one per layer.
        beta_regularizer: Prior on beta, for the invariant methods.
        max_norm: Largest norm of the incoming weights of a piece: one value
            for all layers, one per layer, or None.
        initial_stddev: Standard deviation of the initial weights: one value
            for all layers, one per layer, or None for the published weights.
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
        ValueError: If `dropout` is not one of the methods, `max_norm` is not
            positive, `initial_stddev` is negative, or `width` leaves a layer
            empty.

    Example:

    >>> maxout_cnn(dropout="standard").count_params()
    16247830

    Reference:

    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    - Ba, Xiong and Frey, 2014, section 3.5 and Table 6
    """
    drop_input, drop = dropouts(
        dropout,
        input_rate,
        hidden_rate,
        beta_regularizer,
        len(convolutions) + 1,
    )
    options = kernels(
        [[0, 1, 2]] * len(convolutions) + [0, 0],
        max_norm,
        initial_stddev,
        kernel_regularizer,
        lambda: keras.initializers.RandomUniform(-0.005, 0.005),
    )
    inputs = keras.Input(image_shape(input_shape), name="input")
    x = drop_input(inputs, "input_dropout")
    for i, (filters, kernel_size, margin, pool_size) in enumerate(
        convolutions, start=1
    ):
        x = keras.layers.ZeroPadding2D(margin, name=f"padding_{i}")(x)
        x = MaxoutConv2D(
            scaled(filters, width),
            kernel_size,
            convolution_pieces,
            **next(options),
            name=f"convolution_{i}",
        )(x)
        x = _complete_windows(x, pool_size)
        x = keras.layers.MaxPooling2D(pool_size, 2, name=f"pooling_{i}")(x)
        x = drop(x, f"convolution_{i}_dropout")
    x = keras.layers.Flatten(name="flatten")(x)
    x = MaxoutDense(
        scaled(hidden_units, width),
        hidden_pieces,
        **next(options),
        name="hidden_1",
    )(x)
    x = drop(x, "hidden_1_dropout")
    return classified(
        inputs, x, classes, classifier_activation, next(options), name
    )


def _complete_windows(x, size):
    """Pads `x` so that windows with stride 2 cover every pixel."""
    margins = [(0, 0)] * 4
    for axis in spatial_axes():
        beyond = x.shape[axis] - size
        margins[axis] = 0, max(-beyond, beyond % 2)
    if not np.any(margins):
        return x
    # Maxout activities may be negative: padding with 0 would exceed them.
    return ops.pad(x, margins, constant_values=-np.inf)
