import itertools
import re
import warnings

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
from keras_invdrop import StochasticPooling2D
from keras_invdrop.models._prediction import Samples


def sequential(*model_layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *model_layers])


def classifier():
    return sequential(
        InvariantDropout(0.2),
        layers.Dense(5, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(3, activation="softmax"),
    )


def part(monte_carlo, cls):
    """The layer of class `cls` that the samples come from."""
    parts = monte_carlo._sampler._flatten_layers()
    (found,) = (layer for layer in parts if isinstance(layer, cls))
    return found


def drawn(model, x, samples=200):
    """The samples of each example, of shape `(examples, samples, ...)`."""
    sampler = MonteCarlo(model)._sampler
    sampler.set_repeats(samples)
    sampler.set_seeds(0)
    y = sampler.predict_on_batch(x)
    return y.reshape((len(x), samples, *y.shape[1:]))


@keras.saving.register_keras_serializable(package="test_monte_carlo")
class Spy(layers.Layer):
    """Records the batch sizes that it sees."""

    seen: list = []

    def call(self, inputs):
        Spy.seen.append(inputs.shape[0])
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="test_monte_carlo")
class Normalized(layers.Layer):
    """Does something else in training, but knows nothing of `training`."""

    def build(self, input_shape):
        self.inner = layers.BatchNormalization()
        self.inner.build(input_shape)
        self.noise = layers.GaussianNoise(1.0)

    def call(self, inputs):
        return self.noise(self.inner(inputs))


# Of three inputs and two hidden units.
SHIFT = np.array([0.5, -1.0, 0.3])
KERNEL = np.array([[1.0, -0.5], [0.7, 1.2], [-0.4, 0.8]])
BIAS = np.array([0.2, -0.1])
LAST_KERNEL = np.array([[1.5, -1.0], [-0.6, 0.9]])
LAST_BIAS = np.array([0.1, 0.0])
X = np.array([[0.3, 1.4, -0.7], [1.0, 0.0, 0.5]])


def small(first, rate, activation):
    model = sequential(
        first,
        layers.Dense(2, activation="relu"),
        layers.Dropout(rate),
        layers.Dense(2, activation=activation),
        shape=(3,),
    )
    model.layers[1].set_weights([KERNEL, BIAS])
    model.layers[3].set_weights([LAST_KERNEL, LAST_BIAS])
    return model


def all_masks(x, shift, rates, scaling, activation):
    """The output of every mask, and its probability."""
    outputs, probabilities = [], []
    for mask in itertools.product((0, 1), repeat=5):
        mask = np.array(mask)
        kept = 1 - np.repeat(rates, (3, 2))
        probabilities.append(np.prod(np.where(mask, kept, 1 - kept)))
        h = mask[:3] * (x + shift) / (kept[:3] if scaling == "train" else 1)
        h = np.maximum(h @ KERNEL + BIAS, 0)
        y = mask[3:] * h / kept[3:] @ LAST_KERNEL + LAST_BIAS
        if activation == "softmax":
            y = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
        outputs.append(y)
    return np.array(outputs), np.array(probabilities)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


FIRST = {
    "ours": (lambda: InvariantDropout(0.5), SHIFT, "train"),
    "test-scaling": (
        lambda: InvariantDropout(0.5, scaling="test"),
        SHIFT,
        "test",
    ),
    "running-average": (lambda: RunningAverageDropout(0.5), SHIFT, "train"),
    "keras": (lambda: layers.Dropout(0.5), np.zeros(3), "train"),
}


@pytest.mark.parametrize("first", FIRST)
def test_it_converges_to_the_average_over_all_masks(first):
    make, shift, scaling = FIRST[first]
    model = small(make(), 0.3, "softmax")
    if shift.any():
        model.layers[0].set_shift(shift)
    y, weights = all_masks(X, shift, (0.5, 0.3), scaling, "softmax")
    assert weights.sum() == pytest.approx(1)

    def average(values):
        return np.tensordot(weights, values, 1)

    mean = average(y)
    variance = average((y - mean) ** 2)
    samples = 20000
    found = MonteCarlo(model, samples, seed=0).predict(X, batch_size=50000)
    # Up to terms of order 1 / samples, each figure is the average over masks of
    # one value per mask.
    of_entropy = -np.sum(y * np.log(mean), axis=-1)
    for value, values in (
        (found.mean, y),
        (found.standard_deviation**2, (y - mean) ** 2),
        (found.entropy, of_entropy),
        (found.mutual_information, of_entropy - entropy(y)),
    ):
        exact = average(values)
        error = np.sqrt(average((values - exact) ** 2) / samples)
        assert np.abs((value - exact) / error).max() < 4
    np.testing.assert_allclose(
        found.standard_deviation, np.sqrt(variance), rtol=0.03
    )
    np.testing.assert_allclose(found.entropy, entropy(mean), rtol=0.03)
    assert found.mutual_information.min() > 0.01


