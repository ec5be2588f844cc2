import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops

from ..batches import count_examples
from ..batches import parts
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
        return fraction_saved(self.at_present, self.at_best)

    def __str__(self):
        return (
            f"{self.layer} (rate {self.rate:g}) -> {self.next_layer}: "
            f"variance {self.at_zero:.4g} with the shift at zero, "
            f"{self.at_present:.4g} now, {self.at_best:.4g} at minus the mean "
            f"activity ({abs(self.saving):.0%} "
            f"{'less' if self.saving >= 0 else 'more'} than now)"
        )


def fraction_saved(before: float, after: float) -> float:
    """The fraction of a variance that is gone; 0 where there was none."""
    return 1 - after / before if before else 0.0


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
    count_examples(x)

    # Anew at each call, so that they are never all in memory.
    def activities(site):
        return map(site.activities, parts(x, batch_size))

    return [
        row
        for site in sites
        for row in injected_variances(
            site,
            linear_parts(site),
            moments_of(activities(site)),
            partial(activities, site),
        )
    ]


class Moments(NamedTuple):
    """What Eq. 10 needs of the activities, but where they share a mask.

    Attributes:
        mean: The mean of each activity over the examples.
        square: The mean of its square.
        examples: Over how many.
    """

    mean: np.ndarray
    square: np.ndarray
    examples: int


def moments_of(batches: Iterable[np.ndarray]) -> Moments:
    """The moments of batches of activities of shape `(batch, ...)`."""
    total, square, examples = np.zeros(()), np.zeros(()), 0
    for batch in batches:
        a = batch.astype("float64")
        total = total + a.sum(axis=0)
        square = square + np.einsum("n...,n...->...", a, a)
        examples += len(a)
    return Moments(total / examples, square / examples, examples)


def mean_for_each_shift(site: DropoutSite, mean: np.ndarray) -> np.ndarray:
    """The mean activity along the axes that share a shift, of size 1 then."""
    shared = tuple(axis - 1 for axis in site.shift_axes(mean.ndim + 1)[1:])
    return mean.mean(axis=shared, keepdims=True)


def present_shift(site: DropoutSite) -> np.ndarray:
    """What the layer adds to each activity; 0 where it adds nothing."""
    if isinstance(site.layer, ShiftedDropout):
        return ops.convert_to_numpy(site.layer.shift).astype("float64")
    return np.zeros(())


def injected_variances(
    site: DropoutSite,
    linear: list[tuple[str | None, Callable]],
    moments: Moments,
    activities: Callable[[], Iterable[np.ndarray]],
) -> Iterator[InjectedVariance]:
    """The lines of the report for one site.

    Args:
        site: The site.
        linear: `linear_parts(site)`.
        moments: The moments of the activities.
        activities: Function that returns the batches of activities. Only
            where activities share a mask are they needed.
    """
    best = -mean_for_each_shift(site, moments.mean)
    shifts = (np.zeros(()), present_shift(site), best)
    shape = moments.mean.shape
    mask_shape = site.mask_shape((1, *shape))
    groups = math.prod(mask_shape[1:])
    for next_layer, layer in linear:
        if groups == math.prod(shape):
            variances = _of_single_activities(layer, moments, shifts)
        else:
            variances = np.zeros(len(shifts))
            for a in activities():
                variances += [
                    _of_groups(layer, a + shift, mask_shape)
                    * len(a)
                    / moments.examples
                    for shift in shifts
                ]
        yield InjectedVariance(
            site.layer.name,
            next_layer,
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


def _of_single_activities(linear, moments, shifts):
    """Eq. 10 without the variance of the mask, averaged, for each shift.

    `sum_i w_i^2 y_i^2`, with the shifted activities `y`, is the layer's own
    operation on squared activities with a squared kernel; and as that is
    linear, its mean over the examples is what it makes of their mean.
    """
    mean, square, _ = moments
    squares = [square + 2 * shift * mean + shift**2 for shift in shifts]
    # A sum that ought to be 0 may come out below it.
    of_shifts = linear(np.maximum(squares, 0), squared=True)
    return of_shifts.reshape((len(shifts), -1)).mean(axis=1, dtype="float64")


def _of_groups(linear, y, mask_shape):
    """The same for shifted activities `y`, of shape `(batch, ...)`.

    With the activities in a group `g` sharing an element of the mask, it is
    the mean over examples and units of `sum_g (sum_{i in g} w_i y_i)^2`.
    """
    groups = math.prod(mask_shape[1:])
    group = np.arange(groups).reshape((1, *mask_shape[1:]))
    group = np.broadcast_to(group, (1, *y.shape[1:]))
    return sum(
        (linear(np.where(group == g, y, 0)) ** 2).mean() for g in range(groups)
    )


def linear_parts(site: DropoutSite) -> list[tuple[str | None, Callable]]:
    """What follows a site: the names of the next layers, and what they do.

    Each is without bias and activation function, and has the weights that the
    layer has when it is called: a function of the dropped activities and of
    whether to square the kernel, which returns an array.
    """
    if not site.next_layers:
        return [(None, _linear_part([], None))]
    return [
        (layer.name, _linear_part(between, layer))
        for between, layer in site.next_layers
    ]


def _linear_part(between, layer):
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
    # Zeros take no random numbers from anyone.
    zeros = {x: "zeros" for x in layer.get_config() if "_initializer" in x}
    twin = without_bias(layer, dtype="float32", **zeros)

    def linear(y, squared=False):
        for rearrange in between:
            y = rearrange(y)
        if not twin.built:
            twin.build(y.shape)
        kernel = ops.convert_to_numpy(layer.kernel).astype("float32")
        twin.set_weights([kernel**2 if squared else kernel])
        return ops.convert_to_numpy(twin(y))

    return linear
