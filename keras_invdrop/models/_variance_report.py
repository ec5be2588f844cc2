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
from .._checks import check_positive_integer
from .._keras import graph_of
from .._masks import keep_probability
from ..layers._shifted_dropout import ShiftedDropout
from ..layers.invariant_dropout import InvariantDropout
from ._dropout_sites import Activities
from ._dropout_sites import DropoutSite
from ._dropout_sites import all_activities
from ._dropout_sites import dropout_sites
from ._graph import check_callable
from ._linear_layers import core_of
from ._linear_layers import without_bias

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


class _Compared:
    """Variances that are injected at three shifts, and what the best saves."""

    at_zero: float
    at_present: float
    at_best: float
    of_data: float

    @property
    def saving(self) -> float:
        """The fraction of today's variance that the best shift takes away."""
        return fraction_saved(self.at_present, self.at_best)

    @property
    def excess(self) -> float:
        """How many times `of_data` the best shift takes away.

        Infinite where what is dropped does not depend on the example.
        """
        difference = self.at_present - self.at_best
        if not self.of_data:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / self.of_data

    def _sentence(self):
        return (
            f"variance {self.at_zero:.4g} with the shift at zero, "
            f"{self.at_present:.4g} now, {self.at_best:.4g} at minus the mean "
            f"activity ({abs(self.saving):.0%} "
            f"{'less' if self.saving >= 0 else 'more'} than now, by "
            f"{abs(self.excess):.2g} times the variance over the examples)"
        )


@dataclass(frozen=True)
class InjectedVariance(_Compared):
    """The variance that one dropout layer injects into the next layer's input.

    Each figure is the variance over masks (Eq. 10, summed over the
    activities that a unit of the next layer receives), averaged over the
    examples and over the units of the next layer.

    Attributes:
        layer: Name of the dropout layer; its path if it is inside another.
        next_layer: Name of the layer that receives the dropped activities,
            or None where they are the model's output, or inside a layer.
        rate: Fraction of the activities that is dropped.
        at_zero: The variance with the shift at zero, as in `Dropout`.
        at_present: The variance with the shift as it is.
        at_best: The variance with the shift at minus the mean activity.
        of_data: The variance of the next layer's input over the examples at
            inference, averaged over its units: the signal in that noise.
    """

    layer: str
    next_layer: str | None
    rate: float
    at_zero: float
    at_present: float
    at_best: float
    of_data: float

    def __str__(self):
        to = f" -> {self.next_layer}" if self.next_layer else ""
        return f"{self.layer} (rate {self.rate:g}){to}: {self._sentence()}"


@dataclass(init=False, repr=False, eq=False)
class VarianceReport(list[InjectedVariance], _Compared):
    """The rows of `variance_report`, and their sums.

    `saving` and `excess` are those of the sums: what the model would gain as
    a whole, in one number. In them a row counts as much as its variance.

    Attributes:
        at_zero: The sum of the rows' variances with the shifts at zero.
        at_present: The sum with the shifts as they are.
        at_best: The sum with the shifts at minus the mean activity.
        of_data: The sum of the variances over the examples.
    """

    at_zero: float
    at_present: float
    at_best: float
    of_data: float

    def __init__(self, rows: Iterable[InjectedVariance]):
        super().__init__(rows)
        self.at_zero = sum(row.at_zero for row in self)
        self.at_present = sum(row.at_present for row in self)
        self.at_best = sum(row.at_best for row in self)
        self.of_data = sum(row.of_data for row in self)

    def __str__(self):
        return "\n".join([*map(str, self), f"in all: {self._sentence()}"])


def fraction_saved(before: float, after: float) -> float:
    """The fraction of a variance that is gone; 0 where there was none."""
    return 1 - after / before if before else 0.0


