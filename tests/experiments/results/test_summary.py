import dataclasses
import shutil
from pathlib import Path

import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import summary


def test_the_summary_takes_its_place_in_a_file(stored, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = summary.MARKS
    readme.write_text(f"# Mine\n\n{begin}\nstale\n{end}\n\nAlso mine\n")
    summary.write_summary(stored, readme)
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
    summary.write_summary(stored, readme)
    assert readme.read_text() == text


def test_the_summary_has_the_largest_measurement_of_each_row(result):
    """Largest by examples, then seeds, then epochs; calibrated separately."""
    small = dataclasses.replace(result, row="table3/relu/invariant")
    large = dataclasses.replace(
        small, dataset="cifar10", training_examples=40_000, width=0.25
    )
    longer = dataclasses.replace(large, epochs=9, test=2.0)
    calibrated = dataclasses.replace(
        large, recipe={**result.recipe, "calibrated": True}, test=1.0
    )
    again = dataclasses.replace(calibrated, seed=1, test=1.5)
    once = dataclasses.replace(calibrated, epochs=9)
    bits = dataclasses.replace(result, row="table5/1/standard", test=0.5)
    table, notes = summary.summary(
        [longer, small, once, calibrated, again, large, bits]
    )
    network = ROWS["table3/relu/invariant"].network.name
    assert table.splitlines() == [
        "| network | test error (%) | CIFAR-10, width 0.25 | "
        "*paper, full width* |",
        "| --- | --- | --- | --- |",
        f"| {network} | invariant dropout, beta from 0 | 2.00 (1 seed) "
        "<sup>a</sup> | *11.70* |",
        f"| {network} | invariant dropout, calibrated | 1.25 ± 3.18 (2 seeds) "
        "<sup>b</sup> |  |",
    ]
    first, second = notes.splitlines()
    assert first.startswith("<sup>a</sup> ") and ": 40,000 examples" in first
    assert "; 9 epochs" in first
    assert "; 3 epochs" in second
    # The line of the table says that beta is calibrated.
    assert "calibrated" not in second
    # The figures of Table 5 are not errors.
    assert summary.summary([bits]) == []


def test_the_summary_says_what_was_not_run(result):
    both = [
        dataclasses.replace(result, row="table2/inverted/standard"),
        dataclasses.replace(result, row="table2/original/invariant"),
    ]
    table, _ = summary.summary(both)
    assert table.splitlines()[2:] == [
        "| standard dropout | not run | *1.01* | 5.00 (1 seed) <sup>b</sup> | "
        "*1.32* |",
        "| invariant dropout, beta from 0 | 5.00 (1 seed) <sup>a</sup> | "
        "*0.91* | not run | *0.94* |",
    ]


def test_digits_and_images_have_tables_of_their_own(result):
    """A network for two data sets has one line per method, not two."""
    changes = {
        "table2/inverted/invariant": "mnist",
        "table3/dnn/standard": "cifar10",
        "table4/relu/standard": "svhn_cropped",
        "table3/relu/standard": "cifar10",
        "table6/svhn/invariant": "svhn_cropped",
    }
    digits, images, notes = summary.summary(
        dataclasses.replace(result, row=row, dataset=dataset)
        for row, dataset in changes.items()
    )
    assert digits.splitlines()[0] == (
        "| test error (%) | MNIST, inverted | *paper* |"
    )
    _, dnn, relu, _, maxout = (ROWS[row].network.name for row in changes)
    assert images.splitlines() == [
        "| network | test error (%) | CIFAR-10 | *paper* | SVHN | *paper* |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {dnn} | standard dropout | 5.00 (1 seed) <sup>b</sup> | *57.80* | "
        " |  |",
        f"| {relu} | standard dropout | 5.00 (1 seed) <sup>c</sup> | *12.30* | "
        "5.00 (1 seed) <sup>c</sup> | *2.80* |",
        f"| {maxout} | invariant dropout, beta from 0 |  |  | "
        "5.00 (1 seed) <sup>d</sup> | *2.33* |",
    ]
    assert len(notes.splitlines()) == 4


def test_other_data_than_the_papers_have_none_of_its_figures(result):
    own = dataclasses.replace(result, dataset="pictures.npz")
    table, _ = summary.summary(
        [own, dataclasses.replace(own, row="table2/original/standard")]
    )
    assert table.splitlines() == [
        "| test error (%) | pictures.npz, original | pictures.npz, inverted |",
        "| --- | --- | --- |",
        "| standard dropout | 5.00 (1 seed) <sup>a</sup> |  |",
        "| invariant dropout, beta from 0 |  | 5.00 (1 seed) <sup>b</sup> |",
    ]


def test_units_of_the_row_come_before_more_seeds_of_others(result):
    tanh = [
        dataclasses.replace(result, activation="tanh", seed=seed, test=9.0)
        for seed in (0, 1)
    ]
    table, _ = summary.summary([*tanh, result])
    assert "5.00 (1 seed)" in table


@pytest.mark.parametrize("text", ["", summary.MARKS[0], summary.MARKS[1]])
def test_a_file_without_a_place_for_it(stored, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="README.md has no place for the res"):
        summary.write_summary(stored, readme)
    assert readme.read_text() == text


def test_the_readme_is_that_of_the_committed_results(tmp_path):
    root = Path(__file__).parents[3]
    readme = tmp_path / "README.md"
    shutil.copy(root / "README.md", readme)
    summary.write_summary(root / "results", readme)
    assert readme.read_text() == (root / "README.md").read_text()
