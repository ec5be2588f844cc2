"""What a person sees of trainings: their progress, and their results."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn
from rich.table import Table

from .results import Result
from .results import mean_and_interval


@contextmanager
def training_progress(trainings: int, epochs: int) -> Iterator[Callable]:
    """Shows the progress of trainings, all together and one by one.

    Gives a function that is called with the description of a training as it
    starts; it is a context manager, which ends with the training and gives
    what is called with the number of epochs done.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        total = progress.add_task("epochs, all", total=trainings * epochs)
        before = 0

        @contextmanager
        def training(description: str) -> Iterator[Callable[[int], None]]:
            nonlocal before
            task = progress.add_task(description, total=epochs)

            def on_epoch(done: int) -> None:
                progress.update(task, completed=done)
                progress.update(total, completed=before + done)

            yield on_epoch
            before += epochs
            progress.remove_task(task)
            progress.console.print(f"done: {description}")

        yield training


def results_table(results: Sequence[Result]) -> Table:
    """The test errors, method by encoding, as a table to print."""
    first = results[0]
    table = Table(
        title=f"Test error on {first.test_examples:,} digits after training "
        f"on {first.training_examples:,}\n{first.source}",
        caption=f"{first.network} {first.activation}, {first.epochs} epochs, "
        f"{first.backend} backend. Mean and 95 % confidence interval over "
        "seeds (Student's t).",
    )
    table.add_column("dropout")
    table.add_column("encoding")
    table.add_column("test error (%)", justify="right")
    table.add_column("seeds")
    table.add_column("seconds each", justify="right")
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dropout, result.encoding), []).append(result)
    for (dropout, encoding), group in groups.items():
        mean, half_width = mean_and_interval(r.test_error for r in group)
        interval = "" if len(group) == 1 else f" ± {half_width:.2f}"
        seconds, _ = mean_and_interval(r.seconds for r in group)
        table.add_row(
            dropout,
            encoding,
            f"{mean:.2f}{interval}",
            ", ".join(str(r.seed) for r in group),
            f"{seconds:.0f}",
        )
    return table