def variance_report(
    model: keras.Model, x: Any, batch_size: int = 128
) -> VarianceReport:
    """Measures how much variance each dropout layer injects, and could.

    Dropout regularises by adding variance to the input of the next layer, and
    part of that variance only depends on which value of an activity is called
    zero. For a unit that receives the activities `a` through the weights `w`,
    with the shift `beta` and the probability `p` of keeping an activity, the
    variance is

        sum_i w_i^2 (a_i + beta_i)^2 p (1 - p)                      (Eq. 10)

    (divided by `p^2` where the layer scales in training). The report states it
    for `beta = 0`, for the present `beta` and for minus the mean activity.
    Nothing is trained, and `model` is not changed.

    The report does not measure the error. Removing most of the noise means
    little where there is little noise: the `excess` of a row compares the
    variance that the best shift removes with the variance of the next layer's
    input over the examples. Where an untrained model had an `excess` of about
    2 or less in each row, the effect of invariant dropout was smaller than
    the spread over seeds; where a row had 6 or more, invariant dropout made
    fewer errors in all cases but one. The guide "Would it help my model?" has
    the figures, and the exception. Training makes the signal stronger, and
    the `excess` smaller.

    There is one mean for each shift: for a layer of this library it is over
    the batch, the calls and the shared axes of the layer; for a layer of
    Keras there is one per feature map, as in `SharedInvariantDropout`. Minus
    this mean is the best shift if each activity has a shift of its own. Where
    activities with different weights share a shift, it need not be the best,
    and can even be worse than the present one.

    The report covers every `Dropout`, `SpatialDropout1D`, `2D`, `3D` and every
    dropout layer of this library, at any depth; a warning names dropout of
    other kinds, such as the masks that an LSTM draws itself. What comes next
    inside a layer, such as the block of a transformer, is not known: there
    the figures are those of the dropped activities. Attention scores get a
    mean for each head. Activities that share a mask, as in
    `SpatialDropout`, vary together, and their terms are summed before they
    are squared. Timesteps that are masked as padding, by Keras' masks or by an
    input called `padding_mask` as in KerasHub, are left out, and inject
    nothing. `Flatten`, `Reshape` and `Permute` between the dropout layer
    and the next layer are followed. Where the next layer is not a `Dense`,
    `EinsumDense`, `Conv`, `ConvTranspose`, `DepthwiseConv` or maxout layer,
    its weights are taken as 1 and the figure is the variance of the dropped
    activities themselves.

    Batch normalisation whose moving statistics are still the initial ones
    uses the statistics of each batch, as in training and in `calibrate`.

    Args:
        model: A model that has been built, which may contain others.
        x: Array, or a list, tuple or dict of arrays, as `model.predict` takes
            them. Examples on which to measure; some hundreds are enough.
        batch_size: Positive integer. Examples per forward pass, in which the
            activities of all these layers are held in memory. `calibrate`
            has the same default: in other batches the statistics of
            untrained batch normalisation are others.

    Returns:
        A `VarianceReport`: a list of `InjectedVariance`, from the input on,
        one per call of a dropout layer and layer that receives its output,
        and their sums. All calls inside other layers count as one. Printed,
        each is a sentence.

    Raises:
        ValueError: If `model` is not built, has no dropout layer or
            quantized weights, or if `x` has no examples or is not what the
            model takes.

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
    1 at minus the mean activity (93% less than now, by 13 times the \
    variance over the examples)

    Reference:

    - Ba, Xiong and Frey, 2014, section 4 and Eq. 10
    """
    check_positive_integer("batch_size", batch_size)
    examples = Examples("x", x)
    graph = graph_of(check_callable(model))
    if graph is not None:
        examples.check(graph)
    sites = dropout_sites(model, examples[[0]])
    if not sites:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a model "
            f"with a dropout layer. Received: model={model}"
        )

    # Computed again at each call, so that they are never all in memory.
    def batches():
        for part in examples.parts(batch_size):
            yield all_activities(model, part)

    linear = [linear_parts(site) for site in sites]
    # What arrives at the next layers, beside what arrives at the sites.
    received = [[(part, Moments()) for part in parts] for parts in linear]

    def observed():
        for batch in batches():
            for activities, of_site in zip(batch, received, strict=True):
                for part, of_part in of_site:
                    of_part.add(part.received(activities))
            yield batch

    moments = moments_of(observed())
    variances = injected_variances(sites, linear, moments, batches)
    return VarianceReport(
        InjectedVariance(
            site.name,
            part.name,
            site.layer.rate,
            *[*values.tolist(), _scale(site.layer) ** 2 * of_part.variance()],
        )
        for site, of_site, parts in zip(sites, variances, received, strict=True)
        for values, (part, of_part) in zip(of_site, parts, strict=True)
    )


class Moments:
    """The mean of activities over examples, and the mean of their squares.

    Activities that do not count, since they are padding, are left out.
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
    """For each site the mean activity for each shift.

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
    # A sum of no weights is 0.
    return [
        sums[key] / np.where(weights[key] > 0, weights[key], 1) for key in keys
    ]


