import csv
import dataclasses

import keras
import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications.metrics import CodeQuality
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.records import read_result
from keras_invdrop.experiments.train import training
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.trial import Trial

# Selection, counting and reporting are plain Python, which one backend covers.
# The other backends still run the tests that a method learns, also from a
# stream, and learns the same from the same seed, as well as test_rows.py, which
# trains every layer, and test_callbacks.py.
thorough_elsewhere = pytest.mark.thorough_elsewhere

RECIPE = Recipe(
    epochs=4, batch_size=10, learning_rate=0.05, momentum=0.9, max_norm=2.0
)


def train(dataset, dropout="invariant", recipe=RECIPE, seed=0, **options):
    row = dataclasses.replace(
        ROWS["table2/original/invariant"], method=dropout, recipe=recipe
    )
    described = {
        name: options.pop(name)
        for name in {field.name for field in dataclasses.fields(Trial)}
        if name in options
    }
    described = {"width": 0.03, "test_curve": True, **described}
    trial = Trial(row, seed, **described)
    return training.train(trial, dataset, **options)


# One method stands for all on the other backends: test_rows.py trains each.
@pytest.mark.parametrize(
    "dropout",
    [
        pytest.param(
            method,
            marks=[] if method == "invariant" else pytest.mark.one_backend,
        )
        for method in METHODS
    ],
)
def test_every_method_learns(blobs, dropout):
    recipe = dataclasses.replace(RECIPE, epochs=8)
    run = train(blobs, dropout, recipe, test_curve=False)
    # By chance 67 % would be wrong.
    assert run.result.test < 20
    assert run.history.training_loss.iloc[-1] < run.history.training_loss[1]


@thorough_elsewhere
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_other_activations(blobs, activation):
    run = train(blobs, activation=activation)
    assert run.result.activation == activation
    assert run.model.get_layer("hidden_2").activation.__name__ == activation


@thorough_elsewhere
def test_selects_the_first_of_the_best_validation_errors(blobs):
    run = train(blobs)
    errors = run.history.validation_error
    selected = run.result.selected_epoch
    assert errors[selected] == errors.min()
    assert (errors[: selected - 1] > errors.min()).all()
    assert run.result.validation == errors.min()
    # The model has the weights of that epoch.
    assert run.result.test == run.history.test_error[selected]
    outputs = run.model.predict(blobs.test.x, verbose=0)
    wrong = outputs.argmax(axis=1) != blobs.test.y
    assert run.result.test == pytest.approx(100 * wrong.mean(), abs=1e-4)
    assert run.result.wrong_examples.tolist() == wrong.tolist()


@thorough_elsewhere
def test_the_curve_changes_nothing(blobs):
    with_curve, without = train(blobs), train(blobs, test_curve=False)
    assert "test_error" not in without.history
    for field in ("selected_epoch", "validation", "test"):
        assert getattr(with_curve.result, field) == getattr(
            without.result, field
        )


@thorough_elsewhere
def test_without_a_curve_the_test_set_is_looked_at_once(blobs, monkeypatch):
    looks = []

    def count(self, network):
        looks.append(network)
        return 0.0, None

    monkeypatch.setattr(Trainer, "test", count)
    run = train(blobs, test_curve=False)
    assert looks == [run.model]


