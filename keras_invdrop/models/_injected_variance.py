"""The variance that dropout injects, from the activities that reach it."""

import math
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from .._batches import Examples
from .._masks import keep_probability
from ..layers._shifted_dropout import ShiftedDropout
from ..layers.invariant_dropout import InvariantDropout
from ._dropout_sites import Activities
from ._dropout_sites import DropoutSite
from ._dropout_sites import all_activities
from ._dropout_sites import dropout_sites
from ._linear_layers import LINEAR
from ._linear_layers import array
from ._linear_layers import core_of
from ._linear_layers import settings_of
from ._linear_layers import without_bias

# Layers whose output, before bias and activation function, is linear in the
# input and in their `kernel`. Separable convolutions have two kernels.
LINEAR_IN_KERNEL = tuple(
    each
    for each in LINEAR
    if each not in (layers.SeparableConv1D, layers.SeparableConv2D)
)


def fraction_saved(before: float, after: float) -> float:
    """The fraction by which a variance fell; 0 if `before` is 0."""
    return 1 - after / before if before else 0.0


class Moments:
    """The mean of activities over examples, and the mean of their squares.

    Padding does not count.
    """

    def __init__(self):
        self.examples = 0
        self._count: Any = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, activities: Activities) -> None:
        """Adds a batch of activities, of shape `(batch, ...)`."""
        a = counted(activities)
        counts = activities.counts
        if counts is None:
            counts = np.ones((len(a), *[1] * (a.ndim - 1)), "bool")
        self.examples += len(a)
        self._count = self._count + counts.sum(axis=0)
        self._sum = self._sum + a.sum(axis=0)
        self._squares = self._squares + np.einsum("n...,n...->...", a, a)

    @property
    def weight(self) -> np.ndarray:
        """The fraction of the examples in which each activity counts."""
        return np.broadcast_to(self._count / self.examples, self._sum.shape)

    @property
    def mean(self) -> np.ndarray:
        """The mean of each activity; 0 where it never counts."""
        return self._sum / np.maximum(self._count, 1)

    @property
    def square(self) -> np.ndarray:
        """The mean square of each activity; 0 where it never counts."""
        return self._squares / np.maximum(self._count, 1)

    def variance(self) -> float:
        """The variance over examples, averaged over the activities."""
        weight = self.weight
        variances = np.maximum(self.square - self.mean**2, 0)
        return float(np.sum(weight * variances) / (np.sum(weight) or 1))


def counted(activities: Activities) -> np.ndarray:
    """The activities in double precision, 0 where they do not count."""
    values = activities.values.astype("float64")
    if activities.counts is None:
        return values
    return np.where(activities.counts, values, 0)


def moments_of(batches: Iterable[list[Activities]]) -> list[Moments]:
    """The moments at each site, from batches of `all_activities`."""
    moments: list[Moments] = []
    for batch in batches:
        moments = moments or [Moments() for _ in batch]
        for of_site, activities in zip(moments, batch, strict=True):
            of_site.add(activities)
    return moments


def means_for_shifts(
    sites: list[DropoutSite], moments: list[Moments]
) -> list[np.ndarray]:
    """The mean activity for each shift of each site.

    The mean is over all calls of the layer, and over the axes along which
    activities share a shift, which have size 1 in the result.
    """
    sums: dict[tuple, Any] = {}
    weights: dict[tuple, Any] = {}
    keys = []
    for site, of_site in zip(sites, moments, strict=True):
        mean, weight = of_site.mean, of_site.weight
        axes = tuple(axis - 1 for axis in site.shift_axes(mean.ndim + 1)[1:])
        total = np.sum(mean * weight, axes, keepdims=True)
        # Keras' Dropout may be called on activities of different shapes.
        keys.append((id(site.layer), total.shape))
        sums[keys[-1]] = sums.get(keys[-1], 0) + total
        weights[keys[-1]] = weights.get(keys[-1], 0) + np.sum(
            weight, axes, keepdims=True
        )
    # Without weights the sum is 0.
    return [
        sums[key] / np.where(weights[key] > 0, weights[key], 1) for key in keys
    ]


def means_by_site(
    model: keras.Model, x: Any
) -> list[tuple[DropoutSite, np.ndarray]]:
    """The sites in a model's graph, each with the means of its shifts.

    Args:
        model: A model with a graph of layers.
        x: Examples, as `model.predict` takes them.
    """
    sites = dropout_sites(model)
    batches = (
        all_activities(model, part) for part in Examples("x", x).parts(128)
    )
    means = means_for_shifts(sites, moments_of(batches))
    return [*zip(sites, means, strict=True)]


def present_shift(site: DropoutSite) -> np.ndarray:
    """The shift of a site's layer; 0 for a layer without a shift."""
    if isinstance(site.layer, ShiftedDropout):
        return array(site.layer.shift)
    return np.zeros(())


