"""Changes the shifts of a model and keeps its predictions."""

from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import activations
from keras import layers
from keras import ops

from .._keras import layers_in
from .._keras import nodes
from ..layers._shifted_dropout import ShiftedDropout
from ._linear_layers import LINEAR
from ._linear_layers import array
from ._linear_layers import as_bias
from ._linear_layers import core_of
from ._linear_layers import fixed_kernel
from ._linear_layers import kernels_of
from ._linear_layers import response_to
from ._shifts import SHIFTED
from ._shifts import Shifted
from ._shifts import carried
from ._shifts import compact
from ._shifts import has_one_for_each_feature
from ._shifts import kept_by
from ._shifts import sources_of


def compensated(graph, means):
    """Sets each shift to minus the mean, and compensates for the change.

    The next bias or moving mean absorbs the constant that the new shift adds.
    If none can, the layer keeps its old shift.

    Args:
        graph: A functional model without nested models. Its weights change, but
            its outputs at inference do not.
        means: Dict from each dropout layer to set to the mean of its input in
            the unchanged `graph`, of the shape of the shift.

    Returns:
        Dict from each of these layers whose shift stayed to the obstacle.
    """
    kept = {
        node.operation: "it is to stay"
        for node in nodes(graph)
        if isinstance(node.operation, ShiftedDropout)
        and node.operation not in means
    }
    while True:
        walk = _Walk(graph, means, kept)
        if not walk.obstacles:
            walk.apply()
            return {x: why for x, why in kept.items() if x in means}
        # Keeping these shifts changes the inputs of later layers: start again.
        kept |= walk.obstacles


