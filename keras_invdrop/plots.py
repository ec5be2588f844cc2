"""Pictures of what invariant dropout learns.

Each function draws into the axes `ax`, or into new ones, and returns them.
Needs matplotlib.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator


def plot_image(values, ax=None, title=None, symmetric=False):
    """Draws a value for each pixel as an image, with its scale.

    Args:
        values: Array of shape `(height, width)`.
        ax: Axes to draw into.
        title: Title of the picture.
        symmetric: Whether the colours are centred on zero, for values of both
            signs.

    Returns:
        The axes.
    """
    ax = ax or plt.subplots()[1]
    values = np.asarray(values)
    limit = np.abs(values).max()
    image = ax.imshow(
        values,
        cmap="RdBu_r" if symmetric else "gray",
        vmin=-limit if symmetric else None,
        vmax=limit if symmetric else None,
    )
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
    ax.set(title=title, xticks=[], yticks=[])
    return ax


def plot_errors(errors, ax=None, title=None):
    """Draws errors per epoch, each the mean over seeds within its range.

    Args:
        errors: Dict from a label to an array of shape `(seeds, epochs)`, in
            percent.
        ax: Axes to draw into.
        title: Title of the picture.

    Returns:
        The axes.
    """
    ax = ax or plt.subplots()[1]
    for label, values in errors.items():
        values = np.atleast_2d(values)
        epochs = np.arange(1, values.shape[1] + 1)
        style = "--" if "training" in label else "-"
        (line,) = ax.plot(epochs, values.mean(axis=0), style, label=label)
        ax.fill_between(
            epochs,
            values.min(axis=0),
            values.max(axis=0),
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    ax.set(title=title, xlabel="epoch", ylabel="error (%)", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    # No more labels than have room over two decades.
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="minor", labelsize="small")
    ax.grid(alpha=0.3, which="both")
    ax.legend()
    return ax


def plot_mean_against_shift(mean_activity, shift, ax=None, title=None):
    """Draws the mean activity of each unit against its shift (Figure 2).

    The correlation coefficient is printed on it.

    Args:
        mean_activity: Array of shape `(units,)`.
        shift: Array of shape `(units,)`. The learned beta.
        ax: Axes to draw into.
        title: Title of the picture.

    Returns:
        The axes.
    """
    ax = ax or plt.subplots()[1]
    ax.scatter(mean_activity, shift, s=6, alpha=0.5, linewidths=0)
    r = np.corrcoef(mean_activity, shift)[0, 1]
    ax.text(0.97, 0.95, f"r = {r:.2f}", transform=ax.transAxes, ha="right",
            va="top", bbox={"facecolor": "white", "alpha": 0.8})  # fmt: skip
    ax.set(title=title, xlabel="mean activity", ylabel="learned beta")
    ax.grid(alpha=0.3)
    return ax
