"""The paper's claims about its rows, and our own."""

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


def _table_2(encoding: str) -> tuple[Claim, ...]:
    row = f"table2/{encoding}/"
    return (
        Claim(
            "Invariant dropout makes fewer errors than standard dropout, "
            f"{encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}standard"),),
        ),
        Claim(
            f"... than the running average, {encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}running_average"),),
        ),
        Claim(
            f"... than with beta on the input only, {encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}invariant_input"),),
        ),
        Claim(
            "... than with beta on the hidden layers only, "
            f"{encoding} encoding",
            "Table 2",
            "better",
            ((f"{row}invariant", f"{row}invariant_hidden"),),
        ),
        Claim(
            "Calibrated, it makes fewer errors than standard dropout, "
            f"{encoding} encoding",
            "ours",
            "better",
            ((f"{row}invariant{CALIBRATED}", f"{row}standard"),),
        ),
        *(
            Claim(
                f"Beta correlates negatively with the mean activity, "
                f"{layer.replace('_', ' ')}, {encoding} encoding",
                "Figure 2",
                "negative",
                ((f"{row}invariant", f"{layer}_dropout"),),
            )
            for layer in ("input", "hidden_1", "hidden_2")
        ),
    )


def _invariant(text: str, source: str, row: str) -> Claim:
    return Claim(
        f"Invariant dropout makes fewer errors than standard dropout, {text}",
        source,
        "better",
        ((f"{row}/invariant", f"{row}/standard"),),
    )


# Equal errors of calibrated dropout on both encodings are no claim: the two
# trainings mirror each other (test_mirror.py).
CLAIMS: tuple[Claim, ...] = (
    *_table_2("original"),
    *_table_2("inverted"),
    Claim(
        "Standard dropout makes more errors on the inverted encoding",
        "Table 2",
        "better",
        (("table2/original/standard", "table2/inverted/standard"),),
    ),
    Claim(
        "Invariant dropout makes as many errors on both encodings",
        "Table 2",
        "same",
        (("table2/original/invariant", "table2/inverted/invariant"),),
    ),
    _invariant("CIFAR-10, ReLU network", "Table 3", "table3/relu"),
    _invariant("SVHN, ReLU network", "Table 4", "table4/relu"),
    Claim(
        "Standard dropout has more code quality than none",
        "Table 5",
        "better",
        tuple(
            (f"table5/{i}/standard", f"table5/{i}/none") for i in range(1, 7)
        ),
    ),
    Claim(
        "Invariant dropout has more code quality than standard dropout",
        "Table 5",
        "better",
        tuple(
            (f"table5/{i}/invariant", f"table5/{i}/standard")
            for i in range(1, 7)
        ),
    ),
    _invariant("CIFAR-10, maxout network", "Table 6", "table6/cifar10"),
    _invariant("SVHN, maxout network", "Table 6", "table6/svhn"),
)
