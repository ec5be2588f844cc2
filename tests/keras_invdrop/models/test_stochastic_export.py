"""Files whose every run draws new masks, run in their engines."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from small_models import random

from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import export
from keras_invdrop import fold
from keras_invdrop._keras import random_functions
from keras_invdrop._masks import drawn_by_graph
from keras_invdrop.models import _export

BACKEND = keras.backend.backend()
FILES = {"tf_saved_model": "n", "onnx": "n.onnx", "litert": "n.tflite"}
# The formats that need no other process.
DIRECT = {"tensorflow": tuple(FILES), "torch": ("onnx",)}.get(BACKEND, ())
# From JAX another process exports on TensorFlow, which takes longer.
elsewhere = () if DIRECT else pytest.mark.thorough
ROWS = 20000
# The difference, in standard errors, that a mean may have: chance alone
# exceeds it for one of two million means.
ERRORS = 5


def exported(model, folder, format="onnx"):
    """A function that runs the file on an example, in `ROWS` rows."""
    path = folder / FILES[format]
    found = export(model, path, format, stochastic=True)
    assert found.backend == (BACKEND if format in DIRECT else "tensorflow")
    # Chance explains all but rounding.
    assert found.difference < 1e-5
    run = _export.LOAD[format](path, model)
    return lambda x: [y.copy() for y in run([x.repeat(ROWS, axis=0)])]


def assert_mean(samples, expected):
    """Compares the means over the rows with what they should be."""
    samples = np.asarray(samples, "float64")
    error = samples.std(axis=0) / np.sqrt(len(samples))
    rounding = 1e-5 * np.abs(expected).max()
    difference = np.abs(samples.mean(axis=0) - expected)
    assert (difference <= ERRORS * error + rounding).all()


def assert_spread(samples, expected):
    """Compares the variances over the rows with what they should be."""
    assert_mean((samples - samples.mean(axis=0)) ** 2, expected)


@pytest.mark.parametrize(
    "format",
    [
        format
        if format in DIRECT
        else pytest.param(format, marks=pytest.mark.thorough)
        for format in FILES
    ],
)
def test_a_linear_network_has_its_mean_and_variance(format, tmp_path):
    inputs = keras.Input((6,), name="given")  # LiteRT takes it by name
    drop = InvariantDropout(0.3, seed=7)
    model = keras.Model(inputs, layers.Dense(3)(drop(inputs)))
    beta, kernel, bias = random(6), random(6, 3, seed=1), random(3, seed=2)
    model.set_weights([beta, *drop.get_weights()[1:], kernel, bias])
    before = model.get_weights()
    keras.utils.set_random_seed(0)  # has no effect on the file
    run = exported(model, tmp_path, format)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)

    x = random(1, 6, seed=3)
    mean = (x + beta) @ kernel + bias
    folded = fold(model).predict(x, verbose=0)
    np.testing.assert_allclose(folded, mean, rtol=1e-5)
    # An activity is divided by 0.7 if it is kept.
    variance = ((x + beta) ** 2 @ kernel**2)[0] * 0.3 / 0.7
    (first,), (second,) = run(x), run(x)
    for samples in (first, second):
        assert_mean(samples, mean[0])
        assert_spread(samples, variance)
    # Two masks are the same if all six activities are.
    same = (0.3**2 + 0.7**2) ** 6
    pairs = [(first, second), (first[::2], first[1::2])]
    if format != "onnx":  # which a later test is about
        load = _export.LOAD[format](tmp_path / FILES[format], model)
        pairs.append((first, load([x.repeat(ROWS, axis=0)])[0]))
    for a, b in pairs:
        assert_mean(np.all(np.isclose(a, b, rtol=1e-6), axis=-1), same)


@pytest.mark.parametrize("case", [pytest.param(0, marks=elsewhere)])
def test_as_many_are_dropped_as_the_rates_say(case, tmp_path):
    rates = [0.5, 0.5, 0.5, 0.1, 0.1]
    inputs = keras.Input((4,))
    drops = [
        layers.Dropout(0.5, seed=3),
        layers.Dropout(0.5, seed=3),
        InvariantDropout(0.5, beta_initializer="ones"),
        InvariantDropout(0.1, scaling="test"),
        layers.Dropout(0.1),
    ]
    model = keras.Model(inputs, [drop(inputs) for drop in drops])
    run = exported(model, tmp_path)
    x = 1 + random(1, 4) ** 2
    first, second = run(x), run(x)
    dropped = [y == 0 for y in first]
    for y, mask, rate, drop in zip(first, dropped, rates, drops, strict=True):
        assert_mean(mask, np.full(4, rate))
        scale = 1 if getattr(drop, "scaling", "train") == "test" else 1 - rate
        kept = np.broadcast_to((x + (drop is drops[2])) / scale, y.shape)
        np.testing.assert_allclose(y[~mask], kept[~mask], rtol=1e-6)
    # Independent masks: of other layers, rows, activities and runs.
    a, b = dropped[:2]
    for one, other, of_both in [
        (a, b, 0.25),
        (a, dropped[2], 0.25),
        (dropped[3], dropped[4], 0.01),
        (a[::2], a[1::2], 0.25),
        (a[:, ::2], a[:, 1::2], 0.25),
        (a, second[0] == 0, 0.25),
    ]:
        assert_mean(one & other, np.full(one.shape[1], of_both))


@keras.saving.register_keras_serializable("test_stochastic_export")
class Paths(layers.Layer):
    """Drops whole rows by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        return keras.random.dropout(
            inputs, 0.5, noise_shape=(None, 1, 1), seed=self.seed_generator
        )


