"""Dropout inside the layers of a model."""

import operator
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import random as kr
from keras import tree
from small_models import Cell
from small_models import Drawing
from small_models import random

from keras_invdrop import BetaMonitor
from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import calibrate
from keras_invdrop import fold
from keras_invdrop import invariantize
from keras_invdrop import variance_report
from keras_invdrop.models._dropping_layers import DRAWS
from keras_invdrop.models._dropping_layers import paths_of

HAS_KERAS_HUB = keras.__version__ >= "3.15"  # which KerasHub needs
if HAS_KERAS_HUB:
    import keras_hub

of_keras_hub = pytest.mark.skipif(
    not HAS_KERAS_HUB, reason="KerasHub needs a newer Keras"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dropout that is not converted"),
    pytest.mark.filterwarnings("ignore:`build\\(\\)` was called"),
]
registered = keras.saving.register_keras_serializable("test_inside")


@registered
class TransformerBlock(layers.Layer):
    def __init__(self, units=8, rate=0.3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate = units, rate
        self.attention = layers.MultiHeadAttention(2, 4, dropout=rate)
        self.drops = [layers.Dropout(rate), layers.Dropout(rate)]
        self.dense = keras.Sequential(
            [
                layers.Dense(2 * units, activation="relu"),
                layers.Dropout(rate),
                layers.Dense(units),
            ]
        )
        self.norms = [layers.LayerNormalization() for _ in range(2)]

    def call(self, x):
        x = self.norms[0](x + self.drops[0](self.attention(x, x)))
        return self.norms[1](x + self.drops[1](self.dense(x)))

    def get_config(self):
        config = {"units": self.units, "rate": self.rate}
        return {**super().get_config(), **config}


@registered
class ResidualBlock(layers.Layer):
    """Holds its layers in a dict, and makes them when it is built."""

    def build(self, input_shape):
        self.parts = {
            "conv": layers.Conv2D(input_shape[-1], 3, padding="same"),
            "drop": layers.SpatialDropout2D(0.3, "channels_last"),
        }
        self.parts["conv"].build(input_shape)

    def call(self, x):
        return x + self.parts["drop"](self.parts["conv"](x))


@registered
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = TransformerBlock()
        self.drop = layers.Dropout(0.5, name="last_drop")
        self.dense = layers.Dense(2)

    def call(self, x, training=False):
        x = ops.mean(self.block(x, training=training), axis=1)
        return self.dense(self.drop(x, training=training))


@registered
class Backbone(keras.Model):
    """Of a graph, with layers as attributes, as KerasHub writes them."""

    # As in KerasHub: PyTorch lists no layers before the graph is made.
    lists_early = keras.backend.backend() != "torch"

    def __init__(self, units=8, **kwargs):
        block, drop = TransformerBlock(units), layers.Dropout(0.2)
        self.preprocessor = layers.Rescaling(1.0)  # not in the graph
        self.norm = layers.LayerNormalization()
        self.inside = block.dense
        self.block, self.drop = block, drop
        self.units = units
        inputs = keras.Input((6, units))
        outputs = block(drop(self.norm(inputs)))
        super().__init__(inputs, outputs, **kwargs)

    def __setattr__(self, name, value):
        if self.lists_early or hasattr(self, "_layers"):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def get_config(self):
        return {"units": self.units, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@registered
class Twice(layers.Layer):
    """Calls one dropout layer on different numbers of features."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)
        self.dense = layers.Dense(7)

    def call(self, x):
        return self.drop(self.dense(self.drop(x)))


def graph(*model_layers, shape):
    inputs = x = keras.Input(shape)
    for layer in model_layers:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 4, 8)))
    return model


MODELS = {
    "transformer block": (
        lambda: graph(
            layers.Dropout(0.1),
            TransformerBlock(),
            TransformerBlock(),
            shape=(None, 8),
        ),
        (4, 6, 8),
        [(1, 8), (1, 8), (1, 16)],
    ),
    "residual block": (
        lambda: graph(ResidualBlock(), ResidualBlock(), shape=(5, 5, 3)),
        (4, 5, 5, 3),
        [(1, 1, 3)],
    ),
    "TimeDistributed": (
        lambda: graph(
            layers.TimeDistributed(layers.Dropout(0.5)), shape=(4, 3)
        ),
        (4, 4, 3),
        [(3,)],
    ),
    "cell": (
        lambda: graph(layers.RNN(Cell()), shape=(4, 3)),
        (4, 4, 3),
        [(3,)],
    ),
    "twice": (lambda: graph(Twice(), shape=(3,)), (4, 3), [((3,), (7,))]),
    "backbone": (Backbone, (4, 6, 8), [(1, 8), (1, 16)]),
    "subclass": (subclassed, (4, 4, 8), [(1, 8), (1, 8), (1, 16), (8,)]),
}


def predicted(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def betas(model):
    return [
        layer.beta
        for layer in model._flatten_layers()
        if isinstance(layer, InvariantDropout)
    ]


def assert_it_works(model, x, new, path, rtol=0.0, trains=True):
    """It predicts the same, trains each beta, and loads from a file."""
    expected = predicted(model, x)
    np.testing.assert_allclose(predicted(new, x), expected, rtol=rtol)
    if trains:
        y = random(*expected.shape)
        if new.compiled:  # as KerasHub compiles a classifier
            y = np.arange(len(y))
        else:
            new.compile("adam", "mse")
        new.fit(x, y, epochs=2, verbose=0)
        assert all(np.any(ops.convert_to_numpy(x)) for x in betas(new))
    new.save(path)
    loaded = keras.models.load_model(path)
    assert len(betas(loaded)) == len(betas(new))
    np.testing.assert_array_equal(predicted(loaded, x), predicted(new, x))


@pytest.mark.parametrize("name", MODELS)
def test_dropout_inside_layers_is_converted(name, tmp_path):
    make, shape, beta_shapes = MODELS[name]
    model, x = make(), random(*shape)
    weights = len(model.weights)
    new, report = invariantize(model, inputs=x, return_report=True)
    assert type(model) in type(new).__mro__
    assert len(model.weights) == weights and not betas(model)
    done = [row for row in report if row.beta is not None]
    assert set(beta_shapes) <= {row.beta for row in done}
    assert len(betas(new)) == len(done) + (name == "twice")
    assert {row.reason for row in report if row.beta is None} <= {
        "its input adds up to 1, as attention scores do (`attention=True` "
        "converts it)"
    }
    # JAX compiles the loop over a cell, which changes the order of the sums and
    # so their rounding. Keras cannot draw masks in such a loop.
    compiled = name == "cell" and keras.backend.backend() == "jax"
    assert_it_works(
        model,
        x,
        new,
        tmp_path / "new.keras",
        rtol=1e-6 if compiled else 0.0,
        trains=not compiled,
    )


@pytest.mark.one_backend("jax")  # PyTorch cannot list layers early.
@pytest.mark.parametrize("lists_early", [True, False])
def test_a_file_is_read_where_layers_are_listed_in_another_order(
    lists_early, tmp_path, monkeypatch
):
    monkeypatch.setattr(Backbone, "lists_early", lists_early)
    new = invariantize(Backbone())
    for i, beta in enumerate(betas(new)):
        beta.assign(random(*beta.shape, seed=i))
    new.save(tmp_path / "new.keras")
    x = random(4, 6, 8)
    expected = predicted(new, x)
    monkeypatch.setattr(Backbone, "lists_early", not lists_early)
    loaded = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(predicted(loaded, x), expected)


@registered
class Shrinking(layers.Layer):
    """Has fewer dropout layers after a change of its class."""

    count = 2

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drops = [layers.Dropout(0.5) for _ in range(self.count)]

    def call(self, x):
        for drop in self.drops:
            x = drop(x)
        return x


def test_a_class_that_has_changed_is_named(tmp_path, monkeypatch):
    new = invariantize(graph(Shrinking(name="it"), shape=(3,)))
    new.save(tmp_path / "new.keras")
    monkeypatch.setattr(Shrinking, "count", 1)
    with pytest.raises(ValueError, match="'it', a.*another backend or version"):
        keras.models.load_model(tmp_path / "new.keras")


def test_a_cell_that_drops_trains_if_it_is_unrolled():
    def fit(dropout, unroll):
        cell = Cell()
        cell.drop = dropout
        model = graph(layers.RNN(cell, unroll=unroll), shape=(4, 3))
        model.compile("sgd", "mse")
        model.fit(random(4, 4, 3), np.zeros((4, 2)), verbose=0)
        return cell.drop

    beta = fit(InvariantDropout(0.4), unroll=True).beta
    assert np.any(ops.convert_to_numpy(beta))
    if keras.backend.backend() == "jax":
        # As the guide says; should Keras learn to, change the guide.
        with pytest.raises(Exception, match="unexpected tracer"):
            fit(layers.Dropout(0.4), unroll=False)
    else:
        fit(InvariantDropout(0.4), unroll=False)


def test_one_beta_for_each_head(tmp_path):
    make, shape, _ = MODELS["transformer block"]
    model, x = make(), random(*shape)
    new, report = invariantize(model, attention=True, return_report=True)
    assert [row.beta for row in report].count((2, 1, 1)) == 2
    assert_it_works(model, x, new, tmp_path / "new.keras")


@pytest.mark.parametrize("name", ["transformer block", "subclass"])
def test_the_model_itself_is_converted(name, tmp_path):
    make, shape, _ = MODELS[name]
    model, x = make(), random(*shape)
    expected = predicted(model, x)
    model.compile("adam", "mse")
    model.fit(x, np.zeros(expected.shape), verbose=0)
    expected = model.predict(x, verbose=0)
    new = invariantize(model, inputs=x, inplace=True)
    assert new is model and len(betas(model)) >= 4
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    assert not model.optimizer.built
    model.fit(x, np.zeros(expected.shape), epochs=2, verbose=0)
    assert all(np.any(ops.convert_to_numpy(x)) for x in betas(model))


def test_filters_choose_by_path():
    model = graph(
        TransformerBlock(name="one"), TransformerBlock(name="two"), shape=(4, 8)
    )
    with warnings.catch_warnings():
        # What was left out on purpose is no surprise.
        warnings.simplefilter("error")
        new, report = invariantize(
            model, filters=["^two/dropout", "none"], return_report=True
        )
    paths = [row.path for row in report if row.beta is not None]
    assert len(paths) == len(betas(new)) == 2
    assert all(path.startswith("two/dropout") for path in paths)
    assert len(report) == 8
    assert str(report[0]).startswith(f"{report[0].path} (Dropout, rate 0.3): ")


class DropPath(layers.Layer):
    def __init__(self, rate=0.25, attribute="rate", **kwargs):
        super().__init__(**kwargs)
        setattr(self, attribute, rate)
        self.keep = 1 - rate
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        keep = keras.random.uniform(shape, seed=self.generator) < self.keep
        return x * ops.cast(keep, x.dtype)


@pytest.mark.parametrize(
    ("layer", "path", "reason"),
    [
        (Drawing(name="it"), "it", DRAWS),
        (DropPath(name="it"), "it", "drops whole paths"),
        (DropPath(attribute="drop_prob", name="it"), "it", "drops whole paths"),
        (
            layers.ConvLSTM1D(2, 1, dropout=0.25, name="it"),
            "it/conv_lstm_cell",
            "draws its masks itself (dropout=0.25)",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_cannot_be_converted_is_reported(layer, path, reason):
    model = keras.Sequential([keras.Input((4, 5, 3)), layer])
    with (
        pytest.warns(UserWarning, match="no `Dropout`"),
        pytest.warns(UserWarning, match=f"stays as it is: '{path}"),
    ):
        new, (row,) = invariantize(model, return_report=True)
    assert new is model
    assert row.path.startswith(path) and row.beta is None
    assert row.reason == reason
    assert row.rate == (None if reason == DRAWS else 0.25)


def test_a_path_that_is_never_dropped_is_no_place(recwarn):
    model = graph(DropPath(0.0, "drop_rate"), layers.Dropout(0.5), shape=(3,))
    _, report = invariantize(model, return_report=True)
    assert len(report) == 1 and not recwarn


def half_of(x, seed):
    return kr.dropout(x, 0.5, seed=seed)


class Halving:
    def __call__(self, x, seed):
        return half_of(x, seed)


class ByModule(Drawing):
    def call(self, x, training=False):
        return kr.dropout(x, 0.5, seed=self.seed_generator) if training else x


class ByFunction(Drawing):
    def call(self, x, training=False):
        return half_of(x, self.seed_generator) if training else x


class ByInnerFunction(Drawing):
    def call(self, x, training=False):
        from keras import random

        def half(x):
            return random.dropout(x, 0.5, seed=self.seed_generator)

        return half(x) if training else x


class ByObject(Drawing):
    """Only a call shows that it drops."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.half = Halving()

    def call(self, x, training=False):
        return self.half(x, self.seed_generator) if training else x


def by_lambda(name):
    seed = keras.random.SeedGenerator(0)
    return layers.Lambda(
        lambda x, training=False: half_of(x, seed) if training else x, name=name
    )


class ByModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)
        self.dense = layers.Dense(2)

    def call(self, x, training=False):
        x = self.dense(x)
        return half_of(x, self.seed_generator) if training else x


def by_model(name):
    model = ByModel(name=name)
    model(np.zeros((1, 3)))
    return model


@pytest.mark.parametrize(
    "make", [ByModule, ByFunction, ByInnerFunction, ByObject, by_lambda]
)
def test_layers_that_draw_masks_in_some_other_way(make):
    drawing = make(name="it")
    model = graph(drawing, layers.Dropout(0.5), shape=(3,))
    with pytest.warns(UserWarning, match="as it is: 'it': calls `keras.random"):
        _, report = invariantize(model, return_report=True)
    (row,) = [row for row in report if row.beta is None]
    assert row.path == "it" and row.reason == DRAWS
    name = type(drawing).__name__
    assert str(row) == f"it ({name}, rate unknown): not converted: {DRAWS}"
    assert_the_spread_of_training(model, random(2, 3))


def test_a_model_whose_call_draws_masks():
    model = by_model("it")
    x = random(2, 3)
    with pytest.warns(UserWarning, match="as it is: 'it': calls `keras.random"):
        _, report = invariantize(model, inputs=x, return_report=True)
    assert [row.path for row in report] == ["it"]
    assert_the_spread_of_training(model, x)


def test_a_dropout_attribute_is_not_a_function_of_keras():
    class Uniform(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dropout = layers.Dropout(0.5)

        def call(self, x):
            return self.dropout(x + keras.random.uniform((1, 3), seed=1))

    _, report = invariantize(graph(Uniform(), shape=(3,)), return_report=True)
    assert [row.reason for row in report] == [None]


def test_a_model_that_cannot_be_called_on_random_numbers():
    class Picky(TransformerBlock):
        def call(self, x):
            if x.shape[1] == 4:
                raise RuntimeError("four timesteps")
            return super().call(x)

    model = graph(Picky(), shape=(None, 8))
    with pytest.raises(ValueError, match="(?s)on random.*`inputs`.*four times"):
        invariantize(model)
    with pytest.raises(ValueError, match="(?s)on the example.*four times"):
        invariantize(model, inputs=random(2, 4, 8))
    new = invariantize(model, inputs=random(2, 6, 8))
    assert len(betas(new)) == 3


def test_an_example_that_is_not_of_numbers():
    with pytest.raises(ValueError, match="`inputs`.*arrays of numbers"):
        invariantize(graph(TransformerBlock(), shape=(6, 8)), inputs="x")


def test_a_model_that_cannot_be_copied_is_converted_itself():
    class Reading(TransformerBlock):
        def __init__(self, file, **kwargs):
            super().__init__(**kwargs)
            self.file = file

    with open(__file__) as file:
        model = graph(Reading(file), shape=(4, 8))
        out = "attribute `file`.*: keep it outside the layer"
        with pytest.raises(ValueError, match=f"{out}.*inplace=True"):
            invariantize(model)
        with pytest.raises(ValueError, match=out):
            MonteCarlo(model)
        invariantize(model, inplace=True)
    assert len(betas(model)) == 3


def test_a_folded_network_keeps_what_is_inside_its_layers(tmp_path):
    model = graph(TransformerBlock(), layers.Dropout(0.5), shape=(4, 8))
    new = invariantize(model)
    for beta in betas(new):
        beta.assign(random(*beta.shape))
    x = random(5, 4, 8)
    folded = fold(new)
    assert len(betas(folded)) == 3  # the fourth, in the graph, is in a bias
    np.testing.assert_allclose(
        predicted(folded, x), predicted(new, x), rtol=1e-4, atol=1e-5
    )
    folded.save(tmp_path / "folded.keras")
    np.testing.assert_array_equal(
        predicted(keras.models.load_model(tmp_path / "folded.keras"), x),
        predicted(folded, x),
    )


DRAWING = {
    **{name: MODELS[name][:2] for name in MODELS},
    "cell in both directions": (
        lambda: graph(layers.Bidirectional(layers.RNN(Cell())), shape=(4, 3)),
        (4, 4, 3),
    ),
    "cell that calls a function": (
        lambda: graph(layers.RNN(DrawingCell()), shape=(4, 3)),
        (4, 4, 3),
    ),
    "recurrent": (
        lambda: graph(
            layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2),
            layers.Reshape((4, 1)),
            layers.Bidirectional(layers.GRU(3, dropout=0.3)),
            shape=(4, 3),
        ),
        (4, 4, 3),
    ),
    "attention": (
        lambda: graph(Attending(), shape=(4, 3)),
        (4, 4, 3),
    ),
    "drawing": (lambda: graph(Drawing(), shape=(3,)), (4, 3)),
    "path": (lambda: graph(DropPath(), shape=(3,)), (4, 3)),
    "converted": (
        lambda: invariantize(MODELS["transformer block"][0](), attention=True),
        (4, 6, 8),
    ),
}


class DrawingCell(Cell):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = Drawing()


class Attending(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.Attention(dropout=0.3)

    def call(self, x):
        return self.attention([x, x])


@pytest.mark.parametrize("name", DRAWING)
def test_monte_carlo_draws_the_masks_of_training(name):
    keras.utils.set_random_seed(0)
    make, shape = DRAWING[name]
    assert_the_spread_of_training(make(), random(*shape)[:2])


def assert_the_spread_of_training(model, x):
    keras.utils.set_random_seed(0)
    found = MonteCarlo(model, 2000, seed=0).predict(x, batch_size=4000)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.RNN):
            layer.unroll = True  # as JAX needs to draw masks
    y = model(np.repeat(x, 2000, axis=0), training=True)
    y = ops.convert_to_numpy(y).reshape((2, 2000, *found.mean.shape[1:]))
    # The standard error of a standard deviation is 2 %, more if few masks are
    # likely.
    np.testing.assert_allclose(
        found.standard_deviation, y.std(axis=1), rtol=0.15
    )
    error = y.std(axis=1) / np.sqrt(1000)
    assert np.abs((found.mean - y.mean(axis=1)) / error).max() < 5


def test_monte_carlo_leaves_the_rest_in_inference_mode():
    class Mixed(Drawing):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()
            self.noise = layers.GaussianNoise(1.0)

        def call(self, x, training=False):
            x = self.noise(self.norm(x, training=training))
            return super().call(x, training=training)

    model = graph(Mixed(), shape=(3,))
    x = 5 + random(2, 3)
    found = MonteCarlo(model, 4000, seed=0).predict(x, batch_size=8000)
    kernel, _ = model.layers[-1].get_weights()
    x = x / np.sqrt(1.001)  # the initial moving variance, and epsilon
    np.testing.assert_allclose(
        found.standard_deviation**2, x**2 @ kernel**2, rtol=0.15
    )


def test_monte_carlo_draws_where_the_filters_say():
    one, two = TransformerBlock(name="one"), layers.Dropout(0.5, name="two")
    model = graph(one, two, shape=(4, 8))
    alone = graph(layers.Dropout(0.5), shape=(4, 8))
    alone.layers[-1].set_weights(model.layers[-1].get_weights())
    x = random(2, 4, 8)
    found = MonteCarlo(model, 500, seed=0, filters="^two$").predict(x)
    hidden = one(x)
    expected = MonteCarlo(alone, 500, seed=0).predict(hidden)
    np.testing.assert_allclose(
        found.standard_deviation, expected.standard_deviation, rtol=0.2
    )
    with pytest.raises(ValueError, match="matches `filters`.*'two'"):
        MonteCarlo(model, filters="three")
    with pytest.warns(UserWarning, match="matches `filters`.*'two'"):
        assert invariantize(model, filters="three") is model
    new = invariantize(model)
    with pytest.warns(UserWarning, match="matches `filters`.*'two'"):
        calibrate(new, x, keep_predictions=False, filters="three")


class Counting:
    """Batches of different sizes, and how often they are read."""

    def __init__(self, x):
        (size,) = {len(array) for array in tree.flatten(x)}
        self.parts = [slice(0, 1), slice(1, size)]
        self.x, self.reads = x, 0

    def __iter__(self):
        self.reads += 1
        for part in self.parts:
            yield tree.map_structure(operator.itemgetter(part), self.x)


def assert_calibrated(model, x, reads, filters=None):
    """Each beta becomes minus the mean of its inputs, in `reads` passes."""
    data = Counting(x)
    before = model.get_weights()
    new = calibrate(model, data, keep_predictions=False, filters=filters)
    assert data.reads == reads and type(new) is type(model)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    arrived = {}
    with pytest.MonkeyPatch.context() as patch:
        call = InvariantDropout.call

        def noting(self, inputs, *args, **kwargs):
            value = ops.convert_to_numpy(inputs).astype("float64")
            arrived.setdefault(self, []).append(value)
            return call(self, inputs, *args, **kwargs)

        patch.setattr(InvariantDropout, "call", noting)
        new(x)
    for layer, values in arrived.items():
        beta = ops.convert_to_numpy(layer.beta)
        shared = [i for i, n in enumerate(beta.shape, 1) if n == 1]
        mean = np.concatenate(values).mean((0, *shared), keepdims=True)[0]
        np.testing.assert_allclose(beta, -mean, rtol=1e-4, atol=1e-5)
    return new, arrived


@pytest.mark.parametrize(
    ("name", "reads", "layers_with_beta"),
    [
        ("transformer block", 7, 7),
        ("residual block", 2, 2),
        ("TimeDistributed", 2, 1),
        ("twice", 2, 2),
        ("subclass", 4, 4),
    ],
)
def test_dropout_inside_layers_is_calibrated(name, reads, layers_with_beta):
    make, shape, _ = MODELS[name]
    x = random(*shape)
    new, arrived = assert_calibrated(
        invariantize(make(), inputs=x), x + 1, reads
    )
    assert len(arrived) == len(betas(new)) == layers_with_beta
    report = variance_report(new, x + 1)
    by_path = {
        path: layer
        for path, layer in paths_of(new)
        if isinstance(layer, InvariantDropout)
    }
    with_beta = [row for row in report if row.layer in by_path]
    assert {row.layer for row in with_beta} == set(by_path)
    for row in with_beta:
        assert row.at_present == pytest.approx(row.at_best, rel=1e-4)
        if row.next_layer is None:
            # The variance over masks of the activities themselves.
            layer = by_path[row.layer]
            y = np.concatenate(arrived[layer]) + ops.convert_to_numpy(
                layer.beta
            )
            factor = layer.rate / (1 - layer.rate)
            expected = factor * np.mean(y**2)
            assert row.at_present == pytest.approx(expected, rel=1e-3)
            assert row.of_data == pytest.approx(y.var(0).mean(), rel=1e-4)
    # Attention scores of Keras' dropout are measured, too.
    scores = [row for row in report if row not in with_beta]
    assert len(scores) == {"transformer block": 2, "subclass": 1}.get(name, 0)
    assert all(row.at_best < row.at_present == row.at_zero for row in scores)
    assert report.at_best == sum(row.at_best for row in report)
    saved = sum(row.at_present - row.at_best for row in report)
    assert report.excess == pytest.approx(saved / report.of_data)
    assert str(report).startswith(f"{report[0]}\n")
    assert f"in all: variance {report.at_zero:.4g} with" in str(report)
    monitor, logs = BetaMonitor(x + 1), {}
    monitor.set_model(new)
    monitor.on_train_begin()
    monitor.on_epoch_end(0, logs)
    for path, layer in by_path.items():
        norm = np.linalg.norm(ops.convert_to_numpy(layer.beta))
        assert logs[f"{path}/beta_norm"] == pytest.approx(norm, rel=1e-5)
        rows = [row for row in report if row.layer == path]
        present = sum(row.at_present for row in rows)
        saved = 1 - present / sum(row.at_zero for row in rows)
        assert logs[f"{path}/variance_saved"] == pytest.approx(saved, abs=1e-6)


@pytest.mark.usefixtures("eager")
def test_branches_are_calibrated_together():
    inputs = keras.Input((4, 8))
    branches = [TransformerBlock(name=name)(inputs) for name in ("a", "b")]
    model = invariantize(keras.Model(inputs, layers.Add()(branches)))
    assert_calibrated(model, random(4, 4, 8), reads=3)
    with pytest.raises(ValueError, match="can be read again: .*'a/"):
        calibrate(model, iter([random(4, 4, 8)] * 2), keep_predictions=False)


@registered
class CellOfStates(Cell):
    """Drops its state, which depends on earlier drops."""

    def call(self, x, states):
        y, _ = super().call(x, [self.drop(states[0])])
        return y, [y]


def test_cells_are_calibrated_where_a_shift_suits_all_steps():
    x = random(4, 4, 3)
    new = calibrate(
        invariantize(graph(layers.RNN(Cell()), shape=(4, 3))),
        x,
        keep_predictions=False,
    )
    (beta,) = betas(new)
    np.testing.assert_allclose(beta, -x.mean((0, 1)), rtol=1e-5)
    (row,) = variance_report(new, x)
    variance = x.var((0, 1)).mean() * 0.4 / 0.6
    assert row.at_present == pytest.approx(variance, rel=1e-3)
    assert not new.layers[1].unroll
    cell = CellOfStates(3, name="cell")
    model = invariantize(graph(layers.RNN(cell, name="rnn"), shape=(4, 3)))
    with pytest.raises(ValueError, match="its own output.*'rnn/cell/dropout"):
        calibrate(model, x, keep_predictions=False)


@pytest.mark.usefixtures("eager")
def test_a_block_that_is_called_again_on_its_output():
    block = TransformerBlock(name="block")
    model = invariantize(graph(block, layers.ReLU(), block, shape=(4, 8)))
    x = random(4, 4, 8)
    with pytest.raises(ValueError, match="`filters` can.*'block/dropout"):
        calibrate(model, x, keep_predictions=False)


@registered
class NormalizedBlock(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(beta_initializer="ones")
        self.drop = layers.Dropout(0.5)

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, x, training=False):
        return self.drop(self.norm(x, training=training))


@pytest.mark.usefixtures("eager")
def test_batch_normalisation_before_dropout_inside_a_layer():
    model = graph(NormalizedBlock(), layers.Dropout(0.5), shape=(3,))
    model = invariantize(model)
    x = 5 + random(64, 3)
    new = calibrate(model, x, keep_predictions=False)
    # In training the mean is beta of the normalisation, whatever arrives.
    np.testing.assert_allclose(
        [ops.convert_to_numpy(beta) for beta in betas(new)],
        [3 * [-1], 3 * [0]],
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="initial moving mean.*'normalized"):
        calibrate(model, x, keep_predictions=True)


@pytest.mark.usefixtures("eager")
def test_shifts_inside_layers_stay_where_predictions_are_kept():
    model = graph(
        TransformerBlock(name="block"),
        layers.Dropout(0.5, name="last"),
        shape=(4, 8),
    )
    model, x = invariantize(model), random(4, 4, 8)
    with pytest.warns(UserWarning, match="'block/dropout.*is not known"):
        new = calibrate(model, x, keep_predictions=True)
    np.testing.assert_allclose(
        predicted(new, x), predicted(model, x), rtol=1e-4, atol=1e-5
    )
    changed = [np.any(ops.convert_to_numpy(beta)) for beta in betas(new)]
    assert changed == [False, False, False, True]
    with pytest.raises(ValueError, match="any shift would.*'block/dropout"):
        calibrate(model, x, keep_predictions=True, filters="^block/")
    with warnings.catch_warnings():
        # What was left out on purpose is no surprise.
        warnings.simplefilter("error", UserWarning)
        calibrate(model, x, keep_predictions=True, filters="last")
    with pytest.raises(ValueError, match="'subclassed.*' has no graph"):
        model = invariantize(subclassed(), inputs=x)
        calibrate(model, x, keep_predictions=True)
    with pytest.raises(ValueError, match="`model`.*call it once"):
        calibrate(Subclassed(), x, keep_predictions=False)


@pytest.mark.usefixtures("eager")
def test_a_layer_that_is_not_called_is_named():
    model = Subclassed()
    model(np.zeros((1, 4, 8)))
    model = invariantize(model, inputs=random(2, 4, 8))
    model.block.call = lambda x, **kwargs: x
    with pytest.warns(UserWarning, match="not call.*'transformer_block"):
        calibrate(model, random(4, 4, 8), keep_predictions=False)


def bert(preprocessor=None):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.2,
        max_sequence_length=6,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=3, preprocessor=preprocessor
    )
    ones = np.ones((2, 6), "int32")
    x = {
        "token_ids": np.arange(12).reshape((2, 6)),
        "segment_ids": 0 * ones,
        "padding_mask": ones,
    }
    return model, x


