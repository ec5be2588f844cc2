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
from .._checks import invalid
from .._masks import keep_probability
from ..layers._shifted_dropout import ShiftedDropout
from ..layers.invariant_dropout import InvariantDropout
from ._dropout_sites import Activities
from ._dropout_sites import DropoutSite
from ._dropout_sites import all_activities
from ._dropout_sites import dropout_sites
from ._graph import check_callable
from ._linear_layers import LINEAR
from ._linear_layers import core_of
from ._linear_layers import without_bias
from ._shifts import kept_by

# Layers whose output, before bias and activation function, is linear in the
# input and in their `kernel`. Separable convolutions have two kernels.
LINEAR_IN_KERNEL = tuple(
    each
    for each in LINEAR
    if each not in (layers.SeparableConv1D, layers.SeparableConv2D)
)


class _Compared:
    """The saving by the best shift, of variances at three shifts."""

    @property
    def saving(self: Any) -> float:
        """The fraction of the present variance that the best shift removes."""
        return fraction_saved(self.at_present, self.at_best)

    @property
    def excess(self: Any) -> float:
        """The variance that the best shift removes, as a multiple of `of_data`.

        Infinite if the dropped activities do not vary between examples.
        """
        difference = self.at_present - self.at_best
        if not self.of_data:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / self.of_data

    def _sentence(self: Any) -> str:
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
        layer: Name of the dropout layer, or its path inside another layer.
        next_layer: Name of the layer that receives the dropped activities. None
            if they are the model's output, or inside a layer.
        rate: Fraction of the activities that the layer drops.
        at_zero: The variance with the shift at zero, as in `Dropout`.
        at_present: The variance with the present shift.
        at_best: The variance with the shift at minus the mean activity.
        of_data: The variance of the next layer's input over the examples at
            inference, averaged over its units: the signal to compare with this
            noise.
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


class VarianceReport(list[InjectedVariance], _Compared):
    """The rows of `variance_report`, and their sums.

    `saving` and `excess` refer to the sums, and so measure the gain for the
    whole model, with each row weighted by its variance.

    Attributes:
        at_zero: The sum of the rows' variances with the shifts at zero.
        at_present: The sum with the present shifts.
        at_best: The sum with the shifts at minus the mean activity.
        of_data: The sum of the variances over the examples.
    """

    def __init__(self, rows: Iterable[InjectedVariance] = ()):
        super().__init__(rows)

    @property
    def at_zero(self) -> float:
        return sum(row.at_zero for row in self)

    @property
    def at_present(self) -> float:
        return sum(row.at_present for row in self)

    @property
    def at_best(self) -> float:
        return sum(row.at_best for row in self)

    @property
    def of_data(self) -> float:
        return sum(row.of_data for row in self)

    def __str__(self):
        return "\n".join([*map(str, self), f"in all: {self._sentence()}"])


def fraction_saved(before: float, after: float) -> float:
    """The fraction by which a variance fell; 0 if `before` is 0."""
    return 1 - after / before if before else 0.0


def variance_report(
    model: keras.Model, x: Any, batch_size: int = 128
) -> VarianceReport:
    """Measures how much variance dropout injects, now and at other shifts.

    Dropout regularises by adding variance to the input of the next layer, but
    part of this variance depends only on where the zero of an activity lies.
    For a unit that receives the activities `a` through the weights `w`, with
    the shift `beta` and the keep probability `p`, the variance is

        sum_i w_i^2 (a_i + beta_i)^2 p (1 - p)                      (Eq. 10)

    (divided by `p^2` if the layer scales in training). The report gives the
    variance for `beta = 0`, for the present `beta` and for minus the mean
    activity. The function trains nothing and does not change `model`.

    The report does not measure the error. Removing most of little noise has
    little effect, so the `excess` of a row compares the variance that the best
    shift removes with the variance of the next layer's input over the examples.
    If each row of an untrained model had an `excess` of about 2 or less, the
    effect of invariant dropout was smaller than the spread over seeds; if a row
    had 6 or more, invariant dropout made fewer errors, in all cases but one.
    The guide "Would it help my model?" gives the figures and the exception.
    Training strengthens the signal and reduces the `excess`.

    Each shift has one mean: for a layer of this library, the mean over the
    batch, the calls and the shared axes of the layer; for a layer of Keras, one
    mean per feature map, as in `SharedInvariantDropout`. Minus this mean is the
    best shift if each activity has its own shift. If activities with different
    weights share a shift, another shift may be better, even the present one.

    The report covers every `Dropout`, `SpatialDropout1D`, `2D`, `3D` and every
    dropout layer of this library, at any depth; a warning names other kinds of
    dropout, such as the masks that an LSTM draws itself. Inside a layer, such
    as the block of a transformer, the next layer is unknown, and the figures
    are those of the dropped activities. Attention scores get one mean per head.
    Activities that share a mask, as in `SpatialDropout`, vary together, so the
    report sums their terms before squaring. It excludes timesteps masked as
    padding, by Keras' masks or by an input named `padding_mask` as in KerasHub.
    It follows `Flatten`, `Reshape` and `Permute` between the dropout layer and
    the next layer. If the next layer is not a `Dense`, `EinsumDense`, `Conv`,
    `ConvTranspose`, `DepthwiseConv`, `LocallyConnected2D` or maxout layer, the
    report takes its weights as 1 and gives the variance of the dropped
    activities themselves.

    Batch normalisation whose moving statistics are still the initial ones
    uses the statistics of each batch, as in training and in `calibrate`.

    Args:
        model: A model that has been built, which may contain others.
        x: Array, or a list, tuple or dict of arrays, as `model.predict` takes
            them. Examples on which to measure; a few hundred are enough.
        batch_size: Positive integer. Examples per forward pass, which holds the
            activities of all dropout layers in memory. Untrained batch
            normalisation depends on the batches: use the same size as for
            `calibrate`, which has the same default.

    Returns:
        A `VarianceReport`: a list of `InjectedVariance`, in order from the
        input, one per call of a dropout layer and layer that receives its
        output, and their sums. Calls inside other layers count as one. Each
        prints as a sentence.

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
    examples.check(check_callable(model))
    sites = dropout_sites(model, examples[[0]])
    if not sites:
        raise invalid("model", "a model with a dropout layer", model)

    # Recomputed at each call, so that memory never holds all activities.
    def batches():
        for part in examples.parts(batch_size):
            yield all_activities(model, part)

    linear = [linear_parts(site) for site in sites]
    # The moments at the next layers, in addition to those at the sites.
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
            *[*values.tolist(), kept_by(site.layer) ** 2 * of_part.variance()],
        )
        for site, of_site, parts in zip(sites, variances, received, strict=True)
        for values, (part, of_part) in zip(of_site, parts, strict=True)
    )


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
    model: keras.Model, x: Any, batch_size: int = 128
) -> list[tuple[DropoutSite, np.ndarray]]:
    """The sites in a model's graph, each with the means of its shifts.

    Args:
        model: A model with a graph of layers.
        x: Examples, as `model.predict` takes them.
        batch_size: Examples in a forward pass.
    """
    sites = dropout_sites(model)
    batches = (
        all_activities(model, part)
        for part in Examples("x", x).parts(batch_size)
    )
    means = means_for_shifts(sites, moments_of(batches))
    return [*zip(sites, means, strict=True)]


def present_shift(site: DropoutSite) -> np.ndarray:
    """The shift of a site's layer; 0 for a layer without a shift."""
    if isinstance(site.layer, ShiftedDropout):
        return ops.convert_to_numpy(site.layer.shift).astype("float64")
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
        return Activities(self.apply(counted(activities), False), counts)

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
