"""Plots of what invariant dropout learns.

Each function draws into the axes `ax`, or into new axes, and returns the axes.
No plot relies on colour alone, and colour-blind readers can distinguish the
colours.

This module needs matplotlib and scipy, which the extra `plots` installs.
"""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import keras
import numpy as np
from keras import ops

from ._checks import channel_axis
from ._checks import check_broadcast
from ._checks import check_fraction
from ._checks import check_noise_shape
from ._checks import check_seed
from ._checks import invalid
from ._checks import is_shape
from ._extras import missing
from ._masks import dropout_mask
from ._masks import mask_shape
from ._masks import seed_generator
from ._statistics import correlation
from ._statistics import mean_and_interval
from .layers._shifted_dropout import ShiftedDropout
from .models._variance_report import InjectedVariance

try:
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import LogLocator
except ModuleNotFoundError as error:
    raise missing("keras_invdrop.plots", error.name, "plots") from None

__all__ = [
    "plot_beta",
    "plot_errors",
    "plot_image",
    "plot_mask",
    "plot_mean_against_shift",
    "plot_variance_report",
]

# The palette of Okabe and Ito without yellow, which is hard to see on white,
# and with grey in place of black.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#666666",
)
MARKERS = "osD^vPX"
LOOKS = tuple(zip(COLOURS, MARKERS, strict=True))
# Methods that look the same in every plot.
METHOD_LOOKS = {
    "calibrated": LOOKS[0],
    "standard": LOOKS[1],
    "running average": LOOKS[2],
    "from 0 on hidden layers": LOOKS[3],
    "invariant from 0": LOOKS[4],
    "from 0 on the input": LOOKS[5],
    "no dropout": LOOKS[6],
}
# Brightness and hatching distinguish the bars in black and white.
BARS = {
    "shift at zero": {"color": "#F0E442", "hatch": "//"},
    "now": {"color": "#56B4E9", "hatch": ""},
    "at minus the mean activity": {"color": "#0072B2", "hatch": ".."},
}
DROPPED, KEPT = "0.25", "0.95"


def __dir__() -> list[str]:
    return __all__


def plot_image(
    values: Any,
    ax: Any = None,
    title: str | None = None,
    symmetric: bool = False,
) -> Any:
    """Draws one value per pixel as an image, with a colour scale.

    Args:
        values: Array of shape `(height, width)`.
        ax: Axes to draw into.
        title: Title of the plot.
        symmetric: Whether to centre the colours on zero, for values of both
            signs.

    Returns:
        The axes.

    Raises:
        ValueError: If `values` does not have two axes.
    """
    values = np.asarray(values, dtype="float64")
    if values.ndim != 2 or not values.size:
        raise ValueError(
            "Invalid value received for argument `values`. Expected an array "
            f"of shape (height, width). Received: shape {values.shape}"
        )
    ax = ax or plt.subplots()[1]
    # An image of zeros also gets the middle colour of the scale.
    limit = np.nanmax(np.abs(values), initial=0) or 1.0
    image = ax.imshow(
        values,
        cmap="RdBu_r" if symmetric else "gray",
        vmin=-limit if symmetric else None,
        vmax=limit if symmetric else None,
    )
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
    ax.set(title=title, xticks=[], yticks=[])
    return ax


def plot_beta(
    layer: keras.Layer,
    ax: Any = None,
    title: str | None = None,
    shape: Sequence[int] | None = None,
) -> Any:
    """Draws the beta of a layer as an image, red above zero and blue below.

    For several channels it draws the mean over the channels.

    Args:
        layer: A dropout layer of this library that has been built, with a beta
            for each pixel.
        ax: Axes to draw into.
        title: Title of the plot.
        shape: Tuple of integers, `(height, width)` or with the channels, such
            as `(28, 28)`, for a layer with a flat input. By default the shape
            of the input.

    Returns:
        The axes.

    Raises:
        ValueError: If `layer` is not such a layer, or the number of elements in
            `shape` differs from that of beta.
    """
    return plot_image(_image_of(layer, shape), ax, title, symmetric=True)


def _image_of(layer, shape):
    """The beta of a layer, of shape `(height, width)`."""
    if not isinstance(layer, ShiftedDropout) or not layer.built:
        raise invalid(
            "layer",
            "a dropout layer of this library, such as `InvariantDropout`, "
            "that has been built",
            layer,
        )
    beta = ops.convert_to_numpy(layer.shift).astype("float64")
    if shape is None:
        shape = beta.shape
    if not is_shape(shape, (2, 3)) or np.prod(shape) != beta.size:
        raise invalid(
            "shape",
            "(height, width), or with the channels, for a beta of shape "
            f"{beta.shape}",
            shape,
        )
    image = beta.reshape(shape)
    if image.ndim == 3:
        channels = channel_axis(getattr(layer, "data_format", None), 4) - 1
        image = image.mean(axis=channels)
    if image.size == 1 < beta.size:
        raise ValueError(
            "Invalid value received for argument `layer`. Expected one with a "
            f"beta for each pixel. Received: layer '{layer.name}' with one for "
            f"each feature map, of shape {beta.shape}"
        )
    return image


