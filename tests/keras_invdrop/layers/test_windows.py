import keras
import numpy as np
import pytest
from keras import ops

from keras_invdrop.layers import _windows


def slow_windows(images, size, strides, padding):
    """Every window, one after the other: (batch, h, w, size, size, c)."""
    if padding == "same":
        margins = []
        for length, window, stride in zip(
            images.shape[1:3], size, strides, strict=True
        ):
            count = -(-length // stride)
            margin = max((count - 1) * stride + window - length, 0)
            margins.append((margin // 2, margin - margin // 2))
        images = np.pad(images, [(0, 0), *margins, (0, 0)])
    rows = range(0, images.shape[1] - size[0] + 1, strides[0])
    columns = range(0, images.shape[2] - size[1] + 1, strides[1])
    return np.stack(
        [
            np.stack(
                [images[:, i : i + size[0], j : j + size[1]] for j in columns],
                axis=1,
            )
            for i in rows
        ],
        axis=1,
    )


CASES = [
    ((2, 7, 8, 3), (3, 3), (1, 1), "valid"),
    ((2, 7, 8, 3), (3, 2), (2, 3), "valid"),
    ((2, 7, 8, 3), (3, 3), (2, 2), "same"),
    ((2, 7, 8, 3), (2, 2), (3, 3), "same"),
    ((2, 5, 4, 1), (4, 3), (1, 2), "same"),
]


@pytest.mark.parametrize(("shape", "size", "strides", "padding"), CASES)
def test_windows_are_those_of_a_loop(shape, size, strides, padding):
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = slow_windows(images, size, strides, padding)
    found = _windows.windows(
        ops.convert_to_tensor(images), size, strides, padding
    )
    assert len(found) == size[0] * size[1]
    for i, pixels in enumerate(found):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(pixels),
            expected[:, :, :, i // size[1], i % size[1]],
        )
    counts = tuple(
        _windows.count_windows(*each, padding)
        for each in zip(shape[1:3], size, strides, strict=True)
    )
    assert expected.shape[1:3] == counts


@pytest.mark.parametrize(("shape", "size", "strides", "padding"), CASES)
def test_counts_are_those_of_keras(shape, size, strides, padding):
    pool = keras.layers.AveragePooling2D(
        size, strides, padding, data_format="channels_last"
    )
    counts = tuple(
        _windows.count_windows(*each, padding)
        for each in zip(shape[1:3], size, strides, strict=True)
    )
    assert pool.compute_output_shape(shape)[1:3] == counts
    assert _windows.count_windows(None, 3, 2, padding) is None


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, True, (2,), (2, 0), (1, 2, 3), "2"]
)
def test_invalid_pairs(value):
    with pytest.raises(
        ValueError, match="`strides`. Expected a positive integer or a pair"
    ):
        _windows.check_pair("strides", value)


def test_pairs():
    assert _windows.check_pair("strides", 3) == (3, 3)
    assert _windows.check_pair("strides", [1, 2]) == (1, 2)
    assert _windows.check_padding("same") == "same"
    with pytest.raises(ValueError, match="`padding`. Expected one of 'valid'"):
        _windows.check_padding("causal")
