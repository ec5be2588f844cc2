import dataclasses
import os
import shutil
from pathlib import Path

import keras
import matplotlib.image
import pandas as pd
import pytest
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import report
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


@pytest.fixture
def stored(result, tmp_path):
    """Results of two rows with two seeds, and their histories."""
    for method, test in (("standard", 5.0), ("invariant", 4.0)):
        row = ROWS[f"table2/inverted/{method}"]
        for seed in (0, 1):
            each = dataclasses.replace(
                result,
                row=row.id,
                dropout=method,
                encoding="inverted",
                seed=seed,
                test=test + seed * (1.1 if method == "invariant" else 1),
                validation=3.0,
                recipe=dataclasses.asdict(row.recipe),
            )
            path = tmp_path / f"{method}-{seed}.json"
            write_result(path, each)
            history = pd.DataFrame(
                {
                    "training_error": [9.0, 8.0, 7.0],
                    "validation_error": [6.0, 5.0, 3.0],
                },
                index=pd.RangeIndex(1, 4, name="epoch"),
            )
            history.to_csv(path.with_suffix(".csv"))
    return tmp_path


@pytest.fixture
def on_digits(stored):
    """The same results, of a data set that the figures can load."""
    for path in stored.glob("*.json"):
        found = read_result(path)
        write_result(path, dataclasses.replace(found, dataset="digits"))
    return stored


def lines_of(directory):
    """The report without its figures."""
    return report.text(stored_results(directory).values()).splitlines()


def lines_with_figures(directory):
    path = report.write_report(directory)
    assert path == directory / "report.md"
    return path.read_text().splitlines()


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


def test_without_models_the_curves_are_drawn(on_digits):
    lines = lines_with_figures(on_digits)
    name = "table2-inverted"
    title = "Figure 1, 5,000 digits, 4,000 training examples, inverted encoding"
    assert f"![{title}](figure1-{name}.png)" in lines
    (picture,) = on_digits.glob("*.png")
    assert picture.name == f"figure1-{name}.png"
    # Two panels, of the curves and the mean image.
    assert matplotlib.image.imread(picture).shape[:2] == (462, 1100)
    assert not list(on_digits.glob(".*"))


def test_with_a_model_both_figures_are_drawn(on_digits):
    model = mnist_mlp(dropout="invariant", width=0.01)
    betas = [layer for layer in model.layers if "dropout" in layer.name]
    for layer in betas:
        shape = layer.beta.shape
        layer.beta.assign(keras.random.normal(shape, seed=0))
    model.save(on_digits / "invariant-0.keras")
    lines = lines_with_figures(on_digits)
    name = "table2-inverted"
    title = "Figure 2, 5,000 digits, 4,000 training examples, inverted encoding"
    assert f"![{title}](figure2-{name}.png)" in lines
    assert sorted(path.name for path in on_digits.glob("*.png")) == [
        f"figure1-{name}.png",
        f"figure2-{name}.png",
    ]


def test_each_experiment_has_a_figure_of_its_own(on_digits):
    changes = {"activation": "tanh"}, {"backend": "torch"}, {"width": 0.5}
    for i, change in enumerate(changes):
        found = read_result(on_digits / "standard-0.json")
        write_result(
            on_digits / f"other-{i}.json", dataclasses.replace(found, **change)
        )
        shutil.copy(on_digits / "standard-0.csv", on_digits / f"other-{i}.csv")
    lines_with_figures(on_digits)
    assert len(list(on_digits.glob("figure1-*.png"))) == 4


def test_other_images_have_the_curves(on_digits):
    found = read_result(on_digits / "standard-0.json")
    of_images = {"row": "table3/relu/standard", "network": "ReLU CNN"}
    write_result(
        on_digits / "relu-0.json", dataclasses.replace(found, **of_images)
    )
    shutil.copy(on_digits / "standard-0.csv", on_digits / "relu-0.csv")
    lines = lines_with_figures(on_digits)
    title = "Errors by epoch, 5,000 digits, 4,000 training examples"
    assert f"![{title}](errors-table3-relu.png)" in lines
    # Table 2 keeps its own numbers.
    assert {path.name for path in on_digits.glob("*.png")} == {
        "errors-table3-relu.png",
        "figure1-table2-inverted.png",
    }


def test_without_the_data_the_tables_are_written(stored, monkeypatch):
    def load(*arguments):
        raise OSError("could not be downloaded")

    monkeypatch.setattr(report, "load", load)
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