def injected_variances(
    sites: list[DropoutSite],
    linear: list[list["LinearPart"]],
    moments: list[Moments],
    batches: Callable[[], Iterable[list[Activities]]],
) -> list[list[np.ndarray]]:
    """Eq. 10 with the shift at zero, at present, and at minus the mean.

    Args:
        sites: The sites.
        linear: `linear_parts(site)` of each site.
        moments: The moments of the activities of each site.
        batches: Function that returns the batches of `all_activities`, called
            only if activities share a mask.

    Returns:
        The three variances for each site and next layer.
    """
    means = means_for_shifts(sites, moments)
    shifts = [
        (np.zeros(()), present_shift(site), -mean)
        for site, mean in zip(sites, means, strict=True)
    ]
    sharing = []
    found: list[list[np.ndarray]] = []
    for i, (site, of_site) in enumerate(zip(sites, moments, strict=True)):
        shape = of_site.mean.shape
        if math.prod(site.mask_shape((1, *shape))[1:]) < math.prod(shape):
            sharing.append(i)
            found.append([np.zeros(len(shifts[i])) for _ in linear[i]])
        else:
            found.append(
                [
                    _of_single_activities(part, of_site, shifts[i])
                    for part in linear[i]
                ]
            )
    for batch in batches() if sharing else ():
        for i in sharing:
            part_of_all = len(batch[i].values) / moments[i].examples
            for part, variances in zip(linear[i], found[i], strict=True):
                variances += part_of_all * np.array(
                    [
                        _of_groups(part, sites[i], batch[i], shift)
                        for shift in shifts[i]
                    ]
                )
    return [
        [
            _mask_variance(site.layer) * variances / (part.share(of_site) or 1)
            for part, variances in zip(parts, of_parts, strict=True)
        ]
        for site, of_site, parts, of_parts in zip(
            sites, moments, linear, found, strict=True
        )
    ]


def _mask_variance(layer):
    """The variance of the mask, including the scale in training."""
    keep = 1 - layer.rate
    if isinstance(layer, ShiftedDropout):
        keep = keep_probability(layer.rate)
    if isinstance(layer, InvariantDropout) and layer.scaling == "test":
        return keep * (1 - keep)
    return (1 - keep) / keep if keep > 0 else 0.0


def _of_single_activities(linear, moments, shifts):
    """Eq. 10 without the variance of the mask, averaged, for each shift.

    `sum_i w_i^2 y_i^2`, with the shifted activities `y`, is the layer's
    operation on squared activities with a squared kernel. This operation is
    linear, so its mean over the examples is its output for their mean.
    """
    mean, square = moments.mean, moments.square
    squares = [
        moments.weight * (square + 2 * shift * mean + shift**2)
        for shift in shifts
    ]
    # Rounding may make a sum of 0 negative.
    of_shifts = linear(np.maximum(squares, 0), squared=True)
    return of_shifts.reshape((len(shifts), -1)).mean(axis=1, dtype="float64")


def _of_groups(linear, site, activities, shift):
    """As `_of_single_activities`, for activities that share a mask.

    For the shifted activities `y` in groups `g` with one mask element each, the
    mean over examples and units of `sum_g (sum_{i in g} w_i y_i)^2`.
    """
    y = counted(activities._replace(values=activities.values + shift))
    mask_shape = site.mask_shape((1, *y.shape[1:]))[1:]
    groups = math.prod(mask_shape)
    group = np.arange(groups).reshape((1, *mask_shape))
    group = np.broadcast_to(group, (1, *y.shape[1:]))
    return sum(
        (linear(np.where(group == g, y, 0)) ** 2).mean() for g in range(groups)
    )


@dataclass(frozen=True)
class LinearPart:
    """The next layer's operation on dropped activities, without bias.

    Attributes:
        name: Name of the next layer, or None if the dropped activities are the
            model's output.
        apply: Function of the activities and of whether to square the kernel,
            which returns an array. It uses the layer's present kernel.
        keeps_padding: Whether padding in the activities stays padding in the
            result.
    """

    name: str | None
    apply: Callable[[np.ndarray, bool], np.ndarray]
    keeps_padding: bool

    def __call__(self, y, squared=False):
        return self.apply(y, squared)

    def received(self, activities: Activities) -> Activities:
        """The next layer's output for activities that are not dropped."""
        counts = activities.counts if self.keeps_padding else None
        return Activities(self(counted(activities)), counts)

    def share(self, moments: Moments) -> float:
        """The fraction of the results that are not padding."""
        return float(moments.weight.mean()) if self.keeps_padding else 1.0


def linear_parts(site: DropoutSite) -> list[LinearPart]:
    """The layers that follow a site, without bias and activation function."""
    if not site.next_layers:
        return [LinearPart(None, _unchanged, True)]
    return [_linear_part(between, layer) for between, layer in site.next_layers]


def _unchanged(y, squared):
    return y


def _linear_part(between, next_layer):
    layer = core_of(next_layer)
    # Match exact types; subclasses may override `call`.
    if type(layer) not in LINEAR_IN_KERNEL:
        return LinearPart(next_layer.name, _unchanged, True)
    if layer.quantization_mode is not None:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a model "
            f"whose weights are not quantized. Received: layer '{layer.name}' "
            f"with quantization_mode={layer.quantization_mode!r}"
        )
    # Zeros as initial weights leave the random generator unchanged.
    zeros = {x: "zeros" for x in settings_of(layer) if "_initializer" in x}
    twin = without_bias(layer, dtype="float32", **zeros)
    # Squares may be too large for the layers' own dtype.
    between = [
        type(each).from_config({**each.get_config(), "dtype": "float32"})
        for each in between
    ]

    def linear(y, squared):
        for rearrange in between:
            y = rearrange(y)
        if not twin.built:
            twin.build(y.shape)
        kernel = ops.convert_to_numpy(layer.kernel).astype("float32")
        twin.set_weights([kernel**2 if squared else kernel])
        return ops.convert_to_numpy(twin(y))

    return LinearPart(
        next_layer.name,
        linear,
        all(each.supports_masking for each in [*between, next_layer]),
    )
