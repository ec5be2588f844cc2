import math
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from ..layers.invariant_dropout import InvariantDropout
from ..layers.shifted_dropout import ShiftedDropout
from ..random import keep_probability
from ..validation import check_positive_integer
from .dropout_sites import DropoutSite
from .dropout_sites import dropout_sites
from .linear_layers import core_of
from .linear_layers import without_bias

# Layers whose output, before the activation function, is linear in the input
# with the weights that the layer calls its kernel.
LINEAR = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)


@dataclass(frozen=True)
class InjectedVariance:
    """The variance that one dropout layer injects into the next layer's input.

    Each figure is the variance over masks (Eq. 10, summed over the
    activities that a unit of the next layer receives), averaged over the
    examples and over the units of the next layer.

    Attributes:
        layer: Name of the dropout layer.
        next_layer: Name of the layer that receives the dropped activities,
            or None where they are the model's output.
        rate: Fraction of the activities that is dropped.
        at_zero: The variance with the shift at zero, as in `Dropout`.
        at_present: The variance with the shift as it is.
        at_best: The variance with the shift at minus the mean activity.
    """

    layer: str
    next_layer: str | None
    rate: float
    at_zero: float
    at_present: float
    at_best: float

    @property
    def saving(self) -> float:
        """The fraction of today's variance that the best shift takes away."""
        if self.at_present == 0:
            return 0.0
        return 1 - self.at_best / self.at_present

    def __str__(self):
        return (
            f"{self.layer} (rate {self.rate:g}) -> {self.next_layer}: "
            f"variance {self.at_zero:.4g} with the shift at zero, "
            f"{self.at_present:.4g} now, {self.at_best:.4g} at minus the mean "
            f"activity ({abs(self.saving):.0%} "
            f"{'less' if self.saving >= 0 else 'more'} than now)"
        )


def variance_report(
    model: keras.Model, x: Any, batch_size: int = 128
) -> list[InjectedVariance]:
    """Measures how much variance each dropout layer injects, and could.

    Would invariant dropout help a model? Dropping is a regulariser by the
    variance that it gives to the input of the next layer, and part of that
    variance only reflects where the activities have their zero. For a unit
    that receives the activities `a` through the weights `w`, with the shift
    `beta` and the probability of keeping an activity `p`, it is

        sum_i w_i^2 (a_i + beta_i)^2 p (1 - p)                      (Eq. 10)

    (divided by `p^2` where the layer scales in training). The report gives it
    for `beta = 0`, for the present `beta` and for minus the mean activity.
    Nothing is trained, and `model` is left as it is.

    The mean is taken for each shift that there is: over the batch and the
    shared axes of a layer of this library, and one per feature map, as in
    `SharedInvariantDropout`, for a layer of Keras. It is the best shift where
    each has its own activity; where activities of different weights share one,
    it need not be, and can even be worse than the present one.

    Every `Dropout`, `SpatialDropout1D`, `2D`, `3D` and every dropout layer of
    this library is looked at. Activities that share a mask, as in
    `SpatialDropout`, vary together, and their terms are summed before they
    are squared. `Flatten`, `Reshape` and `Permute` between the dropout layer
    and the next layer are followed. Where the next layer is not a `Dense`,
    `EinsumDense`, `Conv`, `ConvTranspose`, `DepthwiseConv` or maxout layer,
    its weights are taken as 1 and the figure is the variance of the dropped
    activities themselves.

    Args:
        model: A functional or sequential model, which may hold others.
        x: Array, or the list or dict of arrays that the model takes. Examples
            on which to measure; some hundreds are enough.
        batch_size: Positive integer. Examples per forward pass.

    Returns:
        A list of `InjectedVariance`, from the input on: one per call of a
        dropout layer and layer that receives its output. Printed, each is a
        sentence.

    Raises:
        ValueError: If `model` has no graph of layers, no dropout layer or
            quantized weights, or if `x` has no examples.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((2,)),
    ...         keras.layers.Dropout(0.5, name="drop"),
    ...         keras.layers.Dense(1, kernel_initializer="ones", name="dense"),
    ...     ]
    ... )
    >>> x = np.array([[1.0, 3.0], [3.0, 3.0]])
    >>> for row in keras_invdrop.variance_report(model, x):
    ...     print(row)
    drop (rate 0.5) -> dense: variance 14 with the shift at zero, 14 now, \
    1 at minus the mean activity (93% less than now)

    Reference:

    - Ba, Xiong and Frey, 2014, section 4 and Eq. 10
    """
    check_positive_integer("batch_size", batch_size)
    sites = dropout_sites(model)
    if not sites:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a model "
            f"with a dropout layer. Received: model={model}"
        )
    shapes: list[tuple[int, ...]] = [
        getattr(array, "shape", ()) for array in keras.tree.flatten(x)
    ]
    sizes = {shape[0] if len(shape) else 0 for shape in shapes}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "Invalid value received for argument `x`. Expected arrays with "
            "the same number of examples, at least one. Received: shapes "
            + ", ".join(str(tuple(shape)) for shape in shapes)
        )
    examples = sizes.pop()

    def batches():
        for start in range(0, examples, batch_size):
            stop = start + batch_size
            yield keras.tree.map_structure(lambda a: a[start:stop], x)  # noqa: B023

    return [row for site in sites for row in _site_report(site, batches)]