def test_the_error_of_the_mean_falls_with_the_root_of_the_samples():
    model = small(InvariantDropout(0.5), 0.3, None)
    model.layers[0].set_shift(SHIFT)
    y, weights = all_masks(X[0], SHIFT, (0.5, 0.3), "train", None)
    mean = weights @ y
    deviation = np.sqrt(weights @ (y - mean) ** 2)
    x = np.repeat(X[:1], 300, axis=0)
    for samples in (16, 256):
        found = MonteCarlo(model, samples, seed=1).predict(x, batch_size=10000)
        errors = (found.mean - mean) / (deviation / np.sqrt(samples))
        # 300 examples give this root mean square with a standard error of 4 %.
        assert np.sqrt(np.mean(errors**2, axis=0)) == pytest.approx(1, abs=0.2)
        assert np.abs(errors.mean(axis=0)).max() < 4 / np.sqrt(300)


def test_without_a_rate_it_is_inference():
    model = sequential(
        InvariantDropout(0.0, beta_initializer="ones"),
        layers.Dense(5),
        layers.BatchNormalization(),
        layers.GaussianNoise(1.0),
        layers.Dropout(0.0),
        layers.Dense(3, activation="softmax"),
    )
    model.layers[2].set_weights([random(5, seed=i) ** 2 for i in range(4)])
    found = MonteCarlo(model, samples=10).predict(x := random(20, 6))
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(found.standard_deviation, 0, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information, 0, atol=1e-6)
    np.testing.assert_allclose(found.entropy, entropy(expected), rtol=1e-5)


@pytest.mark.parametrize("explicit", [True, None])
def test_all_but_dropout_is_in_inference_mode(explicit):
    inputs = keras.Input((6,))
    # Everything is dropped: later layers have no random part.
    x = layers.Dropout(1.0)(inputs, training=explicit)
    x = layers.Dense(5, bias_initializer="ones")(x)
    x = layers.BatchNormalization(name="norm")(x, training=explicit)
    x = Normalized(name="hidden")(x)
    model = keras.Model(inputs, x)
    values = [random(5, seed=i) ** 2 for i in range(4)]
    model.get_layer("norm").set_weights(values)
    model.get_layer("hidden").set_weights(values[::-1])
    monte_carlo = MonteCarlo(model, samples=7)
    before = monte_carlo._sampler.model.get_weights()
    found = monte_carlo.predict(random(20, 6))
    expected = np.ones(5)
    for gamma, beta, mean, variance in (values, values[::-1]):
        expected = gamma * (expected - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(
        found.mean, np.tile(expected, (20, 1)), rtol=1e-4, atol=1e-5
    )
    after = monte_carlo._sampler.model.get_weights()
    for weight, value in zip(after, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_the_running_average_does_not_move():
    model = sequential(RunningAverageDropout(0.5))
    model.layers[0].set_shift(-random(6))
    monte_carlo = MonteCarlo(model)
    monte_carlo.predict(random(10, 6, mean=5.0))
    average = part(monte_carlo, RunningAverageDropout).average
    np.testing.assert_array_equal(ops.convert_to_numpy(average), random(6))


def test_other_layers_that_are_random_in_training_are_not():
    model = sequential(
        StochasticPooling2D(2), layers.SpatialDropout2D(0.0), shape=(4, 4, 3)
    )
    found = MonteCarlo(model).predict(x := random(2, 4, 4, 3) ** 2)
    np.testing.assert_allclose(
        found.mean, ops.convert_to_numpy(model(x)), rtol=1e-5
    )


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5),
        layers.AlphaDropout(0.5),
        layers.GaussianDropout(0.5),
        InvariantDropout(0.5, shared_axes=[1, 2]),
        SpatialInvariantDropout(0.5),
        RunningAverageDropout(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_dropout_layer(layer):
    model = sequential(layer, shape=(4, 4, 3))
    x = random(2, 4, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        monte_carlo = MonteCarlo(model, samples=400, seed=3)
    found = monte_carlo.predict(x, batch_size=800)
    assert found.standard_deviation.min() > 0
    if not isinstance(layer, layers.AlphaDropout):  # which moves the mean
        error = found.standard_deviation / np.sqrt(400)
        assert np.abs((found.mean - x) / error).max() < 5


@pytest.mark.parametrize("first", [None, 1, 8], ids=str)
@pytest.mark.parametrize("cls", [layers.Dropout, InvariantDropout])
def test_noise_shape(cls, first):
    model = sequential(cls(0.5, noise_shape=(first, 1, 3)), shape=(4, 3))
    y = drawn(model, np.ones((5, 4, 3), "float32"))
    assert set(np.unique(y)) == {0, 2}
    # Shared over the timesteps only.
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :, :1], y.shape))
    masks = y[:, :, 0].transpose((0, 2, 1)).reshape((15, -1))
    assert np.abs(np.corrcoef(masks) - np.eye(15)).max() < 0.35


