"""The graph of layers of a Keras model, and copies of it."""

import keras
from keras import tree
from keras.src.models.functional import functional_like_constructor

from ..validation import invalid


def graph_of(model):
    """The functional model that holds the graph of `model`, or None."""
    model = getattr(model, "_functional", model)
    return model if hasattr(model, "_nodes_by_depth") else None


def nodes(graph):
    """The calls of layers in `graph`, from the input on."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def calls(graph):
    """The calls of layers in `graph` and in the models nested in it.

    Yields:
        The layer (or operation) and the list of tensors that it takes.
    """
    for node in nodes(graph):
        if node.is_input:
            continue
        if (nested := graph_of(node.operation)) is not None:
            yield from calls(nested)
        else:
            yield node.operation, node.arguments.keras_tensors


def graph_layers(model):
    """The layers of `model` and of the models nested in it, each once.

    What is inside a layer that has no graph is not among them.
    """
    found: dict[int, keras.Layer] = {}
    for layer in model.layers:
        parts = [layer] if graph_of(layer) is None else graph_layers(layer)
        found |= {id(part): part for part in parts}
    return list(found.values())


def check_model(model):
    """Returns `model`, a Keras model whose layers can be followed."""
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
            "from input to output; what a subclass does in `call` cannot",
            model,
        )
    return model


def copied(model, replace=lambda layer: None):
    """A copy of `model`: new layers, with the same names and weights.

    What was compiled is compiled in the same way, with a new optimizer. The
    models nested in it are copied too, and what is shared stays shared.

    Args:
        model: A functional or sequential model that has been built.
        replace: Function from a layer to the layer that takes its place, or
            None where the layer is copied. What takes its place gets the
            weights of the layer if it has as many.

    Returns:
        A `keras.Sequential` if `model` is one, else a functional model.
    """
    copies: dict[int, tuple] = {}

    def copy(layer):
        if id(layer) not in copies:
            if isinstance(layer, keras.Sequential):
                parts = [copy(part) for part in layer._layers]
                new = keras.Sequential(parts, name=layer.name)
            elif (graph := graph_of(layer)) is not None:
                inputs = _new_inputs(graph)
                outputs = graph._run_through_graph(inputs, operation_fn=copy)
                cls = type(layer)
                if not functional_like_constructor(cls):
                    cls = keras.Model
                new = cls(inputs, outputs, name=layer.name)
            else:
                new = replace(layer)
                if new is None:
                    new = type(layer).from_config(layer.get_config())
            copies[id(layer)] = layer, new
        return copies[id(layer)][1]

    result = copy(model)
    # Freezing a layer freezes those inside: from the outside in.
    for old, new in reversed(copies.values()):
        if not isinstance(old, keras.Layer):
            continue
        if graph_of(old) is not None:
            new.trainable = old.trainable
            continue
        inside = old._flatten_layers(), new._flatten_layers()
        for old_part, new_part in zip(*inside, strict=False):
            new_part.trainable = old_part.trainable
        if len(new.weights) == len(old.weights):
            new.set_weights(old.get_weights())
    if model.compiled:
        # Not by way of `get_compile_config`, which wants every function to be
        # registered. What has a state is made anew, a function is the same.
        result.compile(
            **tree.map_structure(_made_anew, model._compile_config.config)
        )
    return result


def _made_anew(value):
    if hasattr(value, "get_config"):
        return type(value).from_config(value.get_config())
    return value


def _new_inputs(graph):
    """New inputs for `graph`, in its structure."""
    return tree.map_structure(
        lambda x: _made_anew(x._keras_history.operation).output, graph.input
    )


def inlined(model):
    """The layers of `model` in one graph, with no model nested in it.

    The layers are those of `model`, which are called once more: give it a
    copy.
    """

    def call(operation, *args, **kwargs):
        nested = graph_of(operation)
        if nested is None:
            return operation(*args, **kwargs)
        inputs = args[0] if args else next(iter(kwargs.values()))
        if isinstance(inputs, dict) and not isinstance(nested.input, dict):
            inputs = [inputs[tensor.name] for tensor in nested.inputs]
        return run(nested, inputs)

    def run(graph, inputs):
        outputs = graph._run_through_graph(
            inputs, operation_fn=lambda operation: operation, call_fn=call
        )
        flat = tree.flatten(outputs)
        return flat[0] if len(flat) == 1 else outputs

    graph = graph_of(model)
    inputs = _new_inputs(graph)
    return keras.Model(inputs, run(graph, inputs), name=model.name)
