"""The data of Table 5: alternative splicing of exons in mouse tissues.

The data set (section 3.4) is not published as one file. `load_splicing` reads
the user's own file; `generate_splicing` generates similar data.

The suffix of a file determines its format.

`.csv`: a header, then one line per exon; blank lines are skipped. Columns named
`tissue/outcome` contain the targets; the three outcomes of a tissue are
adjacent, and tissues and outcomes may have any names. The optional column
`partition` contains integers from 1 to 6. Every other column is a feature, a
finite number. For example, with two features and one tissue:

    length,stop_codon,brain/inclusion,brain/exclusion,brain/no_change,partition
    0.13,0,0.1,0.05,0.85,1
    0.48,1,0.7,0.1,0.2,2

`.npz`: the arrays `features` of shape `(exons, features)`, `targets` of shape
`(exons, tissues, 3)` and, optionally, `partition` of shape `(exons,)` and
`source`, a string that describes the origin of the data.

In both formats, the targets of an exon in a tissue are a distribution: they are
not negative, and their sum is within 0.001 of 1. `load_splicing` scales them to
sum to 1 exactly. A file has at least six exons, one or more in each
partition.
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

from keras_invdrop._checks import check_integer
from keras_invdrop._checks import check_positive_integer
from keras_invdrop._checks import invalid
from keras_invdrop._files import replacing

from .datasets import SPLIT_SEED
from .datasets import Dataset
from .datasets import Split
from .datasets import limit

PARTITIONS = 6
OUTCOMES = 3


@dataclass(frozen=True)
class Splicing:
    """Features of exons, and how tissues splice the exons.

    Attributes:
        source: Description of the origin of the data.
        features: `(exons, features)`, float32.
        targets: `(exons, tissues, 3)`, float32: for each tissue, a
            distribution over three outcomes.
        partition: `(exons,)`, integers from 1 to 6.
    """

    source: str
    features: np.ndarray
    targets: np.ndarray
    partition: np.ndarray


def load_splicing(path: str | Path) -> Splicing:
    """Reads a file in one of the formats described above.

    If the file has no partitions, exons are assigned to six partitions at
    random, as evenly as possible and the same way each time.

    Args:
        path: A file whose name ends in `.csv` or `.npz`.

    Raises:
        ValueError: If the file is not as described. For an invalid number the
            message names the line of a CSV file, where the header is line 1,
            or the row of an NPZ file, counted from 0.
        FileNotFoundError: If the file does not exist.
    """
    path = Path(path)
    check_file(path)
    if path.suffix == ".csv":
        return _splicing(path, _read_csv(path), path.name)
    return _splicing(path, *_read_npz(path))


def check_file(path: Path) -> None:
    """Raises an error unless `path` is an existing .csv or .npz file."""
    if path.suffix not in (".csv", ".npz"):
        raise invalid("--data", "a path that ends in .csv or .npz", str(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Expected a .csv or .npz file of exons, "
            "each with features and, for every tissue, a distribution over "
            "three outcomes of splicing. `keras-invdrop generate-splicing "
            "FILE.npz` makes data of the same shape."
        )


def save_splicing(path: str | Path, splicing: Splicing) -> None:
    """Writes an NPZ file that `load_splicing` reads.

    Args:
        path: Path of the file, which ends in `.npz`.
        splicing: The data to write.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise invalid("path", "a path that ends in .npz", str(path))
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **vars(splicing))


def partition_of(
    splicing: Splicing, number: int, limit_train: int | None = None
) -> Dataset:
    """The data set with one of the six partitions as its test set.

    Args:
        splicing: All exons.
        number: Integer from 1 to 6, a column of Table 5.
        limit_train: Number of training exons to use, from the first on, for a
            quick trial. Defaults to all.

    Returns:
        A `Dataset` that tests on this partition, validates on the next one
        (the first follows the sixth) and trains on the other four. `y` has the
        shape `(exons, tissues, 3)`.
    """
    check_integer("number", number, 1, PARTITIONS)
    # A choice: the paper describes neither the split into six partitions nor
    # the exons used for early stopping.
    following = number % PARTITIONS + 1
    test = np.flatnonzero(splicing.partition == number)
    validation = np.flatnonzero(splicing.partition == following)
    train = np.flatnonzero(~np.isin(splicing.partition, (number, following)))
    train = train[: limit(limit_train, len(train))]

    def split(which):
        return Split(splicing.features[which], splicing.targets[which])

    splits = map(split, (train, validation, test))
    return Dataset("mas", splicing.source, "original", *splits)


