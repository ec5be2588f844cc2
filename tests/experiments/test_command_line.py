import dataclasses
import json
import re
import subprocess
import sys
from functools import partial

import keras
import pytest
from keras_invdrop.experiments import command_line
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.figures import figure_1
from keras_invdrop.experiments.results.records import read_results
from keras_invdrop.experiments.results.records import write_result
from keras_invdrop.experiments.results.summary import MARKS
from keras_invdrop.experiments.runners import demo
from keras_invdrop.experiments.runners import pool
from keras_invdrop.experiments.train import trial as trials
from keras_invdrop.experiments.train.callbacks import Diverged

import keras_invdrop

BACKEND = keras.backend.backend()
DIGITS = "table2/original/invariant"
SMALL = "--data=digits", "--epochs=1", "--limit-train=200", "--width=0.02"
COMMANDS = (
    "demo",
    "train",
    "reproduce",
    "tune",
    "tables",
    "report",
    "generate-splicing",
)


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


@pytest.mark.one_backend
def test_python_runs_the_module():
    process = subprocess.run(
        [sys.executable, "-m", "keras_invdrop.experiments", "--help"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0
    assert "KERAS_BACKEND" in process.stdout


def test_version(command):
    assert command("--version").stdout == (
        f"keras-invdrop {keras_invdrop.__version__} (Keras "
        f"{keras.__version__}, {BACKEND} backend)\n"
    )


@pytest.mark.one_backend
def test_tables_before_anything_was_measured(command):
    process = command("tables")
    assert process.returncode == 0
    assert process.stdout.count("not run") == 41


@pytest.mark.one_backend
def test_help_names_the_commands(command):
    process = command("--help")
    assert process.returncode == 0
    for word in COMMANDS:
        assert word in process.stdout
    assert "KERAS_BACKEND" in process.stdout


@pytest.mark.one_backend
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


@pytest.mark.one_backend
def test_help_says_that_generated_data_are_generated(command):
    stdout = command("generate-splicing", "--help").stdout
    assert "Generate data of the shape" in stdout
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
    said = " ".join(process.stdout.split())
    assert "1 epoch, " in said
    assert "width 0.05, activation tanh" in said
    # The row, the start, each epoch and the end.
    title = "table2/inverted/running_average, seed 3"
    first, begun, epoch, done = process.stderr.splitlines()
    assert first.startswith(
        f"Training 1 network on digits, 1 epoch, {BACKEND} backend: "
        "table2/inverted/running_average; seed 3. "
    )
    assert begun == f"{title}: loading the data, compiling the network"
    assert epoch.startswith(f"{title}: epoch 1 of 1, validation ")
    assert done.startswith(f"done: {title}: validation ")
    (name,) = (file.stem for file in (tmp_path / "out").glob("*.json"))
    assert name.startswith("table2-inverted-running_average-seed3-")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"{name}{suffix}" for suffix in (".csv", ".json", ".keras")
    ]
    process = command(*arguments, "--seed=4")
    assert process.returncode == 0, process.stderr
    results = read_results(tmp_path / "out")
    assert [result.seed for result in results] == [3, 4]
    assert results[0].training_examples == 200
    assert results[0].validation_examples == 667
    assert results[0].backend == BACKEND
    # 784-50-50-10
    assert results[0].parameters == (
        784 * 50 + 50 + 50 * 50 + 50 + 50 * 10 + 10 + 784 + 50 + 50
    )
    # The printed command repeats the run in any directory.
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


@pytest.mark.one_backend
def test_train_calibrated(command, tmp_path):
    arguments = ("train", DIGITS, *SMALL)
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    assert "beta calibrated" not in " ".join(process.stdout.split())
    process = command(*arguments, "--calibrate")
    assert process.returncode == 0, process.stderr
    assert "beta calibrated" in " ".join(process.stdout.split())
    # The second result does not replace the first.
    results = read_results(tmp_path / "runs")
    assert {
        each.recipe["calibrated"]: each.command.endswith(" --calibrate")
        for each in results
    } == {False: False, True: True}
    assert len(list((tmp_path / "runs").glob("*.keras"))) == 2


@pytest.mark.one_backend
def test_each_setting_of_a_recipe_is_an_option(command, tmp_path):
    arguments = ("train", DIGITS, *SMALL)
    settings = {
        "learning_rate": 0.05,
        "beta_decay": 0.001,
        "max_norm": (None, 4.5, 4.5),
        "initial_stddev": (0.01, None, 0.0),
        "input_rate": 0.1,
        "hidden_rate": (0.4, 0.6),
        "momentum": 0.9,
        "beta_factor": 10.0,
        "warm_up": 0.5,
        "weight_decay": 1e-5,
        "ema_momentum": 0.9,
    }
    process = command(
        *arguments,
        "--learning-rate=0.05",
        "--beta-decay=0.001",
        "--max-norm=none,4.5,4.5",
        "--initial-stddev=0.01,none,0",
        "--input-rate=0.1",
        "--hidden-rate=0.4,0.6",
        "--momentum=0.9",
        "--beta-factor=10",
        "--warm-up=0.5",
        "--weight-decay=1e-5",
        "--ema-momentum=0.9",
    )
    assert process.returncode == 0, process.stderr
    (result,) = read_results(tmp_path / "runs")
    for name, value in settings.items():
        assert result.recipe[name] == value
    # None of these settings is the recipe's own.
    own = dataclasses.asdict(ROWS[DIGITS].recipe)
    assert not any(own[name] == value for name, value in settings.items())
    for option, message in {
        "--max-norm=2,a": "`--max-norm`. Expected numbers or none",
        "--hidden-rate=none": "`--hidden-rate`",
        "--initial-stddev=0.1,0.1": "one for each of 3 layers",
        "--momentum=0": "`--momentum`",
        "--learning-rate-fall=slow": "`--learning-rate-fall`",
    }.items():
        process = command(*arguments, option)
        assert process.returncode == 1
        assert message in process.stderr


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("rows", "partitions"),
    [
        # A row that is named twice is trained once.
        (["table5/6", "table5/6/none"], [6]),
        pytest.param(["table5"], range(1, 7), marks=pytest.mark.thorough),
    ],
)
def test_splicing_from_generated_data(command, tmp_path, rows, partitions):
    process = command("generate-splicing", "exons.npz")
    assert process.returncode == 0, process.stderr
    process = command(
        "train",
        *rows,
        "--data=exons.npz",
        "--epochs=1",
        "--width=0.01",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(" bits") >= 2 * 3 * len(partitions)
    assert "generated" in process.stdout
    results = read_results(tmp_path / "runs")
    assert sorted(result.row for result in results) == [
        f"table5/{partition}/{method}"
        for partition in partitions
        for method in ("invariant", "none", "standard")
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


@pytest.mark.one_backend
def test_demo(command, tmp_path, monkeypatch, thorough):
    monkeypatch.setenv("COLUMNS", "80")
    # The widest networks take longest, and say the same.
    monkeypatch.setattr(demo, "Trial", partial(trials.Trial, width=0.1))
    seeds = range(2 if thorough else 1)
    curves = []
    monkeypatch.setattr(
        demo,
        "figure_1",
        lambda dataset, histories, model: (
            curves.append(histories) or figure_1(dataset, histories, model)
        ),
    )
    process = command("demo", f"--seeds={len(seeds)}", "--epochs=1")
    assert process.returncode == 0, process.stderr
    # Methods down, encodings across, and a sentence; in 80 columns.
    lines = process.stdout.splitlines()
    for method in ("standard dropout", "beta from 0", "dropout, calibrated"):
        (line,) = (
            line for line in lines if f"{method} " in line and "│" in line
        )
        assert line.count("±") == (2 if len(seeds) > 1 else 0)
    assert "original encoding ┃ inverted encoding" in process.stdout
    assert max(map(len, lines[1:])) <= 80
    said = " ".join(process.stdout.split())
    assert "with standard dropout, and from" in said
    assert "4,000 examples for training" in said
    out = tmp_path / "runs" / "demo"
    results = read_results(out)
    assert len(results) == len(seeds) * 2 * 3
    for seed in seeds:
        for encoding in ("original", "inverted"):
            assert {
                (each.dropout, each.recipe["calibrated"])
                for each in results
                if (each.seed, each.encoding) == (seed, encoding)
            } == {
                ("standard", False),
                ("invariant", False),
                ("invariant", True),
            }
    assert {result.training_examples for result in results} == {4000}
    assert {result.epochs for result in results} == {1}
    assert len(list(out.glob("*.keras"))) == len(results)
    assert len(list(out.glob("*.csv"))) == len(results)
    assert (out / f"inverted-calibrated-seed{seed}.keras").exists()
    for figure in ("figure1.png", "figure2.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))
    # Figure 1 has the curves of each method over all seeds.
    (histories,) = curves
    assert {method: len(runs) for method, runs in histories.items()} == {
        "standard": len(seeds),
        "invariant from 0": len(seeds),
        "calibrated": len(seeds),
    }
    errors = {runs[0].training_error.iloc[0] for runs in histories.values()}
    assert len(errors) == 3


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "table3/rellu/standard"),
            "such as table3/relu/standard, table3/",
        ),
        (
            ("train", "table9"),
            "such as table2, table3, table4, table5, table6. Received",
        ),
        (("tables", "--results", "nowhere"), "'nowhere' does not exist"),
        (("train", "table2/original/none"), "`row`"),
        (("train", DIGITS, "--epochs", "0"), "'--epochs'"),
        (("train", DIGITS, "--limit-train", "9999"), "`--limit-train`"),
        (("train", DIGITS, "--validation", "9999"), "`--validation`"),
        (("train", DIGITS, "--activation", "rely"), "rely"),
        (("train", DIGITS, "--width", "0.0004"), "1000 times 0.0004 rounds"),
        (("train", DIGITS, "--width", "0"), "`--width`"),
        (
            ("train", "table3/relu", "--activation", "tanh"),
            "None for 'ReLU CNN 128c-p-128c-p-128c-p-1000fc'",
        ),
        (("train", "table3/relu", "--data", "digits"), "`--data`"),
        (("train", "table5/1"), "keras-invdrop generate-splicing"),
        (("train", "table5/1", "--data", "no.csv"), "There is no file "),
        (("train", "table5/1", "--data", "."), "ends in .csv or .npz"),
        (("train", "table5/1", "--data", "file"), "`--data`. Expected a path"),
        (("train", "table5/1", "--data", "file"), "ends in .csv or .npz"),
        (("train", DIGITS, "--workers", "2"), "No such option: --workers"),
        (
            ("train", "table2/inverted", "--data=digits", "--calibrate"),
            "`--calibrate` can set. Received: row='table2/inverted/standard'",
        ),
        (("reproduce", DIGITS, "--workers", "0"), "'--workers'"),
        (("reproduce", DIGITS, "--seeds", "0-"), "`--seeds`. Expected numbers"),
        (("tune", DIGITS, "--out", "file"), "'--out'"),
        (("tune", DIGITS, "--out", "file/in"), "file/in is not writable: "),
        (
            ("generate-splicing", "file/exons.npz"),
            "file/exons.npz could not be written",
        ),
        (("report", "nowhere"), "There are no results in nowhere/"),
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


@pytest.mark.one_backend
def test_settings_of_another_network_end_a_search(command):
    process = command(
        "tune", DIGITS, "--data=digits", "--settings=relu_cnn", "--trials=1"
    )
    assert process.returncode == 1
    (said,) = re.findall("keras-invdrop: .*", process.stderr)
    assert "argument `--hidden-rate`. Expected one value, or one for" in said
    assert "Traceback" not in process.stderr


@pytest.mark.one_backend
def test_reproduce(command, tmp_path):
    arguments = (
        "reproduce",
        DIGITS,
        "table2/original/standard",
        "--seeds=0-1,5",
        "--data=digits",
        "--epochs=2",
        "--limit-train=200",
        "--width=0.02",
        "--dtype-policy=mixed_bfloat16",
        "--max-norm=3",
        "--out=out",
    )
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    assert "seeds 0, 1, 5" in " ".join(process.stdout.split())
    assert process.stderr.count("done: table2/original/") == 6
    results = read_results(tmp_path / "out")
    assert sorted((each.dropout, each.seed) for each in results) == [
        (dropout, seed)
        for dropout in ("invariant", "standard")
        for seed in (0, 1, 5)
    ]
    for each in results:
        assert each.recipe["dtype_policy"] == "mixed_bfloat16"
        assert each.recipe["max_norm"] == 3
        assert each.recipe["epochs"] == each.epochs == 2

    # Finished trainings are not repeated, unless their result is lost.
    files = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()
    }
    assert len(files) == 6 * 3
    (lost,) = (tmp_path / "out").glob("*standard-seed1-*.json")
    before = json.loads(lost.read_text())
    lost.unlink()
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    again = {path: path.stat().st_mtime_ns for path in files}
    repeated = {path for path in files if files[path] != again[path]}
    assert repeated == {
        lost,
        lost.with_suffix(".csv"),
        lost.with_suffix(".keras"),
    }
    found = json.loads(lost.read_text())
    assert before | {"seconds": 0} == found | {"seconds": 0}


