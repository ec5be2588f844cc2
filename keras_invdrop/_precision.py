"""The precision of sums."""

from typing import Any

import keras


def dtype_of_sums(dtype: Any) -> str:
    """The dtype for sums, squares and means of values of the dtype `dtype`.

    The square of 256 is infinite in float16, and a sum of a few hundred
    bfloat16 values loses the small ones.

    Args:
        dtype: A dtype, of any backend, or its name.

    Returns:
        `"float64"` for float64, and else `"float32"`.
    """
    # Keras' `result_type` turns float64 into float32 on some backends.
    is_double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if is_double else "float32"
