"""Copies layers, metrics and models as objects, not from their configs."""

import contextlib
import copy
import inspect
import io
import pickle
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from .._keras import COLLECTIONS
from .._keras import OF_PYTORCH
from .._keras import OF_TRAINING
from .._keras import DynamicBackend
from .._keras import Functional
from .._keras import KerasSaveable
from .._keras import compile_config
from .._keras import graph_of
from .._keras import initial_state
from .._keras import layers_in
from .._keras import list_layers
from .._keras import not_decayed
from .._keras import operations
from .._keras import origin
from .._keras import own_trainable
from .._keras import renew
from .._keras import run_through_graph
from .._keras import set_own_trainable
from .._keras import tracker_of
from ._graph import is_overridden
from ._graph import new_input_layer
from ._graph import new_inputs

# Objects that a copy shares with the original: no layer changes their state.
SHARED = (
    type,
    types.BuiltinFunctionType,
    types.ModuleType,
    inspect.Signature,
    keras.DTypePolicy,
    keras.KerasTensor,
    keras.Loss,
    type(threading.Lock()),
    type(threading.RLock()),
    DynamicBackend,
)
# Methods by which a subclass changes training.
OF_SUBCLASS = (
    "call",
    "compute_loss",
    "compute_metrics",
    "predict_step",
    "test_step",
    "train_step",
)


def copied(
    model: keras.Model,
    replace: Callable[[keras.Layer], keras.Layer | None] = lambda layer: None,
    compiled: bool = True,
) -> keras.Model:
    """A copy of `model`: new layers, with the same names and weights.

    Nested models are copied too, and shared layers stay shared.

    Args:
        model: A model that has been built.
        replace: Function from a layer to its replacement, or to None to copy
            the layer.
        compiled: Whether to compile the copy as `model` was compiled, with a
            new optimizer.

    Returns:
        A model of the same class.

    Raises:
        ValueError: If a layer cannot be copied.
    """
    copies = Copies(replace)
    result = copies.of(model)
    if compiled:
        compile_like(result, model, copies)
    return result


def compile_like(
    new: keras.Model,
    model: keras.Model,
    copies: "Copies",
    trained: bool = True,
):
    """Compiles `new` as `model` was, with a new optimizer.

    Both models share losses, functions and strings; metrics, which have a
    state, are copied. If `new` cannot be compiled, a warning says so.

    Args:
        new: A model made of copies of the layers of `model`.
        model: The model.
        copies: The `Copies` that made the layers of `new`.
        trained: Whether `new` is to be trained. If not, it gets Keras'
            default optimizer: the optimizer of `model` may name layers that
            are gone, or its class may be unknown where `new` is loaded.
    """
    if not model.compiled:
        return
    # If `new` keeps the class, the class' `compile` may take other arguments.
    # Otherwise the class' training and test steps would be lost.
    if type(new) is type(model):
        own = _own_compile(model)
    else:
        own = [x for x in OF_SUBCLASS if is_overridden(model, x)]
    try:
        # `get_compile_config` would require every function to be registered.
        config = compile_config(model)
        if own or config is None:
            listed = ", ".join(f"`{name}`" for name in own or ["compile"])
            raise TypeError(f"`{type(model).__name__}` has its own {listed}")
        optimizer = config.pop("optimizer")
        if trained:
            config["optimizer"] = _new_optimizer(optimizer, copies)
    except Exception as error:  # for example from an optimizer's config
        warnings.warn(
            f"The new model '{new.name}' is not compiled, since the original "
            f"cannot be compiled again ({type(error).__name__}: {error}): "
            "call its `compile`.",
            stacklevel=4,
        )
        return
    for name in ("metrics", "weighted_metrics"):
        config[name] = tree.map_structure(
            lambda x: _new_metric(x, copies), config[name]
        )
    keras.Model.compile(new, **config)


def recompile(model: keras.Model) -> None:
    """Compiles a model again, as before, after its layers have changed."""
    model.make_predict_function(force=True)
    copies = Copies()
    copies.made = {id(x): (x, x) for x in model.variables}
    compile_like(model, model, copies)


def _own_compile(model):
    """`["compile"]` if the class' method takes other arguments than Keras'."""
    arguments = inspect.signature(model.compile).parameters
    return [] if {"optimizer", "loss"} <= set(arguments) else ["compile"]


def _new_metric(metric, copies):
    if not isinstance(metric, keras.Metric):
        return metric  # a name or a function
    new = copies.of(metric)
    new.reset_state()
    return new


def _new_optimizer(optimizer, copies):
    if not isinstance(optimizer, keras.Optimizer):
        return optimizer  # a name
    new = type(optimizer).from_config(optimizer.get_config())
    # The config lacks the variables excluded from weight decay.
    variables, patterns = not_decayed(
        optimizer,
        [x for x, _ in copies.made.values() if isinstance(x, keras.Variable)],
    )
    if variables or patterns:
        new.exclude_from_weight_decay(
            [copies.of(x) for x in variables], patterns
        )
    return new


