"""The paper's figures, from trained networks."""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_invdrop._files import replacing
from keras_invdrop.models._injected_variance import means_by_site
from keras_invdrop.plots import plot_beta
from keras_invdrop.plots import plot_errors
from keras_invdrop.plots import plot_image
from keras_invdrop.plots import plot_mean_against_shift

from ..data.datasets import Dataset
from ..data.datasets import in_memory


def figure_1(
    dataset: Dataset,
    histories: Mapping[str, Sequence[pd.DataFrame]],
    model: keras.Model | None = None,
    settings: str = "",
) -> Figure:
    """Draws Figure 1: error curves, the mean image and the learned beta.

    The curves show the training error and, if every history has it, the test
    error or otherwise the validation error.

    Args:
        dataset: The data set on which the networks were trained.
        histories: Method -> histories of its runs, one per seed.
        model: A network trained with invariant dropout on the input, from 0,
            or None for a figure without beta.
        settings: A line for the title.
    """
    panels = 2 if model is None else 3
    fig, (curves, mean, *beta) = plt.subplots(
        1,
        panels,
        figsize=(4 * panels + 2, 4.2),
        width_ratios=(1.5, 1, 1)[:panels],
        layout="constrained",
    )
    fig.suptitle(
        f"{_sizes(dataset)} digits ({dataset.source}), "
        f"{dataset.encoding} encoding" + f"\n{settings}" * bool(settings)
    )
    _plot_histories(histories, curves)
    digits = np.asarray(in_memory(dataset.train).x)
    images = digits.mean(axis=0).reshape(28, 28)
    plot_image(images, mean, "Mean input")
    if model is not None:
        plot_beta(
            model.get_layer("input_dropout"),
            beta[0],
            "Learned beta of the input, from 0, one seed",
            shape=(28, 28),
        )
    return fig


def _sizes(dataset: Dataset) -> str:
    """The numbers of examples: "60,000 training and 10,000 test"."""
    sizes = {"training": len(dataset.train)}
    if len(dataset.validation):
        sizes["validation"] = len(dataset.validation)
    *first, last = (
        f"{size:,} {name}"
        for name, size in (sizes | {"test": len(dataset.test)}).items()
    )
    return f"{', '.join(first)} and {last}"


def error_curves(
    title: str, histories: Mapping[str, Sequence[pd.DataFrame]]
) -> Figure:
    """Draws the errors by epoch, as in `figure_1`.

    Args:
        title: Title of the figure.
        histories: Method -> histories of its runs, one per seed.
    """
    fig, ax = plt.subplots(figsize=(7, 4.8), layout="constrained")
    fig.suptitle(title)
    _plot_histories(histories, ax)
    return fig


def _plot_histories(
    histories: Mapping[str, Sequence[pd.DataFrame]], ax: Axes
) -> None:
    every = [run for runs in histories.values() for run in runs]
    everywhere = [
        which
        for which in ("training", "test", "validation")
        if all(f"{which}_error" in run for run in every)
    ]
    counts = {len(runs) for runs in histories.values()}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    plot_errors(
        {
            f"{method}, {which}": [run[f"{which}_error"] for run in runs]
            for method, runs in histories.items()
            for which in everywhere[:2]
        },
        ax,
        f"{seeds} seed{'s' * (counts != {1})} (training error with dropout)",
    )


def figure_2(trained: Sequence[tuple[Dataset, keras.Model]]) -> Figure:
    """Draws Figure 2: mean activity against learned beta, layer by layer.

    Args:
        trained: For each row of the figure, a data set and a network trained
            on it with invariant dropout.
    """
    found = [
        means_by_site(model, in_memory(dataset.train).x)
        for dataset, model in trained
    ]
    fig, axes = plt.subplots(
        len(found),
        len(found[0]),
        figsize=(4 * len(found[0]), 3.6 * len(found)),
        squeeze=False,
        layout="constrained",
    )
    source = trained[0][0].source
    fig.suptitle(f"Invariant dropout from 0, one seed ({source})")
    for (dataset, _), of_model, row in zip(trained, found, axes, strict=True):
        for (site, mean), ax in zip(of_model, row, strict=True):
            name = site.layer.name.removesuffix("_dropout").replace("_", " ")
            plot_mean_against_shift(
                mean,
                keras.ops.convert_to_numpy(site.layer.shift),
                ax,
                f"{name} layer, {dataset.encoding} encoding",
            )
    return fig


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` as a PNG file and closes it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
