"""Measurements of the rows of the paper's tables."""

from collections.abc import Iterable
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import pandas as pd
from keras_invdrop.applications import recipes

from keras_invdrop._statistics import mean_and_interval

from ..paper.tables import ROWS
from ..paper.tables import Row
from .records import Result

# Names of the methods, by the row's method and whether beta is calibrated.
METHOD_NAMES = {
    ("none", False): "no dropout",
    ("standard", False): "standard dropout",
    ("invariant", False): "invariant dropout, beta from 0",
    ("invariant", True): "invariant dropout, calibrated",
    ("invariant_input", False): "... from 0, on the input alone",
    ("invariant_input", True): "... calibrated, on the input alone",
    ("invariant_hidden", False): "... from 0, on hidden layers alone",
    ("invariant_hidden", True): "... calibrated, on hidden layers alone",
    ("running_average", False): "running average subtracted",
    ("running_average", True): "running average subtracted, calibrated",
}

# Short names, for plots.
METHOD_LABELS = {
    ("none", False): "no dropout",
    ("standard", False): "standard",
    ("invariant", False): "invariant from 0",
    ("invariant", True): "calibrated",
    ("invariant_input", False): "from 0 on the input",
    ("invariant_input", True): "calibrated on the input",
    ("invariant_hidden", False): "from 0 on hidden layers",
    ("invariant_hidden", True): "calibrated on hidden layers",
    ("running_average", False): "running average",
    ("running_average", True): "running average, calibrated",
}


@dataclass(frozen=True)
class Measurement:
    """Trainings of one row that differ only in their seeds.

    Attributes:
        dataset, source: The data set and its origin.
        training_examples, validation_examples, test_examples: Numbers of
            examples.
        width: Multiplier of the units of the network's layers.
        activation: Activation function of the hidden units; None for the
            network's default.
        epochs: Number of epochs of each training.
        backend: Keras' backend.
        retrained: Whether the network was trained anew on all examples, those
            for validation included, which `training_examples` then counts.
        settings: Settings of the recipe that differ from the row's, or, on the
            5,000 digits, from the demonstration's.
        seeds, commands: The seeds, and the command line for each seed.
        commits: Commits of the code, None if unknown.
        mean, half_width: Mean of the figures on the test set, and half the
            width of its 95 % confidence interval; None for a single seed.
    """

    dataset: str
    source: str
    training_examples: int
    validation_examples: int
    test_examples: int
    width: float
    activation: str | None
    epochs: int
    backend: str
    retrained: bool
    settings: dict[str, Any]
    seeds: list[int]
    commands: list[str]
    commits: list[str | None]
    mean: float
    half_width: float | None

    @property
    def figure(self) -> str:
        """The measured figure: `"1.50 ± 0.17"`, or the mean alone."""
        return with_interval(self.mean, self.half_width)

    @property
    def calibrated(self) -> bool:
        """Whether beta starts calibrated."""
        return self.settings.get("calibrated", False)

    @property
    def changed(self) -> set[str]:
        """The names in `settings` that change the recipe of the row."""
        return set(self.settings) - {"calibrated"}

    @property
    def in_the_paper(self) -> bool:
        """Whether the paper has the method and the activation function."""
        return not self.calibrated and self.activation is None

    @property
    def conditions(self) -> str:
        """The conditions of the trainings, apart from the data."""
        return f"{self._training()}, {self.backend}"

    @property
    def note(self) -> str:
        """The conditions of the trainings, in a sentence."""
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{self._data()}; {self._training()}; "
            f"seed{'s' * (len(self.seeds) > 1)} {seeds}; "
            f"{self.backend} backend" + self._code()
        )

    @property
    def short_note(self) -> str:
        """The note without the seeds, the code and whether beta is calibrated.

        A table that shows these beside the figure shares it between methods.
        """
        return (
            f"{self._data()}; {self._training(calibrated=False)}; "
            f"{self.backend} backend"
        )

    def _data(self) -> str:
        validation = f"{self.validation_examples:,} for validation"
        if self.retrained:
            validation = (
                f"of which {self.validation_examples:,} for validation at "
                "first, then retrained on all"
            )
        return (
            f"{self.source}: {counted(self.training_examples, 'example')} for "
            f"training, {validation}, {self.test_examples:,} for test"
        )

    def _code(self) -> str:
        """The commits of the code."""
        known = dict.fromkeys(each[:7] for each in self.commits if each)
        return f"; commit{'s' * (len(known) > 1)} {', '.join(known)}" * bool(
            known
        )

    def _training(self, calibrated: bool = True) -> str:
        """The epochs, and the settings that differ from the usual ones."""
        details = dict(self.settings)
        if details.pop("calibrated", False) and calibrated:
            details["beta"] = "calibrated"
        if self.width != 1:
            details["width"] = self.width
        if self.activation is not None:
            details["activation"] = self.activation
        return counted(self.epochs, "epoch") + "".join(
            f", {name} {value}" for name, value in details.items()
        )


def counted(number: int, noun: str) -> str:
    """A number and a noun: `"1 epoch"`, `"1,000 examples"`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def with_interval(mean: float, half_width: float | None) -> str:
    """A mean, with half the width of its interval unless None."""
    return f"{mean:.2f}" + (
        "" if half_width is None else f" ± {half_width:.2f}"
    )


def measurements(row: Row, results: Iterable[Result]) -> list[Measurement]:
    """The measurements of a row, one for all seeds of equal conditions."""
    of_row = [result for result in results if result.row == row.id]
    conditions = [_conditions(row, result) for result in of_row]
    trainings = pd.DataFrame(of_row)
    trainings["conditions"] = [repr(each) for each in conditions]
    measured = []
    for _, group in trainings.groupby("conditions", sort=False):
        mean, half_width = mean_and_interval(group.test)
        measured.append(
            Measurement(
                **conditions[group.index[0]],
                seeds=group.seed.tolist(),
                commands=group.command.tolist(),
                commits=group.commit.unique().tolist(),
                mean=float(mean),
                half_width=float(half_width) if len(group) > 1 else None,
            )
        )
    return measured


def as_objects(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The rows of the tables with their measurements, for scripts."""
    results = list(results)
    return [
        {
            "id": row.id,
            "table": row.table,
            "dataset": row.dataset,
            "encoding": row.encoding,
            "partition": row.partition,
            "network": row.network.name,
            "method": row.method,
            "printed": row.printed,
            "unit": row.unit,
            "measured": [asdict(each) for each in measurements(row, results)],
        }
        for row in ROWS.values()
    ]


def _conditions(row: Row, result: Result) -> dict[str, Any]:
    conditions = result.conditions
    recipe = conditions.pop("recipe")
    usual = row.trained(recipe.get("calibrated", False))
    if result.dataset == "digits":
        usual = recipes.DEMO
    # `settings` lists `calibrated` if it is True.
    usual = asdict(replace(usual, calibrated=False))
    settings = {
        name: value
        for name, value in recipe.items()
        if name != "epochs" and usual.get(name) != value
    }
    return {
        **conditions,
        "epochs": result.epochs,
        "retrained": recipe.get("retrain", False)
        and result.validation_examples > 0,
        "settings": settings,
    }