@thorough_elsewhere
def test_only_validation_examples_select(blobs):
    # With shuffled test labels the same epoch is selected.
    wrong = Split(blobs.test.x, (blobs.test.y + 1) % 3)
    altered = dataclasses.replace(blobs, test=wrong)
    one, other = train(blobs), train(altered)
    assert one.result.selected_epoch == other.result.selected_epoch
    for a, b in zip(
        one.model.get_weights(), other.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert one.result.test != other.result.test


@thorough_elsewhere
def test_without_validation_the_last_epoch_counts(unvalidated):
    run = train(unvalidated)
    assert train(unvalidated, test_curve=False).result.test == run.result.test
    assert "validation_error" not in run.history
    assert run.result.validation is None
    assert run.result.selected_epoch == 4
    assert run.result.test == run.history.test_error[4]


def test_same_seed_same_run(blobs):
    recipe = dataclasses.replace(RECIPE, epochs=2)
    one, again, other = (
        train(blobs, recipe=recipe, seed=seed, test_curve=False)
        for seed in (3, 3, 4)
    )
    assert one.history.equals(again.history)
    assert not one.history.equals(other.history)


@thorough_elsewhere
def test_max_norm_holds(blobs):
    run = train(blobs, recipe=dataclasses.replace(RECIPE, max_norm=0.3))
    for layer in run.model.layers:
        if isinstance(layer, keras.layers.Dense):
            norms = np.linalg.norm(
                keras.ops.convert_to_numpy(layer.kernel), axis=0
            )
            assert norms.max() < 0.3 + 1e-5


@thorough_elsewhere
def test_a_result_records_how_to_repeat_it(blobs):
    result = train(blobs, "standard", seed=7).result
    assert result.dataset == "digits"
    assert result.source == "generated"
    assert (
        result.training_examples,
        result.validation_examples,
        result.test_examples,
    ) == (60, 12, 30)
    assert result.row == "table2/original/invariant"
    assert result.network == "784-1000-1000-10"
    assert result.width == 0.03
    # 784-30-30-10
    assert result.parameters == 784 * 30 + 30 + 30 * 30 + 30 + 30 * 10 + 10
    assert (result.unit, result.activation) == ("%", None)
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


@thorough_elsewhere
def test_correlations_of_beta_with_the_mean_activity(blobs):
    assert train(blobs, "standard").result.correlations == {}
    run = train(blobs)
    assert list(run.result.correlations) == [
        "input_dropout",
        "hidden_1_dropout",
        "hidden_2_dropout",
    ]
    beta = keras.ops.convert_to_numpy(run.model.get_layer("input_dropout").beta)
    expected = np.corrcoef(beta, blobs.train.x.mean(axis=0))[0, 1]
    found = run.result.correlations["input_dropout"]
    assert found == pytest.approx(expected, abs=1e-3)
    # The learning rate is 0 in float32, so nothing is learned: every beta stays
    # 0 and correlates with nothing.
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-300)
    correlations = train(blobs, recipe=recipe).result.correlations
    assert set(correlations.values()) == {None}


@thorough_elsewhere
def test_progress_is_reported(blobs, unvalidated):
    told = []
    run = train(blobs, on_epoch=lambda *epoch: told.append(epoch))
    assert told == list(run.history.validation_error.items())
    assert [done for done, _ in told] == [1, 2, 3, 4]
    told = []
    train(unvalidated, on_epoch=lambda *epoch: told.append(epoch))
    assert told == [(1, None), (2, None), (3, None), (4, None)]


@thorough_elsewhere
def test_saved_files(blobs, tmp_path):
    run = train(blobs)
    name = "some-name"
    training.save(run, tmp_path / "out", name)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [f"{name}.csv", f"{name}.json", f"{name}.keras"]
    assert read_result(tmp_path / "out" / f"{name}.json") == run.result
    # The model needs no optimizer of ours, and returns probabilities.
    model = keras.saving.load_model(tmp_path / "out" / f"{name}.keras")
    outputs = model.predict(blobs.test.x, verbose=0)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
    wrong = np.mean(outputs.argmax(axis=1) != blobs.test.y)
    assert run.result.test == pytest.approx(100 * wrong, abs=1e-4)
    with open(tmp_path / "out" / f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["test_error"]) == run.history.test_error[4]


