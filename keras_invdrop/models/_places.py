"""The places at which a model drops, at any depth, and their inputs."""

import contextlib
import dis
import inspect
import re
import sys
import types
import warnings
from collections import ChainMap
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from .._batches import random_inputs
from .._checks import invalid
from .._checks import is_number
from .._keras import get_keras_mask
from .._keras import graph_of
from .._keras import layers_in
from .._keras import random_functions
from ..arguments import Filters
from ..layers._shifted_dropout import ShiftedDropout
from ._graph import not_callable

# Layers that do not replace activities by zero, so a shift is meaningless.
OTHER_DROPOUT = (layers.AlphaDropout, layers.GaussianDropout)
# Parts of the class names of layers that drop whole paths, in KerasHub and
# elsewhere.
PATH_DROPOUT = ("DropPath", "StochasticDepth")
# The attributes in which recurrent and attention layers keep their rates, and
# those in which others do.
RATES = ("dropout", "recurrent_dropout")
OTHER_RATES = ("rate", "drop_prob", "drop_rate")
# Packages that are not searched for calls of `keras.random.dropout`.
NOT_SEARCHED = {"jax", "keras", "keras_invdrop", "numpy", "tensorflow", "torch"}
DRAWS = "calls `keras.random.dropout` itself"


@dataclass(eq=False)
class Place:
    """A layer that drops.

    Attributes:
        path: The names of the layers around the layer and its own name, joined
            by `/`.
        layer: The layer.
        obstacle: Why the layer cannot be converted; None if it can.
        shapes: The shapes of its inputs, batch included.
        adds_up: Whether each input adds up to 1 along the last axis, as
            attention scores do.
    """

    path: str
    layer: keras.Layer
    obstacle: str | None = None
    shapes: list[tuple] = field(default_factory=list)
    adds_up: bool = False

    @property
    def rate(self) -> float | None:
        """The fraction of activities that the layer drops; None if unknown."""
        return _rate(self.layer)


def rate_in_words(rate: float | None) -> str:
    """A rate in a report: `"rate 0.5"`, or `"rate unknown"` for None."""
    return f"rate {'unknown' if rate is None else f'{rate:g}'}"


def _rate(layer):
    rates: list[Any] = [
        getattr(layer, name, None) for name in (*OTHER_RATES, *RATES)
    ]
    return max((x for x in rates if is_number(x)), default=None)


def paths_of(
    layer: keras.Layer, start: str = "", seen: set | None = None
) -> Iterator[tuple[str, keras.Layer]]:
    """Pairs of a path and a layer for all layers inside a layer, each once."""
    seen = set() if seen is None else seen
    for part in layers_in(layer, include_self=False, recursive=False):
        if id(part) not in seen:
            seen.add(id(part))
            path = f"{start}{part.name}"
            yield path, part
            yield from paths_of(part, f"{path}/", seen)


def paths_with_model(
    model: keras.Model,
) -> Iterator[tuple[str, keras.Layer]]:
    """The `paths_of` a model; before them a subclass, whose `call` may drop."""
    if graph_of(model) is None:
        yield model.name, model
    yield from paths_of(model)


def places(
    model: keras.Model, drawing: Collection[keras.Layer] = ()
) -> list[Place]:
    """The layers of a model that drop, except those of this library.

    Args:
        model: A model.
        drawing: Layers that are known to call `keras.random.dropout`.
    """
    found = [Place(path, layer) for path, layer in paths_with_model(model)]
    for place in found:
        place.obstacle = _obstacle(place.layer)
        if place.layer in drawing and not drops(place.layer):
            place.obstacle = DRAWS
    return [x for x in found if x.obstacle or is_dropout(x.layer)]


def drops(layer: keras.Layer) -> bool:
    """Whether a layer itself draws masks, not only a layer inside it."""
    return isinstance(layer, ShiftedDropout | layers.Dropout) or bool(
        _obstacle(layer)
    )


def is_dropout(layer: keras.Layer) -> bool:
    """Whether a layer drops as Keras' own dropout layers do."""
    return isinstance(layer, layers.Dropout) and type(
        layer
    ).call.__module__.startswith("keras.")


def _obstacle(layer):
    """Why the dropout that a layer draws itself cannot be converted."""
    kind = type(layer)
    if isinstance(layer, ShiftedDropout) or is_dropout(layer):
        return None
    if isinstance(layer, layers.Dropout):
        return "a subclass of `Dropout` with a `call` of its own"
    if isinstance(layer, OTHER_DROPOUT):
        return "does not replace activities by zero"
    if any(name in kind.__name__ for name in PATH_DROPOUT):
        return None if _rate(layer) == 0 else "drops whole paths"
    if rates := own_rates(layer):
        return f"draws its masks itself ({', '.join(rates)})"
    return DRAWS if _calls_dropout(_own_functions(layer)) else None