def present_shift(site: DropoutSite) -> np.ndarray:
    """What the layer adds to each activity; 0 where it adds nothing."""
    if isinstance(site.layer, ShiftedDropout):
        return ops.convert_to_numpy(site.layer.shift).astype("float64")
    return np.zeros(())


def injected_variances(
    sites: list[DropoutSite],
    linear: list[list["LinearPart"]],
    moments: list[Moments],
    batches: Callable[[], Iterable[list[Activities]]],
) -> list[list[np.ndarray]]:
    """Eq. 10 with the shift at zero, as it is, and at minus the mean.

    Args:
        sites: The sites.
        linear: For each of them `linear_parts(site)`.
        moments: For each of them the moments of the activities.
        batches: Function that returns the batches of `all_activities`. Only
            where activities share a mask are they needed.

    Returns:
        For each site and next layer the three variances.
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
    """The variance of the mask, with the scale that the layer gives it."""
    keep = 1 - layer.rate
    if isinstance(layer, ShiftedDropout):
        keep = keep_probability(layer.rate)
    if isinstance(layer, InvariantDropout) and layer.scaling == "test":
        return keep * (1 - keep)
    return (1 - keep) / keep if keep > 0 else 0.0


def _scale(layer):
    """The factor of the layer at inference."""
    if isinstance(layer, InvariantDropout) and layer.scaling == "test":
        return keep_probability(layer.rate)
    return 1.0


def _of_single_activities(linear, moments, shifts):
    """Eq. 10 without the variance of the mask, averaged, for each shift.

    `sum_i w_i^2 y_i^2`, with the shifted activities `y`, is the layer's own
    operation on squared activities with a squared kernel; and as that is
    linear, its mean over the examples is what it makes of their mean.
    """
    mean, square = moments.mean, moments.square
    squares = [
        moments.weight * (square + 2 * shift * mean + shift**2)
        for shift in shifts
    ]
    # A sum that ought to be 0 may come out below it.
    of_shifts = linear(np.maximum(squares, 0), squared=True)
    return of_shifts.reshape((len(shifts), -1)).mean(axis=1, dtype="float64")


def _of_groups(linear, site, activities, shift):
    """The same where activities share elements of the mask, for one shift.

    With the shifted activities `y` in a group `g` sharing an element, it is
    the mean over examples and units of `sum_g (sum_{i in g} w_i y_i)^2`.
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
    """What the next layer does to dropped activities, without its bias.

    Attributes:
        name: Name of the next layer, or None where the dropped activities are
            the model's output.
        apply: Function of the activities and of whether to square the kernel,
            which returns an array. The kernel is the one that the layer has
            when it is called.
        keeps_padding: Whether what is padding in the activities is padding in
            the result.
    """

    name: str | None
    apply: Callable[[np.ndarray, bool], np.ndarray]
    keeps_padding: bool

    def __call__(self, y, squared=False):
        return self.apply(y, squared)

    def received(self, activities: Activities) -> Activities:
        """What the next layer makes of activities that are not dropped."""
        counts = activities.counts if self.keeps_padding else None
        return Activities(self.apply(counted(activities), False), counts)

    def share(self, moments: Moments) -> float:
        """The fraction of the results that are not padding."""
        return float(moments.weight.mean()) if self.keeps_padding else 1.0


def linear_parts(site: DropoutSite) -> list[LinearPart]:
    """What follows a site: without bias and activation function."""
    if not site.next_layers:
        return [LinearPart(None, _unchanged, True)]
    return [_linear_part(between, layer) for between, layer in site.next_layers]


def _unchanged(y, squared):
    return y


def _linear_part(between, next_layer):
    layer = core_of(next_layer)
    # Match exact types; subclasses may override `call`.
    if type(layer) not in LINEAR:
        return LinearPart(next_layer.name, _unchanged, True)
    if layer.quantization_mode is not None:
        raise ValueError(
            "Invalid value received for argument `model`. Expected a model "
            f"whose weights are not quantized. Received: layer '{layer.name}' "
            f"with quantization_mode={layer.quantization_mode!r}"
        )
    # Zeros draw no random numbers, which would change later ones.
    zeros = {x: "zeros" for x in layer.get_config() if "_initializer" in x}
    twin = without_bias(layer, dtype="float32", **zeros)

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
