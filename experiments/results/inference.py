"""Tests and confidence intervals over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_invdrop._statistics import mean_and_interval

# Correlations are stored with four decimals: 1.0 may be any value above this.
NEARLY_ONE = 0.99995

# Number of bootstrap draws.
DRAWS = 10_000


@dataclass(frozen=True)
class Inference:
    """The result of testing a claim on values.

    Attributes:
        mean: Mean of the values.
        interval: 95 % confidence interval of the mean; NaN for a single value.
        favourable: Whether the mean supports the claim.
        p: Probability of a mean at least this extreme by chance if the true
            mean is 0 or, in a test of equality, a margin away from 0. NaN if
            the values do not vary.
    """

    mean: float
    interval: tuple[float, float]
    favourable: bool
    p: float


def above_zero(values: Sequence[float]) -> Inference:
    """Whether the mean is above 0, by Student's t, two-sided."""
    import scipy.stats

    mean, interval = _mean_and_interval(values)
    p = float("nan")
    if _vary(values):
        p = float(scipy.stats.ttest_1samp(values, 0).pvalue)
    return Inference(mean, interval, mean > 0, p)


def within(values: Sequence[float], margin: float) -> Inference:
    """Whether the mean is less than a margin away from 0.

    Two one-sided t tests check that the mean is above `-margin` and below
    `margin`. If the sample mean is farther from 0, one t test checks that the
    mean is beyond the margin.
    """
    import scipy.stats
    from statsmodels.stats.weightstats import DescrStatsW

    mean, interval = _mean_and_interval(values)
    favourable = abs(mean) < margin
    p = float("nan")
    if _vary(values) and favourable:
        p = float(DescrStatsW(values).ttost_mean(-margin, margin)[0])
    elif _vary(values):
        outwards = np.sign(mean) * np.asarray(values)
        test = scipy.stats.ttest_1samp(outwards, margin, alternative="greater")
        p = float(test.pvalue)
    return Inference(mean, interval, favourable, p)


def negative(correlations: Sequence[float]) -> Inference:
    """Whether correlations are negative, by Student's t of Fisher's z."""
    z = np.arctanh(np.clip(correlations, -NEARLY_ONE, NEARLY_ONE))
    found = above_zero([*-z])
    low, high = found.interval
    return Inference(
        float(-np.tanh(found.mean)),
        (float(-np.tanh(high)), float(-np.tanh(low))),
        found.favourable,
        found.p,
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Corrects the p values of a family of tests by Holm's method.

    A NaN stands for no test and remains NaN.
    """
    from statsmodels.stats.multitest import multipletests

    corrected = np.array(ps, "float64")
    made = ~np.isnan(corrected)
    if made.any():
        corrected[made] = multipletests(corrected[made], method="holm")[1]
    return [float(p) for p in corrected]


def over_seeds_and_examples(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds and examples.

    Each bootstrap draw resamples both the seeds and the examples with
    replacement.

    Args:
        differences: Array of shape `(seeds, examples)`.
    """
    rng = np.random.default_rng(0)
    seeds, examples = differences.shape
    # Examples without any difference are drawn as one category.
    different = differences[:, differences.any(axis=0)]
    number = different.shape[1]
    rest = 1 - number / examples
    of_seed = rng.multinomial(seeds, [1 / seeds] * seeds, DRAWS)
    of_example = rng.multinomial(
        examples, [1 / examples] * number + [rest], DRAWS
    )[:, :number]
    sums = ((of_seed @ different) * of_example).sum(axis=1)
    low, high = np.quantile(sums / (seeds * examples), [0.025, 0.975])
    return float(low), float(high)


def _vary(values: Sequence[float]) -> bool:
    # Figures on few test examples are often equal, which does not show a
    # variance of 0.
    return len(values) > 1 and bool(np.ptp(values) > 0)


def _mean_and_interval(
    values: Sequence[float],
) -> tuple[float, tuple[float, float]]:
    mean, half = map(float, mean_and_interval(values))
    return mean, (mean - half, mean + half)