def all_layers():
    inputs = keras.Input((4, 6), name="given")
    others = [] if not DIRECT else [Paths()]
    outputs = [
        layer(inputs)
        for layer in (
            layers.Dropout(0.4, noise_shape=(1, 4, 6)),
            layers.SpatialDropout1D(0.4),
            layers.AlphaDropout(0.4),
            layers.GaussianDropout(0.4),
            SpatialInvariantDropout(0.4),
            RunningAverageDropout(0.4),
            layers.LSTM(3, dropout=0.4, recurrent_dropout=0.4),
            keras.Sequential([layers.Dense(2), layers.Dropout(0.4)]),
            *others,
        )
    ]
    attention = layers.MultiHeadAttention(2, 3, dropout=0.4)
    return keras.Model(inputs, [*outputs, attention(inputs, inputs)])


@pytest.mark.parametrize("case", [pytest.param(0, marks=elsewhere)])
def test_every_dropout_layer_is_as_in_monte_carlo(case, tmp_path):
    keras.utils.set_random_seed(0)
    model = all_layers()
    x = random(1, 4, 6)
    predictions = MonteCarlo(model, samples=2000, seed=0).predict(
        x, return_samples=True
    )
    found = exported(model, tmp_path)(x)
    for samples, prediction in zip(found, predictions, strict=True):
        (others,) = prediction.samples
        for power in (1, 2):  # the mean and the spread
            a = np.abs(samples - prediction.mean[0]) ** power
            b = np.abs(others - prediction.mean[0]) ** power
            assert a.std(axis=0).max() > 0
            error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
            difference = np.abs(a.mean(axis=0) - b.mean(axis=0))
            assert (difference <= ERRORS * error + 1e-5).all()
        # As in `MonteCarlo`, a mask is that of one row only.
        assert (samples[::2] != samples[1::2]).any()


@pytest.mark.parametrize("case", [pytest.param(0, marks=elsewhere)])
def test_batch_normalization_keeps_its_moving_statistics(case, tmp_path):
    inputs = keras.Input((5,))
    # `training=True` in the call has no effect, as in `MonteCarlo`.
    x = layers.BatchNormalization()(inputs, training=True)
    model = keras.Model(inputs, InvariantDropout(0.5)(x))
    gamma, beta, mean, variance = (random(5, seed=i) ** 2 for i in range(4))
    model.layers[1].set_weights([gamma, beta, mean, variance])
    (found,) = exported(model, tmp_path)(x := random(1, 5, seed=4))
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    expected = np.broadcast_to(expected / 0.5, found.shape)
    kept = found != 0
    assert_mean(kept, np.full(5, 0.5))
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-4)
    after = model.layers[1].get_weights()
    np.testing.assert_array_equal(after, [gamma, beta, mean, variance])


def small():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), InvariantDropout(0.5)]
    )


