"""Folded networks, exported and run in the engines.

The tests compare `docs/export.md` with the behaviour of the present backend.
"""

import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications import relu_cnn
from small_models import random

from keras_invdrop import InvariantDropout
from keras_invdrop import LocallyConnected2D
from keras_invdrop import MonteCarlo
from keras_invdrop import StochasticPooling2D
from keras_invdrop import _extras
from keras_invdrop import export
from keras_invdrop import fold
from keras_invdrop.models import _export
from keras_invdrop.models._copies import copied

BACKEND = keras.backend.backend()
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
FILES = {
    "tf_saved_model": "network",
    "onnx": "network.onnx",
    "litert": "network.tflite",
    "openvino": "network.xml",
}
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "export.md").read_text()
# The figures and messages of the page are those of this Keras.
OF_THE_PAGE = f"`keras=={keras.__version__}`" in PAGE
# A format that needs no other process.
DIRECT = _export.DIRECT[BACKEND][0]
LOAD = dict(_export.LOAD)


def check_keras(format):
    """Skips a test of a format that this Keras does not have."""
    try:
        _export._check_keras(format)
    except ImportError as error:
        pytest.skip(str(error))


def cifar_network():
    """The network of Table 3, narrow, with a beta that is not zero."""
    keras.utils.set_random_seed(0)
    model = relu_cnn(width=1 / 16, input_shape=(32, 32, 3))
    for seed, layer in enumerate(model.layers):
        if isinstance(layer, InvariantDropout):
            layer.beta.assign(0.1 * random(*layer.beta.shape, seed=seed))
    return model


def dense_network(units=2):
    return keras.Sequential(
        [
            keras.Input((4,)),
            InvariantDropout(0.5, beta_initializer="ones"),
            layers.Dense(units),
        ]
    )


def several():
    """Two inputs and outputs, which are not in alphabetical order."""
    b = keras.Input((4,), name="b")
    a = keras.Input((3,), name="a")
    x = InvariantDropout(0.5, beta_initializer="ones")(b)
    outputs = {"z": layers.Dense(3)(a), "y": layers.Dense(2)(x)}
    return keras.Model({"b": b, "a": a}, outputs)


