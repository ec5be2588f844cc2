"""One training on several devices, in one process and in many."""

import ast
import csv
import re
import signal
import socket
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras_invdrop.experiments import command_line
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import save_splicing
from keras_invdrop.experiments.train.devices import _most
from warm import Program

PROGRAM = Path(__file__).with_name("many_devices.py")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def started(devices, *arguments, **environment):
    """A process with this number of devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return Program(PROGRAM, *arguments, XLA_FLAGS=flags, **environment)


def ended(processes):
    """The exit codes and the output of processes."""
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *texts)
        for process, texts in zip(processes, told, strict=True)
    ]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A small training of Table 5, in batches of 100, 100, 100 and 33."""
    path = tmp_path_factory.mktemp("data") / "exons.npz"
    save_splicing(path, generate_splicing(exons=600, features=100))
    return [
        "train", "table5/1/invariant", "--width=0.05", f"--data={path}",
        "--limit-train=333", "--epochs=2",
    ]  # fmt: skip


def together(processes, out, arguments, dies=()):
    """The processes of one training, some of which die."""
    port = free_port()
    return [
        started(
            1, 5, *(["dies"] if each in dies else []), *arguments,
            f"--out={out}", "--data-parallel", f"--processes={processes}",
            f"--coordinator=127.0.0.1:{port}", f"--process-id={each}",
        )
        for each in range(processes)
    ]  # fmt: skip


def by_slurm(processes, out, arguments):
    """The same processes, as Slurm's `srun` would start them."""
    job = 1
    while not is_free(61440 + job):  # JAX derives the port from the job.
        job += 1
    return [
        started(
            1, 5, *arguments, f"--out={out}", "--data-parallel",
            SLURM_JOB_ID=str(job),
            SLURM_STEP_NODELIST="localhost",
            SLURM_STEP_NUM_NODES="1",
            SLURM_NTASKS=str(processes),
            SLURM_PROCID=str(each),
            SLURM_LOCALID=str(each),
        )
        for each in range(processes)
    ]  # fmt: skip


def left(processes, out):
    """Losses and weights in `out`, after all processes have succeeded."""
    told = ended(processes)
    assert [code for code, _, _ in told] == [0] * len(told), told
    # One process reports to the user and writes files.
    done = ["Models, histories" in printed for _, printed, _ in told]
    assert done == [True] + [False] * (len(told) - 1)
    (history,) = out.glob("*.csv")
    (model,) = out.glob("*.keras")
    assert len(list(out.iterdir())) == 3
    with history.open() as file:
        rows = list(csv.reader(file))[1:]
    return (
        np.array([list(map(float, row)) for row in rows]),
        keras.saving.load_model(model).get_weights(),
    )


