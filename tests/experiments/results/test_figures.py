import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from keras import ops
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.experiments.results import figures


@pytest.fixture
def network():
    model = mnist_mlp("invariant", hidden_units=(7, 6))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name.endswith("_dropout"):
            layer.beta.assign(rng.normal(size=layer.beta.shape))
    return model


def test_figure_1(blobs, network):
    histories = {
        method: [
            pd.DataFrame({"training_error": [a, 3.0], "test_error": [b, 2.0]})
            for a, b in ((9.0, 8.0), (7.0, 6.0))
        ]
        for method in ("standard", "invariant")
    }
    figure = figures.figure_1(blobs, histories, network)
    curves, mean, beta = figure.axes[:3]
    assert {
        line.get_label(): list(line.get_ydata()) for line in curves.lines
    } == {
        f"{method}, {which}": values
        for method in histories
        for which, values in (("training", [8, 3]), ("test", [7, 2]))
    }
    assert "2 seeds" in curves.get_title()
    np.testing.assert_allclose(
        mean.images[0].get_array(),
        blobs.train.x.mean(axis=0).reshape(28, 28),
    )
    np.testing.assert_allclose(
        beta.images[0].get_array().ravel(),
        ops.convert_to_numpy(network.get_layer("input_dropout").beta),
    )
    assert "60 training, 12 validation and 30 test" in figure.get_suptitle()
    assert "original encoding" in figure.get_suptitle()
    plt.close(figure)


def test_figure_1_of_trainings_on_all_examples(blobs):
    history = pd.DataFrame({"training_error": [9.0, 3.0]})
    figure = figures.figure_1(blobs, {"invariant": [history]})
    (line,) = figure.axes[0].lines
    assert line.get_label() == "invariant, training"
    assert figure.axes[0].get_title().startswith("1 seed (")
    plt.close(figure)


def test_figure_1_of_methods_with_more_seeds_than_others(blobs):
    history = pd.DataFrame({"training_error": [9.0, 3.0]})
    histories = {"standard": [history] * 10, "invariant": [history] * 3}
    figure = figures.figure_1(blobs, histories)
    assert figure.axes[0].get_title().startswith("3 to 10 seeds (")
    plt.close(figure)


def test_error_curves():
    history = pd.DataFrame({"training_error": [9.0], "validation_error": [8.0]})
    figure = figures.error_curves("Images", {"standard": [history]})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == [
        "standard, training",
        "standard, validation",
    ]
    assert figure.get_suptitle() == "Images"
    plt.close(figure)


def test_figure_2(blobs, network):
    inverted = dataclasses.replace(blobs, encoding="inverted")
    figure = figures.figure_2([(blobs, network), (inverted, network)])
    assert len(figure.axes) == 6
    layers = ("input", "hidden_1", "hidden_2")
    for ax, name in zip(figure.axes[:3], layers, strict=True):
        mean, shift = ax.collections[0].get_offsets().T
        beta = network.get_layer(f"{name}_dropout").beta
        np.testing.assert_allclose(shift, ops.convert_to_numpy(beta))
        assert ax.get_title().startswith(name.replace("_", " "))
    hidden = network.get_layer("hidden_1")
    shifted = network.get_layer("input_dropout")(blobs.train.x)
    mean, _ = figure.axes[1].collections[0].get_offsets().T
    expected = ops.convert_to_numpy(hidden(shifted)).mean(axis=0)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert "original" in figure.axes[0].get_title()
    assert "inverted" in figure.axes[3].get_title()
    plt.close(figure)


def test_saved_figure_is_a_picture(tmp_path):
    figure, _ = plt.subplots()
    figures.save_figure(figure, tmp_path / "new" / "figure.png")
    picture = plt.imread(tmp_path / "new" / "figure.png")
    assert picture.shape[:2] == (528, 704)  # 6.4 x 4.8 inches at 110 dpi
    assert not plt.fignum_exists(figure.number)
