"""Results of trainings: records and files."""

import base64
import functools
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from keras_invdrop.applications.recipes import Recipe

from keras_invdrop._files import replacing

from ..paper.tables import ROWS

# Version of the file format. Each new setting of `Recipe` raises the version
# and needs an entry in `BEFORE`.
FORMAT = 2

# Values of settings that results of format 1 lack, because their recipes did
# not have these settings. Files of format 1 do not record their format.
BEFORE: dict[str, Any] = {
    "dtype_policy": "float32",
    "calibrated": False,
    "warm_up": 0.0,
    "beta_factor": 1.0,
    "initial_stddev": None,
    "weight_decay": 0.0,
    "ema_momentum": None,
}


@dataclass(frozen=True)
class Code:
    """The version of this package that ran a training.

    Attributes:
        version: Version of the package.
        commit: Commit of the repository, None if unknown.
    """

    version: str
    commit: str | None

    def __str__(self) -> str:
        if self.commit is None:
            return f"version {self.version}"
        return f"version {self.version}, commit {self.commit}"


@dataclass(frozen=True)
class Result:
    """One training, with everything needed to repeat it.

    `validation` and `test` are figures in `unit`: the error in "%", or the code
    quality in "bits". `validation` is the figure of the selected epoch, None
    without validation examples; `activation` is None for the network's default.
    `training_examples` counts the examples from which the tested weights were
    learned, after retraining the validation examples included. `correlations`
    maps layers to the correlation of beta and the mean activity. `seconds` is
    the time of all epochs, validation included. `commit` is the commit of the
    code, None if unknown. `limit_train` is the requested number of training
    examples, None for all. `wrong` encodes which test examples were
    misclassified (see `wrong_examples`), None if unknown.
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
    correlations: dict[str, float | None] = field(default_factory=dict)
    commit: str | None = None
    limit_train: int | None = None
    wrong: str | None = None

    @property
    def code(self) -> Code:
        """The version of this package that ran the training."""
        return Code(self.versions.get("keras-invdrop", ""), self.commit)

    @property
    def wrong_examples(self) -> np.ndarray | None:
        """Whether the network misclassified each test example, in order."""
        if self.wrong is None:
            return None
        content = np.frombuffer(base64.b64decode(self.wrong), "uint8")
        return np.unpackbits(content, count=self.test_examples).astype(bool)

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions of the training, besides the row and the seed."""
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
    def identity(self) -> str:
        """A key that is equal for two results of the same training."""
        return json.dumps(
            [self.row, self.seed, self.conditions], sort_keys=True
        )


def packed(wrong: np.ndarray) -> str:
    """Packs eight examples per byte, highest bit first, into base64."""
    return base64.b64encode(np.packbits(wrong).tobytes()).decode()


@functools.cache
def this_code() -> Code:
    """The version of the code at the time of the first call."""
    return Code(importlib.metadata.version("keras-invdrop"), _commit())


def _commit() -> str | None:
    """The commit of this code if it runs from a clone, or None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(
            [*git, "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def write_result(path: Path, result: Result) -> None:
    """Writes `result` as JSON, replacing the file at `path`."""
    with replacing(path) as temporary:
        content = {"format": FORMAT, **asdict(result)}
        text = json.dumps(content, indent=2) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_result(path: Path) -> Result:
    """Reads a file of `write_result`, of this or an earlier version.

    Raises:
        ValueError: If the file is not a result, or a later version wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format", 1)
        if version > FORMAT:
            raise ValueError(
                f"its format is {version}, of a later version of this "
                f"package, which writes {FORMAT}"
            )
        result = Result(**content)
        if result.row not in ROWS:
            raise ValueError(
                f"its row, {result.row!r}, is not in the paper's tables"
            )
        recipe = BEFORE | result.recipe if version == 1 else result.recipe
        Recipe(**recipe)
        unsaid = {each.name for each in fields(Recipe)} - set(recipe)
        if unsaid:
            raise ValueError(f"its recipe lacks {', '.join(sorted(unsaid))}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result: {error}") from error
    return replace(result, recipe=restored(recipe))


def restored(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe from JSON as `asdict` gives it: with tuples, in its order."""
    values = {each.name: recipe[each.name] for each in fields(Recipe)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def read_results(directory: Path) -> list[Result]:
    """The results in all files `*.json` below a directory; see `stored`."""
    return list(stored(directory).values())


def stored(directory: Path) -> dict[Path, Result]:
    """The results below a directory, by their files.

    If several files contain the same training, the last file name counts. The
    history and the model of a training are next to its result and differ only
    in the suffix.
    """
    found = {}
    for path in sorted(directory.rglob("*.json")):
        if not path.name.startswith("."):  # a leading dot marks a partial file
            result = read_result(path)
            found[result.identity] = path, result
    return dict(found.values())


def results_in(directory: Path) -> dict[Path, Result]:
    """The `stored` results; raises an `OSError` if there are none."""
    found = stored(directory)
    if not found:
        raise OSError(
            f"There are no results in {directory}/: no file *.json, which "
            "`keras-invdrop reproduce --out` writes"
        )
    return found
