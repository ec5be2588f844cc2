"""The trainings that a command asks for: makes, checks and announces them."""

import tempfile
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import fields
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from keras_invdrop.applications.recipes import FOR_LAYERS
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.recipes import for_layers

from keras_invdrop._checks import invalid

from ..paper.tables import rows
from ..results.measurements import counted
from ..train.trial import Trial


def trials_of(
    names: Sequence[str],
    seeds: Sequence[int],
    calibrate: bool = False,
    **given: Any,
) -> list[Trial]:
    """A training for each row with each seed.

    Args:
        names: Names of rows, or prefixes of several rows.
        seeds: Seeds of each row.
        calibrate: Whether to calibrate each shift before training.
        **given: Settings of the `Recipe`, in the command line's format, where
            None keeps the row's setting; and settings of the `Trial`.

    Raises:
        ValueError: If a row cannot be calibrated.
    """
    changes: dict[str, Any] = {"calibrated": True} if calibrate else {}
    for setting in {field.name for field in fields(Recipe)} & set(given):
        value = given.pop(setting)
        if value is None:
            continue
        if isinstance(value, str) and setting in FOR_LAYERS:
            value = for_layers(f"--{setting.replace('_', '-')}", value)
        changes[setting] = value
    if given.get("data") not in (None, "digits"):
        # The process that reads the file may have another working directory.
        given["data"] = str(Path(given["data"]).absolute())
    found = {each.id: each for name in names for each in rows(name)}
    return [
        Trial(
            replace(row, recipe=replace(row.trained(calibrate), **changes)),
            seed,
            **given,
        )
        for seed in seeds
        for row in found.values()
    ]


def check(trials: Sequence[Trial]) -> None:
    """Checks all trainings before any data are loaded.

    Raises:
        ValueError: If the data do not suit a row, a network cannot be built,
            or the backend does not support several steps per execution.
    """
    if keras.backend.backend() == "torch" and trials[0].steps_per_execution > 1:
        raise invalid(
            "--steps-per-execution",
            "1 on PyTorch, on which Keras runs the steps one by one",
            trials[0].steps_per_execution,
        )
    for trial in trials:
        trial.check_data()
    for trial in {trial.row.network: trial for trial in trials}.values():
        trial.network()
        trial.row.recipe.optimizer(steps_per_epoch=1)


def check_writable(out: Path) -> None:
    """Raises an `OSError` if no file can be written to a directory."""
    try:
        parents = (out, *out.absolute().parents)
        there = next(path for path in parents if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        # Report this now rather than after the first epoch.
        raise OSError(f"{out} is not writable: {error.strerror}") from error


def announced(trials: Sequence[Trial]) -> str:
    """Announces the trainings, their data and their backend, in a line."""

    def listed(values: Iterable[Any]) -> str:
        texts = list(dict.fromkeys(map(str, values)))
        more = len(texts) - 8
        return ", ".join(texts[:8]) + f" and {more} more" * (more > 0)

    seeds = {trial.seed for trial in trials}
    epochs = {trial.row.recipe.epochs for trial in trials}
    return (
        f"{counted(len(trials), 'network')} on "
        f"{listed(trial.data or trial.row.dataset for trial in trials)}, "
        f"{listed(sorted(epochs))} epoch{'s' * (epochs != {1})}, "
        f"{trials[0].backend} backend: "
        f"{listed(trial.row.id for trial in trials)}; "
        f"seed{'s' * (len(seeds) > 1)} "
        f"{listed(trial.seed for trial in trials)}. "
        "The first epoch begins when the data are loaded and the network is "
        "compiled."
    )
