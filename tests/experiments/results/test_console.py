import dataclasses
import io

import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.console import ProgressTable
from keras_invdrop.experiments.results.console import paper_table
from rich.console import Console


def printed(table, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_only_what_was_measured(result):
    recipe = dataclasses.asdict(ROWS[result.row].recipe)
    text = printed(
        paper_table(
            [
                dataclasses.replace(result, recipe=recipe),
                dataclasses.replace(
                    result,
                    row="table5/2/none",
                    dataset="mas",
                    unit="bits",
                    test=400.0,
                    recipe=dataclasses.asdict(ROWS["table5/2/none"].recipe)
                    | {"learning_rate": 0.5},
                ),
            ],
            measured_only=True,
        ),
        width=200,
    )
    lines = [line for line in text.splitlines() if "table" in line]
    assert len(lines) == 2
    assert "0.94 %" in lines[0]
    assert "5.00 %" in lines[0]
    assert "464.39 bits" in lines[1]
    assert "400.00 bits" in lines[1]
    assert "not run" not in text
    assert "3 epochs; seed 0" in text
    assert "3 epochs, learning_rate 0.5; seed 0" in text


def test_a_calibrated_measurement_is_told_apart(result):
    results = [
        dataclasses.replace(
            result,
            recipe=dataclasses.asdict(ROWS[result.row].trained(calibrated))
            | {"learning_rate": 0.5},
        )
        for calibrated in (False, True)
    ]
    text = printed(paper_table(results, measured_only=True), width=200)
    assert text.count("5.00 %") == 2
    assert "3 epochs, learning_rate 0.5; seed 0" in text
    assert "3 epochs, learning_rate 0.5, beta calibrated; seed 0" in text
    assert "True" not in text
    assert "False" not in text


def test_paper_table(result):
    results = [
        dataclasses.replace(result, activation="tanh", test=3.0),
        dataclasses.replace(result, seed=1, activation="tanh", test=5.0),
        dataclasses.replace(result, width=0.25),
        dataclasses.replace(
            result,
            row="table2/inverted/standard",
            width=0.25,
            recipe=dataclasses.asdict(ROWS["table2/inverted/standard"].recipe),
        ),
    ]
    text = printed(paper_table(results), width=200)
    lines = text.splitlines()

    def cells(line):
        return [cell.strip() for cell in line.strip("│").split("│")]

    at = next(
        i
        for i, line in enumerate(lines)
        if "table2/inverted/invariant " in line
    )
    assert cells(lines[at]) == [
        "table2/inverted/invariant",
        "0.94 %",
        "4.00 ± 12.71 %",
        "2",
    ]
    # Equal notes are printed once.
    assert cells(lines[at + 1]) == ["", "", "5.00 %", "1"]
    (standard,) = (line for line in lines if "inverted/standard" in line)
    assert cells(standard)[2:] == ["5.00 %", "1"]
    assert [line for line in lines if line[:2] in ("1.", "2.")] == [
        "1. here: 4,000 examples for training, 0 for validation, 1,000 for "
        "test; 3 epochs, width 0.25; seed 0; jax backend",
        "2. here: 4,000 examples for training, 0 for validation, 1,000 for "
        "test; 3 epochs, activation tanh; seeds 0, 1; jax backend",
    ]
    assert text.count("not run") == len(ROWS) - 2
    (mas,) = (line for line in lines if "table5/1/invariant" in line)
    assert "477.07 bits" in mas
    assert "784-1000-1000-10" in text


def test_other_data_are_not_compared_with_the_paper(result):
    others = [dataclasses.replace(result, dataset="pictures.npz"), result]
    text = printed(paper_table(others, measured_only=True), width=200)
    (line,) = (x for x in text.splitlines() if result.row in x)
    assert "0.94" not in line
    (line,) = (x for x in text.splitlines() if "0.94" in x)
    assert "5.00 %" in line


def test_ids_are_whole_on_a_narrow_screen(result):
    text = printed(paper_table([result]), width=80)
    for row in ROWS:
        assert row in text


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which the test sets."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_jobs_are_shown_in_one_table(result, clock):
    names = ("first", "second", "third", "fourth")
    table = ProgressTable(dict.fromkeys(names, 10), dict.fromkeys(names, "%"))

    def cells():
        text = printed(table._table(), width=100)
        lines = [line for line in text.splitlines() if "\u2502" in line]
        return text, [
            [cell.strip() for cell in line.strip("\u2502").split("\u2502")]
            for line in lines
        ]

    table.epoch("second", 1, 9.5)
    table.epoch("third", 3, None)
    clock[0] = 60.0
    table.epoch("second", 3, 4.25)
    text, rows = cells()
    assert "0 of 4 trainings done" in text
    # Those at work come first. Thirty seconds an epoch, and seven are left.
    assert rows == [
        ["second", "3/10", "4.25 %", "0:03:30"],
        ["third", "3/10", "", ""],
        ["first", "waiting", "", ""],
        ["fourth", "waiting", "", ""],
    ]
    # A new process went back to the backup of the training.
    table.epoch("second", 2, 5.0)
    table.ended("third", result)
    table.failed("fourth", ValueError("diverged"))
    text, rows = cells()
    assert "2 of 4 trainings done" in text
    assert rows == [
        ["second", "2/10", "5.00 %", ""],
        ["first", "waiting", "", ""],
    ]
    assert table.results == {"third": result}
    assert table.failures == {"fourth": "diverged"}
    # The second training exceeds the expected number of epochs.
    table.epoch("second", 12, None)
    assert cells()[1][0] == ["second", "12/12", "0:00:00"]


def test_without_validation_the_table_has_no_column_for_it(clock):
    table = ProgressTable({"first": 10, "second": 10}, {})
    table.epoch("first", 1, None)
    clock[0] = 60.0
    table.epoch("first", 2, None)
    text = printed(table._table(), width=60)
    assert "validation" not in text
    assert "time left" in text
    assert "0:08:00" in text


def test_lines_where_there_is_no_terminal(result, clock, capsys):
    """A line at the start, then one per epoch, at most every five seconds."""
    with ProgressTable({"first": 90}, {"first": "%"}) as table:
        table.began("first")
        for done in range(1, 10):
            clock[0] = 60 + 2.0 * done
            table.epoch("first", done, 4.0 + done / 4)
        clock[0] = 100.0
        table.epoch("first", 10, None)
        # A new process went back to the backup of the training.
        table.began("first")
        table.epoch("first", 9, 5.0)
        table.failed("first", ValueError("pip install '.[jax]' :warning:"))
    assert capsys.readouterr().err.splitlines() == [
        "first: loading the data, compiling the network",
        # The time of the first epoch, with the compilation, does not count.
        "first: epoch 1 of 90, validation 4.25 %",
        "first: epoch 4 of 90, validation 5.00 %, 0:02:52 left",
        "first: epoch 7 of 90, validation 5.75 %, 0:02:46 left",
        "first: epoch 10 of 90, 0:05:38 left",
        "first: loading the data, compiling the network",
        "first: epoch 9 of 90, validation 5.00 %",
        # Text that looks like markup is printed as it is.
        "failed: first: pip install '.[jax]' :warning:",
    ]


def test_a_terminal_has_the_table_alone(result, clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were one
    with ProgressTable({"first": 90}, {"first": "%"}) as table:
        table.began("first")
        assert table._cells("first") == ("compiling", "", "")
        table.epoch("first", 1, 4.0)
    shown = capsys.readouterr().err
    assert "0 of 1 trainings done" in shown
    assert "loading" not in shown
    assert "epoch 1 of" not in shown


def test_what_has_ended_is_said(result, capsys):
    with ProgressTable({"first": 3, "second": 3}, {"first": "%"}) as table:
        table.epoch("first", 1, 3.0)
        table.ended("first", dataclasses.replace(result, validation=4.5))
        table.failed("second", ValueError("diverged"))
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == [
        "done: first: validation 4.50 %, test 5.00 %",
        "failed: second: diverged",
    ]
