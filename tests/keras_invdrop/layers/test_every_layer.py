"""Facts about every layer: dtypes, compilation, files, export."""

import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

import keras_invdrop

# A model for each layer: (shape of an example, layers, the layer under test
# first). The dense layer gives the model a weight to train.
LAYERS = {
    "InvariantDropout": (
        (6,),
        lambda: [
            keras_invdrop.InvariantDropout(0.5, seed=1),
            keras.layers.Dense(2),
        ],
    ),
    "InvariantDropout test": (
        (5, 6),
        lambda: [
            keras_invdrop.InvariantDropout(
                0.5,
                shared_axes=[1],
                noise_shape=(None, 1, None),
                scaling="test",
                beta_regularizer=keras_invdrop.regularizers.Variance(0.1),
                seed=1,
            ),
            keras.layers.Dense(2),
        ],
    ),
    "SharedInvariantDropout": (
        (5, 6, 3),
        lambda: [
            keras_invdrop.SharedInvariantDropout(0.5, "channels_last", seed=1),
            keras.layers.Dense(2),
        ],
    ),
    "SharedInvariantDropout first": (
        (3, 5, 6),
        lambda: [
            keras_invdrop.SharedInvariantDropout(0.5, "channels_first", seed=1),
            keras.layers.Dense(2),
        ],
    ),
    "SpatialInvariantDropout": (
        (5, 3),
        lambda: [
            keras_invdrop.SpatialInvariantDropout(0.5, "channels_last", seed=1),
            keras.layers.Dense(2),
        ],
    ),
    "SpatialInvariantDropout first": (
        (3, 5, 6),
        lambda: [
            keras_invdrop.SpatialInvariantDropout(
                0.5, "channels_first", seed=1
            ),
            keras.layers.Dense(2),
        ],
    ),
    "RunningAverageDropout": (
        (6,),
        lambda: [
            keras_invdrop.RunningAverageDropout(0.5, seed=1),
            keras.layers.Dense(2),
        ],
    ),
    "Maxout": (
        (6,),
        lambda: [keras_invdrop.Maxout(3), keras.layers.Dense(2)],
    ),
    "MaxoutDense": ((6,), lambda: [keras_invdrop.MaxoutDense(2, 3)]),
    "LocallyConnected2D": (
        (5, 6, 3),
        lambda: [
            keras_invdrop.LocallyConnected2D(2, 3, data_format="channels_last")
        ],
    ),
    "LocallyConnected2D first": (
        (3, 5, 6),
        lambda: [
            keras_invdrop.LocallyConnected2D(
                2, 3, padding="same", data_format="channels_first"
            )
        ],
    ),
    "StochasticPooling2D": (
        (5, 6, 3),
        lambda: [
            keras_invdrop.StochasticPooling2D(
                3, 2, "same", data_format="channels_last", seed=1
            ),
            keras.layers.Dense(2),
        ],
    ),
    "StochasticPooling2D first": (
        (3, 5, 6),
        lambda: [
            keras_invdrop.StochasticPooling2D(
                2, data_format="channels_first", seed=1
            ),
            keras.layers.Dense(2),
        ],
    ),
    "MaxoutConv2D": (
        (5, 6, 3),
        lambda: [
            keras_invdrop.MaxoutConv2D(2, 3, 2, data_format="channels_last")
        ],
    ),
    "MaxoutConv2D first": (
        (3, 5, 6),
        lambda: [
            keras_invdrop.MaxoutConv2D(2, 3, 2, data_format="channels_first")
        ],
    ),
    "GlobalContrastNormalization": (
        (5, 6, 3),
        lambda: [
            keras_invdrop.GlobalContrastNormalization(),
            keras.layers.Dense(2),
        ],
    ),
    "ZCAWhitening": (
        (6,),
        lambda: [keras_invdrop.ZCAWhitening(), keras.layers.Dense(2)],
    ),
}
every_layer = pytest.mark.parametrize("case", LAYERS)


def build(case):
    keras.utils.set_random_seed(0)
    shape, layers = LAYERS[case]
    model = keras.Sequential([keras.Input(shape), *layers()])
    for weight in model.weights:
        # No shift or bias is zero, where it would have no effect.
        rng = np.random.default_rng(1)
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    x = np.random.default_rng(2).normal(size=(8, *shape)).astype("float32")
    if "Pooling" in case:
        x = abs(x)
    return model, x


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


