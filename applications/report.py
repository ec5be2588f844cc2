"""What was measured, beside what the paper prints, as Markdown and pictures."""

from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import keras
import pandas as pd

from .claims import findings
from .datasets import load
from .figures import figure_1
from .figures import figure_2
from .figures import save_figure
from .measurements import Measurement
from .measurements import measurements
from .measurements import with_interval
from .results import Result
from .results import replacing
from .results import stored
from .tables import ROWS
from .tables import Row

TITLES = {
    2: "MNIST, test error in %",
    3: "CIFAR-10, test error in %",
    4: "SVHN, test error in %",
    5: "Splicing, code quality in bits",
    6: "Maxout networks, test error in %",
}


def write_report(directory: Path) -> Path:
    """Writes `report.md`, and the figures that the files allow.

    Args:
        directory: Below it are the results (`.json`); a history (`.csv`) and
            a model (`.keras`) of the same name are drawn.

    Returns:
        The path of the report.

    Raises:
        OSError: If there are no results, or the report cannot be written.
        ValueError: If a file is no result.
    """
    found = stored(directory)
    if not found:
        raise OSError(
            f"There are no results in {directory}/: no file *.json, which "
            "`keras-invdrop reproduce --out` writes"
        )
    parts = ["# Invariant dropout: the paper's tables, measured", *_intro()]
    parts += tables(found.values())
    parts += claims(found.values())
    figures = _figures(directory, found)
    if figures:
        parts += ["## Figures", *figures]
    path = directory / "report.md"
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return path


def _intro() -> list[str]:
    return [
        "Figures in italics are the paper's (Ba, Xiong and Frey, 2014). All "
        "others were measured: the mean over seeds, with its 95 % confidence "
        "interval (Student's t). The notes say on what. Where there were "
        "examples for validation the epoch was selected on them.",
    ]


def tables(results: Iterable[Result]) -> list[str]:
    """Each table of the paper, with what was measured, as Markdown."""
    results = list(results)
    notes: dict[str, int] = {}
    parts = []
    for number, title in TITLES.items():
        rows = [row for row in ROWS.values() if row.table == number]
        lines = [
            cells
            for row in rows
            for cells in _lines(row, measurements(row, results), notes)
        ]
        header = ("row", "paper", "measured", "seeds", "note")
        parts += [f"## Table {number}: {title}", _table(header, lines)]
    parts += ["Notes:"] * bool(notes)
    parts += [f"{number}. {note}" for note, number in notes.items()]
    return parts


def _lines(
    row: Row, measured: Sequence[Measurement], notes: dict[str, int]
) -> list[tuple[str, ...]]:
    printed = f"*{row.printed:.2f}*"
    if not measured:
        return [(f"`{row.id}`", printed, "not run", "", "")]
    return [
        (
            f"`{row.id}`"
            + ", calibrated" * each.settings.get("calibrated", False),
            printed,
            each.figure,
            str(len(each.seeds)),
            str(notes.setdefault(each.note, len(notes) + 1)),
        )
        for each in measured
    ]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def claims(results: Iterable[Result]) -> list[str]:
    """The claims of the paper of which something was measured."""
    lines = []
    for found in findings(results):
        mean, half_width = found.mean_and_interval
        half = half_width if len(found.values) > 1 else None
        lines.append(
            (
                found.claim.text,
                found.claim.source,
                f"{with_interval(mean, half)} {found.unit}",
                str(len(found.values)),
                found.conditions,
                found.verdict,
            )
        )
    if not lines:
        return []
    header = ("claim", "source", "difference", "pairs", "on", "")
    return [
        "## What holds",
        "Differences are paired, the same seed with one and with the other, "
        "and positive in favour of the claim. It holds if the 95 % interval "
        "of their mean leaves out 0 on that side, and does not if on the "
        "other; errors are as many if the interval holds 0 and is narrower "
        "than 0.1 points. A single pair decides nothing.",
        _table(header, lines),
    ]


def _figures(directory: Path, found: dict[Path, Result]) -> list[str]:
    """Draws Figures 1 and 2 of what there is; gives what shows them."""
    groups: dict[tuple, dict[str, list[Path]]] = {}
    for path, result in found.items():
        if (
            result.row.startswith("table2/")
            and path.with_suffix(".csv").exists()
        ):
            method = result.dropout
            if result.recipe.get("calibrated"):
                method = "calibrated"
            group = result.dataset, result.epochs, result.encoding
            groups.setdefault(group, {}).setdefault(method, []).append(path)
    parts = []
    for (name, epochs, encoding), methods in groups.items():
        dataset = load(name, encoding)
        histories = {
            method: [
                pd.read_csv(path.with_suffix(".csv"), index_col="epoch")
                for path in paths
            ]
            for method, paths in methods.items()
        }
        models = [
            path.with_suffix(".keras")
            for path in methods.get("invariant", [])
            if path.with_suffix(".keras").exists()
        ]
        model = keras.saving.load_model(models[0]) if models else None
        stem = f"{name}-{epochs}-epochs-{encoding}"
        curves = figure_1(dataset, histories, model)
        save_figure(curves, directory / f"figure1-{stem}.png")
        parts.append(f"![Figure 1, {stem}](figure1-{stem}.png)")
        if model is not None:
            learned = figure_2([(dataset, model)])
            save_figure(learned, directory / f"figure2-{stem}.png")
            parts.append(f"![Figure 2, {stem}](figure2-{stem}.png)")
    return parts
