"""Image data sets of tensorflow-datasets, with clear errors."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import keras
import numpy as np

from keras_invdrop._extras import imported

# Seconds to wait for a connection; the response may take longer.
PATIENCE = 10

# Number of classes of every data set.
CLASSES = 10


class Download:
    """A data set of tensorflow-datasets, downloaded if it is absent.

    Args:
        name: Name of the data set in tensorflow-datasets.
        image_shape: Shape of one image.

    Raises:
        ImportError: If TensorFlow, which reads the files, is missing.
        OSError: If the data set is absent and cannot be downloaded, or its
            files cannot be read.
        ValueError: If the images do not have `image_shape`, or a label is not
            below `CLASSES`.
    """

    def __init__(self, name: str, image_shape: tuple):
        self.name = name
        self.image_shape = image_shape
        self.datasets = _tensorflow_datasets(name)
        self.builder = self._find()
        self._prepare()

    @property
    def source(self) -> str:
        """Description of the origin of the examples."""
        return f"tensorflow-datasets {self.builder.info.full_name}"

    def _find(self) -> Any:
        try:
            return self.datasets.builder(self.name)
        except Exception as error:
            # The description of the prepared files is one of the files.
            directory = Path(self.datasets.core.constants.DATA_DIR) / self.name
            raise self._unreadable(directory, error) from error

    def _prepare(self) -> None:
        folder = self.builder.data_path
        if folder.exists():
            return
        # tensorflow-datasets creates these directories before downloading.
        downloads = folder.parents[1] / "downloads"
        extracted = downloads / "extracted"
        made = [folder.parent, extracted, *extracted.parents]
        made = [path for path in made if not path.exists()]
        try:
            # Without a network, tensorflow-datasets would retry for 204 s.
            for url in self._missing(downloads)[:1]:
                _connect(url)
            self.builder.download_and_prepare()
        except Exception as error:
            if folder.exists():  # Another process has prepared it meanwhile.
                self.builder = self._find()
                return
            for path in made:
                with suppress(OSError):  # The directory is not empty.
                    path.rmdir()
            raise OSError(
                f"The data set '{self.name}' is not in "
                f"{self.builder.data_dir} and could not be downloaded. The "
                "environment variable TFDS_DATA_DIR names the directory to "
                "search, by default ~/tensorflow_datasets. On a machine with "
                "a network, this command prepares the data set in a directory: "
                f"tfds build {self.name} --data_dir DIRECTORY. "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error

    def _missing(self, downloads: Any) -> list[str]:
        """URLs of the files that are not in the directory of downloads."""
        resource = self.datasets.core.download.resource
        missing = []
        for url, info in (self.builder.url_infos or {}).items():
            file = resource.get_dl_fname(url, info.checksum)
            places = f"{self.name}/{file}", file, f"manual/{info.filename}"
            if not any((downloads / place).exists() for place in places):
                missing.append(url)
        return missing

    def arrays(
        self, split: str, which: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images `(examples, ...)`, uint8, and labels of a split.

        Boolean array `which` selects the examples, by default all.
        """
        # `concatenate` needs an array even if no example is selected.
        found = [np.empty((0, *self.image_shape), "uint8")]
        classes = [np.empty(0, "int32")]
        examples = 0
        data = self.examples(split, which).batch(1000)
        with self.reading():
            for images, labels in data.as_numpy_iterator():
                if images.shape[1:] != self.image_shape:
                    raise ValueError(
                        f"Expected images of shape {self.image_shape} in "
                        f"'{split}' of {self.builder.data_dir}. "
                        f"Received: {images.shape[1:]}"
                    )
                self._check_labels(labels, split, examples)
                found.append(images)
                classes.append(labels.astype("int32"))
                examples += len(labels)
        return np.concatenate(found), np.concatenate(classes)

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split, without decoding its images."""
        decoders = {"image": self.datasets.decode.SkipDecoding()}
        data = self.examples(split, decoders=decoders)
        data = data.map(lambda image, label: label).batch(1000)
        with self.reading():
            labels = np.concatenate(list(data.as_numpy_iterator()))
        self._check_labels(labels, split)
        return labels.astype("int32")

    def examples(
        self,
        split: str,
        which: np.ndarray | None = None,
        decoders: dict | None = None,
    ) -> Any:
        """The examples of a split where `which` is true, by default all.

        Returns:
            A `tf.data.Dataset` of pairs of an image and its label. It reads
            the examples on demand, in the order of the files.
        """
        import tensorflow as tf

        try:
            data = self.builder.as_dataset(
                split=split,
                decoders=decoders,
                # Examples must not stay in memory.
                read_config=self.datasets.ReadConfig(try_autocache=False),
                as_supervised=True,
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

    def _check_labels(
        self, labels: np.ndarray, split: str, first: int = 0
    ) -> None:
        """Raises unless all labels, from example `first` on, are valid."""
        outside = (labels < 0) | (labels >= CLASSES)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"Expected labels from 0 to {CLASSES - 1} in '{split}' of "
                f"{self.builder.data_dir}. Received: {labels[i]}, of example "
                f"{first + i}"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Names the data set in the error for a file that cannot be read."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            # Other errors come from the training.
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
    tensorflow, datasets = imported(
        f"The data set '{name}', with every backend,",
        ["tensorflow", "tensorflow_datasets"],
        "experiments",
        "tensorflow",
    )
    if keras.backend.backend() != "tensorflow":
        # TensorFlow only reads files; leave the GPU's memory to the backend.
        with suppress(RuntimeError):  # TensorFlow is in use already
            tensorflow.config.set_visible_devices([], "GPU")
    return datasets


def _connect(url: str) -> None:
    """Raises an error if the host of a URL accepts no connection."""
    import requests  # As tensorflow-datasets does, for the same proxies.

    errors: list[Exception] = [
        TimeoutError(f"no connection to {url} in {PATIENCE} s")
    ]

    def connect() -> None:
        for pause in (0, 1, 2):  # Retry: the host may be busy.
            time.sleep(pause)
            try:
                requests.get(url, stream=True, timeout=(PATIENCE, 1)).close()
            except requests.ConnectionError as error:
                errors[0] = error
                continue
            except requests.RequestException:
                pass  # The host responds; the download reports any other error.
            errors.clear()
            return

    # `timeout` applies to each address of a host, and not to the name lookup.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if errors:
        raise errors[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
