"""Many trainings, in this process and on a Dask cluster."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import dask
import distributed
import keras
import pandas as pd
import pytest
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import save_splicing
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.console import ProgressTable
from keras_invdrop.experiments.runners import pool
from keras_invdrop.experiments.runners import search as tuning
from keras_invdrop.experiments.train.callbacks import Diverged
from keras_invdrop.experiments.train.training import run
from keras_invdrop.experiments.train.trial import Trial
from warm import Program

from keras_invdrop import experiments

EPOCHS = 16
COMMAND = Path(experiments.__file__).with_name("__main__.py")


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "exons.npz"
    save_splicing(path, generate_splicing(exons=600, features=100))
    row = ROWS["table5/1/invariant"]
    row = dataclasses.replace(
        row, recipe=dataclasses.replace(row.recipe, epochs=EPOCHS)
    )
    return [Trial(row, seed, 0.05, data=str(path)) for seed in range(3)]


class Recorder(ProgressTable):
    """Records all epochs, and acts when two trials are running."""

    def __init__(self, trials, when_two=lambda: None):
        super().__init__({trial.title: EPOCHS for trial in trials}, {})
        self.epochs = []
        self.when_two = when_two

    def epoch(self, title, done, validation):
        self.epochs.append((title, done))
        titles = [title for title, _ in self.epochs]
        if len(set(titles)) == 2 and titles.count(title) == 1:
            self.when_two()


def files(directory):
    """The written results, without their times."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())
            found[path.name] |= {"seconds": 0, "command": ""}
        elif path.suffix == ".keras":
            model = keras.saving.load_model(path)
            found[path.name] = [w.tobytes() for w in model.get_weights()]
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def one_by_one(trials, tmp_path_factory):
    directory = tmp_path_factory.mktemp("one-by-one")
    table = Recorder(trials)
    pool.train_all(trials, directory, table)
    assert table.epochs == [
        (trial.title, done) for trial in trials for done in range(1, EPOCHS + 1)
    ]
    return files(directory)


def test_workers_of_this_machine(trials, one_by_one, tmp_path):
    out = tmp_path / "out"
    process = Program(
        COMMAND,
        *("reproduce", "table5/1/invariant", "--seeds=0-2", "--workers=2"),
        *("--width=0.05", f"--epochs={EPOCHS}", f"--data={trials[0].data}"),
        f"--out={out}",
    )
    printed, told = process.communicate()
    assert process.returncode == 0, told
    assert told.count("done: table5/1/invariant, seed ") == 3
    # The workers report their progress.
    for seed in range(3):
        title = f"table5/1/invariant, seed {seed}:"
        assert told.count(f"\n{title} loading the data") == 1
        assert f"\n{title} epoch 1 of {EPOCHS}, validation " in told
    assert "seeds 0, 1, 2" in " ".join(printed.split())
    assert files(out) == one_by_one


@pytest.fixture(scope="module")
def two_workers():
    with pool.local_cluster(2) as client:
        yield client


