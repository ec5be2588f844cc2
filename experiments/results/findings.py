"""Tests the paper's claims against the results."""

import functools
import json
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from keras_invdrop.applications.recipes import Selection

from ..paper.claims import CALIBRATED
from ..paper.claims import CLAIMS
from ..paper.claims import Claim
from ..paper.tables import ROWS
from .inference import Inference
from .inference import above_zero
from .inference import holm
from .inference import negative
from .inference import over_seeds_and_examples
from .inference import within
from .measurements import measurements
from .records import Result

# Error rates count as equal if they differ by less than this, in points.
SAME_WITHIN = 0.1

# A p value below this decides a claim.
SIGNIFICANT = 0.05

Verdict = Literal["holds", "does not hold", "undecided"]

# The values of a finding, each with the results that it compares.
Values = Iterator[tuple[float, list[tuple[Result, ...]]]]

# Settings that may be selected for each row, which are those that the command
# `tune` searches without beta's decay; rows remain comparable if they differ in
# selected settings.
SELECTED = (
    "learning_rate",
    "max_norm",
    "initial_stddev",
    "input_rate",
    "hidden_rate",
    "momentum",
    "warm_up",
    "beta_factor",
    "weight_decay",
    "ema_momentum",
)


@dataclass(frozen=True)
class Finding:
    """A claim, tested by trainings under the same conditions.

    Attributes:
        claim: The claim.
        compared: The compared results: pairs with the same seed or, for a
            correlation, single results.
        unit: The unit of the difference, or `"r"` for a correlation.
        values: The correlations, or the paired differences, which favour the
            claim if positive: one per seed or, for the splicing data, the
            mean over seeds of each partition.
        corrected: The p value of `inference`, corrected for all findings of
            the report.
    """

    claim: Claim
    compared: list[tuple[Result, ...]]
    unit: str
    values: list[float]
    # NaN, unequal to itself, must not make equal findings unequal.
    corrected: float = field(default=float("nan"), compare=False)

    @property
    def results(self) -> list[Result]:
        """All compared results."""
        return [result for each in self.compared for result in each]

    @property
    def conditions(self) -> str:
        """The conditions of the trainings, in a few words."""
        first = self.results[0]
        (measured,) = measurements(ROWS[first.row], [first])
        return measured.conditions

    @property
    def inference(self) -> Inference:
        """The test of this claim alone, over seeds."""
        if self.claim.kind == "negative":
            return negative(self.values)
        if self.claim.kind == "same":
            return within(self.values, SAME_WITHIN)
        return above_zero(self.values)

    @functools.cached_property
    def interval_with_examples(self) -> tuple[float, float] | None:
        """The 95 % interval of the difference over seeds and test examples.

        None if the figures are not error rates, for a single seed, or if a
        result does not record the misclassified examples.
        """
        if self.unit != "points" or len(self.compared) < 2:
            return None
        wrong = [[each.wrong_examples for each in p] for p in self.compared]
        if any(each is None for pair in wrong for each in pair):
            return None
        one, other = np.array(wrong).astype("int8").swapaxes(0, 1)
        low, high = over_seeds_and_examples(other - one)
        return 100 * low, 100 * high

    @property
    def verdict(self) -> Verdict:
        """The verdict from the corrected p value and the interval above."""
        if not self.corrected < SIGNIFICANT:
            return "undecided"
        favourable = self.inference.favourable
        if self.interval_with_examples is not None:
            low, high = self.interval_with_examples
            margin = SAME_WITHIN if self.claim.kind == "same" else 0.0
            beyond = low > margin or high < -margin
            inside = low > -margin and high < margin
            if not (inside if favourable and margin else beyond):
                return "undecided"
        return "holds" if favourable else "does not hold"

    @property
    def searches(self) -> list[Selection | None]:
        """The searches that selected the compared rows' settings."""
        return [selection(result) for result in self.compared[0]]

    @property
    def settings(self) -> list[str]:
        """The settings in which the compared rows differ, for each row."""
        recipes = [result.recipe for result in self.compared[0]]
        names = [
            name
            for name in SELECTED
            if len({str(recipe[name]) for recipe in recipes}) > 1
        ]
        return [
            ", ".join(f"{name} {recipe[name]}" for name in names)
            for recipe in recipes
        ]


