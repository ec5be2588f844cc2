from typing import Any

import keras

from .. import arguments
from .._checks import check_boolean
from .._checks import check_positive_integer
from .._checks import config_of
from .._checks import invalid
from ._affine_maxout import AffineMaxout
from ._windows import check_padding
from .maxout import Maxout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class MaxoutConv2D(AffineMaxout):
    """2D convolution layer whose activation function is maxout.

    Each feature map is the pointwise maximum of `pieces` convolutions, each
    with its own kernel and bias. The layer equals a `Conv2D` layer of
    `filters * pieces` filters followed by `Maxout(pieces)` over the channels;
    the pieces of one feature map are adjacent.

    Args:
        filters: Positive integer, number of feature maps of the output.
        kernel_size: Integer or pair of integers, height and width of the
            convolution window.
        pieces: Positive integer, number of linear pieces of each feature map.
        strides: Integer or pair of integers, strides of the convolution.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"` or `"channels_first"`. It defaults to
            the `image_data_format` of the Keras configuration.
        dilation_rate: Integer or pair of integers, dilation of the kernel.
        groups: Positive integer, number of groups into which the input is split
            along the channel axis. It must divide `filters` and the number of
            input channels, so that a feature map's pieces stay together.
        activation: Activation function to apply to the maximum. None by
            default, because the maximum is the nonlinearity.
        use_bias: Boolean, whether each piece has a bias.
        kernel_initializer: Initializer for the kernel, of shape
            `(height, width, channels / groups, filters * pieces)`.
        bias_initializer: Initializer for the bias, of shape
            `(filters * pieces,)`.
        kernel_regularizer: Regularizer for the kernel.
        bias_regularizer: Regularizer for the bias.
        activity_regularizer: Regularizer for the output of the layer.
        kernel_constraint: Constraint for the kernel. To hold the incoming
            weights of each piece to a maximum norm:
            `keras.constraints.MaxNorm(max_value, axis=[0, 1, 2])`.
        bias_constraint: Constraint for the bias.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 4.

    Input shape:
        `(batch, height, width, channels)` if `data_format="channels_last"`,
        `(batch, channels, height, width)` if `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: If `filters` or `pieces` is not a positive integer, if
            `filters` is not divisible by `groups`, or as in `Conv2D`.

    Example:

    >>> layer = keras_invdrop.MaxoutConv2D(96, 8, pieces=2)
    >>> x = layer(np.ones((4, 40, 40, 3)))
    >>> ops.shape(x), ops.shape(layer.kernel)
    ((4, 33, 33, 96), (8, 8, 3, 192))

    Reference:

    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    - Ba, Xiong and Frey, 2014, section 3.5 and Table 6
    """

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Pair,
        pieces: int,
        strides: arguments.Pair = (1, 1),
        padding: arguments.Padding = "valid",
        data_format: arguments.DataFormat | None = None,
        dilation_rate: arguments.Pair = (1, 1),
        groups: int = 1,
        activation: arguments.Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: arguments.Initializer = "glorot_uniform",
        bias_initializer: arguments.Initializer = "zeros",
        kernel_regularizer: arguments.Regularizer | None = None,
        bias_regularizer: arguments.Regularizer | None = None,
        activity_regularizer: arguments.Regularizer | None = None,
        kernel_constraint: arguments.Constraint | None = None,
        bias_constraint: arguments.Constraint | None = None,
        **kwargs: Any,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.filters = check_positive_integer("filters", filters)
        self.pieces = check_positive_integer("pieces", pieces)
        self.groups = check_positive_integer("groups", groups)
        if self.filters % self.groups:
            raise invalid(
                "groups", f"a divisor of filters={self.filters}", self.groups
            )
        self.activation = keras.activations.get(activation)
        self.conv = keras.layers.Conv2D(
            self.filters * self.pieces,
            kernel_size,
            strides=strides,
            padding=check_padding(padding),
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=self.groups,
            use_bias=check_boolean("use_bias", use_bias),
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            dtype=self.dtype_policy,
            name="conv",
        )
        self.maxout = Maxout(
            self.pieces,
            axis=-1 if self.conv.data_format == "channels_last" else 1,
            dtype=self.compute_dtype,
        )

    def affine(self) -> Any:
        return self.conv

    def compute_output_shape(self, input_shape):
        return self.maxout.compute_output_shape(
            self.conv.compute_output_shape(input_shape)
        )

    def get_config(self):
        config = config_of(MaxoutConv2D, self, self.conv)
        return {**super().get_config(), **config}
