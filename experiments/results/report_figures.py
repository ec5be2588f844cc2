"""Draws the figures of a report, from saved results."""

import json
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from .findings import selection
from .markdown import heading
from .measurements import METHOD_LABELS
from .measurements import METHOD_NAMES
from .measurements import counted
from .measurements import measurements
from .records import Result


def draw(directory: Path, found: dict[Path, Result]) -> list[str]:
    """Draws the figures of the results; returns the Markdown that shows them.

    The results of Table 2 on digits have Figures 1 and 2, those of other test
    errors the curves alone. A figure compares methods, or the settings of one
    method.
    """
    groups: dict[bool, dict[str, dict[Path, Result]]] = {True: {}, False: {}}
    for path, result in found.items():
        row = ROWS[result.row]
        if row.unit == "%" and path.with_suffix(".csv").exists():
            digits = row.table == 2 and result.dataset in ("mnist", "digits")
            of_table = groups[digits]
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
    for group in _with_other_settings(groups[False].values()):
        first, name = first_of(group)
        network, trained = _network(first), _trained(group)
        drawn = error_curves(
            f"{first.training_examples:,} training and "
            f"{first.test_examples:,} test images ({first.source})\n"
            f"{network}\n{trained}",
            histories(group),
        )
        save_figure(drawn, directory / f"errors-{name}.png")
        title = f"Errors by epoch, {heading(ROWS[first.row], first)}, {network}"
        parts.append(f"![{title}: {trained}](errors-{name}.png)")
    for group in _with_other_settings(groups[True].values()):
        first, name = first_of(group)
        from_zero = [
            saved
            for path, result in group.items()
            if _method(result) == ("invariant", False)
            and (saved := path.with_suffix(".keras")).exists()
        ]
        try:
            dataset = load(
                first.dataset,
                first.encoding,
                first.validation_examples,
                first.training_examples,
            )
            model = _loaded(from_zero[0]) if from_zero else None
        except (ImportError, OSError, ValueError) as error:
            parts.append(f"Not drawn, {name}: {error}")
            continue
        trained = ", ".join([*_conditions(first), _trained(group)])
        drawn = figure_1(dataset, histories(group), model, trained)
        figures = {"Figure 1": drawn}
        if model is not None:
            figures["Figure 2"] = figure_2([(dataset, model)])
        about = (
            f"{heading(ROWS[first.row], first)}, {_network(first)}: "
            f"{_trained(group)}"
        )
        for title, drawn in figures.items():
            file = f"{title.lower().replace(' ', '')}-{name}.png"
            save_figure(drawn, directory / file)
            parts.append(f"![{title}, {about}]({file})")
    return parts


def _loaded(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path)
    except Exception as error:  # Keras raises errors of many kinds
        raise ValueError(
            f"Keras cannot load the model in {path}: {error}"
        ) from error


def _network(result: Result) -> str:
    """The network of a figure, its encoding, and other conditions."""
    encoding = [f"{result.encoding} encoding"] * (ROWS[result.row].table == 2)
    return ", ".join([result.network, *encoding, *_conditions(result)])


def _conditions(result: Result) -> list[str]:
    """The unusual conditions that all trainings of a figure share."""
    found = []
    if result.width != 1:
        found.append(f"width {result.width:g}")
    if result.activation is not None:
        found.append(f"{result.activation} units")
    if decay := result.recipe["beta_decay"]:
        found.append(f"beta_decay {decay:g}")
    return found


def _trained(found: Mapping[Path, Result]) -> str:
    """The length and the settings of trainings in a figure, in a few words."""
    first = next(iter(found.values()))
    if _compares_settings(found):
        return f"{METHOD_NAMES[_method(first)]}, with different settings"
    settings = "settings selected for each method"
    if None in map(selection, found.values()):
        settings = "settings of each row's recipe"
    if not has_own_settings(first):
        settings = (
            f"learning rate {first.recipe['learning_rate']:g}, "
            f"maximum norm {first.recipe['max_norm']}"
        )
        if decay := first.recipe["weight_decay"]:
            settings += f", weight decay {decay:g}"
        if not first.recipe["beta_factor"]:
            settings += ", frozen beta"
    return f"{counted(first.epochs, 'epoch')}, {settings}"


def _method(result: Result) -> tuple[str, bool]:
    return result.dropout, result.recipe["calibrated"]


def _compares_settings(found: Mapping[Path, Result]) -> bool:
    """Whether results are of one method with different settings."""
    methods = {_method(result) for result in found.values()}
    settings = {repr(_settings(result)) for result in found.values()}
    return len(methods) == 1 < len(settings)


def _settings(result: Result) -> dict[str, Any]:
    return {**result.recipe, "epochs": result.epochs}


def _changes(result: Result) -> tuple[int, int]:
    """The number of settings that are not the recipe's, and the epochs."""
    (measured,) = measurements(ROWS[result.row], [result])
    return len(measured.changed), result.epochs


def histories(found: Mapping[Path, Result]) -> dict[str, list[pd.DataFrame]]:
    """The histories beside results, one list per curve.

    The curves are the methods, in the order of the tables, or the settings of
    one method, named by their changes of those with the fewest changes.
    """
    labels = {
        path: METHOD_LABELS[_method(result)] for path, result in found.items()
    }
    if _compares_settings(found):
        labels = _setting_labels(found)
    runs: dict[str, list[pd.DataFrame]]
    runs = {label: [] for label in [*METHOD_LABELS.values(), *labels.values()]}
    for path, label in labels.items():
        history = pd.read_csv(path.with_suffix(".csv"), index_col="epoch")
        runs[label].append(history)
    return {label: of_curve for label, of_curve in runs.items() if of_curve}


def _setting_labels(found: Mapping[Path, Result]) -> dict[Path, str]:
    """What each result changes of the recipe, or of the first result.

    A first result that has other settings than the recipe is named by those in
    which the results differ.
    """
    paths = sorted(found, key=lambda path: _changes(found[path]))
    usual = _settings(found[paths[0]])

    def changes(path: Path) -> list[str]:
        settings = _settings(found[path])
        return [name for name in settings if settings[name] != usual[name]]

    same = ["epochs"]
    if _changes(found[paths[0]])[0]:
        same = [
            *dict.fromkeys(name for path in paths for name in changes(path))
        ]
    labels = {}
    for path in paths:
        settings = _settings(found[path])
        # Without a comma, before which labels of equal colour agree.
        labels[path] = " and ".join(
            f"{name} {settings[name]}".replace(", ", "/")
            for name in changes(path) or same
        )
    return labels


def _drawn_together(result: Result) -> str:
    """A key that is equal for trainings in the same figure."""
    return json.dumps(
        [
            comparable(result),
            result.row.rpartition("/")[0],
            result.recipe["beta_decay"],
        ]
    )


def _with_other_settings(
    groups: Iterable[dict[Path, Result]],
) -> list[dict[Path, Result]]:
    """Merges the groups of one directory that differ only in settings.

    Groups of several methods stay apart: each method may have its own settings.
    """
    merged: dict[str, dict[Path, Result]] = {}
    for number, group in enumerate(groups):
        path, first = next(iter(group.items()))
        key = str(number)
        if len({_method(result) for result in group.values()}) == 1:
            conditions = first.conditions
            del conditions["recipe"]
            key = repr((path.parent, first.row, _method(first), conditions))
        merged.setdefault(key, {}).update(group)
    return list(merged.values())
