from typing import Any

import keras
from keras import ops

from .. import arguments
from .._checks import check_fraction
from .._checks import config_of
from .._masks import check_first_pass
from .._precision import dtype_of_sums
from ._shifted_dropout import ShiftedDropout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class RunningAverageDropout(ShiftedDropout):
    """Dropout that subtracts each activity's running average.

    This is the baseline of the paper's Table 2: invariant dropout whose shift
    is not learned but follows the mean activity. With the running average `a`
    of each activity, `p = 1 - rate` and a mask `m ~ Bernoulli(p)` for each
    activity, the output is `m * (x - a) / p` in training and `x - a` at
    inference.

    In training each batch moves the average:
    `a <- momentum * a + (1 - momentum) * mean(x)`, with the mean over the batch
    and the shared axes. The average starts at 0, where the layer equals
    `Dropout`. No gradient flows through the average, and `trainable=False`
    freezes it, as in `BatchNormalization`.

    The mean excludes timesteps that a mask marks as padding.

    Args:
        rate: Float between 0 and 1. Fraction of the activities to drop.
        noise_shape: Tuple of integers and `None`. Shape of the mask, see
            `InvariantDropout`.
        seed: Integer to use as random seed.
        momentum: Float between 0 and 1. Momentum of the running average.
        shared_axes: Integer or list of integers. Axes along which activities
            share one average.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Boolean. Whether to update the average and drop (`True`) or
            only to subtract it (`False`).
        mask: Boolean tensor of shape `(batch, ...)`, broadcast to the input
            from the first axis on, `True` where the input counts.

    Input shape:
        `(batch, ...)`, with a fixed size on every axis that is not shared.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If `rate` or `momentum` is not a number between 0 and 1,
            or as in `InvariantDropout`.
        RuntimeError: If PyTorch recomputes the layer, as under
            `torch.utils.checkpoint`: it would average twice.

    Attributes:
        average: The running average, a weight that is not trained, of the
            shape of `beta` in `InvariantDropout`.
        level: NumPy array, the level that replaces a dropped activity: the
            average. See `InvariantDropout`.

    Example:

    >>> layer = keras_invdrop.RunningAverageDropout(0.0, momentum=0.9)
    >>> _ = layer(np.array([[1.0], [3.0]]), training=True)
    >>> ops.convert_to_numpy(layer.average)  # 0.9 * 0 + 0.1 * mean(1, 3)
    array([0.2], dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, section 2.2 and Table 2
    """

    def __init__(
        self,
        rate: float,
        noise_shape: arguments.NoiseShape | None = None,
        seed: int | None = None,
        *,
        momentum: float = 0.99,
        shared_axes: arguments.Axes | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            rate, noise_shape, seed, shared_axes=shared_axes, **kwargs
        )
        self.momentum = check_fraction("momentum", momentum)

    @property
    def shift(self) -> Any:
        return -self.average

    def set_shift(self, value: Any) -> None:
        self.check_built("shift")
        self.check_shift(value, self.average)
        self.average.assign(ops.negative(value))

    def build(self, input_shape):
        super().build(input_shape)
        self.average = self.add_weight(
            name="average",
            shape=self.shift_shape(input_shape),
            initializer="zeros",
            trainable=False,
            # In a 16-bit dtype rounding would lose a step of 1 %, and the sum
            # over a batch might be infinite.
            dtype=dtype_of_sums(self.variable_dtype),
            autocast=False,
        )

    def call(self, inputs, training=False, mask=None):
        x = ops.cast(inputs, self.compute_dtype)
        shift = -ops.cast(self.average, self.compute_dtype)
        if not training:
            return x + shift
        if self.trainable:
            check_first_pass(
                self,
                "its average would move once more. Leave the layer out of "
                "what is checkpointed.",
            )
            self.update_average(ops.stop_gradient(x), mask)
        return self.drop(x, shift)

    def update_average(self, x: Any, mask: Any = None) -> None:
        """Moves the average towards the mean of the batch `x`."""
        x = ops.cast(x, self.average.dtype)
        axes = [0] + [
            axis
            for axis, size in enumerate(self.average.shape, start=1)
            if size == 1
        ]
        if mask is None:
            counted = ops.ones_like(x)
        else:
            missing = len(x.shape) - len(mask.shape)
            mask = ops.reshape(mask, (*ops.shape(mask), *[1] * missing))
            counted = ops.cast(ops.broadcast_to(mask, ops.shape(x)), x.dtype)
        total = ops.sum(ops.where(counted, x, 0), axis=axes, keepdims=True)
        count = ops.sum(counted, axis=axes, keepdims=True)
        mean = ops.squeeze(total / ops.maximum(count, 1), axis=0)
        average = ops.convert_to_tensor(self.average)
        moved = self.momentum * average + (1 - self.momentum) * mean
        # If all examples of the batch are padding, keep the average.
        observed = ops.squeeze(count, axis=0) > 0
        self.average.assign(ops.where(observed, moved, average))

    def get_config(self):
        return {
            **super().get_config(),
            **config_of(RunningAverageDropout, self),
        }
