"""Writes one table of the measurements into a file such as README.md."""

from collections.abc import Iterable
from itertools import chain
from itertools import product
from pathlib import Path
from string import ascii_letters

from keras_invdrop._files import replacing

from ..paper.tables import ROWS
from ..paper.tables import Row
from .markdown import name_of
from .markdown import table
from .measurements import METHOD_NAMES
from .measurements import Measurement
from .measurements import counted
from .measurements import measurements
from .records import Result
from .records import results_in

# Lines of a file between which `write_summary` writes.
MARKS = "<!-- results: begin -->", "<!-- results: end -->"


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
    results = results_in(directory).values()
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(
            f"{path} has no place for the results: the lines {MARKS[0]} and "
            f"{MARKS[1]}"
        )
    parts = [begin, *summary(results), end]
    with replacing(path) as temporary:
        text = before + "\n\n".join(parts) + after
        temporary.write_text(text, encoding="utf-8")


def summary(results: Iterable[Result]) -> list[str]:
    """The test errors as one Markdown table, with a line per method.

    Among several measurements of a row, the table shows the one with the most
    training examples, then the row's own settings, then the most seeds, then
    the most epochs, separately for beta from 0 and calibrated. The table leaves
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
                    not set(each.settings) - {"calibrated"},
                    len(each.seeds),
                    each.epochs,
                ),
            )
            column = row.id.rpartition("/")[0], _title(row, largest)
            full = "" if largest.width == 1 else ", full width"
            columns[column] = f"*paper{full}*"
            letter = notes.setdefault(
                largest.short_note, ascii_letters[len(notes)]
            )
            seeds = counted(len(largest.seeds), "seed")
            cells[METHOD_NAMES[row.method, calibrated]][column] = [
                f"{largest.figure} ({seeds}) <sup>{letter}</sup>",
                f"*{row.printed:.2f}*" if largest.in_the_paper else "",
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
    return [table(header, lines), "<br>\n".join(lettered)]


def _title(row: Row, measured: Measurement) -> str:
    """The title of a column."""
    name = name_of(measured.dataset)
    if row.table == 2:
        name += f", {row.encoding}"
    if measured.width != 1:
        name += f", width {measured.width:g}"
    return name
