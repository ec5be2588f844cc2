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

from ..layers.shifted_dropout import ShiftedDropout
from ..random import mask_shape

SPATIAL_DROPOUT = (
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# SpatialDropout1D, 2D and 3D are Dropouts, too.
DROPOUT = (layers.Dropout, ShiftedDropout)

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
            channels = _channel_axis(self.layer, rank)
            shared = [i for i in range(1, rank) if i != channels]
        return (0, *shared)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask for activities of shape `(batch, ...)`."""
        rank = len(shape)
        noise_shape = self.layer.noise_shape
        if isinstance(self.layer, SPATIAL_DROPOUT):
            channels = _channel_axis(self.layer, rank)
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
    graph = _graph(model)
    if graph is None:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a "
            "functional or sequential model that has been built, whose layers "
            f"can be followed from input to output. Received: model={model}"
        )
    sites = list(_sites(graph, reach=lambda x: x))
    found = {id(site.layer) for site in sites}
    hidden = [
        layer.path or layer.name
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, DROPOUT) and id(layer) not in found
    ]
    if hidden:
        warnings.warn(
            "Dropout inside other layers is not seen: " + ", ".join(hidden),
            stacklevel=3,
        )
    return sites


def _graph(model):
    """The functional model that holds the graph of `model`, or None."""
    model = getattr(model, "_functional", model)
    return model if hasattr(model, "_nodes_by_depth") else None


def _nodes(graph):
    """The calls of layers in `graph`, from the input on."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def _sites(graph, reach, after=()) -> Iterator[DropoutSite]:
    """The sites in `graph`.

    `reach` leads from the model's input to the input of `graph`, and `after`
    holds, for each output of `graph`, the next layers behind it.
    """
    for node in _nodes(graph):
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
        elif (nested := _graph(layer)) is not None:
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
    for node in _nodes(graph):
        arguments = node.arguments.keras_tensors
        places = [i for i, each in enumerate(arguments) if each is tensor]
        if not places:
            continue
        layer = node.operation
        behind = [_next_layers(graph, out, after) for out in node.outputs]
        if isinstance(layer, REARRANGING):
            found += [([layer, *between], last) for between, last in behind[0]]
        elif (nested := _graph(layer)) is not None:
            for i in places:
                found += _next_layers(nested, nested.inputs[i], behind)
        else:
            found.append(([], layer))
    return found


def _channel_axis(layer, rank):
    """Where a dropout layer of Keras has its feature maps."""
    data_format = getattr(layer, "data_format", None)
    if data_format is None and rank > 3:
        data_format = keras.config.image_data_format()
    return 1 if data_format == "channels_first" else rank - 1
