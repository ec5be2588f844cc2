from typing import Any

import keras
from keras import ops

from .._checks import StrictConfig
from .._checks import check_positive_integer
from .._checks import config_of
from .._checks import invalid
from .._checks import is_integer


@keras.saving.register_keras_serializable(package="keras_invdrop")
class Maxout(StrictConfig, keras.Layer):
    """Maximum over groups of adjacent units.

    Each output is the largest of `pieces` neighbours along `axis`: outputs
    0, 1, ... are the maxima of the inputs `0 .. pieces - 1`,
    `pieces .. 2 * pieces - 1`, ... The gradient flows to the winning piece
    only; pieces that tie for the maximum share it equally.

    Args:
        pieces: Positive integer. Number of adjacent units in a group.
        axis: Integer. The axis of the units: -1 for dense layers and
            `channels_last` feature maps, 1 for `channels_first`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more. Integers are cast to the layer's
            compute dtype.

    Input shape:
        `(batch, ...)`, with a fixed size along `axis`, a multiple of `pieces`.

    Output shape:
        The input's, divided by `pieces` along `axis`.

    Raises:
        ValueError: If `pieces` is not a positive integer, `axis` is not an
            axis of the input or names the batch, or the size of the input
            along `axis` is not fixed or not divisible by `pieces`.

    Example:

    >>> layer = keras_invdrop.Maxout(2)
    >>> ops.convert_to_numpy(layer(np.array([[1.0, 5.0, 3.0, 2.0]])))
    array([[5., 3.]], dtype=float32)

    Reference:

    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    """

    def __init__(self, pieces: int, axis: int = -1, **kwargs: Any):
        super().__init__(**kwargs)
        self.pieces = check_positive_integer("pieces", pieces)
        if not is_integer(axis) or axis == 0:
            raise invalid("axis", "an integer other than 0, the batch", axis)
        self.axis = int(axis)
        self.supports_masking = True

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={self.axis: input_shape[self.axis]}
        )

    def call(self, inputs):
        inputs = ops.cast(inputs, self.compute_dtype)
        axis = self.axis % len(inputs.shape)
        shape = ops.shape(inputs)
        units = inputs.shape[axis] // self.pieces
        # (..., units * pieces, ...) -> (..., units, pieces, ...)
        groups = (*shape[:axis], units, self.pieces, *shape[axis + 1 :])
        if 0 in inputs.shape:  # `max` refuses an empty axis
            return ops.reshape(
                inputs, (*groups[: axis + 1], *groups[axis + 2 :])
            )
        return ops.max(ops.reshape(inputs, groups), axis=axis + 1)

    def compute_mask(self, inputs, previous_mask):
        # If the groups contain timesteps, no mask fits the output.
        axis = self.axis % len(inputs.shape)
        if previous_mask is None or axis < len(previous_mask.shape):
            return None
        return previous_mask

    def compute_output_shape(self, input_shape):
        rank = len(input_shape)
        if not -rank < self.axis < rank:
            raise invalid(
                "axis",
                f"an axis of an input of shape {tuple(input_shape)} other "
                "than the batch",
                self.axis,
            )
        size = input_shape[self.axis]
        if size is None:
            raise invalid(
                "axis",
                "an axis of fixed size, as the layer divides the units along "
                f"it into groups. The full input shape is {tuple(input_shape)}",
                self.axis,
            )
        if size % self.pieces:
            raise invalid(
                "pieces",
                f"a divisor of the input's size along axis {self.axis}, which "
                f"is {size} (full input shape: {tuple(input_shape)})",
                self.pieces,
            )
        shape = list(input_shape)
        shape[self.axis] = size // self.pieces
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), **config_of(Maxout, self)}