@pytest.mark.one_backend
def test_divergence_ends_one_training_only(command, tmp_path, monkeypatch):
    def run(trial, directory, on_epoch):
        if trial.seed == 1:
            raise Diverged("The loss of epoch 3 is nan")
        return real(trial, directory, on_epoch)

    real = pool.run
    monkeypatch.setattr(pool, "run", run)
    process = command("reproduce", DIGITS, *SMALL)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        f"keras-invdrop: 1 of 3 trainings failed: {DIGITS}, seed 1"
    )
    assert f"{DIGITS}, seed 1: The loss of epoch 3 is nan" in process.stderr
    assert "seeds 0, 2" in " ".join(process.stdout.split())
    results = read_results(tmp_path / "runs")
    assert sorted(each.seed for each in results) == [0, 2]


def test_training_on_all_examples(command, tmp_path):
    arguments = ("train", DIGITS, "--data=digits", "--epochs=1")
    several = "--steps-per-execution=10"
    small = ("--width=0.02", several)
    if keras.backend.backend() == "torch":
        process = command(*arguments, several)
        assert process.returncode == 1
        assert "Expected 1 on PyTorch" in process.stderr
        small = ("--width=0.02",)
    process = command(*arguments, *small, "--validation=0")
    assert process.returncode == 0, process.stderr
    (result,) = read_results(tmp_path / "runs")
    assert result.training_examples == 4000
    assert result.validation_examples == 0
    assert result.validation is None
    # A different number of examples makes a different training.
    process = command(*arguments, *small, "--validation=100")
    results = read_results(tmp_path / "runs")
    assert sorted(r.training_examples for r in results) == [3900, 4000]
    process = command("train", "table5/1/none", "--validation=0", "--data=x")
    assert process.returncode == 1
    assert "`--validation`. Expected nothing for Table 5" in process.stderr


