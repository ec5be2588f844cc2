from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import tree

from ..layers.invariant_dropout import InvariantDropout
from ..layers.maxout import Maxout
from ..layers.running_average_dropout import RunningAverageDropout
from ..layers.shared_invariant_dropout import SharedInvariantDropout
from ..layers.shifted_dropout import ShiftedDropout
from ..layers.spatial_invariant_dropout import SpatialInvariantDropout
from ..random import keep_probability
from .copies import Copies
from .copies import compile_like
from .dropout_sites import channel_axis
from .graph import Names
from .graph import check_model
from .graph import graph_layers
from .graph import graph_of
from .graph import made_anew
from .graph import new_inputs
from .graph import run_through
from .linear_layers import LINEAR
from .linear_layers import array
from .linear_layers import core_of
from .linear_layers import evaluated
from .linear_layers import response_to
from .linear_layers import with_bias
from .linear_layers import without_bias

# All of these mean the class itself: a subclass may do anything.

# Layers that do nothing at inference.
VANISHING = (
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
SHIFTED = (
    InvariantDropout,
    RunningAverageDropout,
    SharedInvariantDropout,
    SpatialInvariantDropout,
)
# Layers that put elements into other places, repeat them or put zeros between.
REARRANGING = (
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Flatten,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
# Layers that take a mean over space, with weights that add up to 1 ...
AVERAGING = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)
# ... and those that take a maximum.
MAXIMUM = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
)
MERGING = (layers.Add, layers.Average, layers.Concatenate, layers.Subtract)


def fold(model: keras.Model) -> keras.Model:
    """Makes the mean network: the model for inference, without dropout.

    At inference an invariant dropout layer adds beta, and with
    `scaling="test"` multiplies by the probability `p` of keeping an activity.
    Both go into the kernel and the bias of the layers that come next. What is
    left are Keras' own layers, those of the network without dropout, and the
    output is that of `model`, up to rounding.

    - Beta goes into `Dense`, `EinsumDense`, convolutions of every kind and
      this library's `MaxoutDense`, `MaxoutConv2D` and `LocallyConnected2D`;
      through `Flatten`, `Reshape` and the like, pooling, `Add`, `Concatenate`
      and `BatchNormalization`, for each of several consumers.
    - Where a convolution pads its input with zeros, what beta adds is not the
      same near the border: the bias becomes a map, held by a `Rescaling`,
      one more layer, after the convolution.
    - Where something else follows, such as an activation function, beta stays
      as a `Rescaling` with the name of the dropout layer.
    - Standard dropout, which does nothing at inference, disappears.

    Args:
        model: A functional or sequential model that has been built, which may
            hold others. It is left as it is.

    Returns:
        A new functional model, in which the layers of nested models stand in
        the place of these, compiled with the loss and the metrics of `model`,
        to evaluate it. It is for inference: trained further, it would have no
        dropout, and its optimizer is Keras' default.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or has no
            graph of layers; if a dropout layer of this library is inside
            another layer, or is of a subclass that is not known.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((784,)),
    ...         keras_invdrop.InvariantDropout(0.2, beta_initializer="ones"),
    ...         keras.layers.Dense(100, activation="relu", name="hidden"),
    ...         keras.layers.Dropout(0.5),
    ...         keras.layers.Dense(10, name="classifier"),
    ...     ]
    ... )
    >>> folded = keras_invdrop.fold(model)
    >>> [layer.name for layer in folded.layers[1:]]
    ['hidden', 'classifier']

    Reference:

    - Ba, Xiong and Frey, 2014, section 2, Eq. 9
    """
    check_model(model)
    for layer in graph_layers(model):
        _check_layer(layer)
    graph = graph_of(model)
    inputs = new_inputs(graph)
    folding = _Folding(tensor.name for tensor in tree.flatten(inputs))
    values = run_through(
        graph, tree.map_structure(_Shifted, inputs), folding.call
    )
    outputs = tree.map_structure(folding.materialised, values)
    result = keras.Model(inputs, outputs, name=model.name)
    compile_like(result, model, folding.copies, trained=False)
    return result


