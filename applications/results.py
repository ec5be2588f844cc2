"""Results of trainings: records, files and statistics over seeds."""

import hashlib
import json
import os
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats


@dataclass(frozen=True)
class Result:
    """One training, with all that is needed to repeat it.

    `validation` and `test` are figures in `unit`: the error in "%", or the
    code quality in "bits". `validation` is that of the selected epoch, None
    where nothing was selected on validation examples; `activation` is None
    where it is the network's own. `training_examples` are those from which the
    tested weights were learned: where a network is trained anew, on the
    validation examples as well, they are among them. `seconds` is the time of
    all epochs, with the validation after each.
    """

    row: str
    dataset: str
    source: str
    encoding: str
    training_examples: int
    validation_examples: int
    test_examples: int
    network: str
    width: float
    parameters: int
    activation: str | None
    dropout: str
    seed: int
    epochs: int
    selected_epoch: int
    unit: str
    validation: float | None
    test: float
    seconds: float
    backend: str
    versions: dict[str, str]
    command: str
    recipe: dict[str, Any]

    @property
    def conditions(self) -> dict[str, Any]:
        """What a result depends on, beside the row and the seed."""
        return {
            "dataset": self.dataset,
            "source": self.source,
            "training_examples": self.training_examples,
            "validation_examples": self.validation_examples,
            "test_examples": self.test_examples,
            "width": self.width,
            "activation": self.activation,
            "backend": self.backend,
            "recipe": self.recipe,
        }

    @property
    def name(self) -> str:
        """What the run's files are called; other conditions, other names."""
        row = self.row.replace("/", "-")
        text = json.dumps(self.conditions, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{row}-{self.dataset}-seed{self.seed}-{digest}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` at the end.

    If the block fails, `path` is what it was before. The path that is given
    has the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Writes `results` as JSON lines, in place of what `path` held."""
    lines = [json.dumps(asdict(result)) + "\n" for result in results]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines))


def add_result(path: Path, result: Result) -> None:
    """Adds `result` to the file, in place of one of the same name."""
    others = [old for old in read_results(path) if old.name != result.name]
    write_results(path, [*others, result])


def read_results(path: Path) -> list[Result]:
    """Reads what `write_results` wrote; an absent file holds no results."""
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            results.append(Result(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a result: {error}"
            ) from error
    return results


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % confidence interval.

    Student's t over the values, which are taken as independent and normal;
    the half width of a single value is NaN.
    """
    array = np.asarray(list(values), dtype="float64")
    if len(array) < 2:
        return float(array.mean()), float("nan")
    quantile = scipy.stats.t.ppf(0.975, df=len(array) - 1)
    return float(array.mean()), float(quantile * scipy.stats.sem(array))