def test_the_summary_takes_its_place_in_a_file(stored, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = report.MARKS
    readme.write_text(f"# Mine\n\n{begin}\nstale\n{end}\n\nAlso mine\n")
    report.write_summary(stored, readme)
    text = readme.read_text()
    assert text == (
        f"# Mine\n\n{begin}\n\n"
        "| test error (%) | MNIST, inverted | *paper* |\n"
        "| --- | --- | --- |\n"
        "| standard dropout | 5.50 ± 6.35 (2 seeds) <sup>a</sup> | *1.32* |\n"
        "| invariant dropout, beta from 0 | 4.55 ± 6.99 (2 seeds) <sup>a</sup> "
        "| *0.94* |\n\n"
        "<sup>a</sup> here: 4,000 examples for training, 0 for validation, "
        "1,000 for test; 3 epochs; jax backend"
        f"\n\n{end}\n\nAlso mine\n"
    )
    # Writing the report again gives the same file.
    report.write_summary(stored, readme)
    assert readme.read_text() == text


def test_the_summary_has_the_largest_measurement_of_each_row(result):
    """Largest by examples, then epochs, then seeds; calibrated separately."""
    small = dataclasses.replace(result, row="table3/relu/invariant")
    large = dataclasses.replace(
        small, dataset="cifar10", training_examples=40_000, width=0.25
    )
    longer = dataclasses.replace(large, epochs=9, test=2.0)
    calibrated = dataclasses.replace(
        large, recipe={**result.recipe, "calibrated": True}, test=1.0
    )
    bits = dataclasses.replace(result, row="table5/1/standard", test=0.5)
    table, notes = report.summary([longer, small, calibrated, large, bits])
    assert table.splitlines() == [
        "| test error (%) | CIFAR-10, width 0.25 | *paper, full width* |",
        "| --- | --- | --- |",
        "| invariant dropout, beta from 0 | 2.00 (1 seed) <sup>a</sup> | "
        "*11.70* |",
        "| invariant dropout, calibrated | 1.00 (1 seed) <sup>b</sup> |  |",
    ]
    first, second = notes.splitlines()
    assert first.startswith("<sup>a</sup> ") and ": 40,000 examples" in first
    assert "; 9 epochs" in first
    assert "; 3 epochs" in second
    # The line of the table says that beta is calibrated.
    assert "calibrated" not in second
    # The figures of Table 5 are not errors.
    assert report.summary([bits]) == []


def test_the_summary_says_what_was_not_run(result):
    both = [
        dataclasses.replace(result, row="table2/inverted/standard"),
        dataclasses.replace(result, row="table2/original/invariant"),
    ]
    table, _ = report.summary(both)
    assert table.splitlines()[2:] == [
        "| standard dropout | not run | *1.01* | 5.00 (1 seed) <sup>b</sup> | "
        "*1.32* |",
        "| invariant dropout, beta from 0 | 5.00 (1 seed) <sup>a</sup> | "
        "*0.91* | not run | *0.94* |",
    ]


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


@pytest.mark.parametrize("text", ["", report.MARKS[0], report.MARKS[1]])
def test_a_file_without_a_place_for_it(stored, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="README.md has no place for the res"):
        report.write_summary(stored, readme)
    assert readme.read_text() == text


def test_the_readme_is_that_of_the_committed_results(tmp_path):
    root = Path(__file__).parents[3]
    readme = tmp_path / "README.md"
    shutil.copy(root / "README.md", readme)
    report.write_summary(root / "results", readme)
    assert readme.read_text() == (root / "README.md").read_text()


@pytest.mark.one_backend
def test_the_report_is_that_of_the_committed_results():
    committed = Path(__file__).parents[3] / "results"
    text = report.text(stored_results(committed).values())
    found = (committed / "report.md").read_text()
    assert found.startswith(f"{text}\n\n### Figures\n")


@pytest.mark.thorough
@pytest.mark.one_backend
def test_the_pictures_are_those_of_the_committed_results(tmp_path):
    committed = Path(__file__).parents[3] / "results"
    shutil.copytree(
        committed,
        tmp_path,
        copy_function=os.link,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.png", "*.md", "*.log"),
    )
    text = report.write_report(tmp_path).read_text()
    drawn = {path.name for path in tmp_path.glob("*.png")}
    for name in drawn:
        # Other versions of the fonts move edges by a pixel.
        one, other = (
            matplotlib.image.imread(directory / name)
            for directory in (committed, tmp_path)
        )
        assert one.shape == other.shape, name
        assert abs(one - other).mean() < 0.01, name
    if "Not drawn" not in text:  # with full MNIST
        assert text == (committed / "report.md").read_text()
        assert drawn == {path.name for path in committed.glob("*.png")}


def test_no_results(tmp_path):
    with pytest.raises(OSError, match="no results in .*keras-invdrop reprod"):
        report.write_report(tmp_path)
    assert not list(tmp_path.iterdir())