def _check_layer(layer):
    if isinstance(layer, ShiftedDropout) and type(layer) not in SHIFTED:
        raise ValueError(
            f"Layer '{layer.name}' is a `{type(layer).__name__}`, a subclass "
            "of invariant dropout of which it is not known what it does at "
            "inference. It cannot be folded."
        )
    for part in layer._flatten_layers(include_self=False):
        if isinstance(part, ShiftedDropout):
            raise ValueError(
                f"Layer '{part.name}', a `{type(part).__name__}`, is inside "
                f"layer '{layer.name}', a `{type(layer).__name__}`, where it "
                "cannot be folded."
            )


@dataclass(frozen=True, eq=False)
class _Shifted:
    """Stands for a tensor of the old model: `scale * tensor + shift`.

    Attributes:
        tensor: A tensor of the new model, of the same shape.
        shift: Array of the shape of one example, with 1 on each axis along
            which it is constant; None for zero.
        scale: Float.
        name: Of the dropout layer that shifted.
    """

    tensor: Any
    shift: np.ndarray | None = None
    scale: float = 1.0
    name: str = ""

    @property
    def plain(self):
        return self.shift is None and self.scale == 1

    @property
    def rank(self):
        return len(self.tensor.shape)

    def constant(self):
        """The shift as an array, zero where there is none."""
        if self.shift is None:
            return np.zeros((1,) * (self.rank - 1))
        return self.shift

    def having(self, tensor, shift, scale=None):
        scale = self.scale if scale is None else scale
        return _Shifted(tensor, _compact(shift), scale, self.name)


def _compact(shift):
    """`shift` with 1 on each axis along which it is constant."""
    if shift is None or not np.any(shift):
        return None
    for axis in range(shift.ndim):
        first = shift.take([0], axis)
        if (shift == first).all():
            shift = first
    return shift


