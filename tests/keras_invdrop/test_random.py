import keras
import numpy as np
import pytest

from keras_invdrop.random import dropout_mask


def mask(shape, rate, seed):
    return keras.ops.convert_to_numpy(dropout_mask(shape, rate, seed))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("floatx", ["float32", "bfloat16"])
def test_fraction_kept(rate, floatx):
    n = 1_000_000
    keras.config.set_floatx(floatx)
    try:
        kept = mask((1000, 1000), rate, seed=1)
    finally:
        keras.config.set_floatx("float32")
    assert kept.dtype == bool
    # Four standard errors of a binomial proportion.
    tolerance = 4 * np.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) < tolerance


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_independent(axis):
    kept = np.moveaxis(mask((100, 102, 98), 0.3, seed=2), axis, 0)
    pairs = kept[0::2] & kept[1::2]
    # Four standard errors of the proportion of pairs that are both kept.
    tolerance = 4 * np.sqrt(0.49 * 0.51 / pairs.size)
    assert abs(pairs.mean() - 0.7**2) < tolerance


def test_a_generator_gives_another_mask_at_each_call():
    generator = keras.random.SeedGenerator(3)
    first = mask((50, 50), 0.5, generator)
    assert (first != mask((50, 50), 0.5, generator)).any()
    # From the same seed the same sequence begins again.
    again = keras.random.SeedGenerator(3)
    np.testing.assert_array_equal(first, mask((50, 50), 0.5, again))


def test_an_integer_seed_repeats():
    np.testing.assert_array_equal(
        mask((50, 50), 0.5, 4), mask((50, 50), 0.5, 4)
    )


def test_a_generator_advances_by_one_draw():
    ours = keras.random.SeedGenerator(5)
    keras_own = keras.random.SeedGenerator(5)
    dropout_mask((3, 4), 0.5, ours)
    keras.random.uniform((3, 4), seed=keras_own)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(ours.state.value),
        keras.ops.convert_to_numpy(keras_own.state.value),
    )
