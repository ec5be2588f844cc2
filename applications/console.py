"""What a person sees of trainings: their progress, and their results."""

import time
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.table import Table

from .measurements import measurements
from .results import Result
from .tables import ROWS


class JobsTable:
    """Shows trainings in one live table; a context manager.

    Args:
        epochs: Title of a training -> its number of epochs.
        units: Title of a training -> the unit of its figures.
        quiet: Whether to show nothing: another process does.

    Attributes:
        results: Title -> result of those that have ended.
        failures: Title -> what was wrong with those that could not be done.
    """

    def __init__(
        self,
        epochs: Mapping[str, int],
        units: Mapping[str, str],
        quiet: bool = False,
    ):
        self.results: dict[str, Result] = {}
        self.failures: dict[str, str] = {}
        self._units = units
        self._expected = dict(epochs)
        # Title -> when, how many epochs done, validation: first and last.
        self._epochs: dict[str, tuple[_Epoch, _Epoch]] = {}
        self._console = Console(stderr=True, quiet=quiet)
        self._live = Live(
            console=self._console, get_renderable=self._table, transient=True
        )

    def __enter__(self) -> "JobsTable":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def epoch(self, title: str, done: int, validation: float | None) -> None:
        """Shows that so many epochs are done, the last with that figure."""
        now = _Epoch(time.monotonic(), done, validation)
        first, last = self._epochs.get(title, (now, now))
        # A job that has moved to another process went back to its backup.
        self._epochs[title] = (first if last.done < done else now, now)

    def ended(self, title: str, result: Result) -> None:
        """Shows the result of a training."""
        self.results[title] = result
        told = f"test {result.test:.2f} {result.unit}"
        if result.validation is not None:
            told = f"validation {result.validation:.2f} {result.unit}, {told}"
        self._console.print(f"done: {title}: {told}", soft_wrap=True)

    def failed(self, title: str, error: Exception) -> None:
        """Shows that a training cannot be done."""
        self.failures[title] = str(error)
        self._console.print(
            f"failed: {title}: {error}", style="red", soft_wrap=True
        )

    def _table(self) -> Table:
        ended = len(self.results) + len(self.failures)
        table = Table(title=f"{ended} of {len(self._expected)} trainings done")
        table.add_column("training")
        for name in ("epochs", "validation", "time left"):
            table.add_column(name, justify="right", no_wrap=True)
        open_ = [
            title
            for title in self._expected
            if title not in self.results and title not in self.failures
        ]
        for title in sorted(open_, key=lambda each: each not in self._epochs):
            table.add_row(title, *self._cells(title))
        return table

    def _cells(self, title: str) -> tuple[str, str, str]:
        if title not in self._epochs:
            return "waiting", "", ""
        first, last = self._epochs[title]
        # Training anew goes beyond the epochs that were expected.
        total = max(self._expected[title], last.done)
        figure = (
            ""
            if last.validation is None
            else f"{last.validation:.2f} {self._units[title]}"
        )
        left = ""
        if last.done > first.done:
            each = (last.time - first.time) / (last.done - first.done)
            left = str(timedelta(seconds=round(each * (total - last.done))))
        return f"{last.done}/{total}", figure, left


class _Epoch(NamedTuple):
    time: float
    done: int
    validation: float | None


def paper_table(
    results: Sequence[Result], measured_only: bool = False
) -> Group:
    """The rows of the paper's tables, printed and measured, to print.

    All of them, or those that were measured. Notes below the table say on
    what each figure was measured.
    """
    table = Table(
        title="Invariant dropout (Ba, Xiong and Frey, 2014), Tables 2 to 6",
        caption="Test error in %, or code quality in bits (Table 5): the "
        "paper's, and what was measured, with mean and 95 % confidence "
        "interval over seeds (Student's t).",
    )
    table.add_column("row")
    for name in ("paper", "measured", "note"):
        table.add_column(name, justify="right", no_wrap=True)
    notes: dict[str, int] = {}
    network = None
    for row in ROWS.values():
        measured = measurements(row, results)
        if measured_only and not measured:
            continue
        if row.network != network:
            table.add_section()
            table.add_row(f"[bold]{row.network.name}")
        network = row.network
        cells = [row.id, f"{row.printed:.2f} {row.unit}"]
        if not measured:
            table.add_row(*cells, "not run")
        for each in measured:
            number = notes.setdefault(each.note, len(notes) + 1)
            table.add_row(*cells, f"{each.figure} {row.unit}", str(number))
            cells = ["", ""]
    return Group(
        table, *(f"{number}. {note}" for note, number in notes.items())
    )
