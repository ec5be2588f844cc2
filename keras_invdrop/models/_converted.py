"""Layers whose inner dropout layers were converted, and their configs."""

import contextlib
import inspect
from functools import cache
from typing import Any

import keras

from .._keras import become
from .._keras import build_by_call
from .._keras import functional_like_constructor
from .._keras import graph_of
from .._keras import layers_in
from .._keras import list_again_for_pytorch
from .._keras import operations
from ..layers._dropout_by_shape import DropoutByShape
from ..layers.invariant_dropout import InvariantDropout
from ..layers.spatial_invariant_dropout import SpatialInvariantDropout
from ._dropping_layers import paths_of

KINDS = (DropoutByShape, InvariantDropout, SpatialInvariantDropout)


OF_PRESET = (
    "Model '{}' contains converted dropout, which KerasHub cannot load from a "
    "preset: a preset lacks the shapes of built layers, which the betas need. "
    "Save the model to a `.keras` file. To start from a preset, load the "
    "original preset and then convert the model."
)


@keras.saving.register_keras_serializable("keras_invdrop")
class Converted:
    """Mixed into the class of a layer in which dropout was converted.

    The original config creates a layer with Keras' own dropout. This config
    also contains the converted layers inside, by their numbers among the
    dropout layers inside.
    """

    original: type

    def get_config(self):
        converted = type(self)
        # `serialize_keras_object` also keeps how the layer is built.
        self.__class__ = converted.original
        try:
            layer = keras.saving.serialize_keras_object(self)
        finally:
            self.__class__ = converted
        layer.pop("compile_config", None)
        dropout = _dropout_in(self)
        return {
            "layer": layer,
            "dropout": {
                str(number): {
                    "class_name": type(part).__name__,
                    "config": part.get_config(),
                    "build_config": part.get_build_config(),
                }
                for number, part in enumerate(dropout)
                if type(part) in KINDS
            },
            "dropout_layers": len(dropout),
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        if len(_dropout_in(layer)) < config["dropout_layers"]:
            # The layer creates some of its inner layers when called.
            build_by_call(layer)
        dropout = dict(enumerate(_dropout_in(layer)))
        new = {}
        for number, made in config["dropout"].items():
            old = dropout.get(int(number))
            if isinstance(old, KINDS):
                continue  # created by a config inside this one
            if old is None:
                raise ValueError(
                    f"Layer '{layer.name}', a `{type(layer).__name__}`, was "
                    "saved with converted dropout inside it. It cannot be "
                    "loaded, since its class, or another backend or version, "
                    "now makes other layers."
                )
            (kind,) = (x for x in KINDS if x.__name__ == made["class_name"])
            if "build_config" not in made:
                raise ValueError(OF_PRESET.format(layer.name))
            shape = made["build_config"]["input_shape"]
            new[id(old)] = kind.from_config(made["config"]), shape
        exchange(layer, new)
        return layer


def _dropout_in(layer, seen=None):
    """The dropout layers inside a layer, in the same order on all backends.

    On PyTorch, KerasHub does not list attributes that were set before the
    graph, so the layers of the graph come first.
    """
    seen = {id(layer)} if seen is None else seen
    graph = graph_of(layer)
    parts = [] if graph is None else operations(graph)
    parts = [*parts, *layers_in(layer, include_self=False, recursive=False)]
    found = []
    for part in parts:
        if id(part) in seen or not isinstance(part, keras.Layer):
            continue
        seen.add(id(part))
        if isinstance(part, (*KINDS, keras.layers.Dropout)):
            found.append(part)
        else:
            found += _dropout_in(part, seen)
    return found


def exchange(root: keras.Layer, new: dict[int, Any]) -> None:
    """Replaces layers inside `root` by new layers.

    Args:
        root: A layer or model. It is changed.
        new: Dict from the id of a layer to a pair: the new layer, and the shape
            of its input.
    """
    start = "" if isinstance(root, keras.Model) else f"{root.name}/"
    replaced = [
        (path, layer)
        for path, layer in paths_of(root, start)
        if id(layer) in new
    ]
    # Build all layers first: if one cannot be built, `root` does not change.
    for path, layer in replaced:
        made, shape = new[id(layer)]
        with _scope(path):
            made.build(shape)
    for _, layer in replaced:
        become(layer, new[id(layer)][0])
    for part in layers_in(root):
        inside = layers_in(part, include_self=False)
        if not any(id(layer) in new for layer in inside):
            continue
        list_again_for_pytorch(part)
        if not (isinstance(part, Converted) or _is_made_of_its_graph(part)):
            kind: Any = type(part)
            part.__class__ = _converted_class(kind)


def _is_made_of_its_graph(model):
    """Whether Keras saves and restores a model as the graph of its layers."""
    if graph_of(model) is None:
        return False
    if not isinstance(model, keras.Sequential):
        return functional_like_constructor(type(model))
    spec, of_keras = (
        inspect.getfullargspec(cls.__init__)
        for cls in (type(model), keras.Sequential)
    )
    return spec.args == of_keras.args or bool(spec.varargs and spec.varkw)


@contextlib.contextmanager
def _scope(path):
    """Gives variables unique paths, under which PyTorch registers them."""
    with contextlib.ExitStack() as stack:
        for name in path.split("/")[:-1]:
            stack.enter_context(keras.name_scope(name))
        yield


def _save_to_preset(self, preset_dir, *args, **kwargs):
    """Refuses to write a preset that `from_preset` could not load."""
    raise ValueError(OF_PRESET.format(self.name))


@cache
def _converted_class(original):
    names = {"__module__": __name__, "original": original}
    if hasattr(original, "save_to_preset"):
        names["save_to_preset"] = _save_to_preset
    kind = type(original.__name__, (Converted, original), names)
    return keras.saving.register_keras_serializable(
        "keras_invdrop", "Converted"
    )(kind)
