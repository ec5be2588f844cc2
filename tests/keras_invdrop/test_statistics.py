import numpy as np
import pytest

from keras_invdrop._statistics import correlation
from keras_invdrop._statistics import mean_and_interval


def test_interval_of_each_column():
    # Student's t with 2 degrees of freedom is 4.3027; s is 1 and 2.
    mean, half_width = mean_and_interval([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    np.testing.assert_array_equal(mean, [2, 4])
    expected = 4.3027 / np.sqrt(3) * np.array([1, 2])
    np.testing.assert_allclose(half_width, expected, rtol=1e-4)


def test_a_single_value_has_no_interval():
    mean, half_width = mean_and_interval([[1.0, 2.0]])
    np.testing.assert_array_equal(mean, [1, 2])
    assert np.isnan(half_width).all()


def test_the_interval_holds_the_mean_in_95_of_100():
    rng = np.random.default_rng(0)
    n = 4000
    held = 0
    for sample in rng.normal(3.0, 2.0, size=(n, 3)):
        mean, half_width = mean_and_interval(sample)
        held += abs(mean - 3.0) < half_width
    # Four standard errors of a proportion.
    assert abs(held / n - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n)


def test_correlation():
    r = correlation([[0.0, 1.0], [2.0, 3.0]], [[0.0, -1.0], [-2.0, -1.0]])
    assert r == pytest.approx(-2 / np.sqrt(5 * 2))


@pytest.mark.parametrize("constant", [[0.1, 0.1, 0.1], [0, 0, 0]])
def test_constants_have_no_correlation(constant):
    # The standard deviation of three times 0.1 is not 0.
    assert np.isnan(correlation(constant, [1.0, 2.0, 3.0]))
    assert np.isnan(correlation([1.0, 2.0, 3.0], constant))


def test_a_single_pair_has_no_correlation():
    assert np.isnan(correlation([1.0], [2.0]))
