"""Batches of examples from data that `model.predict` takes."""

import itertools
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree

from ._checks import fits
from ._checks import invalid
from ._checks import is_number
from ._keras import can_convert_arrays
from ._keras import convert_to_sliceable
from ._keras import graph_of
from ._keras import standardize_inputs

BATCH = 3  # not 1, the batch size with which some exporters trace
IMAGE_SIZE = 32


class Examples:
    """Examples in arrays of the kinds that `model.predict` takes.

    Args:
        argument: Name of the argument that holds the examples.
        x: Array, or structure of arrays, of shape `(examples, ...)`, from
            NumPy, SciPy, pandas or a backend.
        least: Integer. The smallest allowed number of examples.

    Raises:
        ValueError: If `x` does not consist of arrays of numbers, or the arrays
            differ in their number of examples or have too few.
    """

    def __init__(self, argument, x, least=1):
        if any(map(_is_text, tree.flatten(x))):
            raise ValueError(
                f"Invalid value received for argument `{argument}`. Expected "
                "arrays of numbers. Received strings or other objects: pass "
                "the preprocessed inputs, such as `model.preprocessor(x)`."
            )
        if x is None or not can_convert_arrays(x):
            raise invalid(
                argument,
                "an array, or a list, tuple or dict of arrays (of a data set, "
                "those of a batch)",
                x,
            )
        self.argument = argument
        self.shapes = _shapes(x)
        # None stands for an optional input.
        arrays = [array for array in tree.flatten(x) if array is not None]
        sizes = {(*np.shape(array), -1)[0] for array in arrays}
        if len(sizes) != 1 or min(sizes) < least:
            few = ", at least one" if least else ""
            raise ValueError(
                f"Invalid value received for argument `{argument}`. Expected "
                f"arrays with the same number of examples{few}. "
                f"Received: shape {self.shapes}"
            )
        self._size = sizes.pop()
        self._arrays = convert_to_sliceable(x, target_backend="numpy")

    def __len__(self):
        return self._size

    def __getitem__(self, rows):
        """The examples with the numbers `rows`, as NumPy arrays."""
        rows = np.asarray(rows)
        return mapped(
            lambda array: np.asarray(array.convert_to_numpy(array[rows])),
            self._arrays,
        )

    def parts(self, size):
        """Batches of `size` examples; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[range(start, min(start + size, len(self)))]

    def first(self, model):
        """The first example; as many as a fixed batch of `model` has."""
        graph = graph_of(model)
        # A stateful recurrent layer has a state for each example of a batch.
        fixed = [each.shape[0] or 1 for each in graph.inputs] if graph else [1]
        return self[range(min(max(fixed), len(self)))]

    def check(self, model):
        """Raises an error if `model` does not take the examples."""
        standardized(model, self[[0]], self.argument, self.shapes)


class Batches(keras.utils.PyDataset):
    """Examples in batches; the last may be smaller.

    Args:
        arrays: Array, or structure of arrays; None stands for no array.
        examples: Integer. The number of examples.
        batch_size: Positive integer. Number of examples in a batch.
    """

    def __init__(self, arrays, examples, batch_size):
        super().__init__()
        self.arrays = arrays
        self.examples = examples
        self.batch_size = batch_size

    def __len__(self):
        return -(-self.examples // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        which = self.which(slice(start, start + self.batch_size))
        return mapped(lambda array: array[which], self.arrays)

    def which(self, places: slice) -> Any:
        """The examples at these places; a subclass may reorder them."""
        return places


class Batch(NamedTuple):
    """A batch of a data set; None stands for no targets or weights."""

    examples: Examples
    targets: Any = None
    sample_weight: Any = None


def batches(data, batch_size, inputs=1):
    """The batches of examples in data, without targets and sample weights.

    Args:
        data: Arrays, which are cut into batches, or a data set, as
            `of_data_set` reads it.
        batch_size: Positive integer. Number of examples in a batch.
        inputs: Positive integer. Number of arrays in a batch; any if None.

    Yields:
        An array of shape `(batch, ...)`, or a structure of arrays.
    """
    if isinstance(data, dict) or _is_arrays(data, inputs):
        yield from Examples("data", data, least=0).parts(batch_size)
        return
    for examples, _, _ in of_data_set("data", data):
        yield examples[range(len(examples))]


def of_data_set(argument: str, data: Any) -> Iterator[Batch]:
    """The batches of a data set.

    Args:
        argument: Name of the argument that holds the data set.
        data: `PyDataset`, `tf.data.Dataset` or another iterable of batches.
            Each batch consists of the examples, or is a tuple
            `(examples, targets)` or `(examples, targets, sample_weights)`.

    Raises:
        ValueError: If `data` is not a data set, or a batch does not consist of
            arrays of numbers.
    """
    found: Iterator
    if isinstance(data, keras.utils.PyDataset):
        # Iterating over a `PyDataset` may never end.
        size = data.num_batches
        numbers = itertools.count() if size is None else range(size)
        found = map(data.__getitem__, numbers)
    elif hasattr(data, "__iter__") and not isinstance(data, (str, bytes)):
        found = iter(data)
    else:
        raise invalid(
            argument, "arrays, a data set or an iterable of batches", data
        )
    for batch in found:
        x, *others = [batch]
        if not _is_row(batch):
            x, *others = keras.utils.unpack_x_y_sample_weight(batch)
        if any(map(is_number, tree.flatten(x))):
            raise ValueError(
                f"Invalid value received for argument `{argument}`. Expected "
                "arrays, a data set or an iterable of batches of arrays. "
                f"Received: a {type(data).__name__} of numbers; convert it "
                "with `np.array`"
            )
        yield Batch(Examples(argument, x, least=0), *others)


def _is_row(batch):
    """Whether numbers stand where the arrays of a batch should."""
    return isinstance(batch, (list, tuple)) and any(map(is_number, batch))


def standardized(model, x, argument, shapes=None):
    """A batch as `model.predict` passes it to the inputs of a model.

    A dict may have more keys than the model has inputs. Where needed, a last
    axis of size 1 is added or removed. Each array gets the dtype of its input.
    A model without a graph of layers gets `x` as it is.

    Args:
        model: A model.
        x: Array, or structure of arrays, of shape `(batch, ...)`.
        argument: Name of the argument that `x` comes from.
        shapes: The shapes to show in an error, in the structure of `x`; by
            default the shapes of `x`.

    Returns:
        Tensors in the structure of the inputs of `model`.

    Raises:
        ValueError: If `x` does not fit the inputs.
    """
    graph = graph_of(model)
    if graph is None:
        return x
    given, cause = x, None
    try:
        if isinstance(x, dict):
            # Select by name: given too many arrays, Keras takes the first.
            named = isinstance(graph.input, dict)
            names = graph.input if named else [i.name for i in graph.inputs]
            given = {name: x[name] for name in names}
        tensors = mapped(ops.convert_to_tensor, given)
        tensors = standardize_inputs(graph, tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        cause = error
    else:
        # Ignore the batch axis: its size comes from `batch_size`.
        if len(tree.flatten(given)) == len(graph.inputs) and all(
            tensor is None or fits(tensor.shape, (None, *wanted.shape[1:]))
            for tensor, wanted in zip(tensors, graph.inputs, strict=True)
        ):
            return tree.pack_sequence_as(graph.input, tensors)
    expected = tree.map_structure(lambda each: each.shape, graph.input)
    raise ValueError(
        f"Invalid value received for argument `{argument}`. Expected arrays "
        f"as the model takes them, of shape {expected}. Received: shape "
        f"{shapes or _shapes(x)}"
    ) from cause


def is_data_set(data: Any) -> bool:
    """Whether data come in batches, and are not arrays."""
    if isinstance(data, (str, bytes, dict)) or _is_arrays(data, None):
        return False
    return hasattr(data, "__iter__") or isinstance(data, keras.utils.PyDataset)


def _is_arrays(data, count):
    if data is None or not can_convert_arrays(data):
        return False
    # A list of another length is a list of batches.
    batches = isinstance(data, (list, tuple))
    return not batches or count in (None, len(tree.flatten(data)))


def _is_text(value):
    # TensorFlow's own tensors of strings fit a `TextVectorization`.
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return isinstance(value, (str, bytes)) or kind in ("U", "S", "O")


def _shapes(x):
    return mapped(lambda array: tuple(np.shape(array)), x)


def mapped(function, x):
    """The structure `x` with `function` applied to each array; None stays."""
    return tree.map_structure(
        lambda array: None if array is None else function(array), x
    )


def random_inputs(tensors, size):
    """Random arrays for symbolic tensors: integers are 0 or 1.

    Args:
        tensors: List of `keras.KerasTensor`.
        size: Integer. The size for sequence axes of any size. Image axes of any
            size get `IMAGE_SIZE`, enough for a few pooling layers.
    """
    rng = np.random.default_rng(0)
    arrays = []
    for tensor in tensors:
        batch, *sizes = tensor.shape
        unknown = size if len(sizes) < 3 else IMAGE_SIZE
        shape = (batch or BATCH, *(n or unknown for n in sizes))
        is_float = keras.backend.is_float_dtype(tensor.dtype)
        array = (
            rng.normal(size=shape) if is_float else rng.integers(0, 2, shape)
        )
        arrays.append(array.astype(tensor.dtype))
    return arrays
