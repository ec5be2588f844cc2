"""Markdown of results: tables, and the names of data sets."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

from ..paper.tables import Row
from .measurements import Measurement
from .measurements import counted
from .records import Result

NAMES = {
    "mnist": "MNIST",
    "digits": "5,000 digits",
    "cifar10": "CIFAR-10",
    "svhn_cropped": "SVHN",
    # A file that results/README.md describes.
    "svhn_test_10000.npz": "SVHN, 10,000 of its test images (8,000 / 2,000)",
}


def name_of(dataset: str) -> str:
    """The name of a data set in a heading."""
    return NAMES.get(dataset, dataset)


def heading(row: Row, of: Measurement | Result) -> str:
    """The data set and its size, as a heading."""
    name = name_of(of.dataset)
    if row.partition is not None:  # the sizes of partitions differ
        return name
    return f"{name}, {counted(of.training_examples, 'training example')}"


def by_data(
    items: Iterable[Any],
    source: Callable[[Any], tuple[Row, Measurement | Result]],
) -> list[tuple[str, list[Any]]]:
    """Groups items by the heading of their data, the largest data set first.

    Args:
        items: Any objects.
        source: Function from an item to its row, and what was measured.
    """
    groups: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for item in items:
        row, of = source(item)
        groups.setdefault(heading(row, of), []).append(item)
        sizes.setdefault(heading(row, of), of.training_examples)
    return sorted(groups.items(), key=lambda group: -sizes[group[0]])


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table."""
    rows = [header, ["---" for _ in header], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
