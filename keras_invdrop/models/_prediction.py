"""What the samples of the outputs of a model say."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class MonteCarloPrediction:
    """What the samples of one output of a model say.

    Attributes:
        mean: The mean of the samples, of the shape of the output.
        standard_deviation: Their standard deviation, of the same shape: the
            root of the mean squared deviation, which is 0 of one sample.
        entropy: The predictive entropy in nats: that of the mean, over the
            last axis. None where the output is no probability distribution.
        mutual_information: The mutual information, in nats, between the
            prediction and the masks: the predictive entropy less the mean of
            the entropies of the samples. It is 0 where all samples say the
            same. None where the output is no probability distribution.
        samples: The samples, of shape `(examples, samples, ...)`, where
            `predict` was asked for them; None otherwise.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    samples: np.ndarray | None = None


class Samples:
    """The statistics of the samples seen so far of one output.

    Args:
        dtype: The dtype of the output.
        kept: Whether to keep the samples themselves.
    """

    def __init__(self, dtype, kept=False):
        # How far from 1 the sum of probabilities may be.
        self.tolerance = 0.02 if dtype in ("float16", "bfloat16") else 1e-3
        self.kept: Any = [] if kept else None
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # The sum of the squared deviations.
        self.entropies: Any = 0.0  # The sum over samples.
        self.distribution = True

    def add(self, samples):
        """Adds samples, an array of shape `(examples, samples, ...)`."""
        samples = samples.astype("float64")
        if self.kept is not None:
            self.kept.append(samples)
        # Two sets of samples are merged by the difference of their means: no
        # sum of squares cancels against another.
        count = self.count + samples.shape[1]
        mean = samples.mean(axis=1)
        squares = np.sum((samples - mean[:, None]) ** 2, axis=1)
        difference = mean - self.mean
        self.mean = self.mean + difference * (samples.shape[1] / count)
        self.squares = self.squares + squares
        self.squares += difference**2 * (self.count * samples.shape[1] / count)
        self.count = count
        self.distribution = self.distribution and bool(
            samples.ndim > 2
            and samples.shape[-1] > 1
            and np.all(samples >= 0)
            and np.all(np.abs(samples.sum(axis=-1) - 1) <= self.tolerance)
        )
        if self.distribution:
            self.entropies = self.entropies + entropy(samples).sum(axis=1)


def predicted(parts: list[Samples], examples: int) -> MonteCarloPrediction:
    """The prediction for an output, of which each part holds some examples."""

    def joined(arrays):
        # The last part is filled up with repetitions.
        return np.concatenate(list(arrays))[:examples]

    mean = joined(part.mean for part in parts)
    count = parts[0].count
    of_mean = mutual_information = samples = None
    if all(part.distribution for part in parts):
        of_mean = entropy(mean)
        of_samples = joined(part.entropies for part in parts) / count
        # Never negative, but for the rounding.
        mutual_information = np.maximum(of_mean - of_samples, 0)
    if parts[0].kept is not None:
        samples = joined(np.concatenate(part.kept, axis=1) for part in parts)
    return MonteCarloPrediction(
        mean=mean,
        standard_deviation=np.sqrt(
            joined(part.squares for part in parts) / count
        ),
        entropy=of_mean,
        mutual_information=mutual_information,
        samples=samples,
    )


def entropy(p):
    """The entropy over the last axis, in nats."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
