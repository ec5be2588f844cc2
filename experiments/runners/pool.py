"""Many trainings: one after another in this process, or on a Dask cluster."""

import functools
import logging
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import as_completed
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import keras
from keras_invdrop.applications.recipes import setting

from keras_invdrop._checks import invalid
from keras_invdrop._extras import imported

from ..results.console import ProgressTable
from ..results.records import Result
from ..train.callbacks import Diverged
from ..train.training import finished
from ..train.training import run
from ..train.trial import IMAGE_DATA_FORMAT
from ..train.trial import Trial

# How often a training restarts on this machine, from its backup, after its
# process was killed.
RETRIES = 10

# Function by which a call reports its progress, from any process.
Tell = Callable[..., None]


@dataclass(frozen=True)
class Resources:
    """Where trainings run: in this process, in others, on other machines."""

    workers: int = setting(
        1,
        "Number of processes on this machine, each of which trains networks on "
        "its share of the cores.",
        min=1,
    )
    scheduler: str | None = setting(
        None,
        "A running Dask cluster, tcp://HOST:PORT. Its scheduler and workers "
        "have this package installed; each worker has one thread (--nthreads "
        "1), the same KERAS_BACKEND and, at the same path, the directory to "
        "write to.",
        metavar="ADDRESS",
        show_default="this machine",
    )
    coordinator: str | None = setting(
        None,
        "With --data-parallel over several machines: the machine of process 0 "
        "and a free port of it, the same in every process.",
        metavar="HOST:PORT",
        show_default="the launcher's, or this machine alone",
    )
    processes: int | None = setting(
        None,
        "Number of processes that train together.",
        min=1,
        show_default="the launcher's",
    )
    process_id: int | None = setting(
        None,
        "Number of this process, from 0 on. Process 0 writes the files.",
        min=0,
        show_default="the launcher's",
    )

    @property
    def joins(self) -> tuple[str | None, int | None, int | None]:
        """The arguments of `devices.joined`."""
        return self.coordinator, self.processes, self.process_id


def train_all(
    trials: Sequence[Trial],
    directory: Path,
    table: ProgressTable,
    client: Any = None,
) -> None:
    """Runs trainings and shows their progress in `table`.

    Divergence skips one training; any other error would recur, and ends all
    trainings. On a cluster, the training of a worker that dies moves to another
    worker and resumes from its backup.

    Args:
        trials: The trainings.
        directory: Directory of the files, at the same path for every worker.
        table: The table that shows the progress.
        client: A `distributed.Client`; None trains in this process.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If a training cannot be done.
    """
    train = functools.partial(_train, directory)

    def show(method: str, *arguments: Any) -> None:
        getattr(table, method)(*arguments)

    for trial, outcome in outcomes(train, trials, show, client):
        error = outcome.exception()
        if error is None:
            table.ended(trial.title, outcome.result())
        elif isinstance(error, (Diverged, *killed(client))):
            table.failed(trial.title, error)
        else:
            raise error


def _train(directory: Path, trial: Trial, tell: Tell) -> Result:
    if finished(trial, directory) is None:
        tell("began", trial.title)
    return run(trial, directory, functools.partial(tell, "epoch", trial.title))


def killed(client: Any) -> tuple[type[Exception], ...]:
    """The errors for a task whose workers died repeatedly."""
    return () if client is None else (_dask()[1].KilledWorker,)


def outcomes(
    function: Callable[[Any, Tell], Any],
    arguments: Iterable[Any],
    on_told: Tell,
    client: Any = None,
) -> Iterator[tuple[Any, Future]]:
    """Calls a function for each argument; yields outcomes as they complete.

    Args:
        function: Function of an argument and of a second function, by which
            the call reports its progress.
        arguments: The argument of each call.
        on_told: Called in this process with each report.
        client: A `distributed.Client` of the cluster that runs the calls;
            None runs them in this process, one after another.

    Yields:
        Pairs of an argument and a finished future.
    """
    if client is None:
        for each in arguments:
            future: Future = Future()
            try:
                future.set_result(function(each, on_told))
            except Exception as error:
                future.set_exception(error)
            yield each, future
        return
    # Other commands may use the same cluster at the same time.
    topic = f"keras-invdrop-{uuid4().hex}"
    client.subscribe_topic(topic, lambda event: on_told(*event[1]))
    call = functools.partial(_called_on_worker, function, topic)
    with client.get_executor(pure=False) as executor:
        futures = {executor.submit(call, each): each for each in arguments}
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    raise OSError(
                        "The Dask scheduler is gone. The same command resumes "
                        "the trainings where they stopped"
                    )
                yield futures[future], future
        finally:  # If the caller stops early, calls are still waiting.
            for future in futures:
                future.cancel()


def _called_on_worker(function: Callable, topic: str, argument: Any) -> Any:
    worker = _prepared_worker()
    return function(argument, lambda *told: worker.log_event(topic, told))


def _prepared_worker() -> Any:
    """The worker that runs this call, ready to train."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        # Two trainings in one process would share a random generator.
        raise invalid(
            "--scheduler",
            "a cluster whose workers have one thread each (dask worker "
            "--nthreads 1)",
            f"{worker.state.nthreads} threads",
        )
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    return worker


def _core_sharing_plugin(workers: int) -> Any:
    """A Dask plugin that restricts each worker to its share of the cores.

    The plugin acts before a worker computes anything: the backend then counts
    the remaining cores to choose its number of threads.
    """
    from distributed import WorkerPlugin

    class SharingOfCores(WorkerPlugin):
        def setup(self, worker):
            if hasattr(os, "sched_setaffinity"):  # Linux
                os.sched_setaffinity(0, _share_of_cores(worker.name, workers))

    return SharingOfCores()


def _share_of_cores(worker: int, workers: int) -> set[int]:
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[worker::workers] or cores)


def cluster(resources: Resources) -> AbstractContextManager:
    """Yields a client of the cluster, or None for this process.

    Raises:
        ValueError: If the resources name two clusters.
    """
    if resources.scheduler is not None:
        if resources.workers > 1:
            raise invalid(
                "--workers",
                "nothing with `--scheduler`, whose workers train",
                resources.workers,
            )
        return running_cluster(resources.scheduler)
    if resources.workers > 1:
        return local_cluster(resources.workers)
    return nullcontext()


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Yields a client of a Dask cluster of processes on this machine."""
    dask, distributed = _dask()
    cores = max(1, _cores() // workers)
    environment = {
        "OMP_NUM_THREADS": cores,
        # The workers share a GPU: none may reserve all of its memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    # Hides a warning from Python's resource tracker, which cleans up after an
    # interrupted command.
    quiet = "ignore:resource_tracker:UserWarning"
    filters = os.environ.get("PYTHONWARNINGS", "")
    if quiet not in filters:
        os.environ["PYTHONWARNINGS"] = f"{filters},{quiet}".lstrip(",")
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.scheduler.allowed-failures": RETRIES,
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(_core_sharing_plugin(workers))
        yield client


@contextmanager
def running_cluster(address: str) -> Iterator[Any]:
    """Yields a client of the Dask cluster with a scheduler at `address`.

    Raises:
        OSError: If no scheduler answers there.
    """
    _, distributed = _dask()
    try:
        client = distributed.Client(address)
    except (OSError, ValueError) as error:
        raise OSError(
            f"No Dask scheduler answers at `--scheduler {address}`: {error}"
        ) from error
    with client:
        yield client


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dask() -> list[Any]:
    return imported(
        "Training in several processes", ["dask", "distributed"], "experiments"
    )