@pytest.mark.one_backend
def test_tune(command, tmp_path):
    arguments = ("tune", "table2/original/standard", DIGITS, *SMALL)
    process = command(*arguments, "--trials=1")
    assert process.returncode == 0, process.stderr
    first, *epochs, _ = process.stderr.splitlines()
    assert first.startswith(
        "Searching learning_rate in 1 trial, each of 2 networks on digits"
    )
    for epoch, method in zip(epochs, ("standard", "invariant"), strict=True):
        assert epoch.startswith(
            f"trial 0, table2/original/{method}: epoch 1 of 1, validation "
        )
    assert process.stderr.count("trial 0: {'learning_rate': ") == 1
    assert "% on the validation examples, trial 0 of 1" in process.stdout
    process = command(*arguments, "--trials=2")
    assert "trial 0: " not in process.stderr
    assert "trial 1: " in process.stderr
    (table,) = (tmp_path / "runs" / "tune").glob("trials-*.csv")
    assert len(table.read_text().splitlines()) == 1 + 2
    process = command(*arguments, "--settings=learning_rate,batch")
    assert process.returncode == 1
    assert "`--settings`" in process.stderr
    assert "Received: --settings='batch'" in process.stderr
    process = command("tune", DIGITS, "table5/1/standard")
    assert "rows with figures of one unit" in process.stderr