@pytest.fixture(scope="module")
def one_device(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    return left([started(1, 5, *arguments, f"--out={out}")], out)


@pytest.fixture(scope="module")
def two_processes(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return left(together(2, out, arguments), out)


def check_same(mine, its, record_property):
    (losses, weights), (its_losses, its_weights) = mine, its
    loss = np.abs(losses / its_losses - 1).max()
    weight = max(
        np.abs(one - other).max()
        for one, other in zip(weights, its_weights, strict=True)
    )
    record_property(
        "as on one device but for",
        f"{loss:.0e} of the losses, and weights within {weight:.0e}",
    )
    # Sums over a batch are taken in another order, and rounded to the 24 bits
    # of float32. With other masks, losses would differ in the second digit.
    assert loss < 1e-5
    assert weight < 1e-5


jax_only = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="`keras.distribution` needs the JAX backend",
)


@jax_only
def test_two_devices(arguments, one_device, tmp_path, record_property):
    process = started(2, 5, *arguments, "--data-parallel", f"--out={tmp_path}")
    check_same(left([process], tmp_path), one_device, record_property)


@jax_only
def test_two_processes(two_processes, one_device, record_property):
    check_same(two_processes, one_device, record_property)


@jax_only
@pytest.mark.parametrize(
    "number", [2, pytest.param(4, marks=pytest.mark.thorough)]
)
def test_processes_of_slurm(
    number, arguments, one_device, tmp_path, record_property
):
    processes = by_slurm(number, tmp_path, arguments)
    check_same(left(processes, tmp_path), one_device, record_property)


@jax_only
def test_a_process_that_dies(
    arguments, two_processes, tmp_path, record_property
):
    start = time.monotonic()
    survivor, dead = ended(together(2, tmp_path, arguments, dies=[1]))
    seconds = time.monotonic() - start
    assert dead[0] == -signal.SIGKILL
    assert survivor[0] == -signal.SIGABRT
    assert "process 0: a computation of all processes has" in survivor[2]
    assert re.search(r"stopped sending heartbeats\):\n1\n", survivor[2])
    assert seconds < 60
    record_property("ended, imports and the first epoch included", seconds)
    # What the first epoch has left.
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    losses, weights = left(together(2, tmp_path, arguments), tmp_path)
    np.testing.assert_array_equal(losses, two_processes[0])
    for mine, its in zip(weights, two_processes[1], strict=True):
        np.testing.assert_array_equal(mine, its)


@jax_only
def test_the_first_process_dies(arguments, tmp_path):
    dead, survivor = ended(together(2, tmp_path, arguments, dies=[0]))
    assert dead[0] == -signal.SIGKILL
    assert survivor[0] == -signal.SIGABRT
    assert "or as the leader, which is process 0" in survivor[2]
    assert "the leader task was preempted/died" in survivor[2]
    # What the first epoch has left.
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


@jax_only
def test_every_example_is_seen_once_in_an_epoch(tmp_path):
    port = free_port()
    paths = [tmp_path / str(each) for each in range(2)]
    processes = [
        started(2, "seen", path, port, 2, each)
        for each, path in enumerate(paths)
    ]
    for path, (code, _, errors) in zip(paths, ended(processes), strict=True):
        assert code == 0, errors
        lines = path.read_text().splitlines()
        # 30 examples in two epochs, in batches of 8, 6 and 7, from memory and
        # from a stream; four devices in all, two in each process.
        for line, (size, devices) in zip(
            lines, [(8, 4), (6, 2), (7, 4)] * 2, strict=True
        ):
            found, number, seen, logs = ast.literal_eval(line)
            assert (found, number, seen) == (size, devices, [2.0])
            # The mean and the mean square of 0 to 29.
            for name in ("loss", "val_loss"):
                assert logs[name] == pytest.approx(29 / 2)
            for name in ("mse", "val_mse"):
                assert logs[name] == pytest.approx(29 * 59 / 6)


@jax_only
def test_no_device_holds_a_whole_batch(record_property):
    ((code, printed, errors),) = ended([started(4, "program")])
    assert code == 0, errors
    four, one, ratio = map(ast.literal_eval, printed.splitlines())
    # Devices, tensors of a quarter of the batch, tensors of the whole.
    assert four[0] == 4
    assert four[1] > 100
    assert four[2] == 0
    assert one[:2] == (1, 0)
    assert one[2] > 100
    # The activities are a quarter, the gradients on every device.
    assert 0.25 < ratio < 0.3
    record_property("memory of one of four devices, in that of one", ratio)


@pytest.mark.parametrize(
    "batch_size, processes, devices, each",
    [(128, 1, 8, 8), (100, 1, 8, 5), (100, 2, 4, 2), (100, 3, 1, 1)],
)
def test_the_largest_divisor_of_a_batch_counts_the_devices(
    batch_size, processes, devices, each
):
    assert _most(batch_size, processes, devices) == each


def error_of(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["keras-invdrop", *options])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1
    return " ".join(capsys.readouterr().err.split())


# The command sets the image data format, and the fixture sets it back.
@pytest.mark.usefixtures("image_data_format")
def test_contradictory_options(monkeypatch, capsys, arguments):
    error = error_of(monkeypatch, capsys, *arguments, "--processes=2")
    assert "`--processes`. Expected nothing, or `--data-parallel`" in error
    error = error_of(
        monkeypatch, capsys, "reproduce", *arguments[1:], "--data-parallel",
        "--workers=2",
    )  # fmt: skip
    assert "`--data-parallel`. Expected nothing with `--workers`" in error


@pytest.mark.usefixtures("image_data_format")
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="it works there")
def test_other_backends_are_sent_to_the_documentation(
    monkeypatch, capsys, arguments
):
    error = error_of(monkeypatch, capsys, *arguments, "--data-parallel")
    assert "`KERAS_BACKEND`. Expected 'jax' with `--data-parallel`" in error
    assert "docs/scaling_out.md" in error


@jax_only
def test_incomplete_options_of_processes(arguments, tmp_path):
    options = "--data-parallel", "--processes=2", f"--out={tmp_path}"
    ((code, _, errors),) = ended([started(1, 5, *arguments, *options)])
    assert code == 1
    assert "Expected `--coordinator`, `--processes` and `--process-" in errors
