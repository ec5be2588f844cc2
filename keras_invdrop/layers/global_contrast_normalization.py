from typing import Any

import keras
import numpy as np

from .._checks import StrictConfig
from .._checks import check_boolean
from .._checks import check_positive_number
from .._checks import config_of
from .._keras import DataLayer
from .._keras import build_at_init
from .._precision import dtype_of_sums


@keras.saving.register_keras_serializable(package="keras_invdrop")
class GlobalContrastNormalization(StrictConfig, DataLayer):
    """Gives every example the same mean and the same contrast.

    The layer subtracts the mean of each example, divides by its norm or
    standard deviation, and multiplies by `scale`. It neither divides nor
    multiplies an example whose norm (or deviation) is below `epsilon` or no
    larger than the rounding error of its values (1e-6 of them in float32), such
    as an image of one colour.

    The layer works in a `tf.data` pipeline on every backend.

    Args:
        scale: Positive float. The norm (or standard deviation) of each example
            in the output. The published maxout run on CIFAR-10 uses 55.
        subtract_mean: Boolean. Whether to subtract the example's mean.
        use_std: Boolean. Whether to divide by the standard deviation of the
            example's elements (the population formula, which divides by their
            number) instead of the root of the sum of their squares.
        epsilon: Positive float. The smallest norm to divide by.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more, a batch of examples.

    Input shape:
        `(batch, ...)`.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If `scale` or `epsilon` is not a positive number, or
            `subtract_mean` or `use_std` not a boolean.

    Example:

    >>> layer = keras_invdrop.GlobalContrastNormalization(use_std=True)
    >>> ops.convert_to_numpy(layer(np.array([[1.0, 5.0], [2.0, 2.0]])))
    array([[-1.,  1.],
           [ 0.,  0.]], dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, sections 3.2 and 3.3
    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    """

    def __init__(
        self,
        scale: float = 1.0,
        subtract_mean: bool = True,
        use_std: bool = False,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ):
        # Keras would round the inputs to 16 bits before `call`.
        super().__init__(**{"autocast": False, **kwargs})
        self.scale = check_positive_number("scale", scale)
        self.subtract_mean = check_boolean("subtract_mean", subtract_mean)
        self.use_std = check_boolean("use_std", use_std)
        self.epsilon = check_positive_number("epsilon", epsilon)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        build_at_init(self)

    def call(self, inputs):
        numpy = self.backend.numpy
        # Squares of a few hundred are too large for float16.
        dtype = dtype_of_sums(self.compute_dtype)
        given = x = self.backend.cast(inputs, dtype)
        axes = tuple(range(1, len(x.shape)))
        # Subtracting the first element first makes equal elements exactly 0;
        # the mean of a million values of 0.7 would be rounded.
        centred = x - x[(slice(None), *[slice(1)] * len(axes))]
        centred = centred - numpy.mean(centred, axis=axes, keepdims=True)
        if self.subtract_mean:
            x = centred
        measure = numpy.mean if self.use_std else numpy.sum

        def square_of(values):
            return measure(values * values, axis=axes, keepdims=True)

        square = square_of(centred if self.use_std else x)
        norm = numpy.sqrt(square)
        rounding = 8 * np.finfo(dtype).eps * numpy.sqrt(square_of(given))
        small = numpy.logical_or(norm < self.epsilon, norm <= rounding)
        # Not `norm`: the gradient of a square root is infinite at 0.
        square = numpy.where(small, numpy.ones_like(square), square)
        factor = self.scale / numpy.sqrt(square)
        x = numpy.where(small, x, x * factor)
        return self.backend.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            **config_of(GlobalContrastNormalization, self),
        }