@thorough_elsewhere
def test_splicing_rows_measure_code_quality(exons):
    row = dataclasses.replace(
        ROWS["table5/2/standard"],
        recipe=dataclasses.replace(RECIPE, epochs=5),
    )
    run = training.train(Trial(row, width=0.03, test_curve=True), exons)
    assert run.result.unit == "bits"
    assert run.result.dataset == "mas"
    columns = ["training_loss"] + [
        f"{split}_bits" for split in ("training", "validation", "test")
    ]
    assert list(run.history.columns) == columns
    # The epoch with the most bits on validation is selected.
    bits = run.history.validation_bits
    assert bits.idxmax() == run.result.selected_epoch
    assert run.result.validation == bits.max()
    metric = CodeQuality(exons.train.y.mean(axis=0))
    metric.update_state(
        exons.test.y, run.model.predict(exons.test.x, verbose=0)
    )
    expected = pytest.approx(float(metric.result()), abs=1e-3)
    assert run.result.test == expected
    assert run.history.test_bits[run.result.selected_epoch] == expected


@thorough_elsewhere
def test_retraining_on_all_examples(blobs):
    recipe = dataclasses.replace(RECIPE, retrain=True)
    told = []
    run = train(
        blobs, recipe=recipe, on_epoch=lambda done, _: told.append(done)
    )
    selected = run.result.selected_epoch
    assert told == [*range(1, 5), *range(5, 5 + selected)]
    usual = train(blobs)
    assert usual.result.selected_epoch == selected
    assert run.history.equals(usual.history)
    assert run.result.validation == usual.result.validation
    assert usual.result.training_examples == 60
    assert run.result.training_examples == 72
    # The expected run: as many epochs on all examples except the test examples,
    # with a schedule for four epochs.
    everything = Split(
        np.concatenate([blobs.train.x, blobs.validation.x]),
        np.concatenate([blobs.train.y, blobs.validation.y]),
    )
    row = dataclasses.replace(ROWS["table2/original/invariant"], recipe=RECIPE)
    trainer = Trainer(Trial(row, 0, 0.03), blobs)
    model = trainer.model()
    trainer.fit(model, everything, selected)
    for a, b in zip(model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "retrain", [False, pytest.param(True, marks=thorough_elsewhere)]
)
def test_calibrated_shifts_reach_the_tested_network(blobs, retrain):
    # With almost no learning, the shifts keep their initial values.
    recipe = dataclasses.replace(
        RECIPE, learning_rate=1e-12, calibrated=True, retrain=retrain
    )
    run = train(blobs, recipe=recipe)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(run.model.get_layer("input_dropout").beta),
        -blobs.train.x.mean(axis=0),
        rtol=1e-5,
    )
    assert run.result.recipe["calibrated"] is True
    plain = dataclasses.asdict(dataclasses.replace(recipe, calibrated=False))
    other = dataclasses.replace(run.result, recipe=plain)
    assert run.result.identity != other.identity


def test_a_stream_trains_like_an_array(streamed, unvalidated):
    recipe = dataclasses.replace(RECIPE, epochs=8)
    run = train(streamed, recipe=recipe)
    assert run.result.training_examples == 60
    assert run.result.test < 20
    assert run.result.correlations
    alone = dataclasses.replace(unvalidated, train=streamed.train)
    recipe = dataclasses.replace(RECIPE, epochs=1)
    assert train(alone, recipe=recipe).result.correlations == {}


@thorough_elsewhere
def test_a_stream_cannot_be_retrained_on(streamed, unvalidated):
    """The error comes before the first training, not after it."""
    recipe = dataclasses.replace(RECIPE, retrain=True)
    told = []
    with pytest.raises(ValueError, match="`retrain`. Expected False for"):
        train(streamed, recipe=recipe, on_epoch=lambda *_: told.append(1))
    assert not told
    # Without validation examples, none could be added.
    alone = dataclasses.replace(unvalidated, train=streamed.train)
    assert train(alone, recipe=recipe).result.training_examples == 60


def test_divergence_is_reported(blobs):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e38, max_norm=1e30)
    with pytest.raises(
        ValueError, match="loss of epoch 1 is .*`--learning-rate`"
    ):
        train(blobs, recipe=recipe)
