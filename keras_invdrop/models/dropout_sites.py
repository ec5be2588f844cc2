"""Where a model drops activities, what reaches there and what comes next."""

import warnings
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops
from keras.src.models.functional import operation_fn

from ..layers.shifted_dropout import ShiftedDropout
from ..random import mask_shape
from ..validation import channel_axis as channel_axis
from ..validation import is_number
from .graph import check_model
from .graph import graph_layers
from .graph import graph_of
from .graph import nodes
from .graph import run_through

SPATIAL_DROPOUT = (
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# SpatialDropout1D, 2D and 3D are Dropouts, too.
DROPOUT = (layers.Dropout, ShiftedDropout)
# Layers that drop in a way of their own, to which a shift means nothing.
OTHER_DROPOUT = (layers.AlphaDropout, layers.GaussianDropout)
# Where recurrent layers and attention keep the rate at which they drop.
RATES = ("dropout", "recurrent_dropout")

# Layers that put their input's elements into other places, and do no more.
REARRANGING = (layers.Flatten, layers.Permute, layers.Reshape)


@dataclass(frozen=True)
class DropoutSite:
    """One call of a dropout layer in a model.

    Attributes:
        layer: The dropout layer.
        activities: Function from a batch of the model's input to the
            activities that reach the layer in inference mode, an array of
            shape `(batch, ...)`.
        next_layers: For each layer that takes the dropped activities, the
            layers in between that only rearrange them, and the layer. Empty
            where the dropped activities are the model's output.
    """

    layer: keras.Layer
    activities: Callable[[Any], np.ndarray]
    next_layers: list[tuple[list[keras.Layer], keras.Layer]]

    def shift_axes(self, rank: int) -> tuple[int, ...]:
        """The axes, batch included, along which a shift is shared.

        A layer of this library says it. For a layer of Keras it is one shift
        per feature map where the input has axes of space or time.
        """
        if isinstance(self.layer, ShiftedDropout):
            shape = self.layer.shift.shape
            shared = [i for i, size in enumerate(shape, start=1) if size == 1]
        else:
            channels = self._channel_axis(rank)
            shared = [i for i in range(1, rank) if i != channels]
        return (0, *shared)

    def _channel_axis(self, rank: int) -> int:
        return channel_axis(getattr(self.layer, "data_format", None), rank)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask for activities of shape `(batch, ...)`."""
        rank = len(shape)
        noise_shape = self.layer.noise_shape
        if isinstance(self.layer, SPATIAL_DROPOUT):
            channels = self._channel_axis(rank)
            kept = (0, channels)
            noise_shape = [None if i in kept else 1 for i in range(rank)]
        return mask_shape(noise_shape, shape)


def dropout_sites(model: keras.Model) -> list[DropoutSite]:
    """Finds every call of a dropout layer, from the input on.

    Args:
        model: A functional or sequential model that is built; the models
            nested in it too. It is left as it is.

    Returns:
        A list of `DropoutSite`.

    Raises:
        ValueError: If `model` has no graph of layers.
    """
    graph = graph_of(check_model(model))
    warn_of_hidden_dropout(model)
    return list(_sites(graph, reach=lambda x: x))


def all_activities(model: keras.Model, x: Any) -> list[np.ndarray]:
    """The activities that reach each site, all from one pass.

    Args:
        model: A model that `dropout_sites` takes.
        x: A batch of its input.

    Returns:
        For each of `dropout_sites(model)` what its `activities(x)` are.
    """
    graph = graph_of(check_model(model))
    found = []

    def call(layer, *args, **kwargs):
        if isinstance(layer, DROPOUT):
            inputs = args[0] if args else kwargs["inputs"]
            found.append(ops.convert_to_numpy(inputs))
        return operation_fn(layer, training=False)(*args, **kwargs)

    run_through(graph, graph._standardize_inputs(x), call)
    return found


def warn_of_hidden_dropout(model, seen=DROPOUT):
    """Warns of what drops in `model` and is no layer of its graph in `seen`."""
    hidden = []
    for layer in graph_layers(model):
        reasons = []
        if isinstance(layer, OTHER_DROPOUT) and not isinstance(layer, seen):
            reasons.append(type(layer).__name__)
        for part in layer._flatten_layers():
            if isinstance(part, DROPOUT) and part is not layer and part.rate:
                reasons.append(f"layer '{part.path or part.name}'")
            for name in RATES:
                rate: Any = getattr(part, name, None)
                if is_number(rate) and rate > 0:
                    reasons.append(f"{name}={rate:g}")
        if reasons:
            # A layer and its cell may both say so.
            reasons = list(dict.fromkeys(reasons))
            hidden.append(f"'{layer.name}' ({', '.join(reasons)})")
    if hidden:
        warnings.warn(
            "Dropout inside other layers is not seen, and stays as it is: "
            + "; ".join(hidden),
            stacklevel=3,
        )


def _sites(graph, reach, after=()) -> Iterator[DropoutSite]:
    """The sites in `graph`.

    `reach` leads from the model's input to the input of `graph`, and `after`
    holds, for each output of `graph`, the next layers behind it.
    """
    for node in nodes(graph):
        layer = node.operation
        if isinstance(layer, DROPOUT):
            (inputs,) = node.arguments.keras_tensors
        elif isinstance(layer, keras.Model):
            inputs = [*node.arguments.args, *node.arguments.kwargs.values()][0]
        else:
            continue
        model = keras.Model(graph.input, inputs)
        inputs_of = _composed(partial(model, training=False), reach)
        behind = [_next_layers(graph, out, after) for out in node.outputs]
        if isinstance(layer, DROPOUT):
            activities = _composed(ops.convert_to_numpy, inputs_of)
            yield DropoutSite(layer, activities, *behind)
        elif (nested := graph_of(layer)) is not None:
            yield from _sites(nested, inputs_of, behind)


def _composed(outer, inner):
    return lambda x: outer(inner(x))


def _next_layers(graph, tensor, after=()):
    """The layers that take `tensor`, and those in between, as in a site."""
    found = []
    # At the top nothing is `after` the outputs.
    for output, behind in zip(graph.outputs, after, strict=False):
        if output is tensor:
            found += behind
    for node in nodes(graph):
        arguments = node.arguments.keras_tensors
        places = [i for i, each in enumerate(arguments) if each is tensor]
        if not places:
            continue
        layer = node.operation
        behind = [_next_layers(graph, out, after) for out in node.outputs]
        if isinstance(layer, REARRANGING):
            found += [([layer, *between], last) for between, last in behind[0]]
        elif (nested := graph_of(layer)) is not None:
            for i in places:
                found += _next_layers(nested, nested.inputs[i], behind)
        else:
            found.append(([], layer))
    return found
