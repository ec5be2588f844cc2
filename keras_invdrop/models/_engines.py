"""Loads exported files into the engines that run them."""

from typing import Any

import numpy as np
from keras import tree

# Each format, and the package of the engine that runs it.
ENGINES = {
    "tf_saved_model": "tensorflow",
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
}


def packed(network, arrays):
    """The arrays, in the structure of the inputs of a network."""
    return tree.pack_sequence_as(network.input, arrays)


def _load_saved_model(path, network):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(arrays):
        inputs = packed(network, [tf.constant(array) for array in arrays])
        outputs = loaded.serve(inputs)
        return [np.asarray(output) for output in tree.flatten(outputs)]

    return run


def _load_onnx(path, network):
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(arrays):
        arrays = _arranged(names, network, arrays)
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def _load_litert(path, network):
    from ai_edge_litert.interpreter import Interpreter

    inputs = [tensor.name for tensor in network.inputs]
    runner = Interpreter(str(path)).get_signature_runner()
    outputs = sorted(runner.get_output_details())
    if not isinstance(network.output, dict):
        outputs.sort(key=len)  # output_2 before output_10

    def run(arrays):
        found = runner(**dict(zip(inputs, arrays, strict=True)))
        return [found[name] for name in outputs]

    return run


def _load_openvino(path, network):
    from openvino import Core

    # Without this hint some processors compute in bfloat16.
    compiled = Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    names = [port.any_name for port in compiled.inputs]

    def run(arrays):
        outputs = compiled(_arranged(names, network, arrays))
        return [outputs[port] for port in compiled.outputs]

    return run


# Each function loads a file into its engine and returns a function that takes
# the network's inputs as arrays and returns its outputs as arrays.
LOAD: dict[str, Any] = {
    "tf_saved_model": _load_saved_model,
    "onnx": _load_onnx,
    "litert": _load_litert,
    "openvino": _load_openvino,
}


def _arranged(names, network, arrays):
    """The arrays in the order of an engine's inputs, if their names match."""
    given = {
        tensor.name: array
        for tensor, array in zip(network.inputs, arrays, strict=True)
    }
    if set(names) <= set(given):
        return [given[name] for name in names]
    return arrays
