"""Trains rows with several seeds and prints the measurements."""

from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from keras_invdrop._checks import invalid
from keras_invdrop._interruptions import when_interrupted

from ..results.console import ProgressTable
from ..results.console import console
from ..results.console import paper_table
from ..results.console import say
from ..results.measurements import counted
from ..train.devices import Devices
from ..train.devices import check_backend
from ..train.devices import is_first
from ..train.devices import joined
from ..train.trial import Trial
from .pool import Resources
from .pool import cluster
from .pool import train_all
from .trials import announced
from .trials import check
from .trials import check_writable


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