def test_the_workers_share_the_cores(two_workers):
    cores = os.sched_getaffinity(0)
    shares = [pool._share_of_cores(worker, 2) for worker in (0, 1)]
    assert shares[0] | shares[1] == cores
    if len(cores) > 1:
        assert not shares[0] & shares[1]
    threads = two_workers.run(os.environ.get, "OMP_NUM_THREADS")
    assert set(threads.values()) == {str(max(1, len(cores) // 2))}
    for name, share in enumerate(shares):
        # As a training finds them.
        found = two_workers.submit(
            os.sched_getaffinity, 0, workers=[name], pure=False
        )
        assert found.result() == share


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each in its own process."""
    address = tmp_path / "scheduler.json"

    def start(kind, *arguments):
        return Program(
            Path(distributed.__file__).parent / "cli" / f"dask_{kind}.py",
            *("--scheduler-file", address, "--no-dashboard", *arguments),
        )

    one = "--no-nanny", "--nthreads=1", "--memory-limit=0"
    processes = [start("scheduler", "--host=127.0.0.1", "--port=0")]
    processes += [start("worker", *one), start("worker", *one)]
    while not address.exists():
        time.sleep(0.1)
    yield json.loads(address.read_text())["address"], *processes
    for process in processes:
        process.kill()
        process.communicate()


def test_the_training_of_a_killed_worker_moves_and_resumes(
    trials, one_by_one, tmp_path, cluster
):
    address, _, doomed, other = cluster
    out = tmp_path / "out"
    with pool.running_cluster(address) as client:
        client.wait_for_workers(2)
        table = Recorder(trials, when_two=doomed.kill)
        pool.train_all(trials, out, table, client)
        (worker,) = client.run(os.getpid).values()
    assert doomed.returncode == -signal.SIGKILL
    assert worker == other.pid
    assert table.failures == {}
    assert files(out) == one_by_one
    for trial in trials:
        done = [done for title, done in table.epochs if title == trial.title]
        assert done[-1] == EPOCHS
        # The epochs of the killed worker were not repeated.
        assert done == sorted(set(done))


def test_a_dead_scheduler_is_reported(trials, tmp_path, cluster):
    address, scheduler, *_ = cluster
    table = Recorder(trials, when_two=scheduler.kill)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pool.running_cluster(address) as client,
        pytest.raises(OSError, match="The Dask scheduler is gone. The same c"),
    ):
        pool.train_all(trials, tmp_path / "out", table, client)


def test_a_worker_with_two_threads_is_refused(trials, tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
        pytest.raises(ValueError, match="one thread each .*2 threads"),
    ):
        pool.train_all(trials, tmp_path, Recorder(trials), client)
    assert not list(tmp_path.iterdir())


def test_another_file_of_data_is_another_job(trials, tmp_path):
    (trial, *_) = trials
    copy = tmp_path / "elsewhere.npz"
    shutil.copy(trial.data, copy)
    assert dataclasses.replace(trial, data=str(copy)).name == trial.name
    save_splicing(copy, generate_splicing(exons=60, features=10))
    assert dataclasses.replace(trial, data=str(copy)).name != trial.name


def test_errors_that_end_one_training_or_all(trials, tmp_path, monkeypatch):
    def run(trial, directory, on_epoch):
        if trial.seed == 0:
            raise error
        return "result"

    monkeypatch.setattr(pool, "run", run)
    ended = []
    monkeypatch.setattr(
        ProgressTable, "ended", lambda self, title, result: ended.append(title)
    )
    error = Diverged("diverged")
    table = ProgressTable(
        dict.fromkeys([trial.title for trial in trials], 1), {}
    )
    pool.train_all(trials, tmp_path, table)
    assert table.failures == {"table5/1/invariant, seed 0": "diverged"}
    assert ended == ["table5/1/invariant, seed 1", "table5/1/invariant, seed 2"]
    for error in (OSError("No space left"), ValueError("No such option")):
        with pytest.raises(type(error), match=str(error)):
            pool.train_all(trials, tmp_path, table)


def test_a_worker_with_another_backend_is_named(trials, tmp_path):
    trial = dataclasses.replace(trials[0], backend="theano")
    with pytest.raises(
        ValueError,
        match="`KERAS_BACKEND`. Expected 'theano'. Received: KERAS_BACKEND='"
        + keras.backend.backend(),
    ):
        run(trial, tmp_path)


def test_no_scheduler_at_the_address():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(OSError, match="No Dask scheduler answers at `--sched"),
        pool.running_cluster("tcp://127.0.0.1:9"),
    ):
        pass


def test_one_cluster_alone():
    resources = pool.Resources(workers=2, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="`--workers`.*nothing with `--sched"):
        pool.cluster(resources)


def test_trials_on_workers(trials, two_workers, tmp_path):
    seen = []
    settings = ["learning_rate", "max_norm"]
    search = trials[:1], settings, 4, tmp_path, seen.append
    epochs = set()
    study = tuning.tune(
        *search, two_workers, lambda title, done, _: epochs.add((title, done))
    )
    for trial in study.trials:
        assert (f"trial {trial.number}, table5/1/invariant", 1) in epochs
    assert sorted(trial.number for trial in seen) == [0, 1, 2, 3]
    assert len({trial.params["learning_rate"] for trial in seen}) == 4
    (table,) = tmp_path.glob("*.csv")
    trials = pd.read_csv(table)
    assert set(trials.state) <= {"COMPLETE", "PRUNED"}
    assert trials.value.max() == study.best_value
    # Two processes were running at a time, and this one continues.
    starts, ends = trials.datetime_start, trials.datetime_complete
    assert starts[1] < ends[0]
    assert len(tuning.tune(*search).trials) == 4
