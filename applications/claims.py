"""What the paper claims, and whether it holds for what was measured."""

import json
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from keras_invdrop.statistics import mean_and_interval

from .measurements import measurements
from .results import Result
from .tables import ROWS

# Two encodings are the same if the difference is known to less than this, in
# points, and may be 0.
SAME_WITHIN = 0.1

Verdict = Literal["holds", "does not hold", "undecided"]

# What may be selected for each row, and then does not keep rows from being
# compared.
SELECTED = ("learning_rate", "max_norm")

# Where beta starts calibrated, which is ours and not the paper's.
CALIBRATED = "+calibrated"


@dataclass(frozen=True)
class Claim:
    """A sentence about rows of the tables.

    Attributes:
        text: The sentence.
        source: Where the paper says so, or that it is ours.
        kind: `"better"` if the first row of each pair has the better figure,
            `"same"` if both have the same one, `"negative"` if beta and the
            mean activity of a layer of the first row correlate negatively.
        pairs: Ids of rows, with `+calibrated` where beta starts calibrated;
            or the id of a row and the name of a layer.
    """

    text: str
    source: str
    kind: Literal["better", "same", "negative"]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """A claim, and what trainings under the same conditions say of it.

    Attributes:
        claim: The claim.
        results: All results that took part.
        unit: The unit of the difference, or `"r"` of a correlation.
        values: The paired differences, one for each seed, or for each
            partition of the splicing data their mean over seeds, in favour of
            the claim if they are positive; or the correlations.
    """

    claim: Claim
    results: list[Result]
    unit: str
    values: list[float]

    @property
    def conditions(self) -> str:
        """On what, in a few words."""
        first = self.results[0]
        (measured,) = measurements(ROWS[first.row], [first])
        return measured.conditions

    @property
    def mean_and_interval(self) -> tuple[float, float]:
        """Mean of the values, and half its 95 % interval (Student's t)."""
        mean, half_width = mean_and_interval(self.values)
        return float(mean), float(half_width)

    @property
    def verdict(self) -> Verdict:
        """What the interval says; a single value leaves it undecided."""
        mean, half = self.mean_and_interval
        # Figures of few test examples are often equal; that tells nothing of
        # how far they vary.
        if not half > 0:
            return "undecided"
        low, high = mean - half, mean + half
        if self.claim.kind == "negative":
            low, high = -high, -low
        if self.claim.kind == "same":
            if not low <= 0 <= high:
                return "does not hold"
            return "holds" if high - low < SAME_WITHIN else "undecided"
        if low > 0:
            return "holds"
        return "does not hold" if high < 0 else "undecided"


def _table_2(encoding: str) -> tuple[Claim, ...]:
    row = f"table2/{encoding}/"
    return (
        Claim(
            "Invariant dropout makes fewer errors than standard dropout, "
            f"{encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}standard"),),
        ),
        Claim(
            f"... than the running average, {encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}running_average"),),
        ),
        Claim(
            f"... than with beta on the input only, {encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}invariant_input"),),
        ),
        Claim(
            "... than with beta on the hidden layers only, "
            f"{encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}invariant_hidden"),),
        ),
        Claim(
            "Calibrated, it makes fewer errors than standard dropout, "
            f"{encoding} encoding",
            "ours",
            "better",
            ((f"{row}invariant{CALIBRATED}", f"{row}standard"),),
        ),
        *(
            Claim(
                f"Beta correlates negatively with the mean activity, "
                f"{layer.replace('_', ' ')}, {encoding} encoding",
                "Figure 2",
                "negative",
                ((f"{row}invariant", f"{layer}_dropout"),),
            )
            for layer in ("input", "hidden_1", "hidden_2")
        ),
    )


def _invariant(text: str, source: str, row: str) -> Claim:
    return Claim(
        f"Invariant dropout makes fewer errors than standard dropout, {text}",
        source,
        "better",
        ((f"{row}/invariant", f"{row}/standard"),),
    )