def test_a_noise_shape_of_lower_rank():
    model = sequential(layers.Dropout(0.5, noise_shape=(3,)), shape=(4, 3))
    y = drawn(model, np.ones((5, 4, 3), "float32"))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :, :1], y.shape))
    assert np.abs(np.corrcoef(y[:, :, 0, 0]) - np.eye(5)).max() < 0.35


@pytest.mark.parametrize(
    ("examples", "batch_size", "calls", "rows"),
    [
        (4, 200, 1, 200),
        (7, 100, 4, 100),  # The last call is filled up,
        (3, 20, 9, 17),  # and has samples left over.
    ],
)
def test_the_samples_run_in_one_compiled_call(
    examples, batch_size, calls, rows
):
    model = sequential(Spy(), layers.Dropout(0.5))
    monte_carlo = MonteCarlo(model, samples=50)
    found = []
    original = monte_carlo._sampler.predict_on_batch

    def counting(x):
        found.append(original(x))
        return found[-1]

    monte_carlo._sampler.predict_on_batch = counting
    Spy.seen.clear()
    monte_carlo.predict(random(examples, 6), batch_size=batch_size)
    assert [len(y) for y in found] == [rows] * calls
    # The model is traced once if the backend compiles.
    traced = keras.backend.backend() != "torch"
    assert Spy.seen == [rows] * (1 if traced else calls)