def plot_errors(
    errors: dict[str, Any], ax: Any = None, title: str | None = None
) -> Any:
    """Draws errors per epoch: the mean over seeds and its interval.

    With two or more seeds a band shows the 95 % confidence interval of the
    mean, from Student's t over the seeds. Curves whose labels agree before the
    comma, such as `"calibrated, test"` and `"calibrated, training"`, have the
    same colour. `"standard"`, `"invariant from 0"`, `"calibrated"` and
    `"running average"` have the same colour in every plot. A curve with
    "training" in its label is dashed.

    Args:
        errors: Dict from a label to an array of shape `(seeds, epochs)`, in
            percent.
        ax: Axes to draw into.
        title: Title of the plot.

    Returns:
        The axes.

    Raises:
        ValueError: If `errors` is not such a dict.
    """
    curves = _curves(errors)
    ax = ax or plt.subplots()[1]
    looks = _looks(dict.fromkeys(map(_method, errors)))
    for label, curve in curves.items():
        _plot_curve(ax, label, *curve, *looks[_method(label)])
    ax.set(title=title, xlabel="epoch", ylabel="error (%)", yscale="log")
    # The limits of earlier curves in axes that share this one exclude these.
    ax.autoscale(axis="y")
    _limit_below(ax, *curves.values())
    ax.yaxis.set_major_formatter(_percentage)
    low, high = ax.get_ylim()
    # On an axis of more than a decade more labels would overlap.
    subs = (2, 5) if high > 10 * low else (1.5, 2, 3, 4, 5, 7)
    ax.yaxis.set_minor_locator(LogLocator(subs=subs))
    ax.yaxis.set_minor_formatter(_percentage)
    ax.tick_params(axis="y", which="minor", labelsize="small")
    ax.grid(alpha=0.3, which="both")
    note = "mean, 95 % interval" if ax.collections else None
    ax.legend(
        title=note,
        loc="upper center",
        ncols=2,
        fontsize="small",
        title_fontsize="small",
        labelspacing=0.3,
        columnspacing=1,
    )
    _leave_room_above(ax, lines=math.ceil(len(curves) / 2) + (note is not None))
    return ax


def _percentage(value, position):
    """The label of an error; none above 100 %, beside the legend."""
    return f"{value:g}" if value <= 100 else ""


def _leave_room_above(ax, lines):
    """Extends a logarithmic axis so that lines of a legend cover no curve."""
    height = ax.figure.get_figheight() * ax.get_position().height
    occupied = (0.16 * lines + 0.2) / height
    low, high = ax.get_ylim()
    ax.set_ylim(top=low * (high / low) ** (1 / (1 - min(occupied, 0.6))))


def _curves(errors):
    """The mean over seeds and half the interval's width for each label."""
    expected = "a dict from labels to arrays of shape (seeds, epochs)"
    if not isinstance(errors, dict) or not errors:
        raise invalid("errors", expected, errors)
    curves = {}
    for label, values in errors.items():
        try:
            array = np.atleast_2d(np.asarray(values, dtype="float64"))
        # Seeds with different numbers of epochs, or no numbers.
        except (TypeError, ValueError) as error:
            raise invalid("errors", expected, errors) from error
        if array.ndim != 2 or not array.size:
            raise invalid("errors", expected, errors)
        curves[label] = mean_and_interval(array)
    return curves


def _method(label):
    return label.partition(",")[0]


def _looks(methods):
    """The colour and the marker of each method."""
    known = {
        each: METHOD_LOOKS[each] for each in methods if each in METHOD_LOOKS
    }
    others = cycle(
        [each for each in LOOKS if each not in known.values()] or LOOKS
    )
    return {each: known.get(each) or next(others) for each in methods}


