"""Tensors that differ by a shift, and the layers that pass the shift on."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from .._checks import spatial_axes
from .._keras import get_keras_mask
from .._masks import keep_probability
from ..layers._shifted_dropout import ShiftedDropout
from ..layers.invariant_dropout import InvariantDropout
from ..layers.running_average_dropout import RunningAverageDropout
from ..layers.shared_invariant_dropout import SharedInvariantDropout
from ..layers.spatial_invariant_dropout import SpatialInvariantDropout
from ._linear_layers import array
from ._linear_layers import evaluated
from ._linear_layers import finest_dtype

# Match exact types; subclasses may override `call`.

# Layers without effect at inference.
VANISHING = (
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# Layers that add a shift at inference and may multiply by a constant.
SHIFTED = (
    InvariantDropout,
    RunningAverageDropout,
    SharedInvariantDropout,
    SpatialInvariantDropout,
)
# Layers that move or repeat elements, or put zeros around them.
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
# Layers that take a mean over space, with weights that add up to 1.
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
# Layers that take a maximum over space.
MAXIMUM = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
)
MERGING = (layers.Add, layers.Average, layers.Concatenate, layers.Subtract)


@dataclass(frozen=True, eq=False)
class Shifted:
    """Represents a tensor of a model that equals `scale * tensor + shift`.

    Attributes:
        tensor: A tensor of another model, of the same shape.
        shift: Array of the shape of one example, with size 1 on each axis
            along which the shift is constant; None for zero.
        scale: Float.
        sources: The dropout layers that added to the shift, first to last.
    """

    tensor: Any
    shift: np.ndarray | None = None
    scale: float = 1.0
    sources: tuple[ShiftedDropout, ...] = ()

    @property
    def plain(self) -> bool:
        return self.shift is None and self.scale == 1

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def rank(self) -> int:
        return len(self.tensor.shape)

    @property
    def masked(self) -> bool:
        return get_keras_mask(self.tensor) is not None

    def constant(self) -> np.ndarray:
        """The shift as an array; zeros if `shift` is None."""
        if self.shift is None:
            return np.zeros((1,) * (self.rank - 1))
        return self.shift


def compact(shift):
    """`shift` with size 1 on each constant axis; None for zeros."""
    if shift is None or not np.any(shift):
        return None
    for axis in range(shift.ndim):
        first = shift.take([0], axis)
        if (shift == first).all():
            shift = first
    return shift


def sources_of(values):
    """The dropout layers that shifted any of the values, each once."""
    return tuple(dict.fromkeys(x for value in values for x in value.sources))


def kept_by(layer):
    """The factor by which a layer in `SHIFTED` multiplies at inference."""
    if isinstance(layer, InvariantDropout) and layer.scaling == "test":
        return keep_probability(layer.rate)
    return 1.0


def carried(layer, values):
    """The output's shift for a layer that passes on the shifts of its inputs.

    If the layer maps the inputs `x` to `y`, it maps the inputs `s x + c`, with
    a common scale `s`, to `s y + shift`.

    Args:
        layer: A layer.
        values: List of `Shifted`, the layer's inputs, with the same scale.

    Returns:
        Array for `Shifted.shift`, or zeros of another shape. None if the output
        may not have this form.
    """
    kind = type(layer)
    if kind in MERGING:
        return _merged(layer, values)
    if len(values) != 1:
        return None
    (value,) = values
    if kind in VANISHING:
        return value.constant()
    if kind is layers.Activation:
        is_linear = layer.activation is keras.activations.linear
        return value.constant() if is_linear else None
    if kind is layers.BatchNormalization:
        return _normalized(layer, value)
    if kind in AVERAGING or kind in MAXIMUM:
        return _pooled(layer, value)
    return _rearranged(layer, value) if kind in REARRANGING else None


def has_one_for_each_feature(shift, layer, rank):
    """Whether batch normalisation can include the shift in its mean."""
    features = layer.axis % rank - 1
    return all(n == 1 for i, n in enumerate(shift.shape) if i != features)


def _rearranged(layer, value):
    """The shift after a linear layer `L`: `L(s x + c) = s L(x) + L(c)`."""
    if value.shift is None:
        return np.zeros(1)
    shape = value.tensor.shape[1:]
    if None in shape:
        return None
    # Ignore the layer's dtype policy: only the weight should round the shift.
    dtype = finest_dtype()
    if (
        type(layer) is layers.AveragePooling3D
        and keras.backend.backend() == "tensorflow"
    ):
        dtype = "float32"  # TensorFlow has no other kernel on a CPU.
    config = {**layer.get_config(), "dtype": dtype}
    return evaluated(type(layer).from_config(config), value.shift, shape)


def _pooled(layer, value):
    """The shift after pooling, which preserves constants over space."""
    shift = value.constant()
    axes = spatial_axes(getattr(layer, "data_format", None), value.rank)
    space = [axis - 1 for axis in axes]
    if all(shift.shape[axis] == 1 for axis in space):
        keeps_rank = getattr(layer, "keepdims", True)
        return shift if keeps_rank else shift.squeeze(tuple(space))
    # With a mask the mean would depend on the masked timesteps.
    if type(layer) in AVERAGING and not value.masked:
        return _rearranged(layer, value)
    return None


def _normalized(layer, value):
    """The shift after `B(x) = gamma (x - mean) / deviation + beta`.

    Batch normalisation is affine: `B(s x + c) = s B(x) + B(c) - s B(0)`.
    """
    shape = [1] * (value.rank - 1)
    shape[layer.axis % value.rank - 1] = -1
    mean, variance = (
        array(x).reshape(shape)
        for x in (layer.moving_mean, layer.moving_variance)
    )
    factor = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        factor = factor * array(layer.gamma).reshape(shape)
    rest = 1 - value.scale
    shift = factor * (value.constant() - rest * mean)
    if layer.center:
        shift = shift + rest * array(layer.beta).reshape(shape)
    return shift


def _merged(layer, values):
    """The shift after a layer that adds or concatenates its inputs."""
    if len({value.rank for value in values}) > 1:
        return None
    shifts = [value.constant() for value in values]
    if type(layer) is layers.Concatenate:
        axis = layer.axis % values[0].rank - 1
        sizes = [value.tensor.shape[axis + 1] for value in values]
        if axis < 0 or None in sizes:
            return None
        return _concatenated(shifts, axis, sizes)
    if type(layer) is layers.Subtract:
        return shifts[0] - shifts[1]
    shift = sum(shifts)
    return shift / len(shifts) if type(layer) is layers.Average else shift


def _concatenated(shifts, axis, sizes):
    """The shifts concatenated along `axis`, each with its size of `sizes`."""
    others = [shift.take([0], axis).shape for shift in shifts]
    shape = list(np.broadcast_shapes(*others))
    parts = []
    for shift, size in zip(shifts, sizes, strict=True):
        shape[axis] = size
        parts.append(np.broadcast_to(shift, shape))
    return np.concatenate(parts, axis)
