"""What has been measured of the rows of the paper's tables."""

from collections.abc import Iterable
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import Result
from .results import mean_and_interval
from .results import read_results
from .tables import ROWS
from .tables import Row


@dataclass(frozen=True)
class Measurement:
    """Trainings of one row that differ in their seeds alone.

    Attributes:
        dataset, source: The data set, and where it comes from.
        training_examples, validation_examples, test_examples: Their numbers.
        width: Multiplier of the units of the network's layers.
        activation: Of the hidden units; None if it is the network's own.
        epochs: Of each training.
        backend: Keras' backend.
        settings: What in the recipe is not the row's.
        seeds, commands: The seeds, and what was called for each.
        mean, half_width: Mean of the figures of the test set, and half the
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
    settings: dict[str, Any]
    seeds: list[int]
    commands: list[str]
    mean: float
    half_width: float | None


def read_all(directory: Path) -> list[Result]:
    """The results in all files `results*.jsonl` below a directory.

    A training that is found twice counts once.
    """
    paths = sorted(directory.rglob("results*.jsonl"))
    results = [result for path in paths for result in read_results(path)]
    return list({result.name: result for result in results}.values())


def measurements(row: Row, results: Iterable[Result]) -> list[Measurement]:
    """What `results` say of a row, grouped by all but the seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.row == row.id:
            groups.setdefault(repr(_conditions(row, result)), []).append(result)
    measured = []
    for group in groups.values():
        mean, half_width = mean_and_interval(r.test for r in group)
        measured.append(
            Measurement(
                **_conditions(row, group[0]),
                seeds=[result.seed for result in group],
                commands=[result.command for result in group],
                mean=mean,
                half_width=half_width if len(group) > 1 else None,
            )
        )
    return measured


def as_objects(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The rows of the tables, with what has been measured, for scripts."""
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
    recipe, usual = conditions.pop("recipe"), asdict(row.recipe)
    settings = {
        name: value
        for name, value in recipe.items()
        if name != "epochs" and _plain(usual.get(name)) != _plain(value)
    }
    return {**conditions, "epochs": result.epochs, "settings": settings}


def _plain(value: Any) -> Any:
    # A tuple comes back from a file as a list.
    return list(value) if isinstance(value, tuple) else value