POLICIES = "float32", "mixed_bfloat16", "mixed_float16"


def under(policy, *cases):
    """Cases under one policy for each layer, and one layer under each policy.

    Args:
        policy: The dtype policy of every layer.
        *cases: Names, or tuples that begin with them.
    """
    for case in cases:
        name, *_ = case = case if isinstance(case, tuple) else (case,)
        for each in POLICIES:
            usual = each == policy or name == "InvariantDropout"
            marks = [] if usual else [pytest.mark.thorough]
            yield pytest.param(*case, each, marks=marks)


# PyTorch's compiler takes ten seconds for this case, and longer for most
# others. `make test-all` compiles all.
COMPILED_ON_TORCH = "InvariantDropout"


def compiled(*cases):
    """As `under("float32")`, without most cases on PyTorch."""
    for case in under("float32", *cases):
        name, _, policy = case.values
        slow = keras.backend.backend() == "torch" and (
            name != COMPILED_ON_TORCH or policy != "float32"
        )
        marks = [pytest.mark.thorough] if slow else case.marks
        yield pytest.param(*case.values, marks=marks)


# Of a value of about 1: the bits of the significand, less a few for sums.
PRECISION = {"float32": 1e-5, "mixed_bfloat16": 0.1, "mixed_float16": 0.02}


def runs_on_this_machine(case, policy):
    """Whether Keras' own layers run the case uncompiled.

    TensorFlow's convolutions in channels_first have no half-precision kernels
    on some CPUs, and no float16 kernel on any.
    """
    if case != "MaxoutConv2D first" or keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    conv = keras.layers.Conv2D(1, 1, data_format="channels_first")
    try:
        conv(np.zeros((1, 1, 1, 1)))
    except tf.errors.UnimplementedError:
        assert policy != "float32"
        return False
    return True


@pytest.mark.parametrize(
    ("case", "policy"), under("mixed_bfloat16", *LAYERS), indirect=["policy"]
)
def test_dtypes(case, policy):
    model, x = build(case)
    layer = model.layers[0]
    if not runs_on_this_machine(case, policy):
        for conv in (layer, layer.conv):
            with pytest.raises(Exception, match="only supports the NHWC"):
                conv(x)
        return
    outputs = layer(x)
    compute_dtype = keras.config.dtype_policy().compute_dtype
    assert keras.backend.standardize_dtype(outputs.dtype) == compute_dtype
    if is_random(case):
        drawn = layer(x, training=True)
        assert keras.backend.standardize_dtype(drawn.dtype) == compute_dtype
    for weight in layer.weights:
        assert keras.backend.standardize_dtype(weight.dtype) == "float32"
    # The result agrees with the result in float32.
    outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    keras.config.set_dtype_policy("float32")
    exact, _ = build(case)
    expected = ops.convert_to_numpy(exact.layers[0](x))
    tolerance = PRECISION[policy] * max(1, np.abs(expected).max())
    np.testing.assert_allclose(outputs, expected, atol=tolerance)


# From the same seed XLA's generator draws other numbers than TensorFlow's own.
# There the compiled step is compared without masks and trained with masks.
DRAWS_DIFFER = keras.backend.backend() == "tensorflow"


def is_random(case):
    return "Dropout" in case or "Stochastic" in case


KERAS = tuple(map(int, keras.__version__.split(".")[:2]))


