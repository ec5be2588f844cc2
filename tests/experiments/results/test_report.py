import dataclasses
from pathlib import Path

import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import report
from keras_invdrop.experiments.results import report_figures
from keras_invdrop.experiments.results.records import read_result
from keras_invdrop.experiments.results.records import stored as stored_results
from keras_invdrop.experiments.results.records import write_result

# The settings of both rows, as the report shows them beside the difference.
SETTINGS = (
    "learning_rate 0.039, max_norm 1.0, initial_stddev (0.01, 0.01, 0.0), "
    "input_rate 0.25, hidden_rate 0.4 / learning_rate 0.002, "
    "max_norm (None, 4.5, 4.5), initial_stddev None, input_rate 0.1, "
    "hidden_rate 0.5"
)


def lines_of(directory):
    """The report without its figures."""
    return report.text(stored_results(directory).values()).splitlines()


def test_printed_and_measured_stand_side_by_side(stored):
    lines = lines_of(stored)
    for line in (
        # Student's t with 1 degree of freedom: 12.706; s / sqrt(2) = 0.5.
        "| `table2/inverted/standard` | *1.32* | 5.50 ± 6.35 | 2 | "
        "3 epochs, jax | 1 |",
        "| `table2/inverted/invariant` | *0.94* | 4.55 ± 6.99 | 2 | "
        "3 epochs, jax | 1 |",
        "**Not run**",
        "| `table3/relu/invariant` | *11.70* |",
        "1. here: 4,000 examples for training, 0 for validation, 1,000 for "
        "test; 3 epochs; seeds 0, 1; jax backend",
        "| Invariant dropout makes fewer errors than standard dropout, "
        "inverted encoding | Table 2 | 0.95 ± 0.64 points |  | 0.033 | 0.033 | "
        f"2 | 3 epochs, jax | {SETTINGS} | holds |",
    ):
        assert line in lines
    until = lines.index("### Settings that were selected")
    rows = [line for line in lines[:until] if line.startswith("| `table")]
    assert len(rows) == len(ROWS)
    for number in range(2, 7):
        assert any(line.startswith(f"### Table {number}: ") for line in lines)


def test_selected_settings_are_listed(stored):
    lines = lines_of(stored)
    start = lines.index("### Settings that were selected")
    head, _, standard, invariant, end = lines[start + 4 : start + 9]
    assert head == (
        "| row | learning_rate | max_norm | initial_stddev | input_rate | "
        "hidden_rate | search |"
    )
    search = "12 trials of 30 epochs, then 2 trials of 90 epochs"
    assert standard == (
        "| `table2/inverted/standard` | 0.002 | (None, 4.5, 4.5) | None | 0.1 "
        f"| 0.5 | {search} |"
    )
    assert invariant == (
        "| `table2/inverted/invariant` | 0.039 | 1.0 | (0.01, 0.01, 0.0) | "
        f"0.25 | 0.4 | {search} |"
    )
    assert not end


def test_without_the_data_the_tables_are_written(
    stored, monkeypatch, lines_with_figures
):
    def load(*arguments):
        raise OSError("could not be downloaded")

    monkeypatch.setattr(report_figures, "load", load)
    lines = lines_with_figures(stored)
    assert "Not drawn, table2-inverted: could not be downloaded" in lines
    assert not list(stored.glob("*.png"))


def test_a_single_pair_decides_nothing(stored):
    for path in stored.glob("*-1.json"):
        path.unlink()
    (line,) = (
        line
        for line in lines_of(stored)
        if "fewer errors than standard" in line
    )
    assert line.endswith(
        "| Table 2 | 1.00 points |  |  |  | 1 | 3 epochs, jax | "
        f"{SETTINGS} | undecided |"
    )


def test_each_data_set_has_tables_of_its_own(stored, result):
    """The paper's figures stand only beside measurements on the same data."""
    for seed in (0, 1):
        path = stored / f"standard-{seed}.json"
        larger = dataclasses.replace(read_result(path), training_examples=9000)
        write_result(stored / f"larger-{seed}.json", larger)
        digits = dataclasses.replace(read_result(path), dataset="digits")
        write_result(stored / f"digits-{seed}.json", digits)
    lines = lines_of(stored)
    titles = [line for line in lines if line.endswith("training examples**")]
    assert titles == [
        "**MNIST, 9,000 training examples**",
        "**5,000 digits, 4,000 training examples**",
        "**MNIST, 4,000 training examples**",
        "**MNIST, 4,000 training examples**",  # the claims
    ]
    start = lines.index(titles[0])
    assert "*1.32*" in lines[start + 4]
    start = lines.index(titles[1])
    assert lines[start + 2] == "| row | measured | seeds | on | note |"
    assert lines[start + 4].startswith("| `table2/inverted/standard` | 5.50 ±")


def test_what_the_paper_did_not_train_has_none_of_its_figures(stored):
    path = stored / "invariant-0.json"
    found = read_result(path)
    recipe = dataclasses.asdict(ROWS[found.row].trained(calibrated=True))
    for name, changes in {
        "calibrated": {"recipe": recipe},
        "tanh": {"activation": "tanh"},
        "narrow": {"width": 0.5},
    }.items():
        write_result(
            stored / f"{name}-0.json", dataclasses.replace(found, **changes)
        )
    lines = lines_of(stored)
    lines = lines[: lines.index("### Settings that were selected")]
    paper = {}
    for line in lines:
        if line.startswith("| `table2/inverted/invariant` | "):
            cells = [cell.strip() for cell in line.split("|")]
            paper[cells[5]] = cells[2]
    assert paper == {
        "3 epochs, jax": "*0.94*",
        "3 epochs, beta calibrated, jax": "",
        "3 epochs, activation tanh, jax": "",
        "3 epochs, width 0.5, jax": "*0.94* (full width)",
    }


def test_claims_on_other_data_are_not_the_papers(stored):
    for path in stored.glob("*.json"):
        found = read_result(path)
        write_result(path, dataclasses.replace(found, dataset="pictures.npz"))
    (line,) = (
        line
        for line in lines_of(stored)
        if "fewer errors than standard" in line
    )
    assert "| as in Table 2 | " in line


def test_recipes_without_a_search_are_marked(stored, monkeypatch):
    for name in ("table2/inverted/standard", "table2/inverted/invariant"):
        monkeypatch.setitem(
            ROWS, name, dataclasses.replace(ROWS[name], selection=None)
        )
    (line,) = (
        line
        for line in lines_of(stored)
        if "fewer errors than standard" in line
    )
    assert line.count("(no search of its own)") == 2
    assert "unlike searches" not in line


@pytest.mark.one_backend
def test_the_report_is_that_of_the_committed_results():
    committed = Path(__file__).parents[3] / "results"
    text = report.text(stored_results(committed).values())
    found = (committed / "report.md").read_text()
    assert found.startswith(f"{text}\n\n### Figures\n")


def test_no_results(tmp_path):
    with pytest.raises(OSError, match="no results in .*keras-invdrop reprod"):
        report.write_report(tmp_path)
    assert not list(tmp_path.iterdir())
