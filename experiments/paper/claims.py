"""The paper's claims about its rows, and our own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Suffix of rows whose beta starts calibrated: ours, not the paper's.
CALIBRATED = "+calibrated"


@dataclass(frozen=True)
class Claim:
    """A sentence about rows of the tables.

    Attributes:
        text: The sentence.
        source: Place in the paper, or `"ours"`.
        kind: `"better"` if the first row of each pair has the better figure,
            `"same"` if both rows have the same figure, `"negative"` if beta
            and the mean activity in a layer of a row correlate negatively.
        pairs: Pairs of row ids, with `+calibrated` if beta starts calibrated;
            or pairs of a row id and the name of a layer.
    """

    text: str
    source: str
    kind: Literal["better", "same", "negative"]
    pairs: tuple[tuple[str, str], ...]


def _better(text: str, source: str, *pairs: tuple[str, str]) -> Claim:
    return Claim(text, source, "better", pairs)


def _invariant(text: str, source: str, row: str) -> Claim:
    return _better(
        f"Invariant dropout makes fewer errors than standard dropout, {text}",
        source,
        (f"{row}/invariant", f"{row}/standard"),
    )


def _calibrated(text: str, row: str) -> Claim:
    return _better(
        "Calibrated invariant dropout makes fewer errors than standard "
        f"dropout, {text}",
        "ours",
        (f"{row}/invariant{CALIBRATED}", f"{row}/standard"),
    )


def _images(text: str, source: str, row: str) -> Iterator[Claim]:
    yield _invariant(text, source, row)
    yield _calibrated(text, row)


def _table_2(encoding: str) -> Iterator[Claim]:
    row = f"table2/{encoding}"
    invariant, where = f"{row}/invariant", f"{encoding} encoding"
    yield _invariant(where, "Table 2", row)
    for than, method in {
        "the running average": "running_average",
        "with beta on the input only": "invariant_input",
        "with beta on the hidden layers only": "invariant_hidden",
    }.items():
        text = f"... than {than}, {where}"
        yield _better(text, "Table 2", (invariant, f"{row}/{method}"))
    yield _calibrated(where, row)
    yield _better(
        "Dropout around a running average makes fewer errors than standard "
        f"dropout, {where}",
        "Table 2",
        (f"{row}/running_average", f"{row}/standard"),
    )
    for layer in ("input", "hidden_1", "hidden_2"):
        yield Claim(
            "Beta correlates negatively with the mean activity, "
            f"{layer.replace('_', ' ')}, {where}",
            "Figure 2",
            "negative",
            ((invariant, f"{layer}_dropout"),),
        )


def _table_5(better: str, other: str, text: str) -> Claim:
    rows = [f"table5/{partition}" for partition in range(1, 7)]
    pairs = [(f"{row}/{better}", f"{row}/{other}") for row in rows]
    return _better(text, "Table 5", *pairs)


# Equal errors of calibrated dropout on both encodings are no claim: the two
# trainings mirror each other (test_mirror.py).
CLAIMS: tuple[Claim, ...] = (
    *_table_2("original"),
    *_table_2("inverted"),
    _better(
        "Standard dropout makes more errors on the inverted encoding",
        "Table 2",
        ("table2/original/standard", "table2/inverted/standard"),
    ),
    Claim(
        "Invariant dropout makes as many errors on both encodings",
        "Table 2",
        "same",
        (("table2/original/invariant", "table2/inverted/invariant"),),
    ),
    *_images("the ReLU network of Table 3", "Table 3", "table3/relu"),
    *_images("the ReLU network of Table 4", "Table 4", "table4/relu"),
    _table_5(
        "standard", "none", "Standard dropout has more code quality than none"
    ),
    _table_5(
        "invariant",
        "standard",
        "Invariant dropout has more code quality than standard dropout",
    ),
    *_images("the maxout network for CIFAR-10", "Table 6", "table6/cifar10"),
    *_images("the maxout network for SVHN", "Table 6", "table6/svhn"),
)