def _plot_curve(ax, label, mean, half_width, colour, marker):
    """Draws a curve, with a band around it where `half_width` is known."""
    epochs = np.arange(1, len(mean) + 1)
    every = max(1, len(mean) // 8)
    # Offset markers distinguish curves that coincide.
    first = MARKERS.index(marker) * every // 3 % every
    ax.plot(
        epochs,
        mean,
        "--" if "training" in label else "-",
        color=colour,
        marker=marker,
        markersize=4,
        markevery=(first, every),
        label=label,
    )
    if not np.isnan(half_width).all():
        low, high = mean - half_width, mean + half_width
        ax.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _limit_below(ax, *curves):
    """Keeps a band that nears zero from stretching a logarithmic axis."""
    means = np.concatenate([mean for mean, _ in curves])
    bands = np.concatenate([mean - half for mean, half in curves])
    lowest = np.min(means, where=means > 0, initial=np.inf)
    if np.isfinite(lowest) and (bands < lowest / 2).any():
        ax.set_ylim(bottom=lowest / 2)


def plot_mean_against_shift(
    mean_activity: Any,
    shift: Any,
    ax: Any = None,
    title: str | None = None,
) -> Any:
    """Draws the mean activity of each unit against its shift (Figure 2).

    The plot shows the correlation coefficient.

    Args:
        mean_activity: Array of shape `(units,)`, or of the shape of beta.
        shift: Array with the same number of elements. The learned beta.
        ax: Axes to draw into.
        title: Title of the plot.

    Returns:
        The axes.

    Raises:
        ValueError: If the two arrays differ in their number of elements.
    """
    mean_activity, shift = np.ravel(mean_activity), np.ravel(shift)
    if mean_activity.size != shift.size:
        raise ValueError(
            "Invalid value received for argument `shift`. Expected a value "
            f"for each of {mean_activity.size} mean activities. Received: "
            f"{shift.size} values"
        )
    ax = ax or plt.subplots()[1]
    ax.scatter(
        mean_activity, shift, s=8, alpha=0.5, linewidths=0, color=COLOURS[0]
    )
    r = correlation(mean_activity, shift)
    text = "r undefined" if np.isnan(r) else f"r = {r:.2f}"
    ax.text(0.97, 0.95, text, transform=ax.transAxes, ha="right", va="top",
            bbox={"facecolor": "white", "alpha": 0.8})  # fmt: skip
    ax.set(title=title, xlabel="mean activity", ylabel="learned beta")
    ax.grid(alpha=0.3)
    return ax


def plot_variance_report(
    report: Sequence[InjectedVariance],
    ax: Any = None,
    title: str | None = None,
) -> Any:
    """Draws the variance that each dropout layer injects at three shifts.

    Each row of the report gets three labelled bars: for the shift at zero, for
    the present shift and for the shift at minus the mean activity.

    Args:
        report: The result of `keras_invdrop.variance_report`.
        ax: Axes to draw into.
        title: Title of the plot.

    Returns:
        The axes.

    Raises:
        ValueError: If `report` is not a report, or has no rows.
    """
    if (
        not isinstance(report, (list, tuple))
        or not report
        or not all(isinstance(row, InjectedVariance) for row in report)
    ):
        raise invalid("report", "the result of `variance_report`", report)
    if ax is None:
        width = max(6.4, 1.5 + 1.8 * len(report))
        ax = plt.subplots(figsize=(width, 4.8), layout="constrained")[1]
    places = np.arange(len(report))
    heights = np.array(
        [(row.at_zero, row.at_present, row.at_best) for row in report]
    )
    for i, (label, style) in enumerate(BARS.items()):
        bars = ax.bar(
            places + 0.27 * (i - 1),
            heights[:, i],
            width=0.25,
            label=label,
            edgecolor="black",
            linewidth=0.6,
            **style,
        )
        ax.bar_label(bars, fmt="{:.3g}", padding=2, fontsize="x-small")
    ax.set_xticks(places, [_place(row) for row in report])
    ax.margins(y=0.2)  # room for the legend
    ax.set(title=title, ylabel="injected variance (Eq. 10)")
    ax.grid(alpha=0.3, axis="y")
    ax.set_axisbelow(True)
    ax.legend(loc="upper center", ncols=len(BARS), fontsize="small")
    return ax


def _place(row):
    if row.next_layer is None:  # the model's output, or inside a layer
        return row.layer
    return f"{row.layer}\n\N{RIGHTWARDS ARROW} {row.next_layer}"


def plot_mask(
    rate: float,
    shape: Sequence[int],
    ax: Any = None,
    title: str | None = None,
    noise_shape: Sequence[int | None] | None = None,
    seed: int | None = 0,
) -> Any:
    """Draws a sample of a layer's mask, dark where activities are dropped.

    Args:
        rate: Float between 0 and 1. Fraction of the activities to drop.
        shape: Tuple of two integers, `(rows, columns)`: the height and width
            of an image, or the numbers of examples and units.
        ax: Axes to draw into.
        title: Title of the plot.
        noise_shape: Tuple of two integers or `None`. Shape of the mask, as in
            `InvariantDropout`: size 1 uses one draw for the whole axis.
        seed: Integer to use as random seed, or None.

    Returns:
        The axes.

    Raises:
        ValueError: If an argument is not as described.
    """
    kept = _mask(check_fraction("rate", rate), shape, noise_shape, seed)
    ax = ax or plt.subplots()[1]
    ax.imshow(kept, ListedColormap([DROPPED, KEPT]), vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
    ax.set_xlabel(f"rate {rate:g}: {1 - kept.mean():.1%} dropped (dark)")
    return ax


def _mask(rate, shape, noise_shape, seed):
    """An array of shape `shape`: 1 where an activity is kept, 0 elsewhere."""
    if not is_shape(shape, (2,)):
        raise invalid("shape", "two positive integers, (rows, columns)", shape)
    noise_shape = check_noise_shape(noise_shape)
    check_broadcast(noise_shape, shape)
    seed = check_seed(seed)
    if rate in (0, 1):  # nothing is random
        return np.full(shape, 1.0 - rate)
    generator = seed_generator(seed)
    mask = dropout_mask(mask_shape(noise_shape, tuple(shape)), rate, generator)
    return np.broadcast_to(ops.convert_to_numpy(mask), shape).astype("float64")
