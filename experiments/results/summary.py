"""Writes tables of the measurements into a file such as README.md."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import chain
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
    """Writes tables of the measurements into a Markdown file.

    Args:
        directory: Directory with the results (`.json`), at any depth.
        path: A file with the lines `MARKS`. The tables replace the text
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
    """The test errors as Markdown tables, followed by their notes.

    The network of Table 2 has a table with a line per method and a column per
    encoding; the other networks share one with a line per network and method
    and a column per data set. Both leave out lines without measurements.
    """
    results = list(results)
    shown = [
        (row, each)
        for row in ROWS.values()
        if row.unit == "%"
        for each in _shown(measurements(row, results))
    ]
    notes: dict[str, str] = {}
    for _, each in shown:
        notes.setdefault(each.short_note, ascii_letters[len(notes)])
    parts = [
        _table(headings, of_rows, notes)
        for headings, of_rows in (
            (["test error (%)"], [x for x in shown if x[0].table == 2]),
            (
                ["network", "test error (%)"],
                [x for x in shown if x[0].table != 2],
            ),
        )
        if of_rows
    ]
    if parts:
        lettered = (f"<sup>{x}</sup> {note}" for note, x in notes.items())
        parts.append("<br>\n".join(lettered))
    return parts


def _shown(measured: Iterable[Measurement]) -> Iterator[Measurement]:
    """The largest measurement of a row for each start of beta.

    The largest has the most training examples, then the widest network, then
    the row's own settings, then the most seeds, then the most epochs.
    """
    measured = list(measured)
    for calibrated in (False, True):
        found = [each for each in measured if each.calibrated == calibrated]
        if found:
            yield max(
                found,
                key=lambda each: (
                    each.training_examples,
                    each.width,
                    each.activation is None and not each.changed,
                    len(each.seeds),
                    each.epochs,
                ),
            )


def _table(
    headings: Sequence[str],
    shown: Iterable[tuple[Row, Measurement]],
    notes: Mapping[str, str],
) -> str:
    """One table of measurements.

    Args:
        headings: The headings of the cells that begin a line: the method, or
            the network and the method.
        shown: The measurements, at most one for each row and start of beta.
        notes: The letter of each note.
    """
    columns: dict[str, tuple[Row, Measurement]] = {}
    # By network and method, then by the title of the column.
    lines: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row, each in shown:
        title = _title(row, each)
        columns.setdefault(title, (row, each))
        seeds = counted(len(each.seeds), "seed")
        cells = [f"{each.figure} ({seeds}) <sup>{notes[each.short_note]}</sup>"]
        if each.dataset == row.dataset:
            cells.append(f"*{row.printed:.2f}*" * each.in_the_paper)
        lines.setdefault(_line(row, each.calibrated), {})[title] = cells
    header = [*headings]
    for title, (row, each) in columns.items():
        # On other data than the paper's, its figures are no comparison.
        own = each.dataset == row.dataset
        paper = "*paper*" if each.width == 1 else "*paper, full width*"
        header += [title, *[paper] * own]
        for other in ROWS.values():
            line = lines.get(_line(other, calibrated=False))
            alike = other.dataset, other.encoding
            if line and own and alike == (row.dataset, row.encoding):
                line.setdefault(title, ["not run", f"*{other.printed:.2f}*"])
        for line in lines.values():
            line.setdefault(title, ["", *[""] * own])
    networks = [*dict.fromkeys(row.network.name for row in ROWS.values())]
    methods = [*METHOD_NAMES.values()]
    ordered = sorted(
        lines, key=lambda x: (networks.index(x[0]), methods.index(x[1]))
    )
    return table(
        header,
        [
            [
                *line[-len(headings) :],
                *chain(*(lines[line][x] for x in columns)),
            ]
            for line in ordered
        ],
    )


def _line(row: Row, calibrated: bool) -> tuple[str, str]:
    """The network and the method of a line."""
    return row.network.name, METHOD_NAMES[row.method, calibrated]


def _title(row: Row, measured: Measurement) -> str:
    """The title of a column."""
    name = name_of(measured.dataset)
    if row.table == 2:
        name += f", {row.encoding}"
    if measured.width != 1:
        name += f", width {measured.width:g}"
    return name
