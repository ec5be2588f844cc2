import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy import stats

from keras_invdrop.random import dropout_mask
from keras_invdrop.random import keep_probability

RATES = [0.001, 0.1, 0.2, 0.3, 0.5, 0.9]


def mask(shape, rate, seed):
    if isinstance(seed, int):
        seed = keras.random.SeedGenerator(seed)
    return keras.ops.convert_to_numpy(dropout_mask(shape, rate, seed))


def assert_independent(first, second, keep):
    """Chi-square test of two masks, each of known probability."""
    kinds = np.bincount(2 * first.ravel() + second.ravel(), minlength=4)
    expected = [(1 - keep) ** 2, (1 - keep) * keep, keep * (1 - keep), keep**2]
    test = stats.chisquare(kinds, np.array(expected) * first.size)
    assert test.pvalue > 1e-3


@pytest.mark.parametrize("rate", RATES)
def test_fraction_kept(rate):
    generator = keras.random.SeedGenerator(1)
    kept = sum(
        np.count_nonzero(mask((1000, 10_000), rate, generator))
        for _ in range(10)
    )
    keep = keep_probability(rate)
    # Four standard errors of a binomial proportion.
    tolerance = 4 * np.sqrt(keep * (1 - keep) / 1e8)
    assert abs(kept / 1e8 - keep) < tolerance


@pytest.mark.parametrize("rate", [*RATES, 1e-9, 1 - 1e-9, 1 / 256])
def test_probability_is_the_one_asked_for(rate):
    keep = keep_probability(rate)
    assert 0 < keep < 1
    assert abs(keep - (1 - rate)) < 2**-16


@pytest.mark.parametrize("rate", [0.5, 0.25, 255 / 256])
def test_rates_of_8_bits_are_exact(rate):
    assert keep_probability(rate) == 1 - rate


def test_certain_rates_stay_certain():
    assert keep_probability(0.0) == 1
    assert keep_probability(1.0) == 0


@pytest.mark.parametrize("floatx", ["bfloat16", "float16"])
def test_small_rates_under_every_dtype_policy(floatx):
    keras.config.set_floatx(floatx)
    try:
        kept = mask((1000, 1000), 0.001, 1)
    finally:
        keras.config.set_floatx("float32")
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, mask((1000, 1000), 0.001, 1))


@pytest.mark.parametrize("rate", [0.25, 0.3])  # of 8 and of 16 bits
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("apart", [1, 2, 3, 4, 8])
def test_neighbours_are_independent(rate, axis, apart):
    # Along the last axis, those that share a word included.
    kept = np.moveaxis(mask((96, 112, 128), rate, 2), axis, 0)
    kept = kept[: len(kept) // (2 * apart) * 2 * apart]
    first, second = np.moveaxis(
        kept.reshape(-1, 2, apart, *kept.shape[1:]), 1, 0
    )
    assert_independent(first, second, keep_probability(rate))


@pytest.mark.parametrize("rate", [0.25, 0.3])
@pytest.mark.parametrize("apart", [1, 2, 17])
def test_draws_and_seeds_are_independent(rate, apart):
    shape, keep = (1000, 1000), keep_probability(rate)
    generator = keras.random.SeedGenerator(3)
    draws = [mask(shape, rate, generator) for _ in range(apart + 1)]
    other = mask(shape, rate, 3 + apart)
    assert_independent(draws[0], draws[apart], keep)
    assert_independent(draws[0], other, keep)
    # Nor is one generator some draws behind another.
    assert_independent(draws[apart], other, keep)


def test_the_same_seed_repeats():
    first, again = (keras.random.SeedGenerator(4) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(
            mask((50, 50), 0.5, first), mask((50, 50), 0.5, again)
        )


@pytest.mark.parametrize("rate", [0.25, 0.3])
@pytest.mark.parametrize(
    "shape",
    [(1000,), (1000, 1), (300, 1, 1, 3), (40, 5, 7), (10, 3, 3, 17), (0, 5)],
)
def test_any_shape(shape, rate):
    kept = mask(shape, rate, 5)
    assert kept.shape == shape
    keep = keep_probability(rate)
    tolerance = 4 * np.sqrt(keep * (1 - keep) * kept.size)
    assert abs(kept.sum() - keep * kept.size) <= tolerance


def test_a_generator_advances_by_one_draw():
    ours = keras.random.SeedGenerator(5)
    keras_own = keras.random.SeedGenerator(5)
    dropout_mask((3, 4), 0.5, ours)
    keras.random.uniform((3, 4), seed=keras_own)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(ours.state.value),
        keras.ops.convert_to_numpy(keras_own.state.value),
    )


ON_FOUR_DEVICES = """
import re
import jax
from jax.sharding import NamedSharding, PartitionSpec
from keras.random import SeedGenerator
from keras_invdrop.random import dropout_mask

mesh = jax.make_mesh((4,), ("batch",))
split = NamedSharding(mesh, PartitionSpec("batch"))
generator = SeedGenerator(6)

def step(state, x):
    generator.state.assign(state)
    return jax.numpy.where(dropout_mask(x.shape, 0.3, generator), x, 0)

x = jax.device_put(jax.numpy.ones((8, 6, 5, 3)), split)
state = generator.state.value
compiled = jax.jit(step, out_shardings=split).lower(state, x).compile()
program = compiled.as_text()
# No device speaks with another one, or holds more than its two examples.
collectives = "all-gather|all-reduce|all-to-all|collective-permute"
assert not re.search(collectives, program), program
batches = set(re.findall(r"(?:pred|[su]\\d+|f32)\\[(\\d+),\\d", program))
assert batches == {"2"}, program
one = jax.jit(step)(state, jax.device_get(x))
assert (compiled(state, x) == one).all()
"""

if keras.backend.backend() == "jax":

    def test_stays_on_the_device_of_its_examples():
        flags = "--xla_force_host_platform_device_count=4"
        process = subprocess.run(
            [sys.executable, "-c", ON_FOUR_DEVICES],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
