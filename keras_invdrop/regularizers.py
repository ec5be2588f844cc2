"""Priors on beta."""

from typing import Any

import keras
from keras import ops

from ._checks import StrictConfig
from ._checks import check_not_negative
from ._precision import dtype_of_sums

__all__ = ["Variance"]


def __dir__() -> list[str]:
    return __all__


@keras.saving.register_keras_serializable(package="keras_invdrop")
class Variance(StrictConfig, keras.regularizers.Regularizer):
    """Prefers weights that differ little from their mean.

    The penalty is `factor * sum((x - mean(x)) ** 2)`, with the mean over all
    elements of `x`. A constant added to every weight costs nothing, so all
    betas may move together. This is the second of the paper's two priors on the
    invariance parameters. The first, which prefers small values, is
    `keras.regularizers.L2`.

    Args:
        factor: Float, 0 or more.

    Raises:
        ValueError: If `factor` is not a finite number of at least 0.

    Example:

    >>> prior = keras_invdrop.regularizers.Variance(0.1)
    >>> ops.convert_to_numpy(prior(np.array([1.0, 3.0], "float32")))
    array(0.2, dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, section 2.1
    """

    def __init__(self, factor: float = 0.01):
        self.factor = check_not_negative("factor", factor)

    def __call__(self, x: Any) -> Any:
        # In float16 the square of a deviation of 256 is infinite.
        x = ops.convert_to_tensor(x)
        x = ops.cast(x, dtype_of_sums(x.dtype))
        return self.factor * ops.sum(ops.square(x - ops.mean(x)))

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor}