def own_rates(layer):
    """The rates of a layer, unless layers inside it drop at these rates."""
    rates = [
        f"{name}={getattr(layer, name):g}"
        for name in RATES
        if is_number(getattr(layer, name, None)) and getattr(layer, name) > 0
    ]
    inner = layers_in(layer, include_self=False)
    if rates and any(
        isinstance(x, layers.Dropout | ShiftedDropout) or own_rates(x)
        for x in inner
    ):
        return []
    return rates


def _own_functions(layer):
    """The methods and other functions of a layer that Keras does not define."""
    kinds = inspect.getmro(type(layer))
    for base in kinds[: kinds.index(keras.Layer)]:
        if not base.__module__.startswith("keras.src."):
            yield from vars(base).values()
    if isinstance(layer, layers.Lambda):
        yield layer.function


def has_own_code(model: keras.Layer) -> bool:
    """Whether a model contains code that is not of Keras or this library."""
    return any(
        _is_searched(x)
        for layer in layers_in(model)
        for x in _own_functions(layer)
    )


def _is_searched(value):
    """Whether a value is a function outside `NOT_SEARCHED`."""
    if not isinstance(value, types.FunctionType):
        return False
    return (value.__module__ or "").partition(".")[0] not in NOT_SEARCHED


def _calls_dropout(values):
    """Whether functions, or those they use, use `keras.random.dropout`."""
    left, seen = list(values), set()
    while left:
        value = left.pop()
        if value is keras.random.dropout:
            return True
        if _is_searched(value) and value not in seen:
            seen.add(value)
            variables = inspect.getclosurevars(value).nonlocals
            scope = ChainMap({}, dict(variables), value.__globals__)
            left += _loaded(value.__code__, scope)
    return False


def _loaded(code, scope):
    """The objects that code and the functions defined in it load by name."""
    value = None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if isinstance(name, types.CodeType):
            yield from _loaded(name, scope)
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            is_module = isinstance(value, types.ModuleType)
            value = getattr(value, name, None) if is_module else None
        elif instruction.opname == "IMPORT_NAME":
            value = sys.modules.get(name)
        elif instruction.opname.startswith("STORE_") and value is not None:
            scope[name] = value
        else:
            value = scope.get(name) if isinstance(name, str) else None
        yield value


def path_filter(filters: Filters | None) -> Callable[[str], bool]:
    """A function that tests whether a path matches one of `filters`.

    Raises:
        ValueError: If `filters` is not a regular expression or a list of them.
    """
    if filters is None:
        return lambda path: True
    given = [filters] if isinstance(filters, str) else filters
    try:
        # `MonteCarlo.save` writes them, so no compiled ones.
        if not all(isinstance(pattern, str) for pattern in given):
            raise TypeError
        patterns = [re.compile(pattern) for pattern in given]
    except (TypeError, re.error):
        raise invalid(
            "filters", "a regular expression, or a list of them", filters
        ) from None
    return lambda path: any(pattern.search(path) for pattern in patterns)


def no_match(arguments: str, paths: Iterable[str]) -> str:
    """A sentence: arguments that select layers have selected none."""
    return (
        f"No dropout layer matches {arguments}. The model has the dropout "
        f"layers {[*paths]}."
    )


@contextlib.contextmanager
def watched(
    model: keras.Layer,
    chosen: Collection[keras.Layer],
    note: Callable[[keras.Layer, Any], None],
) -> Iterator[None]:
    """Calls `note(layer, inputs)` before each call of some layers.

    Recurrent layers around them run unrolled in the block: the compiled loop of
    a backend has no values to note.

    Args:
        model: A model.
        chosen: Layers of it, at any depth.
        note: A function of a chosen layer and its inputs.
    """
    with contextlib.ExitStack() as stack:
        for layer in chosen:
            vars(layer)["call"] = _noting(layer, note)
            stack.callback(vars(layer).pop, "call")
        for layer in layers_around(model, chosen, layers.RNN):
            stack.callback(setattr, layer, "unroll", layer.unroll)
            layer.unroll = True
        yield


def layers_around(model, chosen, kind):
    """The layers of a kind that contain one of the chosen layers."""
    ids = {id(layer) for layer in chosen}
    return [
        layer
        for layer in layers_in(model)
        if isinstance(layer, kind)
        and any(id(part) in ids for part in layers_in(layer))
    ]


def untrained_normalization(model: keras.Layer) -> dict[keras.Layer, str]:
    """The batch normalisation layers of a model that have not seen data.

    Their moving statistics are still the initial ones. A frozen layer does not
    count: it uses its moving statistics in training, too.

    Args:
        model: A model.

    Returns:
        Dict from the layers, at any depth, to their paths.
    """
    return {
        layer: path
        for path, layer in paths_of(model)
        if isinstance(layer, layers.BatchNormalization)
        and layer.built
        and layer.trainable
        and _is_initial(layer.moving_mean, layer.moving_mean_initializer)
        and _is_initial(
            layer.moving_variance, layer.moving_variance_initializer
        )
    }


