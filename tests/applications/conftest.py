import numpy as np
import pytest
from keras_invdrop.applications.datasets import Dataset
from keras_invdrop.applications.datasets import Split


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