@pytest.mark.one_backend
def test_report(command, tmp_path, result):
    write_result(tmp_path / "runs" / "one.json", result)
    (tmp_path / "README.md").write_text("\n".join(MARKS))
    process = command("report", "runs", "--into=README.md")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "The report is runs/report.md",
        "Its summary is in README.md",
    ]
    row = (
        "| `table2/inverted/invariant` | *0.94* | 5.00 | 1 | 3 epochs, jax "
        "| 1 |"
    )
    assert row in (tmp_path / "runs" / "report.md").read_text()
    line = "| invariant dropout, beta from 0 | 5.00 (1 seed) <sup>a</sup> |"
    assert line in (tmp_path / "README.md").read_text()
    process = command("report", "elsewhere")
    assert process.returncode == 1
    assert "There are no results in elsewhere/" in process.stderr
    # The beginning of several rows is not a row.
    several = dataclasses.replace(result, row="table2")
    write_result(tmp_path / "runs" / "one.json", several)
    process = command("report", "runs")
    assert process.returncode == 1
    assert "one.json is not a result: its row, 'table2'" in process.stderr


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("2, 0-2", [2, 0, 1])],
)
def test_seeds(text, seeds):
    assert command_line.numbers_of("--seeds", text) == seeds


@pytest.mark.one_backend
@pytest.mark.parametrize("text", ["", "3-1", "a", "1,,2", "-1"])
def test_invalid_seeds(text):
    with pytest.raises(ValueError, match="`--seeds`. Expected numbers such"):
        command_line.numbers_of("--seeds", text)


@pytest.mark.one_backend
def test_a_damaged_result_is_named(command, tmp_path):
    arguments = ("train", DIGITS, *SMALL)
    process = command(*arguments)
    assert process.returncode == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    path.write_text("{\n")
    process = command(*arguments)
    assert process.returncode == 1
    assert f"{path.relative_to(tmp_path)} is not a result" in process.stderr
    assert path.read_text() == "{\n"