def difference(found, expected):
    """The largest difference, in units of the largest number."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def content(folder):
    return {
        path.relative_to(folder): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


# From JAX and PyTorch, formats without a direct export go through TensorFlow:
# one of them represents the others.
@pytest.mark.parametrize(
    "format",
    [
        pytest.param(format, marks=pytest.mark.thorough)
        if format not in (*_export.DIRECT[BACKEND], "litert")
        else format
        for format in FILES
    ],
)
def test_the_engine_says_what_predict_says(format, tmp_path):
    check_keras(format)
    model = cifar_network()
    before = model.get_weights()
    exported = export(model, tmp_path / FILES[format], format)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert exported.path == tmp_path / FILES[format]
    assert exported.format == format
    direct = format in _export.DIRECT[BACKEND]
    assert exported.backend == (BACKEND if direct else "tensorflow")
    assert exported.difference < 1e-5
    names = {path.name for path in tmp_path.iterdir()}
    also = {"network.bin"} if format == "openvino" else set()
    assert names == {FILES[format]} | also
    for batch in (1, 5):
        x = random(batch, 32, 32, 3, seed=batch)
        (found,) = _export.LOAD[format](exported.path, model)([x])
        assert difference(found, model.predict(x, verbose=0)) < 1e-5


# The row of the page that says what Keras exports from this backend.
def cells():
    (line,) = re.findall(rf"^\| {NAMES[BACKEND]} \|(.*)\|$", PAGE, re.M)
    return dict(zip(FILES, map(str.strip, line.split("|")), strict=True))


@pytest.mark.skipif(not OF_THE_PAGE, reason="the page is on another Keras")
@pytest.mark.parametrize("format", FILES)
def test_the_page_tells_what_keras_exports_by_itself(format, tmp_path):
    network = fold(cifar_network())
    path = tmp_path / FILES[format]
    cell = cells()[format]
    works = re.fullmatch("works, below (.*)", cell)
    assert bool(works) == (format in _export.DIRECT[BACKEND])
    if works:
        _export.convert(network, path, format)
        for batch in (3, 5):
            x = random(batch, 32, 32, 3, seed=batch)
            (found,) = _export.LOAD[format](path, network)([x])
            expected = network.predict(x, verbose=0)
            assert difference(found, expected) < float(works[1])
    else:
        (number,) = re.fullmatch(r"no \((\d)\)", cell).groups()
        (reason,) = re.findall(rf"^{number}\. `(.+?)`[:.]", PAGE, re.M)
        with pytest.raises(Exception, match=re.escape(reason)):
            _export.convert(network, path, format)


# JAX exports through TensorFlow, which runs this code, too.
@pytest.mark.thorough if BACKEND == "jax" else lambda test: test
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    for code in blocks:
        if "import torch" not in code or BACKEND == "torch":
            exec(code, names)
    assert names["exported"].difference < 1e-5
    assert (tmp_path / "network.onnx").exists()
    assert names["samples"].shape == (100, 10)
    assert names["spread"].min() > 0
    prediction = MonteCarlo(names["model"], 100, seed=0).predict(
        names["image"][None], return_samples=True
    )
    # By Hoeffding's inequality chance exceeds it once in a billion times.
    differences = names["samples"] - prediction.samples[0]
    bound = 7 * np.sqrt((differences**2).sum(axis=0))
    assert (np.abs(differences.sum(axis=0)) < bound).all()
    if BACKEND == "torch":
        x = random(5, 32, 32, 3)
        found = names["loaded"](ops.convert_to_tensor(x))
        expected = fold(names["model"]).predict(x, verbose=0)
        assert difference(ops.convert_to_numpy(found), expected) < 1e-5


def test_the_page_names_the_versions_that_are_tested():
    versions = re.findall("`([^` ]+==[^`]+)`", PAGE)
    assert {name.partition("==")[0] for name in versions} >= {
        "keras",
        "onnxruntime",
        "ai-edge-litert",
        "openvino",
    }
    tested = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(versions) <= set(tested)


# From other backends all formats go through TensorFlow: test one of them.
@pytest.mark.parametrize(
    "format",
    FILES
    if BACKEND == "tensorflow"
    else [pytest.param("litert", marks=pytest.mark.thorough)],
)
def test_several_inputs_and_outputs(format, tmp_path):
    check_keras(format)
    exported = export(several(), tmp_path / FILES[format], format)
    assert exported.backend == "tensorflow"
    assert exported.difference < 1e-5


def test_layers_that_keras_does_not_have(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            InvariantDropout(0.5, beta_initializer="ones"),
            LocallyConnected2D(4, 3, padding="same", activation="relu"),
            StochasticPooling2D(3, 2, padding="same"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    # OpenVINO, except on JAX. OpenVINO's file once had window sizes as outputs,
    # and PyTorch's pooling gives wrong results in batches other than 1: then
    # `export` uses TensorFlow.
    format = _export.DIRECT[BACKEND][-1]
    exported = export(model, tmp_path / FILES[format], format)
    assert exported.difference < 1e-5
    x = random(5, 8, 8, 3)
    (found,) = _export.LOAD[format](exported.path, fold(model))([x])
    assert difference(found, model.predict(x, verbose=0)) < 1e-5


def test_what_was_there_is_replaced(tmp_path):
    path = tmp_path / FILES[DIRECT]
    export(dense_network(), path, DIRECT)
    if path.is_dir():
        (path / "left.txt").touch()
    model = dense_network(units=3)
    export(model, path, DIRECT)
    x = random(2, 4)
    (found,) = _export.LOAD[DIRECT](path, fold(model))([x])
    assert difference(found, model.predict(x, verbose=0)) < 1e-5
    assert not (tmp_path / FILES[DIRECT] / "left.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {FILES[DIRECT]}


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    made, path, old = (tmp_path / name for name in ("made", "saved", "old"))
    for folder in (made / "saved", path):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(folder.parent.name)
    before = content(path)
    replace = os.replace

    def failing(source, target):
        if source == made / "saved":
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(_export.os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        _export._put_in_place(made, path, old)
    assert content(path) == before
    assert not old.exists()


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_a_wrong_file_is_not_kept(error, tmp_path, monkeypatch):
    path = tmp_path / FILES[DIRECT]
    export(dense_network(), path, DIRECT)
    before = content(tmp_path)
    load = _export.LOAD[DIRECT]

    def wrong(*arguments):
        run = load(*arguments)
        return lambda arrays: [x * (1 + error) for x in run(arrays)]

    monkeypatch.setitem(_export.LOAD, DIRECT, wrong)
    # From TensorFlow the file would be as wrong, but take longer.
    monkeypatch.setattr(_export, "_backends", lambda *_: [BACKEND])
    with pytest.raises(RuntimeError, match="does not agree with `predict`"):
        export(dense_network(units=3), path, DIRECT)
    assert content(tmp_path) == before
    if not np.isnan(error):
        export(dense_network(units=3), path, DIRECT, tolerance=0.01)


def test_outputs_of_another_shape_are_a_difference():
    x = random(3, 2)
    assert _export._difference([x[:1]], [x]) == np.inf
    assert _export._difference([x, x], [x]) == np.inf
    assert _export._difference([x], [x]) == 0


@keras.saving.register_keras_serializable("test_export")
class OfThisProcess(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def test_a_layer_that_the_other_process_cannot_load(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), OfThisProcess()])
    monkeypatch.setattr(_export, "DIRECT", {})
    monkeypatch.setattr(_export.keras.backend, "backend", lambda: "another")
    with pytest.raises(
        RuntimeError,
        match="(?s)'onnx' failed. Nothing was.*On the tensorflow backend"
        ".*OfThisProcess",
    ):
        export(model, tmp_path / "network.onnx", "onnx")
    assert not content(tmp_path)


def test_a_layer_that_the_engine_does_not_know(tmp_path):
    check_keras("litert")
    (says,) = re.findall(r"refuses an LSTM, with `(.+?)`", PAGE, re.DOTALL)
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2)])
    with pytest.raises(RuntimeError, match=re.escape(" ".join(says.split()))):
        export(model, tmp_path / "network.tflite", "litert")
    assert not content(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        _extras,
        "find_spec",
        lambda name: None if name == "onnxruntime" else object(),
    )
    error = _extras.missing("Format 'onnx'", "onnxruntime", "export")
    with pytest.raises(ImportError, match=re.escape(str(error))):
        export(dense_network(), tmp_path / "network.onnx", "onnx")
    assert not content(tmp_path)


@pytest.mark.parametrize(
    ("version", "format", "message"),
    [
        ("3.12.0", "litert", "needs Keras 3.13 or newer. Installed: 3.12.0"),
        ("3.10.0", "openvino", "needs Keras 3.11 or newer. Installed: 3.10.0"),
    ],
)
def test_a_keras_without_the_format(
    version, format, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(keras, "__version__", version)
    with pytest.raises(ImportError, match=message):
        export(dense_network(), tmp_path / FILES[format], format)
    assert not content(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.onnx", "pickle"), "`format`. Expected one of .*'pickle'"),
        (("a.onnx", "litert"), "`path`. .* ends with '.tflite'.*a.onnx"),
        (("a.onnx", "openvino"), "`path`. .* ends with '.xml'.*a.onnx"),
        ((3, "onnx"), "`path`. Expected a path. Received: path=3"),
        (("none/a.onnx", "onnx"), "`path`. .* in a folder that exists"),
        (("folder", "tf_saved_model"), "no other folder is replaced"),
        (("folder", "onnx"), "`path`. Expected the path of a file"),
        (("file", "tf_saved_model"), "the path of a folder, not of a file"),
        (("a.onnx", "onnx", 0), "`tolerance`"),
    ],
)
def test_errors(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(dense_network(), *arguments)
    assert content(tmp_path) == before


def test_maps_are_constants_in_a_file():
    """Engines add a constant faster than the bias of an `EinsumDense`."""
    kept = layers.EinsumDense("abc,c->abc", (4, 3), bias_axes="bc")
    model = keras.Sequential(
        [
            keras.Input((4, 2)),
            InvariantDropout(0.5, scaling="test", beta_initializer="ones"),
            layers.Conv1D(3, 3, padding="same"),
            kept,
            InvariantDropout(0.5, beta_initializer="ones"),
            layers.Activation("relu"),
        ]
    )
    kept.set_weights([np.arange(1.0, 4), np.arange(12.0).reshape((4, 3))])
    folded = fold(model)
    found = copied(folded, _export._as_constants, compiled=False)

    def kinds(network):
        return [type(layer).__name__ for layer in network.layers]

    assert kinds(folded).count("EinsumDense") == 3
    assert kinds(found).count("EinsumDense") == 1  # `kept`
    assert kinds(found).count("Rescaling") == 2
    assert [x.name for x in found.layers] == [x.name for x in folded.layers]
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).astype("float32")
    np.testing.assert_allclose(
        found.predict(x, verbose=0), folded.predict(x, verbose=0), rtol=1e-6
    )


def normalized(**options):
    """A model whose inputs are large and vary little."""
    x = 100 + random(64, 4) * np.array([1, 2, 3, 0], "float32")
    normalization = layers.Normalization(**options)
    normalization.adapt(x)
    model = keras.Sequential(
        [keras.Input((4,)), normalization, *dense_network().layers]
    )
    return model, x


@pytest.mark.parametrize(
    "options", [{}, {"axis": None}, {"invert": True}], ids=["1", "all", "back"]
)
def test_a_normalization_is_constant_in_a_file(options):
    model, x = normalized(**options)
    found = copied(model, _export._as_constants, compiled=False)
    assert not any(
        isinstance(layer, layers.Normalization)
        for layer in found._flatten_layers()
    )
    np.testing.assert_allclose(
        found.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.thorough if BACKEND == "jax" else lambda test: test
def test_the_file_of_an_adapted_normalization(tmp_path):
    """Its mean and variance were inputs of the file, from TensorFlow."""
    check_keras("onnx")
    model, x = normalized()
    exported = export(model, tmp_path / "network.onnx", "onnx")
    (found,) = _export.LOAD["onnx"](exported.path, model)([x])
    assert difference(found, model.predict(x, verbose=0)) < 1e-5


def small_cnn():
    channels_last = {"data_format": "channels_last"}
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, activation="relu", **channels_last),
            InvariantDropout(0.5, shared_axes=[1, 2]),
            # It pads, so that its bias becomes a map.
            layers.Conv2D(
                8, 3, padding="same", activation="relu", **channels_last
            ),
            layers.Flatten(),
            InvariantDropout(0.5),
            layers.Dense(10, "softmax"),
        ]
    )


@pytest.mark.parametrize("make", [mnist_mlp, small_cnn])
def test_int8_after_fold(make):
    keras.utils.set_random_seed(0)
    model = make()
    for seed, layer in enumerate(model.layers):
        if isinstance(layer, InvariantDropout):
            layer.beta.assign(0.2 * random(*layer.beta.shape, seed=seed))
    network = fold(model)
    rng = np.random.default_rng(0)
    x = rng.random((64, *model.inputs[0].shape[1:]), dtype="float32")
    before = network.predict(x, verbose=0)
    network.quantize("int8")
    modes = {
        type(layer).__name__: layer.quantization_mode
        for layer in network.layers
        if isinstance(layer, layers.Dense | layers.EinsumDense | layers.Conv2D)
    }
    assert modes["Dense"] == "int8"
    assert modes.get("Conv2D") is None
    assert modes.get("EinsumDense", "int8") == "int8"
    found = network.predict(x, verbose=0)
    # As docs/export.md says.
    assert 0 < np.abs(found - before).max() < 0.01


def test_what_cannot_be_folded(tmp_path):
    with pytest.raises(ValueError, match="`model`"):
        export("network", tmp_path / "a.onnx", "onnx")


@keras.saving.register_keras_serializable("test_export")
class OfFourSteps(layers.Layer):
    """Adds an embedding of the position, as a transformer does."""

    def build(self, input_shape):
        self.positions = self.add_weight(shape=(4, input_shape[-1]))

    def call(self, x):
        return x + self.positions[: x.shape[1]]

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_model_of_short_sequences_is_run_on_an_example(tmp_path):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Dropout(0.5)(OfFourSteps()(inputs)))
    path = tmp_path / FILES[DIRECT]
    for stochastic in (False, True):
        with pytest.raises(ValueError, match="failed.*argument `inputs`"):
            export(model, path, DIRECT, stochastic=stochastic)
    with pytest.raises(ValueError, match="`inputs`. Expected arrays"):
        export(model, path, DIRECT, inputs=random(2, 4))


def test_the_file_is_run_on_the_inputs(tmp_path, monkeypatch):
    model, seen = dense_network(), []

    def load(path, network):
        run = LOAD[DIRECT](path, network)
        return lambda arrays: [seen.extend(arrays), run(arrays)][1]

    monkeypatch.setitem(_export.LOAD, DIRECT, load)
    x = random(2, 4)
    found = export(model, tmp_path / FILES[DIRECT], DIRECT, inputs=x)
    assert found.difference < 1e-5
    np.testing.assert_array_equal(seen[0], x[[0, 1, 0]])
