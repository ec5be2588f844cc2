"""Reports measured figures beside the paper's, as Markdown and plots."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import chain
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import keras
import pandas as pd

from keras_invdrop._files import replacing

from ..data.datasets import load
from ..paper.tables import ROWS
from ..paper.tables import Row
from .figures import error_curves
from .figures import figure_1
from .figures import figure_2
from .figures import save_figure
from .findings import SAME_WITHIN
from .findings import SELECTED
from .findings import SIGNIFICANT
from .findings import Finding
from .findings import comparable
from .findings import findings
from .findings import has_own_settings
from .measurements import METHOD_LABELS
from .measurements import METHOD_NAMES
from .measurements import Measurement
from .measurements import counted
from .measurements import measurements
from .measurements import with_interval
from .records import Result
from .records import stored

# Lines of a file between which `write_summary` writes.
MARKS = "<!-- results: begin -->", "<!-- results: end -->"

INTRODUCTION = (
    "Figures in italics are the paper's (Ba, Xiong and Frey, 2014). All "
    "other figures are measured means over seeds, with 95 % confidence "
    "intervals (Student's t). The notes give the conditions, and name a "
    "setting only where it differs from the row's recipe or, on the 5,000 "
    "digits, from the demonstration's (`recipes.DEMO`). If a training had "
    "validation examples, they selected the epoch."
)

DATASETS = {
    "mnist": "MNIST",
    "digits": "5,000 digits",
    "cifar10": "CIFAR-10",
    "svhn_cropped": "SVHN",
}

TITLES = {
    2: "MNIST, test error in %",
    3: "CIFAR-10, test error in %",
    4: "SVHN, test error in %",
    5: "Splicing, code quality in bits",
    6: "Maxout networks, test error in %",
}


def write_report(directory: Path) -> Path:
    """Writes `report.md`, and figures if histories and models are saved.

    Args:
        directory: Directory with the results (`.json`), at any depth. Figures
            need a history (`.csv`) and a model (`.keras`) of the same name.

    Returns:
        The path of the report.

    Raises:
        OSError: If there are no results, or the report cannot be written.
        ValueError: If a file is not a result.
    """
    found = _results(directory)
    parts = [text(found.values())]
    figures = _figures(directory, found)
    if figures:
        parts += ["### Figures", *figures]
    path = directory / "report.md"
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return path


def text(results: Iterable[Result]) -> str:
    """The report without its figures, as Markdown."""
    results = list(results)
    return "\n\n".join(
        [
            "# Invariant dropout: the paper's tables, measured",
            INTRODUCTION,
            *tables(results),
            *selected(results),
            *claims(results),
        ]
    )


def write_summary(directory: Path, path: Path) -> None:
    """Writes one table of the measurements into a Markdown file.

    Args:
        directory: Directory with the results (`.json`), at any depth.
        path: A file with the lines `MARKS`. The table replaces the text
            between these lines, see `summary`.

    Raises:
        OSError: If there are no results, or the file cannot be written.
        ValueError: If a mark is missing, or a file is not a result.
    """
    results = _results(directory).values()
    text = path.read_text()
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(
            f"{path} has no place for the results: the lines {MARKS[0]} and "
            f"{MARKS[1]}"
        )
    parts = [begin, *summary(results), end]
    with replacing(path) as temporary:
        temporary.write_text(before + "\n\n".join(parts) + after)


def _results(directory: Path) -> dict[Path, Result]:
    found = stored(directory)
    if not found:
        raise OSError(
            f"There are no results in {directory}/: no file *.json, which "
            "`keras-invdrop reproduce --out` writes"
        )
    return found


def summary(results: Iterable[Result]) -> list[str]:
    """The test errors as one Markdown table, with a line per method.

    Among several measurements of a row, the table shows the one with the most
    training examples, then the most epochs, then the row's own settings, then
    the most seeds, separately for beta from 0 and calibrated. The table leaves
    out networks and methods without measurements.
    """
    results = list(results)
    # By method and column; a column is a network and its data.
    cells: dict[str, dict[tuple[str, str], list[str]]]
    cells = {name: {} for name in METHOD_NAMES.values()}
    columns: dict[tuple[str, str], str] = {}
    notes: dict[str, str] = {}
    for row in ROWS.values():
        if row.unit != "%":
            continue
        measured = measurements(row, results)
        for calibrated in (False, True):
            found = [each for each in measured if each.calibrated == calibrated]
            if not found:
                continue
            largest = max(
                found,
                key=lambda each: (
                    each.training_examples,
                    each.epochs,
                    not set(each.settings) - {"calibrated"},
                    len(each.seeds),
                ),
            )
            column = row.id.rpartition("/")[0], _title(row, largest)
            full = "" if largest.width == 1 else ", full width"
            columns[column] = f"*paper{full}*"
            letter = notes.setdefault(
                largest.short_note, ascii_lowercase[len(notes)]
            )
            seeds = counted(len(largest.seeds), "seed")
            cells[METHOD_NAMES[row.method, calibrated]][column] = [
                f"{largest.figure} ({seeds}) <sup>{letter}</sup>",
                # The paper has no calibrated beta.
                "" if calibrated else f"*{row.printed:.2f}*",
            ]
    if not columns:
        return []
    for (of_rows, title), row in product(columns, ROWS.values()):
        line = cells[METHOD_NAMES[row.method, False]]
        if row.id.rpartition("/")[0] == of_rows and line:
            not_run = ["not run", f"*{row.printed:.2f}*"]
            line.setdefault((of_rows, title), not_run)
    header = ["test error (%)"]
    for (_, title), paper in columns.items():
        header += [title, paper]
    lines = [
        [method, *chain(*(line.get(each, ["", ""]) for each in columns))]
        for method, line in cells.items()
        if line
    ]
    lettered = (f"<sup>{letter}</sup> {note}" for note, letter in notes.items())
    return [_table(header, lines), "<br>\n".join(lettered)]


def _title(row: Row, measured: Measurement) -> str:
    """The title of a column."""
    name = DATASETS.get(measured.dataset, measured.dataset)
    if row.table == 2:
        name += f", {row.encoding}"
    if measured.width != 1:
        name += f", width {measured.width:g}"
    return name


def tables(results: Iterable[Result]) -> list[str]:
    """The paper's tables with the measurements, as Markdown.

    Each data set, and each number of training examples, has a table of its
    own, the largest first.
    """
    results = list(results)
    notes: dict[str, int] = {}
    parts = []
    for number, title in TITLES.items():
        parts.append(f"### Table {number}: {title}")
        rows = [row for row in ROWS.values() if row.table == number]
        by_data: dict[str, list[tuple[Row, Measurement]]] = {}
        for row in rows:
            for each in measurements(row, results):
                data = _data(row, each)
                by_data.setdefault(data, []).append((row, each))
        for data, of_data in sorted(
            by_data.items(), key=lambda each: -each[1][0][1].training_examples
        ):
            parts += [f"**{data}**", _measured(of_data, notes)]
        run = {row.id for of_data in by_data.values() for row, _ in of_data}
        not_run = [_printed(row) for row in rows if row.id not in run]
        if not_run:
            parts += ["**Not run**", _table(("row", "paper"), not_run)]
    if notes:
        parts.append(
            "\n".join(f"{number}. {note}" for note, number in notes.items())
        )
    return parts


def _data(row: Row, of: Measurement | Result) -> str:
    """The data set and its size, as a heading."""
    name = DATASETS.get(of.dataset, of.dataset)
    if row.partition is not None:  # the sizes of partitions differ
        return name
    return f"{name}, {counted(of.training_examples, 'training example')}"


def _printed(row: Row) -> tuple[str, str]:
    return f"`{row.id}`", f"*{row.printed:.2f}*"


def _measured(
    of_data: Sequence[tuple[Row, Measurement]], notes: dict[str, int]
) -> str:
    """The table of the measurements on one data set."""
    # On other data than the paper's, the paper's figure is no comparison.
    own = all(each.dataset == row.dataset for row, each in of_data)
    lines = [
        (
            *_printed(row)[: 1 + own],
            each.figure,
            str(len(each.seeds)),
            each.conditions,
            str(notes.setdefault(each.note, len(notes) + 1)),
        )
        for row, each in of_data
    ]
    paper = ("paper",) * own
    return _table(("row", *paper, "measured", "seeds", "on", "note"), lines)


def selected(results: Iterable[Result]) -> list[str]:
    """The selected settings of the measured rows, as Markdown."""
    measured = {(result.row, result.recipe["calibrated"]) for result in results}
    found = {
        f"`{row.id}`" + ", calibrated" * calibrated: (
            row.trained(calibrated),
            row.selected_by(calibrated),
        )
        for row in ROWS.values()
        for calibrated in (False, True)
        if (row.id, calibrated) in measured and row.selected_by(calibrated)
    }
    if not found:
        return []
    names = [
        name
        for name in SELECTED
        if len({str(getattr(recipe, name)) for recipe, _ in found.values()}) > 1
    ]
    lines = [
        (row, *(str(getattr(recipe, name)) for name in names), str(search))
        for row, (recipe, search) in found.items()
    ]
    return [
        "### Settings that were selected",
        "Each line has the recipe of a row, which a search for this row alone "
        "selected on validation examples. `None` means no maximum norm, or "
        "Keras' default initial weights. The notes name other settings.",
        _table(("row", *names, "search"), lines),
    ]


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [header, ["---" for _ in header], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def claims(results: Iterable[Result]) -> list[str]:
    """The claims tested on the results, as Markdown."""
    by_data: dict[str, list[Finding]] = {}
    for found in findings(results):
        first = found.compared[0][0]
        data = _data(ROWS[first.row], first)
        by_data.setdefault(data, []).append(found)
    if not by_data:
        return []
    parts = [
        "### What holds",
        "Differences are paired by seed. A positive difference favours the "
        "claim, except that equal errors are tested on the errors on the "
        "inverted encoding minus those on the original one, and a correlation "
        "has its own sign. The first interval is the 95 % interval over seeds "
        "(Student's t). "
        "The second, over seeds and test examples (bootstrap of both), needs "
        "results that record the misclassified examples. p is two-sided; two "
        f"one-sided tests with a margin of {SAME_WITHIN} points test for "
        "equal errors, and Fisher's z tests correlations. All p values of the "
        "report are corrected together (Holm). A corrected p below "
        f"{SIGNIFICANT} decides a claim unless the second interval leaves it "
        "open. A single pair decides nothing. In Table 5 a pair is a "
        "partition, with the mean over seeds. Each row uses the settings "
        "selected for it; the tables list the settings in which two rows "
        "differ, and mark rows with unlike searches.",
    ]
    for data, of_data in sorted(
        by_data.items(),
        key=lambda each: -each[1][0].compared[0][0].training_examples,
    ):
        lines = [_cells(found) for found in of_data]
        table = _table(lines[0], [cells.values() for cells in lines])
        parts += [f"**{data}**", table]
    return parts


def _cells(found: Finding) -> dict[str, str]:
    """The cells of a finding by column heading."""
    return {
        "claim": found.claim.text,
        "source": found.claim.source,
        "difference": _difference(found),
        "with examples": _range(found.interval_with_examples),
        "p": _p(found.inference.p),
        "p, Holm": _p(found.corrected),
        "pairs": str(len(found.values)),
        "on": found.conditions,
        "settings": _settings(found),
        "verdict": found.verdict,
    }


def _difference(found: Finding) -> str:
    """The mean, with its interval unless that is NaN."""
    mean, (low, high) = found.inference.mean, found.inference.interval
    if math.isnan(low):
        return f"{mean:.2f} {found.unit}"
    if found.unit == "r":  # correlations have asymmetric intervals
        return f"{mean:.2f} ({_range((low, high))}) r"
    return f"{with_interval(mean, high - mean)} {found.unit}"


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "{:.2f} to {:.2f}".format(*interval)


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


def _settings(found: Finding) -> str:
    """The settings and searches in which the compared rows differ."""
    if len(found.settings) == 1:
        return ""
    alike = len(set(found.searches)) == 1
    sides = [
        settings + f" ({search or 'no search of its own'})" * (not alike)
        for settings, search in zip(found.settings, found.searches, strict=True)
    ]
    if not any(found.settings) and alike:
        return "the same"
    return " / ".join(sides) + "; **unlike searches**" * (not alike)


def _figures(directory: Path, found: dict[Path, Result]) -> list[str]:
    """Draws the figures of the results; returns the Markdown that shows them.

    The results of Table 2 have Figures 1 and 2, those of other test errors the
    curves alone.
    """
    groups: dict[bool, dict[str, list[Path]]] = {True: {}, False: {}}
    for path, result in found.items():
        row = ROWS[result.row]
        if row.unit == "%" and path.with_suffix(".csv").exists():
            of_table = groups[row.table == 2]
            of_table.setdefault(_drawn_together(result), []).append(path)
    named: Counter = Counter()

    def name_of(path: Path) -> str:
        """The folder and the row of the first result, and a number if taken."""
        row = found[path].row.rpartition("/")[0]
        place = path.parent.relative_to(directory) / row
        name = "-".join(place.parts)
        named[name] += 1
        return name + f"-{named[name]}" * (named[name] > 1)

    parts = []
    for paths in groups[False].values():
        first, name = found[paths[0]], name_of(paths[0])
        drawn = error_curves(
            f"{first.training_examples:,} training and "
            f"{first.test_examples:,} test images ({first.source})\n"
            f"{first.network}, width {first.width:g}\n{_trained(first)}",
            histories({path: found[path] for path in paths}),
        )
        save_figure(drawn, directory / f"errors-{name}.png")
        title = f"Errors by epoch, {_data(ROWS[first.row], first)}"
        parts.append(f"![{title}](errors-{name}.png)")
    for paths in groups[True].values():
        first, name = found[paths[0]], name_of(paths[0])
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
            for path in paths
            if _method(found[path]) == ("invariant", False)
            and (saved := path.with_suffix(".keras")).exists()
        ]
        model = keras.saving.load_model(from_zero[0]) if from_zero else None
        curves = histories({path: found[path] for path in paths})
        drawn = figure_1(dataset, curves, model, _trained(first))
        figures = {"Figure 1": drawn}
        if model is not None:
            figures["Figure 2"] = figure_2([(dataset, model)])
        of_data = f"{_data(ROWS[first.row], first)}, {first.encoding} encoding"
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