class _Folding:
    """Builds the new model, layer by layer."""

    def __init__(self, names):
        self.copies = Copies()
        self.names = Names()
        for name in names:
            self.names.unique(name)
        # What was made of a layer for one scale and shift, or of a value.
        # Each entry holds its key, so that no other object gets its id.
        self.made: dict[Any, tuple] = {}

    def call(self, layer, *args, **kwargs):
        """What stands for the output of `layer`, a `_Shifted`."""
        flat = tree.flatten((args, kwargs))
        values = [value for value in flat if isinstance(value, _Shifted)]
        kind = type(layer)
        if kind in VANISHING:
            return values[0]
        if kind in SHIFTED:
            return self.shifted(layer, values[0])
        result = None
        if not all(value.plain for value in values):
            if kind in MERGING:
                result = self.merged(layer, values)
            elif len(values) == 1:
                result = self.through(layer, values[0])
        return result or self.opaque(layer, args, kwargs)

    def through(self, layer, value):
        """What stands for the output of a layer of one input.

        None if the layer has to get what the old one got.
        """
        kind = type(layer)
        if kind in REARRANGING:
            return self.rearranged(layer, value)
        if _is_linear_activation(layer):
            return value.having(self.called(layer, value.tensor), value.shift)
        if kind in AVERAGING or kind in MAXIMUM:
            return self.pooled(layer, value)
        if kind is layers.BatchNormalization:
            return self.normalized(layer, value)
        if kind in LINEAR:
            return self.absorbed(layer, value)
        return None

    def materialised(self, value):
        """A tensor of the new model that has the value itself."""
        if value.plain:
            return value.tensor
        if id(value) not in self.made:
            tensor = self.rescaled(value, value.tensor.dtype)
            self.made[id(value)] = value, tensor
        return self.made[id(value)][1]

    def rescaled(self, value, dtype):
        rescaling = layers.Rescaling(
            value.scale,
            offset=value.constant().astype("float32"),
            name=self.names.unique(value.name),
            dtype=dtype,
        )
        return rescaling(value.tensor)

    def once(self, layer, value, make):
        """What `make` returns, once for each layer, scale and shift.

        Layers that were shared stay shared where they can.
        """
        shift = value.constant()
        key = id(layer), value.scale, shift.shape, shift.tobytes()
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def copy_of(self, layer):
        if id(layer) not in self.made:
            new = self.copies.of(layer)
            new.name = self.names.unique(layer.name)
            self.made[id(layer)] = layer, new
        return self.made[id(layer)][1]

    def called(self, layer, *args, **kwargs):
        """The output of a copy of `layer`, with its weights."""
        return self.copy_of(layer)(*args, **kwargs)

    def opaque(self, layer, args, kwargs):
        """A layer that gets what the old one got."""
        args, kwargs = tree.map_structure(
            lambda x: self.materialised(x) if isinstance(x, _Shifted) else x,
            (args, kwargs),
        )
        outputs = self.called(layer, *args, **kwargs)
        return tree.map_structure(_Shifted, outputs)

    def shifted(self, layer, value):
        """An invariant dropout layer, which does no more than to shift."""
        keep = 1.0
        if isinstance(layer, InvariantDropout) and layer.scaling == "test":
            keep = keep_probability(layer.rate)
        shift = value.constant() + array(layer.shift)
        new = _Shifted(
            value.tensor,
            _compact(keep * shift),
            keep * value.scale,
            layer.name,
        )
        is_float = keras.backend.is_float_dtype(value.tensor.dtype)
        if keep == 0 or not is_float:
            # Nothing is left to put into a kernel, or the layer also casts.
            return _Shifted(self.rescaled(new, layer.dtype_policy))
        return new

    def rearranged(self, layer, value):
        """A layer `L` that is linear: `L(s x + c) = s L(x) + L(c)`."""
        shift = None
        if value.shift is not None:
            shape = value.tensor.shape[1:]
            if None in shape:
                return None
            shift = evaluated(made_anew(layer), value.shift, shape)
        return value.having(self.called(layer, value.tensor), shift)

    def pooled(self, layer, value):
        """A layer that maps what is constant over space to itself."""
        channels = (
            channel_axis(getattr(layer, "data_format", None), value.rank) - 1
        )
        shift = value.constant()
        space = [axis for axis in range(shift.ndim) if axis != channels]
        if all(shift.shape[axis] == 1 for axis in space):
            tensor = self.called(layer, value.tensor)
            if len(tensor.shape) < value.rank:
                shift = shift.squeeze(tuple(space))
            return value.having(tensor, shift)
        # A mask would make a mean depend on what is masked.
        if type(layer) in AVERAGING and not _is_masked(value.tensor):
            return self.rearranged(layer, value)
        return None

    def normalized(self, layer, value):
        """Batch normalisation: `B(x) = gamma (x - mean) / deviation + beta`."""
        axis = layer.axis % value.rank - 1
        shift = value.constant()
        if all(n == 1 for i, n in enumerate(shift.shape) if i != axis):
            return _Shifted(
                self.once(layer, value, lambda: self.moved(layer, value))(
                    value.tensor
                )
            )
        # Along the other axes each element is treated alike.
        shape = list(shift.shape)
        shape[axis] = value.tensor.shape[axis + 1]
        # Affine: B(s x + c) = s B(x) + B(c) - s B(0).
        of_shift = evaluated(layer, shift, shape)
        of_zero = evaluated(layer, np.zeros_like(shift), shape)
        return value.having(
            self.called(layer, value.tensor), of_shift - value.scale * of_zero
        )

    def moved(self, layer, value):
        """A batch normalisation with statistics of what is not shifted."""
        new = Copies().of(layer)
        new.name = self.names.unique(layer.name)
        mean, variance = (
            array(layer.moving_mean),
            array(layer.moving_variance),
        )
        scale = value.scale
        new.moving_mean.assign((mean - value.constant().ravel()) / scale)
        new.moving_variance.assign(
            (variance + layer.epsilon) / scale**2 - layer.epsilon
        )
        return new

    def merged(self, layer, values):
        """A layer that adds its inputs, or puts them side by side."""
        if len({value.scale for value in values}) > 1:
            values = [
                value
                if value.scale == 1
                else _Shifted(self.materialised(value))
                for value in values
            ]
        shifted = [value for value in values if not value.plain]
        if not shifted or len({value.rank for value in values}) > 1:
            return None
        shifts = [value.constant() for value in values]
        if type(layer) is layers.Concatenate:
            axis = layer.axis % values[0].rank - 1
            sizes = [value.tensor.shape[axis + 1] for value in values]
            if axis < 0 or None in sizes:
                return None
            shift = _concatenated(shifts, axis, sizes)
        elif type(layer) is layers.Subtract:
            shift = shifts[0] - shifts[1]
        else:
            shift = sum(shifts)
            if type(layer) is layers.Average:
                shift = shift / len(shifts)
        tensor = self.called(layer, [value.tensor for value in values])
        return shifted[0].having(tensor, shift)

    def absorbed(self, layer, value):
        """A layer with a kernel `K` and a bias `b`.

        `K (s x + c) + b = (s K) x + (K c + b)`.
        """
        core = core_of(layer)
        quantized = getattr(core, "quantization_mode", None) is not None
        if quantized or getattr(core, "lora_enabled", False):
            return None
        chain = self.once(layer, value, lambda: self.linear(layer, core, value))
        if chain is None:
            return None
        tensor = value.tensor
        for new in chain:
            tensor = new(tensor)
        return _Shifted(tensor)

    def linear(self, layer, core, value):
        """What takes the place of a layer with a kernel: layers, in turn."""
        kernels = [array(weight) for weight in core.weights]
        bias = 0.0 if core.bias is None else kernels.pop()
        shape = value.tensor.shape
        response = response_to(value.constant(), core, kernels, shape)
        if response is None:
            return None
        kernels[-1] = kernels[-1] * value.scale
        # As in the layer itself, the last axes of both are the same.
        bias = response + bias
        settings = with_bias(core, bias)
        name = self.names.unique(layer.name)
        if settings is not None:
            config = {**layer.get_config(), **settings, "name": name}
            new = type(layer).from_config(config)
            new.build(shape)
            of_new = core_of(new).bias.shape
            full = (1,) * (bias.ndim - len(of_new)) + tuple(of_new)
            bias = np.broadcast_to(bias, full).reshape(of_new)
            new.set_weights([*kernels, bias])
            return [new]
        new = without_bias(core, name=name)
        new.build(shape)
        new.set_weights(kernels)
        if getattr(core, "data_format", None) == "channels_first":
            bias = np.moveaxis(bias, -1, 0)
        dtype = layer.dtype_policy
        chain = [
            new,
            layers.Rescaling(
                1.0,
                offset=bias.astype("float32"),
                name=self.names.unique(f"{layer.name}_bias"),
                dtype=dtype,
            ),
        ]
        if core is not layer:
            name = self.names.unique(f"{layer.name}_maxout")
            axis = layer.maxout.axis
            chain.append(Maxout(layer.pieces, axis, name=name, dtype=dtype))
        if layer.activation is not keras.activations.linear:
            name = self.names.unique(f"{layer.name}_activation")
            chain.append(
                layers.Activation(layer.activation, name=name, dtype=dtype)
            )
        return chain


def _is_linear_activation(layer):
    return (
        type(layer) is layers.Activation
        and layer.activation is keras.activations.linear
    )


def _is_masked(tensor):
    return getattr(tensor, "_keras_mask", None) is not None


def _concatenated(shifts, axis, sizes):
    """The shifts side by side along `axis`, on which they have `sizes`."""
    others = [shift.take([0], axis).shape for shift in shifts]
    shape = list(np.broadcast_shapes(*others))
    parts = []
    for shift, size in zip(shifts, sizes, strict=True):
        shape[axis] = size
        parts.append(np.broadcast_to(shift, shape))
    return np.concatenate(parts, axis)
