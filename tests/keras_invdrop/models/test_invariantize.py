import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from small_models import random
from small_models import without_graph

from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import calibrate
from keras_invdrop import invariantize
from keras_invdrop import variance_report

HAS_KERAS_HUB = keras.__version__ >= "3.15"  # which KerasHub needs
if HAS_KERAS_HUB:
    import keras_hub

of_keras_hub = pytest.mark.skipif(
    not HAS_KERAS_HUB, reason="KerasHub needs a newer Keras"
)


def sequential(*model_layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *model_layers])


def varied(model, seed=0):
    """Gives every weight a different value, biases too, none of them zero."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape, dtype = weight.shape, weight.dtype
        weight.assign(rng.uniform(0.1, 0.5, size=shape).astype(dtype))
    return model


def by_class(model, cls):
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, cls)
    ]


def assert_same_predictions(model, new, x):
    old_outputs = keras.tree.flatten(model(x, training=False))
    new_outputs = keras.tree.flatten(new(x, training=False))
    assert len(old_outputs) == len(new_outputs)
    for old, new in zip(old_outputs, new_outputs, strict=True):
        old, new = ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        assert np.isfinite(old).all()
        assert np.abs(old - new).max() == 0.0


def test_a_sequential_model():
    model = varied(
        sequential(
            layers.Dropout(0.2, seed=3, name="drop_input"),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dropout(0.5, seed=4, name="drop_hidden"),
            layers.Dense(2, name="outputs"),
        )
    )
    new = invariantize(model)
    assert type(new) is keras.Sequential
    assert new.name == model.name
    assert [layer.name for layer in new.layers] == [
        layer.name for layer in model.layers
    ]
    drops = by_class(new, InvariantDropout)
    assert [(drop.rate, drop.seed) for drop in drops] == [(0.2, 3), (0.5, 4)]
    assert [tuple(drop.beta.shape) for drop in drops] == [(6,), (5,)]
    assert not by_class(new, layers.Dropout)
    x = random(7, 6)
    assert_same_predictions(model, new, x)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), new.predict(x, verbose=0)
    )


def test_the_model_is_left_as_it_is():
    model = varied(sequential(layers.Dropout(0.5), layers.Dense(2)))
    model.compile("adam", "mse")
    x, y = random(8, 6), random(8, 2)
    model.fit(x, y, epochs=2, verbose=0)
    before = model.get_weights()
    optimizer, iterations = model.optimizer, int(model.optimizer.iterations)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    new = invariantize(model)
    new.fit(x, y, verbose=0)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == iterations
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert type(model.layers[0]) is layers.Dropout


def my_loss(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred))


@pytest.mark.parametrize("loss", ["mse", my_loss, lambda a, b: ops.mean(a - b)])
def test_compiled_as_the_model_was(loss):
    model = sequential(layers.Dropout(0.5), layers.Dense(2))
    optimizer = keras.optimizers.SGD(0.125, momentum=0.5)
    metric = keras.metrics.MeanAbsoluteError()
    model.compile(optimizer, loss, metrics=[metric, "mse"])
    new = invariantize(model)
    assert new.compiled
    assert new.optimizer is not model.optimizer
    assert float(new.optimizer.learning_rate) == 0.125
    assert new.optimizer.momentum == 0.5
    assert new.loss is model.loss or new.loss == model.loss
    x, y = random(8, 6), random(8, 2)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert new.evaluate(x, y, verbose=0, return_dict=True) == expected
    assert len(expected) == 3
    # The two models share no metric: using one does not change the other's.
    assert model.evaluate(x, y, verbose=0, return_dict=True) == expected


def test_not_compiled_as_the_model_was_not():
    assert not invariantize(sequential(layers.Dropout(0.5))).compiled


def test_branches_shared_layers_several_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    drop, dense = layers.Dropout(0.5, name="shared"), layers.Dense(4)
    left, right = dense(drop(a)), dense(drop(b))
    joined = layers.Concatenate()([left, ops.relu(right)])
    joined = layers.Dropout(0.3)(joined)
    outputs = {"one": layers.Dense(2)(joined), "two": left + right}
    model = varied(keras.Model({"a": a, "b": b}, outputs))
    new = invariantize(model)
    # The layer that was called twice is one layer.
    assert len(by_class(new, InvariantDropout)) == 2
    assert len(new.weights) == len(model.weights) + 2
    x = {"a": random(3, 6), "b": random(3, 6, seed=1)}
    assert set(new(x)) == {"one", "two"}
    assert_same_predictions(model, new, x)


def test_nested_models():
    inner = sequential(
        layers.Dropout(0.4, name="inner_drop"), layers.Dense(6), shape=(6,)
    )
    inputs = keras.Input((6,))
    x = layers.Dropout(0.2)(inner(inner(inputs)))
    model = varied(keras.Model(inputs, layers.Dense(2)(x)))
    new = invariantize(model)
    assert type(new.layers[1]) is keras.Sequential
    assert len(by_class(new, InvariantDropout)) == 2
    assert new.layers[1].get_layer("inner_drop").rate == 0.4
    assert_same_predictions(model, new, random(3, 6))


class Halving(keras.Model):
    def predict_step(self, *args):
        return super().predict_step(*args)

    def halved(self, x):
        return self(x) / 2


def test_a_subclass_that_is_made_like_a_functional_model():
    inputs = keras.Input((6,))
    model = Halving(inputs, layers.Dense(2)(layers.Dropout(0.5)(inputs)))
    new = invariantize(model)
    assert isinstance(new, Halving)
    x = random(3, 6)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(new.halved(x)),
        ops.convert_to_numpy(model.halved(x)),
    )


@pytest.mark.parametrize(
    ("layer", "shape", "kwargs", "beta_shape"),
    [
        (layers.Dropout(0.5), (6,), {}, (6,)),
        (layers.Dropout(0.5), (5, 6), {}, (1, 6)),
        (layers.Dropout(0.5), (None, 6), {}, (1, 6)),
        (layers.Dropout(0.5), (5, 6), {"shared": "none"}, (5, 6)),
        (layers.Dropout(0.5), (4, 5, 6), {}, (1, 1, 6)),
        (layers.Dropout(0.5), (2, 4, 5, 6), {}, (1, 1, 1, 6)),
        (layers.Dropout(0.5), (2, 2, 4, 5, 6), {}, (1, 1, 1, 1, 6)),
        (
            layers.Dropout(0.5),
            (4, 5, 6),
            {"data_format": "channels_first"},
            (4, 1, 1),
        ),
        (
            layers.Dropout(0.5),
            (4, 5),
            {"data_format": "channels_first"},
            (4, 1),
        ),
        (layers.Dropout(0.5, noise_shape=(None, 1, 6)), (5, 6), {}, (1, 6)),
        (layers.SpatialDropout1D(0.5), (5, 6), {}, (1, 6)),
        (layers.SpatialDropout1D(0.5), (5, 6), {"shared": "none"}, (1, 6)),
        (
            layers.SpatialDropout2D(0.5, "channels_last"),
            (4, 5, 6),
            {"data_format": "channels_first"},
            (1, 1, 6),
        ),
        (
            layers.SpatialDropout2D(0.5, "channels_first"),
            (4, 5, 6),
            {},
            (4, 1, 1),
        ),
        (
            layers.SpatialDropout3D(0.5, "channels_first"),
            (2, 4, 5, 6),
            {},
            (2, 1, 1, 1),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_which_activities_share_a_beta(layer, shape, kwargs, beta_shape):
    model = sequential(layer, shape=shape)
    new = invariantize(model, **kwargs)
    (drop,) = by_class(new, InvariantDropout)
    assert tuple(drop.beta.shape) == beta_shape
    assert drop.name == layer.name
    if layer.noise_shape is not None:
        assert drop.noise_shape == layer.noise_shape
    spatial = "Spatial" in type(layer).__name__
    assert isinstance(drop, SpatialInvariantDropout) == spatial
    x = random(16, *(size or 7 for size in shape))
    assert_same_predictions(model, new, x)
    # The mask keeps its shape.
    zero = ops.convert_to_numpy(layer(x, training=True)) == 0
    new_zero = ops.convert_to_numpy(new(x, training=True)) == 0
    same_along = [
        [(mask == mask.take([0], axis)).all() for axis in range(1, mask.ndim)]
        for mask in (zero, new_zero)
    ]
    assert same_along[0] == same_along[1]


def test_a_global_channels_first_is_heeded():
    data_format = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        new = invariantize(sequential(layers.Dropout(0.5), shape=(3, 4, 5)))
        assert tuple(new.layers[0].beta.shape) == (3, 1, 1)
        new = invariantize(
            sequential(layers.SpatialDropout1D(0.5), shape=(4, 5))
        )
        assert tuple(new.layers[0].beta.shape) == (1, 5)
    finally:
        keras.config.set_image_data_format(data_format)


def test_policies_and_what_is_trainable_are_kept():
    frozen = sequential(layers.Dense(6), layers.Dropout(0.5), shape=(6,))
    frozen.trainable = False
    wrapped = layers.TimeDistributed(layers.Dense(4, name="inside"))
    wrapped.build((None, 3, 6))
    wrapped.layer.trainable = False
    model = sequential(
        frozen,
        layers.Dropout(0.5, dtype="mixed_float16", name="drop"),
        layers.Dense(6, dtype="bfloat16", trainable=False),
        layers.RepeatVector(3),
        wrapped,
        layers.Dense(2),
    )
    # A trainable layer inside a frozen model.
    frozen.layers[0].trainable = True
    new = invariantize(model)
    assert [layer.trainable for layer in new._flatten_layers()] == [
        layer.trainable for layer in model._flatten_layers()
    ]
    assert not new.layers[0].trainable
    assert new.layers[0].layers[0].trainable
    assert not new.layers[-2].layer.trainable
    assert new.get_layer("drop").dtype_policy.name == "mixed_float16"
    assert new.get_layer("drop").beta.dtype == "float32"
    assert new.layers[2].dtype_policy.name == "bfloat16"
    assert_same_predictions(model, new, random(3, 6))


def test_a_regularizer_and_a_constraint():
    model = sequential(
        layers.Dropout(0.5), layers.SpatialDropout1D(0.5), shape=(5, 6)
    )
    regularizer = keras.regularizers.L2(0.25)
    constraint = keras.constraints.NonNeg()
    new = invariantize(
        model, beta_regularizer=regularizer, beta_constraint=constraint
    )
    for drop in by_class(new, InvariantDropout):
        assert drop.beta_regularizer is regularizer
        assert drop.beta_constraint is constraint


def test_only_the_layers_that_are_named():
    model = sequential(
        layers.Dropout(0.5, name="a"),
        layers.Dropout(0.4, name="b"),
        RunningAverageDropout(0.5, name="c"),
    )
    new = invariantize(model, layers=["b"])
    kinds = [type(layer).__name__ for layer in new.layers]
    assert kinds == ["Dropout", "InvariantDropout", "RunningAverageDropout"]


def test_what_is_saved_of_the_old_model_loads_into_the_new(tmp_path):
    model = varied(
        sequential(
            layers.Dense(5, name="one"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(2, name="two"),
        )
    )
    model.save_weights(tmp_path / "old.weights.h5")
    new = invariantize(varied(keras.models.clone_model(model), seed=1))
    new.load_weights(tmp_path / "old.weights.h5", skip_mismatch=True)
    assert_same_predictions(model, new, random(3, 6))
    new.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert_same_predictions(model, loaded, random(3, 6))


def head(backbone):
    x = layers.GlobalAveragePooling2D()(backbone.output)
    x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(x))
    return keras.Model(backbone.input, layers.Dense(3)(x))


@pytest.mark.parametrize(
    ("application", "custom_head"),
    [
        (keras.applications.VGG16, True),
        pytest.param(
            keras.applications.MobileNet, False, marks=pytest.mark.thorough
        ),
        pytest.param(
            keras.applications.EfficientNetB0, False, marks=pytest.mark.thorough
        ),
        pytest.param(
            keras.applications.Xception, True, marks=pytest.mark.thorough
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_keras_applications(application, custom_head):
    kwargs = {"weights": None, "input_shape": (72, 72, 3)}
    if custom_head:
        model = head(application(include_top=False, **kwargs))
    else:
        model = application(classes=3, **kwargs)
    dropped = len(by_class(model, layers.Dropout))
    assert dropped > 0
    new = invariantize(model)
    assert len(by_class(new, InvariantDropout)) == dropped
    assert not by_class(new, layers.Dropout)
    assert new.count_params() > model.count_params()
    assert_same_predictions(model, new, random(1, 72, 72, 3))


@of_keras_hub
def test_a_model_of_keras_hub():
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    inputs = keras.Input((16, 16, 3))
    x = layers.Dropout(0.3)(backbone(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    model = varied(keras.Model(inputs, layers.Dense(3)(x)))
    new = invariantize(model)
    assert len(by_class(new, InvariantDropout)) == 1
    assert_same_predictions(model, new, random(2, 16, 16, 3))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (
            layers.LSTM(3, dropout=0.25, name="it"),
            r"'it/lstm_cell': .*dropout=0.25",
        ),
        (
            layers.GRU(3, recurrent_dropout=0.25, name="it"),
            r"'it/gru_cell': .*itself \(recurrent_dropout=0.25\)",
        ),
        (
            layers.Bidirectional(
                layers.LSTM(3, dropout=0.25, name="lstm"), name="it"
            ),
            "'it/forward_lstm/lstm_cell', 'it/backward_lstm/lstm_cell': draws",
        ),
        (layers.GaussianDropout(0.5, name="it"), "'it': does not replace"),
        (layers.AlphaDropout(0.5, name="it"), "'it': does not replace"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_converted_is_named(layer, match):
    model = sequential(layers.Dropout(0.5), layer, shape=(4, 5))
    with pytest.warns(UserWarning, match=f"stays as it is: {match}"):
        new = invariantize(model)
    assert len(by_class(new, InvariantDropout)) == 1
    assert_same_predictions(model, new, random(2, 4, 5))


def test_dropout_inside_attention_is_named():
    inputs = keras.Input((4, 6))
    x = layers.Dropout(0.5)(inputs)
    attention = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")
    model = keras.Model(inputs, attention(x, x))
    with pytest.warns(UserWarning, match="'attention/.*attention scores"):
        invariantize(model)


def attention(length):
    """Attention made of layers of the graph, with dropout of its scores."""
    inputs = keras.Input((length, 6))
    scores = layers.Dot((2, 2))([inputs, inputs])
    scores = layers.Dropout(0.5, name="drop")(layers.Softmax()(scores))
    return keras.Model(inputs, layers.Dot((2, 1))([scores, inputs]))


@pytest.mark.parametrize("length", [4, None])
def test_attention_scores_in_the_graph(length):
    model = attention(length)
    with pytest.warns(UserWarning, match="'drop': its input adds up to 1"):
        assert invariantize(model) is model
    new = invariantize(model, attention=True)
    (drop,) = by_class(new, InvariantDropout)
    assert tuple(drop.beta.shape) == (1, 1)
    assert_same_predictions(model, new, random(2, 4, 6))


def test_a_graph_that_cannot_be_called_on_random_numbers_is_converted():
    class Picky(layers.Layer):
        def call(self, x):
            if x.shape[1] == 4:
                raise RuntimeError("four timesteps")
            return x

    model = sequential(Picky(), layers.Dropout(0.5), shape=(None, 6))
    (drop,) = by_class(invariantize(model), InvariantDropout)
    assert tuple(drop.beta.shape) == (1, 6)


def test_nothing_is_warned_of_where_nothing_is_hidden(recwarn):
    inputs = keras.Input((4, 6))
    x = layers.Dropout(0.5)(inputs)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LSTM(3)(x)
    invariantize(keras.Model(inputs, x))
    assert not [w for w in recwarn if "Dropout" in str(w.message)]


class MyDropout(layers.Dropout):
    pass


class Halved(layers.Dropout):
    def call(self, inputs, training=False):
        return super().call(inputs, training=training) / 2


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5, name="hidden_drop")

    def call(self, x):
        return self.drop(x)


def test_a_subclass_of_dropout_is_converted_if_it_does_what_dropout_does():
    model = sequential(MyDropout(0.5), Halved(0.5, name="half"))
    with pytest.warns(UserWarning, match="'half': a subclass of `Dropout`"):
        new = invariantize(model)
    assert [type(x) for x in new.layers] == [InvariantDropout, Halved]
    assert_same_predictions(model, new, random(3, 6))


def test_a_beta_for_each_number_of_features():
    a, b = keras.Input((3,)), keras.Input((4,))
    drop = layers.Dropout(0.5, name="shared")
    model = keras.Model([a, b], [drop(a), drop(b)])
    new = invariantize(model)
    drops = by_class(new, InvariantDropout)
    assert sorted(tuple(x.beta.shape) for x in drops) == [(3,), (4,)]
    assert_same_predictions(model, new, [random(2, 3), random(2, 4)])


def test_a_beta_for_each_number_of_features_in_a_clone():
    inputs = keras.Input((4,))
    drop = layers.Dropout(0.5)
    x = drop(layers.Dense(6)(drop(inputs)))
    new = invariantize(keras.Model(inputs, layers.Dense(2)(x)))
    for i, layer in enumerate(by_class(new, InvariantDropout)):
        layer.set_shift(random(*layer.beta.shape, seed=i))
    clone = keras.models.clone_model(new)
    clone.set_weights(new.get_weights())
    assert_same_predictions(new, clone, random(3, 4))


def test_a_sequential_model_without_a_graph():
    model, x = without_graph(), random(3, 5)
    with pytest.raises(ValueError, match="`inputs`. Expected an example"):
        invariantize(model)
    new = invariantize(model, inputs=x)
    assert_same_predictions(model, new, x)
    calibrated = calibrate(new, x, keep_predictions=False)
    (drop,) = by_class(calibrated, InvariantDropout)
    mean = -(x + 1).mean(axis=0)
    np.testing.assert_allclose(ops.convert_to_numpy(drop.beta), mean, rtol=1e-5)
    assert MonteCarlo(model, 4).predict(x).mean.shape == (3, 2)
    assert len(variance_report(calibrated, x)) == 1


class Holder(layers.Layer):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.dense = layers.Dense(5)

    def call(self, x):
        return self.drop(self.dense(x))


def test_a_layer_in_the_graph_and_inside_another():
    drop = layers.Dropout(0.5, name="drop")
    model = sequential(drop, Holder(drop), shape=(None, 3))
    new, (row,) = invariantize(model, return_report=True)
    assert row.beta == ((1, 3), (1, 5))
    assert_same_predictions(model, new, random(2, 4, 3))


def test_a_model_that_cannot_be_converted_stays_as_it_is():
    a, b = keras.Input((3,)), keras.Input((None, 3))
    outputs = [layers.Dropout(0.5)(a), layers.Dropout(0.5)(b)]
    model = keras.Model([a, b], outputs)
    with pytest.raises(ValueError, match="fixed size"):
        invariantize(model, shared="none", inplace=True)
    assert len(by_class(model, layers.Dropout)) == 2
    assert not by_class(model, InvariantDropout)


def test_inputs_that_cannot_share_a_beta():
    a, b = keras.Input((3,)), keras.Input((4, 3))
    drop = layers.Dropout(0.5, name="shared")
    x = layers.Dropout(0.5)(drop(a))
    model = keras.Model([a, b], [x, drop(b)])
    with pytest.warns(UserWarning, match=r"'shared': .*of ranks \[2, 3\]"):
        new = invariantize(model)
    assert len(by_class(new, InvariantDropout)) == 1


def test_nothing_to_convert():
    for model in (
        sequential(layers.Dense(2)),
        sequential(InvariantDropout(0.5)),
    ):
        with pytest.warns(UserWarning, match="no `Dropout`.*as it is"):
            assert invariantize(model) is model
    model = sequential(layers.Dropout(0.5))
    with pytest.warns(UserWarning, match=r"matches `layers`.*\['dropout"):
        assert invariantize(model, layers=[]) is model


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (None, "`model`. Expected a `keras.Model`"),
        (layers.Dropout(0.5), "`model`. Expected a `keras.Model`"),
        (keras.Sequential([layers.Dropout(0.5)]), "`model`. Expected.*built"),
        (Subclassed(), "`inputs`. Expected an example of the input of model"),
    ],
    ids=["None", "layer", "unbuilt", "subclassed"],
)
def test_not_a_model_with_a_graph(model, match):
    with pytest.raises(ValueError, match=match):
        invariantize(model)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"shared": "all"}, "`shared`. Expected one of 'auto', 'none'"),
        ({"shared": None}, "`shared`"),
        ({"layers": "drop"}, "`layers`. Expected a list of names"),
        ({"layers": [3]}, "`layers`. Expected a list of names"),
        (
            {"layers": ["dorp", "drop"]},
            r"`layers`.*\['drop'\]. Received: \['dorp'\]",
        ),
        ({"data_format": "first"}, "`data_format`"),
        ({"filters": "["}, "`filters`. Expected a regular expression"),
        ({"filters": [3]}, "`filters`. Expected a regular expression"),
        ({"attention": 1}, "`attention`. Expected a boolean"),
        ({"inplace": None}, "`inplace`. Expected a boolean"),
        ({"return_report": 1}, "`return_report`. Expected a boolean"),
    ],
)
def test_bad_arguments(kwargs, match):
    model = sequential(layers.Dropout(0.5, name="drop"))
    with pytest.raises(ValueError, match=match):
        invariantize(model, **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "`layers`. Expected a list of names"),
        ({"beta_regularizer": "foo"}, "`beta_regularizer`. Expected what"),
        ({"beta_constraint": "foo"}, "`beta_constraint`. Expected what"),
    ],
)
def test_other_bad_arguments_are_named(options, message):
    model = sequential(layers.Dropout(0.5), layers.Dense(2), shape=(3,))
    with pytest.raises(ValueError, match=message):
        invariantize(model, **options)
