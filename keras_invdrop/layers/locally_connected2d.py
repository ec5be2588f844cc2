import math
from typing import Any

import keras
from keras import ops

from .. import arguments
from .._checks import StrictConfig
from .._checks import check_boolean
from .._checks import check_data_format
from .._checks import check_positive_integer
from .._checks import config_of
from ._windows import check_padding
from ._windows import check_pair
from ._windows import windows
from ._windows import windows_shape


@keras.saving.register_keras_serializable(package="keras_invdrop")
class LocallyConnected2D(StrictConfig, keras.Layer):
    """2D locally-connected layer: a convolution with unshared weights.

    Each output position has its own kernel and bias. The layer takes the
    arguments of Keras 2 except `implementation`, which it ignores in a Keras 2
    config, as it does the `batch_input_shape` of a model's first layer. The
    kernel has the shape that Keras 2 uses with `implementation=1`. Its second
    axis has the order (row, column, channel) in both data formats; Keras 2 has
    (channel, row, column) for `channels_first`.

    Args:
        filters: Positive integer, number of feature maps of the output.
        kernel_size: Integer or pair of integers, height and width of the
            window.
        strides: Integer or pair of integers, from one window to the next.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"` or `"channels_first"`. It defaults to
            the `image_data_format` of the Keras configuration.
        activation: Activation function to apply.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer for the kernel, of shape
            `(new_height * new_width, kernel_height * kernel_width * channels,
            filters)`.
        bias_initializer: Initializer for the bias, of shape
            `(new_height, new_width, filters)`.
        kernel_regularizer: Regularizer for the kernel.
        bias_regularizer: Regularizer for the bias.
        activity_regularizer: Regularizer for the output of the layer.
        kernel_constraint: Constraint for the kernel. To hold the incoming
            weights of each unit to a maximum norm:
            `keras.constraints.MaxNorm(max_value, axis=1)`.
        bias_constraint: Constraint for the bias.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 4.

    Input shape:
        `(batch, height, width, channels)` if `data_format="channels_last"`,
        `(batch, channels, height, width)` if `data_format="channels_first"`,
        with a fixed size except for the batch.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: If an argument is not of the kind described, if the size of
            the input is not fixed, or if no window fits into the input.

    Example:

    >>> layer = keras_invdrop.LocallyConnected2D(16, 3)
    >>> x = layer(np.ones((8, 4, 4, 64)))
    >>> ops.shape(x), ops.shape(layer.kernel)
    ((8, 2, 2, 16), (4, 576, 16))

    Reference:

    - [Hinton et al., 2012](https://arxiv.org/abs/1207.0580)
    - Ba, Xiong and Frey, 2014, Table 3 ("16lc")
    """

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Pair,
        strides: arguments.Pair = (1, 1),
        padding: arguments.Padding = "valid",
        data_format: arguments.DataFormat | None = None,
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
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.strides = check_pair("strides", strides)
        self.padding = check_padding(padding)
        self.data_format = check_data_format(data_format)
        self.activation = keras.activations.get(activation)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        if None in input_shape[1:]:
            raise ValueError(
                f"Layer '{self.name}' has a kernel for each position and "
                "needs an input of a fixed size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        first = self.data_format == "channels_first"
        channels = input_shape[1 if first else 3]
        shape = self.compute_output_shape(input_shape)
        height, width = shape[2:] if first else shape[1:3]
        size = math.prod(self.kernel_size) * channels

        def add_weight(name, *shape):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=getattr(self, f"{name}_initializer"),
                regularizer=getattr(self, f"{name}_regularizer"),
                constraint=getattr(self, f"{name}_constraint"),
            )

        self.kernel = add_weight("kernel", height * width, size, self.filters)
        self.bias = None
        if self.use_bias:
            self.bias = add_weight("bias", height, width, self.filters)
        self.input_spec = keras.layers.InputSpec(
            ndim=4, axes={i: input_shape[i] for i in (1, 2, 3)}
        )

    def call(self, inputs):
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        # (batch, height, width, window * channels)
        patches = ops.concatenate(
            windows(inputs, self.kernel_size, self.strides, self.padding),
            axis=-1,
        )
        height, width, size = patches.shape[1:]
        patches = ops.reshape(patches, (-1, height * width, size))
        # One matrix product for each position: (positions, batch, filters).
        x = ops.matmul(ops.transpose(patches, (1, 0, 2)), self.kernel)
        x = ops.reshape(
            ops.transpose(x, (1, 0, 2)), (-1, height, width, self.filters)
        )
        if self.bias is not None:
            x = ops.add(x, self.bias)
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 3, 1, 2))
        return self.activation(x)

    def compute_output_shape(self, input_shape):
        return windows_shape(
            input_shape,
            self.kernel_size,
            self.strides,
            self.padding,
            self.data_format,
            channels=self.filters,
        )

    @classmethod
    def from_config(cls, config):
        # Keras 2 has three ways to compute the layer.
        config = dict(config)
        config.pop("batch_input_shape", None)
        if config.pop("implementation", 1) not in (1, 2, 3):
            raise ValueError(
                f"Invalid config received for `{cls.__name__}`. Expected "
                "`implementation` to be 1, 2 or 3, as in Keras 2"
            )
        return super().from_config(config)

    def get_config(self):
        return {**super().get_config(), **config_of(LocallyConnected2D, self)}
