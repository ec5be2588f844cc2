"""Dropout masks. The only file that may name a backend."""

import keras


def mask_shape(noise_shape, shape):
    """The shape of the mask for activities of shape `shape`.

    It is `noise_shape`, with the size of the activities where that is None.
    """
    if noise_shape is None:
        return shape
    return tuple(
        size if mask_size is None else mask_size
        for mask_size, size in zip(noise_shape, shape, strict=True)
    )


def dropout_mask(shape, rate, seed):
    """Samples which activities are kept.

    Args:
        shape: Tuple of integers (or, for a dimension that is only known when
            the step runs, scalar tensors). Shape of the mask.
        rate: Float in [0, 1). Probability that an element is `False`.
        seed: A `keras.random.SeedGenerator`, which is advanced by one draw,
            or an integer.

    Returns:
        A boolean tensor of shape `shape`, `True` where the activity is kept:
        Bernoulli(1 - rate) elementwise.
    """
    # float32 under every dtype policy: a bfloat16 has 8 bits of precision and
    # could not tell a rate of 0.001 from 0.
    return keras.random.uniform(shape, dtype="float32", seed=seed) >= rate