def findings(results: Iterable[Result]) -> list[Finding]:
    """Tests the claims against results.

    A comparison takes trainings with the same seed under the same conditions,
    apart from the method, the encoding, the start and decay of beta, and the
    settings selected for each row. Claims without results are left out; a claim
    with results under several conditions has several findings. The p values
    are corrected for the number of findings.
    """
    found: list[Finding] = []
    trainings = _frame(results)
    for claim in CLAIMS:
        for _, alike in trainings.groupby("comparable", sort=False):
            for group in _by_decay(alike):
                finding = _finding(claim, group)
                # Results without beta give the same finding for every decay.
                if finding is not None and finding not in found:
                    found.append(finding)
    corrected = holm([finding.inference.p for finding in found])
    return [
        replace(finding, corrected=p)
        for finding, p in zip(found, corrected, strict=True)
    ]


def _frame(results: Iterable[Result]) -> pd.DataFrame:
    """One line per training, with the columns that comparisons need."""
    return pd.DataFrame(
        [
            {
                "row": result.row + CALIBRATED * result.recipe["calibrated"],
                "seed": result.seed,
                "test": result.test,
                "comparable": comparable(result),
                "decay": result.recipe["beta_decay"]
                if result.dropout.startswith("invariant")
                else None,  # without beta
                "result": result,
            }
            for result in results
        ],
        columns=["row", "seed", "test", "comparable", "decay", "result"],
    )


def _by_decay(trainings: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The trainings with each decay of beta, and those without beta."""
    without = trainings.decay.isna()
    for decay in sorted(trainings.decay.dropna().unique()) or [None]:
        group = trainings[without | (trainings.decay == decay)]
        yield group.drop_duplicates(["row", "seed"], keep="last")


def comparable(result: Result) -> str:
    """A key that is equal for comparable trainings."""
    conditions = {**result.conditions, "limit_train": result.limit_train}
    recipe = dict(conditions["recipe"])
    if has_own_settings(result):
        recipe |= dict.fromkeys(SELECTED, "the row's own")
    del recipe["calibrated"], recipe["beta_decay"]
    if ROWS[result.row].partition is not None:
        # The sizes of partitions differ by one example.
        for name in [name for name in conditions if "examples" in name]:
            del conditions[name]
    return json.dumps({**conditions, "recipe": recipe}, sort_keys=True)


def has_own_settings(result: Result) -> bool:
    """Whether the training has the settings of the row's recipe."""
    own = ROWS[result.row].trained(result.recipe["calibrated"])
    return all(result.recipe[name] == getattr(own, name) for name in SELECTED)


def selection(result: Result) -> Selection | None:
    """The search that selected the settings of the training; None if none."""
    if not has_own_settings(result):
        return None
    return ROWS[result.row].selected_by(result.recipe["calibrated"])


def _finding(claim: Claim, group: pd.DataFrame) -> Finding | None:
    if claim.kind == "negative":
        found = list(_correlations(claim, group))
        unit = "r"
    else:
        found = list(_differences(claim, group))
        row = claim.pairs[0][0].removesuffix(CALIBRATED)
        unit = "points" if ROWS[row].unit == "%" else ROWS[row].unit
    if not found:
        return None
    values, compared = zip(*found, strict=True)
    return Finding(
        claim, [pair for pairs in compared for pair in pairs], unit, [*values]
    )


def _correlations(claim: Claim, group: pd.DataFrame) -> Values:
    for row, layer in claim.pairs:
        for result in group[group.row == row].result:
            correlation = result.correlations.get(layer)
            if correlation is not None:
                yield correlation, [(result,)]


def _differences(claim: Claim, group: pd.DataFrame) -> Values:
    for one, other in claim.pairs:
        paired = group[group.row == one].merge(
            group[group.row == other], on="seed", suffixes=("", "_of_other")
        )
        # Lower errors and higher code qualities are better.
        sign = -1 if ROWS[one.removesuffix(CALIBRATED)].unit == "%" else 1
        # Remove rounding errors, so that equal differences are exactly equal.
        values = (sign * (paired.test - paired.test_of_other)).round(9)
        pairs = [*zip(paired.result, paired.result_of_other, strict=True)]
        if len(claim.pairs) == 1:
            yield from zip(values, ([pair] for pair in pairs), strict=True)
        elif pairs:
            # All seeds of a partition share its examples.
            yield values.mean(), [*pairs]
