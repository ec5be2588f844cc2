"""The demonstration: standard and invariant dropout on two encodings."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from keras_invdrop.applications import recipes

from ..data import datasets
from ..paper.tables import ROWS
from ..results.console import ProgressTable
from ..results.figures import figure_1
from ..results.figures import figure_2
from ..results.figures import save_figure
from ..results.measurements import METHOD_LABELS
from ..results.records import Result
from ..train.training import Trained
from ..train.training import save
from ..train.training import train
from ..train.trial import Trial

# Name in the files -> method in Table 2, and whether beta is calibrated (ours,
# not the paper's).
FILES = {
    "standard": ("standard", False),
    "invariant": ("invariant", False),
    "calibrated": ("invariant", True),
}


def run_demo(
    directory: Path,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = recipes.DEMO.epochs,
    command: str = "",
) -> list[Result]:
    """Trains the network of Table 2 on digits that need no download.

    Trains each method on each encoding, once per seed, for a fixed number of
    epochs. The function selects nothing, so the training set contains all
    digits outside the test set. Each training writes its model, history and
    result to `directory`; at the end the function draws the figures.

    Args:
        directory: Directory to write to, created if it does not exist.
        seeds: Seeds of the trainings.
        epochs: Epochs of each training.
        command: The command line, recorded in the results.

    Returns:
        The results.
    """
    encodings = {
        encoding: datasets.load("digits", encoding, validation=0)
        for encoding in datasets.ENCODINGS
    }
    runs: dict[tuple[str, str], list[Trained]] = {}
    trainings = {
        f"{method} dropout, {encoding} digits, seed {seed}": (
            seed,
            encoding,
            method,
        )
        for seed in seeds
        for encoding in encodings
        for method in FILES
    }
    with ProgressTable(
        dict.fromkeys(trainings, epochs), dict.fromkeys(trainings, "%")
    ) as table:
        for title, (seed, encoding, method) in trainings.items():
            dropout, calibrated = FILES[method]
            table.began(title)
            recipe = replace(recipes.DEMO, epochs=epochs, calibrated=calibrated)
            row = replace(ROWS[f"table2/{encoding}/{dropout}"], recipe=recipe)
            run = train(
                Trial(
                    row, seed, data="digits", test_curve=True, command=command
                ),
                encodings[encoding],
                on_epoch=partial(table.epoch, title),
            )
            save(run, directory, f"{encoding}-{method}-seed{seed}")
            table.ended(title, run.result)
            runs.setdefault((encoding, method), []).append(run)
    curves = figure_1(
        encodings["inverted"],
        {
            METHOD_LABELS[dropout]: [
                run.history for run in runs["inverted", method]
            ]
            for method, dropout in FILES.items()
        },
        runs["inverted", "invariant"][0].model,
    )
    save_figure(curves, directory / "figure1.png")
    learned = figure_2(
        [
            (dataset, runs[encoding, "invariant"][0].model)
            for encoding, dataset in encodings.items()
        ]
    )
    save_figure(learned, directory / "figure2.png")
    return list(table.results.values())
