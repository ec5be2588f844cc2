"""Batches of examples from what `model.predict` takes as data."""

import itertools
from collections.abc import Iterator

import keras
from keras import tree

from .validation import invalid


def batches(data, batch_size, inputs=1):
    """The batches of a data set, without targets and sample weights.

    Args:
        data: Array, or list, tuple or dict of `inputs` arrays, of which
            `batch_size` examples make a batch; or a `PyDataset`, a
            `tf.data.Dataset` or another iterable of batches, each either the
            examples or a tuple `(examples, targets)` or `(examples, targets,
            sample_weights)`.
        batch_size: Positive integer.
        inputs: Positive integer. How many arrays there are for a batch.

    Yields:
        An array of shape `(batch, ...)`, or a structure of arrays.
    """
    found: Iterator
    if isinstance(data, keras.utils.PyDataset):
        # It need not end an iteration by itself.
        size = data.num_batches
        numbers = itertools.count() if size is None else range(size)
        found = map(data.__getitem__, numbers)
    elif _is_arrays(data, inputs):
        found = ((part,) for part in _parts(data, batch_size))
    elif hasattr(data, "__iter__"):
        found = iter(data)
    else:
        raise invalid(
            "data", "arrays, a data set or an iterable of batches", data
        )
    for batch in found:
        examples, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield tree.map_structure(keras.ops.convert_to_numpy, examples)


def _is_arrays(data, count):
    arrays = tree.flatten(data)
    return len(arrays) == count and all(
        hasattr(array, "shape") for array in arrays
    )


def _parts(arrays, size):
    examples = max(array.shape[0] for array in tree.flatten(arrays))
    for start in range(0, examples, size):
        part = slice(start, start + size)
        yield tree.map_structure(lambda array: array[part], arrays)  # noqa: B023