@pytest.fixture
def compiles():
    """Makes PyTorch compile each model; it would run the ninth eagerly.

    By default PyTorch compiles a function, here Keras' training step, at most
    eight times.
    """
    if keras.backend.backend() != "torch":
        yield
        return
    if KERAS < (3, 13):
        pytest.skip("PyTorch compiles no training step of Keras 3.10")
    from torch import _dynamo

    _dynamo.reset()
    with _dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.parametrize(
    ("case", "rate", "policy"),
    compiled(
        *((case, None) for case in LAYERS),
        *((case, 0) for case in LAYERS if "Dropout" in case and DRAWS_DIFFER),
    ),
    indirect=["policy"],
)
@pytest.mark.usefixtures("compiles")
def test_compiled_step_is_the_eager_step(case, policy, rate):
    trained = {}
    for mode in ("eager", "compiled"):
        if mode == "eager" and not runs_on_this_machine(case, policy):
            continue
        model, x = build(case)
        if rate is not None:
            model.layers[0].rate = rate
        y = np.ones(model.compute_output_shape(x.shape), "float32")
        before = model.get_weights()
        model.compile(
            keras.optimizers.SGD(0.01),
            "mse",
            run_eagerly=mode == "eager",
            jit_compile=mode == "compiled",
            # A scaled loss may overflow in one mode alone, which then skips the
            # step, because compilers keep intermediate values in float32.
            auto_scale_loss=False,
        )
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained[mode] = model.get_weights()
        for weight, old in zip(model.weights, before, strict=True):
            new = ops.convert_to_numpy(weight)
            assert np.isfinite(new).all()
            # Only `adapt` changes the weights of `ZCAWhitening`.
            assert (old != new).any() or case == "ZCAWhitening"
    if DRAWS_DIFFER and is_random(case) and rate != 0:
        return
    expected, *others = trained.values()
    for weights in others:
        for one, other in zip(expected, weights, strict=True):
            np.testing.assert_allclose(
                one, other, atol=PRECISION[policy], rtol=0
            )


@every_layer
def test_the_older_file_format(case, tmp_path):
    model, x = build(case)
    # For this format Keras copies the configs of a model's layers deeply.
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


@every_layer
def test_a_batch_of_no_examples(case):
    model, x = build(case)
    expected = model.compute_output_shape((0, *x.shape[1:]))
    layer = model.layers[0]
    if isinstance(layer, keras_invdrop.MaxoutConv2D):
        # On some CPUs, TensorFlow's convolutions fail on batches without
        # examples. The layers after them do not.
        shape = layer.conv.compute_output_shape(x[:0].shape)
        outputs = layer.maxout(np.zeros(shape, "float32"))
        assert tuple(outputs.shape) == layer.compute_output_shape(x[:0].shape)
        try:
            layer.conv(x[:0])
        except Exception as error:
            # Keras 3.13 refuses an output without elements.
            refused = "resulted in an empty output" in str(error)
            assert refused or keras.backend.backend() == "tensorflow"
            return
    for training in (False, True) if is_random(case) else (None,):
        options = {} if training is None else {"training": training}
        outputs = layer(x[:0], **options)
        assert tuple(outputs.shape) == layer.compute_output_shape(x[:0].shape)
    assert tuple(model(x[:0]).shape) == expected


@every_layer
def test_file_round_trip(case, tmp_path):
    model, x = build(case)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded.layers[0]) is type(model.layers[0])
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))


@every_layer
def test_export(case, tmp_path):
    model, x = build(case)
    expected = model.predict(x, verbose=0)
    if keras.backend.backend() == "torch":
        if KERAS < (3, 15):
            pytest.skip("Keras 3.15 is the first that exports with PyTorch")
        import torch

        path = tmp_path / "model.pt2"
        # Without it PyTorch's exporter fixes the batch at one example.
        any_batch = (({0: torch.export.Dim.AUTO},),)
        model.export(
            path, format="torch", verbose=False, dynamic_shapes=any_batch
        )
        exported = torch.export.load(path).module()
        outputs = keras.ops.convert_to_numpy(
            exported(keras.ops.convert_to_tensor(x))
        )
    else:
        import tensorflow as tf

        model.export(tmp_path, format="tf_saved_model", verbose=False)
        exported = tf.saved_model.load(str(tmp_path))
        outputs = exported.serve(x).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


ON_ANOTHER_BACKEND = """
import sys, keras, keras_invdrop, numpy
for case in range(int(sys.argv[1])):
    model = keras.saving.load_model(f"{case}.keras", safe_mode=True)
    x = numpy.load(f"{case}.npy")
    numpy.save(f"{case}.outputs.npy", model.predict(x, verbose=0))
print(keras.backend.backend())
"""


# Each backend reads the file of another: all three write and read.
NEXT = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name,
            marks=[]
            if name == NEXT[keras.backend.backend()]
            else [pytest.mark.thorough],
        )
        for name in NEXT
    ],
)
def test_a_file_loads_on_every_backend(backend, tmp_path):
    expected = []
    for case, name in enumerate(LAYERS):
        model, x = build(name)
        model.save(tmp_path / f"{case}.keras")
        np.save(tmp_path / f"{case}.npy", x)
        expected.append(model.predict(x, verbose=0))
    process = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_BACKEND, str(len(LAYERS))],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip().endswith(backend), process.stderr
    for case, outputs in enumerate(expected):
        np.testing.assert_allclose(
            np.load(tmp_path / f"{case}.outputs.npy"),
            outputs,
            rtol=1e-5,
            atol=1e-5,
        )


