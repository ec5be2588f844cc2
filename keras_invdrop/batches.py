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
        found = ((part,) for part in parts(data, batch_size))
    elif hasattr(data, "__iter__"):
        found = iter(data)
    else:
        raise invalid(
            "data", "arrays, a data set or an iterable of batches", data
        )
    for batch in found:
        examples, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield tree.map_structure(keras.ops.convert_to_numpy, examples)


def count_examples(x):
    """How many examples the arrays `x` have, at least one.

    Args:
        x: Array, or structure of arrays, of shape `(examples, ...)`.
    """
    shapes: list[tuple[int, ...]] = [
        getattr(array, "shape", ()) for array in tree.flatten(x)
    ]
    sizes = {shape[0] if len(shape) else 0 for shape in shapes}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "Invalid value received for argument `x`. Expected arrays with "
            "the same number of examples, at least one. Received: shapes "
            + ", ".join(str(tuple(shape)) for shape in shapes)
        )
    return sizes.pop()


def parts(arrays, size):
    """Batches of `size` examples of the arrays, the last one of the rest."""
    examples = max(array.shape[0] for array in tree.flatten(arrays))
    for start in range(0, examples, size):
        part = slice(start, start + size)
        yield tree.map_structure(lambda array: array[part], arrays)  # noqa: B023


def _is_arrays(data, count):
    arrays = tree.flatten(data)
    return len(arrays) == count and all(
        hasattr(array, "shape") for array in arrays
    )
