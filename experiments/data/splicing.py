"""The data of Table 5: alternative splicing of exons in mouse tissues.

The data set (section 3.4) is not public in one file. `load_splicing` reads
the user's own, `generate_splicing` makes data that resemble it.

A file is one of two kinds, by its suffix.

`.csv`: a header, then one line per exon; blank lines are skipped. Columns
named `tissue/outcome` hold the targets, three outcomes for each tissue, side
by side; tissues and outcomes may be called anything. A column `partition`, if
there is one, holds integers from 1 to 6. Every other column is a feature, a
finite number. For example, with two features and one tissue:

    length,stop_codon,brain/inclusion,brain/exclusion,brain/no_change,partition
    0.13,0,0.1,0.05,0.85,1
    0.48,1,0.7,0.1,0.2,2

`.npz`: the arrays `features` of shape `(exons, features)`, `targets` of shape
`(exons, tissues, 3)` and, optionally, `partition` of shape `(exons,)` and
`source`, a string that says where the data come from.

In both, the targets of an exon in a tissue are a distribution: not negative,
with a sum of 1 within 0.001, to which they are then scaled exactly. There are
at least six exons, and one in each partition.
"""

import reprlib
import zipfile
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.special

from keras_invdrop._checks import check_positive_integer
from keras_invdrop._checks import invalid
from keras_invdrop._checks import is_integer
from keras_invdrop._files import replacing

from .datasets import SPLIT_SEED
from .datasets import Dataset
from .datasets import Split
from .datasets import limit

PARTITIONS = 6
OUTCOMES = 3


@dataclass(frozen=True)
class Splicing:
    """Exons, described by features, and how tissues splice them.

    Attributes:
        source: Where the data come from, in words.
        features: `(exons, features)`, float32.
        targets: `(exons, tissues, 3)`, float32: in each tissue a distribution
            over three outcomes.
        partition: `(exons,)`, integers from 1 to 6.
    """

    source: str
    features: np.ndarray
    targets: np.ndarray
    partition: np.ndarray


def load_splicing(path: str | Path) -> Splicing:
    """Reads a file of the user's, in one of the formats described above.

    Exons without partitions are dealt into six at random, as evenly as
    possible and always in the same way.

    Args:
        path: A file whose name ends in `.csv` or `.npz`.

    Raises:
        ValueError: If the file is not as described. Of a wrong number the
            message names the place: in a CSV file the line, the header being
            line 1, in an NPZ file the row, counted from 0.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    check_file(path)
    if path.suffix == ".csv":
        return _splicing(path, _read_csv(path), path.name)
    return _splicing(path, *_read_npz(path))


def check_file(path: Path) -> None:
    """Raises an error if `load_splicing` cannot read such a file."""
    if path.suffix not in (".csv", ".npz"):
        raise invalid("path", "a path that ends in .csv or .npz", str(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Expected a .csv or .npz file of exons, "
            "each with features and, for every tissue, a distribution over "
            "three outcomes of splicing. `keras-invdrop generate-splicing "
            "FILE.npz` makes data of the same shape."
        )


def save_splicing(path: str | Path, splicing: Splicing) -> None:
    """Writes an NPZ file, which `load_splicing` reads.

    Args:
        path: Where to write, a path that ends in `.npz`.
        splicing: What to write.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise invalid("path", "a path that ends in .npz", str(path))
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            features=splicing.features,
            targets=splicing.targets,
            partition=splicing.partition,
            source=np.array(splicing.source),
        )


def partition_of(
    splicing: Splicing, number: int, limit_train: int | None = None
) -> Dataset:
    """The data set that is tested on one of the six partitions.

    Args:
        splicing: All exons.
        number: Integer from 1 to 6, a column of Table 5.
        limit_train: Number of training exons to use, the first ones, for a
            quick trial; by default all.

    Returns:
        A `Dataset` with the exons of that partition for testing, those of the
        next (after the sixth comes the first) for validation, and the other
        four sixths for training. `y` has the shape `(exons, tissues, 3)`.
    """
    if not is_integer(number) or not 1 <= number <= PARTITIONS:
        raise invalid("number", f"an integer from 1 to {PARTITIONS}", number)
    # A choice: the paper says neither how its six partitions were made nor on
    # which exons it decided to stop early.
    following = number % PARTITIONS + 1
    (test,) = np.nonzero(splicing.partition == number)
    (validation,) = np.nonzero(splicing.partition == following)
    (train,) = np.nonzero(~np.isin(splicing.partition, (number, following)))
    train = train[: limit(limit_train, len(train))]

    def split(which):
        return Split(splicing.features[which], splicing.targets[which])

    return Dataset(
        name="mas",
        source=splicing.source,
        encoding="original",
        train=split(train),
        validation=split(validation),
        test=split(test),
    )


