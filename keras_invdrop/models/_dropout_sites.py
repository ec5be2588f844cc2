"""Where a model drops activities, and the layers that come next."""

import warnings
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from .._batches import standardized
from .._checks import channel_axis
from .._checks import is_number
from .._keras import get_keras_mask
from .._keras import graph_of
from .._keras import in_inference
from .._keras import layers_in
from .._masks import mask_shape
from ..layers._shifted_dropout import ShiftedDropout
from ._graph import check_model
from ._graph import graph_layers
from ._graph import run_through
from ._places import OTHER_DROPOUT
from ._places import RATES

SPATIAL_DROPOUT = (
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# SpatialDropout1D, 2D and 3D are subclasses of Dropout.
DROPOUT = (layers.Dropout, ShiftedDropout)

# Layers that only move the elements of their input to other places.
REARRANGING = (layers.Flatten, layers.Permute, layers.Reshape)


@dataclass(frozen=True)
class DropoutSite:
    """One call of a dropout layer in a model.

    Attributes:
        layer: The dropout layer.
        next_layers: For each layer that takes the dropped activities, a pair:
            the layers in between that only rearrange the activities, and the
            layer itself. Empty where the dropped activities are the output
            of the model.
    """

    layer: keras.Layer
    next_layers: list[tuple[list[keras.Layer], keras.Layer]] = field(
        default_factory=list
    )

    def shift_axes(self, rank: int) -> tuple[int, ...]:
        """The axes, batch included, along which a shift is shared.

        For a layer of this library they are the axes along which its shift
        has size 1. A layer of Keras gets one shift per feature map where the
        input has axes of space or time.
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


class Activities(NamedTuple):
    """The activities that reach a site in inference mode.

    Attributes:
        values: The activities, of shape `(batch, ...)`.
        counts: Which activities count: an array of booleans that broadcasts
            to `values`, False for timesteps that are masked as padding. None
            where all activities count.
    """

    values: np.ndarray
    counts: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Dropped:
    """Stands for the output of a site, rearranged or as it was."""

    site: DropoutSite
    between: tuple[keras.Layer, ...] = ()


def dropout_sites(model: keras.Model) -> list[DropoutSite]:
    """Finds every call of a dropout layer, from the input on.

    Args:
        model: A functional or sequential model that is built. Calls in the
            models nested in it are found, too. It is not changed.

    Returns:
        A list of `DropoutSite`.

    Raises:
        ValueError: If `model` has no graph of layers.
    """
    graph = graph_of(check_model(model))
    warn_of_hidden_dropout(model)
    sites: list[DropoutSite] = []

    def call(layer, *args, **kwargs):
        given = [x for x in tree.flatten((args, kwargs)) if x is not None]
        # A layer that takes a tensor twice is one next layer.
        dropped = dict.fromkeys(x for x in given if isinstance(x, _Dropped))
        if isinstance(layer, REARRANGING):
            return next(
                (_Dropped(x.site, (*x.between, layer)) for x in dropped), None
            )
        for x in dropped:
            x.site.next_layers.append(([*x.between], layer))
        if isinstance(layer, DROPOUT):
            sites.append(DropoutSite(layer))
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
        The `Activities` of each of `dropout_sites(model)`.
    """
    graph = graph_of(check_model(model))
    found = []

    def call(layer, *args, **kwargs):
        if isinstance(layer, DROPOUT):
            found.append(_arriving(args[0] if args else kwargs["inputs"]))
        return in_inference(layer)(*args, **kwargs)

    run_through(graph, standardized(graph, x, "x"), call)
    return found


def _arriving(tensor):
    values = ops.convert_to_numpy(tensor)
    mask = get_keras_mask(tensor)
    if mask is None:
        return Activities(values, None)
    mask = ops.convert_to_numpy(mask).astype("bool")
    # The mask has one value for each timestep, whatever its features.
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return Activities(values, mask)


def warn_of_hidden_dropout(model, seen=DROPOUT):
    """Warns of dropout in `model` other than layers of the types in `seen`."""
    hidden = []
    for layer in graph_layers(model):
        reasons = []
        if isinstance(layer, OTHER_DROPOUT) and not isinstance(layer, seen):
            reasons.append(type(layer).__name__)
        for part in layers_in(layer):
            if isinstance(part, DROPOUT) and part is not layer and part.rate:
                reasons.append(f"layer '{part.path or part.name}'")
            for name in RATES:
                rate: Any = getattr(part, name, None)
                if is_number(rate) and rate > 0:
                    reasons.append(f"{name}={rate:g}")
        if reasons:
            # A layer and its cell may both report the same rate.
            reasons = list(dict.fromkeys(reasons))
            hidden.append(f"'{layer.name}' ({', '.join(reasons)})")
    if hidden:
        warnings.warn(
            "Dropout inside other layers is ignored and stays as it is: "
            + "; ".join(hidden),
            stacklevel=3,
        )
