import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import calibrate


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
    new = calibrate(model, np.array([[1.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(new.layers[0].beta, [-2, -2])
    # relu(-1 - 4 + 1) = 0 and relu(1 + 4 + 1) = 6
    np.testing.assert_allclose(new.layers[2].beta, [-3])


def test_the_mean_input_of_each_next_layer_is_zero():
    new = calibrate(mlp(), x := random(1000, 6), batch_size=64)
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
    new = calibrate(model, x := random(200, 8, 7, 3), batch_size=30)
    maps, rows = dropped(new, "maps", x), dropped(new, "rows", x)
    assert np.abs(maps.mean(axis=(0, 1, 2))).max() < 1e-5
    assert np.abs(rows.mean(axis=(0, 2))).max() < 1e-5
    assert np.abs(rows.mean(axis=0)).max() > 1e-3


def test_what_was_set_before_has_no_influence():
    model, x = mlp(), random(100, 6)
    expected = [layer.get_weights() for layer in calibrate(model, x).layers]
    for layer in model.layers[::2]:
        layer.beta.assign(random(*layer.beta.shape, seed=1))
    again = calibrate(model, x)
    for layer, weights in zip(again.layers, expected, strict=True):
        for weight, value in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_is():
    model = mlp()
    model.compile("sgd", "mse")
    model.fit(random(8, 6), random(8, 3), verbose=0)
    optimizer, before = model.optimizer, model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    new = calibrate(model, random(50, 6))
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 1
    assert new.compiled
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    # The new one is a whole model, too: each layer has one output.
    assert [layer.output.shape for layer in new.layers] == [
        layer.output.shape for layer in model.layers
    ]
    new.fit(random(8, 6), random(8, 3), verbose=0)


def test_all_kinds_of_data_give_the_same():
    import tensorflow as tf
    import torch

    model, x = mlp(), random(100, 6)
    y = np.zeros(100)
    expected = calibrate(model, x).get_weights()
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
        found = calibrate(model, data, batch_size=30).get_weights()
        for weight, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_steps():
    model, x = mlp(), random(100, 6)
    expected = calibrate(model, x[:60]).get_weights()

    class Endless:
        def __iter__(self):
            while True:
                for start in range(0, 100, 30):
                    yield x[start : start + 30]

    for data in (x, Endless()):
        found = calibrate(model, data, batch_size=30, steps=2).get_weights()
        for weight, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_data_are_read_once_for_each_layer_after_another():
    reads = []
    x = random(10, 6)

    class Counting:
        def __iter__(self):
            reads.append(1)
            yield x

    calibrate(mlp(), Counting())
    assert len(reads) == 3
    # Layers side by side are calibrated together.
    inputs = keras.Input((6,))
    branches = [InvariantDropout(0.5)(layers.Dense(3)(inputs)) for _ in "abc"]
    reads.clear()
    model = keras.Model(inputs, layers.Add()(branches))
    new = calibrate(model, Counting())
    assert len(reads) == 1
    np.testing.assert_allclose(
        ops.convert_to_numpy(new(x)).mean(axis=0), 0, atol=1e-5
    )


def test_an_iterator_is_enough_where_it_is_read_once():
    x = random(20, 6)
    model = sequential(InvariantDropout(0.5))
    new = calibrate(model, iter([x[:10], x[10:]]))
    np.testing.assert_allclose(new.layers[0].beta, -x.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="read again.*'two'"):
        calibrate(mlp(), iter([x]))


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
    new = calibrate(model, x, batch_size=16)
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


def test_a_step_that_is_always_padding():
    model = sequential(
        layers.Masking(0.0), InvariantDropout(0.5, name="steps"), shape=(4, 3)
    )
    x = random(50, 4, 3)
    x[:, 3:] = 0
    with pytest.raises(ValueError, match="'steps'.*masked as padding"):
        calibrate(model, x)


def test_a_layer_that_is_called_twice_has_the_mean_of_both():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    drop = InvariantDropout(0.5)
    model = keras.Model({"a": a, "b": b}, [drop(a), drop(b)])
    x = {"b": random(20, 3), "a": random(20, 3, seed=1, mean=-5.0)}
    new = calibrate(model, x)
    beta = ops.convert_to_numpy(new.layers[-1].beta)
    np.testing.assert_allclose(
        beta, -(x["a"].mean(0) + x["b"].mean(0)) / 2, rtol=1e-5
    )


def test_a_layer_that_is_called_on_its_own_output():
    inputs = keras.Input((3,))
    drop = InvariantDropout(0.5, name="again")
    x = drop(layers.Dense(3)(drop(inputs)))
    with pytest.raises(ValueError, match="its own output.*'again'"):
        calibrate(keras.Model(inputs, x), random(20, 3))


def test_nested_models():
    inner = sequential(
        layers.Dense(5, bias_initializer="ones"),
        InvariantDropout(0.5, name="inner"),
    )
    inputs = keras.Input((6,))
    x = InvariantDropout(0.2, name="outer")(inputs)
    x = layers.Dense(2)(inner(x))
    model = keras.Model(inputs, InvariantDropout(0.5, name="last")(x))
    new = calibrate(model, x := random(100, 6))
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
    new = calibrate(model, x := random(100, 6))
    outputs = ops.convert_to_numpy(new(x))
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-5)
    for nested in new.layers[1:]:
        assert [layer.name for layer in nested.layers] == ["dense", "drop"]


def test_a_running_average_is_set_too():
    model = sequential(RunningAverageDropout(0.5))
    new = calibrate(model, x := random(20, 6))
    np.testing.assert_allclose(new.layers[0].average, x.mean(0), rtol=1e-5)


def test_inputs_of_integers():
    model = sequential(InvariantDropout(0.5))
    x = np.arange(12).reshape((2, 6)).astype("uint8")
    new = calibrate(model, x)
    np.testing.assert_allclose(new.layers[0].beta, -x.mean(0), rtol=1e-6)


def test_nothing_to_calibrate():
    model = sequential(layers.Dropout(0.5))
    with pytest.warns(UserWarning, match="no dropout layer with a shift"):
        assert calibrate(model, random(4, 6)) is model


def test_what_is_hidden_is_named():
    wrapped = layers.TimeDistributed(InvariantDropout(0.5), name="wrapped")
    model = sequential(InvariantDropout(0.5), wrapped, shape=(4, 3))
    with pytest.warns(UserWarning, match="'wrapped'"):
        calibrate(model, random(4, 4, 3))


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
        "none",
    ],
)
def test_bad_data(data, match):
    model = sequential(InvariantDropout(0.5))
    with pytest.raises(ValueError, match=match):
        calibrate(model, data)


def test_nan_is_an_error_that_says_where():
    model = sequential(InvariantDropout(0.5))
    x = random(100, 6)
    x[45, 3] = np.nan
    with pytest.raises(ValueError, match="NaN.*among examples 40 to 59"):
        calibrate(model, x, batch_size=20)
    # No ReLU, of which some engines make 0 from a NaN.
    model = sequential(layers.Dense(5), InvariantDropout(0.5, name="two"))
    model.layers[0].kernel.assign(np.full((6, 5), np.nan))
    with pytest.raises(ValueError, match="'two' hold a NaN"):
        calibrate(model, random(100, 6))


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
        calibrate(mlp(), random(4, 6), **kwargs)


def test_not_a_model():
    with pytest.raises(ValueError, match="`model`. Expected a `keras.Model`"):
        calibrate(layers.Dropout(0.5), random(4, 6))