def generate_splicing(
    exons: int = 3665, features: int = 1014, tissues: int = 4, seed: int = 0
) -> Splicing:
    """Makes up data of the shape of the paper's: nothing of it was measured.

    Nothing about splicing can be concluded from these data, nor from how well
    a network predicts them. They are like the paper's in what a network has
    to cope with: many features for few exons, nearly all of them 0, most of
    the others 1; and targets that most often say "no change".

    The targets depend on the features through rules, each a rectified sum of
    a few features, whose effects add up, partly in common to all tissues. As
    much noise as effect is added: a network can learn, and it can overfit.

    Args:
        exons: Number of exons, at least 6.
        features: Number of features.
        tissues: Number of tissues.
        seed: Integer. The same seed makes the same data.

    Returns:
        A `Splicing`. The outcomes are: more inclusion, more exclusion, no
        change.
    """
    if not is_integer(exons) or exons < PARTITIONS:
        raise invalid("exons", f"an integer of at least {PARTITIONS}", exons)
    check_positive_integer("features", features)
    check_positive_integer("tissues", tissues)
    if not is_integer(seed) or seed < 0:
        raise invalid("seed", "an integer of at least 0", seed)
    rng = np.random.default_rng(seed)
    x = _sparse_features(rng, exons, features)
    effect = _effect_of_rules(rng, x, tissues)
    effect += rng.normal(size=effect.shape)
    # The constant makes "no change" the most likely nine times out of ten.
    logits = 1.5 * effect, -1.5 * effect, np.full_like(effect, 3.5)
    targets = scipy.special.softmax(np.stack(logits, axis=-1), axis=-1)
    return Splicing(
        source=f"generated with seed {seed}: not measured, says nothing about "
        "splicing",
        features=x,
        targets=targets.astype("float32"),
        partition=_random_partition(exons),
    )


def _sparse_features(rng, exons: int, features: int) -> np.ndarray:
    """Present or absent, rare or rarer; one feature in ten has an amount."""
    frequency = rng.beta(0.5, 6, size=features)  # 8 % in the mean
    present = rng.random((exons, features)) < frequency
    has_amount = rng.random(features) < 0.1
    amount = rng.gamma(2, 0.5, size=(exons, features))
    return (present * np.where(has_amount, amount, 1)).astype("float32")


def _effect_of_rules(rng, x: np.ndarray, tissues: int) -> np.ndarray:
    """`(exons, tissues)`, in each tissue of mean 0 and variance 1."""
    rules = 60
    looks_at = rng.random((x.shape[1], rules)) < 12 / x.shape[1]
    weights = looks_at * rng.normal(size=looks_at.shape)
    fires = np.maximum(x @ weights - 0.5, 0)
    in_common = rng.normal(size=(rules, 1))
    effect = fires @ (in_common + 0.5 * rng.normal(size=(rules, tissues)))
    effect -= effect.mean(axis=0)
    # Of few exons, no rule may fire for any.
    return effect / np.maximum(effect.std(axis=0), 1e-6)


def _random_partition(exons: int) -> np.ndarray:
    evenly = np.arange(exons, dtype="int32") % PARTITIONS + 1
    return np.random.default_rng(SPLIT_SEED).permutation(evenly)


# Both kinds of file become one kind of table: a row per exon, called what it
# is called in messages, and columns named as in a CSV file.


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # As text, with the header and the blank lines: row i is line i + 1,
        # and what is no number can be quoted. Short lines are filled up with
        # "", longer ones than the header are an error.
        lines = pd.read_csv(
            path,
            header=None,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as CSV. pandas, which counts lines from 1 "
            f"and rows from 0, says: {str(error).strip()}"
        ) from error
    names = lines.iloc[0].str.strip()
    for column in np.flatnonzero((names == "") | names.duplicated())[:1]:
        raise ValueError(
            f"{path}, line 1, column {column + 1}: expected a name that no "
            f"other column has. Found: {names[column]!r}"
        )
    lines.columns = pd.Index(names)
    lines.index = pd.Index([f"line {i}" for i in range(1, len(lines) + 1)])
    exons = lines.iloc[1:]
    return exons[(exons != "").any(axis=1)]


