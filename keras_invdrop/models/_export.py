import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import BATCH
from .._batches import Examples
from .._batches import random_inputs
from .._batches import standardized
from .._checks import check_boolean
from .._checks import check_choice
from .._checks import check_path
from .._checks import check_positive_number
from .._checks import invalid
from .._extras import require
from .._keras import graph_of
from .._masks import drawn_by_graph
from ._copies import copied
from ._dropping_layers import path_filter
from ._engines import ENGINES
from ._engines import LOAD
from ._engines import packed
from ._fold import fold
from ._graph import check_model
from ._graph import not_callable
from ._linear_layers import array
from ._monte_carlo import MonteCarlo
from ._same_distribution import beyond_chance
from ._sampler import Sampler

Format = Literal["tf_saved_model", "onnx", "litert", "openvino"]
# The formats that Keras exports by itself from each backend. docs/export.md
# says why it does not export the others; a test compares that page with Keras.
DIRECT = {
    "tensorflow": ("tf_saved_model", "onnx", "litert", "openvino"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx", "openvino"),
}
SUFFIXES = {"litert": ".tflite", "openvino": ".xml"}  # which Keras requires
# The first Keras that exports a format.
SINCE = {"openvino": (3, 11), "litert": (3, 13)}
ON_TENSORFLOW = """
import sys
import keras
from keras_invdrop.models._export import convert
saved, path, format, stochastic = sys.argv[1:]
# The process that started this one wrote the file, so it can be trusted.
model = keras.models.load_model(saved, compile=False, safe_mode=False)
convert(model, path, format, stochastic == "True")
"""
# How often an engine runs to be compared with `MonteCarlo`, and the masks that
# each input has in a run.
RUNS, MASKS = 8, 32


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        path: `Path` of the file, or of the folder of a SavedModel.
        format: The format.
        backend: The backend from which Keras exported.
        difference: The largest difference between the outputs of the engine
            and those of `predict`, in units of the largest output. Of a
            stochastic export, how far the difference from `MonteCarlo`
            exceeds what chance explains: 0 if it does not.
    """

    path: Path
    format: str
    backend: str
    difference: float


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: Format,
    tolerance: float = 1e-4,
    stochastic: bool = False,
    inputs: Any = None,
) -> Exported:
    """Writes a model, by default without its dropout, for another engine.

    The model is folded, which puts Keras' own layers in the place of
    dropout, and exported with Keras' `model.export`. Then the engine runs
    the file on 3 examples. The file is moved to `path` only if the engine's
    outputs agree with `model.predict`; otherwise nothing at `path` changes. If
    the present backend cannot export the network, a separate process on the
    TensorFlow backend loads a saved copy and exports that.

    With `stochastic=True` the model is not folded: every run of the file draws
    new masks, another for each row of a batch, in the layers that `MonteCarlo`
    lists. Everything else is in inference mode. To sample one input, repeat it
    in a batch. Such a file is compared with `MonteCarlo`: 256 samples each, of
    the 3 examples, may differ in mean and spread by no more than chance
    explains. A correct file fails with a probability of at most one in a
    million.

    The extra `export` installs the packages that this function needs.

    Args:
        model: A functional or sequential model that has been built. It is
            not changed. Another process can load only layers of Keras and
            of this library.
        path: Where to write. An existing file or SavedModel is replaced.
            OpenVINO writes a `.bin` file beside the `.xml` file.
        format: One of

            - `"tf_saved_model"`: a folder for TensorFlow and its servers,
            - `"onnx"`: a file for ONNX Runtime,
            - `"litert"`: a file for LiteRT; `path` ends with `.tflite`,
            - `"openvino"`: two files for OpenVINO; `path` ends with `.xml`.
        tolerance: Largest allowed difference from `predict`, in units of the
            largest output. Engines add in another order, which causes
            differences of about 1e-6 in float32. A wrong kernel, bias, axis
            or padding causes 1e-2 or more. A network that computes in half
            precision, or `predict` on a GPU that multiplies in TF32, needs a
            tolerance of about 1e-2.
        stochastic: Boolean. Whether dropout draws new masks in every run, as
            in `MonteCarlo`. Not for `"openvino"`. Integer seeds of layers have
            no effect. Nothing else in the process may draw with Keras
            meanwhile.
        inputs: Examples of the input, as `model.predict` takes them, on which
            to run the file; the first 3 are used. Defaults to random numbers,
            which are zeros and ones for integer inputs, in sequences of length
            32 if the model takes any length.

    Returns:
        An `Exported`: the `path`, the `format`, the `backend` from which
        Keras exported and the `difference` from `predict` or `MonteCarlo`.

    Raises:
        ImportError: If a package is missing, or Keras is too old: `"litert"`
            needs Keras 3.13, `"openvino"` 3.11.
        RuntimeError: If the engine's outputs differ from those of `predict`
            or `MonteCarlo`, or an exporter or the engine fails.
        ValueError: If `fold` does not take `model`, or `model` has no dropout
            layer and `stochastic` is true; if the model cannot be called on
            random numbers and `inputs` is not given; if another argument is not
            of the kind described; or if `path` lacks the suffix of the format,
            its parent folder does not exist, or it is a folder that is not a
            SavedModel.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((784,)),
    ...         keras_invdrop.InvariantDropout(0.2),
    ...         keras.layers.Dense(10, activation="softmax"),
    ...     ]
    ... )
    >>> exported = keras_invdrop.export(  # doctest: +SKIP
    ...     model, "network.onnx", "onnx"
    ... )
    >>> exported.difference < 1e-5  # doctest: +SKIP
    True

    Reference:

    - Ba, Xiong and Frey, 2014, section 2, Eq. 9
    """
    check_choice("format", format, tuple(ENGINES))
    if check_boolean("stochastic", stochastic) and format == "openvino":
        raise invalid(
            "format",
            "'tf_saved_model', 'onnx' or 'litert' if `stochastic` is true: "
            "OpenVINO draws the same numbers for two layers of the same shape",
            format,
        )
    tolerance = check_positive_number("tolerance", tolerance)
    target = _check_path(path, format)
    _check_keras(format)
    # The copy is not compiled: exported files need no loss or optimizer.
    if stochastic:
        network = graph_of(copied(check_model(model), compiled=False))
        reference = "MonteCarlo"
        examples = _examples(network, inputs)
        compare = _with_samples(MonteCarlo(model, MASKS), network, examples)
    else:
        network = copied(fold(model), _as_constants, compiled=False)
        reference = "predict"
        examples = _examples(network, inputs)
        compare = _with_predictions(model, network, examples)
    failures = []
    for backend in _backends(network, format, stochastic):
        _check_packages(backend, format)
        # The temporary folder is on the file system of `path`, so that a
        # rename suffices.
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent
        ) as folder:
            made = Path(folder, "new")
            made.mkdir()
            try:
                file = made / target.name
                _convert_on(backend, network, file, format, stochastic)
                difference = compare(LOAD[format](file, network))
                # A NaN fails the comparison.
                if not difference <= tolerance:
                    raise RuntimeError(
                        f"The file does not agree with `{reference}`: in "
                        f"{ENGINES[format]} the largest difference is "
                        f"{difference:.2g} of the largest output, more than "
                        f"the tolerance of {tolerance:.2g}."
                    )
            except Exception as error:  # exporters and engines raise anything
                failures.append(f"On the {backend} backend: {error}")
                continue
            _put_in_place(made, target, Path(folder, "old"))
        return Exported(target, format, backend, difference)
    raise RuntimeError(
        f"The export to '{format}' failed. Nothing was written to "
        f"'{target}'.\n" + "\n".join(failures)
    )


def _as_constants(layer):
    """`Rescaling` for a layer that holds constants in weights or tensors.

    Such are the `EinsumDense` by which `fold` adds a bias map, and an adapted
    `Normalization`. In a Keras model the map is a weight, so that no copy loses
    it. A file keeps constants, too, and engines add a constant in half the
    time. The mean and variance of a `Normalization` are tensors outside the
    graph of TensorFlow, which became inputs of an ONNX file.
    """
    if type(layer) is keras.layers.Normalization:
        mean = array(layer.mean).astype("float32")
        deviation = np.sqrt(array(layer.variance)).astype("float32")
        deviation = np.maximum(deviation, keras.config.epsilon())
        if layer.invert:
            steps = [(deviation, mean)]
        else:
            # First subtract, exactly: a feature may vary little, or not at all.
            steps = [(1.0, -mean), (1 / deviation, 0.0)]
        return keras.Sequential(
            [
                keras.layers.Rescaling(scale, offset, dtype=layer.dtype_policy)
                for scale, offset in steps
            ],
            name=layer.name,
        )
    if (
        type(layer) is not keras.layers.EinsumDense
        or layer.bias is None
        or layer.quantization_mode is not None
        or "." in layer.equation
    ):
        return None
    operands, output = layer.equation.split("->")
    inputs, label = operands.split(",")
    scale = np.unique(array(layer.kernel))
    if (
        inputs != output
        or label not in inputs
        or scale.size > 1
        or layer.activation is not keras.activations.linear
    ):
        return None
    offset = array(layer.bias).astype("float32")
    return keras.layers.Rescaling(
        float(scale[0]),
        offset=offset.reshape(
            (1,) * (len(inputs) - 1 - offset.ndim) + offset.shape
        ),
        name=layer.name,
        dtype=layer.dtype_policy,
    )


def _check_path(path, format):
    found = check_path("path", path)
    suffix = SUFFIXES.get(format, "")
    if not found.name.endswith(suffix):
        raise invalid("path", f"a path that ends with '{suffix}'", path)
    if not found.parent.is_dir():
        raise invalid("path", "a path in a folder that exists", path)
    if found.is_dir():
        of_tensorflow = (found / "saved_model.pb").exists()
        if format != "tf_saved_model" or not of_tensorflow:
            raise invalid(
                "path",
                "the path of a file, or of a SavedModel that a new one may "
                "replace; no other folder is replaced",
                path,
            )
    elif found.exists() and format == "tf_saved_model":
        raise invalid("path", "the path of a folder, not of a file", path)
    return found


def _backends(network, format, stochastic):
    """The backends to export from, until one succeeds."""
    backend = keras.backend.backend()
    # PyTorch traces unknown sizes as 1, which may lead to a wrong padding.
    open_sizes = any(None in tensor.shape[1:] for tensor in network.inputs)
    if (
        format in DIRECT.get(backend, ())
        and not (backend == "torch" and open_sizes)
        # A file from JAX would draw the same masks after each loading.
        and not (backend == "jax" and stochastic)
    ):
        yield backend
    if backend != "tensorflow":
        yield "tensorflow"


def _check_keras(format):
    since = SINCE.get(format, (3, 10))
    if tuple(map(int, keras.__version__.split(".")[:2])) < since:
        raise ImportError(
            f"Format '{format}' needs Keras {'.'.join(map(str, since))} or "
            f"newer. Installed: {keras.__version__}",
            name="keras",
        )


def _check_packages(backend, format):
    needed = [ENGINES[format]]
    if backend in ("jax", "tensorflow"):
        needed.append("tensorflow")
    if format == "onnx":
        needed.append("tf2onnx" if backend == "tensorflow" else "onnx")
    require(f"Format '{format}'", needed, "export")


def convert(model, path, format, stochastic=False):
    """Exports with Keras from the present backend, without comparing."""
    # tf2onnx merges random operations with the same seed.
    numbered = format == "onnx"
    with contextlib.ExitStack() as stack:
        if stochastic:
            model = graph_of(Sampler(model, path_filter(None)).model)
            stack.enter_context(drawn_by_graph(numbered))
        # Comparing the outputs later finds what tracing got wrong.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Keras refuses to make an ONNX file of a model that was never called.
        model(model.input)
        model.export(str(path), format=format, verbose=False)
    if stochastic and numbered:
        _remove_seeds(path)


def _remove_seeds(path):
    """Has ONNX Runtime, not the file, seed the random operations."""
    import onnx

    model = onnx.load(path)
    graphs = [model.graph]
    for graph in graphs:
        for node in graph.node:
            for attribute in list(node.attribute):
                if attribute.type == onnx.AttributeProto.GRAPH:  # of a loop
                    graphs.append(attribute.g)
                elif (
                    node.op_type.startswith("Random")
                    and attribute.name == "seed"
                ):
                    node.attribute.remove(attribute)
    onnx.save(model, path)


def _convert_on(backend, network, path, format, stochastic):
    if backend == keras.backend.backend():
        return convert(network, path, format, stochastic)
    saved = path.parent.with_name("network.keras")
    network.save(saved)
    process = subprocess.run(
        [
            *(sys.executable, "-P", "-c", ON_TENSORFLOW),
            *(saved, path, format, str(stochastic)),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            # The other process can import what this one can.
            "PYTHONPATH": os.pathsep.join(sys.path),
            # This process may have reserved all memory of the GPU.
            "CUDA_VISIBLE_DEVICES": "-1",
        },
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])


def _examples(network, inputs):
    """Examples on which to run an engine, one array for each input."""
    if inputs is not None:
        given = Examples("inputs", inputs)
        batch = given[np.arange(BATCH) % len(given)]
        found = tree.flatten(standardized(network, batch, "inputs"))
        return [ops.convert_to_numpy(x) for x in found]
    found = random_inputs(network.inputs, size=32)
    try:
        network(packed(network, found), training=False)
    except Exception as error:  # a model may raise anything
        raise not_callable(network, inputs, error) from error
    return found


def _with_predictions(model, network, inputs):
    """A function that compares what an engine runs with `predict`."""
    expected = model.predict(packed(network, inputs), verbose=0)
    return lambda run: _difference(run(inputs), tree.flatten(expected))


def _with_samples(monte_carlo, network, inputs):
    """A function that compares what an engine draws with `MonteCarlo`."""
    repeated = [np.repeat(x[None], MASKS, axis=0) for x in inputs]

    def samples(seed):
        monte_carlo.seed = seed
        predictions = monte_carlo.predict(
            packed(network, inputs), return_samples=True
        )
        for prediction in tree.flatten(predictions):
            yield np.swapaxes(prediction.samples, 0, 1)

    def draws(run):
        for seed in range(RUNS):
            outputs = run([x.reshape((-1, *x.shape[2:])) for x in repeated])
            found = [x.reshape((MASKS, -1, *x.shape[1:])) for x in outputs]
            yield found, list(samples(seed))

    return lambda run: beyond_chance(draws(run))


def _difference(found, expected):
    """The largest difference, relative to the largest value of an output."""
    if [x.shape for x in found] != [np.shape(x) for x in expected]:
        return float("inf")
    differences = []
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        scale = np.maximum(np.abs(b).max(), np.finfo("float32").tiny)
        differences.append(np.abs(a - b).max() / scale)
    return float(np.max(differences))


def _put_in_place(made, path, old):
    """Moves the new files to the folder of `path`, the file `path` last."""
    for source in sorted(made.iterdir(), key=lambda x: x.name == path.name):
        target = path.with_name(source.name)
        if target.is_dir():
            # A rename cannot replace a folder that is not empty.
            os.replace(target, old)
        try:
            os.replace(source, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