def vision_transformer():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        dropout_rate=0.2,
        attention_dropout=0.2,
    )
    model = keras_hub.models.ViTImageClassifier(backbone, num_classes=3)
    return model, random(2, 8, 8, 3)


@of_keras_hub
@pytest.mark.parametrize(
    ("make", "places"), [(bert, 6), (vision_transformer, 4)]
)
def test_models_of_keras_hub(make, places, tmp_path):
    model, x = make()
    new, report = invariantize(model, attention=True, return_report=True)
    assert isinstance(new, type(model))
    assert all(row.beta for row in report if row.rate)
    assert len(betas(new)) >= places
    assert_it_works(model, x, new, tmp_path / "new.keras")


@of_keras_hub
@pytest.mark.one_backend
def test_a_model_that_takes_strings():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    tokenizer = keras_hub.models.BertTokenizer(words, lowercase=True)
    model, _ = bert(
        keras_hub.models.BertTextClassifierPreprocessor(tokenizer, 6)
    )
    x = np.array(["the cat", "the cat sat"])
    new = invariantize(model)
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(new.predict(x, verbose=0), expected)
    message = r"numbers.*`model.preprocessor\(x\)`"
    with pytest.raises(ValueError, match=message):
        MonteCarlo(new).predict(x)
    with pytest.raises(ValueError, match=message):
        variance_report(new, [*x])
    with pytest.raises(ValueError, match=message):
        calibrate(new, x, keep_predictions=False)
    found = MonteCarlo(new, 2).predict(new.preprocessor(x))
    assert found.mean.shape == expected.shape


