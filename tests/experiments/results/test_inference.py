import numpy as np
import pytest
from keras_invdrop.experiments.results import inference


def test_a_difference():
    found = inference.above_zero([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6)
    # Student's t with 2 degrees of freedom, 4.3027; s = 0.1.
    half = 4.3027 * 0.1 / 3**0.5
    assert found.interval == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)
    # t = 10.392; P(|t| > 10.392) = 1 - t / sqrt(t^2 + 2), with 2 degrees.
    t = 0.6 / (0.1 / 3**0.5)
    assert found.p == pytest.approx(1 - t / (t**2 + 2) ** 0.5)
    assert found.favourable
    assert not inference.above_zero([-0.5, -0.6, -0.7]).favourable


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5]])
def test_what_does_not_vary_says_nothing(values):
    for found in (
        inference.above_zero(values),
        inference.within(values, 1.0),
        inference.within(values, 0.1),
        inference.negative(values),
    ):
        assert np.isnan(found.p)


def test_equivalence_is_two_one_sided_tests():
    # The mean is 0.02 and its standard error 0.01 / sqrt(3); the nearer margin
    # is 0.08 away: t = 13.86, one-sided.
    found = inference.within([0.01, 0.02, 0.03], 0.1)
    t = 0.08 / (0.01 / 3**0.5)
    assert found.favourable
    assert found.p == pytest.approx((1 - t / (t**2 + 2) ** 0.5) / 2)
    # The mean exceeds the margin by 0.05, in either direction.
    for sign in (1, -1):
        found = inference.within([sign * x for x in (0.14, 0.15, 0.16)], 0.1)
        t = 0.05 / (0.01 / 3**0.5)
        assert not found.favourable
        assert found.p == pytest.approx((1 - t / (t**2 + 2) ** 0.5) / 2)


def test_correlations_by_fishers_z():
    z = np.array([1.0, 1.1, 1.2])
    found = inference.negative(-np.tanh(z))
    assert found.favourable
    assert found.mean == pytest.approx(-np.tanh(1.1))
    half = 4.3027 * 0.1 / 3**0.5
    assert found.interval == pytest.approx(
        (-np.tanh(1.1 + half), -np.tanh(1.1 - half)), rel=1e-4
    )
    # Correlations that are rounded to -1 count as being as close to -1 as the
    # rounding allows.
    assert np.isfinite(inference.negative([-1.0, -0.9]).p)
    assert not inference.negative([0.5, 0.6]).favourable


def test_holm():
    # The smallest times 3, the next times 2; none below one before it.
    ps = [0.04, 0.01, float("nan"), 0.03]
    expected = [0.06, 0.03, float("nan"), 0.06]
    np.testing.assert_allclose(inference.holm(ps), expected)
    assert np.isnan(inference.holm([float("nan")])).all()
    assert inference.holm([]) == []


def test_the_bootstrap_of_one_seed_is_that_of_the_examples():
    # 40 of 1,000: a proportion with a standard error of 0.62 %.
    differences = np.zeros((1, 1000))
    differences[0, :40] = 1
    low, high = inference.over_seeds_and_examples(differences)
    error = (0.04 * 0.96 / 1000) ** 0.5
    assert low == pytest.approx(0.04 - 1.96 * error, abs=0.001)
    assert high == pytest.approx(0.04 + 1.96 * error, abs=0.001)


def test_the_bootstrap_of_equal_examples_is_that_of_the_seeds():
    # All examples have the same difference, which varies over 100 seeds.
    of_seed = np.arange(100)[:, None] - 49.5
    low, high = inference.over_seeds_and_examples(of_seed * np.ones((1, 50)))
    error = of_seed.std() / 100**0.5
    assert low == pytest.approx(-1.96 * error, rel=0.05)
    assert high == pytest.approx(1.96 * error, rel=0.05)


def test_seeds_and_examples_both_count():
    # The two variances add up.
    rng = np.random.default_rng(0)
    seeds, examples = rng.normal(size=(50, 1)), rng.normal(size=(1, 80))
    low, high = inference.over_seeds_and_examples(seeds + examples)
    error = (seeds.var() / 50 + examples.var() / 80) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    # A report that is written again has the same figures.
    again = inference.over_seeds_and_examples(seeds + examples)
    assert again == (low, high)


def test_without_a_difference():
    assert inference.over_seeds_and_examples(np.zeros((3, 10))) == (0, 0)
