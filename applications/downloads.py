"""Images that tensorflow-datasets keeps, and what can be wrong with them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Download:
    """A data set of tensorflow-datasets, downloaded unless it is there.

    Args:
        name: Its name in tensorflow-datasets.
        image_shape: Shape of its images.
        classes: Number of its classes.

    Raises:
        ImportError: If TensorFlow is missing, which reads the files.
        OSError: If the data set is not there and cannot be downloaded, or its
            files are damaged.
        ValueError: If its images or labels are not of the kind described.
    """

    def __init__(self, name: str, image_shape: tuple, classes: int = 10):
        self.name = name
        self.image_shape = image_shape
        self.classes = classes
        self.builder = _tensorflow_datasets(name).builder(name)
        self._prepare()

    @property
    def source(self) -> str:
        """What the examples come from, in words."""
        return f"tensorflow-datasets {self.builder.info.full_name}"

    def _prepare(self) -> None:
        try:
            self.builder.download_and_prepare()
        except Exception as error:
            raise OSError(
                f"The data set '{self.name}' is not in "
                f"{self.builder.data_dir} and could not be downloaded. The "
                "environment variable TFDS_DATA_DIR names the directory in "
                "which it is looked for, by default ~/tensorflow_datasets. "
                "This prepares it there, on a machine with a network: "
                f"tfds build {self.name} --data_dir DIRECTORY. "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The images of a split, `(examples, ...)` of uint8, and labels."""
        images, labels = zip(*self._batches(split), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split; its images are not decoded."""
        decoders = {
            "image": _tensorflow_datasets(self.name).decode.SkipDecoding()
        }
        batches = self._batches(split, decoders)
        return np.concatenate([labels for _, labels in batches])

    def examples(self, split: str, which: np.ndarray) -> Any:
        """Those examples of a split for which `which` is true.

        Returns:
            A `tf.data.Dataset` of pairs of an image and its label, which
            reads them as they are asked for, in the order of the files.
        """
        import tensorflow as tf

        chosen = tf.constant(which)
        data = self.builder.as_dataset(split=split, as_supervised=True)
        data = data.enumerate().filter(lambda i, _: chosen[i])
        return data.map(lambda _, example: example)

    def _batches(
        self, split: str, decoders: dict | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        data = self.builder.as_dataset(split=split, decoders=decoders)
        first = 0
        with self.reading():
            for batch in data.batch(1000).as_numpy_iterator():
                images, labels = batch["image"], batch["label"]
                place = f"in '{split}' of {self.builder.data_dir}"
                if decoders is None and images.shape[1:] != self.image_shape:
                    raise ValueError(
                        f"Expected images of shape {self.image_shape} {place}. "
                        f"Received: {images.shape[1:]}"
                    )
                outside = (labels < 0) | (labels >= self.classes)
                if outside.any():
                    i = int(outside.argmax())
                    raise ValueError(
                        f"Expected labels from 0 to {self.classes - 1} "
                        f"{place}. Received: {labels[i]}, of example "
                        f"{first + i}"
                    )
                yield images, labels.astype("int32")
                first += len(labels)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Says of which data set a file is damaged, if one is."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            raise OSError(
                f"A file of the data set '{self.name}' in "
                f"{self.builder.data_dir} is damaged. Delete this directory "
                f"and prepare it again: tfds build {self.name}. "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error


def _tensorflow_datasets(name: str) -> Any:
    try:
        importlib.import_module("tensorflow")
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"tensorflow-datasets needs TensorFlow to read '{name}', whatever "
            f"the backend: pip install keras-invdrop[tensorflow]. ({error})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
