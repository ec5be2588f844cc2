"""Writes the paper's tables with the measurements as Markdown."""

import math
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

from keras_invdrop._files import replacing

from ..paper.tables import ROWS
from ..paper.tables import Row
from .findings import SAME_WITHIN
from .findings import SELECTED
from .findings import SIGNIFICANT
from .findings import Finding
from .findings import findings
from .markdown import by_data
from .markdown import table
from .measurements import Measurement
from .measurements import measurements
from .measurements import with_interval
from .records import Result
from .records import results_in
from .report_figures import draw

INTRODUCTION = (
    "Figures in italics are the paper's (Ba, Xiong and Frey, 2014). All "
    "other figures are measured means over seeds, with 95 % confidence "
    "intervals (Student's t). The notes give the conditions, and name a "
    "setting only where it differs from the row's recipe or, on the 5,000 "
    "digits, from the demonstration's (`recipes.DEMO`). If a training had "
    "validation examples, they selected the epoch."
)

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
    found = results_in(directory)
    parts = [text(found.values())]
    figures = draw(directory, found)
    if figures:
        parts += ["### Figures", *figures]
    path = directory / "report.md"
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
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
        measured = [
            (row, each) for row in rows for each in measurements(row, results)
        ]
        for data, of_data in by_data(measured, lambda pair: pair):
            parts += [f"**{data}**", _measured(of_data, notes)]
        run = {row.id for row, _ in measured}
        not_run = [
            (f"`{row.id}`", f"*{row.printed:.2f}*")
            for row in rows
            if row.id not in run
        ]
        if not_run:
            parts += ["**Not run**", table(("row", "paper"), not_run)]
    if notes:
        parts.append(
            "\n".join(f"{number}. {note}" for note, number in notes.items())
        )
    return parts


def _measured(
    of_data: Sequence[tuple[Row, Measurement]], notes: dict[str, int]
) -> str:
    """The table of the measurements on one data set."""
    # On other data than the paper's, the paper's figure is no comparison.
    own = all(each.dataset == row.dataset for row, each in of_data)
    lines = [
        (
            f"`{row.id}`",
            *(_printed(row, each),) * own,
            each.figure,
            str(len(each.seeds)),
            each.conditions,
            str(notes.setdefault(each.note, len(notes) + 1)),
        )
        for row, each in of_data
    ]
    paper = ("paper",) * own
    return table(("row", *paper, "measured", "seeds", "on", "note"), lines)


def _printed(row: Row, measured: Measurement) -> str:
    """The paper's figure beside a measurement, where the paper has one."""
    full = "" if measured.width == 1 else " (full width)"
    return f"*{row.printed:.2f}*{full}" if measured.in_the_paper else ""


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
        "Each line has the recipe of a row, which a search for its method "
        "alone selected on validation examples. One search serves calibrated "
        "beta on both encodings. `None` means no maximum norm, or Keras' "
        "default initial weights. The notes name other settings.",
        table(("row", *names, "search"), lines),
    ]


def claims(results: Iterable[Result]) -> list[str]:
    """The claims tested on the results, as Markdown."""
    every = findings(results)
    if not every:
        return []
    parts = [
        "### What holds",
        "Differences are paired by seed. A positive difference favours the "
        "claim, except that equal errors are tested on the errors on the "
        "inverted encoding minus those on the original one, and a correlation "
        "has its own sign. The first interval is the 95 % interval over seeds "
        "(Student's t). "
        "The second, over seeds and test examples (bootstrap of both), needs "
        "results that record the misclassified examples; with few seeds that "
        "differ much it is too narrow, so a verdict also needs p. p is "
        "two-sided; two "
        f"one-sided tests with a margin of {SAME_WITHIN} points test for "
        "equal errors, and Fisher's z tests correlations. All p values of the "
        "report are corrected together (Holm). A corrected p below "
        f"{SIGNIFICANT} decides a claim unless the second interval leaves it "
        "open. A single pair decides nothing. In Table 5 a pair is a "
        "partition, with the mean over seeds; the partitions share training "
        "examples, so that the p of their t test is too small. Two rows with "
        "other settings are compared only if each has those of its recipe; "
        "the tables list the settings in which they differ, say where a row "
        "has no search of its own, and mark unlike searches. Rows with the "
        "same settings are compared whether or not these were selected for "
        "either.",
    ]
    for data, of_data in by_data(every, _source):
        lines = [_cells(found) for found in of_data]
        parts += [
            f"**{data}**",
            table(lines[0], [cells.values() for cells in lines]),
        ]
    return parts


def _source(found: Finding) -> tuple[Row, Result]:
    first = found.compared[0][0]
    return ROWS[first.row], first


def _cells(found: Finding) -> dict[str, str]:
    """The cells of a finding by column heading."""
    return {
        "claim": found.claim.text,
        "source": _claimed(found),
        "difference": _difference(found),
        "with examples": _range(found.interval_with_examples),
        "p": _p(found.inference.p),
        "p, Holm": _p(found.corrected),
        "pairs": str(len(found.values)),
        "on": found.conditions,
        "settings": _settings(found),
        "verdict": found.verdict,
    }


def _claimed(found: Finding) -> str:
    """The source of a claim, which is about the paper's data."""
    row, result = _source(found)
    source = found.claim.source
    if result.dataset == row.dataset or not source.startswith("Table"):
        return source
    return f"as in {source}"


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
    unlike = len(set(found.searches)) > 1
    if not any(found.settings) and not unlike:
        return "the same"
    named = unlike or None in found.searches
    sides = [
        settings + f" ({search or 'no search of its own'})" * named
        for settings, search in zip(found.settings, found.searches, strict=True)
    ]
    return " / ".join(sides) + "; **unlike searches**" * unlike
