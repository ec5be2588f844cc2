"""Statistics over seeds and over units."""

import numpy as np

from ._extras import imported


def mean_and_interval(values):
    """The mean and half the width of its 95 % confidence interval.

    The interval assumes independent normal values (Student's t). Needs scipy.

    Args:
        values: Array of shape `(values, ...)`.

    Returns:
        Two arrays of shape `(...)`. The half width of a single value is NaN.
    """
    (stats,) = imported(
        "The confidence interval of a mean", ["scipy.stats"], "plots"
    )
    values = np.asarray(values, dtype="float64")
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan)
    quantile = stats.t.ppf(0.975, df=len(values) - 1)
    return mean, quantile * stats.sem(values, axis=0)


def correlation(one, other):
    """The correlation coefficient of two arrays of the same size.

    Returns:
        A float; NaN if all values of one of the arrays are equal.
    """
    both = np.stack([np.ravel(one), np.ravel(other)]).astype("float64")
    if not np.ptp(both, axis=1).all():
        return float("nan")
    return float(np.corrcoef(both)[0, 1])
