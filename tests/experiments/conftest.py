import dataclasses

import numpy as np
import pytest
from keras_invdrop.experiments.data.datasets import Dataset
from keras_invdrop.experiments.data.datasets import Split
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