def _site_report(
    site: DropoutSite, batches: Callable[[], Iterator[Any]]
) -> Iterator[InjectedVariance]:
    def activities():
        for batch in batches():
            yield site.activities(batch).astype("float64")

    total, examples = 0.0, 0
    for a in activities():
        total, examples = total + a.sum(axis=0), examples + len(a)
    mean = np.asarray(total / examples)
    shared = tuple(axis - 1 for axis in site.shift_axes(mean.ndim + 1)[1:])
    present = 0.0
    if isinstance(site.layer, ShiftedDropout):
        present = ops.convert_to_numpy(site.layer.shift).astype("float64")
    shifts = (0.0, present, -mean.mean(axis=shared, keepdims=True))
    for between, next_layer in site.next_layers or [([], None)]:
        linear = _linear_part(between, next_layer)
        variances = np.zeros(len(shifts))
        for a in activities():
            variances += [
                _sum_over_masks(linear, a + shift, site.mask_shape(a.shape))
                * len(a)
                / examples
                for shift in shifts
            ]
        yield InjectedVariance(
            site.layer.name,
            next_layer.name if next_layer is not None else None,
            site.layer.rate,
            *(_mask_variance(site.layer) * variances).tolist(),
        )


def _mask_variance(layer):
    """The variance of the mask, with the scale that the layer gives it."""
    keep = 1 - layer.rate
    if isinstance(layer, ShiftedDropout):
        keep = keep_probability(layer.rate)
    if isinstance(layer, InvariantDropout) and layer.scaling == "test":
        return keep * (1 - keep)
    return (1 - keep) / keep if keep > 0 else 0.0


def _sum_over_masks(linear, y, mask_shape):
    """Eq. 10 without the variance of the mask, averaged.

    `y` are shifted activities `(batch, ...)`. With the activities in a group
    `g` sharing an element of the mask, it is the mean over examples and units
    of `sum_g (sum_{i in g} w_i y_i)^2`.
    """
    groups = math.prod(mask_shape[1:])
    if groups == math.prod(y.shape[1:]):
        # Each activity is a group: sum_i w_i^2 y_i^2 is the layer's own
        # operation on squared activities with a squared kernel.
        return linear(y**2, squared=True).mean()
    group = np.arange(groups).reshape((1, *mask_shape[1:]))
    group = np.broadcast_to(group, (1, *y.shape[1:]))
    return sum(
        (linear(np.where(group == g, y, 0)) ** 2).mean() for g in range(groups)
    )


def _linear_part(between, layer):
    """What follows a dropout layer, without bias and activation function.

    Returns a function of the dropped activities and of whether to square the
    kernel, which returns the array that `layer` would put out, in float32.
    """
    layer = core_of(layer)
    # Not a subclass, which may do anything.
    if type(layer) not in LINEAR:
        return lambda y, squared=False: y
    if layer.quantization_mode is not None:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a model "
            f"whose weights are not quantized. Received: layer '{layer.name}' "
            f"with quantization_mode={layer.quantization_mode!r}"
        )
    twin = without_bias(layer, dtype="float32")
    kernel = ops.convert_to_numpy(layer.kernel).astype("float32")

    def linear(y, squared=False):
        for rearrange in between:
            y = rearrange(y)
        if not twin.built:
            twin.build(y.shape)
        twin.set_weights([kernel**2 if squared else kernel])
        return ops.convert_to_numpy(twin(y))

    return linear
