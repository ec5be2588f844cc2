import contextlib
import dataclasses
import random

import keras
import numpy as np
import pytest
from keras import ops
from keras_invdrop.applications import METHODS
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications.metrics import CodeQuality
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.data.datasets import Stream
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.trial import Trial

from keras_invdrop import Reseed

IMAGES, EXONS = "table2/original/standard", "table5/1/standard"


def initial_weights(row, dataset, seed=0):
    """Of the layers with weights of their own, by name."""
    found = ROWS[row]
    recipe = dataclasses.replace(found.recipe, initial_stddev=None)
    found = dataclasses.replace(found, recipe=recipe)
    trainer = Trainer(Trial(found, seed, 0.03), dataset)
    return {
        layer.name: layer.get_weights()
        for layer in trainer.model().layers
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


def models(row, dataset, method=None, **changes):
    """Two models: one starts as in the paper, the other is calibrated."""
    found = ROWS[row]
    for calibrated in (False, True):
        # The last batch is smaller.
        recipe = dataclasses.replace(
            found.recipe, batch_size=7, calibrated=calibrated, **changes
        )
        changed = dataclasses.replace(
            found, method=method or found.method, recipe=recipe
        )
        yield Trainer(Trial(changed, 0, 1 / 16), dataset).model()


def means(model, x):
    """The mean output of each dropout layer at inference."""
    layers = [each for each in model.layers if "dropout" in each.name]
    probe = keras.Model(model.input, [each.output for each in layers])
    return {
        layer.name: ops.convert_to_numpy(out).mean(
            axis=tuple(range(out.ndim))[:-1]
        )
        for layer, out in zip(layers, probe(x), strict=True)
    }


@pytest.mark.parametrize(
    ("row", "data"),
    [
        ("table2/original/invariant", "blobs"),
        ("table2/original/running_average", "blobs"),
        ("table3/relu/invariant", "images"),
        ("table5/1/invariant", "exons"),
        ("table6/cifar10/invariant", "images"),
    ],
)
def test_calibrated_activities_are_centred(row, data, request):
    dataset = request.getfixturevalue(data)
    plain, calibrated = models(row, dataset)
    before = means(plain, dataset.train.x)
    after = means(calibrated, dataset.train.x)
    assert list(before) == list(after)
    assert len(after) >= 2
    for name in after:
        # Activities of a maxout network are small at first.
        assert np.abs(before[name]).max() > 1e-5
        assert np.abs(after[name]).max() < 1e-4 * np.abs(before[name]).max()


def test_calibration_changes_only_the_shifts(blobs):
    plain, calibrated = models("table2/original/invariant", blobs)
    assert [each.name for each in plain.layers] == [
        each.name for each in calibrated.layers
    ]
    for old, new in zip(plain.layers, calibrated.layers, strict=True):
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            if "dropout" in old.name:
                assert not a.any()
                assert b.any()
            else:
                np.testing.assert_array_equal(a, b)
    # Rates, norms and the prior come from the recipe.
    for old, new in zip(plain.layers, calibrated.layers, strict=True):
        assert old.get_config() == new.get_config()


@pytest.mark.parametrize("shifted", ["input", "hidden"])
def test_calibration_of_one_kind_of_layers(blobs, shifted):
    _, calibrated = models(
        "table2/original/invariant", blobs, f"invariant_{shifted}"
    )
    for name, mean in means(calibrated, blobs.train.x).items():
        assert np.allclose(mean, 0, atol=1e-5) == name.startswith(shifted)


def test_calibration_reads_only_training_examples(blobs):
    # Reading a NaN would raise an error.
    held_out = Split(np.full_like(blobs.test.x, np.nan), blobs.test.y)
    blinded = dataclasses.replace(blobs, validation=held_out, test=held_out)
    _, expected = models("table2/original/invariant", blobs)
    _, found = models("table2/original/invariant", blinded)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stream_calibrates_like_an_array(blobs):
    reads = []

    @contextlib.contextmanager
    def reading():
        reads.append("open")
        yield
        reads.append("closed")

    class Batches:
        """Can be iterated again while the stream is open."""

        def __init__(self, size, seed):
            self.size = size
            reads.append((size, seed))

        def __iter__(self):
            assert "open" in reads
            assert "closed" not in reads
            for start in range(0, 60, self.size):
                part = slice(start, start + self.size)
                yield blobs.train.x[part], blobs.train.y[part]

    stream = Stream(60, Batches, reading)
    streamed = dataclasses.replace(blobs, train=stream)
    _, expected = models("table2/original/invariant", blobs)
    _, found = models("table2/original/invariant", streamed)
    assert reads == ["open", (7, 0), "closed"]
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_network_fits_the_data(blobs, exons):
    model = Trainer(Trial(ROWS[IMAGES], 0, 0.03), blobs).network("softmax")
    assert model.input_shape == (None, 784)
    model = Trainer(Trial(ROWS[EXONS], 0, 0.03), exons).network("softmax")
    assert model.input_shape == (None, 30)
    assert model.output_shape == (None, 4, 3)
    # The training model returns logits.
    model = Trainer(Trial(ROWS[EXONS], 0, 0.03), exons).model()
    assert model.layers[-1].activation is keras.activations.linear


def test_the_activation_function_of_a_network():
    row = ROWS["table6/cifar10/invariant"]
    with pytest.raises(ValueError, match="`activation`. Expected None for 'M"):
        Trial(row, width=1 / 16, activation="tanh").network()
    with pytest.raises(ValueError, match="`--activation`.*='thanh'"):
        Trial(ROWS[EXONS], width=0.01, activation="thanh").network()
    tanh = Trial(ROWS[EXONS], width=0.01, activation="tanh").network()
    assert tanh.get_layer("hidden_1").activation is keras.activations.tanh


def test_figures_are_in_the_unit_of_the_row(blobs, exons):
    trainer = Trainer(Trial(ROWS[IMAGES], 0), blobs)
    accuracy = np.float32(0.982)
    assert trainer.figures([accuracy, 1.0]).tolist() == [1.8, 0.0]
    trainer = Trainer(Trial(ROWS[EXONS], 0), exons)
    assert trainer.figures([-3.25]).tolist() == [-3.25]


def test_the_naive_guess_is_the_mean_of_the_training_targets(exons):
    metric = Trainer(Trial(ROWS[EXONS], 0), exons).metric(from_logits=False)
    assert isinstance(metric, CodeQuality)
    np.testing.assert_allclose(
        metric.naive_guess, exons.train.y.mean(axis=0), rtol=1e-6
    )


@pytest.mark.parametrize(
    "row",
    ["table2/original/invariant", "table3/relu/invariant",
     "table6/cifar10/invariant"],
)  # fmt: skip
def test_the_dtype_policy_applies_only_to_the_network(row):
    row = ROWS[row]
    recipe = dataclasses.replace(row.recipe, dtype_policy="mixed_bfloat16")
    before = keras.config.dtype_policy()
    row = dataclasses.replace(row, recipe=recipe)
    model = Trial(row, width=1 / 16).network()
    assert keras.config.dtype_policy() == before
    dtypes = {layer.name: layer.compute_dtype for layer in model.layers}
    # Logits of 16 bits would often be equal.
    assert dtypes.pop("classifier") == "float32"
    assert dtypes["hidden_1"] == dtypes["input_dropout"] == "bfloat16"
    assert model.output.dtype == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}


