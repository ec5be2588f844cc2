import json
import subprocess
import sys

import keras
import pytest
from keras_invdrop.applications import command_line
from keras_invdrop.applications import demo
from keras_invdrop.applications.figures import figure_1
from keras_invdrop.applications.results import read_results

BACKEND = keras.backend.backend()
DIGITS = "table2/original/invariant"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, image_data_format):
    """Runs the command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-invdrop", *arguments])
        with pytest.raises(SystemExit) as exit:
            command_line.main()
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(
            arguments, exit.value.code or 0, captured.out, captured.err
        )

    return run


def test_python_runs_it_too():
    process = subprocess.run(
        [sys.executable, "-m", "keras_invdrop.applications", "--help"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0
    assert "KERAS_BACKEND" in process.stdout


def test_help_names_the_commands(command):
    process = command("--help")
    assert process.returncode == 0
    for word in ("demo", "train", "tables", "generate-splicing"):
        assert word in process.stdout
    assert "KERAS_BACKEND" in process.stdout


def test_help_of_train_explains_its_options(command):
    stdout = command("train", "--help").stdout
    for option in (
        "--seed",
        "--width",
        "--epochs",
        "--limit-train",
        "--calibrate",
        "--out",
    ):
        assert option in stdout
    assert "--no-calibrate" not in stdout
    assert "table3/relu/invariant" in stdout


def test_help_says_that_generated_data_are_generated(command):
    stdout = command("generate-splicing", "--help").stdout
    assert "GENERATE" in stdout
    assert "say nothing about splicing" in stdout


def test_train_and_train_again(command, tmp_path):
    arguments = (
        "train",
        "table2/inverted/running_average",
        "--data=digits",
        "--epochs=1",
        "--limit-train=200",
        "--width=0.05",
        "--activation=tanh",
        "--out=out",
    )
    process = command(*arguments, "--seed=3")
    assert process.returncode == 0, process.stderr
    assert "table2/inverted/running_average" in process.stdout
    assert "200" in process.stdout
    for suffix in (".keras", ".csv"):
        (file,) = (tmp_path / "out").glob(f"*{suffix}")
        assert file.name.startswith("table2-inverted-running_average-digits")
    process = command(*arguments, "--seed=4")
    assert process.returncode == 0, process.stderr
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [result.seed for result in results] == [3, 4]
    assert results[0].training_examples == 200
    assert results[0].validation_examples == 667
    assert results[0].backend == BACKEND
    # 784-50-50-10
    assert results[0].parameters == (
        784 * 50 + 50 + 50 * 50 + 50 + 50 * 10 + 10 + 784 + 50 + 50
    )
    # The command repeats the run, wherever it is pasted.
    assert results[0].command == (
        f"KERAS_BACKEND={BACKEND} keras-invdrop {' '.join(arguments)} --seed=3"
    )
    process = command("tables", "--results=out")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("not run") == 40
    process = command("tables", "--results=out", "--json")
    objects = {each["id"]: each for each in json.loads(process.stdout)}
    assert len(objects) == 41
    (measured,) = objects["table2/inverted/running_average"]["measured"]
    assert measured["seeds"] == [3, 4]
    assert measured["width"] == 0.05


def test_train_calibrated(command, tmp_path):
    arguments = (
        "train",
        DIGITS,
        "--data=digits",
        "--epochs=1",
        "--limit-train=200",
        "--width=0.05",
    )
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    assert "calibrated" not in process.stdout
    process = command(*arguments, "--calibrate")
    assert process.returncode == 0, process.stderr
    assert "beta calibrated" in " ".join(process.stdout.split())
    # The one does not take the place of the other.
    results = read_results(tmp_path / "runs" / "results.jsonl")
    assert [each.recipe["calibrated"] for each in results] == [False, True]
    assert results[1].command.endswith(" --calibrate")
    assert len(list((tmp_path / "runs").glob("*.keras"))) == 2


def test_splicing_from_generated_data(command, tmp_path):
    process = command("generate-splicing", "exons.npz")
    assert process.returncode == 0, process.stderr
    process = command(
        "train",
        "table5",
        "--data=exons.npz",
        "--epochs=1",
        "--width=0.01",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(" bits") >= 2 * 18
    assert "generated" in process.stdout
    results = read_results(tmp_path / "runs" / "results.jsonl")
    assert [result.row for result in results] == [
        f"table5/{partition}/{method}"
        for partition in range(1, 7)
        for method in ("none", "standard", "invariant")
    ]
    # 3,665 exons in six parts.
    for result in results:
        assert result.test_examples in (610, 611)
        assert (
            result.training_examples
            + result.validation_examples
            + result.test_examples
            == 3665
        )
        assert "generated" in result.source


def test_demo(command, tmp_path, monkeypatch):
    curves = []
    monkeypatch.setattr(
        demo,
        "figure_1",
        lambda dataset, histories, model: (
            curves.append(histories) or figure_1(dataset, histories, model)
        ),
    )
    process = command("demo", "--seeds=2", "--epochs=1")
    assert process.returncode == 0, process.stderr
    for words in ("standard", "invariant", "original", "inverted", "±"):
        assert words in process.stdout
    assert "beta calibrated" in " ".join(process.stdout.split())
    out = tmp_path / "runs" / "demo"
    results = read_results(out / "results.jsonl")
    assert len(results) == 2 * 2 * 3
    for seed in (0, 1):
        for encoding in ("original", "inverted"):
            assert [
                (each.dropout, each.recipe["calibrated"])
                for each in results
                if (each.seed, each.encoding) == (seed, encoding)
            ] == [
                ("standard", False),
                ("invariant", False),
                ("invariant", True),
            ]
    assert {result.training_examples for result in results} == {4000}
    assert {result.epochs for result in results} == {1}
    assert len(list(out.glob("*.keras"))) == 12
    assert len(list(out.glob("*.csv"))) == 12
    for figure in ("figure1.png", "figure2.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))
    # Figure 1 has the curves of each method, of all seeds.
    (histories,) = curves
    assert {method: len(runs) for method, runs in histories.items()} == {
        "standard": 2,
        "invariant": 2,
        "calibrated": 2,
    }
    errors = {runs[0].training_error.iloc[0] for runs in histories.values()}
    assert len(errors) == 3


def test_what_has_no_shift_is_not_calibrated(command, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "load_once", None)  # no data are loaded
    for row, named in {
        "table2/original/standard": "table2/original/standard",
        "table2/inverted": "table2/inverted/standard",
        "table5/1": "table5/1/none",
    }.items():
        process = command("train", row, "--data=digits", "--calibrate")
        assert process.returncode == 1
        (line,) = process.stderr.splitlines()
        assert "`--calibrate`" in line
        assert f"Received: row='{named}'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "table3/rellu/standard"), "near are table3/relu/standard"),
        (("train", "table2/original/none"), "`row`"),
        (("train", DIGITS, "--epochs", "0"), "'--epochs'"),
        (("train", DIGITS, "--limit-train", "9999"), "`limit_train`"),
        (("train", DIGITS, "--activation", "rely"), "rely"),
        (("train", DIGITS, "--width", "0.0004"), "1000 times 0.0004 rounds"),
        (("train", DIGITS, "--width", "0"), "`width`"),
        (
            ("train", "table3/relu", "--activation", "tanh"),
            "None for 'ReLU CNN 128c-p-128c-p-128c-p-1000fc'",
        ),
        (("train", "table3/relu", "--data", "digits"), "`--data`"),
        (("train", "table5/1"), "keras-invdrop generate-splicing"),
        (("train", "table5/1", "--data", "no.csv"), "no.csv"),
        (("generate-splicing", "exons.csv"), ".npz"),
        (("tables", "--results", "file"), "file"),
        (("train", DIGITS, "--out", "file"), "file"),
    ],
)
def test_errors_are_said_without_a_traceback(
    command, arguments, message, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    if DIGITS in arguments:
        arguments = (*arguments, "--data=digits")
    process = command(*arguments)
    assert process.returncode in (1, 2)
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_damaged_results_file_is_found_before_training(command, tmp_path):
    (tmp_path / "results.jsonl").write_text("{\n")
    process = command("train", DIGITS, "--out", str(tmp_path))
    assert process.returncode == 1
    assert "Line 1 of" in process.stderr
    assert (tmp_path / "results.jsonl").read_text() == "{\n"