class Copies:
    """Copies Keras objects, each once, so that copies share what they shared.

    A layer is copied as an object, attribute by attribute, and not created from
    its config: a config may lack part of a layer's state (adapted statistics,
    low-rank updates, quantized kernels, frozen variables), and some configs
    cannot be read back. Keras objects and variables first become empty shells,
    which are filled later one by one, so that mutual references need no
    recursion. All other objects are copied by pickling.

    To copy a functional or sequential model, the copies of its layers are
    called in the order of its graph.

    Args:
        replace: Function from a layer to its replacement, or to None to copy
            the layer.
    """

    def __init__(
        self,
        replace: Callable[[keras.Layer], keras.Layer | None] = lambda x: None,
    ):
        self.replace = replace
        # Each entry keeps the original alive, so that no other object gets its
        # id.
        self.made: dict[int, tuple[Any, Any]] = {}
        self.unfilled: list[tuple[Any, Any]] = []
        self.graphs: dict[int, tuple[Any, Any]] = {}
        self.trackers: list[Any] = []
        self._start_stream()

    def of(self, value: Any) -> Any:
        """The complete copy of a Keras object."""
        new = self.shell(value)
        self._fill()
        while self.graphs:
            self._complete(next(iter(self.graphs.values()))[0])
        return new

    def shell(self, value: Any) -> Any:
        """The copy of a Keras object or a tensor, possibly not yet filled."""
        if id(value) not in self.made:
            self.made[id(value)] = value, self._shell(value)
        return self.made[id(value)][1]

    def _shell(self, value):
        if isinstance(value, keras.Layer):
            if (new := self.replace(value)) is not None:
                return new
            new = keras.Layer.__new__(type(value))
        elif isinstance(value, keras.Operation):
            new = keras.Operation.__new__(type(value))
        elif isinstance(value, (KerasSaveable, keras.Variable)):
            new = object.__new__(type(value))
        elif isinstance(value, types.FunctionType):
            new = _with_new_cells(value)
        else:
            return copy.deepcopy(value)  # a tensor of the backend
        if graph_of(value) is None:
            self.unfilled.append((value, new))
        else:
            self.graphs[id(value)] = value, new
            for layer in _layers_in(value):
                self.shell(layer)
        return new

    def _fill(self):
        while self.unfilled:
            old, new = self.unfilled.pop()
            if isinstance(old, types.FunctionType):
                self._fill_cells(old, new)
                continue
            try:
                self._fill_object(old, new)
            except Exception as error:  # pickling may raise anything
                self._start_stream()
                self._fill_by_config(old, new, error)
        for tracker in self.trackers:
            renew(tracker)
        self.trackers.clear()

    def _fill_cells(self, old, new):
        for cell, of_old in zip(new.__closure__, old.__closure__, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                cell.cell_contents = self._plain(of_old.cell_contents)

    def _fill_object(self, old, new):
        state = initial_state(old)
        state = {k: v for k, v in state.items() if not _is_own(new, k)}
        vars(new).update(self._plain(state))
        if (tracker := tracker_of(new)) is not None:
            self.trackers.append(tracker)

    def _fill_by_config(self, old, new, error):
        """Fills a layer that contains an object that cannot be copied.

        An example is a table. The state that the config lacks is transferred as
        Keras saves and loads it.
        """
        try:
            made = type(old).from_config(old.get_config())
            build_config = old.get_build_config()
            if old.built and not made.built and build_config:
                made.build_from_config(build_config)
            for parts in zip(layers_in(old), layers_in(made), strict=True):
                _carry_over(*parts)
            for variable, of_old in zip(
                made.variables, old.variables, strict=True
            ):
                variable.assign(of_old)
                variable.trainable = of_old.trainable
                self.made[id(of_old)] = of_old, variable
            set_own_trainable(made, own_trainable(old))
        except Exception as again:
            raise ValueError(
                f"Layer '{getattr(old, 'name', old)}', a "
                f"`{type(old).__name__}`, cannot be copied, neither as it is "
                f"({type(error).__name__}: {error}) nor by its config "
                f"({type(again).__name__}: {again}).{self._way_out(old)}"
            ) from error
        state = {k: v for k, v in vars(made).items() if not _is_own(new, k)}
        vars(new).update(state)

    def _way_out(self, old):
        """Names the first attribute that cannot be copied."""
        for name, value in initial_state(old).items():
            try:
                self._plain(value)
            except Exception:
                return (
                    f" Its attribute `{name}` cannot be copied: keep it "
                    "outside the layer."
                )
        return ""

    def _complete(self, layer):
        """Builds the graphs of a layer and of the layers inside it."""
        for part in layers_in(layer):
            if id(part) in self.graphs:
                self._complete_graph(*self.graphs.pop(id(part)))

    def _complete_graph(self, old, new):
        for layer in _layers_in(old):
            if isinstance(layer, keras.Layer):
                self._complete(layer)
        if isinstance(old, keras.Sequential):
            parts = [
                new_input_layer(origin(old.inputs[0])),
                *map(self.shell, old.layers),
            ]
            keras.Sequential.__init__(new, parts, name=old.name)
        else:
            inputs = new_inputs(old)
            outputs = run_through_graph(old, inputs, self.shell)
            Functional.__init__(new, inputs, outputs, name=old.name)
        # The setter would set `trainable` of every layer.
        set_own_trainable(new, own_trainable(old))
        new.dtype_policy = old.dtype_policy
        # Copy attributes set by the model's class or by the user.
        self.made[id(tracker_of(old))] = tracker_of(old), tracker_of(new)
        known = {*vars(new), *OF_TRAINING, OF_PYTORCH}
        state = {k: v for k, v in vars(old).items() if k not in known}
        for name, value in self._plain(state).items():
            setattr(new, name, value)
        if not isinstance(old, keras.Sequential):
            # Some classes set layers as attributes before building their graph,
            # and Keras lists these first; as KerasHub sets them on PyTorch,
            # Keras does not list them at all.
            parts = layers_in(old, include_self=False, recursive=False)
            made = [self.made[id(x)][1] for x in parts if id(x) in self.made]
            list_layers(new, made, (x for _, x in self.made.values()))
        self._fill()

    def _start_stream(self):
        # All copies use one stream, so that layers also share copies of plain
        # objects.
        self._stream = io.BytesIO()
        self._referred: list[Any] = []
        self._pickler = _Pickler(self._stream, self._refer)
        self._unpickler = _Unpickler(self._stream, self._referred)

    def _plain(self, value):
        """A copy of a plain object whose Keras objects are shells."""
        start = self._stream.seek(0, io.SEEK_END)
        self._pickler.dump(value)
        self._stream.seek(start)
        return self._unpickler.load()

    def _refer(self, value):
        """The number of the replacement for `value`; None to pickle `value`."""
        if isinstance(value, SHARED):
            found = value
        elif isinstance(value, types.FunctionType):
            found = self.shell(value) if _refers_to_keras(value) else value
        elif (
            id(value) in self.made
            or isinstance(value, (KerasSaveable, keras.Variable))
            or ops.is_tensor(value)
        ):
            found = self.shell(value)
        else:
            return None
        self._referred.append(found)
        return len(self._referred) - 1


class _Pickler(pickle.Pickler):
    def __init__(self, stream, refer):
        super().__init__(stream, protocol=5)
        self.refer = refer

    def persistent_id(self, obj):
        return self.refer(obj)

    def reducer_override(self, obj):
        if kind := COLLECTIONS.get(type(obj)):
            # Fill the copy with plain methods: its own would track the elements
            # again.
            content = kind(obj), obj.tracker
            return _empty, (type(obj),), content, None, None, _set_collection
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, referred):
        super().__init__(stream)
        self.referred = referred

    def persistent_load(self, pid):
        return self.referred[pid]


