"""Images that tensorflow-datasets keeps, and what can be wrong with them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
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
            files cannot be read.
        ValueError: If its images or labels are not of the kind described.
    """

    def __init__(self, name: str, image_shape: tuple, classes: int = 10):
        self.name = name
        self.image_shape = image_shape
        self.classes = classes
        self.builder = self._find()
        self._prepare()

    @property
    def source(self) -> str:
        """What the examples come from, in words."""
        return f"tensorflow-datasets {self.builder.info.full_name}"

    def _find(self) -> Any:
        datasets = _tensorflow_datasets(self.name)
        try:
            return datasets.builder(self.name)
        except Exception as error:
            # What describes the prepared files is itself among them.
            directory = Path(datasets.core.constants.DATA_DIR) / self.name
            raise self._unreadable(directory, error) from error

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

    def arrays(
        self, split: str, which: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images of a split, `(examples, ...)` of uint8, and labels.

        They are those for which `which` is true, by default all.
        """
        # There may be no batch at all.
        none = np.empty((0, *self.image_shape), "uint8"), np.empty(0, "int32")
        images, labels = zip(none, *self._batches(split, which), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split; its images are not decoded."""
        decoders = {
            "image": _tensorflow_datasets(self.name).decode.SkipDecoding()
        }
        batches = self._batches(split, decoders=decoders)
        return np.concatenate([labels for _, labels in batches])

    def examples(
        self,
        split: str,
        which: np.ndarray | None = None,
        decoders: dict | None = None,
    ) -> Any:
        """The examples of a split for which `which` is true, by default all.

        Returns:
            A `tf.data.Dataset` of pairs of an image and its label, which
            reads them as they are asked for, in the order of the files.
        """
        import tensorflow as tf

        try:
            data = self.builder.as_dataset(
                split=split, decoders=decoders, as_supervised=True
            )
        except Exception as error:
            raise self._unreadable(self.builder.data_dir, error) from error
        shape = data.element_spec[0].shape
        if decoders is None and not shape.is_compatible_with(self.image_shape):
            raise ValueError(
                f"Expected images of shape {self.image_shape} in '{split}' of "
                f"{self.builder.data_dir}. Received: {tuple(shape)}"
            )
        if which is None:
            return data
        chosen = tf.constant(which)
        data = data.enumerate().filter(lambda i, _: chosen[i])
        return data.map(lambda _, example: example)

    def _batches(
        self,
        split: str,
        which: np.ndarray | None = None,
        decoders: dict | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        data = self.examples(split, which, decoders).batch(1000)
        place = f"in '{split}' of {self.builder.data_dir}"
        first = 0
        with self.reading():
            for images, labels in data.as_numpy_iterator():
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
        """Says of which data set a file cannot be read, if one cannot."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            # Others come from the training.
            if "IteratorGetNext" not in str(error):
                raise
            raise self._unreadable(self.builder.data_dir, error) from error

    def _unreadable(self, directory: str | Path, error: Exception) -> OSError:
        return OSError(
            f"The data set '{self.name}' in {directory} cannot be read. If a "
            "file is damaged or missing, delete this directory and prepare it "
            f"again: tfds build {self.name}. "
            f"({type(error).__name__}: {_first_line(error)})"
        )


def _tensorflow_datasets(name: str) -> Any:
    try:
        tensorflow = importlib.import_module("tensorflow")
        datasets = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"tensorflow-datasets needs TensorFlow to read '{name}', whatever "
            "the backend: pip install keras-invdrop[applications,tensorflow]. "
            f"({error})"
        ) from error
    if keras.backend.backend() != "tensorflow":
        # It only reads files: the memory of a GPU is left to the backend.
        with suppress(RuntimeError):  # TensorFlow is in use already
            tensorflow.config.set_visible_devices([], "GPU")
    return datasets


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