def test_an_unknown_dtype_policy_is_named():
    row = ROWS["table2/original/standard"]
    recipe = dataclasses.replace(row.recipe, dtype_policy="mixed_bfloat17")
    before = keras.config.dtype_policy()
    with pytest.raises(ValueError, match="`dtype_policy`. .*mixed_bfloat17"):
        Trial(dataclasses.replace(row, recipe=recipe)).network()
    assert keras.config.dtype_policy() == before


def test_initial_weights_depend_only_on_the_seed(blobs):
    # Other threads take numbers from Python's generator in the meantime.
    def weights(seed, noise):
        random.seed(noise)
        keras.utils.set_random_seed(noise)
        model = Trainer(
            Trial(ROWS["table2/original/invariant"], seed, 0.03), blobs
        )
        return [weight.tobytes() for weight in model.model().get_weights()]

    assert weights(0, noise=1) == weights(0, noise=2)
    assert weights(0, noise=1) != weights(1, noise=1)


@pytest.mark.parametrize(
    ("method", "activation"),
    [
        ("invariant", None),
        pytest.param("invariant", "softmax", marks=pytest.mark.one_backend),
        pytest.param("standard", None, marks=pytest.mark.one_backend),
        pytest.param("standard", "softmax", marks=pytest.mark.thorough),
    ],
)
def test_plain_keras_trains_as_the_experiments_do(blobs, method, activation):
    recipe = Recipe(
        epochs=3,
        batch_size=25,
        warm_up=0.3,
        weight_decay=1e-3,
        beta_decay=0.1,
        beta_factor=10.0,
        hidden_rate=(0.3, 0.6),
        max_norm=(None, 0.5, 0.5),
        initial_stddev=(0.05, None, None),
        learning_rate_factors={"hidden_2": 0.5},
        ema_momentum=0.9,
    )
    row = ROWS[f"table2/original/{method}"]
    trainer = Trainer(
        Trial(dataclasses.replace(row, recipe=recipe), 3, 0.03), blobs
    )
    initial = trainer.model()
    model = recipe.network(
        mnist_mlp,
        dropout=method,
        width=0.03,
        classifier_activation=activation,
    )
    model.set_weights(initial.get_weights())
    expected = trainer.fit(initial, blobs.train, recipe.epochs).logs
    recipe.compile(model, steps_per_epoch=3)
    reseed = Reseed(3)
    found = model.fit(
        reseed.shuffled(blobs.train.x, blobs.train.y, recipe.batch_size),
        epochs=recipe.epochs,
        shuffle=False,
        callbacks=[reseed],
        verbose=0,
    ).history
    assert set(found) == set(expected) == {"loss", "accuracy"}
    # Probabilities are rounded differently.
    tolerance = 0 if activation is None else 1e-4
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance)