@of_keras_hub
@pytest.mark.one_backend
@pytest.mark.parametrize("inplace", [False, True])
def test_a_converted_model_is_not_saved_to_a_preset(inplace, tmp_path):
    model, _ = bert()
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    model.save_to_preset(before)
    new = invariantize(model, inplace=inplace)
    for part in (new, new.backbone):
        with pytest.raises(ValueError, match="Save the model to a `.keras`"):
            part.save_to_preset(after)
    load = keras_hub.models.Backbone.from_preset
    assert type(load(before)) is keras_hub.models.BertBackbone


@of_keras_hub
@pytest.mark.one_backend
def test_a_preset_of_a_converted_model_cannot_be_loaded(tmp_path, monkeypatch):
    """As the guide says: if KerasHub comes to load it, change the guide."""
    new = invariantize(bert()[0])
    for part in (new, new.backbone):
        monkeypatch.delattr(type(part), "save_to_preset")
    new.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="cannot load from a preset"):
        keras_hub.models.TextClassifier.from_preset(str(tmp_path))


@of_keras_hub
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("make", [bert, vision_transformer])
def test_models_of_keras_hub_are_measured_and_calibrated(make):
    model, x = make()
    before = variance_report(model, x)
    new, report = invariantize(model, attention=True, return_report=True)
    # One layer is called on two sizes, and has a row for each.
    names = [
        {path.rpartition("/")[2] for path in paths}
        for paths in (
            [row.layer for row in before if row.rate],
            [row.path for row in report if row.rate],
        )
    ]
    assert names[0] == names[1]
    new, _ = assert_calibrated(new, x, reads=len(betas(new)))
    after = variance_report(new, x)
    assert after.saving == pytest.approx(0, abs=1e-4)
    assert before.saving > 0.1
    if make is bert:
        with pytest.warns(UserWarning, match="'bert_backbone.*is not known"):
            kept = calibrate(model=new, data=x, keep_predictions=True)
        np.testing.assert_allclose(predicted(kept, x), predicted(new, x), 1e-4)


