import os
import subprocess
import sys

import keras
import pytest
from keras_invdrop.applications.results import read_results

BACKEND = keras.backend.backend()


def command(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "keras_invdrop.applications", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_help_names_the_commands():
    process = command("--help")
    assert process.returncode == 0
    assert "demo" in process.stdout
    assert "train" in process.stdout
    assert "KERAS_BACKEND" in process.stdout


def test_help_of_train_explains_its_options():
    stdout = command("train", "--help").stdout
    for option in ("--dropout", "--encoding", "--dataset", "--epochs"):
        assert option in stdout
    assert "running_average" in stdout


def test_train_and_train_again(tmp_path):
    arguments = (
        "train",
        "mnist",
        "--dropout=running_average",
        "--encoding=inverted",
        "--epochs=1",
        "--limit-train=200",
        "--out=out",
    )
    process = command(*arguments, "--seed=3", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "running_average" in process.stdout
    assert "200" in process.stdout
    name = "digits-inverted-relu-running_average-seed3"
    assert (tmp_path / "out" / f"{name}.keras").is_file()
    assert (tmp_path / "out" / f"{name}.csv").is_file()
    process = command(*arguments, "--seed=4", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [result.seed for result in results] == [3, 4]
    assert results[0].training_examples == 200
    assert results[0].validation_examples == 667
    assert results[0].backend == BACKEND
    # The command repeats the run, wherever it is pasted.
    assert results[0].command == (
        f"KERAS_BACKEND={BACKEND} keras-invdrop {' '.join(arguments)} --seed=3"
    )


def test_demo(tmp_path):
    process = command("demo", "--seeds=2", "--epochs=1", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for words in ("standard", "invariant", "original", "inverted", "±"):
        assert words in process.stdout
    out = tmp_path / "runs" / "demo"
    results = read_results(out / "results.jsonl")
    assert len(results) == 2 * 2 * 2
    assert {result.training_examples for result in results} == {4000}
    assert {result.epochs for result in results} == {1}
    assert len(list(out.glob("*.keras"))) == 8
    assert len(list(out.glob("*.csv"))) == 8
    for figure in ("figure1.png", "figure2.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "cifar"), "'cifar' is not one of"),
        (("train", "mnist", "--dropout", "some"), "'some' is not one of"),
        (("train", "mnist", "--epochs", "0"), "'--epochs'"),
        (("train", "mnist", "--limit-train", "9999"), "`limit_train`"),
        (("train", "mnist", "--activation", "rely"), "rely"),
        (("train", "mnist", "--out", "file"), "file"),
    ],
)
def test_errors_are_said_without_a_traceback(arguments, message, tmp_path):
    (tmp_path / "file").write_text("in the way")
    process = command(*arguments, cwd=tmp_path)
    assert process.returncode in (1, 2)
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_damaged_results_file_is_found_before_training(tmp_path):
    (tmp_path / "results.jsonl").write_text("{\n")
    process = command("train", "mnist", "--out", str(tmp_path))
    assert process.returncode == 1
    assert "Line 1 of" in process.stderr
    assert (tmp_path / "results.jsonl").read_text() == "{\n"
