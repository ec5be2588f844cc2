"""Trains rows with several seeds and prints the measurements."""

import tempfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from keras_invdrop.applications.recipes import FOR_LAYERS
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.recipes import for_layers

from keras_invdrop._checks import invalid
from keras_invdrop._interruptions import when_interrupted

from ..paper.tables import rows
from ..results.console import ProgressTable
from ..results.console import console
from ..results.console import paper_table
from ..results.measurements import counted
from ..train.devices import Devices
from ..train.devices import check_backend
from ..train.devices import is_first
from ..train.devices import joined
from ..train.trial import Trial
from .pool import Resources
from .pool import cluster
from .pool import train_all


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


def reproduce(
    trials: Sequence[Trial], out: Path, resources: Resources | None = None
) -> None:
    """Runs the trainings and prints the measurements.

    Args:
        trials: The trainings.
        out: Directory to write to.
        resources: Where to train; None for this process.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If a training cannot be done, or diverges.
    """
    resources = resources or Resources()
    with _joined(trials[0].data_parallel, resources):
        check(trials)
        check_writable(out)
        first = not trials[0].data_parallel or is_first()
        if first:
            say(f"Training {announced(trials)}")
        if first and trials[0].data_parallel:
            _say_devices(trials)
        # Retraining takes at most the same number of epochs again.
        epochs = {
            trial.title: trial.row.recipe.epochs
            * (1 + trial.row.recipe.retrain)
            for trial in trials
        }
        units = {trial.title: trial.row.unit for trial in trials}
        with (
            when_interrupted(lambda: _kept(trials, out) if first else None),
            ProgressTable(epochs, units, quiet=not first) as table,
            cluster(resources) as client,
        ):
            train_all(trials, out.absolute(), table, client)
    results = [each for title in epochs if (each := table.results.get(title))]
    if results and first:
        console().print(paper_table(results, measured_only=True))
        print(f"Models, histories and results are in {out}/")
    if table.failures:
        raise ValueError(
            f"{len(table.failures)} of {len(trials)} trainings failed: "
            + "; ".join(table.failures)
        )


def say(text: str) -> None:
    """Prints a message to stderr, without wrapping."""
    console(stderr=True).print(text, soft_wrap=True)


def announced(trials: Sequence[Trial]) -> str:
    """Announces the trainings, their data and their backend, in a line."""

    def listed(values: Iterable[Any], shown: int = 8) -> str:
        texts = list(dict.fromkeys(map(str, values)))
        more = len(texts) - shown
        return ", ".join(texts[:shown]) + f" and {more} more" * (more > 0)

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


def _kept(trials: Sequence[Trial], out: Path) -> str:
    """A message about how interrupted trainings continue."""
    files = (
        out / f"{trial.name}{end}"
        for trial in trials
        for end in (".npz", ".json")
    )
    if any(file.exists() for file in files):
        return (
            "the same command resumes after the last finished epoch, "
            f"which is kept in {out}/"
        )
    return "no epoch was finished, so the same command begins anew"


def _say_devices(trials: Sequence[Trial]) -> None:
    """Prints the number of devices that share each batch."""
    for size in dict.fromkeys(trial.row.recipe.batch_size for trial in trials):
        devices = Devices(size)
        divided = size % devices.number == 0
        say(
            f"Processes: {devices.processes}. Batches of {size} are "
            + (
                f"divided over {devices.number} of "
                f"{counted(devices.available, 'device')}"
                if divided
                else f"computed whole on each of {devices.number} devices, as "
                "they do not divide evenly: no faster than on one device"
            )
        )


@contextmanager
def _joined(data_parallel: bool, resources: Resources) -> Iterator[None]:
    """Joins the processes of a data-parallel training.

    Raises:
        ValueError: If the options contradict each other or the backend.
        OSError: If the processes cannot connect to one another.
    """
    if not data_parallel:
        names = "--coordinator", "--processes", "--process-id"
        for name, value in zip(names, resources.joins, strict=True):
            if value is not None:
                raise invalid(
                    name, "nothing, or `--data-parallel` as well", value
                )
        yield
        return
    if resources.workers > 1 or resources.scheduler is not None:
        raise invalid(
            "--data-parallel",
            "nothing with `--workers` or `--scheduler`, which run several "
            "trainings at once",
            data_parallel,
        )
    check_backend("--data-parallel")
    with joined(*resources.joins):
        yield
