"""Results of trainings: records and files."""

import base64
import functools
import importlib.metadata
import json
import subprocess
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

from ..paper.tables import rows

# The version of the files' format. A setting that is new in `Recipe` raises it,
# and goes into `BEFORE`.
FORMAT = 2

# What was done before a recipe could say so, in results of format 1, which do
# not say their format.
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
    """Which version of this package a training was made with.

    Attributes:
        version: Of the package.
        commit: Of its repository, None where that is not known.
    """

    version: str
    commit: str | None

    def __str__(self) -> str:
        if self.commit is None:
            return f"version {self.version}"
        return f"version {self.version}, commit {self.commit}"


@dataclass(frozen=True)
class Result:
    """One training, with all that is needed to repeat it.

    `validation` and `test` are figures in `unit`: the error in "%", or the
    code quality in "bits". `validation` is that of the selected epoch, None
    where nothing was selected on validation examples; `activation` is None
    where it is the network's own. `training_examples` are those from which the
    tested weights were learned: where a network is trained anew, on the
    validation examples as well, they are among them. `correlations` are those
    of beta with the mean activity, by layer. `seconds` is the time of all
    epochs, with the validation after each. `commit` is that of this code, None
    where it is not known. `limit_train` is what was asked for, None for all
    training examples. `wrong` says which test examples were classified wrongly
    (see `wrong_examples`), None where that is not known.
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
        """The version of this package with which it was trained."""
        return Code(self.versions.get("keras-invdrop", ""), self.commit)

    @property
    def wrong_examples(self) -> np.ndarray | None:
        """Whether each test example was classified wrongly, in their order."""
        if self.wrong is None:
            return None
        content = np.frombuffer(base64.b64decode(self.wrong), "uint8")
        return np.unpackbits(content, count=self.test_examples).astype(bool)

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
    def identity(self) -> str:
        """What two results of the same training have in common."""
        return json.dumps(
            [self.row, self.seed, self.conditions], sort_keys=True
        )


def packed(wrong: np.ndarray) -> str:
    """Eight examples in a byte, the first in its highest bit, as base64."""
    return base64.b64encode(np.packbits(wrong).tobytes()).decode()


@functools.cache
def this_code() -> Code:
    """The code of this process, as it is when this is first called."""
    return Code(importlib.metadata.version("keras-invdrop"), _commit())


def _commit() -> str | None:
    """The commit of this code, if it runs from a clone of its repository."""
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
    """Writes `result` as JSON, in place of what `path` held."""
    with replacing(path) as temporary:
        content = {"format": FORMAT, **asdict(result)}
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_result(path: Path) -> Result:
    """Reads what `write_result` wrote, now or in an earlier version.

    Raises:
        ValueError: If it is not a result, or one of a later version.
    """
    try:
        content = json.loads(path.read_text())
        version = content.pop("format", 1)
        if version > FORMAT:
            raise ValueError(
                f"its format is {version}, of a later version of this "
                f"package, which writes {FORMAT}"
            )
        result = Result(**content)
        rows(result.row)
        recipe = BEFORE | result.recipe if version == 1 else result.recipe
        Recipe(**recipe)
        unsaid = {each.name for each in fields(Recipe)} - set(recipe)
        if unsaid:
            raise ValueError(f"its recipe lacks {', '.join(sorted(unsaid))}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result: {error}") from error
    # JSON knows no tuples.
    recipe = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in recipe.items()
    }
    return replace(result, recipe=recipe)


def read_results(directory: Path) -> list[Result]:
    """The results in all files `*.json` below a directory; see `stored`."""
    return list(stored(directory).values())


def stored(directory: Path) -> dict[Path, Result]:
    """The results below a directory, by their files.

    Of a training that is found twice the last one counts, by the names of the
    files. History and model of a training lie beside its result, with suffixes
    of their own.
    """
    found = {}
    for path in sorted(directory.rglob("*.json")):
        if not path.name.startswith("."):  # not being written
            result = read_result(path)
            found[result.identity] = path, result
    return dict(found.values())
