import contextlib
import dataclasses

import numpy as np
import pytest
from keras_invdrop.experiments.data.datasets import Dataset
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.data.datasets import Stream
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import partition_of
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.records import Result


@pytest.fixture
def blobs():
    """Three classes, easy to tell apart: 60, 12 and 30 examples."""
    rng = np.random.default_rng(0)

    def split(examples):
        y = np.arange(examples) % 3
        x = rng.normal(0.2, 0.05, size=(examples, 784))
        for label in range(3):
            x[y == label, label * 200 : label * 200 + 200] += 0.5
        return Split(x.astype("float32"), y.astype("int32"))

    return Dataset(
        "digits", "generated", "original", split(60), split(12), split(30)
    )


@pytest.fixture
def unvalidated(blobs):
    """The same classes, without validation examples."""
    nothing = Split(blobs.validation.x[:0], blobs.validation.y[:0])
    return dataclasses.replace(blobs, validation=nothing)


@pytest.fixture
def streamed(blobs):
    """The same classes; the training examples are read on demand."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((blobs.train.x, blobs.train.y))

    def batches(batch_size, seed):
        return data.shuffle(60, seed, False).batch(batch_size)

    stream = Stream(60, batches, contextlib.nullcontext)
    return dataclasses.replace(blobs, train=stream)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    x = rng.normal(1.0, 2.0, size=(60, 32, 32, 3)).astype("float32")
    split = Split(x, np.arange(60, dtype="int32") % 10)
    return Dataset("cifar10", "generated", "original", split, split, split)


@pytest.fixture(scope="module")
def exons():
    return partition_of(generate_splicing(exons=120, features=30), 2)


@pytest.fixture
def result():
    """The result of one training with one of several seeds."""
    return Result(
        row="table2/inverted/invariant",
        dataset="mnist",
        source="here",
        encoding="inverted",
        training_examples=4000,
        validation_examples=0,
        test_examples=1000,
        network="784-1000-10",
        width=1.0,
        parameters=1000,
        activation=None,
        dropout="invariant",
        seed=0,
        epochs=3,
        selected_epoch=3,
        unit="%",
        validation=None,
        test=5.0,
        seconds=11.6,
        backend="jax",
        versions={},
        command="",
        recipe=dataclasses.asdict(ROWS["table2/inverted/invariant"].recipe),
    )
