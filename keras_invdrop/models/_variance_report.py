import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from .._batches import Examples
from .._checks import check_positive_integer
from .._checks import invalid
from ._dropout_sites import all_activities
from ._dropout_sites import dropout_sites
from ._graph import check_callable
from ._injected_variance import Moments
from ._injected_variance import fraction_saved
from ._injected_variance import injected_variances
from ._injected_variance import linear_parts
from ._injected_variance import moments_of
from ._shifts import kept_by


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
    had 9 or more, networks of ReLU units made fewer errors. The guide "Would it
    help my model?" gives the figures and an exception. Training strengthens the
    signal and reduces the `excess`.

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
    sites = dropout_sites(model, examples.first(model))
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