def generate_splicing(
    exons: int = 3665, features: int = 1014, tissues: int = 4, seed: int = 0
) -> Splicing:
    """Generates data of the same shape as the paper's, without measurements.

    Neither these data nor a network's predictions of them say anything about
    splicing. The data pose the same difficulties as the paper's: many features
    for few exons; features that are nearly always 0, and mostly 1 otherwise;
    and "no change" as the most frequent outcome.

    The targets depend on the features through rules. Each rule is a rectified
    sum of a few features; the effects of the rules add up and are partly shared
    by all tissues. Noise of equal variance is added, so that a network can both
    learn and overfit.

    Args:
        exons: Number of exons, at least 6.
        features: Number of features.
        tissues: Number of tissues.
        seed: Integer. The same seed generates the same data.

    Returns:
        A `Splicing`. The outcomes are: more inclusion, more exclusion, no
        change.
    """
    check_integer("exons", exons, PARTITIONS)
    check_positive_integer("features", features)
    check_positive_integer("tissues", tissues)
    check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    x = _sparse_features(rng, exons, features)
    effect = _effect_of_rules(rng, x, tissues)
    effect += rng.normal(size=effect.shape)
    # With this constant "no change" is the likeliest outcome in 90 % of cases.
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
    """Sparse binary features, one in ten of them with an amount."""
    frequency = rng.beta(0.5, 6, size=features)  # 8 % on average
    present = rng.random((exons, features)) < frequency
    has_amount = rng.random(features) < 0.1
    amount = rng.gamma(2, 0.5, size=(exons, features))
    return (present * np.where(has_amount, amount, 1)).astype("float32")


def _effect_of_rules(rng, x: np.ndarray, tissues: int) -> np.ndarray:
    """`(exons, tissues)`, with mean 0 and variance 1 in each tissue."""
    rules = 60
    looks_at = rng.random((x.shape[1], rules)) < 12 / x.shape[1]
    weights = looks_at * rng.normal(size=looks_at.shape)
    fires = np.maximum(x @ weights - 0.5, 0)
    in_common = rng.normal(size=(rules, 1))
    effect = fires @ (in_common + 0.5 * rng.normal(size=(rules, tissues)))
    effect -= effect.mean(axis=0)
    # With few exons, possibly no rule fires at all.
    return effect / np.maximum(effect.std(axis=0), 1e-6)


def _random_partition(exons: int) -> np.ndarray:
    evenly = np.arange(exons, dtype="int32") % PARTITIONS + 1
    return np.random.default_rng(SPLIT_SEED).permutation(evenly)


# Files of both formats become one kind of table: one row per exon, indexed by
# the name that messages use, and columns named as in a CSV file.


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # Read as text, with the header and blank lines: row i is line i + 1,
        # and messages can quote invalid numbers. pandas pads short lines with
        # "" and rejects lines longer than the header.
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
    if len(names) == 1:  # as with semicolons or tabs
        raise ValueError(
            f"{path}, line 1: expected names of columns, separated by commas. "
            f"Found one column: {names[0]!r}"
        )
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
            # NumPy's message would suggest unpickling the file.
            raise ValueError("it is not a ZIP archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except Exception as error:
        # NumPy, zipfile and zlib raise different errors for damaged files.
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
    """Raises unless the arrays are numbers of consistent shapes."""
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
    """Makes a `Splicing` from a table, after checking its contents."""
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
    """The tissues named in the target columns, `tissue/outcome`."""
    # Runs of adjacent columns: a tissue with two runs is not contiguous.
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
    """The table as float64; raises for the first invalid number."""
    # Text that is not a number becomes NaN, which fails every comparison.
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
    # Leave float32 rounding errors, so that saving and loading reproduces the
    # targets exactly.
    totals[np.abs(totals - 1) < 1e-6] = 1
    return (targets / totals).astype("float32")


def _partition(path: Path, table: pd.DataFrame) -> np.ndarray:
    """`(exons,)`, integers from 1 to 6; each of them must occur."""
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
