"""The graph of layers of a Keras model."""

import itertools

import keras
from keras import ops
from keras import tree

from .._checks import invalid
from .._keras import Functional
from .._keras import get_keras_mask
from .._keras import graph_of
from .._keras import layers_in
from .._keras import node_of
from .._keras import nodes
from .._keras import origin
from .._keras import run_through_graph


def is_overridden(model, name):
    """Whether the class of a model has a method of its own with this name."""
    base = keras.Model if graph_of(model) is None else Functional
    if isinstance(model, keras.Sequential):
        base = keras.Sequential
    return getattr(type(model), name) is not getattr(base, name)


def followed(operation):
    """The graph of a model whose `call` runs the graph and nothing else.

    None for a subclass with a `call` of its own, and for a layer.
    """
    graph = graph_of(operation)
    if graph is None or is_overridden(operation, "call"):
        return None
    return graph


def calls(graph):
    """The calls of layers in `graph` and in the models nested in it.

    Yields:
        The layer (or operation) and the list of its input tensors.
    """
    for node in nodes(graph):
        if node.is_input:
            continue
        if (nested := followed(node.operation)) is not None:
            yield from calls(nested)
        else:
            yield node.operation, node.arguments.keras_tensors


def inside_layers(model, chosen):
    """Which of some layers are not in the graph of a model, and where.

    Args:
        model: A model.
        chosen: Layers of it, at any depth.

    Returns:
        Dict from those that are not in the graph to a clause that says so.
    """
    graph = followed(model)
    if graph is None:
        why = "has no graph of layers"
        if graph_of(model) is not None:
            why = "is of a class with a `call` of its own"
        return dict.fromkeys(chosen, f"'{model.name}' {why}")
    around = {
        part: operation
        for operation, _ in calls(graph)
        if isinstance(operation, keras.Layer)
        for part in layers_in(operation, include_self=False)
    }
    return {
        layer: f"what '{around[layer].name}', a `{type(around[layer]).__name__}"
        "`, does with the shift is not known"
        for layer in chosen
        if layer in around
    }


def check_callable(model):
    """Returns `model`, a Keras model that has been built."""
    if not isinstance(model, keras.Model) or graph_of(model) is not None:
        return check_model(model)
    # Keras cannot follow some layers, such as a `TorchModuleWrapper`, and then
    # makes no graph of a sequential model.
    if isinstance(model, keras.Sequential) and not model.built:
        return check_model(model)
    if not model.built:
        raise invalid(
            "model", "a model that has been built: call it once", model
        )
    return model


def check_model(model):
    """Returns `model`, a Keras model with a graph of layers."""
    if not isinstance(model, keras.Model):
        raise invalid("model", "a `keras.Model`", model)
    if isinstance(model, keras.Sequential) and graph_of(model) is None:
        raise invalid(
            "model",
            "a model that has been built: give the Sequential model a "
            "`keras.Input`, or call it once",
            model,
        )
    if graph_of(model) is None:
        raise invalid(
            "model",
            "a functional or sequential model, whose layers can be followed "
            "from input to output; a subclass's own `call` cannot be followed",
            model,
        )
    return model


def not_callable(model, inputs, error):
    """The error for a model that could not be called on an example.

    Args:
        model: The model.
        inputs: The example; None if the model was called on random numbers.
        error: What the call raised.
    """
    if inputs is None:
        failed = "random numbers failed. Give an example of its input as the"
    else:
        failed = "the example of its input failed, given as the"
    return ValueError(
        f"Calling model '{model.name}' on {failed} argument `inputs`. "
        f"{type(error).__name__}: {error}"
    )


def new_inputs(graph):
    """New inputs for `graph`, in the structure of its inputs."""
    return tree.map_structure(
        lambda x: new_input_layer(origin(x)).output,
        graph.input,
    )


def new_input_layer(layer):
    """An `InputLayer` like `layer`."""
    new = type(layer).from_config(layer.get_config())
    new.trainable = layer.trainable  # which the config lacks
    return new


