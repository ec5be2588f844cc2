import csv
import dataclasses

import keras
import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications import training
from keras_invdrop.applications.datasets import Split
from keras_invdrop.applications.recipes import Recipe

RECIPE = Recipe(
    epochs=4, batch_size=10, learning_rate=0.05, momentum=0.9, max_norm=2.0
)


def train(dataset, dropout="invariant", recipe=RECIPE, seed=0, **options):
    options.setdefault("test_curve", True)
    return training.train_mnist(
        dataset, dropout, recipe, seed, hidden_units=(32, 24), **options
    )


@pytest.mark.parametrize("dropout", METHODS)
def test_every_method_learns(blobs, dropout):
    recipe = dataclasses.replace(RECIPE, epochs=40)
    run = train(blobs, dropout, recipe)
    # Chance is 67 % wrong.
    assert run.result.test_error < 20
    assert run.history.training_loss.iloc[-1] < run.history.training_loss[1]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_other_activations(blobs, activation):
    run = train(blobs, activation=activation)
    assert run.result.activation == activation
    assert run.model.get_layer("hidden_2").activation.__name__ == activation


def test_selects_the_first_of_the_best_validation_errors(blobs):
    run = train(blobs)
    errors = run.history.validation_error
    selected = run.result.selected_epoch
    assert errors[selected] == errors.min()
    assert (errors[: selected - 1] > errors.min()).all()
    assert run.result.validation_error == errors.min()
    # The model is the one of that epoch.
    assert run.result.test_error == run.history.test_error[selected]
    assert training.error_percent(run.model, blobs.test) == pytest.approx(
        run.result.test_error
    )


def test_the_curve_changes_nothing(blobs):
    with_curve, without = train(blobs), train(blobs, test_curve=False)
    assert "test_error" not in without.history
    for field in ("selected_epoch", "validation_error", "test_error"):
        assert getattr(with_curve.result, field) == getattr(
            without.result, field
        )


def test_without_a_curve_the_test_set_is_looked_at_once(blobs, monkeypatch):
    looks = []

    def count(model, split):
        looks.append(split is blobs.test)
        return 0.0

    monkeypatch.setattr(training, "error_percent", count)
    train(blobs, test_curve=False)
    assert looks == [True]


def test_validation_selects_and_test_does_not(blobs):
    # With labels of the test set shuffled the same epoch is selected.
    wrong = Split(blobs.test.x, (blobs.test.y + 1) % 3)
    altered = dataclasses.replace(blobs, test=wrong)
    one, other = train(blobs), train(altered)
    assert one.result.selected_epoch == other.result.selected_epoch
    for a, b in zip(
        one.model.get_weights(), other.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert one.result.test_error != other.result.test_error


def test_without_validation_the_last_epoch_counts(blobs):
    empty = Split(blobs.validation.x[:0], blobs.validation.y[:0])
    blobs = dataclasses.replace(blobs, validation=empty)
    run = train(blobs)
    assert train(blobs, test_curve=False).result.test_error == (
        run.result.test_error
    )
    assert "validation_error" not in run.history
    assert run.result.validation_error is None
    assert run.result.selected_epoch == 4
    assert run.result.test_error == run.history.test_error[4]


def test_same_seed_same_run(blobs):
    one, again, other = (train(blobs, seed=seed) for seed in (3, 3, 4))
    assert one.history.equals(again.history)
    assert not one.history.equals(other.history)


def test_max_norm_holds(blobs):
    run = train(blobs, recipe=dataclasses.replace(RECIPE, max_norm=0.3))
    for layer in run.model.layers:
        if isinstance(layer, keras.layers.Dense):
            norms = np.linalg.norm(
                keras.ops.convert_to_numpy(layer.kernel), axis=0
            )
            assert norms.max() < 0.3 + 1e-5


def test_result_says_how_to_repeat_it(blobs):
    result = train(blobs, "standard", seed=7).result
    assert result.dataset == "digits"
    assert result.source == "generated"
    assert (
        result.training_examples,
        result.validation_examples,
        result.test_examples,
    ) == (60, 12, 30)
    assert result.network == "784-32-24-10"
    assert (result.dropout, result.encoding, result.seed) == (
        "standard",
        "original",
        7,
    )
    assert result.epochs == 4
    assert result.backend == keras.backend.backend()
    assert result.versions["keras"] == keras.__version__
    assert result.recipe == dataclasses.asdict(RECIPE)
    assert result.seconds > 0


def test_progress_is_told(blobs):
    told = []
    train(blobs, on_epoch=told.append)
    assert told == [1, 2, 3, 4]


def test_saved_files(blobs, tmp_path):
    run = train(blobs)
    training.save(run, tmp_path / "out")
    name = "digits-original-relu-invariant-seed0"
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [f"{name}.csv", f"{name}.keras"]
    # The model needs no optimiser of ours, and returns probabilities.
    model = keras.saving.load_model(tmp_path / "out" / f"{name}.keras")
    outputs = model.predict(blobs.test.x, verbose=0)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
    wrong = np.mean(outputs.argmax(axis=1) != blobs.test.y)
    assert round(100 * float(wrong), 4) == run.result.test_error
    with open(tmp_path / "out" / f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["test_error"]) == run.history.test_error[4]
