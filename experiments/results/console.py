"""Shows the progress and the results of trainings."""

import time
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from itertools import compress
from typing import NamedTuple

from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.table import Table

from keras_invdrop._interruptions import when_interrupted

from ..paper.tables import ROWS
from .measurements import METHOD_NAMES
from .measurements import measurements
from .records import Result


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text literally.

    By default Rich would interpret "[jax]" in `pip install '.[jax]'`, or in a
    file name, as markup.
    """
    return Console(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False
    )


def say(text: str) -> None:
    """Prints a message to stderr, without wrapping."""
    console(stderr=True).print(text, soft_wrap=True)


# Seconds between two progress lines of a training.
INTERVAL = 5.0


class ProgressTable:
    """Shows the progress of trainings; a context manager.

    A terminal shows a live table. A file or a pipe gets a line when a training
    starts, and a line after each epoch, at most one per `INTERVAL`.

    Args:
        epochs: Title of a training -> its number of epochs.
        units: Title of a training -> the unit of its figures.
        quiet: Whether to show nothing, because another process does.
        live: Whether a terminal shows the table rather than lines.

    Attributes:
        results: Title -> result of a finished training.
        failures: Title -> error message of a failed training.
    """

    def __init__(
        self,
        epochs: Mapping[str, int],
        units: Mapping[str, str],
        quiet: bool = False,
        live: bool = True,
    ):
        self.results: dict[str, Result] = {}
        self.failures: dict[str, str] = {}
        self._units = units
        self._expected = epochs
        # Title -> first and last epoch since the training started or moved.
        self._epochs: dict[str, tuple[_Epoch, _Epoch]] = {}
        self._console = console(stderr=True, quiet=quiet)
        self._has_table = live and self._console.is_terminal
        self._live = Live(
            console=self._console, get_renderable=self._table, transient=True
        )
        # Title -> time of the training's last printed line.
        self._printed: dict[str, float] = {}
        self._open = ExitStack()

    def __enter__(self) -> "ProgressTable":
        if self._has_table:
            self._live.start()
            self._open.callback(self._live.stop)
            # Restore the cursor and remove the table.
            self._open.enter_context(when_interrupted(self._live.stop))
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line, above the table if one is shown."""
        self._console.print(text, style=style, soft_wrap=True)

    def began(self, title: str) -> None:
        """Shows that a training has begun, before its first epoch."""
        self._epochs.setdefault(title, (_Epoch(0, 0, None),) * 2)
        self._say_progress(title, "loading the data, compiling the network")

    def epoch(self, title: str, done: int, validation: float | None) -> None:
        """Shows the number of finished epochs and the last one's figure."""
        now = _Epoch(time.monotonic(), done, validation)
        first, last = self._epochs.get(title, (now, now))
        # The first epoch takes longer, because it compiles the network. A
        # training that moves to another process returns to its backup.
        goes_on = first.done > 0 and last.done < done
        self._epochs[title] = (first if goes_on else now, now)
        if not goes_on or now.time >= self._printed[title] + INTERVAL:
            self._printed[title] = now.time
            total, figure, left = self._progress(title)
            self._say_progress(
                title,
                f"epoch {done} of {total}"
                + (f", validation {figure}" if figure else "")
                + (f", {left} left" if left else ""),
            )

    def ended(self, title: str, result: Result) -> None:
        """Shows the result of a training."""
        self.results[title] = result
        told = f"test {result.test:.2f} {result.unit}"
        if result.validation is not None:
            told = f"validation {result.validation:.2f} {result.unit}, {told}"
        self.say(f"done: {title}: {told}")

    def failed(self, title: str, error: BaseException) -> None:
        """Shows the error of a failed training."""
        self.failures[title] = str(error)
        self.say(f"failed: {title}: {error}", style="red")

    def _say_progress(self, title: str, text: str) -> None:
        if not self._has_table:
            self.say(f"{title}: {text}")

    def _table(self) -> Table:
        ended = len(self.results) + len(self.failures)
        table = Table(title=f"{ended} of {len(self._expected)} trainings done")
        table.add_column("training")
        # Without validation examples the table needs no column for them.
        validated = any(
            last.validation is not None for _, last in self._epochs.values()
        )
        columns = {"epochs": True, "validation": validated, "time left": True}
        for name, shown in columns.items():
            if shown:
                table.add_column(name, justify="right", no_wrap=True)
        open_ = [
            title
            for title in self._expected
            if title not in self.results and title not in self.failures
        ]
        for title in sorted(open_, key=lambda each: each not in self._epochs):
            cells = compress(self._cells(title), columns.values())
            table.add_row(title, *cells)
        return table

    def _cells(self, title: str) -> tuple[str, str, str]:
        if title not in self._epochs:
            return "waiting", "", ""
        done = self._epochs[title][1].done
        if done == 0:
            return "compiling", "", ""
        total, figure, left = self._progress(title)
        return f"{done}/{total}", figure, left

    def _progress(self, title: str) -> tuple[int, str, str]:
        """Total number of epochs, validation figure, and remaining time."""
        first, last = self._epochs[title]
        # Retraining may exceed the expected number of epochs.
        total = max(self._expected[title], last.done)
        figure = left = ""
        if last.validation is not None:
            figure = f"{last.validation:.2f} {self._units[title]}"
        if last.done > first.done:
            each = (last.time - first.time) / (last.done - first.done)
            left = str(timedelta(seconds=round(each * (total - last.done))))
        return total, figure, left