def _read_npz(path: Path) -> tuple[pd.DataFrame, str]:
    names = ("features", "targets", "partition", "source")
    try:
        if not zipfile.is_zipfile(path):
            # NumPy would advise to unpickle it.
            raise ValueError("it is not a ZIP archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except Exception as error:
        # NumPy, zipfile and zlib each have their own for a damaged file.
        raise ValueError(
            f"{path} cannot be read as NPZ, it may be damaged: {error}"
        ) from error
    for name in ("features", "targets"):
        if name not in arrays:
            raise ValueError(f"{path}: expected an array `{name}`. Found none")
    source = str(arrays.pop("source", path.name))
    _check_arrays(path, arrays)
    features, targets = arrays["features"], arrays["targets"]
    columns = {f"feature {i}": values for i, values in enumerate(features.T)}
    for tissue, outcome in np.ndindex(targets.shape[1:]):
        name = f"tissue {tissue}/outcome {outcome}"
        columns[name] = targets[:, tissue, outcome]
    if "partition" in arrays:
        columns["partition"] = arrays["partition"]
    rows = [f"row {i}" for i in range(len(features))]
    return pd.DataFrame(columns, index=rows), source


def _check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises if these are no numbers, or their shapes do not agree."""
    features, targets, *partition = arrays.values()
    fits = (
        features.ndim == 2
        and targets.ndim == 3
        and targets.shape[::2] == (len(features), OUTCOMES)
        and all(array.shape == (len(features),) for array in partition)
    )
    if not fits or any(x.dtype.kind not in "buif" for x in arrays.values()):
        raise ValueError(
            f"{path}: expected arrays of numbers, `features` of shape (exons, "
            "features), `targets` (exons, tissues, 3) and, if there is one, "
            "`partition` (exons,). Found: "
            + ", ".join(f"`{k}` {x.dtype} {x.shape}" for k, x in arrays.items())
        )


def _splicing(path: Path, table: pd.DataFrame, source: str) -> Splicing:
    """Makes a `Splicing` of a table, if all that is in it is as described."""
    if len(table) < PARTITIONS:
        raise ValueError(
            f"{path}: expected at least {PARTITIONS} exons, one for each "
            f"partition. Found: {len(table)}"
        )
    is_target = table.columns.str.contains("/", regex=False)
    is_partition = table.columns == "partition"
    is_feature = ~(is_target | is_partition)
    if not is_feature.any():
        raise ValueError(f"{path}: expected a feature or more. Found none")
    targets = _distributions(
        path, table.loc[:, is_target], _tissues(path, table.columns)
    )
    features = _numbers(
        path,
        table.loc[:, is_feature],
        "a finite number",
        lambda x: np.abs(x) <= np.finfo("float32").max,
    )
    partition = (
        _partition(path, table.loc[:, is_partition])
        if is_partition.any()
        else _random_partition(len(table))
    )
    return Splicing(source, features.astype("float32"), targets, partition)


def _tissues(path: Path, columns: Iterable[str]) -> list[str]:
    """The tissues that the columns of targets, `tissue/outcome`, name."""
    # Columns side by side: a tissue that comes twice is in two places.
    runs = [
        (tissue, len(list(run)))
        for (is_target, tissue), run in groupby(
            columns, lambda column: ("/" in column, column.rpartition("/")[0])
        )
        if is_target
    ]
    tissues = [tissue for tissue, _ in runs]
    if (
        not runs
        or len(set(tissues)) < len(tissues)
        or any(length != OUTCOMES for _, length in runs)
    ):
        found = ", ".join(f"{length} of `{tissue}`" for tissue, length in runs)
        raise ValueError(
            f"{path}: expected three columns `tissue/outcome`, side by side, "
            f"for each tissue. Found: {found or 'none'}"
        )
    return tissues


def _numbers(
    path: Path,
    table: pd.DataFrame,
    expected: str,
    accepts: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The table's numbers as float64; the first bad one is an error."""
    # What is no number becomes a NaN, which no comparison accepts.
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy("float64")
    for row, column in np.argwhere(~accepts(numbers))[:1]:
        # Text after a stray quotation mark may be long.
        found = reprlib.repr(str(table.iat[row, column]))
        raise ValueError(
            f"{path}, {table.index[row]}, column `{table.columns[column]}`: "
            f"expected {expected}. Found: {found}"
        )
    return numbers


def _distributions(
    path: Path, table: pd.DataFrame, tissues: list[str]
) -> np.ndarray:
    """`(exons, tissues, 3)`, with a sum of 1 over the outcomes."""
    numbers = _numbers(
        path, table, "a probability", lambda x: (x >= 0) & (x <= 1.001)
    )
    targets = numbers.reshape((-1, len(tissues), OUTCOMES))
    totals = targets.sum(axis=-1, keepdims=True)
    for row, tissue, _ in np.argwhere(np.abs(totals - 1) > 0.001)[:1]:
        raise ValueError(
            f"{path}, {table.index[row]}, tissue `{tissues[tissue]}`: expected "
            f"targets with a sum of 1. Found: {totals[row, tissue, 0]:.6g}"
        )
    # What float32 has rounded stays as it is, so that what is saved and
    # loaded again is the same.
    totals[np.abs(totals - 1) < 1e-6] = 1
    return (targets / totals).astype("float32")


def _partition(path: Path, table: pd.DataFrame) -> np.ndarray:
    """`(exons,)`, integers from 1 to 6, each of which occurs."""
    numbers = range(1, PARTITIONS + 1)
    partition = _numbers(
        path,
        table,
        f"an integer from 1 to {PARTITIONS}",
        lambda x: np.isin(x, numbers),
    )
    for number in numbers:
        if number not in partition:
            raise ValueError(
                f"{path}: expected exons in each of the partitions 1 to "
                f"{PARTITIONS}. Found none in partition {number}"
            )
    return partition[:, 0].astype("int32")