def alter(path, argument, value):
    """Sets an argument of the first layer in a file; None removes it."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    (layer,) = (
        layer["config"]
        for layer in config["config"]["layers"]
        if layer["registered_name"] != "InputLayer"
        and layer["module"] != "keras.layers"
    )
    if value is None:
        del layer[argument]
    else:
        layer[argument] = value
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("case", "argument", "value", "message"),
    [
        ("InvariantDropout", "rate", 1.5, "`rate`. Expected a float"),
        ("InvariantDropout", "rate", "0.5", "`rate`. Expected a float"),
        ("InvariantDropout", "rate", True, "`rate`. Expected a float"),
        ("InvariantDropout", "rate", None, "missing.*'rate'"),
        ("InvariantDropout", "scaling", "none", "`scaling`. Expected one"),
        ("InvariantDropout", "seed", "1", "`seed`. Expected an integer"),
        ("InvariantDropout", "shared_axes", [1, 1], "`shared_axes`"),
        ("InvariantDropout", "shared_axes", [5], "`shared_axes`"),
        ("InvariantDropout", "noise_shape", [8, 7], "`noise_shape`"),
        ("InvariantDropout", "beta_regularizer", "no such", "no such"),
        ("InvariantDropout", "surprise", 1, "surprise"),
        ("SharedInvariantDropout", "data_format", "x", "`data_format`"),
        ("SharedInvariantDropout", "noise_shape", [1, 1], "`noise_shape`"),
        ("SpatialInvariantDropout", "rate", -1, "`rate`. Expected a float"),
        ("RunningAverageDropout", "momentum", 2, "`momentum`. Expected"),
        ("Maxout", "pieces", 4, "`pieces`. Expected a divisor"),
        ("MaxoutDense", "pieces", 0, "`pieces`. Expected a positive"),
        ("MaxoutDense", "use_bias", "false", "`use_bias`. Expected a bool"),
        ("LocallyConnected2D", "strides", [0, 1], "`strides`. Expected"),
        ("StochasticPooling2D", "pool_size", None, "missing.*'pool_size'"),
        ("MaxoutConv2D", "filters", 1.5, "`filters`. Expected a positive"),
        ("GlobalContrastNormalization", "scale", 0, "`scale`. Expected a"),
        ("ZCAWhitening", "epsilon", -1, "`epsilon`. Expected a finite"),
    ],
)
def test_an_altered_file_is_refused(case, argument, value, message, tmp_path):
    path = tmp_path / "model.keras"
    build(case)[0].save(path)
    alter(path, argument, value)
    with pytest.raises(ValueError, match=message):
        keras.saving.load_model(path)


@every_layer
def test_an_argument_of_a_wrong_kind_is_named(case):
    layer = LAYERS[case][1]()[0]
    config = layer.get_config()
    for argument in set(config) - {"name", "trainable"}:  # in any config
        for wrong in ({"surprise": 1}, 1.5j, [0.5]):
            with pytest.raises(ValueError) as caught:
                type(layer).from_config({**config, argument: wrong})
            # The message names it not only by showing the whole config.
            message, _, _ = str(caught.value).partition("Received: config=")
            assert argument in message


# Without a default, or such that another value has weights of another shape.
KEPT = {
    "name",
    "rate",
    "pieces",
    "units",
    "filters",
    "kernel_size",
    "pool_size",
    "data_format",
    "padding",
    "shared_axes",
}


@every_layer
def test_a_config_without_a_newer_argument_loads(case, tmp_path):
    # Files of earlier releases lack the arguments that a release adds.
    model, _ = build(case)
    layer, path = model.layers[0], tmp_path / "model.keras"
    config = layer.get_config()
    model.save(path)
    for argument in set(config) - KEPT:
        alter(path, argument, None)
    loaded = keras.saving.load_model(path).layers[0]
    bare = type(layer)(**{name: config[name] for name in KEPT & set(config)})
    assert loaded.get_config() == bare.get_config()