@pytest.mark.parametrize("case", [pytest.param(0, marks=elsewhere)])
def test_a_session_draws_anew_if_it_is_seeded_anew(case, tmp_path):
    """As docs/export.md says about ONNX Runtime."""
    import onnxruntime

    exported(small(), tmp_path)
    x = random(50, 4)

    def drawn():
        return _export.LOAD["onnx"](tmp_path / FILES["onnx"], small())([x])[0]

    first, second = drawn(), drawn()
    np.testing.assert_array_equal(first, second)
    onnxruntime.set_seed(5)
    third = drawn()
    assert not np.array_equal(first, third)
    np.testing.assert_array_equal(third, drawn())


# The output of a right or wrong engine, from the outputs of all runs so far.
ENGINES = {
    "right": lambda runs: runs[-1],
    "all runs have the same masks": lambda runs: runs[0],
    "all rows have the same mask": lambda runs: (
        (runs[-1][:3].repeat(32, axis=0).reshape(3, 32, -1))
        .swapaxes(0, 1)
        .reshape(96, -1)
    ),
    "a wrong rate": lambda runs: 1.8 * runs[-1],
    "not a number": lambda runs: runs[-1] * np.nan,
}


@pytest.mark.parametrize("how", ENGINES)
def test_a_wrong_file_is_not_kept(how, tmp_path, monkeypatch):
    model = small()
    path = tmp_path / "n.onnx"
    path.write_text("before")
    right = MonteCarlo(model, 1)
    runs = []

    def convert_on(backend, network, path, format, stochastic):
        path.write_text("after")

    def run(arrays):
        right.seed = 100 + len(runs)
        runs.append(right.predict(arrays[0]).mean)
        return [ENGINES[how](runs)]

    monkeypatch.setattr(_export, "_convert_on", convert_on)
    monkeypatch.setattr(_export, "_backends", lambda *_: [BACKEND])
    monkeypatch.setitem(_export.LOAD, "onnx", lambda *_: run)
    if how == "right":
        assert export(model, path, "onnx", stochastic=True).difference == 0
        assert path.read_text() == "after"
    else:
        with pytest.raises(RuntimeError, match="not agree with `MonteCarlo`"):
            export(model, path, "onnx", stochastic=True)
        assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(BACKEND == "jax", reason="another process exports there")
def test_layers_draw_from_their_seeds_afterwards():
    def drawn():
        x = keras.random.dropout(ops.ones((50,)), 0.5, seed=3)
        return ops.convert_to_numpy(x)

    functions, before = dict(vars(random_functions)), drawn()
    with pytest.raises(ZeroDivisionError), drawn_by_graph(numbered=False):
        assert not np.array_equal(drawn(), drawn())
        raise ZeroDivisionError
    assert dict(vars(random_functions)) == functions
    np.testing.assert_array_equal(drawn(), before)
    first, second = (
        InvariantDropout(0.5, seed=4)(random(5, 8), training=True)
        for _ in range(2)
    )
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (first, second)))


@pytest.mark.parametrize(
    ("layer", "format", "stochastic", "message"),
    [
        (
            layers.Dense(2),
            "onnx",
            True,
            "`model`.*with at least one dropout layer",
        ),
        (
            layers.LSTM(2),
            "onnx",
            True,
            "`model`.*with at least one dropout layer",
        ),
        (
            layers.Dropout(0.5),
            "openvino",
            True,
            "`format`. Expected 'tf_saved_model', 'onnx' or 'litert' if "
            "`stochastic`.*OpenVINO draws the same numbers.*'openvino'",
        ),
        (layers.Dropout(0.5), "onnx", "yes", "`stochastic`. .*a boolean"),
    ],
)
def test_errors(layer, format, stochastic, message, tmp_path):
    model = keras.Sequential([keras.Input((3, 4)), layer])
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "n.xml", format, stochastic=stochastic)
    assert not list(tmp_path.iterdir())


def test_a_subclassed_model_has_no_graph(tmp_path):
    model = type("Own", (keras.Model,), {"call": lambda self, x: x})()
    model.build((None, 3))
    with pytest.raises(ValueError, match="functional or sequential"):
        export(model, tmp_path / "n.onnx", "onnx", stochastic=True)
