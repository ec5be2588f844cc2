from itertools import accumulate
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
from ._windows import padded
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
        images = padded(inputs, self.pool_size, self.strides, self.padding)
        pooled = self.draw(images) if training else self.average(images)
        if self.data_format == "channels_first":
            pooled = ops.transpose(pooled, (0, 3, 1, 2))
        return pooled

    def average(self, images: Any) -> Any:
        """The mean of each window's activities, weighted by the activities."""
        # A sum of float16 values may overflow; their mean does not.
        exact = [
            ops.cast(each, dtype_of_sums(images.dtype))
            for each in self.locations(images)
        ]
        total = sum(exact[1:], exact[0])
        # Any divisor but 0 gives 0 for a window of zeros.
        divisor = ops.where(total > 0, total, 1)
        mean = sum(each / divisor * each for each in exact)
        return ops.cast(mean, images.dtype)

    def draw(self, images: Any) -> Any:
        """The activity of a drawn location in each window."""
        seeded = self.seed is not None
        if seeded:
            check_first_draw(self)
        # Sums over the first location, the first two, ..., all locations. In
        # float32: a sum in bfloat16 loses small terms.
        reached = list(
            accumulate(
                ops.cast(each, "float32")
                for each in self.locations(ops.stop_gradient(images))
            )
        )
        total = reached[-1]
        threshold = total * uniform(
            ops.shape(total), self.seed_generator, seeded
        )
        # If rounding makes the threshold equal to the whole sum, take the last
        # location that adds to the sum.
        threshold = ops.minimum(threshold, total * (1 - 2.0**-23))
        # The first location at which the sum exceeds the threshold. One gather
        # by its index, with one scatter as gradient, takes half of the time of
        # a selection among the images of all locations.
        location = ops.zeros_like(total, dtype="int32")
        for each in reached[:-1]:
            location = location + ops.cast(each <= threshold, "int32")
        batch, height, width, channels = ops.shape(total)
        down = self.strides[0] * ops.arange(height)[:, None, None]
        right = self.strides[1] * ops.arange(width)[:, None]
        down = down + location // self.pool_size[1]
        right = right + location % self.pool_size[1]
        _, image_height, image_width, _ = ops.shape(images)
        pixels = (batch, image_height * image_width, channels)
        indices = (batch, height * width, channels)
        pooled = ops.take_along_axis(
            ops.reshape(images, pixels),
            ops.reshape(down * image_width + right, indices),
            axis=1,
        )
        # A comparison with a NaN draws nothing. Divergence must not end here.
        return ops.where(
            ops.isfinite(total),
            ops.reshape(pooled, ops.shape(total)),
            ops.cast(total, images.dtype),
        )

    def locations(self, images: Any) -> list[Any]:
        """One image for each location of a window of padded images."""
        return windows(images, self.pool_size, self.strides, "valid")

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
