"""The layers of a model that drop, at any depth."""

import dis
import inspect
import re
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import keras
from keras import layers

from .._checks import invalid
from .._checks import is_number
from .._keras import graph_of
from .._keras import layers_in
from ..arguments import Filters
from ..layers._shifted_dropout import ShiftedDropout

SPATIAL_DROPOUT = (
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# SpatialDropout1D, 2D and 3D are subclasses of Dropout.
DROPOUT = (layers.Dropout, ShiftedDropout)
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
class Candidate:
    """A layer that drops, which `invariantize` may convert.

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
        return rate_of(self.layer)


def rate_in_words(rate: float | None) -> str:
    """A rate in a report: `"rate 0.5"`, or `"rate unknown"` for None."""
    return f"rate {'unknown' if rate is None else f'{rate:g}'}"


def rate_of(layer: keras.Layer) -> float | None:
    """The fraction of activities that a layer drops; None if unknown."""
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


def candidates(
    model: keras.Model, drawing: Collection[keras.Layer] = ()
) -> list[Candidate]:
    """The layers of a model that drop, except those of this library.

    Args:
        model: A model.
        drawing: Layers that are known to call `keras.random.dropout`.
    """
    found = [Candidate(path, layer) for path, layer in paths_with_model(model)]
    for candidate in found:
        candidate.obstacle = _obstacle(candidate.layer)
        if candidate.layer in drawing and not drops(candidate.layer):
            candidate.obstacle = DRAWS
    return [x for x in found if x.obstacle or is_dropout(x.layer)]


def drops(layer: keras.Layer) -> bool:
    """Whether a layer itself draws masks, not only a layer inside it."""
    return isinstance(layer, DROPOUT) or bool(_obstacle(layer))


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
        return None if rate_of(layer) == 0 else "drops whole paths"
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
    if rates and any(isinstance(x, DROPOUT) or own_rates(x) for x in inner):
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
