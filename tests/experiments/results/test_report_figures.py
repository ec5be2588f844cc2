import dataclasses
import os
import shutil
from pathlib import Path

import keras
import matplotlib.image
import pytest
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications import recipes
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import report
from keras_invdrop.experiments.results import report_figures
from keras_invdrop.experiments.results.records import read_result
from keras_invdrop.experiments.results.records import results_in
from keras_invdrop.experiments.results.records import write_result

# How the results of the fixture were trained, in the titles of the figures.
TRAINED = "3 epochs, settings selected for each method"
NETWORK = "784-1000-10, inverted encoding"


def add(path, like, **changes):
    """Stores a changed result, with the history of the original, `like`."""
    write_result(path, dataclasses.replace(read_result(like), **changes))
    shutil.copy(like.with_suffix(".csv"), path.with_suffix(".csv"))


def test_without_models_the_curves_are_drawn(on_digits, lines_with_figures):
    lines = lines_with_figures(on_digits)
    name = "table2-inverted"
    title = f"Figure 1, 5,000 digits, 4,000 training examples, {NETWORK}"
    assert f"![{title}: {TRAINED}](figure1-{name}.png)" in lines
    (picture,) = on_digits.glob("*.png")
    assert picture.name == f"figure1-{name}.png"
    # Two panels, of the curves and the mean image.
    assert matplotlib.image.imread(picture).shape[:2] == (462, 1100)
    assert not list(on_digits.glob(".*"))


def test_with_a_model_both_figures_are_drawn(on_digits, lines_with_figures):
    model = mnist_mlp(dropout="invariant", width=0.01)
    betas = [layer for layer in model.layers if "dropout" in layer.name]
    for layer in betas:
        shape = layer.beta.shape
        layer.beta.assign(keras.random.normal(shape, seed=0))
    model.save(on_digits / "invariant-0.keras")
    lines = lines_with_figures(on_digits)
    name = "table2-inverted"
    title = f"Figure 2, 5,000 digits, 4,000 training examples, {NETWORK}"
    assert f"![{title}: {TRAINED}](figure2-{name}.png)" in lines
    assert sorted(path.name for path in on_digits.glob("*.png")) == [
        f"figure1-{name}.png",
        f"figure2-{name}.png",
    ]


def test_a_damaged_model_is_named(on_digits, lines_with_figures):
    saved = on_digits / "invariant-0.keras"
    mnist_mlp(dropout="invariant", width=0.01).save(saved)
    saved.write_bytes(saved.read_bytes()[:-100])
    lines = lines_with_figures(on_digits)
    (line,) = (line for line in lines if line.startswith("Not drawn"))
    start = (
        f"Not drawn, table2-inverted: Keras cannot load the model in {saved}"
    )
    assert line.startswith(start)
    assert not list(on_digits.glob("*.png"))


def test_each_experiment_has_a_figure_of_its_own(on_digits, lines_with_figures):
    changes = {"activation": "tanh"}, {"backend": "torch"}, {"width": 0.5}
    like = on_digits / "standard-0.json"
    for i, change in enumerate(changes):
        add(on_digits / f"other-{i}.json", like, **change)
    lines_with_figures(on_digits)
    assert len(list(on_digits.glob("figure1-*.png"))) == 4


def test_settings_of_one_method_are_compared(on_digits, lines_with_figures):
    directory = on_digits / "settings"
    directory.mkdir()
    like = on_digits / "invariant-0.json"
    changes = {"input_rate": 0.15}, {}, {"warm_up": 0.3, "max_norm": 7.0}
    for i, change in enumerate(changes):
        recipe = dataclasses.asdict(recipes.DEMO) | change
        add(directory / f"{i}.json", like, recipe=recipe)
    lines_with_figures(on_digits)
    assert {path.name for path in on_digits.glob("*.png")} == {
        "figure1-table2-inverted.png",
        "figure1-settings-table2-inverted.png",
    }
    curves = report_figures.histories(results_in(directory))
    assert {label: len(runs) for label, runs in curves.items()} == {
        f"epochs {read_result(like).epochs}": 1,
        "input_rate 0.15": 1,
        "warm_up 0.3 and max_norm 7.0": 1,
    }


