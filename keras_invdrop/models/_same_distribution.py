"""Whether two sources of random outputs agree, but for chance."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import numpy as np

# The probability that chance makes equal sources differ.
CHANCE = 1e-6
TINY = float(np.finfo("float32").tiny)


def beyond_chance(
    draws: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
) -> float:
    """The difference between two sources that chance does not explain.

    Compared are the mean of each element of an output, and for each example
    the mean distance between neighbouring samples of a draw, and between the
    samples of two draws. These distances are too short where a source gives
    several samples the same mask.

    The difference between a sample of one source and a sample of the other
    has either sign with the same probability, if the sources are equal. By
    Hoeffding's inequality the sum of such differences exceeds `t` times the
    root of the sum of their squares with a probability of at most
    `2 exp(-t^2 / 2)`, whatever the distribution of the samples. `t` is such
    that one of all compared sums does so with the probability `CHANCE`.

    Args:
        draws: Pairs of what both sources draw: for each output an array of
            shape `(samples, examples, ...)`, with an even number of samples.

    Returns:
        How far the largest difference exceeds that bound, in units of the
        largest value of the output: 0 if none does, infinity for outputs of
        different shapes.
    """
    # By output and by what is compared.
    sums: dict[Any, Any] = defaultdict(float)
    squares: dict[Any, Any] = defaultdict(float)
    counts: dict[Any, int] = defaultdict(int)
    scales: dict[int, float] = defaultdict(lambda: TINY)
    before: dict[int, np.ndarray] = {}
    for number, (found, expected) in enumerate(draws):
        if [x.shape for x in found] != [x.shape for x in expected]:
            return float("inf")
        for output, pair in enumerate(zip(found, expected, strict=True)):
            drawn = np.asarray(pair, "float64")
            scales[output] = max(scales[output], np.abs(drawn[1]).max())
            compared = {
                "means": drawn,
                "neighbours": _distances(drawn[:, ::2], drawn[:, 1::2]),
            }
            if number % 2:
                compared["draws"] = _distances(drawn, before[output])
            before[output] = drawn
            for name, (a, b) in compared.items():
                sums[output, name] += (a - b).sum(axis=0)
                squares[output, name] += ((a - b) ** 2).sum(axis=0)
                counts[output, name] += len(a)
    bound = np.sqrt(2 * np.log(2 * sum(map(np.size, sums.values())) / CHANCE))
    excesses = [
        np.max(np.abs(sums[key]) - bound * np.sqrt(squares[key]))
        / (counts[key] * scales[key[0]])
        for key in sums
    ]
    return float(np.max([0, *excesses]))  # NaN if one is


def _distances(a, b):
    """Mean distances, of shape `(sources, samples, examples)`."""
    return np.abs(a - b).reshape((*a.shape[:3], -1)).mean(axis=-1)