@pytest.mark.parametrize(
    ("examples", "samples", "batch_size"),
    [(1, 1, 1), (5, 3, 7), (5, 3, 2), (3, 100, 1), (10, 7, 1000), (4, 11, 5)],
)
def test_the_model_never_sees_more_rows_than_the_batch_size(
    examples, samples, batch_size
):
    model = sequential(Spy(), layers.Dropout(0.5))
    monte_carlo = MonteCarlo(model, samples)
    Spy.seen.clear()  # of the call that looks for layers that draw masks
    found = monte_carlo.predict(random(examples, 6), batch_size=batch_size)
    assert found.mean.shape == (examples, 6)
    assert 0 < max(Spy.seen) <= batch_size


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 13, 14, 20, 39, 1000])
def test_each_example_has_its_samples_however_they_are_shared_out(batch_size):
    table = np.random.default_rng(0).dirichlet(np.ones(4), size=(6, 13))
    monte_carlo = MonteCarlo(sequential(layers.Dropout(0.5), shape=(4,)), 13)
    sampler = monte_carlo._sampler
    done = np.zeros(6, "int")

    def known(x):
        numbers = x[:, 0].astype("int")
        rows = [
            np.resize(table[i, done[i] :], (sampler.repeats, 4))
            for i in numbers
        ]
        # The last call may have an example twice, to fill its batch.
        done[np.unique(numbers)] += sampler.repeats
        return np.concatenate(rows)

    sampler.predict_on_batch = known
    x = np.repeat(np.arange(6)[:, None], 4, axis=1)
    found = monte_carlo.predict(x, batch_size=batch_size)
    mean = table.mean(axis=1)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(
        found.standard_deviation, table.std(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(found.entropy, entropy(mean), rtol=1e-12)
    np.testing.assert_allclose(
        found.mutual_information,
        entropy(mean) - entropy(table).mean(axis=1),
        rtol=1e-10,
    )


def test_chunks_are_merged_without_a_loss_of_digits():
    samples = 1e6 + np.random.default_rng(0).normal(size=(3, 1000, 2))
    merged = Samples("float32")
    for chunk in np.array_split(samples, [1, 10, 300, 301], axis=1):
        merged.add(chunk)
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, samples.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(
        merged.squares, 1000 * samples.var(axis=1), rtol=1e-8
    )
    assert not merged.distribution


def test_the_model_is_left_as_it_is():
    model = classifier()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(random(8, 6), np.arange(8) % 3, verbose=0)
    optimizer, before = model.optimizer, model.get_weights()

    def state():
        return [
            ops.convert_to_numpy(variable).tolist()
            for variable in model.non_trainable_variables
        ]

    states = state()
    assert len(states) == 4  # Two of them are states of the mask generators.
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    MonteCarlo(model, samples=5).predict(random(10, 6))
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 1
    assert state() == states
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    assert all(layer.trainable for layer in model.layers)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    model.fit(random(8, 6), np.arange(8) % 3, verbose=0)


def test_nested_models_and_shared_layers():
    inner = sequential(
        layers.Dense(6, kernel_initializer="identity"),
        layers.Dropout(0.5, name="inner"),
    )
    inputs = keras.Input((6,))
    first = inner(inputs)
    drop = InvariantDropout(0.5)
    x = layers.Concatenate()([first, inner(inputs), drop(inputs), drop(first)])
    model = keras.Model(inputs, x)
    y = drawn(model, np.ones((2, 6), "float32"), samples=1000)
    parts = np.split(y, 4, axis=-1)
    for values, expected in zip(
        parts, ({0, 2}, {0, 2}, {0, 2}, {0, 4}), strict=True
    ):
        assert set(np.unique(values)) == expected
    # Each call has its own masks.
    first, second, third, _ = (values.ravel() for values in parts)
    for one, other in ((first, second), (first, third), (second, third)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    x = layers.Concatenate()([InvariantDropout(0.5)(a), layers.Dropout(0.5)(b)])
    outputs = {
        "sum": layers.Dense(1, kernel_initializer="ones")(x),
        "both": [x, layers.Dense(2, activation="softmax")(x)],
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    x = {"b": random(9, 2), "a": random(9, 3, seed=1)}
    found = MonteCarlo(model, samples=2000, seed=0).predict(x, batch_size=4500)
    assert set(found) == {"sum", "both"}
    joined = np.concatenate([x["a"], x["b"]], axis=1)
    together = found["both"][0]
    # The standard error of 2,000 samples is |joined| / sqrt(2000).
    error = np.abs(together.mean - joined)
    assert (error < 5 * np.abs(joined) / 2000**0.5).all()
    np.testing.assert_allclose(
        together.standard_deviation, np.abs(joined), rtol=0.1
    )
    np.testing.assert_allclose(
        found["sum"].mean[:, 0], together.mean.sum(axis=1), atol=1e-4
    )
    assert together.entropy is None
    assert found["both"][1].entropy.shape == (9,)
    one_of_two = keras.Model([a, b], [outputs["sum"], outputs["both"][1]])
    first, second = MonteCarlo(one_of_two).predict([x["a"], x["b"]])
    assert first.mean.shape == (9, 1)
    assert second.mutual_information.min() > 0


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(dtype):
    drop = InvariantDropout(0.5, beta_initializer="ones", dtype=dtype)
    dense = layers.Dense(10, activation="softmax", dtype=dtype)
    model = sequential(drop, dense)
    found = MonteCarlo(model, seed=0).predict(random(20, 6), batch_size=2000)
    assert found.mean.dtype == found.entropy.dtype == "float64"
    np.testing.assert_allclose(found.mean.sum(axis=1), 1, atol=0.01)
    assert found.mutual_information.min() > 0
    assert found.entropy.max() <= np.log(10)


def test_the_inputs_are_not_rounded_under_a_policy_for_all():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = sequential(layers.Dropout(0.0, dtype="float32"))
        found = MonteCarlo(model, samples=2).predict(np.full((1, 6), 1.001))
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(found.mean, 1.001, rtol=1e-6)


def test_the_same_seed_gives_the_same():
    model = sequential(
        layers.Dropout(0.5),
        InvariantDropout(0.5, seed=3),
        InvariantDropout(0.5),
        layers.Reshape((3, 2)),
        layers.LSTM(4, dropout=0.5, recurrent_dropout=0.5),
    )
    monte_carlo, x = MonteCarlo(model, samples=20, seed=4), random(5, 6)
    found = monte_carlo.predict(x)
    for again in (
        monte_carlo.predict(x),
        MonteCarlo(model, samples=20, seed=4).predict(x),
    ):
        np.testing.assert_array_equal(found.mean, again.mean)
    for seed in (5, -1, 2**70):
        other = MonteCarlo(model, samples=20, seed=seed).predict(x)
        assert np.mean(found.mean == other.mean) < 0.5


def test_without_a_seed_the_masks_are_new():
    seeded = sequential(layers.Dropout(0.5, seed=3), layers.Dense(2))
    monte_carlo, x = MonteCarlo(seeded, samples=20), random(5, 6)
    one, two = monte_carlo.predict(x).mean, monte_carlo.predict(x).mean
    assert np.abs(one - two).min() > 0
    keras.utils.set_random_seed(1)
    one = monte_carlo.predict(x).mean
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(monte_carlo.predict(x).mean, one)


def test_layers_of_the_same_seed_have_masks_of_their_own():
    inputs = keras.Input((6,))
    branches = [
        layers.Dropout(0.5, seed=3)(inputs),
        layers.Dropout(0.5, seed=3)(inputs),
        InvariantDropout(0.5, seed=3)(inputs),
        InvariantDropout(0.5, seed=3)(inputs),
    ]
    model = keras.Model(inputs, layers.Concatenate()(branches))
    y = drawn(model, np.ones((1, 6), "float32"), samples=2000)
    masks = y.reshape((-1, 24)).T
    assert np.abs(np.corrcoef(masks) - np.eye(24)).max() < 0.12


def test_the_calls_that_share_out_the_samples_have_masks_of_their_own():
    model = sequential(layers.Dropout(0.5, seed=3), shape=(50,))
    x = np.ones((1, 50), "float32")
    found = MonteCarlo(model, samples=4000, seed=0).predict(x, batch_size=40)
    # With the same 40 masks in each call the error would be ten times larger.
    z = (found.mean - 1) * np.sqrt(4000)
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3


def sequence_classifier():
    """Draws masks in all the ways that there are."""
    inputs = keras.Input((4, 6))
    x = layers.Dropout(0.5, noise_shape=(None, 1, 6))(inputs)
    x = layers.MultiHeadAttention(2, 3, dropout=0.5)(x, x)
    x = layers.SimpleRNN(5, dropout=0.5, recurrent_dropout=0.5)(x)
    x = layers.AlphaDropout(0.3)(InvariantDropout(0.5)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def test_consistent_masks_are_those_of_every_example_in_any_batch():
    model, x = sequence_classifier(), random(5, 4, 6)
    x[3] = x[0]

    def samples(monte_carlo, x, batch_size=128):
        found = monte_carlo.predict(x, batch_size, return_samples=True)
        assert found.samples.shape == (len(x), 20, 3)
        np.testing.assert_allclose(found.samples.mean(axis=1), found.mean)
        assert found.standard_deviation.min() > 0
        return found.samples

    monte_carlo = MonteCarlo(model, 20, seed=0, consistent_masks=True)
    y = samples(monte_carlo, x)
    np.testing.assert_array_equal(y[3], y[0])
    for batch_size in (20, 1000):
        np.testing.assert_array_equal(
            samples(monte_carlo, x[[2, 0]], batch_size), y[[2, 0]]
        )
    # The 20 samples need three calls, the same three for every example.
    y = samples(monte_carlo, x, batch_size=7)
    np.testing.assert_array_equal(y[3], y[0])
    assert len(np.unique(y[0].round(6), axis=0)) > 7
    np.testing.assert_array_equal(
        samples(monte_carlo, x[3:], batch_size=7)[0], y[0]
    )


def test_a_consistent_mask_makes_one_network_for_all_examples():
    model = sequential(
        InvariantDropout(0.5), layers.Dropout(0.5), layers.Dense(2)
    )
    a, b = random(2, 6)
    x = np.stack([a, b, 2 * a + b, a])
    for consistent in (True, False):
        monte_carlo = MonteCarlo(model, 1000, consistent_masks=consistent)
        y = monte_carlo.predict(x, return_samples=True).samples
        assert np.array_equal(y[0], y[3]) == consistent
        # The network of every mask is linear, as its bias and shift are 0.
        error = np.abs(y[2] - (2 * y[0] + y[1]))
        assert (error.max() < 1e-4) == consistent
        assert (np.median(error) > 0.1) != consistent
        # Each variance is that of independent masks.
        kernel, _ = model.layers[-1].get_weights()
        np.testing.assert_allclose(
            y.var(axis=1), 3 * x**2 @ kernel**2, rtol=0.3
        )
        again = monte_carlo.predict(x, return_samples=True).samples
        assert np.median(np.abs(again - y)) > 0.1


def test_the_samples_are_kept_if_asked_for():
    monte_carlo, x = MonteCarlo(classifier(), 10, seed=0), random(7, 6)
    assert monte_carlo.predict(x).samples is None
    for batch_size in (4, 25):
        found = monte_carlo.predict(x, batch_size, return_samples=True)
        y = found.samples
        assert y.shape == (7, 10, 3) and y.dtype == "float64"
        np.testing.assert_allclose(y.mean(axis=1), found.mean)
        np.testing.assert_allclose(
            y.std(axis=1), found.standard_deviation, atol=1e-12
        )
    with pytest.raises(ValueError, match="`return_samples`.*a boolean"):
        monte_carlo.predict(x, return_samples=3)


def test_entropy_only_of_distributions():
    x = random(5, 4, 6)
    drop, dense = layers.Dropout(0.5), layers.Dense(3, activation="softmax")
    found = MonteCarlo(sequential(drop, dense, shape=(4, 6))).predict(x)
    assert found.entropy.shape == found.mutual_information.shape == (5, 4)
    for last in (
        layers.Dense(3),
        layers.Dense(1, activation="sigmoid"),
        layers.Dense(1, kernel_initializer="zeros", bias_initializer="ones"),
        layers.Dense(2, activation="sigmoid"),
        layers.Softmax(axis=1),
    ):
        found = MonteCarlo(sequential(drop, last, shape=(4, 6))).predict(x)
        assert found.entropy is None
        assert found.mutual_information is None
        assert found.mean.shape[:2] == (5, 4)


def test_one_example_that_is_no_distribution_is_enough():
    model = sequential(layers.Dropout(0.0), shape=(2,))
    x = np.array([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]], "float32")
    found = MonteCarlo(model).predict(x)
    np.testing.assert_allclose(found.entropy, [0, np.log(2), np.log(2)])
    np.testing.assert_array_equal(found.mutual_information, 0)
    x[2] = [1.5, -0.5]
    assert MonteCarlo(model).predict(x).entropy is None


def test_a_model_of_a_fixed_batch_size():
    inputs = keras.Input(batch_shape=(8, 6))
    model = keras.Model(inputs, layers.Dropout(0.5)(inputs))
    found = MonteCarlo(model, samples=30).predict(random(5, 6))
    assert found.standard_deviation.min() > 0


def test_padding_stays_masked():
    model = sequential(
        layers.Masking(0.0),
        layers.Dropout(0.0),
        RunningAverageDropout(0.0, shared_axes=[1]),
        layers.LSTM(2),
        shape=(4, 3),
    )
    x = random(5, 4, 3)
    x[:3, 2:] = 0
    found = MonteCarlo(model, samples=3).predict(x)
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(found.mean, expected, rtol=1e-4, atol=1e-6)


def test_kinds_of_arrays():
    model = classifier()
    x = random(5, 6)
    expected = MonteCarlo(model, seed=0).predict(x).mean
    for data in (ops.convert_to_tensor(x), x.astype("float64")):
        found = MonteCarlo(model, seed=0).predict(data)
        np.testing.assert_allclose(found.mean, expected, rtol=1e-5)
    model = sequential(layers.Dropout(0.0))
    x = np.arange(12).reshape((2, 6)).astype("uint8")
    np.testing.assert_array_equal(MonteCarlo(model).predict(x).mean, x)


class Pairs(keras.utils.PyDataset):
    """Batches of 3 examples with their targets."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // 3)

    def __getitem__(self, i):
        return tuple(array[3 * i : 3 * i + 3] for array in self.arrays)


def tf_data(*arrays):
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.data.Dataset.from_tensor_slices(arrays).batch(3)


def data_loader(*arrays):
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader([*zip(*arrays, strict=True)], batch_size=3)


DATA_SETS = {
    "PyDataset": Pairs,
    "tf.data": tf_data,
    "DataLoader": data_loader,
    "iterator": lambda *arrays: iter([*Pairs(*arrays)]),
    "empty-batch": lambda *arrays: iter(
        [[array[:0] for array in arrays], *Pairs(*arrays)]
    ),
}


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_a_data_set_gives_what_its_arrays_give(data_set):
    # Every example has the same masks.
    monte_carlo = MonteCarlo(classifier(), 8, seed=0, consistent_masks=True)
    x, y = random(7, 6), np.arange(7) % 3
    weights = np.arange(7.0)
    expected = monte_carlo.predict(x, return_samples=True)
    make = DATA_SETS[data_set]
    found = monte_carlo.predict(make(x, y), return_samples=True)
    assert found.samples.shape == (7, 8, 3)
    np.testing.assert_allclose(found.samples, expected.samples, rtol=1e-5)
    for name in ("mean", "standard_deviation", "entropy"):
        values = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
    expected = monte_carlo.evaluate(
        x, y, sample_weight=weights, out_of_distribution=-x
    )
    found = monte_carlo.evaluate(
        make(x, y, weights), out_of_distribution=make(-x)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    unweighted = monte_carlo.evaluate(make(x, y))
    assert unweighted == pytest.approx(monte_carlo.evaluate(x, y), rel=1e-4)
    assert unweighted["brier_score"] != pytest.approx(expected["brier_score"])


def test_the_batches_of_a_data_set_have_masks_of_their_own():
    x = np.ones((9, 6))
    monte_carlo = MonteCarlo(classifier(), 4, seed=0)
    found = monte_carlo.predict(Pairs(x), return_samples=True).samples
    assert len(np.unique(found.reshape((36, 3)), axis=0)) > 9
    again = monte_carlo.predict(Pairs(x), return_samples=True).samples
    np.testing.assert_array_equal(found, again)


def test_a_data_set_of_several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    outputs = {"sum": layers.Dropout(0.5)(a) + b, "same": layers.Identity()(b)}
    monte_carlo = MonteCarlo(keras.Model({"a": a, "b": b}, outputs), 3)
    x = {"a": random(5, 3), "b": random(5, 3)}
    y = {"sum": random(5, 3), "same": x["b"] + 2}
    batches = [
        tuple({k: v[i : i + 2] for k, v in part.items()} for part in (x, y))
        for i in (0, 2, 4)
    ]
    found = monte_carlo.evaluate(iter(batches))
    assert found["same"]["mean_squared_error"] == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("kind", [list, tuple])
def test_targets_of_several_outputs_in_the_containers_of_keras(kind):
    inputs = keras.Input((3,))
    outputs = kind(
        [
            layers.Identity(name="same")(inputs),
            layers.Dropout(0.5, name="dropped")(inputs),
        ]
    )
    monte_carlo = MonteCarlo(keras.Model(inputs, outputs), 3, seed=0)
    x = random(4, 3)
    y = [x + 2, random(4, 3)]
    same, dropped = monte_carlo.evaluate(x, kind(y))
    assert same["mean_squared_error"] == pytest.approx(4, rel=1e-5)
    named = {"dropped": y[1], "same": y[0]}
    for targets in (y, tuple(y), named):
        for found in (
            monte_carlo.evaluate(x, targets),
            monte_carlo.evaluate(iter([(x, targets)])),
        ):
            assert isinstance(found, kind)
            assert list(found) == [same, dropped]


def test_targets_are_looked_for_before_any_prediction(monkeypatch):
    monte_carlo = MonteCarlo(classifier(), 2)
    monkeypatch.setattr(monte_carlo, "_drawn", None)
    with pytest.raises(ValueError, match="`y`. Expected an array"):
        monte_carlo.evaluate(random(4, 6))


def sequences():
    """Batches of sequences that are padded to the length of their longest."""
    return iter([(random(2, n, 4), np.zeros((2, n), int)) for n in (3, 5)])


def test_batches_of_different_lengths():
    model = sequential(layers.Dropout(0.5), layers.Softmax(), shape=(None, 4))
    match = r"`x`. Expected batches for which.*\(3, 4\).*\(5, 4\)"
    with pytest.raises(ValueError, match=match):
        MonteCarlo(model, 2).evaluate(sequences())


def test_a_dict_of_lists_is_no_data_set():
    rows = {"x": [[1.0] * 6] * 2}
    with pytest.raises(ValueError, match="`x`. Expected an array, or a list"):
        MonteCarlo(classifier(), 2).predict(rows)


@pytest.mark.parametrize(
    ("x", "kwargs", "match"),
    [
        (Pairs(random(4, 6)), {}, "`y`. Expected an array.*data set"),
        (
            iter([(random(4, 6), [0] * 4, [1] * 4), (random(4, 6), [0] * 4)]),
            {},
            "`x`. Expected sample weights in all batches or in none",
        ),
        (
            iter([(random(2, 6), [0, 1]), (random(2, 6), [[0], [1]])]),
            {},
            r"`y`. Expected batches of one shape.*\(2,\), \(2, 1\)",
        ),
        (Pairs(random(4, 6)), {"y": [0] * 4}, "`y`. Expected None.*data set"),
        (
            Pairs(random(4, 6), [0] * 4),
            {"sample_weight": [1] * 4},
            "`sample_weight`. Expected None.*data set",
        ),
        (iter([]), {}, "`x`. Expected one example or more"),
        (iter([3]), {}, "`x`. Expected arrays, a data set"),
        (iter(["text"]), {}, "`x`. Expected arrays of numbers"),
        (
            Pairs(random(4, 5), [0] * 4),
            {},
            r"`x`.*of shape \(None, 6\).*\(3, 5\)",
        ),
        (
            random(4, 6),
            {"y": [0] * 4, "out_of_distribution": Pairs(random(4, 5))},
            r"`out_of_distribution`.*of shape \(None, 6\).*\(3, 5\)",
        ),
    ],
    ids=[
        "no-targets",
        "some-weights",
        "shapes",
        "y",
        "weight",
        "empty",
        "number",
        "text",
        "features",
        "others",
    ],
)
def test_bad_data_sets(x, kwargs, match):
    with pytest.raises(ValueError, match=match):
        MonteCarlo(classifier(), 2).evaluate(x, **kwargs)


def test_one_sample():
    found = MonteCarlo(classifier(), samples=1).predict(random(5, 6))
    np.testing.assert_array_equal(found.standard_deviation, 0)
    np.testing.assert_array_equal(found.mutual_information, 0)


def test_no_dropout():
    with pytest.raises(ValueError, match="`model`.*at least one dropout layer"):
        MonteCarlo(sequential(layers.Dense(3)))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (layers.Dropout(0.5), "`model`. Expected a `keras.Model`"),
        (keras.Sequential([layers.Dropout(0.5)]), "has been built"),
        (type("Own", (keras.Model,), {})(), "call it once"),
    ],
)
def test_bad_models(model, match):
    with pytest.raises(ValueError, match=match):
        MonteCarlo(model)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"samples": 0}, "`samples`"),
        ({"samples": 1.5}, "`samples`"),
        ({"samples": True}, "`samples`"),
        ({"seed": "a"}, "`seed`"),
        ({"seed": 1.5}, "`seed`"),
        ({"consistent_masks": "all"}, "`consistent_masks`"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        MonteCarlo(classifier(), **kwargs)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match="`batch_size`"):
        MonteCarlo(classifier()).predict(random(4, 6), batch_size=batch_size)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (random(0, 6), r"`x`. Expected.*at least one.*\(0, 6\)"),
        ([random(4, 6), random(4, 6)], r"`x`.*\[\(4, 6\), \(4, 6\)\]"),
        (3, "`x`. Expected an array"),
        (np.float32(3), "`x`. Expected arrays"),
        (None, "`x`. Expected an array"),
        (random(4, 5), r"`x`.*of shape \(None, 6\).*\(4, 5\)"),
    ],
    ids=["empty", "list", "number", "scalar", "none", "features"],
)
def test_bad_data(x, match):
    with pytest.raises(ValueError, match=match):
        MonteCarlo(classifier()).predict(x)


def test_inputs_of_different_sizes():
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Add()([layers.Dropout(0.5)(a), b]))
    with pytest.raises(ValueError, match=r"`x`.*same.*\(4, 3\), \(5, 3\)"):
        MonteCarlo(model).predict([random(4, 3), random(5, 3)])


@keras.saving.register_keras_serializable("tests")
class AddsIfGiven(keras.Layer):
    def call(self, x, other=None):
        return x if other is None else x + other


def test_an_optional_input_may_be_none():
    other = keras.Input((3,), optional=True)
    x = keras.Input((3,))
    outputs = layers.Dropout(0.5)(AddsIfGiven()(x, other))
    model = keras.Model([x, other], outputs)
    given = np.ones((2, 3), "float32")
    try:
        model.predict([given, None], verbose=0)
    except AttributeError:
        pytest.skip("`predict` of Keras 3.10 does not take None")
    prediction = MonteCarlo(model, 20, seed=0).predict([given, None])
    assert prediction.mean.shape == (2, 3)
    assert prediction.standard_deviation.min() > 0


@pytest.mark.parametrize("filters", [3, [re.compile("drop")]])
def test_filters_are_texts(filters):
    model = sequential(layers.Dropout(0.5), shape=(3,))
    with pytest.raises(ValueError, match="`filters`. Expected a regular"):
        MonteCarlo(model, filters=filters)


def test_the_path_of_a_file_is_checked():
    model = sequential(layers.Dropout(0.5), shape=(3,))
    with pytest.raises(ValueError, match="`filepath`. Expected a path"):
        MonteCarlo(model).save(3)
