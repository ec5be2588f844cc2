"""Draws the figures of results."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import keras
import pandas as pd

from ..data.datasets import load
from ..paper.tables import ROWS
from .figures import error_curves
from .figures import figure_1
from .figures import figure_2
from .figures import save_figure
from .findings import comparable
from .findings import has_own_settings
from .markdown import heading
from .measurements import METHOD_LABELS
from .measurements import counted
from .records import Result


def draw(directory: Path, found: dict[Path, Result]) -> list[str]:
    """Draws the figures of the results; returns the Markdown that shows them.

    The results of Table 2 have Figures 1 and 2, those of other test errors the
    curves alone.
    """
    groups: dict[bool, dict[str, dict[Path, Result]]] = {True: {}, False: {}}
    for path, result in found.items():
        row = ROWS[result.row]
        if row.unit == "%" and path.with_suffix(".csv").exists():
            of_table = groups[row.table == 2]
            of_table.setdefault(_drawn_together(result), {})[path] = result
    named: Counter = Counter()

    def first_of(group: dict[Path, Result]) -> tuple[Result, str]:
        """A group's first result, and the name of the group's files."""
        path, first = next(iter(group.items()))
        row = first.row.rpartition("/")[0]
        name = "-".join((path.parent.relative_to(directory) / row).parts)
        named[name] += 1
        return first, name + f"-{named[name]}" * (named[name] > 1)

    parts = []
    for group in groups[False].values():
        first, name = first_of(group)
        drawn = error_curves(
            f"{first.training_examples:,} training and "
            f"{first.test_examples:,} test images ({first.source})\n"
            f"{first.network}, width {first.width:g}\n{_trained(first)}",
            histories(group),
        )
        save_figure(drawn, directory / f"errors-{name}.png")
        title = f"Errors by epoch, {heading(ROWS[first.row], first)}"
        parts.append(f"![{title}](errors-{name}.png)")
    for group in groups[True].values():
        first, name = first_of(group)
        try:
            dataset = load(
                first.dataset,
                first.encoding,
                first.validation_examples,
                first.training_examples,
            )
        except (ImportError, OSError, ValueError) as error:
            parts.append(f"Not drawn, {name}: {error}")
            continue
        from_zero = [
            saved
            for path, result in group.items()
            if _method(result) == ("invariant", False)
            and (saved := path.with_suffix(".keras")).exists()
        ]
        model = keras.saving.load_model(from_zero[0]) if from_zero else None
        drawn = figure_1(dataset, histories(group), model, _trained(first))
        figures = {"Figure 1": drawn}
        if model is not None:
            figures["Figure 2"] = figure_2([(dataset, model)])
        of_data = (
            f"{heading(ROWS[first.row], first)}, {first.encoding} encoding"
        )
        for title, drawn in figures.items():
            file = f"{title.lower().replace(' ', '')}-{name}.png"
            save_figure(drawn, directory / file)
            parts.append(f"![{title}, {of_data}]({file})")
    return parts


def _trained(result: Result) -> str:
    """The length and the settings of trainings in a figure, in a few words."""
    settings = "settings selected for each method"
    if not has_own_settings(result):
        settings = (
            f"learning rate {result.recipe['learning_rate']:g}, "
            f"maximum norm {result.recipe['max_norm']}"
        )
    return f"{counted(result.epochs, 'epoch')}, {settings}"


def _method(result: Result) -> tuple[str, bool]:
    return result.dropout, result.recipe["calibrated"]


def histories(found: Mapping[Path, Result]) -> dict[str, list[pd.DataFrame]]:
    """The histories beside results, by method, in the order of the tables."""
    runs: dict[str, list[pd.DataFrame]]
    runs = {label: [] for label in METHOD_LABELS.values()}
    for path, result in found.items():
        history = pd.read_csv(path.with_suffix(".csv"), index_col="epoch")
        runs[METHOD_LABELS[_method(result)]].append(history)
    return {label: of_method for label, of_method in runs.items() if of_method}


def _drawn_together(result: Result) -> str:
    """A key that is equal for trainings in the same figure."""
    return json.dumps(
        [
            comparable(result),
            result.row.rpartition("/")[0],
            result.recipe["beta_decay"],
        ]
    )
