"""Files of earlier releases load and give the same predictions."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_invdrop

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.keras"))


def examples(shape):
    """The examples of `golden/make.py`."""
    values = np.arange(4 * np.prod(shape)).reshape(4, *shape)
    return np.sin(values).astype("float32")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_of_a_release_predict_as_before(path):
    model = keras.saving.load_model(path, safe_mode=True)
    expected = np.loadtxt(path.with_suffix(".csv"), delimiter=",")
    outputs = model.predict(examples(model.input_shape[1:]), verbose=0)
    # Rounded to six decimals; each backend sums in another order.
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=2e-6)


def test_every_layer_is_in_a_file_of_every_release():
    releases = {path.stem.partition("-")[2] for path in GOLDEN}
    assert "0.1.0" in releases
    layers = [
        getattr(keras_invdrop, name) for name in dir(keras_invdrop.layers)
    ]
    for release in releases:
        found = {
            type(layer)
            for path in GOLDEN
            if path.stem.endswith(release)
            for layer in keras.saving.load_model(path).layers
        }
        assert set(layers) <= found
