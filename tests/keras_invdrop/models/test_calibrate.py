import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_invdrop import InvariantDropout
from keras_invdrop import LocallyConnected2D
from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import calibrate
from keras_invdrop.layers._shifted_dropout import ShiftedDropout

TENSORFLOW = keras.backend.backend() == "tensorflow"


def random(*shape, seed=0, mean=2.0):
    x = np.random.default_rng(seed).normal(mean, 1.0, size=shape)
    return x.astype("float32")


def sequential(*model_layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *model_layers])


def mlp():
    return sequential(
        InvariantDropout(0.2, name="one"),
        layers.Dense(5, activation="relu", bias_initializer="ones"),
        InvariantDropout(0.5, name="two"),
        layers.Dense(4, activation="sigmoid"),
        InvariantDropout(0.5, name="three"),
        layers.Dense(3),
    )


def dropped(model, name, x):
    """What the dropout layer `name` gives to the next layer."""
    part = keras.Model(model.inputs, model.get_layer(name).output)
    return ops.convert_to_numpy(part(x)).astype("float64")


def varied(model, seed=0):
    """Gives every weight a different value, as training does."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.uniform(0.2, 1.0, size=weight.shape)
        if "kernel" in weight.path:
            value = rng.normal(size=weight.shape) / np.sqrt(
                max(1, np.prod(weight.shape[:-1]))
            )
        weight.assign(value)
    return model


def dropout_layers(model):
    return [x for x in model._flatten_layers() if isinstance(x, ShiftedDropout)]


def assert_calibrated(model, x, kept=()):
    """Calibrates a model, checks its predictions and returns the new model.

    Each shift is minus the mean activity, except for the `kept` layers.
    """
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    new = calibrate(model, x, keep_predictions=True)
    found = keras.tree.flatten(new.predict(x, verbose=0))
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < 1e-5 * max(1, np.abs(b).max())
    pairs = zip(dropout_layers(model), dropout_layers(new), strict=True)
    for old, layer in pairs:
        shift = ops.convert_to_numpy(layer.shift)
        before = ops.convert_to_numpy(old.shift)
        if layer.name in kept:
            np.testing.assert_array_equal(shift, before)
            continue
        assert np.abs(shift - before).max() > 0.01
        part = keras.Model(new.inputs, layer.input)
        arrives = ops.convert_to_numpy(part(x)).astype("float64")
        shared = [i for i, n in enumerate(shift.shape, 1) if n == 1]
        mean = arrives.mean(axis=(0, *shared), keepdims=True)[0]
        np.testing.assert_allclose(shift, -mean, rtol=1e-5, atol=1e-5)
    return new


class Batches(keras.utils.PyDataset):
    def __init__(self, x, size, **kwargs):
        super().__init__(**kwargs)
        self.x, self.size = x, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        start = index * self.size
        part = self.x[start : start + self.size]
        return part, np.zeros(len(part))


def test_by_hand():
    model = sequential(
        InvariantDropout(0.5),
        layers.Dense(1, activation="relu"),
        InvariantDropout(0.5),
        shape=(2,),
    )
    model.layers[1].set_weights([np.array([[1.0], [2.0]]), np.array([1.0])])
    new = calibrate(
        model, np.array([[1.0, 0.0], [3.0, 4.0]]), keep_predictions=False
    )
    np.testing.assert_allclose(new.layers[0].beta, [-2, -2])
    # relu(-1 - 4 + 1) = 0 and relu(1 + 4 + 1) = 6
    np.testing.assert_allclose(new.layers[2].beta, [-3])


def test_the_mean_input_of_each_next_layer_is_zero():
    new = calibrate(
        mlp(), x := random(1000, 6), batch_size=64, keep_predictions=False
    )
    for name in ("one", "two", "three"):
        a = dropped(new, name, x)
        assert np.abs(a.mean(axis=0)).max() < 1e-5
        assert a.std() > 0.01


def test_feature_maps():
    model = sequential(
        layers.Conv2D(4, 3, activation="relu", bias_initializer="ones"),
        SharedInvariantDropout(0.5, "channels_last", name="maps"),
        layers.Conv2D(3, 3, padding="same"),
        InvariantDropout(0.5, shared_axes=[2], name="rows"),
        shape=(8, 7, 3),
    )
    new = calibrate(
        model, x := random(200, 8, 7, 3), batch_size=30, keep_predictions=False
    )
    maps, rows = dropped(new, "maps", x), dropped(new, "rows", x)
    assert np.abs(maps.mean(axis=(0, 1, 2))).max() < 1e-5
    assert np.abs(rows.mean(axis=(0, 2))).max() < 1e-5
    assert np.abs(rows.mean(axis=0)).max() > 1e-3


def test_what_was_set_before_has_no_influence():
    model, x = mlp(), random(100, 6)
    expected = [
        layer.get_weights()
        for layer in calibrate(model, x, keep_predictions=False).layers
    ]
    for layer in model.layers[::2]:
        layer.beta.assign(random(*layer.beta.shape, seed=1))
    again = calibrate(model, x, keep_predictions=False)
    for layer, weights in zip(again.layers, expected, strict=True):
        for weight, value in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_is():
    model = mlp()
    model.compile("sgd", "mse")
    model.fit(random(8, 6), random(8, 3), verbose=0)
    optimizer, before = model.optimizer, model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    new = calibrate(model, random(50, 6), keep_predictions=False)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 1
    assert new.compiled
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    # The new model, too, is complete: each layer has one output.
    assert [layer.output.shape for layer in new.layers] == [
        layer.output.shape for layer in model.layers
    ]
    new.fit(random(8, 6), random(8, 3), verbose=0)


def test_all_kinds_of_data_give_the_same():
    import tensorflow as tf
    import torch

    model, x = mlp(), random(100, 6)
    y = np.zeros(100)
    expected = calibrate(model, x, keep_predictions=False).get_weights()
    tensors = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    for data in (
        [x],
        ops.convert_to_tensor(x),
        Batches(x, 30),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(30),
        tf.data.Dataset.from_tensor_slices(x).batch(30),
        torch.utils.data.DataLoader(tensors, batch_size=30),
        [(x[:40], y[:40]), (x[40:], y[40:], y[40:])],
        [x[:40], x[40:]],
    ):
        found = calibrate(
            model, data, batch_size=30, keep_predictions=False
        ).get_weights()
        for weight, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_steps():
    model, x = mlp(), random(100, 6)
    expected = calibrate(model, x[:60], keep_predictions=False).get_weights()

    class Endless:
        def __iter__(self):
            while True:
                for start in range(0, 100, 30):
                    yield x[start : start + 30]

    for data in (x, Endless()):
        found = calibrate(
            model, data, batch_size=30, steps=2, keep_predictions=False
        ).get_weights()
        for weight, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_data_are_read_once_for_each_layer_after_another():
    reads = []
    x = random(10, 6)

    class Counting:
        def __iter__(self):
            reads.append(1)
            yield x[:5]
            yield x[5:]

    model = mlp()
    several = calibrate(model, Counting(), keep_predictions=False)
    assert len(reads) == 3
    # A single batch gives the same shifts in one pass.
    one = calibrate(model, iter([x]), keep_predictions=False)
    for weight, value in zip(one.weights, several.weights, strict=True):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (weight, value)), rtol=1e-4, atol=1e-6
        )
    # Parallel layers are calibrated together.
    inputs = keras.Input((6,))
    branches = [InvariantDropout(0.5)(layers.Dense(3)(inputs)) for _ in "abc"]
    reads.clear()
    model = keras.Model(inputs, layers.Add()(branches))
    new = calibrate(model, Counting(), keep_predictions=False)
    assert len(reads) == 1
    np.testing.assert_allclose(
        ops.convert_to_numpy(new(x)).mean(axis=0), 0, atol=1e-5
    )


def test_an_iterator_is_enough_where_it_is_read_once():
    x = random(20, 6)
    model = sequential(InvariantDropout(0.5))
    new = calibrate(model, iter([x[:10], x[10:]]), keep_predictions=False)
    np.testing.assert_allclose(new.layers[0].beta, -x.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="read again.*'two'"):
        calibrate(mlp(), iter([x[:10], x[10:]]), keep_predictions=False)


def test_padding_is_left_out_of_the_mean():
    model = sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5, shared_axes=[1], name="features"),
        layers.Dense(2),
        InvariantDropout(0.5, name="steps"),
        layers.LSTM(2),
        shape=(4, 3),
    )
    x = random(50, 4, 3)
    x[:30, 3:], x[:10, 2:] = 0, 0
    new = calibrate(model, x, batch_size=16, keep_predictions=False)
    counted = (x != 0).any(axis=-1)
    np.testing.assert_allclose(
        ops.convert_to_numpy(new.get_layer("features").beta)[0],
        -x[counted].mean(axis=0),
        rtol=1e-5,
    )
    hidden = ops.convert_to_numpy(new.layers[2](dropped(new, "features", x)))
    for step in range(4):
        expected = -hidden[:, step][counted[:, step]].mean(axis=0)
        found = ops.convert_to_numpy(new.get_layer("steps").beta)[step]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("data", [[[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0]])
def test_numbers_are_no_arrays(data):
    model = sequential(InvariantDropout(0.5), shape=(2,))
    with pytest.raises(ValueError, match="`data`.*a list of numbers; convert"):
        calibrate(model, data, keep_predictions=False)


def test_a_step_that_is_always_padding():
    model = sequential(
        layers.Masking(0.0), InvariantDropout(0.5, name="steps"), shape=(4, 3)
    )
    x = random(50, 4, 3)
    x[:, 3:] = 0
    with pytest.raises(ValueError, match="'steps'.*masked as padding"):
        calibrate(model, x, keep_predictions=False)


def test_a_layer_that_is_called_twice_has_the_mean_of_both():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    drop = InvariantDropout(0.5)
    model = keras.Model({"a": a, "b": b}, [drop(a), drop(b)])
    x = {"b": random(20, 3), "a": random(20, 3, seed=1, mean=-5.0)}
    new = calibrate(model, x, keep_predictions=False)
    beta = ops.convert_to_numpy(new.layers[-1].beta)
    np.testing.assert_allclose(
        beta, -(x["a"].mean(0) + x["b"].mean(0)) / 2, rtol=1e-5
    )


def test_a_layer_that_is_called_on_its_own_output():
    inputs = keras.Input((3,))
    drop = InvariantDropout(0.5, name="again")
    x = drop(layers.Dense(3)(drop(inputs)))
    with pytest.raises(ValueError, match="its own output.*'again'"):
        calibrate(keras.Model(inputs, x), random(20, 3), keep_predictions=False)


def test_nested_models():
    inner = sequential(
        layers.Dense(5, bias_initializer="ones"),
        InvariantDropout(0.5, name="inner"),
    )
    inputs = keras.Input((6,))
    x = InvariantDropout(0.2, name="outer")(inputs)
    x = layers.Dense(2)(inner(x))
    model = keras.Model(inputs, InvariantDropout(0.5, name="last")(x))
    new = calibrate(model, x := random(100, 6), keep_predictions=False)
    last = ops.convert_to_numpy(new(x))
    np.testing.assert_allclose(last.mean(axis=0), 0, atol=1e-5)
    beta = new.layers[2].get_layer("inner").beta
    np.testing.assert_allclose(beta, -np.ones(5), rtol=1e-5)


def test_layers_of_the_same_name_in_nested_models():
    def inner():
        return keras.Sequential(
            [
                keras.Input((6,), name="x"),
                layers.Dense(6, name="dense", bias_initializer="ones"),
                InvariantDropout(0.5, name="drop"),
            ]
        )

    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, inner()(inner()(inputs)))
    new = calibrate(model, x := random(100, 6), keep_predictions=False)
    outputs = ops.convert_to_numpy(new(x))
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-5)
    for nested in new.layers[1:]:
        assert [layer.name for layer in nested.layers] == ["dense", "drop"]


def test_a_running_average_is_set_too():
    model = sequential(RunningAverageDropout(0.5))
    new = calibrate(model, x := random(20, 6), keep_predictions=False)
    np.testing.assert_allclose(new.layers[0].average, x.mean(0), rtol=1e-5)


def test_inputs_of_integers():
    model = sequential(InvariantDropout(0.5))
    x = np.arange(12).reshape((2, 6)).astype("uint8")
    new = calibrate(model, x, keep_predictions=False)
    np.testing.assert_allclose(new.layers[0].beta, -x.mean(0), rtol=1e-6)


def test_nothing_to_calibrate():
    model = sequential(layers.Dropout(0.5))
    with pytest.warns(UserWarning, match="no layer to calibrate"):
        assert calibrate(model, random(4, 6), keep_predictions=False) is model


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (random(0, 6), "one example or more. Received none"),
        ([], "one example or more"),
        (iter([]), "one example or more"),
        (random(4, 5), r"of shape \(None, 6\). Received: shape \(4, 5\)"),
        (random(4, 6, 2), r"Received: shape \(4, 6, 2\)"),
        ([random(4, 6), random(4, 5)], r"Received: shape \(4, 5\)"),
        ({"a": random(4, 6), "b": random(4, 6)}, "`data`"),
        (3, "`data`"),
        ("file", "`data`.*batches. Received: data='file'"),
        (None, "`data`"),
    ],
    ids=[
        "empty",
        "list",
        "iterator",
        "features",
        "rank",
        "batch",
        "dict",
        "number",
        "string",
        "none",
    ],
)
def test_bad_data(data, match):
    model = sequential(InvariantDropout(0.5))
    with pytest.raises(ValueError, match=match):
        calibrate(model, data, keep_predictions=False)


def test_nan_is_an_error_that_says_where():
    model = sequential(InvariantDropout(0.5))
    x = random(100, 6)
    x[45, 3] = np.nan
    with pytest.raises(ValueError, match="NaN.*among examples 40 to 59"):
        calibrate(model, x, batch_size=20, keep_predictions=False)
    # No ReLU: it can turn a NaN into 0.
    model = sequential(layers.Dense(5), InvariantDropout(0.5, name="two"))
    model.layers[0].kernel.assign(np.full((6, 5), np.nan))
    with pytest.raises(ValueError, match="'two' hold a NaN"):
        calibrate(model, random(100, 6), keep_predictions=False)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"steps": 0}, "`steps`"),
        ({"steps": 1.5}, "`steps`"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        calibrate(mlp(), random(4, 6), **kwargs, keep_predictions=False)


def test_not_a_model():
    with pytest.raises(ValueError, match="`model`. Expected a `keras.Model`"):
        calibrate(layers.Dropout(0.5), random(4, 6), keep_predictions=False)


def test_kept_by_hand():
    model = sequential(
        InvariantDropout(0.75, scaling="test"), layers.Dense(1), shape=(2,)
    )
    model.layers[0].beta.assign([1.0, 0.0])
    model.layers[1].set_weights([np.array([[1.0], [3.0]]), np.array([0.5])])
    x = np.array([[1.0, 0.0], [3.0, 4.0]])
    new = calibrate(model, x, keep_predictions=True)
    np.testing.assert_allclose(new.layers[0].beta, [-2, -2])
    # p = 0.25 times the kernel times what beta lost: 0.5 + 0.25 * (3 + 3 * 2)
    np.testing.assert_allclose(new.layers[1].bias, [2.75])
    # Without it, the bias is what it was.
    new = calibrate(model, x, keep_predictions=False)
    np.testing.assert_allclose(new.layers[0].beta, [-2, -2])
    np.testing.assert_allclose(new.layers[1].bias, [0.5])


def test_which_of_the_two_is_not_guessed():
    with pytest.raises(ValueError, match="`keep_predictions`. Expected True"):
        calibrate(mlp(), random(4, 6))
    with pytest.raises(ValueError, match="`keep_predictions`. .*boolean"):
        calibrate(mlp(), random(4, 6), keep_predictions="yes")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "scaling", ["test", pytest.param("train", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ([], (6,)),
        ([], (4, 6)),
        ([layers.EinsumDense("abc,bcd->ad", 3, bias_axes="d")], (4, 6)),
        ([MaxoutDense(3, 2, "relu")], (6,)),
        ([layers.Conv2D(4, 3, activation="relu"), layers.Flatten()], (6, 5, 3)),
        ([MaxoutConv2D(3, 3, 2), layers.Flatten()], (6, 5, 3)),
        ([LocallyConnected2D(3, 3), layers.Flatten()], (6, 5, 3)),
        ([LocallyConnected2D(3, 3, padding="same")], (6, 5, 3)),
        ([layers.SeparableConv2D(3, 3), layers.ReLU()], (6, 5, 3)),
        ([layers.Flatten()], (4, 5, 3)),
        (
            [layers.Reshape((10, 6)), layers.Permute((2, 1)), layers.Flatten()],
            (4, 5, 3),
        ),
        ([layers.MaxPooling2D(2), layers.Flatten()], (4, 5, 3)),
        ([layers.AveragePooling2D(3, 2, "same")], (4, 5, 3)),
        ([layers.GlobalMaxPooling2D()], (4, 5, 3)),
        ([layers.GlobalAveragePooling1D()], (4, 3)),
        ([layers.BatchNormalization(), layers.ReLU()], (4, 5, 3)),
        ([layers.Dropout(0.5), layers.GaussianNoise(0.5)], (6,)),
        # A layer without a bias passes the constant on.
        ([layers.Dense(4, use_bias=False)], (6,)),
        (
            [
                layers.Conv2D(4, 3, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ],
            (6, 5, 3),
        ),
        # A map is a constant for each unit of a dense layer.
        ([layers.Conv2D(4, 3, padding="same"), layers.Flatten()], (6, 5, 3)),
        # Dropout directly after dropout.
        ([layers.Flatten(), InvariantDropout(0.5)], (4, 5, 3)),
        ([layers.Activation("linear"), RunningAverageDropout(0.5)], (6,)),
    ],
    ids=lambda value: (
        "-".join(x.name for x in value) if isinstance(value, list) else None
    ),
)
def test_predictions_are_kept(path, shape, scaling):
    fresh = [type(layer).from_config(layer.get_config()) for layer in path]
    model = sequential(
        InvariantDropout(
            0.5, shared_axes=list(range(1, len(shape))) or None, scaling=scaling
        ),
        *fresh,
        layers.Dense(3, name="last"),
        shape=shape,
    )
    varied(model)
    before = model.get_weights()
    new = assert_calibrated(model, x := random(40, *shape))
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    # Calibrating again changes nothing.
    again = calibrate(new, x, keep_predictions=True)
    for weight, value in zip(again.get_weights(), new.weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "consumer",
    [
        layers.Dense(3),
        LocallyConnected2D(3, 3),
        layers.Flatten(),
    ],
    ids=lambda value: value.name,
)
def test_predictions_are_kept_with_a_shift_for_each_activity(consumer):
    model = sequential(
        InvariantDropout(0.5, scaling="test"),
        consumer,
        layers.Flatten(),
        layers.Dense(3),
        shape=(6, 5, 3),
    )
    assert_calibrated(varied(model), random(40, 6, 5, 3))


def test_one_reading_is_enough_where_predictions_are_kept():
    model, x = varied(mlp()), random(100, 6)
    assert_calibrated(model, x)
    new = calibrate(model, iter([x[:40], x[40:]]), keep_predictions=True)
    expected = calibrate(model, x, keep_predictions=True)
    for weight, value in zip(new.weights, expected.weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)
    new.compile("sgd", "mse")
    new.fit(x, random(100, 3), verbose=0)


def test_several_consumers_and_merging():
    inputs = keras.Input((6,))
    x = InvariantDropout(0.5, name="one")(inputs)
    y = layers.Dense(6, "relu")(x)
    z = InvariantDropout(0.5, name="two", scaling="test")(layers.Add()([x, y]))
    z = layers.Concatenate()([z, x, inputs])
    outputs = [layers.Dense(3)(z), layers.Dense(2)(x)]
    assert_calibrated(varied(keras.Model(inputs, outputs)), random(40, 6))


def test_layers_that_are_shared():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    drop, dense = InvariantDropout(0.5, name="drop"), layers.Dense(3)
    model = keras.Model([a, b], [dense(drop(a)), dense(drop(b))])
    varied(model)
    x = [random(40, 6), random(40, 6, seed=1, mean=-1.0)]
    new = calibrate(model, x, keep_predictions=True)
    beta = new.get_layer("drop").beta
    mean = (x[0].mean(0) + x[1].mean(0)) / 2
    np.testing.assert_allclose(beta, -mean, rtol=1e-4, atol=1e-6)
    for found, expected in zip(
        new.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # One bias cannot compensate for two shifts.
    shifted = [InvariantDropout(0.5, name=f"drop_{y.name}")(y) for y in (a, b)]
    other = InvariantDropout(0.5, name="other")(a)
    outputs = [*map(dense, shifted), layers.Dense(2)(other)]
    model = varied(keras.Model([a, b], outputs))
    with pytest.warns(UserWarning, match="'drop_a': 'dense.*' is called on"):
        assert_calibrated(model, x, kept=("drop_a", "drop_b"))


@pytest.mark.parametrize(
    "shared",
    [layers.Dense(6, name="shared"), layers.BatchNormalization(name="shared")],
    ids=["bias", "moving mean"],
)
def test_a_layer_that_is_also_inside_another(shared):
    """The other calls it on tensors that have no shift."""
    shared = type(shared).from_config(shared.get_config())
    steps = keras.Input((5, 6))
    first = InvariantDropout(0.5, name="stays")(layers.Flatten()(steps)[:, :6])
    around = layers.TimeDistributed(shared, name="around")(steps)
    x = layers.Concatenate()([shared(first), layers.Flatten()(around)])
    x = layers.Dense(2)(InvariantDropout(0.5, name="free")(x))
    model = varied(keras.Model(steps, x))
    with pytest.warns(
        UserWarning, match="'stays': 'shared' is also inside 'around'"
    ):
        assert_calibrated(model, random(40, 5, 6), kept=("stays",))


class Unregistered(keras.constraints.Constraint):
    def __call__(self, weight):
        return weight


def test_objects_that_are_not_registered():
    model = sequential(
        InvariantDropout(0.5),
        layers.Dense(
            5,
            activation=lambda x: ops.relu(x) ** 2,
            kernel_initializer=lambda shape, dtype: ops.ones(shape, dtype),
            bias_constraint=Unregistered(),
        ),
        InvariantDropout(0.5),
        layers.Dense(4, activation=layers.PReLU()),
        InvariantDropout(0.5),
        layers.Dense(3),
    )
    assert_calibrated(varied(model), random(40, 6))


def test_nested_models_keep_their_predictions():
    inner = sequential(
        layers.Dense(5, activation="relu"),
        InvariantDropout(0.5, name="inner"),
        layers.Reshape((5, 1)),
        layers.Flatten(),
    )
    inputs = keras.Input((6,))
    x = InvariantDropout(0.2, name="outer")(inputs)
    model = varied(keras.Model(inputs, layers.Dense(2)(inner(x))))
    x = random(100, 6)
    new = calibrate(model, x, keep_predictions=True)
    np.testing.assert_allclose(
        new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    hidden = inner.layers[0](x + ops.convert_to_numpy(model.layers[1].beta))
    np.testing.assert_allclose(
        new.layers[2].get_layer("inner").beta,
        -ops.convert_to_numpy(hidden).mean(axis=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_channels_first():
    model = sequential(
        SharedInvariantDropout(0.5, "channels_first"),
        layers.Conv2D(4, 3, data_format="channels_first"),
        layers.ReLU(),
        SharedInvariantDropout(0.5, "channels_first"),
        layers.MaxPooling2D(2, data_format="channels_first"),
        layers.Conv2D(4, 1, data_format="channels_first", use_bias=False),
        layers.BatchNormalization(axis=1),
        layers.ReLU(),
        shape=(3, 8, 7),
    )
    # On a CPU TensorFlow's convolutions take it only if XLA compiles them.
    model.compile(jit_compile=TENSORFLOW)
    x = random(40, 3, 8, 7)
    varied(model)
    new = calibrate(model, x, keep_predictions=True)
    expected = model.predict(x, verbose=0)
    difference = np.abs(new.predict(x, verbose=0) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(
        ops.convert_to_numpy(new.layers[0].beta).ravel(),
        -x.mean(axis=(0, 2, 3)),
        rtol=1e-5,
    )


def padded():
    """Sequences of up to four steps, and which steps are no padding."""
    x = random(50, 4, 3)
    x[:30, 3:], x[:10, 2:] = 0, 0
    return x, (x != 0).any(axis=-1)


def test_padding_that_is_masked():
    model = sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5, shared_axes=[1]),
        layers.Dense(5),
        layers.LSTM(2),
        layers.Dense(2),
        shape=(4, 3),
    )
    x, counted = padded()
    varied(model)
    new = calibrate(model, x, keep_predictions=True)
    np.testing.assert_allclose(
        new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(new.layers[1].beta)[0],
        -x[counted].mean(axis=0),
        rtol=1e-5,
    )


def test_a_shared_shift_after_one_for_each_activity_under_a_mask():
    model = sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5, name="each"),
        layers.Dense(5, use_bias=False, name="unbiased"),
        InvariantDropout(0.5, shared_axes=[1], name="shared"),
        layers.Dense(3),
        layers.LSTM(2),
        shape=(4, 3),
    )
    x, counted = padded()
    varied(model)
    with pytest.warns(UserWarning, match="'each': 'unbiased' has no bias"):
        new = calibrate(model, x, keep_predictions=True)
    np.testing.assert_allclose(
        new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    each, shared = (new.get_layer(name) for name in ("each", "shared"))
    np.testing.assert_array_equal(each.beta, model.get_layer("each").beta)
    arrives = keras.Model(new.inputs, shared.input)(x)
    mean = ops.convert_to_numpy(arrives)[counted].mean(axis=0)
    np.testing.assert_allclose(shared.beta, -mean[None], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "shared_axes"), [((5,), None), ((4, 5), [1])]
)
def test_a_dropout_layer_called_twice_after_another(shape, shared_axes):
    a, b = keras.Input(shape, name="a"), keras.Input(shape, name="b")
    first = InvariantDropout(0.5, name="first")
    twice = InvariantDropout(0.5, shared_axes=shared_axes, name="twice")
    outputs = [layers.Dense(3)(twice(first(a))), layers.Dense(3)(twice(b))]
    model = varied(keras.Model([a, b], outputs))
    x = [random(40, *shape), random(40, *shape, seed=1, mean=-1.0)]
    with pytest.warns(UserWarning, match="'first': the dropout layer 'twice'"):
        new = calibrate(model, x, keep_predictions=True)
    for found, expected in zip(
        new.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(new.get_layer("first").beta, first.beta)
    arrives = np.concatenate([x[0] + ops.convert_to_numpy(first.beta), x[1]])
    axes = (0, 1) if shared_axes else 0
    np.testing.assert_allclose(
        np.ravel(new.get_layer("twice").beta),
        -arrives.mean(axis=axes),
        rtol=1e-4,
        atol=1e-5,
    )


class MyInvariantDropout(InvariantDropout):
    pass


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ([layers.ReLU(name="relu")], "'relu' .`ReLU`. follows"),
        ([layers.LayerNormalization(name="norm")], "'norm' .`LayerNorm"),
        (
            [layers.Conv2D(3, 3, padding="same", name="conv"), layers.ReLU()],
            "'conv' would need a bias map",
        ),
        (
            [layers.Conv2D(3, 3, use_bias=False, name="conv"), layers.ReLU()],
            "'conv' has no bias",
        ),
        (
            [MaxoutDense(3, 2, use_bias=False, name="maxout")],
            "'maxout' has no bias",
        ),
        ([], "the model's output follows"),
    ],
    ids=["relu", "normalisation", "padding", "no bias", "maxout", "output"],
)
def test_what_is_in_the_way_is_named(path, reason):
    inputs = keras.Input((6, 5, 3))
    x = InvariantDropout(0.5, shared_axes=[1, 2], name="free")(inputs)
    first = layers.Dense(3, "relu")(x)
    x = InvariantDropout(0.5, shared_axes=[1, 2], name="stays")(first)
    for layer in path:
        x = type(layer).from_config(layer.get_config())(x)
    model = varied(keras.Model(inputs, x))
    with pytest.warns(UserWarning, match=f"'stays': {reason}"):
        assert_calibrated(model, random(40, 6, 5, 3), kept=("stays",))
    alone = varied(keras.Model(first, x))
    with pytest.raises(ValueError, match=f"Setting any shift would.*{reason}"):
        calibrate(alone, random(40, 6, 5, 3), keep_predictions=True)


def test_multiplication_is_in_the_way():
    inputs = keras.Input((6,))
    x = InvariantDropout(0.5, name="stays")(inputs)
    y = InvariantDropout(0.5, name="free")(inputs)
    outputs = [layers.Multiply(name="times")([x, inputs]), layers.Dense(2)(y)]
    with pytest.warns(UserWarning, match="'stays': 'times' .`Multiply`"):
        assert_calibrated(
            varied(keras.Model(inputs, outputs)), random(40, 6), ("stays",)
        )


def test_a_subclass_that_may_do_anything():
    model = sequential(
        InvariantDropout(0.5, name="free"),
        layers.Dense(4),
        MyInvariantDropout(0.5, name="mine"),
        layers.Dense(3),
    )
    with pytest.warns(UserWarning, match="'mine': what a `MyInvariantDropout`"):
        assert_calibrated(varied(model), random(40, 6), kept=("mine",))


def test_a_trained_network_is_not_damaged():
    """What `calibrate` without it does to the predictions of a classifier."""
    keras.utils.set_random_seed(0)
    x = random(500, 6)
    y = (x[:, 0] * x[:, 1] > 4).astype("int32")
    model = sequential(
        InvariantDropout(0.2),
        layers.Dense(64, activation="relu"),
        InvariantDropout(0.5),
        layers.Dense(2, activation="softmax"),
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=20, verbose=0)
    before = model.predict(x, verbose=0)
    new = calibrate(model, x, keep_predictions=True)
    assert np.abs(new.predict(x, verbose=0) - before).max() < 1e-5
    changed = calibrate(model, x, keep_predictions=False)
    assert np.abs(changed.predict(x, verbose=0) - before).max() > 0.1


def test_batch_normalisation_that_has_not_been_trained():
    model = sequential(
        layers.BatchNormalization(name="norm"),
        InvariantDropout(0.5, name="one"),
        layers.Dense(4),
        layers.BatchNormalization(beta_initializer="ones"),
        InvariantDropout(0.5, name="two"),
        layers.Dense(3),
    )
    x = random(512, 6, mean=5.0)
    before = model.get_weights()
    new = calibrate(model, x, keep_predictions=False)
    # In training the mean is beta of the normalisation, whatever arrives.
    np.testing.assert_allclose(new.get_layer("one").beta, 6 * [0], atol=1e-5)
    np.testing.assert_allclose(new.get_layer("two").beta, 4 * [-1], atol=1e-5)
    # Nothing else has changed, not even the moving statistics.
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    for layer, old in zip(new.layers, model.layers, strict=True):
        if not isinstance(layer, ShiftedDropout):
            pairs = zip(layer.weights, old.weights, strict=True)
            for weight, value in pairs:
                np.testing.assert_array_equal(weight, value)
    with pytest.raises(ValueError, match="`keep_predictions=False`.*'norm'"):
        calibrate(model, x, keep_predictions=True)


def test_batch_normalisation_that_takes_its_moving_statistics():
    def normalized():
        return sequential(
            layers.BatchNormalization(epsilon=0.0),
            InvariantDropout(0.5),
            layers.Dense(2),
        )

    x = random(512, 6, mean=5.0)
    # When frozen, it normalises by its moving statistics in training, too.
    model = normalized()
    model.layers[0].trainable = False
    for keep_predictions in (False, True):
        new = calibrate(model, x, keep_predictions=keep_predictions)
        np.testing.assert_allclose(new.layers[1].beta, -x.mean(0), rtol=1e-4)
    # After training it has its own statistics.
    model = normalized()
    model.layers[0].moving_mean.assign(6 * [4.0])
    for keep_predictions in (False, True):
        new = calibrate(model, x, keep_predictions=keep_predictions)
        np.testing.assert_allclose(new.layers[1].beta, 4 - x.mean(0), rtol=1e-4)
    # After the dropout layer the normalisation has no effect.
    model = sequential(
        InvariantDropout(0.5), layers.Dense(2), layers.BatchNormalization()
    )
    for keep_predictions in (False, True):
        new = calibrate(model, x, keep_predictions=keep_predictions)
        np.testing.assert_allclose(new.layers[0].beta, -x.mean(0), rtol=1e-5)
    # `new` has kept the predictions.
    np.testing.assert_allclose(
        new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4
    )


def test_masks_reach_batch_normalisation_that_has_not_been_trained():
    model = sequential(
        layers.Masking(0.0),
        layers.BatchNormalization(),
        InvariantDropout(0.5, shared_axes=[1]),
        layers.LSTM(2),
        shape=(4, 3),
    )
    x = random(50, 4, 3, mean=5.0)
    x[:30, 2:] = 0
    new = calibrate(model, x, keep_predictions=False)
    beta = ops.convert_to_numpy(new.layers[2].beta)
    np.testing.assert_allclose(beta, np.zeros((1, 3)), atol=1e-5)


def test_batch_normalisation_inside_layers_that_has_not_been_trained():
    norm = layers.BatchNormalization(beta_initializer="ones", name="norm")
    inside = layers.TimeDistributed(norm, name="around")
    model = sequential(
        inside, InvariantDropout(0.5, shared_axes=[1]), shape=(4, 3)
    )
    x = random(50, 4, 3, mean=5.0)
    new = calibrate(model, x, keep_predictions=False)
    np.testing.assert_allclose(new.layers[1].beta, [3 * [-1]], atol=1e-5)
    np.testing.assert_array_equal(new.layers[0].layer.moving_mean, 3 * [0])
    model.add(layers.Dense(2))
    with pytest.raises(ValueError, match="initial moving.*'around/norm'"):
        calibrate(model, x, keep_predictions=True)


def test_predictions_of_a_branch_without_dropout_are_kept():
    x = keras.Input((3,))
    dropped = layers.Dense(2)(InvariantDropout(0.5)(x))
    other = layers.BatchNormalization()(layers.Dense(2)(x))
    model = keras.Model(x, [dropped, other])
    data = random(50, 3, mean=4.0)
    new = calibrate(model, data, keep_predictions=True)
    for found, expected in zip(
        new.predict(data, verbose=0),
        model.predict(data, verbose=0),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no float64 by default"
)
@pytest.mark.parametrize("keep_predictions", [False, True])
def test_means_of_double_precision(keep_predictions):
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model = sequential(
            InvariantDropout(0.5, dtype="float64"),
            layers.Dense(2, dtype="float64"),
        )
        # Seconds since 1970: float32 is accurate to two minutes.
        x = 1.7e9 + np.random.default_rng(0).normal(size=(50, 6))
        new = calibrate(model, x, keep_predictions=keep_predictions)
        np.testing.assert_allclose(
            new.layers[0].level, x.mean(axis=0), rtol=0, atol=1e-5
        )
    finally:
        keras.config.set_floatx(before)


@pytest.mark.parametrize("keep_predictions", [False, True])
def test_sums_over_many_examples_do_not_round_the_mean(keep_predictions):
    model = sequential(InvariantDropout(0.5), layers.Dense(2), shape=(2,))
    x = np.full((1000, 2), [0.1, 4097.1], "float32")
    in_single = x[:100].sum(axis=0) / np.float32(100)
    assert (in_single != x[0]).all()
    new = calibrate(model, x, batch_size=100, keep_predictions=keep_predictions)
    np.testing.assert_array_equal(new.layers[0].level, x[0])


def test_the_bias_compensates_for_a_shift_of_low_precision():
    model = sequential(
        InvariantDropout(0.5, dtype="bfloat16"),
        layers.Dense(2, dtype="float32", kernel_initializer="ones"),
        shape=(2,),
    )
    # bfloat16 holds 256 and 258, but not their mean.
    x = np.array([[256.0, 0.0], [258.0, 4.0]], "float32")
    new = calibrate(model, x, keep_predictions=True)
    shift = ops.convert_to_numpy(ops.cast(new.layers[0].beta, "float32"))
    np.testing.assert_array_equal(shift, [-256.0, -2.0])
    np.testing.assert_array_equal(
        new.predict(x, verbose=0), model.predict(x, verbose=0)
    )
