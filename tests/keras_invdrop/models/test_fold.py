import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from small_models import Doubled
from small_models import Drawing
from small_models import dense_net
from small_models import efficient_net
from small_models import random

from keras_invdrop import InvariantDropout
from keras_invdrop import LocallyConnected2D
from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import fold
from keras_invdrop import invariantize
from keras_invdrop.layers._shifted_dropout import ShiftedDropout
from keras_invdrop.models._dropout_sites import all_activities
from keras_invdrop.models._dropout_sites import dropout_sites
from keras_invdrop.models._injected_variance import means_for_shifts
from keras_invdrop.models._injected_variance import moments_of

TENSORFLOW = keras.backend.backend() == "tensorflow"
# A case with a factor that is passed on like beta, and one without it.
every_scaling = pytest.mark.parametrize(
    "scaling", ["test", pytest.param("train", marks=pytest.mark.thorough)]
)


def varied(model, seed=0):
    """Gives every weight a different value."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.uniform(0.2, 1.0, size=weight.shape)
        weight.assign(value.astype(weight.dtype))
    return model


def sequential(*model_layers, shape=(6,)):
    return varied(keras.Sequential([keras.Input(shape), *model_layers]))


def kinds(model):
    """The classes of the layers, without input layers."""
    names = [type(layer).__name__ for layer in model.layers]
    return [name for name in names if name != "InputLayer"]


def assert_folded(model, x, tolerance=1e-5):
    """Folds the model, compares predictions and returns the result."""
    before = model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    folded = fold(model)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    dropped = (layers.Dropout, ShiftedDropout)
    for layer in folded._flatten_layers():
        assert not isinstance(layer, dropped)
    outputs = keras.tree.flatten(folded(x))
    expected = keras.tree.flatten(model(x))
    for a, b in zip(outputs, expected, strict=True):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
    return folded


def test_by_hand():
    model = sequential(
        InvariantDropout(0.25, scaling="test"), layers.Dense(1), shape=(2,)
    )
    model.layers[0].beta.assign([1.0, -2.0])
    model.layers[1].set_weights([np.array([[1.0], [3.0]]), np.array([0.5])])
    folded = fold(model)
    kernel, bias = folded.layers[-1].get_weights()
    # p = 0.75: kernel times p, and bias plus p * (1 * 1 - 2 * 3)
    np.testing.assert_allclose(kernel, [[0.75], [2.25]])
    np.testing.assert_allclose(bias, [0.5 - 3.75])


@every_scaling
@pytest.mark.parametrize("shared_axes", [None, "all but the last"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(3, "relu"), (6,)),
        (layers.Dense(3, use_bias=False), (6,)),
        (layers.Dense(3, "relu"), (5, 6)),
        (layers.EinsumDense("ab,bc->ac", 3, bias_axes="c"), (6,)),
        (layers.EinsumDense("abc,cd->abd", (5, 3)), (5, 6)),
        (layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d"), (5, 6)),
        (layers.EinsumDense("...bc,cd->...bd", (None, 3)), (5, 6)),
        (layers.EinsumDense("abc,bd->adc", (3, 6), bias_axes="d"), (5, 6)),
        (layers.EinsumDense("...c,cd->...d", 3), (5, 6)),
        (layers.EinsumDense("abc,bcd->ad", 3, bias_axes="d"), (5, 6)),
        (layers.EinsumDense("abc,cde->abde", (5, 3, 2), "relu"), (5, 6)),
        (MaxoutDense(3, 2), (6,)),
        (MaxoutDense(3, 2, "relu", use_bias=False), (5, 6)),
        (layers.Conv1D(3, 2, strides=2), (6, 4)),
        (layers.Conv1D(3, 3, padding="causal", dilation_rate=2), (6, 4)),
        (layers.Conv2D(4, 3, dilation_rate=2, activation="relu"), (7, 6, 4)),
        (layers.Conv2D(4, (1, 2), groups=2, padding="same"), (7, 6, 4)),
        (layers.Conv2D(4, 3, 2, "same", use_bias=False), (7, 6, 4)),
        (layers.Conv3D(2, 2, activation="relu"), (4, 3, 3, 2)),
        (layers.Conv3D(2, 2, padding="same"), (4, 3, 3, 2)),
        (layers.DepthwiseConv1D(2, depth_multiplier=2), (6, 4)),
        (layers.DepthwiseConv2D(3, padding="same"), (7, 6, 4)),
        (layers.SeparableConv1D(3, 2, depth_multiplier=2), (6, 4)),
        (layers.SeparableConv2D(3, 3, padding="same"), (7, 6, 4)),
        (layers.Conv1DTranspose(3, 3, 2), (6, 4)),
        (layers.Conv2DTranspose(3, 3, 2, "same"), (5, 6, 4)),
        (layers.Conv3DTranspose(2, 2), (3, 3, 3, 2)),
        (MaxoutConv2D(3, 3, 2), (7, 6, 4)),
        (MaxoutConv2D(3, 3, 2, padding="same", activation="relu"), (7, 6, 4)),
        (LocallyConnected2D(3, 3, activation="relu"), (7, 6, 4)),
        (LocallyConnected2D(3, 3, padding="same", use_bias=False), (7, 6, 4)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_linear_consumers(layer, shape, shared_axes, scaling):
    if shared_axes:
        shared_axes = list(range(1, len(shape)))
    layer = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
    model = sequential(
        InvariantDropout(0.5, shared_axes=shared_axes, scaling=scaling),
        layer,
        shape=shape,
    )
    folded = assert_folded(model, random(3, *shape))
    new = kinds(folded)
    name = type(layer).__name__
    if len(new) > 1:
        # A bias that depends on the place becomes a map after the layer.
        assert new[:2] == [name.removeprefix("Maxout"), "EinsumDense"]
        assert set(new[2:]) <= {"Maxout", "Activation"}
        assert folded.layers[1].bias is None
        assert (folded.layers[2].get_weights()[0] == 1).all()
    pads = layer.get_config().get("padding", "valid") != "valid"
    if name == "LocallyConnected2D":
        assert new == [name]
    elif shared_axes and not pads and not name.endswith("Transpose"):
        # The shift is the same everywhere, and so is the response to it.
        assert new == [name]


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.Conv2D(4, 3, 2, data_format="channels_first"),
        MaxoutConv2D(3, 3, 2, padding="same"),
        MaxoutConv2D(3, 3, 2),
        LocallyConnected2D(3, 2, activation="relu"),
        layers.SeparableConv2D(3, 3, padding="same"),
        layers.DepthwiseConv2D(3),
        layers.Conv2DTranspose(3, 3, 2),
    ],
    ids=lambda value: value.name,
)
def test_channels_first(layer):
    config = {**layer.get_config(), "data_format": "channels_first"}
    model = sequential(
        SharedInvariantDropout(0.5, "channels_first"),
        type(layer).from_config(config),
        shape=(4, 6, 5),
    )
    # On a CPU TensorFlow's convolutions take it only if XLA compiles them.
    model.compile(jit_compile=TENSORFLOW)
    assert_folded(model, random(3, 4, 6, 5))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ([layers.Flatten()], (4, 5, 3)),
        ([layers.Reshape((10, 6))], (4, 5, 3)),
        ([layers.Permute((2, 1, 3))], (4, 5, 3)),
        ([layers.RepeatVector(3)], (6,)),
        ([layers.Activation("linear")], (6,)),
        ([layers.MaxPooling2D(2)], (4, 5, 3)),
        ([layers.MaxPooling2D(3, 2, "same")], (4, 5, 3)),
        ([layers.AveragePooling2D(2)], (4, 5, 3)),
        ([layers.AveragePooling2D(3, 2, "same")], (4, 5, 3)),
        ([layers.GlobalMaxPooling2D()], (4, 5, 3)),
        ([layers.GlobalAveragePooling2D(keepdims=True)], (4, 5, 3)),
        ([layers.GlobalAveragePooling1D()], (4, 3)),
        ([layers.GlobalMaxPooling3D()], (2, 4, 5, 3)),
        ([layers.UpSampling2D(2, interpolation="bilinear")], (4, 5, 3)),
        ([layers.ZeroPadding2D(1)], (4, 5, 3)),
        ([layers.Cropping2D(1)], (4, 5, 3)),
        ([layers.BatchNormalization()], (4, 5, 3)),
        ([layers.BatchNormalization(axis=1, scale=False)], (4, 5, 3)),
        ([layers.Dropout(0.5), layers.SpatialDropout2D(0.5)], (4, 5, 3)),
        ([layers.GaussianNoise(0.5), layers.GaussianDropout(0.5)], (6,)),
        ([layers.AveragePooling2D(2), layers.Flatten()], (4, 5, 3)),
        ([layers.Flatten(), layers.Reshape((4, 5, 3))], (4, 5, 3)),
    ],
    ids=lambda value: (
        "-".join(x.name for x in value) if isinstance(value, list) else None
    ),
)
@every_scaling
def test_paths_to_the_consumer(path, shape, scaling):
    shared = list(range(1, len(shape)))
    fresh = [type(layer).from_config(layer.get_config()) for layer in path]
    model = sequential(
        InvariantDropout(0.5, shared_axes=shared, scaling=scaling),
        *fresh,
        layers.Dense(3, name="dense"),
        shape=shape,
    )
    folded = assert_folded(model, random(3, *shape))
    absorbed = isinstance(path[0], layers.BatchNormalization)
    if not isinstance(path[0], layers.ZeroPadding2D) and not (
        absorbed and path[0].axis == 1
    ):
        assert "EinsumDense" not in kinds(folded)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (layers.AveragePooling2D(2), (4, 5, 3)),
        (layers.AveragePooling3D(2, 1, "same"), (2, 4, 5, 3)),
        (layers.GlobalAveragePooling2D(), (4, 5, 3)),
        (layers.UpSampling2D(2), (4, 5, 3)),
        (layers.BatchNormalization(), (4, 5, 3)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@every_scaling
def test_paths_of_a_shift_for_each_activity(path, shape, scaling):
    model = sequential(
        InvariantDropout(0.5, scaling=scaling),
        type(path).from_config(path.get_config()),
        layers.Flatten(),
        layers.Dense(3),
        shape=shape,
    )
    folded = assert_folded(model, random(3, *shape))
    assert "EinsumDense" not in kinds(folded)


@pytest.mark.parametrize(
    ("shared_axes", "expected"),
    [
        ([1, 2, 3], ["EinsumDense"]),
        # Its bias cannot vary along an axis that has no label.
        ([1, 2], ["EinsumDense", "EinsumDense"]),
        (None, ["EinsumDense", "EinsumDense"]),
    ],
)
def test_axes_after_those_of_an_equation(shared_axes, expected):
    model = sequential(
        InvariantDropout(0.5, shared_axes=shared_axes),
        layers.EinsumDense("abc...,cd->abd...", (None, 3)),
        shape=(5, 6, 2),
    )
    assert kinds(assert_folded(model, random(3, 5, 6, 2))) == expected


def test_features_that_are_moved_to_another_axis():
    model = sequential(
        InvariantDropout(0.5, shared_axes=[1, 2]),
        layers.Permute((3, 1, 2)),
        layers.Dense(3),
        shape=(4, 5, 3),
    )
    folded = assert_folded(model, random(3, 4, 5, 3))
    # One bias for each of the present three rows.
    assert kinds(folded) == ["Permute", "Dense", "EinsumDense"]
    assert folded.layers[-1].bias.shape == (3, 1, 3)


def test_a_maximum_of_a_shift_for_each_activity():
    model = sequential(
        InvariantDropout(0.5, name="drop"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(3),
        shape=(4, 5, 3),
    )
    folded = assert_folded(model, random(3, 4, 5, 3))
    assert kinds(folded) == ["EinsumDense", *kinds(model)[1:]]
    assert type(folded.get_layer("drop")) is layers.EinsumDense


def test_no_consumer():
    for layer in (layers.ReLU(), layers.LayerNormalization(), layers.LSTM(2)):
        model = sequential(
            InvariantDropout(0.5, name="drop", scaling="test"),
            layer,
            shape=(4, 3),
        )
        folded = assert_folded(model, random(3, 4, 3))
        assert kinds(folded) == ["EinsumDense", type(layer).__name__]
    # The output of the model itself.
    model = sequential(layers.Dense(3), InvariantDropout(0.5, name="drop"))
    folded = assert_folded(model, random(3, 6))
    assert kinds(folded) == ["Dense", "EinsumDense"]
    model = sequential(layers.Dropout(0.5))
    if keras.__version__ < "3.14":  # which made it possible
        with pytest.raises(ValueError, match="`inputs` not connected"):
            fold(model)
        return
    assert kinds(assert_folded(model, random(3, 6))) == []


def test_a_shift_of_zero_leaves_nothing():
    model = sequential(layers.Dense(3), InvariantDropout(0.5), layers.ReLU())
    model.layers[1].beta.assign(np.zeros(3))
    folded = assert_folded(model, random(3, 6), tolerance=0)
    assert kinds(folded) == ["Dense", "ReLU"]


def test_all_is_dropped():
    for scaling in ("train", "test"):
        model = sequential(
            InvariantDropout(1.0, scaling=scaling), layers.Dense(3)
        )
        assert_folded(model, random(3, 6))


def test_a_running_average():
    model = sequential(RunningAverageDropout(0.5), layers.Dense(3))
    assert kinds(assert_folded(model, random(3, 6))) == ["Dense"]


def reported(model):
    _, report = fold(varied(model), return_report=True)
    return list(map(str, report))


def test_the_report_says_where_each_beta_went():
    named = {
        "by_p": SharedInvariantDropout(
            0.5, "channels_last", scaling="test", name="by_p"
        ),
        "padded": SharedInvariantDropout(0.25, "channels_last", name="padded"),
        "normalised": SharedInvariantDropout(
            0.5, "channels_last", scaling="test", name="normalised"
        ),
    }
    keras_own = layers.LSTM(2, dropout=0.5, name="lstm")
    model = sequential(
        named["by_p"],
        layers.Conv2D(2, 2, activation="relu", name="conv"),
        named["padded"],
        layers.Conv2D(2, 3, padding="same", name="same"),
        layers.ReLU(name="relu"),
        named["normalised"],
        layers.BatchNormalization(name="norm"),
        layers.Reshape((9, 2)),
        layers.Dropout(0.5, name="standard"),
        layers.TimeDistributed(
            InvariantDropout(0.5, name="drop"), name="around"
        ),
        keras_own,
        InvariantDropout(0.5, name="last"),
        shape=(4, 4, 3),
    )
    assert reported(model) == [
        "by_p (SharedInvariantDropout, rate 0.5): beta and p in kernel and "
        "bias of 'conv'",
        "padded (SharedInvariantDropout, rate 0.25): beta in bias map of "
        "'same'",
        "normalised (SharedInvariantDropout, rate 0.5): beta and p in moving "
        "mean and variance of 'norm'",
        "standard (Dropout, rate 0.5): nothing to fold",
        "around/drop (InvariantDropout, rate 0.5): not folded: it stays, and "
        "adds its beta, since what 'around', a `TimeDistributed`, does with "
        "the shift is not known",
        "lstm/lstm_cell (LSTMCell, rate 0.5): nothing to fold",
        "last (InvariantDropout, rate 0.5): not folded: the model's output "
        "follows",
    ]


def test_the_report_of_several_next_layers():
    inputs = keras.Input((6,))
    x = InvariantDropout(0.5, name="drop", scaling="test")(inputs)
    y = InvariantDropout(0.5, name="other")(inputs)
    quantized, lora = layers.Dense(3, name="int8"), layers.Dense(3, name="lora")
    outputs = [
        layers.Dense(3, name="dense")(x),
        layers.ReLU(name="relu")(x),
        quantized(y),
        lora(y),
        layers.Dense(2, name="top")(layers.Add(name="add")([x, y])),
    ]
    model = keras.Model(inputs, outputs)
    quantized.quantize("int8")
    lora.enable_lora(2)
    _, (drop, other) = fold(model, return_report=True)
    # With a beta of zero p alone is left.
    assert (drop.path, drop.layer) == ("drop", "InvariantDropout")
    assert drop.rate == 0.5
    assert drop.into == ("beta and p in kernel and bias of 'dense'",)
    assert drop.reason == (
        "'add' takes inputs of different scales; 'relu' (`ReLU`) follows"
    )
    assert (other.into, other.reason) == ((), None)
    for layer in model.layers:
        if isinstance(layer, InvariantDropout):
            layer.beta.assign(np.ones(6))
    _, (drop, other) = fold(model, return_report=True)
    assert other.into == ("beta in bias of 'top'",)
    assert other.reason == "'lora' has a low-rank update; 'int8' is quantized"
    with pytest.raises(ValueError, match="`return_report`. Expected a boolean"):
        fold(model, return_report=1)


def test_an_unknown_rate_is_reported_as_unknown():
    _, (row,) = fold(sequential(Drawing(name="own")), return_report=True)
    assert row.rate is None
    assert str(row) == "own (Drawing, rate unknown): nothing to fold"


def test_the_report_of_what_leaves_no_number():
    inputs = keras.Input((6,), dtype="uint8")
    x = InvariantDropout(0.5, name="integers")(inputs)
    x = layers.Dense(3)(x)
    x = InvariantDropout(1.0, scaling="test", name="all")(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    assert reported(model) == [
        "integers (InvariantDropout, rate 0.5): not folded: its inputs are "
        "integers",
        "all (InvariantDropout, rate 1): not folded: it drops all",
    ]


def test_several_consumers_of_one_output():
    inputs = keras.Input((6,))
    x = InvariantDropout(0.5, name="drop", scaling="test")(inputs)
    dense = layers.Dense(3)(x)
    # Two nonlinear layers share the rest of beta.
    others = [layers.ReLU()(x), layers.Activation("tanh")(x)]
    model = varied(keras.Model(inputs, [dense, *others]))
    folded = assert_folded(model, random(3, 6))
    assert sorted(kinds(folded)) == sorted(
        ["Activation", "Dense", "ReLU", "EinsumDense"]
    )


@pytest.mark.parametrize(
    "merge",
    [
        layers.Add(),
        layers.Subtract(),
        layers.Average(),
        layers.Concatenate(),
        layers.Concatenate(axis=1),
    ],
    ids=lambda value: value.name,
)
@pytest.mark.parametrize("scalings", [("train", "train"), ("test", "train")])
def test_merging(merge, scalings):
    inputs = keras.Input((4, 3))
    branches = [
        InvariantDropout(0.5, scaling=scalings[0])(layers.ReLU()(inputs)),
        InvariantDropout(0.5, shared_axes=1, scaling=scalings[1])(inputs),
    ]
    merge = type(merge).from_config(merge.get_config())
    x = layers.Flatten()(merge(branches))
    model = varied(keras.Model(inputs, layers.Dense(2)(x)))
    folded = assert_folded(model, random(3, 4, 3))
    # Different scales cannot pass through one sum.
    expected = 0 if len(set(scalings)) == 1 else 1
    assert kinds(folded).count("EinsumDense") == expected


def test_merging_with_what_was_not_dropped():
    inputs = keras.Input((4, 3))
    x = layers.Add()([inputs, InvariantDropout(0.5)(inputs)])
    x = layers.Multiply()([InvariantDropout(0.5, name="left")(x), inputs])
    model = varied(keras.Model(inputs, layers.Dense(2)(x)))
    folded = assert_folded(model, random(3, 4, 3))
    assert kinds(folded).count("EinsumDense") == 1


def test_layers_that_were_shared_stay_shared():
    a, b = keras.Input((6,)), keras.Input((6,))
    drop, dense = InvariantDropout(0.5), layers.Dense(3)
    model = varied(keras.Model([a, b], [dense(drop(a)), dense(drop(b))]))
    folded = assert_folded(model, [random(3, 6), random(3, 6, seed=1)])
    assert kinds(folded) == ["Dense"]
    # With different shifts they cannot.
    outputs = [dense(InvariantDropout(0.5)(x)) for x in (a, b)]
    model = varied(keras.Model([a, b], outputs))
    folded = assert_folded(model, [random(3, 6), random(3, 6, seed=1)])
    assert kinds(folded) == ["Dense", "Dense"]


def test_structures_of_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = layers.Concatenate()([InvariantDropout(0.5)(a), ops.relu(b)])
    outputs = {"one": layers.Dense(2)(x), "two": (b, layers.Dense(1)(x))}
    model = varied(keras.Model({"a": a, "b": b}, outputs))
    x = {"a": random(3, 6), "b": random(3, 6, seed=1)}
    folded = assert_folded(model, x)
    keras.tree.assert_same_structure(folded.output, model.output)


def test_nested_models():
    def inner():
        return keras.Sequential(
            [
                keras.Input((6,), name="x"),
                InvariantDropout(0.5, name="drop"),
                layers.Dense(6, "relu", name="dense"),
                layers.Dropout(0.5, name="standard"),
            ]
        )

    one = inner()
    inputs = keras.Input((6,), name="x")
    x = InvariantDropout(0.2, name="last")(inner()(one(one(inputs))))
    model = varied(keras.Model(inputs, layers.Dense(2, name="dense")(x)))
    folded = assert_folded(model, random(3, 6))
    assert kinds(folded) == ["Dense"] * 3
    assert len({layer.name for layer in folded.layers}) == 4


@pytest.mark.parametrize(
    ("outer", "inner"), [("uint8", "float32"), ("float32", "int32")]
)
def test_a_nested_model_casts_its_inputs(outer, inner, tmp_path):
    inputs = keras.Input((4,), dtype=inner)
    x = layers.Rescaling(2.0, dtype="float32")(inputs * 2)
    x = InvariantDropout(0.5)(x)
    nested = keras.Model(inputs, layers.Dense(2)(x))
    inputs = keras.Input((4,), dtype=outer)
    model = varied(keras.Model(inputs, nested(inputs)))
    # Doubled, these numbers do not fit in 8 bits.
    x = np.random.default_rng(0).uniform(150, 255, (3, 4)).astype(outer)
    folded = assert_folded(model, x)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), folded.predict(x, verbose=0)
    )


def test_a_nested_model_with_a_call_of_its_own_stays():
    nested = Doubled(
        [
            keras.Input((6,)),
            InvariantDropout(0.5, name="drop"),
            layers.Dense(2),
        ],
        name="nested",
    )
    model, x = varied(sequential(nested)), random(3, 6)
    folded, (row,) = fold(model, return_report=True)
    assert kinds(folded) == ["Doubled"]
    np.testing.assert_array_equal(
        folded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    assert row.path == "nested/drop"
    assert "what 'nested', a `Doubled`, does" in row.reason


def test_outputs_keep_the_names_by_which_they_are_evaluated(tmp_path):
    inputs = keras.Input((6,))
    first = keras.Sequential(
        # The name of the other output.
        [keras.Input((6,)), layers.Dropout(0.5), layers.Dense(2, name="b")],
        name="a",
    )
    second = layers.Dropout(0.5, name="b")
    x = InvariantDropout(0.5)(inputs)
    third = layers.Conv1D(2, 3, padding="same", activation="relu", name="c")
    y = third(layers.Reshape((3, 2))(x))
    model = varied(keras.Model(inputs, [first(x), second(x), y]))
    model.compile(
        "sgd",
        {"a": "mse", "b": "mae", "c": "mse"},
        metrics={"a": ["mae"]},
    )
    x = random(8, 6)
    y = {"a": random(8, 2), "b": random(8, 6), "c": random(8, 3, 2)}
    folded = assert_folded(model, x)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    expected = model.evaluate(x, y, verbose=0)
    for found in (folded, loaded):
        assert found.output_names == ["a", "b", "c"]
        assert found.evaluate(x, y, verbose=0) == pytest.approx(
            expected, rel=1e-5
        )


def test_one_output_keeps_its_name_only_if_losses_use_it():
    inputs = keras.Input((6,))
    dense = layers.Dense(2, name="dense")
    model = keras.Model(inputs, layers.Dropout(0.5, name="last")(dense(inputs)))
    assert fold(model).output_names == ["dense"]
    model.compile("sgd", {"last": "mse"})
    x, y = random(8, 6), random(8, 2)
    expected = model.evaluate(x, y, verbose=0)
    folded = fold(model)
    assert folded.output_names == ["last"]
    assert folded.evaluate(x, y, verbose=0) == pytest.approx(expected)


def test_sizes_that_are_not_fixed():
    shared = SharedInvariantDropout(0.5, "channels_last", scaling="test")
    model = sequential(
        shared,
        layers.MaxPooling2D(2),
        layers.Conv2D(4, 3, activation="relu"),
        SharedInvariantDropout(0.5, "channels_last"),
        layers.BatchNormalization(),
        layers.Conv2D(4, 1, padding="same"),
        SharedInvariantDropout(0.5, "channels_last"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
        shape=(None, None, 3),
    )
    folded = assert_folded(model, random(2, 11, 9, 3))
    assert kinds(folded) == [
        kind for kind in kinds(model) if kind != "SharedInvariantDropout"
    ]
    # A map of the border would need a fixed size.
    model = sequential(
        SharedInvariantDropout(0.5, "channels_last"),
        layers.Conv2D(4, 3, padding="same"),
        shape=(None, None, 3),
    )
    folded = assert_folded(model, random(2, 7, 5, 3))
    assert kinds(folded) == ["EinsumDense", "Conv2D"]
    model = sequential(
        InvariantDropout(0.5, shared_axes=1), layers.Dense(3), shape=(None, 4)
    )
    assert kinds(assert_folded(model, random(2, 7, 4))) == ["Dense"]


def test_masks_of_padding_go_on():
    x = random(5, 4, 3)
    x[:3, 2:] = 0
    for last in (layers.LSTM(2), layers.GlobalAveragePooling1D()):
        for shared in (1, None):
            model = sequential(
                layers.Masking(0.0),
                InvariantDropout(0.5, shared_axes=shared, name="drop"),
                type(last).from_config(last.get_config()),
                shape=(4, 3),
            )
            assert_folded(model, x)
    model = sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5),
        layers.Dense(3),
        layers.LSTM(2),
        shape=(4, 3),
    )
    folded = assert_folded(model, x)
    # An `EinsumDense` would lose the mask, and with it the result.
    kept = ["Rescaling", "Rescaling", "PReLU", "Add"]
    assert sorted(kinds(folded)) == sorted(["Masking", "Dense", *kept, "LSTM"])


def test_inputs_of_integers():
    inputs = keras.Input((6,), dtype="uint8")
    x = layers.Dense(3)(InvariantDropout(0.5)(inputs))
    model = varied(keras.Model(inputs, x))
    x = np.arange(18).reshape((3, 6)).astype("uint8")
    assert_folded(model, x)


def test_mixed_precision():
    policy = "mixed_bfloat16"
    model = sequential(
        InvariantDropout(0.5, dtype=policy),
        layers.Dense(8, "relu", dtype=policy),
        InvariantDropout(0.5, dtype=policy),
        layers.Dense(3, dtype=policy),
    )
    # Rounded to 8 bits at each layer.
    folded = assert_folded(model, random(3, 6), tolerance=0.02)
    assert folded.layers[1].dtype_policy.name == policy
    # A shift that no bias takes is a weight of another layer, not rounded.
    model = sequential(
        InvariantDropout(0.5, dtype=policy), layers.ReLU(dtype=policy)
    )
    folded = assert_folded(model, random(3, 6), tolerance=0.02)
    assert folded.weights
    assert {weight.dtype for weight in folded.weights} == {"float32"}


def in_double_precision():
    """Layers that pass a shift on in every way, with weights in float64."""
    return sequential(
        InvariantDropout(0.5, scaling="test", dtype="float64"),
        layers.AveragePooling2D(2, dtype="float64"),
        layers.Conv2D(4, 3, padding="same", dtype="float64"),
        layers.ReLU(dtype="float64"),
        SharedInvariantDropout(0.5, "channels_last", dtype="float64"),
        layers.Conv2D(4, 2, use_bias=False, dtype="float64"),
        layers.BatchNormalization(dtype="float64"),
        layers.ReLU(dtype="float64"),
        InvariantDropout(0.5, dtype="float64"),
        layers.Flatten(dtype="float64"),
        layers.Dense(3, dtype="float64"),
        shape=(8, 8, 3),
    )


def test_nothing_but_rounding_is_lost():
    """In float64 the predictions of both models agree to 1e-13.

    By default JAX has no float64, and on PyTorch some layers of Keras compute
    in float32 whatever their dtype is.
    """
    tolerance = 1e-13 if TENSORFLOW else 1e-6
    x = random(3, 8, 8, 3).astype("float64")
    assert_folded(in_double_precision(), x, tolerance)


@pytest.mark.thorough
@pytest.mark.skipif(
    not TENSORFLOW,
    reason="JAX has no float64 by default, and `Dense` on PyTorch has none",
)
@pytest.mark.parametrize("make", [efficient_net, dense_net])
def test_deep_networks_lose_nothing_but_rounding(make):
    """In float64 what is folded predicts the same to 1e-13.

    A difference in float32 is then rounding, by sums in another order: at most
    twice what rounding to float32 changes in the predictions anyway.
    """
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float64")
    try:
        model = invariantize(make())
        x = np.random.default_rng(0).random((8, 32, 32, 3))
        # Afterwards batch normalisation has statistics of its own.
        model(x, training=True)
        sites = dropout_sites(model)
        moments = moments_of([all_activities(model, x)])
        means = means_for_shifts(sites, moments)
        for site, mean in zip(sites, means, strict=True):
            assert np.abs(mean).max() > 1e-3
            site.layer.set_shift(-mean)
        assert_folded(model, x, tolerance=1e-13)
    finally:
        keras.config.set_dtype_policy(policy)
    single = invariantize(make())
    single.set_weights(model.get_weights())
    found = single.predict(x, verbose=0)
    by_rounding = np.abs(found - model.predict(x, verbose=0)).max()
    by_folding = np.abs(fold(single).predict(x, verbose=0) - found).max()
    assert by_folding <= 2 * by_rounding < 1e-5


def test_rounding_where_little_is_left_of_large_numbers():
    """The error is as large as rounding the terms, not the small output."""
    model = sequential(InvariantDropout(0.5), layers.Dense(5), shape=(200,))
    x = 100 + 0.01 * random(50, 200)
    kernel, bias = random(200, 5, seed=1), np.zeros(5)
    model.layers[0].beta.assign(-x.mean(axis=0))
    model.layers[1].set_weights([kernel, bias])
    expected = (x - x.mean(axis=0).astype("float64")) @ kernel
    found = fold(model).predict(x, verbose=0)
    error = np.abs(found - expected).max()
    terms = (np.abs(x) @ np.abs(kernel)).max()
    assert error < 1e-6 * terms
    # Relative to the output, a wrong sum could have an error this large.
    assert terms > 1e4 * np.abs(expected).max()


def test_what_cannot_be_folded_into_gets_what_it_got():
    lora = sequential(InvariantDropout(0.5), layers.Dense(3))
    lora.layers[1].enable_lora(2)
    varied(lora)
    assert kinds(assert_folded(lora, random(3, 6))) == ["EinsumDense", "Dense"]
    quantized = sequential(InvariantDropout(0.5), layers.Dense(3))
    quantized.layers[1].quantize("int8")
    folded = assert_folded(quantized, random(3, 6))
    assert kinds(folded) == ["EinsumDense", "Dense"]

    class MyDense(layers.Dense):
        def call(self, inputs, training=None):
            return ops.square(super().call(inputs))

    model = sequential(InvariantDropout(0.5), MyDense(3))
    assert kinds(assert_folded(model, random(3, 6))) == [
        "EinsumDense",
        "MyDense",
    ]


def test_the_layers_are_those_of_a_network_without_dropout():
    def network(dropout):
        maps = [
            SharedInvariantDropout(0.5, "channels_last"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(2),
            SharedInvariantDropout(0.5, "channels_last"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            InvariantDropout(0.5),
            layers.Dense(8, activation="relu"),
            InvariantDropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
        kept = [x for x in maps if dropout or not isinstance(x, ShiftedDropout)]
        return sequential(*kept, shape=(10, 10, 3))

    folded = assert_folded(network(True), random(3, 10, 10, 3))
    without = network(False)
    assert kinds(folded) == kinds(without)
    assert folded.count_params() == without.count_params()


def test_saved_and_loaded(tmp_path):
    model = sequential(
        SharedInvariantDropout(0.5, "channels_last"),
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        InvariantDropout(0.5, name="drop"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(3),
        shape=(6, 6, 3),
    )
    folded = assert_folded(model, x := random(3, 6, 6, 3))
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), folded.predict(x, verbose=0)
    )


def with_a_map():
    return sequential(
        SharedInvariantDropout(0.5, "channels_last"),
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.Flatten(),
        shape=(6, 6, 3),
    )


def before_an_activation():
    return sequential(
        InvariantDropout(0.5, scaling="test"), layers.ReLU(), shape=(6, 6, 3)
    )


def where_a_mask_goes_on():
    return sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5, scaling="test"),
        layers.LSTM(2),
        shape=(4, 3),
    )


@pytest.mark.parametrize(
    "make", [with_a_map, before_an_activation, where_a_mask_goes_on]
)
def test_what_shifts_is_a_weight(make, tmp_path):
    """No copy of weights loses beta, however it is made."""
    model = make()
    folded = fold(model)
    x = random(3, *model.input_shape[1:])
    x[:, 2:] = 0
    expected = folded.predict(x, verbose=0)
    other = make()
    for weight in other.weights:
        weight.assign(2 * np.array(weight))
    difference = fold(other).predict(x, verbose=0) - expected
    assert np.abs(difference).max() > 0.1

    clone = keras.models.clone_model(folded)
    clone.set_weights(folded.get_weights())
    set_in_another = fold(other)
    set_in_another.set_weights(folded.get_weights())
    folded.save_weights(tmp_path / "folded.weights.h5")
    loaded = fold(other)
    loaded.load_weights(tmp_path / "folded.weights.h5")
    for copy in (clone, set_in_another, loaded):
        np.testing.assert_array_equal(copy.predict(x, verbose=0), expected)


def test_a_large_map_is_no_part_of_the_configuration(tmp_path):
    model = sequential(
        SharedInvariantDropout(0.5, "channels_last"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        shape=(224, 224, 3),
    )
    folded = fold(model)
    assert len(folded.to_json()) < 10_000
    folded.save(tmp_path / "folded.keras")
    size_of_map = 4 * 224 * 224 * 64
    size = (tmp_path / "folded.keras").stat().st_size
    assert size_of_map < size < 1.01 * size_of_map


def test_compiled_as_the_model_was():
    model = sequential(InvariantDropout(0.5), layers.Dense(2))
    assert not fold(model).compiled
    model.compile("sgd", "mse")
    x, y = random(8, 6), random(8, 2)
    found = fold(model).evaluate(x, y, verbose=0)
    assert found == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)


L1 = keras.regularizers.L1(1.0)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(3, "relu", activity_regularizer=L1),
        layers.Conv1D(3, 2, activity_regularizer=L1),
        layers.Conv1D(
            3, 3, padding="same", activation="relu", activity_regularizer=L1
        ),
        layers.Conv1D(3, 3, padding="same", activity_regularizer=L1),
        MaxoutDense(3, 2, activity_regularizer=L1),
    ],
)
def test_the_loss_has_the_penalty_on_activities(layer):
    model = sequential(
        InvariantDropout(0.5),
        layer,
        layers.Flatten(),
        layers.Dense(1),
        shape=(5, 4),
    )
    model.compile("sgd", "mse")
    x, y = random(8, 5, 4), random(8, 1)
    loss = model.evaluate(x, y, verbose=0)
    error = np.mean((model.predict(x, verbose=0) - y) ** 2)
    assert loss > 1.01 * error
    found = assert_folded(model, x).evaluate(x, y, verbose=0)
    assert found == pytest.approx(loss, rel=1e-5)


def test_batch_statistics_stay():
    inputs = keras.Input((4,))
    x = InvariantDropout(0.5, name="drop")(inputs)
    x = layers.BatchNormalization(name="norm")(x, training=True)
    model = varied(keras.Model(inputs, layers.Dense(2)(x)))
    folded = assert_folded(model, random(8, 4))
    assert kinds(folded) == ["EinsumDense", "BatchNormalization", "Dense"]


def masked_nested():
    """A model that passes a mask to a nested one."""
    inputs = keras.Input((5, 3))
    x = layers.GlobalAveragePooling1D()(InvariantDropout(0.5)(inputs))
    nested = keras.Model(inputs, layers.Dense(2)(x), name="nested")
    words = keras.Input((5,), dtype="int32")
    x = nested(layers.Embedding(9, 3)(words), mask=words > 0)
    return keras.Model(words, x)


class MyInvariantDropout(InvariantDropout):
    pass


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            lambda: sequential(MyInvariantDropout(0.5, name="mine")),
            "'mine' is a `MyInvariantDropout`",
        ),
        (lambda: None, "`model`. Expected a `keras.Model`"),
        (lambda: Subclassed(), "`model`. Expected a functional"),
        (lambda: keras.Sequential([layers.Dense(2)]), "been built"),
        (
            lambda: Doubled([keras.Input((3,)), layers.Dropout(0.5)]),
            "`model`. Expected a model of a class without a `call`",
        ),
        (masked_nested, "'nested' is called with the argument `mask`"),
    ],
    ids=["subclass", "none", "subclassed", "unbuilt", "call", "mask"],
)
def test_bad_models(model, match):
    with pytest.raises(ValueError, match=match):
        fold(model())


class Unregistered(keras.regularizers.Regularizer):
    """A regularizer that Keras cannot save, since it has no config."""

    def __call__(self, weight):
        return 0.1 * ops.sum(ops.square(weight))


@pytest.mark.parametrize(
    "linear",
    [
        lambda **own: layers.Dense(4, **own),
        lambda **own: layers.Conv2D(4, 2, **own),
        lambda **own: layers.Conv2D(4, 2, padding="same", **own),
        lambda **own: LocallyConnected2D(4, 2, **own),
        lambda **own: MaxoutConv2D(4, 2, 2, **own),
    ],
    ids=["dense", "convolution", "padding", "locally connected", "maxout"],
)
def test_own_functions_and_objects_need_not_be_registered(linear):
    """The network also keeps the losses of its regularizers."""
    model = sequential(
        InvariantDropout(0.5),
        linear(
            activation=lambda x: ops.relu(x) ** 2,
            kernel_initializer=lambda shape, dtype: ops.ones(shape, dtype),
            kernel_regularizer=Unregistered(),
        ),
        layers.Flatten(),
        InvariantDropout(0.5),
        layers.Dense(2, kernel_regularizer=Unregistered()),
        shape=(4, 3, 2),
    )
    folded = assert_folded(model, random(8, 4, 3, 2))
    np.testing.assert_allclose(
        [ops.convert_to_numpy(x) for x in folded.losses],
        [ops.convert_to_numpy(x) for x in model.losses],
        rtol=1e-5,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_an_activation_with_weights(padding):
    model = sequential(
        InvariantDropout(0.5, scaling="test", shared_axes=[1, 2]),
        layers.Conv2D(4, 2, padding=padding, activation=layers.PReLU()),
        layers.Flatten(),
        InvariantDropout(0.5),
        layers.Dense(3, use_bias=False, activation=layers.PReLU(name="last")),
        shape=(4, 3, 2),
    )
    # Below zero, too, where the weights of the activation matter.
    x = -random(8, 4, 3, 2)
    folded = assert_folded(model, x)
    assert kinds(folded)[-2:] == ["Dense", "PReLU"]
    report = fold(model, return_report=True)[1]
    where = "bias map" if padding == "same" else "bias"
    assert f"beta and p in kernel and {where} of 'conv" in report[0].into[0]
    assert "beta in bias of 'dense" in report[1].into[0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_mask_of_its_input_reaches_a_nested_model(policy, tmp_path):
    """Keras records the mask as an argument of the call."""
    words = keras.Input((6,), dtype="int32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        encoder = keras.Sequential(
            [
                keras.Input((6, 8)),
                InvariantDropout(0.5, shared_axes=1),
                layers.Dense(8),
                layers.GlobalAveragePooling1D(),
            ]
        )
        embedding = layers.Embedding(9, 8, mask_zero=True)
        x = encoder(embedding(words))
        model = varied(keras.Model(words, layers.Dense(2)(x)))
    finally:
        keras.config.set_dtype_policy(before)
    x = np.array([[1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]])
    tolerance = 1e-5 if policy == "float32" else 0.02
    # Without the mask, the padding would be most of the mean over words.
    embeddings = ops.convert_to_numpy(embedding.embeddings).copy()
    embeddings[0] = 50
    embedding.embeddings.assign(embeddings)
    assert_folded(model, x, tolerance)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_folded(loaded, x, tolerance)


def test_a_shared_convolution_that_pads_follows_two_sizes():
    dropped = SharedInvariantDropout(
        0.5, "channels_last", beta_initializer="ones"
    )
    conv = layers.Conv2D(2, 3, padding="same", data_format="channels_last")
    inputs = [keras.Input((size, size, 3)) for size in (8, 6)]
    model = keras.Model(inputs, [conv(dropped(each)) for each in inputs])
    x = [random(4, size, size, 3) for size in (8, 6)]
    for found, expected in zip(
        fold(model).predict(x, verbose=0),
        model.predict(x, verbose=0),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
