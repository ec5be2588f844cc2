"""Batches of examples from what `model.predict` takes as data."""

import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops
from keras import tree

from ._checks import invalid
from ._keras import can_convert_arrays
from ._keras import convert_to_sliceable
from ._keras import standardize_inputs


class Examples:
    """Examples in arrays of the kinds that `model.predict` takes.

    Args:
        argument: Name of the argument that they are given as.
        x: Array, or structure of arrays, of shape `(examples, ...)`: those of
            NumPy, SciPy, pandas and the backends.
        least: Integer. How many examples there have to be.

    Raises:
        ValueError: If they are no arrays, have not as many examples each, or
            too few.
    """

    def __init__(self, argument, x, least=1):
        if x is None or not can_convert_arrays(x):
            raise invalid(
                argument, "an array, or a list, tuple or dict of arrays", x
            )
        self.argument = argument
        self.shapes = _shapes(x)
        # None stands for an optional input.
        arrays = [array for array in tree.flatten(x) if array is not None]
        sizes = {(*np.shape(array), -1)[0] for array in arrays}
        if len(sizes) != 1 or min(sizes) < least:
            raise ValueError(
                f"Invalid value received for argument `{argument}`. Expected "
                "arrays with the same number of examples, at least one. "
                f"Received: shape {self.shapes}"
            )
        self._size = sizes.pop()
        self._arrays = convert_to_sliceable(x, target_backend="numpy")

    def __len__(self):
        return self._size

    def __getitem__(self, rows):
        """The examples with these numbers, in NumPy arrays."""
        rows = np.asarray(rows)
        return _mapped(
            lambda array: np.asarray(array.convert_to_numpy(array[rows])),
            self._arrays,
        )

    def parts(self, size):
        """Batches of `size` examples, the last one of the rest."""
        for start in range(0, len(self), size):
            yield self[range(start, min(start + size, len(self)))]

    def check(self, graph):
        """Raises if `graph` does not take the examples."""
        standardized(graph, self[[0]], self.argument, self.shapes)


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
        yield from Examples("data", data, least=0).parts(batch_size)
        return
    elif hasattr(data, "__iter__"):
        found = iter(data)
    else:
        raise invalid(
            "data", "arrays, a data set or an iterable of batches", data
        )
    for batch in found:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        examples = Examples("data", x, least=0)
        yield examples[range(len(examples))]


def standardized(graph, x, argument, shapes=None):
    """A batch as `model.predict` gives it to the inputs of a model.

    A dict may have more keys than there are inputs. A last axis of size 1 is
    added or taken away, and each array gets the dtype of its input.

    Args:
        graph: A functional model.
        x: Array, or structure of arrays, of shape `(batch, ...)`.
        argument: Name of the argument that `x` comes from.
        shapes: The shapes that an error shows, in the structure of `x`; by
            default those of `x`.

    Returns:
        Tensors in the structure of the inputs of `graph`.

    Raises:
        ValueError: If they do not fit.
    """
    given, cause = x, None
    try:
        if isinstance(x, dict):
            # By name: Keras takes the first ones where there are more.
            named = isinstance(graph.input, dict)
            names = graph.input if named else [i.name for i in graph.inputs]
            given = {name: x[name] for name in names}
        tensors = _mapped(ops.convert_to_tensor, given)
        tensors = standardize_inputs(graph, tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        cause = error
    else:
        if len(tree.flatten(given)) == len(graph.inputs) and all(
            tensor is None or _fits(tensor.shape, wanted.shape)
            for tensor, wanted in zip(tensors, graph.inputs, strict=True)
        ):
            return tree.pack_sequence_as(graph.input, tensors)
    expected = tree.map_structure(lambda each: each.shape, graph.input)
    raise ValueError(
        f"Invalid value received for argument `{argument}`. Expected arrays "
        f"as the model takes them, of shape {expected}. Received: shape "
        f"{shapes or _shapes(x)}"
    ) from cause


def _fits(shape, wanted):
    # The size of a batch is that of the argument `batch_size`.
    return len(shape) == len(wanted) and all(
        size in (None, found)
        for found, size in zip(shape[1:], wanted[1:], strict=True)
    )


def _is_arrays(data, count):
    if data is None or not can_convert_arrays(data):
        return False
    # A list of another length is one of batches.
    batches = isinstance(data, (list, tuple))
    return not batches or len(tree.flatten(data)) == count


def _shapes(x):
    return _mapped(lambda array: tuple(np.shape(array)), x)


def _mapped(function, x):
    """The structure `x` with what `function` makes of each array."""
    return tree.map_structure(
        lambda array: None if array is None else function(array), x
    )
