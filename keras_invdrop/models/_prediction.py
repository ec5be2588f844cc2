"""Statistics of the samples that `MonteCarlo` draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class MonteCarloPrediction:
    """The mean and the uncertainty of one output of a model.

    Attributes:
        mean: Mean of the samples, of the shape of the output.
        standard_deviation: Standard deviation of the samples, of the same
            shape: the root mean squared deviation, which is 0 for one sample.
        entropy: Predictive entropy in nats: the entropy of the mean, over the
            last axis. None if the output is not a probability distribution.
        mutual_information: Mutual information, in nats, between the
            prediction and the masks: the predictive entropy minus the mean
            entropy of the samples. It is 0 where all samples agree. None if
            the output is not a probability distribution.
        samples: The samples, of shape `(examples, samples, ...)`, if
            `return_samples` was true; None otherwise.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    samples: np.ndarray | None = None


class Samples:
    """Running statistics of the samples of one output.

    Args:
        dtype: The dtype of the output.
        kept: Whether to keep the samples themselves.
    """

    def __init__(self, dtype, kept=False):
        # Probabilities may differ from a sum of 1 by this much.
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
        # Merging with the difference of the means avoids cancellation between
        # two large sums of squares.
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


def predicted(parts: Sequence[Samples]) -> MonteCarloPrediction:
    """The prediction for one output; each part holds some of the examples."""

    def joined(arrays):
        return np.concatenate(list(arrays))

    mean = joined(part.mean for part in parts)
    count = parts[0].count
    of_mean = mutual_information = samples = None
    if all(part.distribution for part in parts):
        of_mean = entropy(mean)
        of_samples = joined(part.entropies for part in parts) / count
        # Rounding may make the difference negative.
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
