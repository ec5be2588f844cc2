"""Parts of Keras without a stable API that the library uses.

Any release of Keras may change `keras.src` and attributes that begin with an
underscore. No other file uses them. `tests/keras_invdrop/test_keras.py` tests
each name here, and its messages say what a new release has changed.
"""

import keras
from keras.src import backend
from keras.src.backend import get_keras_mask as get_keras_mask
from keras.src.backend.common.symbolic_scope import (
    in_symbolic_scope as in_symbolic_scope,
)
from keras.src.models.functional import Functional as Functional
from keras.src.models.functional import (
    functional_like_constructor as functional_like_constructor,
)
from keras.src.saving.keras_saveable import KerasSaveable as KerasSaveable
from keras.src.trainers.data_adapters.array_data_adapter import (
    can_convert_arrays as can_convert_arrays,
)
from keras.src.trainers.data_adapters.array_slicing import (
    convert_to_sliceable as convert_to_sliceable,
)
from keras.src.utils import tracking
from keras.src.utils.backend_utils import DynamicBackend as DynamicBackend

# The base class of preprocessing layers, which also run in `tf.data`. Keras
# exports only its subclasses. Up to 3.11 its name is `TFDataLayer`.
DataLayer = keras.layers.Rescaling.__base__

# The module with the functions from which layers draw, by their names in it.
random_functions = backend.random

# The plain type of each of Keras' collections that track their elements.
COLLECTIONS = {
    getattr(tracking, name): kind
    for name, kind in {
        "TrackedDict": dict,
        "TrackedList": list,
        "TrackedOrderedDict": dict,
        "TrackedSet": set,
    }.items()
    if hasattr(tracking, name)  # TrackedOrderedDict is new in 3.14
}

# Attributes that are empty in a new copy of a layer: its calls in a graph and
# the losses of its last call.
EMPTY = {
    "_inbound_nodes": list,
    "_outbound_nodes": list,
    "_losses": list,
    "_loss_ids": set,
}
# Methods that Keras wraps in each layer object.
WRAPPED = ("build", "quantize")
# Attributes with a layer's place in a graph.
OF_GRAPH = ("_inbound_nodes", "_outbound_nodes")
# The attribute in which Keras lists variables for PyTorch, and those that
# compiling and training set. A copy starts without them.
OF_PYTORCH = "_torch_params"
OF_TRAINING = (
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_compiled_trainable_state",
    "_jax_state",
    "_loss_tracker",
    "compiled",
    "history",
    "loss",
    "optimizer",
    "predict_function",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "test_function",
    "train_function",
)


def build_at_init(layer):
    """Builds a layer, unless a subclass overrides `build`."""
    layer._build_at_init()


def build_by_call(layer):
    """Calls a layer of known input shape, to create all layers inside it."""
    shapes = layer.get_build_config() or {}
    if "shapes_dict" in shapes:
        layer._build_by_run_for_kwargs(shapes["shapes_dict"])
    elif "input_shape" in shapes:
        layer._build_by_run_for_single_pos_arg(shapes["input_shape"])


def graph_of(model):
    """The functional model with the graph of `model`, or None."""
    model = getattr(model, "_functional", model)
    return model if hasattr(model, "_nodes_by_depth") else None


def nodes(graph):
    """The calls of layers in `graph`, from the inputs to the outputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def operations(graph):
    """The layers and operations in `graph`, each once."""
    return graph._operations


def origin(tensor):
    """The layer or operation that created a `keras.KerasTensor`."""
    return tensor._keras_history.operation


def node_of(tensor):
    """The call of an operation that made a tensor in a graph."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def run_through_graph(graph, inputs, operation_fn, call_fn=None):
    """The outputs of `graph` for `inputs`, which need not be tensors.

    Args:
        graph: A functional model.
        inputs: Values for its inputs, in their structure.
        operation_fn: Function from a layer to the function called in its place.
        call_fn: Function `(layer, *args, **kwargs)` that makes the call.
    """
    return graph._run_through_graph(
        inputs, operation_fn=operation_fn, call_fn=call_fn
    )


def standardize_inputs(graph, inputs):
    """The inputs as a list, as the layers of a functional model take them."""
    return graph._standardize_inputs(inputs)


def layers_in(layer, include_self=True, recursive=True):
    """A layer and the layers inside it, at any depth if `recursive`."""
    return layer._flatten_layers(include_self, recursive)


