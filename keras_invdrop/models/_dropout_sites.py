"""Where a model drops activities, and the layers that come next."""

import warnings
from collections import Counter
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from .._batches import standardized
from .._checks import spatial_axes
from .._keras import graph_of
from .._masks import mask_shape
from ..layers._shifted_dropout import ShiftedDropout
from ._dropping_layers import DROPOUT
from ._dropping_layers import SPATIAL_DROPOUT
from ._dropping_layers import candidates
from ._dropping_layers import paths_of
from ._graph import calls as graph_calls
from ._graph import check_callable
from ._graph import check_model
from ._graph import run_through
from ._observation import adds_up
from ._observation import batch_statistics
from ._observation import counting
from ._observation import untrained_normalization
from ._observation import watched

# Layers that only move the elements of their input to other places.
MOVING = (layers.Flatten, layers.Permute, layers.Reshape)


@dataclass(frozen=True)
class DropoutSite:
    """One call of a dropout layer in a model.

    Calls inside other layers on inputs of the same shape count as one.

    Attributes:
        layer: The dropout layer.
        name: The layer's name, or its path inside another layer.
        next_layers: A pair for each layer that takes the dropped activities:
            the layers in between that only rearrange the activities, and the
            layer itself. Empty if the dropped activities are the output of the
            model, or inside another layer.
        adds_up: Whether the activities are attention scores.
    """

    layer: keras.Layer
    name: str
    next_layers: list[tuple[list[keras.Layer], keras.Layer]] = field(
        default_factory=list
    )
    adds_up: bool = False

    def shift_axes(self, rank: int) -> tuple[int, ...]:
        """The axes, batch included, along which a shift is shared.

        For a layer of this library these are the axes along which its shift has
        size 1. A layer of Keras gets one shift per feature map if the input has
        axes of space or time, and one per head for attention scores.
        """
        if isinstance(self.layer, ShiftedDropout):
            shape = self.layer.shift.shape
            shared = [i for i, size in enumerate(shape, start=1) if size == 1]
        elif self.adds_up:
            shared = [rank - 2, rank - 1]
        else:
            shared = self._spatial_axes(rank)
        return (0, *shared)

    def _spatial_axes(self, rank: int) -> list[int]:
        return spatial_axes(getattr(self.layer, "data_format", None), rank)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask for activities of shape `(batch, ...)`."""
        rank = len(shape)
        noise_shape = self.layer.noise_shape
        if isinstance(self.layer, SPATIAL_DROPOUT):
            spatial = self._spatial_axes(rank)
            noise_shape = [1 if i in spatial else None for i in range(rank)]
        return mask_shape(noise_shape, shape)


class Activities(NamedTuple):
    """The activities that reach a site in inference mode.

    Batch normalisation whose moving statistics are still the initial ones uses
    the statistics of the batch, as in `calibrate`.

    Attributes:
        values: The activities, of shape `(batch, ...)`.
        counts: Boolean array that broadcasts to `values`, False for timesteps
            masked as padding. None if all activities count.
    """

    values: np.ndarray
    counts: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Dropped:
    """A placeholder for the output of a site, perhaps rearranged."""

    site: DropoutSite
    between: tuple[keras.Layer, ...] = ()


def dropout_sites(model: keras.Model, x: Any = None) -> list[DropoutSite]:
    """Finds every call of a dropout layer, from the input on.

    Args:
        model: A model that has been built. Calls in nested models are found,
            too.
        x: A batch of the input, as `model.predict` takes it. Without `x` the
            calls inside other layers are not found.

    Returns:
        A list of `DropoutSite`.

    Raises:
        ValueError: If `model` has no graph of layers and `x` is not given.
    """
    graph = graph_of(check_model(model) if x is None else check_callable(model))
    in_graph = [] if graph is None else _sites_in_graph(graph)
    if x is None:
        return in_graph
    _warn_of_others(model)
    left = {id(site): site for site in in_graph}
    sites = []
    for (path, layer, _), calls in _observed(model, x).items():
        site = next((s for s in left.values() if s.layer is layer), None)
        if site is None:
            site = DropoutSite(layer, path)
        left.pop(id(site), None)
        sites.append(replace(site, name=path, adds_up=adds_up(calls[0].values)))
    return sites


def _sites_in_graph(graph):
    sites: list[DropoutSite] = []

    def call(layer, *args, **kwargs):
        given = [x for x in tree.flatten((args, kwargs)) if x is not None]
        # A layer that takes a tensor twice counts once.
        dropped = dict.fromkeys(x for x in given if isinstance(x, _Dropped))
        if isinstance(layer, MOVING):
            return next(
                (_Dropped(x.site, (*x.between, layer)) for x in dropped), None
            )
        for x in dropped:
            x.site.next_layers.append(([*x.between], layer))
        if isinstance(layer, DROPOUT):
            sites.append(DropoutSite(layer, layer.name))
            return _Dropped(sites[-1])
        return [None] * len(tree.flatten(layer.output))

    run_through(graph, [None] * len(graph.inputs), call)
    return sites


def all_activities(model: keras.Model, x: Any) -> list[Activities]:
    """The activities that reach each site, from a single forward pass.

    Args:
        model: A model that `dropout_sites` takes.
        x: A batch of its input, as `model.predict` takes it.

    Returns:
        The `Activities` of each of `dropout_sites(model, x)`.
    """
    return [_joined(calls) for calls in _observed(model, x).values()]


def _observed(model, x):
    """The activities at each call, grouped by site."""
    x = standardized(model, x, "x")
    graph = graph_of(model)
    in_graph = set()
    if graph is not None:
        in_graph = {id(layer) for layer, _ in graph_calls(graph)}
    paths = {
        layer: path
        for path, layer in paths_of(model)
        if isinstance(layer, DROPOUT) and (id(layer) in in_graph or layer.rate)
    }
    found: dict[tuple, list[Activities]] = {}
    calls: Counter[keras.Layer] = Counter()

    def note(layer, inputs):
        values = ops.convert_to_numpy(inputs)
        kind: Any = values.shape[1:]
        if id(layer) in in_graph:
            kind = calls[layer]
            calls[layer] += 1
        mask = counting(inputs, x)
        if mask is not None:
            mask = ops.convert_to_numpy(mask).astype("bool")
        site = paths[layer], layer, kind
        found.setdefault(site, []).append(Activities(values, mask))

    # The scope discards the updates of the moving statistics.
    with (
        keras.StatelessScope(),
        watched(model, paths, note),
        batch_statistics(untrained_normalization(model)),
    ):
        model(x, training=False)
    return found


def _joined(calls):
    """The activities of several calls, concatenated along the batch axis."""
    if len(calls) == 1:
        return calls[0]
    values, counts = zip(*calls, strict=True)
    known = all(x is not None for x in counts)
    return Activities(
        np.concatenate(values), np.concatenate(counts) if known else None
    )


def _warn_of_others(model):
    """Warns of dropout in `model` other than dropout layers."""
    others = [
        f"'{candidate.path}': {candidate.obstacle}"
        for candidate in candidates(model)
        if candidate.obstacle
    ]
    if others:
        warnings.warn(
            f"Dropout of other kinds is ignored: {'; '.join(others)}",
            stacklevel=4,
        )