def _empty(cls):
    return cls.__new__(cls)


def _set_collection(collection, content):
    values, collection.tracker = content
    kind = type(values)
    (kind.extend if kind is list else kind.update)(collection, values)


def _carry_over(old, new):
    """Transfers the state of a layer as Keras saves and loads it."""
    own: dict[str, Any] = {}
    old.save_own_variables(own)
    new.load_own_variables(own)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _is_own(layer, name):
    """Whether an attribute is a function that refers to its layer.

    Keras sets such functions on each new layer.
    """
    return isinstance(vars(layer).get(name), types.FunctionType)


def _layers_in(model):
    """The layers and operations in a model's graph, without input layers."""
    return [
        operation
        for operation in operations(graph_of(model))
        if not isinstance(operation, keras.layers.InputLayer)
    ]


def _cells(function):
    """The values in a function's closure."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            found.append(cell.cell_contents)
    return found


def _refers_to_keras(function, seen=()):
    """Whether a function closes over a layer or a variable."""
    if function in seen:
        return False
    for value in tree.flatten(_cells(function)):
        value = getattr(value, "__self__", value)  # of a bound method
        if isinstance(value, (keras.Operation, keras.Variable)):
            return True
        if isinstance(value, types.FunctionType) and _refers_to_keras(
            value, (*seen, function)
        ):
            return True
    return False


def _with_new_cells(function):
    new = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(types.CellType() for _ in function.__closure__),
    )
    new.__kwdefaults__ = function.__kwdefaults__
    vars(new).update(vars(function))
    return new
