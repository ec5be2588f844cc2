import keras
import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications.metrics import CodeQuality
from keras_invdrop.applications.splicing import generate_splicing
from keras_invdrop.applications.splicing import partition_of
from keras_invdrop.applications.tables import ROWS
from keras_invdrop.applications.task import Task
from keras_invdrop.applications.task import build

IMAGES, EXONS = "table2/original/standard", "table5/1/standard"


@pytest.fixture(scope="module")
def exons():
    return partition_of(generate_splicing(exons=30, features=20, tissues=2), 1)


def initial_weights(row, dataset, seed=0):
    """Of the layers with weights of their own, by name."""
    task = Task(ROWS[row], dataset, seed, 0.03)
    return {
        layer.name: layer.get_weights()
        for layer in task.model().layers
        if layer.weights and "dropout" not in layer.name
    }


def test_all_methods_start_from_the_same_weights(blobs, exons):
    for dataset, rows in (
        (blobs, [f"table2/original/{method}" for method in METHODS]),
        (exons, [f"table5/1/{m}" for m in ("none", "standard", "invariant")]),
    ):
        rows = [row for row in rows if row in ROWS]
        first = initial_weights(rows[0], dataset)
        assert set(first) >= {"hidden_1", "classifier"}
        for row in rows[1:]:
            for name, weights in initial_weights(row, dataset).items():
                for a, b in zip(weights, first[name], strict=True):
                    np.testing.assert_array_equal(a, b)
        other = initial_weights(rows[0], dataset, seed=1)
        assert np.any(other["hidden_1"][0] != first["hidden_1"][0])


def test_the_network_fits_the_data(blobs, exons):
    model = Task(ROWS[IMAGES], blobs, 0, 0.03).network("softmax")
    assert model.input_shape == (None, 784)
    model = Task(ROWS[EXONS], exons, 0, 0.03).network("softmax")
    assert model.input_shape == (None, 20)
    assert model.output_shape == (None, 2, 3)
    # The model to train returns logits.
    model = Task(ROWS[EXONS], exons, 0, 0.03).model()
    assert model.layers[-1].activation is keras.activations.linear


def test_build_takes_rates_norms_and_priors_from_the_recipe():
    row = ROWS["table6/cifar10/invariant"]
    model = build(row, 1 / 16, None)
    assert model.get_layer("input_dropout").rate == 0.2
    assert model.get_layer("hidden_1_dropout").rate == 0.5
    convolution = model.get_layer("convolution_1").conv
    assert convolution.kernel_constraint.max_value == 0.9
    with pytest.raises(ValueError, match="`activation`. Expected None for 'M"):
        build(row, 1 / 16, "tanh")
    tanh = build(ROWS[EXONS], 0.01, "tanh")
    assert tanh.get_layer("hidden_1").activation is keras.activations.tanh


def test_figures_are_in_the_unit_of_the_row(blobs, exons):
    task = Task(ROWS[IMAGES], blobs, 0)
    assert task.measure == "error"
    accuracy = np.float32(0.982)
    assert task.figures([accuracy, 1.0]).tolist() == [1.8, 0.0]
    task = Task(ROWS[EXONS], exons, 0)
    assert task.measure == "bits"
    assert task.figures([-3.25]).tolist() == [-3.25]


def test_the_naive_guess_is_the_mean_of_the_training_targets(exons):
    metric = Task(ROWS[EXONS], exons, 0).metric(from_logits=False)
    assert isinstance(metric, CodeQuality)
    np.testing.assert_allclose(
        metric.naive_guess, exons.train.y.mean(axis=0), rtol=1e-6
    )