def _is_initial(weight, initializer):
    initial = initializer(weight.shape, dtype=weight.dtype)
    return np.array_equal(
        ops.convert_to_numpy(weight), ops.convert_to_numpy(initial)
    )


@contextlib.contextmanager
def batch_statistics(
    untrained: Iterable[keras.Layer],
) -> Iterator[None]:
    """Makes layers use the statistics of the batch in the block.

    As in training, a call changes their moving statistics, unless it is in a
    `keras.StatelessScope`.

    Args:
        untrained: Layers of batch normalisation.
    """
    with contextlib.ExitStack() as stack:
        for layer in untrained:
            vars(layer)["call"] = _in_training(layer.call)
            stack.callback(vars(layer).pop, "call")
        yield


def _in_training(call):
    return lambda *args, **kwargs: call(*args, **{**kwargs, "training": True})


def counting(activities: Any, inputs: Any) -> Any:
    """A mask of the activities that are not padding, if known.

    Args:
        activities: The input of a layer, of shape `(batch, ...)`.
        inputs: The inputs of the model. If one is named `padding_mask`, as in
            KerasHub's models, it applies to sequences without a mask.

    Returns:
        A mask that broadcasts to `activities`, or None.
    """
    mask = get_keras_mask(activities)
    rank = len(activities.shape)
    if mask is None and isinstance(inputs, dict) and rank == 3:
        mask = inputs.get("padding_mask")
        if mask is not None and mask.shape[1:] != activities.shape[1:2]:
            mask = None
    if mask is None:
        return None
    # Broadcast the mask, which has one value per timestep, over the features.
    ones = [1] * (rank - len(mask.shape))
    return ops.cast(ops.reshape(mask, (*ops.shape(mask), *ones)), "bool")


def _noting(layer, note):
    call = layer.call

    def noting(inputs, *args, **kwargs):
        note(layer, inputs)
        return call(inputs, *args, **kwargs)

    return noting


def observe(
    model: keras.Model, found: list[Place], inputs: Any, size: int
) -> set[keras.Layer]:
    """Records the input shapes of places, and which inputs add up to 1.

    Calls the model once in training mode, without changing variables.

    Args:
        model: A model.
        found: Places of the model, to which the shapes are added.
        inputs: An example of the input of the model; random numbers if None.
        size: The size of the random numbers along axes of variable length.

    Returns:
        The layers that called `keras.random.dropout`.

    Raises:
        ValueError: If the model cannot be called.
    """
    graph = graph_of(model)
    by_id = {id(place.layer): place for place in found}

    def note(layer, inputs):
        place = by_id[id(layer)]
        first = not place.shapes
        place.adds_up = (first or place.adds_up) and adds_up(inputs)
        place.shapes.append(tuple(inputs.shape))

    with (
        watched(model, [place.layer for place in found], note),
        _noting_masks(model) as drawing,
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            example = inputs
            if example is None:
                example = tree.pack_sequence_as(
                    graph.input, random_inputs(graph.inputs, size)
                )
            with keras.StatelessScope():
                model(example, training=True)
        except Exception as error:  # a model may raise anything
            raise not_callable(model, inputs, error) from error
    return drawing


def observed_to_draw(model: keras.Model) -> set[keras.Layer]:
    """The layers that call `keras.random.dropout` for random inputs.

    The set is empty if the model has no graph, which gives the shapes of the
    inputs, or cannot be called on random numbers.
    """
    if graph_of(model) is None or not has_own_code(model):
        return set()
    try:
        return observe(model, [], None, size=4)
    except ValueError:
        return set()


@contextlib.contextmanager
def _noting_masks(model):
    """Yields the set of the layers that use Keras' `dropout` in the block."""
    dropout = random_functions.dropout
    known = {id(layer) for layer in layers_in(model)}
    found = set()

    def noting(*args, **kwargs):
        # The innermost layer is that of the first such method on the stack.
        frame: Any = inspect.currentframe()
        while id(frame.f_locals.get("self")) not in known:
            frame = frame.f_back
        found.add(frame.f_locals["self"])
        return dropout(*args, **kwargs)

    random_functions.dropout = noting
    try:
        yield found
    finally:
        random_functions.dropout = dropout


def adds_up(x):
    """Whether `x` is a probability distribution along the last axis."""
    if len(x.shape) < 3:
        return False
    try:
        values = ops.convert_to_numpy(x).astype("float32")
    except Exception:  # inside a loop that the backend compiles
        return False
    sums = values.sum(axis=-1)
    # The scores of a fully masked query are zero.
    near = np.abs(sums - 1) < 0.02
    return bool(
        (values >= 0).all() and near.any() and (near | (sums == 0)).all()
    )
