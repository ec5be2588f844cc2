"""Draws samples of a model's outputs, each with its own masks."""

import inspect

import keras
import numpy as np
from keras import ops

from .._batches import mapped
from .._checks import invalid
from .._checks import of_all_axes
from .._keras import layers_in
from .._keras import own_trainable
from .._keras import seed_generators
from .._keras import seeded
from .._keras import set_own_trainable
from .._masks import draws_in_loops
from ._copies import Copies
from ._copies import copied
from ._dropping_layers import DROPOUT
from ._dropping_layers import OTHER_DROPOUT
from ._dropping_layers import drops
from ._dropping_layers import no_match
from ._dropping_layers import own_rates
from ._dropping_layers import paths_with_model
from ._observation import observed_to_draw

SAMPLED = (*DROPOUT, *OTHER_DROPOUT)
# Attributes that `Sampler` changes of these layers and of recurrent layers.
CHANGED = ("seed", "noise_shape", "unroll")


class Sampler(keras.Model):
    """Repeats each example and gives each repetition its own masks."""

    def __init__(self, model, is_chosen):
        super().__init__(name="monte_carlo", autocast=False)
        self.model = copied(model, compiled=False)
        observed = observed_to_draw(self.model)
        paths = {
            layer: path
            for path, layer in paths_with_model(self.model)
            if drops(layer) or layer in observed
        }
        if not paths:
            raise invalid(
                "model",
                "a model with at least one dropout layer; without dropout all "
                "samples are equal",
                model,
            )
        dropping = {id(x) for x, path in paths.items() if is_chosen(path)}
        if not dropping:
            raise ValueError(no_match("`filters`", paths.values()))
        # The attributes of each layer before the changes below.
        self.before: list[dict] = []
        self.trainable_before: list[bool] = []
        for layer in layers_in(self.model):
            self.before.append({})
            self.trainable_before.append(own_trainable(layer))
            is_recurrent = isinstance(layer, keras.layers.RNN)
            if is_recurrent or isinstance(layer, SAMPLED):
                known = [x for x in CHANGED if hasattr(layer, x)]
                self.before[-1] |= {x: getattr(layer, x) for x in known}
            if isinstance(layer, SAMPLED):
                layer.seed = 0  # see `seeded`
            for generator in seed_generators(layer):
                seeded(generator)
            # A recurrent layer draws masks when one of its cells does.
            parts = layers_in(layer) if is_recurrent else [layer]
            drawing = [x for x in parts if id(x) in dropping]
            # Keras' own cells draw their masks before the loop over time.
            in_loop = is_recurrent and not all(map(own_rates, drawing))
            if in_loop and not draws_in_loops:
                layer.unroll = True
            _in_mode(layer, bool(drawing))
        # Keeps moving averages unchanged.
        self.model.trainable = False
        self.repeats = 1
        self.run_eagerly = model.run_eagerly
        self.jit_compile = model.jit_compile
        self.built = True

    def as_it_was(self):
        """A copy of the model that draws no masks at inference."""
        # A copy of `in_mode` would call itself.
        calls = [(x, vars(x).pop("call", None)) for x in layers_in(self.model)]
        try:
            model = Copies().of(self.model)
        finally:
            for layer, call in calls:
                if call is not None:
                    vars(layer)["call"] = call
        for layer, before, trainable in zip(
            layers_in(model), self.before, self.trainable_before, strict=True
        ):
            set_own_trainable(layer, trainable)
            for name, value in before.items():
                setattr(layer, name, value)
        return model

    def call(self, inputs):
        repeated = mapped(lambda x: ops.repeat(x, self.repeats, axis=0), inputs)
        return self.model(repeated, training=False)

    def set_repeats(self, repeats):
        if repeats != self.repeats:
            self.repeats = repeats
            self.make_predict_function(force=True)

    def set_seeds(self, seed):
        """Restarts every generator, each from its own seed."""
        generators = [
            generator
            for layer in layers_in(self)
            for generator in seed_generators(layer)
        ]
        sequence = np.random.SeedSequence(seed % 2**64)
        seeds = sequence.generate_state(len(generators))
        for generator, value in zip(generators, seeds, strict=True):
            # 31 bits fit the signed seeds of all backends.
            generator.state.assign([int(value) >> 1, 0])


def _in_mode(layer, training):
    """Fixes the mode of a layer, whatever `training` its caller passes."""
    call = layer.call
    signature = inspect.signature(call)
    if "training" not in signature.parameters:
        return

    noise_shape = getattr(layer, "noise_shape", None)

    def in_mode(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.arguments["training"] = training
        if noise_shape is not None:
            # Draw one mask per row.
            rank = len(given.args[0].shape)
            mask = of_all_axes(noise_shape, rank)
            layer.noise_shape = (None, *mask[1:])
        return call(*given.args, **given.kwargs)

    vars(layer)["call"] = in_mode
