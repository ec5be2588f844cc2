import numpy as np
import pytest

from keras_invdrop.models._same_distribution import beyond_chance

DRAWS, SAMPLES, EXAMPLES, UNITS = 8, 32, 3, 5
SHAPE = (DRAWS, SAMPLES, EXAMPLES, UNITS)


def compared(found, expected):
    """The result for sources of one output, of shape `SHAPE`."""
    return beyond_chance(
        ([a], [b]) for a, b in zip(found, expected, strict=True)
    )


def normal(rng):
    return rng.normal(size=SHAPE)


def rare(rng):
    """Mostly 0, as with a small rate, and far from a normal distribution."""
    return rng.binomial(1, 0.01, size=SHAPE) * 30.0


def heavy(rng):
    return rng.standard_cauchy(size=SHAPE)


@pytest.mark.parametrize("source", [normal, rare, heavy])
def test_chance_explains_equal_sources(source):
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert compared(source(rng), source(rng)) == 0


# Each unlike the other source in one way.
WRONG = {
    "mean": lambda x: x + 0.7,
    "mean of one unit": lambda x: x + 0.8 * (np.arange(UNITS) == 2),
    "mean of one example": lambda x: (
        x + 0.8 * (np.arange(EXAMPLES) == 1)[:, None]
    ),
    "no spread": lambda x: 0 * x,
    "spread": lambda x: 2 * x,
    "the samples of a draw share a mask": lambda x: x[:, :1].repeat(
        SAMPLES, axis=1
    ),
    "each draw has the same masks": lambda x: x[:1].repeat(DRAWS, axis=0),
}


@pytest.mark.parametrize("how", WRONG)
def test_chance_does_not_explain(how):
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = WRONG[how](normal(rng))
        assert compared(found, normal(rng)) > 0.01


def test_the_difference_of_constants_is_in_units_of_the_largest():
    expected = np.full(SHAPE, 3.0)
    assert compared(1.1 * expected, expected) == pytest.approx(
        # All differences have the same sign, which chance explains in part.
        0.1 * (1 - bound() / np.sqrt(DRAWS * SAMPLES)),
        rel=1e-6,
    )


def bound():
    tests = EXAMPLES * UNITS + 2 * EXAMPLES
    return np.sqrt(2 * np.log(2 * tests * 1e6))


def test_every_output_counts():
    x, y = np.zeros(SHAPE), np.ones(SHAPE)
    assert (
        beyond_chance(([a, a], [a, b]) for a, b in zip(x, y, strict=True)) > 0.5
    )
    assert (
        beyond_chance(([a, b], [a, b]) for a, b in zip(x, y, strict=True)) == 0
    )


def test_not_a_number_and_other_shapes():
    x = np.zeros(SHAPE)
    assert np.isnan(compared(x * np.nan, x))
    assert compared(x[:, :, :, :1], x) == np.inf
    assert beyond_chance(([a, a], [a]) for a in x) == np.inf
