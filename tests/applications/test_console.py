import dataclasses
import io

from keras_invdrop.applications.console import paper_table
from keras_invdrop.applications.console import results_table
from keras_invdrop.applications.console import training_progress
from keras_invdrop.applications.tables import ROWS
from rich.console import Console


def printed(table, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_table_has_a_line_for_each_row_of_the_paper(result):
    other = dataclasses.replace(result, row="table2/inverted/standard")
    text = printed(
        results_table(
            [
                result,
                dataclasses.replace(other, test=7.0),
                dataclasses.replace(result, seed=1, test=6.0),
                dataclasses.replace(result, seed=2, test=7.0),
            ]
        )
    )
    (invariant,) = (line for line in text.splitlines() if "invariant" in line)
    # Student's t with 2 degrees of freedom: 4.3027 / sqrt(3) = 2.48.
    for words in ("table2/inverted", "6.00 ± 2.48", "0, 1, 2", "12"):
        assert words in invariant
    (standard,) = (line for line in text.splitlines() if "standard" in line)
    assert "7.00" in standard
    assert "±" not in standard


def test_table_says_what_was_measured(result):
    other = dataclasses.replace(result, test_examples=999, width=0.5)
    text = printed(results_table([other, result]))
    for words in (
        "4,000",
        "999 to 1,000",
        "here",
        "784-1000-10, width 0.5",
        "3 epochs",
        "jax",
        "95 %",
        "test error (%)",
    ):
        assert words in text
    bits = dataclasses.replace(result, unit="bits")
    assert "code quality (bits)" in printed(results_table([bits]))


def test_paper_table(result):
    results = [
        dataclasses.replace(result, activation="tanh", test=3.0),
        dataclasses.replace(result, seed=1, activation="tanh", test=5.0),
        dataclasses.replace(result, width=0.25),
        dataclasses.replace(result, row="table2/inverted/standard", width=0.25),
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
    # Measured alike, noted once.
    assert cells(lines[at + 1]) == ["", "", "5.00 %", "1"]
    (standard,) = (line for line in lines if "inverted/standard" in line)
    assert cells(standard)[2:] == ["5.00 %", "1"]
    assert [line for line in lines if line[:2] in ("1.", "2.")] == [
        "1. here: 4,000 examples for training, 0 for validation, 1,000 for "
        "test; 3 epochs, width 0.25; seed 0; jax backend",
        "2. here: 4,000 examples for training, 0 for validation, 1,000 for "
        "test; 3 epochs, tanh; seeds 0, 1; jax backend",
    ]
    assert text.count("not run") == len(ROWS) - 2
    (mas,) = (line for line in lines if "table5/1/invariant" in line)
    assert "477.07 bits" in mas
    assert "784-1000-1000-10" in text


def test_ids_are_whole_on_a_narrow_screen(result):
    text = printed(paper_table([result]), width=80)
    for row in ROWS:
        assert row in text


def test_progress_counts_epochs(capsys):
    with training_progress(trainings=2, epochs=3) as training:
        for name in ("first", "second"):
            with training(name) as on_epoch:
                # The fourth is of training anew.
                for done in (1, 2, 3, 4):
                    on_epoch(done)
    shown = capsys.readouterr().err
    assert "done: first" in shown
    assert "done: second" in shown
    assert "6/6" in shown
