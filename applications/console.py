"""What a person sees of trainings: their progress, and their results."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.console import Group
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn
from rich.table import Table

from .report import Measurement
from .report import measurements
from .results import Result
from .tables import ROWS


@contextmanager
def training_progress(epochs_in_all: int) -> Iterator[Callable]:
    """Shows the progress of trainings, all together and one by one.

    Gives a function that is called with the description of a training and
    its epochs as it starts; it is a context manager, which ends with the
    training and gives what is called with the number of epochs done.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        total = progress.add_task("epochs, all", total=epochs_in_all)
        before = 0

        @contextmanager
        def training(
            description: str, epochs: int
        ) -> Iterator[Callable[[int], None]]:
            nonlocal before
            task = progress.add_task(description, total=epochs)

            def on_epoch(done: int) -> None:
                # Training anew goes beyond the epochs that were expected.
                progress.update(task, completed=done, total=max(epochs, done))
                progress.update(total, completed=before + min(epochs, done))

            yield on_epoch
            before += epochs
            progress.remove_task(task)
            progress.console.print(f"done: {description}")

        yield training


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
            number = notes.setdefault(_conditions(each), len(notes) + 1)
            figure = _figure(each.mean, each.half_width)
            table.add_row(*cells, f"{figure} {row.unit}", str(number))
            cells = ["", ""]
    return Group(
        table, *(f"{number}. {note}" for note, number in notes.items())
    )


def _conditions(measured: Measurement) -> str:
    seeds = ", ".join(map(str, measured.seeds))
    return (
        f"{measured.source}: {measured.training_examples:,} examples for "
        f"training, {measured.validation_examples:,} for validation, "
        f"{measured.test_examples:,} for test; {measured.epochs} epochs"
        f"{_details(measured)}; seed{'s' * (len(measured.seeds) > 1)} {seeds}; "
        f"{measured.backend} backend"
    )


def _figure(mean: float, half_width: float | None) -> str:
    return f"{mean:.2f}" + (
        "" if half_width is None else f" ± {half_width:.2f}"
    )


def _details(measured: Measurement) -> str:
    """What is not the row's own: width, activation, settings of the recipe."""
    details = dict(measured.settings)
    if details.pop("calibrated", False):
        details["beta"] = "calibrated"
    if measured.width != 1:
        details["width"] = measured.width
    if measured.activation is not None:
        details["activation"] = measured.activation
    return "".join(f", {name} {value}" for name, value in details.items())
