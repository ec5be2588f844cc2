"""A user's own images, in a file."""

import dataclasses

import keras
import numpy as np
import pytest
from keras_invdrop.experiments.data.own_images import load_images
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.training import run
from keras_invdrop.experiments.train.trial import Trial

LABELS = "y_train", "y_test"


@pytest.fixture
def arrays():
    """Ninety small pictures of three kinds, which differ in colour."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.integers(0, 60, size=(90, 10, 9, 3), dtype="uint8")
    x[np.arange(90), :, :, y] += 150
    return {
        "x_train": x[:60],
        "y_train": y[:60],
        "x_test": x[60:],
        "y_test": y[60:],
    }


@pytest.fixture
def saved(tmp_path):
    """A function that writes arrays to a file and returns its path."""

    def save(arrays):
        path = tmp_path / "pictures.npz"
        np.savez(path, **arrays)
        return path

    return save


def test_vectors(arrays, saved):
    """As for MNIST: values from 0 to 1, or 1 minus these values."""
    path = saved(arrays)
    dataset = load_images(path, "mnist", validation=0)
    np.testing.assert_allclose(
        dataset.test.x, arrays["x_test"].reshape((30, 270)) / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(dataset.test.y, arrays["y_test"])
    inverted = load_images(path, "mnist", "inverted", validation=0)
    np.testing.assert_allclose(inverted.test.x, 1 - dataset.test.x, atol=1e-6)
    # Floats from 0 to 1 are the same images as bytes.
    as_floats = {
        name: value / 255 if name[0] == "x" else value[:, None]
        for name, value in arrays.items()
    }
    same = load_images(saved(as_floats), "mnist", validation=0)
    np.testing.assert_allclose(same.test.x, dataset.test.x, atol=1e-6)
    np.testing.assert_array_equal(same.test.y, dataset.test.y)


def test_splits(arrays, saved):
    dataset = load_images(saved(arrays), "mnist")
    assert dataset.name == "pictures.npz"
    assert dataset.source.startswith("pictures.npz (SHA-256 ")
    assert dataset.classes == 3
    # A sixth is for validation, and not for training.
    assert (len(dataset.train), len(dataset.validation)) == (50, 10)
    both = np.concatenate([dataset.train.x, dataset.validation.x])
    assert len(np.unique(both, axis=0)) == 60
    few = load_images(saved(arrays), "mnist", validation=4, limit_train=7)
    assert (len(few.train), len(few.validation)) == (7, 4)


def test_whitened(arrays, saved):
    """As for CIFAR-10, with statistics of the training images alone."""
    dataset = load_images(saved(arrays), "cifar10", validation=0)
    assert dataset.train.x.shape == (60, *dataset.test.x.shape[1:])
    flat = dataset.train.x.reshape((60, -1))
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-4)
    other = {**arrays, "x_test": arrays["x_test"][::-1]}
    again = load_images(saved(other), "cifar10", validation=0)
    np.testing.assert_allclose(again.test.x, dataset.test.x[::-1], atol=1e-4)


def test_normalized(arrays, saved):
    """As for SVHN: each image has mean 0 and standard deviation 1."""
    dataset = load_images(saved(arrays), "svhn_cropped")
    x = np.asarray(dataset.test.x).reshape((30, -1))
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=1), 1, rtol=1e-5)


def without(arrays, name):
    return {k: value for k, value in arrays.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "y_test"), "it lacks y_test, and has x_train"),
        (
            lambda a: a | {"x_train": a["x_train"][..., 0, 0]},
            r"expected x_train of shape .*Received: \(60, 10\)",
        ),
        (
            lambda a: a | {"x_test": a["x_test"].astype("int64")},
            "expected x_test of uint8 or of floats. Received: int64",
        ),
        (
            lambda a: a | {"x_test": a["x_test"].astype("float32")},
            "expected floats from 0 to 1 in x_test. Received: 0 to ",
        ),
        (
            lambda a: a | {"x_train": a["x_train"] * np.nan},
            "expected floats from 0 to 1 in x_train. Received: nan",
        ),
        (
            lambda a: a | {"x_test": a["x_test"][:, :8]},
            r"\(10, 9, 3\) in x_train, and of \(8, 9, 3\) in x_test",
        ),
        (
            lambda a: a | {"y_train": a["y_train"][:-1]},
            "60 images in x_train, and 59 labels in y_train",
        ),
        (
            lambda a: a | {"y_train": a["y_train"] - 1},
            "expected labels of at least 0 in y_train. Received: -1",
        ),
        (
            lambda a: a | {"y_train": a["y_train"].astype(object)},
            "expected numbers in y_train. Received: Python objects",
        ),
        (
            lambda a: a | {"y_train": np.eye(3)[a["y_train"]]},
            r"expected integers of shape \(examples,\) in y_train",
        ),
        (
            lambda a: a | {name: np.ones_like(a[name]) for name in LABELS},
            "expected two classes or more in y_train. Received: the label 1 "
            "alone",
        ),
        (
            lambda a: a | {"y_test": a["y_test"] + 1},
            "label 3 is in y_test, and not in y_train",
        ),
        (
            lambda a: a | {name: a[name] * 2**31 for name in LABELS},
            "expected labels from 0 to 2 for the 3 classes in y_train. "
            "Received: 4294967296",
        ),
    ],
)
def test_what_is_wrong_is_named(arrays, saved, change, message):
    path = saved(change(arrays))
    with pytest.raises(ValueError, match=f"^{path} cannot be used.*{message}"):
        load_images(path, "mnist")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*x_train"):
        load_images(tmp_path / "absent.npz", "mnist")
    for content in (b"", b"no archive"):
        path = tmp_path / "damaged.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path} cannot.*`np.savez`"):
            load_images(path, "mnist")
    with pytest.raises(ValueError, match="`--data`. Expected a file that ends"):
        load_images(tmp_path, "mnist")


def test_images_that_are_too_large_to_whiten(saved):
    x = np.zeros((2, 65, 64, 3), "uint8")
    y = np.array([0, 1])
    path = saved({"x_train": x, "y_train": y, "x_test": x, "y_test": y})
    with pytest.raises(ValueError, match="12,288 values.*12,480 values"):
        load_images(path, "cifar10", validation=0)
    assert load_images(path, "svhn_cropped", validation=0).test.x.shape


@pytest.mark.parametrize(
    "row",
    [
        "table2/inverted/invariant",
        "table3/dnn/standard",
        "table3/relu/invariant",
        "table4/relu/standard",
        "table6/cifar10/invariant",
        "table6/svhn/standard",
    ],
)
def test_a_row_is_trained_on_them(arrays, saved, tmp_path, row):
    """Images may have any size and any number of channels and classes."""
    y = np.arange(len(arrays["y_train"])) % 4
    changed = arrays | {
        "x_train": arrays["x_train"][..., :2],
        "x_test": arrays["x_test"][..., :2],
        "y_train": y,
    }
    path = saved(changed)
    found = ROWS[row]
    recipe = dataclasses.replace(found.recipe, epochs=1, retrain=False)
    trial = Trial(
        dataclasses.replace(found, recipe=recipe),
        width=0.05,
        data=str(path),
    )
    result = run(trial, tmp_path / "out")
    assert result.source.startswith("pictures.npz (SHA-256 ")
    assert result.training_examples == 50
    assert result.validation_examples == 10
    assert result.test_examples == 30
    (model,) = (tmp_path / "out").glob("*.keras")
    outputs = keras.saving.load_model(model).output_shape
    assert outputs == (None, 4)
    # A file with other contents belongs to another training.
    name = trial.name
    saved(changed | {"y_train": y[::-1].copy()})
    assert trial.name != name
