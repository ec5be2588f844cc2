import dataclasses
import io

from keras_invdrop.applications.console import results_table
from keras_invdrop.applications.console import training_progress
from rich.console import Console


def printed(results):
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table(results))
    return console.file.getvalue()


def test_table_has_a_row_for_each_method_and_encoding(result):
    text = printed(
        [
            result,
            dataclasses.replace(result, dropout="standard", test_error=7.0),
            dataclasses.replace(result, seed=1, test_error=6.0),
            dataclasses.replace(result, seed=2, test_error=7.0),
        ]
    )
    (invariant,) = (line for line in text.splitlines() if "invariant" in line)
    # Student's t with 2 degrees of freedom: 4.3027 / sqrt(3) = 2.48.
    for words in ("inverted", "6.00 ± 2.48", "0, 1, 2", "12"):
        assert words in invariant
    (standard,) = (line for line in text.splitlines() if "standard" in line)
    assert "7.00" in standard
    assert "±" not in standard


def test_table_says_what_was_measured(result):
    text = printed([result])
    for words in (
        "4,000",
        "1,000",
        "here",
        "784-1000-10 relu",
        "3 epochs",
        "jax",
        "95 %",
    ):
        assert words in text


def test_progress_counts_epochs(capsys):
    with training_progress(trainings=2, epochs=3) as training:
        for name in ("first", "second"):
            with training(name) as on_epoch:
                for done in (1, 2, 3):
                    on_epoch(done)
    shown = capsys.readouterr().err
    assert "done: first" in shown
    assert "done: second" in shown
    assert "6/6" in shown