CLAIMS: tuple[Claim, ...] = (
    *_table_2("original"),
    *_table_2("inverted"),
    Claim(
        "Standard dropout makes more errors on the inverted encoding",
        "Table 2",
        "better",
        (("table2/original/standard", "table2/inverted/standard"),),
    ),
    Claim(
        "Invariant dropout makes as many errors on both encodings",
        "Table 2",
        "same",
        (("table2/original/invariant", "table2/inverted/invariant"),),
    ),
    Claim(
        "Calibrated, it makes as many errors on both encodings",
        "ours",
        "same",
        (
            (
                f"table2/original/invariant{CALIBRATED}",
                f"table2/inverted/invariant{CALIBRATED}",
            ),
        ),
    ),
    _invariant("CIFAR-10, ReLU network", "Table 3", "table3/relu"),
    _invariant("SVHN, ReLU network", "Table 4", "table4/relu"),
    Claim(
        "Standard dropout has more code quality than none",
        "Table 5",
        "better",
        tuple(
            (f"table5/{i}/standard", f"table5/{i}/none") for i in range(1, 7)
        ),
    ),
    Claim(
        "Invariant dropout has more code quality than standard dropout",
        "Table 5",
        "better",
        tuple(
            (f"table5/{i}/invariant", f"table5/{i}/standard")
            for i in range(1, 7)
        ),
    ),
    _invariant("CIFAR-10, maxout network", "Table 6", "table6/cifar10"),
    _invariant("SVHN, maxout network", "Table 6", "table6/svhn"),
)


def findings(results: Iterable[Result]) -> list[Finding]:
    """What results say of the claims.

    Compared are trainings with the same seed, under the same conditions but
    for the method, the encoding, how beta starts and decays, and what was
    selected for each row. A claim of which nothing was measured is left out;
    one that was measured under several conditions is there several times.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(comparable(result), []).append(result)
    found: list[Finding] = []
    for claim in CLAIMS:
        for results in groups.values():
            for group in _by_decay(results):
                finding = _finding(claim, group)
                # Of results without beta, every decay says the same.
                if finding is not None and finding not in found:
                    found.append(finding)
    return found


# The results of a row, by their seeds.
Group = dict[str, dict[int, Result]]


def _by_decay(results: list[Result]) -> Iterator[Group]:
    """For each decay of beta, its results and those that have no beta."""
    with_beta = [r for r in results if r.dropout.startswith("invariant")]
    decays = {r.recipe["beta_decay"] for r in with_beta} or {0.0}
    for decay in sorted(decays):
        group: Group = {}
        for result in results:
            if result in with_beta and result.recipe["beta_decay"] != decay:
                continue
            calibrated = CALIBRATED * result.recipe["calibrated"]
            group.setdefault(result.row + calibrated, {})[result.seed] = result
        yield group


def comparable(result: Result) -> str:
    """What must be alike in trainings that are compared."""
    conditions = {**result.conditions, "limit_train": result.limit_train}
    recipe = dict(conditions["recipe"])
    own = ROWS[result.row].trained(recipe["calibrated"])
    if all(recipe[name] == getattr(own, name) for name in SELECTED):
        recipe |= dict.fromkeys(SELECTED, "the row's own")
    del recipe["calibrated"], recipe["beta_decay"]
    if ROWS[result.row].partition is not None:
        # Partitions differ by an example.
        for name in [name for name in conditions if "examples" in name]:
            del conditions[name]
    return json.dumps({**conditions, "recipe": recipe}, sort_keys=True)


def _finding(claim: Claim, group: Group) -> Finding | None:
    if claim.kind == "negative":
        found = list(_correlations(claim, group))
        unit = "r"
    else:
        found = list(_differences(claim, group))
        row = claim.pairs[0][0].removesuffix(CALIBRATED)
        unit = "points" if ROWS[row].unit == "%" else ROWS[row].unit
    if not found:
        return None
    values, results = zip(*found, strict=True)
    return Finding(
        claim, [r for each in results for r in each], unit, [*values]
    )


def _correlations(
    claim: Claim, group: Group
) -> Iterator[tuple[float, list[Result]]]:
    for row, layer in claim.pairs:
        for result in group.get(row, {}).values():
            correlation = result.correlations.get(layer)
            if correlation is not None:
                yield correlation, [result]


def _differences(
    claim: Claim, group: Group
) -> Iterator[tuple[float, list[Result]]]:
    for one, other in claim.pairs:
        paired = [
            (result, group[other][seed])
            for seed, result in group.get(one, {}).items()
            if seed in group.get(other, {})
        ]
        # The lower error is the better one, and the higher code quality.
        sign = -1 if ROWS[one.removesuffix(CALIBRATED)].unit == "%" else 1
        values = [sign * (a.test - b.test) for a, b in paired]
        if len(claim.pairs) == 1:
            for value, pair in zip(values, paired, strict=True):
                yield value, [*pair]
        elif values:
            # Seeds of one partition have their examples in common.
            yield float(np.mean(values)), [each for p in paired for each in p]