def list_layers(layer, listed, unlisted):
    """Reorders the layers directly inside `layer`: those in `listed` first.

    Optimizers and files list weights in this order.

    Args:
        layer: A layer or model.
        listed: The layers to list first.
        unlisted: Layers to remove from the list, unless they are in `listed`.
    """
    places = {id(part): place for place, part in enumerate(listed)}
    left_out = {id(part) for part in unlisted} - set(places)
    layer._layers[:] = sorted(
        (part for part in layer._layers if id(part) not in left_out),
        key=lambda part: places.get(id(part), len(places)),
    )


def become(layer, new):
    """Turns `layer` into `new`, a built layer of another class.

    All references to `layer`, such as attributes, lists and the graph of a
    model, then refer to the new layer. Do not use `new` afterwards.
    """
    state = {k: v for k, v in vars(new).items() if k not in WRAPPED}
    state |= {name: vars(layer)[name] for name in OF_GRAPH}
    vars(layer).clear()
    vars(layer).update(state)
    layer.__class__ = type(new)


def list_again_for_pytorch(layer):
    """Registers a layer's changed variables with PyTorch."""
    if OF_PYTORCH in vars(layer).get("_modules", ()):
        layer._track_variables()


def seed_generators(layer):
    """The seed generators of a layer, without those of its inner layers."""
    return layer._seed_generators


def seeded(generator):
    """Makes all backends draw from a generator that was created without a seed.

    Otherwise dropout on PyTorch would draw from PyTorch's global generator.
    """
    generator._initial_seed = 0


def set_initial_epoch(model, epoch):
    """Sets the epoch at which the next `model.fit` begins; None for 0.

    `keras.callbacks.BackupAndRestore` sets it in the same way.
    """
    model._initial_epoch = epoch


def initial_epoch(model):
    """The epoch that `set_initial_epoch` has set, or 0."""
    return model._initial_epoch or 0


def compile_config(model):
    """The arguments that `model` was compiled with; None if unknown."""
    config = getattr(model, "_compile_config", None)
    return None if config is None else dict(config.config)


def not_decayed(optimizer, variables):
    """The arguments that an optimizer's `exclude_from_weight_decay` got.

    Args:
        optimizer: A Keras optimizer.
        variables: The variables of the model that it trains.

    Returns:
        The list of the `variables` that do not decay, and a list of name
        patterns, or None.
    """
    excluded = getattr(optimizer, "_exclude_from_weight_decay", ())
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    return (
        [x for x in variables if optimizer._var_key(x) in excluded],
        [pattern.pattern] if pattern else None,
    )


def variable_index(optimizer, variable):
    """The index of a variable in the lists of an optimizer."""
    return optimizer._get_variable_index(variable)


def set_direction(metric, direction):
    """Says whether a metric is better `"up"` or `"down"`.

    `keras.callbacks.EarlyStopping(mode="auto")`, for example, reads it.
    """
    metric._direction = direction


def better(monitor, model):
    """Whether a smaller (`"min"`) or larger (`"max"`) value is better.

    Args:
        monitor: Name of a loss or metric, perhaps after `"val_"`.
        model: A compiled model, after a step of training.

    Raises:
        ValueError: If Keras does not know.
    """
    stopping = keras.callbacks.EarlyStopping(monitor)
    stopping.set_model(model)
    stopping._set_monitor_op()
    return "max" if stopping.monitor_op is keras.ops.greater else "min"


def initial_state(old):
    """The attributes to copy from a Keras object."""
    state = dict(vars(old))
    if isinstance(old, keras.Operation):
        state |= {k: kind() for k, kind in EMPTY.items() if k in state}
        state.pop(OF_PYTORCH, None)
        if "_modules" in state:
            state["_modules"] = dict(state["_modules"])
            state["_modules"].pop(OF_PYTORCH, None)
    if isinstance(old, keras.Model):
        state |= {k: None for k in OF_TRAINING if k in state}
        state["compiled"] = False
    return state


def tracker_of(layer):
    """The tracker that lists a layer's variables and layers, or None."""
    return vars(layer).get("_tracker")


def renew(tracker):
    """Updates the ids by which a copied tracker recognises its elements."""
    tracker.stored_ids = {
        name: {id(value) for value in store}
        for name, (_, store) in tracker.config.items()
    }


def set_own_trainable(layer, trainable):
    """Sets `trainable` of a layer, but not of the layers inside it."""
    layer._trainable = trainable


def own_trainable(layer):
    """The value of `trainable` that was set on the layer itself."""
    return layer._trainable
