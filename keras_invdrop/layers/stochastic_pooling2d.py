from typing import Any

import keras
from keras import ops

from .. import arguments
from .._checks import StrictConfig
from .._checks import check_data_format
from .._checks import check_seed
from .._checks import config_of
from .._keras import build_at_init
from .._masks import check_first_draw
from .._masks import seed_generator
from .._masks import uniform
from .._precision import dtype_of_sums
from ._windows import check_padding
from ._windows import check_pair
from ._windows import windows
from ._windows import windows_shape


@keras.saving.register_keras_serializable(package="keras_invdrop")
class StochasticPooling2D(StrictConfig, keras.Layer):
    """Pooling that picks an activity with probability proportional to it.

    In training the output of each window is the activity of one location, drawn
    with the probability `p_i = a_i / sum(a)`. At inference it is the mean
    weighted with these probabilities, `sum(p_i * a_i)`. A window of zeros gives
    zero. The gradient flows to the drawn location.

    Args:
        pool_size: Integer or pair of integers, height and width of a window.
        strides: Integer or pair of integers, from one window to the next;
            `pool_size` if None.
        padding: `"valid"` or `"same"`. Padding is never drawn.
        data_format: `"channels_last"` or `"channels_first"`. It defaults to
            the `image_data_format` of the Keras configuration.
        seed: Integer to use as random seed.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 4 with activities of 0 or more, such as those of
            ReLU. With negative activities, which have no probability, the
            result is undefined; checking for them would cost as much as the
            pooling.
        training: Boolean. Whether to draw (`True`) or to average (`False`).

    Input shape:
        `(batch, height, width, channels)` if `data_format="channels_last"`,
        `(batch, channels, height, width)` if `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, channels)` or
        `(batch, channels, new_height, new_width)`.

    Raises:
        ValueError: If an argument is not of the kind described.
        RuntimeError: If PyTorch recomputes a layer with a seed, as under
            `torch.utils.checkpoint`.

    Example:

    >>> layer = keras_invdrop.StochasticPooling2D(2)
    >>> x = np.array([[1.0, 3.0], [0.0, 0.0]]).reshape((1, 2, 2, 1))
    >>> ops.convert_to_numpy(layer(x)).item()  # 1/4 of 1 and 3/4 of 3.
    2.5

    Reference:

    - [Zeiler and Fergus, 2013](https://arxiv.org/abs/1301.3557)
    - Ba, Xiong and Frey, 2014, Tables 3 and 4
    """

    def __init__(
        self,
        pool_size: arguments.Pair,
        strides: arguments.Pair | None = None,
        padding: arguments.Padding = "valid",
        data_format: arguments.DataFormat | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.pool_size = check_pair("pool_size", pool_size)
        self.strides = self.pool_size
        if strides is not None:
            self.strides = check_pair("strides", strides)
        self.padding = check_padding(padding)
        self.data_format = check_data_format(data_format)
        self.seed = check_seed(seed)
        self.seed_generator = seed_generator(self.seed)
        self.input_spec = keras.layers.InputSpec(ndim=4)
        build_at_init(self)

    def call(self, inputs, training=False):
        inputs = ops.cast(inputs, self.compute_dtype)
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        # (batch, new_height, new_width, channels, locations)
        a = ops.stack(
            windows(inputs, self.pool_size, self.strides, self.padding),
            axis=-1,
        )
        pooled = self.draw(a) if training else self.average(a)
        if self.data_format == "channels_first":
            pooled = ops.transpose(pooled, (0, 3, 1, 2))
        return pooled

    def average(self, a: Any) -> Any:
        """The mean of each window's activities, weighted by the activities."""
        # A sum of float16 values may overflow; their mean does not.
        exact = ops.cast(a, dtype_of_sums(a.dtype))
        total = ops.sum(exact, axis=-1, keepdims=True)
        # Any divisor but 0 gives 0 for a window of zeros.
        weights = exact / ops.where(total > 0, total, 1)
        return ops.cast(ops.sum(weights * exact, axis=-1), a.dtype)

    def draw(self, a: Any) -> Any:
        """The activity of a drawn location in each window."""
        seeded = self.seed is not None
        if seeded:
            check_first_draw(self)
        # In float32: a sum in bfloat16 loses small terms.
        weights = ops.stop_gradient(ops.cast(a, "float32"))
        reached = ops.cumsum(weights, axis=-1)
        total = reached[..., -1:]
        threshold = total * uniform(
            ops.shape(total), self.seed_generator, seeded
        )
        # The first location at which the sum exceeds the threshold. If rounding
        # makes the threshold equal to the whole sum, take the last location
        # that adds to the sum.
        passed = reached > ops.minimum(threshold, total * (1 - 2.0**-23))
        before = ops.concatenate(
            [ops.zeros_like(passed[..., :1]), passed[..., :-1]], axis=-1
        )
        drawn = ops.logical_and(passed, ops.logical_not(before))
        pooled = ops.sum(ops.where(drawn, a, 0), axis=-1)
        # A comparison with a NaN draws nothing. Divergence must not end here.
        total = total[..., 0]
        return ops.where(ops.isfinite(total), pooled, ops.cast(total, a.dtype))

    def rematerialized_call(self, layer_call, *args, **kwargs):
        # As in `ShiftedDropout`, a second pass would draw again.
        return layer_call

    def compute_output_shape(self, input_shape):
        first = self.data_format == "channels_first"
        return windows_shape(
            input_shape,
            self.pool_size,
            self.strides,
            self.padding,
            self.data_format,
            channels=input_shape[1 if first else 3],
        )

    def get_config(self):
        return {**super().get_config(), **config_of(StochasticPooling2D, self)}
