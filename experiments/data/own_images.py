"""The user's own images, from a file.

The NPZ file has the arrays `x_train`, `y_train`, `x_test` and `y_test`. Images
have the shape `(examples, height, width, channels)`; grey images may omit the
channels. All images have one size, and are bytes (uint8) or floats from 0 to 1.
Labels have the shape `(examples,)` and are integers from 0 on, without gaps.

    np.savez(
        "pictures.npz",
        x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test,
    )
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from keras_invdrop import GlobalContrastNormalization
from keras_invdrop._checks import invalid
from keras_invdrop._files import sha256

from .datasets import Dataset
from .datasets import PreparedImages
from .datasets import Split
from .datasets import set_aside
from .datasets import vectors
from .datasets import whitened

ARRAYS = ("x_train", "y_train", "x_test", "y_test")

# Largest number of values in an image to whiten, which is the number of rows
# and columns of the whitening matrix.
LARGEST = 12_288

# The data set whose preparation applies to the images.
Preparation = Literal["mnist", "cifar10", "svhn_cropped"]


def check_images(path: Path) -> None:
    """Raises an error unless `path` is an existing .npz file."""
    if path.suffix != ".npz":
        raise invalid("--data", "a file that ends in .npz", str(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Expected an .npz file with the arrays "
            f"{', '.join(ARRAYS)}: images, and their labels."
        )


def load_images(
    path: str | Path,
    preparation: Preparation,
    encoding: str = "original",
    validation: int | None = None,
    limit_train: int | None = None,
) -> Dataset:
    """Reads a file of images and prepares them as in the paper.

    Args:
        path: A file as described above.
        preparation: `"mnist"` for vectors of numbers from 0 to 1; `"cifar10"`
            for global contrast normalisation to norm 55 and ZCA whitening;
            `"svhn_cropped"` for global contrast normalisation alone.
        encoding: `"original"`, or, with `"mnist"`, `"inverted"`: `1 - x`.
        validation: Number of training examples to set aside for validation,
            drawn at random. Defaults to a sixth.
        limit_train: Number of training examples to use. Defaults to all.

    Raises:
        ValueError: If the file is not as described.
        FileNotFoundError: If the file does not exist.
    """
    path = Path(path)
    check_images(path)
    train, test = _read(path)
    classes = int(train.y.max()) + 1
    train, held_out = set_aside(
        train,
        validation,
        len(train) // 6,
        limit_train,
        least=2 if preparation == "cifar10" else 1,
    )
    splits: tuple[Split, ...] = train, held_out, test
    if preparation == "mnist":
        splits = tuple(vectors(split, encoding) for split in splits)
    elif preparation == "cifar10":
        size = int(np.prod(train.x.shape[1:]))
        if size > LARGEST:
            raise invalid(
                "--data",
                f"images of at most {LARGEST:,} values, which can be whitened, "
                "or a row of SVHN, which does not whiten",
                f"{path}, images of {size:,} values",
            )
        splits = whitened(*splits)
    else:
        normalize = GlobalContrastNormalization(use_std=True)
        splits = tuple(
            Split(PreparedImages(np.asarray(split.x), normalize), split.y)
            for split in splits
        )
    source = f"{path.name} (SHA-256 {sha256(path)[:12]})"
    return Dataset(path.name, source, encoding, *splits, classes=classes)


def _read(path: Path) -> tuple[Split, Split]:
    """Reads the training and test examples; images range from 0 to 255."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a file that `np.savez` has written")
        with np.load(path) as file:
            lacking = [name for name in ARRAYS if name not in file]
            if lacking:
                raise ValueError(
                    f"it lacks {', '.join(lacking)}, and has "
                    f"{', '.join(file) or 'nothing'}"
                )
            arrays = {name: _array(name, file) for name in ARRAYS}
        splits = []
        for part in ("train", "test"):
            x = _images(f"x_{part}", arrays[f"x_{part}"])
            y = _labels(f"y_{part}", arrays[f"y_{part}"])
            if len(x) != len(y):
                raise ValueError(
                    f"it has {len(x):,} images in x_{part}, and {len(y):,} "
                    f"labels in y_{part}"
                )
            splits.append(Split(x, y))
        train, test = splits
        if train.x.shape[1:] != test.x.shape[1:]:
            raise ValueError(
                f"images are of shape {train.x.shape[1:]} in x_train, and of "
                f"{test.x.shape[1:]} in x_test"
            )
        if len(train) < 2:
            raise ValueError("x_train has fewer than two images")
        unknown = np.setdiff1d(test.y, train.y)
        if len(unknown):
            raise ValueError(
                f"label {unknown[0]} is in y_test, and not in y_train"
            )
        classes = len(np.unique(train.y))
        if classes < 2:
            raise ValueError(
                "expected two classes or more in y_train. Received: the label "
                f"{train.y[0]} alone"
            )
        if train.y.max() >= classes:
            raise ValueError(
                f"expected labels from 0 to {classes - 1} for the {classes} "
                f"classes in y_train. Received: {train.y.max()}"
            )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be used as a file of images: {error}"
        ) from error
    return (
        Split(train.x, train.y.astype("int32")),
        Split(test.x, test.y.astype("int32")),
    )


def _array(name: str, file: Mapping[str, np.ndarray]) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:  # NumPy does not unpickle objects.
        raise ValueError(
            f"expected numbers in {name}. Received: Python objects"
        ) from error


def _images(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f"expected {name} of shape (examples, height, width, channels). "
            f"Received: {x.shape}"
        )
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"expected {name} of uint8 or of floats. Received: {x.dtype}"
        )
    if not (x.min() >= 0 and x.max() <= 1):  # nor NaN
        raise ValueError(
            f"expected floats from 0 to 1 in {name}. "
            f"Received: {x.min():.4g} to {x.max():.4g}"
        )
    return x.astype("float32") * 255


def _labels(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:  # as in Keras' data sets
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"expected integers of shape (examples,) in {name}. "
            f"Received: {y.dtype} of shape {y.shape}"
        )
    if len(y) and y.min() < 0:
        raise ValueError(
            f"expected labels of at least 0 in {name}. Received: {y.min()}"
        )
    return y