class _Walk:
    """Computes what new shifts would add throughout a model, without changes.

    Each tensor of the original model is the tensor of the model with the new
    shifts plus a constant, the `shift` of a `Shifted`.
    """

    def __init__(self, graph, means, kept):
        self.means = means
        self.kept = kept
        self.obstacles: dict[ShiftedDropout, str] = {}
        # Why a layer on the way could not absorb the shift of a source.
        self.passed_on: dict[ShiftedDropout, str] = {}
        self.shifts: dict[ShiftedDropout, np.ndarray] = {}
        # The change of a layer's bias or moving mean, for each call.
        self.takes: dict[Any, list] = {}
        self.calls = Counter(node.operation for node in nodes(graph))
        # Layers inside other layers, which call them on tensors that are not in
        # the graph, and one of these others.
        self.around = {
            part: node.operation
            for node in nodes(graph)
            if isinstance(node.operation, keras.Layer)
            for part in layers_in(node.operation, include_self=False)
        }
        self.follow(graph)

    def follow(self, graph):
        values: dict[int, Shifted] = {}
        for node in nodes(graph):
            inputs = [values[id(x)] for x in node.input_tensors]
            shift, sources = None, ()
            if not node.is_input:
                shift, sources = self.passed(node.operation, inputs)
            for x in node.outputs:
                values[id(x)] = Shifted(x, compact(shift), sources=sources)
        for layer, takes in self.takes.items():
            if any(not np.array_equal(x, takes[0][0]) for x, _ in takes):
                self.block(
                    [value for _, value in takes],
                    f"'{layer.name}' is called on tensors with other shifts",
                )
        self.block(
            [values[id(x)] for x in graph.outputs], "the model's output follows"
        )

    def passed(self, layer, inputs):
        """The shift of the output of a layer, and its sources."""
        nothing = None, ()
        if isinstance(layer, ShiftedDropout):
            return self.dropout(layer, inputs[0])
        if type(layer) in LINEAR:
            shift = self.linear(layer, inputs[0])
        elif type(layer) is layers.BatchNormalization:
            shift = self.normalized(layer, inputs[0])
        elif all(value.plain for value in inputs):
            return nothing
        else:
            shift = carried(layer, inputs)
        if shift is None:
            name, kind = layer.name, type(layer).__name__
            self.block(inputs, f"'{name}' (`{kind}`) follows")
            return nothing
        return shift, sources_of(inputs)

    def block(self, values, reason):
        """Records that nothing compensates for the shifts of `values`."""
        for value in values:
            if value.shift is not None:
                for layer in value.sources:
                    why = self.passed_on.get(layer, reason)
                    self.obstacles.setdefault(layer, why)

    def dropout(self, layer, value):
        """The shift behind a dropout layer, whose own shift acts as a bias."""
        if type(layer) not in SHIFTED:
            kind = type(layer).__name__
            reason = f"what a `{kind}` does at inference is not known"
            self.block([value], reason)
            if layer not in self.kept:
                self.obstacles[layer] = reason
            return None, ()
        shift, before = value.constant(), array(layer.shift)
        if layer in self.kept:
            return kept_by(layer) * shift, value.sources
        shared = tuple(
            axis
            for axis, n in enumerate(before.shape)
            if n == 1 and shift.shape[axis] > 1
        )
        if shift.any() and (self.calls[layer] > 1 or (shared and value.masked)):
            # The new mean at this layer does not follow from the old one.
            self.block([value], f"the dropout layer '{layer.name}' follows")
            shift, shared = np.zeros_like(before), ()
        # The mean of the input with the new shifts of earlier layers.
        mean = self.means[layer] - shift.mean(axis=shared, keepdims=True)
        # As the weight rounds it: the bias compensates for the rest.
        new = array(ops.cast(-mean, layer.shift.dtype))
        new = np.broadcast_to(new, before.shape)
        self.shifts[layer] = new
        sources = (*value.sources, layer) if shared else (layer,)
        return kept_by(layer) * (shift + before - new), sources

    def normalized(self, layer, value):
        shift = value.constant()
        fits = has_one_for_each_feature(shift, layer, value.rank)
        moved = shift.ravel() if fits else 0.0
        self.take(layer, np.broadcast_to(moved, layer.moving_mean.shape), value)
        return np.zeros(1) if fits else carried(layer, [value])

    def linear(self, layer, value):
        """The shift behind a layer with a kernel, whose bias may absorb it."""
        core = core_of(layer)
        if value.plain:
            if core.bias is not None:
                self.take(layer, np.zeros(core.bias.shape), value)
            return np.zeros(1)
        if fixed_kernel(layer):
            return None
        kernels, shape = kernels_of(core), value.tensor.shape
        response = response_to(value.constant(), core, kernels, shape)
        if response is None:
            return None
        if core.bias is not None:
            taken = as_bias(response, core.bias.shape)
            fits = taken is not None
            self.take(
                layer, taken if fits else np.zeros(core.bias.shape), value
            )
            if fits:
                return np.zeros(1)
        reason = "has no bias" if core.bias is None else "would need a bias map"
        for source in value.sources:
            self.passed_on.setdefault(source, f"'{layer.name}' {reason}")
        if core is not layer or layer.activation is not activations.linear:
            return None
        if getattr(core, "data_format", None) == "channels_first":
            response = np.moveaxis(response, -1, 0)
        return response

    def take(self, layer, array, value):
        if layer in self.around and array.any():
            outer = self.around[layer].name
            self.block([value], f"'{layer.name}' is also inside '{outer}'")
        self.takes.setdefault(layer, []).append((array, value))

    def apply(self):
        """Changes the weights."""
        for layer, shift in self.shifts.items():
            layer.set_shift(shift)
        for layer, ((taken, _), *_) in self.takes.items():
            if not taken.any():
                continue
            if type(layer) is layers.BatchNormalization:
                statistics = [layer.moving_mean]
                if getattr(layer, "renorm", False):  # Keras 3.10 has none
                    statistics.append(layer.renorm_mean)
                for mean in statistics:
                    mean.assign(array(mean) - taken)
            else:
                bias = core_of(layer).bias
                bias.assign(array(bias) + taken)