@of_keras_hub
@pytest.mark.usefixtures("eager")
def test_padding_has_no_influence_on_shifts():
    model, x = bert()
    model = invariantize(model)
    x["padding_mask"] = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    # The padding of these is another token.
    y = {**x, "token_ids": np.where(x["padding_mask"], x["token_ids"], 7)}
    filters = "embeddings|layer_0/self_attention_dropout"
    new = [
        calibrate(model, data, keep_predictions=False, filters=filters)
        for data in (x, y)
    ]
    changed = [bool(np.any(ops.convert_to_numpy(b))) for b in betas(new[0])]
    assert changed.count(True) == 2
    for one, other in zip(*map(betas, new), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_a_beta_for_each_activity_needs_a_fixed_length():
    model = graph(TransformerBlock(), shape=(None, 8))
    with pytest.raises(ValueError, match=r"fixed size.*\(None, None, 8\)"):
        invariantize(model, shared="none")
    # The length of an example is one.
    new = invariantize(model, shared="none", inputs=random(1, 6, 8))
    assert {tuple(x.shape) for x in betas(new)} >= {(6, 8), (6, 16)}


@registered
class PerStep(layers.Layer):
    """Calls a dropout layer once per time step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x):
        steps = [self.drop(step) for step in ops.unstack(x, x.shape[1], axis=1)]
        return ops.stack(steps, axis=1)

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_beta_for_each_activity_of_a_step():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, PerStep()(inputs))
    new = invariantize(model, shared="none")
    assert [tuple(x.shape) for x in betas(new)] == [(3,)]