class _Epoch(NamedTuple):
    time: float
    done: int
    validation: float | None


def paper_table(
    results: Sequence[Result], measured_only: bool = False
) -> Group:
    """A table of the paper's rows, with the paper's and the measured figures.

    `measured_only` leaves out rows without measurements. Notes below the table
    describe the conditions of each measurement.
    """
    table = Table(
        title="Invariant dropout (Ba, Xiong and Frey, 2014), Tables 2 to 6",
        caption="Test error in %, or code quality in bits (Table 5): the "
        "paper's figure, and the measured mean over seeds with its 95 % "
        "confidence interval (Student's t).",
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
            table.add_row(row.network.name, style="bold")
        network = row.network
        name, printed = row.id, f"{row.printed:.2f} {row.unit}"
        if not measured:
            table.add_row(name, printed, "not run")
        for each in measured:
            number = notes.setdefault(each.note, len(notes) + 1)
            # On other data than the paper's, its figure is no comparison.
            own = each.dataset == row.dataset
            figure = f"{each.figure} {row.unit}"
            table.add_row(name, printed * own, figure, str(number))
            name, printed = "", printed * (not own)
    return Group(
        table, *(f"{number}. {note}" for note, number in notes.items())
    )


def encodings_table(results: Sequence[Result]) -> Group:
    """The demonstration's errors, with a line per method.

    Below the table are a sentence that summarises it and a note about the
    conditions.
    """
    found = {
        (METHOD_NAMES[row.method, each.calibrated], row.encoding): each
        for row in ROWS.values()
        if row.table == 2
        for each in measurements(row, results)
    }
    encodings = "original", "inverted"
    table = Table(title="Test error in %, mean and 95 % interval over seeds")
    table.add_column("")
    for encoding in encodings:
        table.add_column(f"{encoding} encoding", justify="right", no_wrap=True)
    for method in dict.fromkeys(method for method, _ in found):
        figures = [found[method, encoding].figure for encoding in encodings]
        table.add_row(method, *figures)
    standard, calibrated = (
        [f"{found[method, encoding].mean:.1f} %" for encoding in encodings]
        for method in (
            METHOD_NAMES["standard", False],
            METHOD_NAMES["invariant", True],
        )
    )
    shown = (
        "From the original to the inverted encoding the errors go from "
        f"{' to '.join(standard)} with standard dropout, and from "
        f"{' to '.join(calibrated)} with calibrated invariant dropout."
    )
    note = found[METHOD_NAMES["standard", False], "original"].note
    return Group(table, shown, f"{note}.")