def test_settings_that_are_not_the_recipe_are_all_named(on_digits):
    """With their own colours: a comma would separate labels of one colour."""
    directory = on_digits / "settings"
    directory.mkdir()
    like = on_digits / "invariant-0.json"
    for i, rates in enumerate([(0.1, 0.3), (0.1, 0.5), (0.1, 0.7)]):
        recipe = dataclasses.asdict(recipes.DEMO) | {"hidden_rate": rates}
        add(directory / f"{i}.json", like, recipe=recipe)
    assert set(report_figures.histories(results_in(directory))) == {
        "hidden_rate (0.1/0.3)",
        "hidden_rate (0.1/0.5)",
        "hidden_rate (0.1/0.7)",
    }


def test_figures_of_other_conditions_have_other_captions(
    on_digits, lines_with_figures
):
    like = on_digits / "standard-0.json"
    decay = {"recipe": read_result(like).recipe | {"beta_decay": 0.1}}
    for i, change in enumerate([{"activation": "tanh"}, {"width": 0.5}, decay]):
        add(on_digits / f"other-{i}.json", like, **change)
    captions = "\n".join(lines_with_figures(on_digits))
    for condition in ("", ", tanh units", ", width 0.5", ", beta_decay 0.1"):
        assert f"{NETWORK}{condition}: {TRAINED}" in captions


def test_recipes_that_no_search_selected_are_not_called_selected(
    on_digits, lines_with_figures
):
    row = ROWS["table6/cifar10/standard"]
    assert row.selection is None
    changes = {"row": row.id, "recipe": dataclasses.asdict(row.recipe)}
    like = on_digits / "standard-0.json"
    add(on_digits / "maxout-0.json", like, **changes)
    (line,) = (
        line
        for line in lines_with_figures(on_digits)
        if "(errors-table6-cifar10.png)" in line
    )
    assert ": 3 epochs, settings of each row's recipe](" in line


def test_other_images_have_the_curves(on_digits, lines_with_figures):
    of_images = {"row": "table3/relu/standard", "network": "ReLU CNN"}
    like = on_digits / "standard-0.json"
    add(on_digits / "relu-0.json", like, **of_images)
    lines = lines_with_figures(on_digits)
    title = "Errors by epoch, 5,000 digits, 4,000 training examples, ReLU CNN"
    trained = "3 epochs, learning rate 0.002, maximum norm (None, 4.5, 4.5)"
    assert f"![{title}: {trained}](errors-table3-relu.png)" in lines
    # Table 2 keeps its own numbers.
    assert {path.name for path in on_digits.glob("*.png")} == {
        "errors-table3-relu.png",
        "figure1-table2-inverted.png",
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weight_decay": 5e-4}, ", weight decay 0.0005]("),
        ({"weight_decay": 5e-4, "beta_factor": 0.0}, " 0.0005, frozen beta]("),
    ],
)
def test_a_weight_decay_and_a_frozen_beta_are_named(
    on_digits, lines_with_figures, changes, named
):
    like = on_digits / "standard-0.json"
    of_images = {"row": "table3/relu/standard", "network": "ReLU CNN"}
    of_images["recipe"] = read_result(like).recipe | changes
    add(on_digits / "relu-0.json", like, **of_images)
    (line,) = (
        line
        for line in lines_with_figures(on_digits)
        if "(errors-table3-relu.png)" in line
    )
    assert named in line


def test_own_images_in_rows_of_digits_have_the_curves(
    on_digits, lines_with_figures
):
    for path in on_digits.glob("*.json"):
        found = read_result(path)
        write_result(path, dataclasses.replace(found, dataset="pictures.npz"))
    lines = lines_with_figures(on_digits)
    title = f"Errors by epoch, pictures.npz, 4,000 training examples, {NETWORK}"
    assert f"![{title}: {TRAINED}](errors-table2-inverted.png)" in lines


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
