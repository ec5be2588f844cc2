"""Does many jobs: one after another in this process, or on a Dask cluster."""

import functools
import logging
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from keras_invdrop.extras import missing
from keras_invdrop.validation import invalid

from ..results.console import JobsTable
from ..results.records import Result
from ..train.fitting import Diverged
from .jobs import IMAGE_DATA_FORMAT
from .jobs import Job
from .jobs import run

# What workers of a cluster tell of their trainings.
TOPIC = "keras-invdrop"

# How often a job is begun again on this machine after the process that did it
# was killed. It goes on from its backup each time.
RETRIES = 10

# Called after an epoch with what is trained, the number of epochs done, and the
# figure of the validation examples.
OnTitledEpoch = Callable[[str, int, float | None], None]


def run_here(jobs: Sequence[Job], directory: Path, table: JobsTable) -> None:
    """Does the jobs in this process, and shows it in `table`.

    A training that diverges does not keep back the others. Whatever else goes
    wrong would go wrong with them, too, and ends it all.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If a job cannot be done.
    """
    for job in jobs:
        told = functools.partial(table.epoch, job.title)
        if job.finished(directory) is None:
            table.began(job.title)
        try:
            table.ended(job.title, run(job, directory, told))
        except Diverged as error:
            table.failed(job.title, error)


def run_on_cluster(
    jobs: Sequence[Job],
    directory: Path,
    table: JobsTable,
    client: Any,
) -> None:
    """Does the jobs on a Dask cluster, and shows it in `table`.

    The job of a worker that dies moves to another one, and goes on from its
    backup. What else goes wrong is as in `run_here`.

    Args:
        jobs: The jobs.
        directory: Where every worker, on whatever machine, finds the files.
        table: What a person sees.
        client: A `distributed.Client`.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If a job cannot be done.
    """
    from distributed import CancelledError
    from distributed import KilledWorker
    from distributed import as_completed

    client.subscribe_topic(
        TOPIC, lambda event: getattr(table, event[1][0])(*event[1][1:])
    )
    futures = {
        client.submit(_on_worker, job, directory, pure=False): job
        for job in jobs
    }
    for future in as_completed(futures):
        job = futures[future]
        try:
            error = future.exception()
        except CancelledError:
            error = None
        if future.cancelled():
            raise _gone()
        if error is None:
            table.ended(job.title, future.result())
        elif isinstance(error, (Diverged, KilledWorker)):
            table.failed(job.title, error)
        else:
            client.cancel(list(futures))
            raise error


def _gone() -> OSError:
    return OSError(
        "The Dask scheduler is gone. The same command goes on where the "
        "trainings were stopped"
    )


def each_result(
    function: Callable[[Any, OnTitledEpoch], Any],
    arguments: Iterable[Any],
    on_epoch: OnTitledEpoch,
    client: Any = None,
) -> Iterator[Any]:
    """What a function returns for each argument, as it comes.

    Args:
        function: What to call, with an argument and with what it is to call
            after each epoch.
        arguments: Of each call.
        on_epoch: Called here, in this process, after each of those epochs.
        client: A `distributed.Client` of the cluster that makes the calls;
            None for this process.
    """
    if client is None:
        for each in arguments:
            yield function(each, on_epoch)
        return
    from distributed import CancelledError
    from distributed import as_completed

    client.subscribe_topic(TOPIC, lambda event: on_epoch(*event[1]))
    futures = [
        client.submit(_called_on_worker, function, each, pure=False)
        for each in arguments
    ]
    for future in as_completed(futures):
        try:
            yield future.result()
        except CancelledError as error:
            raise _gone() from error


def _called_on_worker(
    function: Callable[[Any, OnTitledEpoch], Any], argument: Any
) -> Any:
    worker = _prepared_worker()
    return function(argument, lambda *epoch: worker.log_event(TOPIC, epoch))


def _on_worker(job: Job, directory: Path) -> Result:
    worker = _prepared_worker()

    def tell(method: str, *arguments: Any) -> None:
        worker.log_event(TOPIC, (method, job.title, *arguments))

    if job.finished(directory) is None:
        tell("began")
    return run(job, directory, functools.partial(tell, "epoch"))


def _prepared_worker() -> Any:
    """The worker in which this is called, ready to train."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        # Two trainings in one process would draw from one random generator.
        raise invalid(
            "--scheduler",
            "a cluster whose workers have one thread each (dask worker "
            "--nthreads 1)",
            f"{worker.state.nthreads} threads",
        )
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    return worker


def _sharing_of_cores(workers: int) -> Any:
    """A plugin of Dask: each of so many workers keeps to its share of cores.

    It is there before a worker computes anything, when the backend counts
    them and starts as many threads.
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


@contextmanager
def cluster(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A client of the cluster that the options name, None for one process."""
    if scheduler is not None:
        with running_cluster(scheduler) as client:
            yield client
    elif workers > 1:
        with local_cluster(workers) as client:
            yield client
    else:
        yield None


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A client of a Dask cluster of so many processes on this machine."""
    dask, distributed = _dask()
    cores = max(1, _cores() // workers)
    environment = {
        "OMP_NUM_THREADS": cores,
        # They share a GPU: none takes all of its memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    # If the command is interrupted, Python's tracker of resources removes what
    # the processes shared. That it does so is of no interest to the user.
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
        client.register_plugin(_sharing_of_cores(workers))
        yield client


@contextmanager
def running_cluster(address: str) -> Iterator[Any]:
    """A client of the Dask cluster whose scheduler is at `address`.

    Raises:
        OSError: If there is none.
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


def _dask() -> tuple[Any, Any]:
    try:
        import dask
        import distributed
    except ModuleNotFoundError as error:
        raise missing(
            "Training in several processes", error.name, "experiments"
        ) from error
    return dask, distributed