def run_through(graph, inputs, call):
    """Runs `graph`, and the graphs nested in it, with `call` for each layer.

    Args:
        graph: A functional model.
        inputs: Values for its inputs, in their structure; tensors or other
            objects.
        call: Function `(layer, *args, **kwargs)` that returns the value for
            the output of the layer.

    Returns:
        The values of the outputs, in their structure.

    Raises:
        ValueError: If a nested model is called with a tensor as its `mask`
            which is not the mask that its input carries.
    """
    masked = {
        node.operation for node in nodes(graph) if _passes_other_masks(node)
    }

    def call_any(operation, *args, **kwargs):
        nested = followed(operation)
        if nested is None:
            return call(operation, *args, **kwargs)
        if operation in masked:
            raise ValueError(
                f"Model '{operation.name}' is called with the argument `mask`, "
                "which cannot be followed into the model. Pass the mask to the "
                "layers that need it, or make it in a layer, such as "
                "`Embedding(..., mask_zero=True)`."
            )
        inner = args[0] if args else next(iter(kwargs.values()))
        if isinstance(inner, dict) and not isinstance(nested.input, dict):
            inner = [inner[tensor.name] for tensor in nested.inputs]
        # As a model does with its inputs.
        inner = [
            call(_cast(value.dtype, to.dtype), value)
            if _has_dtype(value) and value.dtype != to.dtype
            else value
            for value, to in zip(
                tree.flatten(inner), nested.inputs, strict=True
            )
        ]
        return run_through(nested, inner, call)

    outputs = run_through_graph(
        graph, inputs, lambda operation: operation, call_any
    )
    # As in Keras models, a list of one output becomes its element.
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        return outputs[0]
    return outputs


def _passes_other_masks(node):
    """Whether a call has masks as an argument that its inputs do not carry.

    Keras records the masks that the inputs carry as an argument, too.
    """
    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = tree.flatten(kwargs.get("mask"))
    if not any(map(_has_dtype, given)):
        return False
    inputs = tree.flatten(args[0] if args else next(iter(kwargs.values())))
    carried = [get_keras_mask(x) for x in inputs]
    return len(given) != len(carried) or not all(map(_alike, given, carried))


def _alike(one, other):
    """Whether two values in a graph are the same function of its inputs.

    A copy and a loaded model compute a mask twice: once where its input carries
    it and once for the recorded argument.
    """
    if one is other:
        return True
    if not all(isinstance(x, keras.KerasTensor) for x in (one, other)):
        return repr(one) == repr(other)
    made = [node_of(x) for x in (one, other)]
    operations = [node.operation for node in made]
    if any(isinstance(x, keras.Layer) for x in operations):
        return False
    settings = [
        {k: v for k, v in vars(x).items() if k[0] != "_" and k != "name"}
        for x in operations
    ]
    arguments = [
        tree.flatten((node.arguments.args, node.arguments.kwargs))
        for node in made
    ]
    return (
        type(operations[0]) is type(operations[1])
        and repr(settings[0]) == repr(settings[1])
        and len(arguments[0]) == len(arguments[1])
        and all(map(_alike, *arguments))
    )


def _has_dtype(value):
    return getattr(value, "dtype", None) is not None


def _cast(given, dtype):
    """The layer or operation that casts from a dtype to another."""
    if all(map(keras.backend.is_float_dtype, (given, dtype))):
        return keras.layers.Identity(dtype=dtype)  # which keeps a mask
    return origin(ops.cast(keras.KerasTensor((1,), "bool"), dtype))


def inlined(model):
    """The layers of `model` in one graph, with no model nested in it.

    Pass a copy of a model: the function calls its layers again and renames
    layers with equal names.
    """
    names = Names()
    seen = set()

    def call(layer, *args, **kwargs):
        if id(layer) not in seen:
            layer.name = names.unique(layer.name)
        seen.add(id(layer))
        return layer(*args, **kwargs)

    graph = graph_of(model)
    inputs = new_inputs(graph)
    for tensor in tree.flatten(inputs):
        names.unique(tensor.name)
    return keras.Model(inputs, run_through(graph, inputs, call))


class Names:
    """Gives layers unique names."""

    def __init__(self):
        self.taken = set()

    def unique(self, name):
        """`name`, or `name_1`, `name_2` ... if `name` is taken."""
        candidates = (f"{name}_{i}" for i in itertools.count(1))
        found = name
        while found in self.taken:
            found = next(candidates)
        self.taken.add(found)
        return found
