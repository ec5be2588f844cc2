"""Observes what reaches the layers of a model when it is called."""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from .._batches import random_inputs
from .._keras import get_keras_mask
from .._keras import graph_of
from .._keras import layers_in
from .._keras import random_functions
from ._dropping_layers import Candidate
from ._dropping_layers import has_own_code
from ._dropping_layers import paths_of
from ._graph import not_callable


@contextlib.contextmanager
def watched(
    model: keras.Layer,
    chosen: Collection[keras.Layer],
    note: Callable[[keras.Layer, Any], None],
) -> Iterator[None]:
    """Calls `note(layer, inputs)` before each call of some layers.

    Recurrent layers around them run unrolled in the block: the compiled loop of
    a backend has no values to note.

    Args:
        model: A model.
        chosen: Layers of it, at any depth.
        note: A function of a chosen layer and its inputs.
    """
    with contextlib.ExitStack() as stack:
        for layer in chosen:
            vars(layer)["call"] = _noting(layer, note)
            stack.callback(vars(layer).pop, "call")
        for layer in layers_around(model, chosen, layers.RNN):
            stack.callback(setattr, layer, "unroll", layer.unroll)
            layer.unroll = True
        yield


def layers_around(model, chosen, kind):
    """The layers of a kind that contain one of the chosen layers."""
    ids = {id(layer) for layer in chosen}
    return [
        layer
        for layer in layers_in(model)
        if isinstance(layer, kind)
        and any(id(part) in ids for part in layers_in(layer))
    ]


def untrained_normalization(model: keras.Layer) -> dict[keras.Layer, str]:
    """The batch normalisation layers of a model that have not seen data.

    Their moving statistics are still the initial ones. A frozen layer does not
    count: it uses its moving statistics in training, too.

    Args:
        model: A model.

    Returns:
        Dict from the layers, at any depth, to their paths.
    """
    return {
        layer: path
        for path, layer in paths_of(model)
        if isinstance(layer, layers.BatchNormalization)
        and layer.built
        and layer.trainable
        and _is_initial(layer.moving_mean, layer.moving_mean_initializer)
        and _is_initial(
            layer.moving_variance, layer.moving_variance_initializer
        )
    }


def _is_initial(weight, initializer):
    initial = initializer(weight.shape, dtype=weight.dtype)
    return np.array_equal(
        ops.convert_to_numpy(weight), ops.convert_to_numpy(initial)
    )


@contextlib.contextmanager
def batch_statistics(
    untrained: Iterable[keras.Layer],
) -> Iterator[None]:
    """Makes layers use the statistics of the batch in the block.

    As in training, a call changes their moving statistics, unless it is in a
    `keras.StatelessScope`.

    Args:
        untrained: Layers of batch normalisation.
    """
    with contextlib.ExitStack() as stack:
        for layer in untrained:
            vars(layer)["call"] = _in_training(layer.call)
            stack.callback(vars(layer).pop, "call")
        yield


def _in_training(call):
    return lambda *args, **kwargs: call(*args, **{**kwargs, "training": True})


def counting(activities: Any, inputs: Any) -> Any:
    """A mask of the activities that are not padding, if known.

    Args:
        activities: The input of a layer, of shape `(batch, ...)`.
        inputs: The inputs of the model. If one is named `padding_mask`, as in
            KerasHub's models, it applies to sequences without a mask.

    Returns:
        A mask that broadcasts to `activities`, or None.
    """
    mask = get_keras_mask(activities)
    rank = len(activities.shape)
    if mask is None and isinstance(inputs, dict) and rank == 3:
        mask = inputs.get("padding_mask")
        if mask is not None and mask.shape[1:] != activities.shape[1:2]:
            mask = None
    if mask is None:
        return None
    # Broadcast the mask, which has one value per timestep, over the features.
    ones = [1] * (rank - len(mask.shape))
    return ops.cast(ops.reshape(mask, (*ops.shape(mask), *ones)), "bool")


def _noting(layer, note):
    call = layer.call

    def noting(inputs, *args, **kwargs):
        note(layer, inputs)
        return call(inputs, *args, **kwargs)

    return noting


def observe(
    model: keras.Model, found: list[Candidate], inputs: Any, size: int
) -> set[keras.Layer]:
    """Records the input shapes of layers, and which inputs add up to 1.

    Calls the model once in training mode, without changing variables.

    Args:
        model: A model.
        found: Places of the model, to which the shapes are added.
        inputs: An example of the input of the model; random numbers if None.
        size: The size of the random numbers along axes of variable length.

    Returns:
        The layers that called `keras.random.dropout`.

    Raises:
        ValueError: If the model cannot be called.
    """
    graph = graph_of(model)
    by_id = {id(candidate.layer): candidate for candidate in found}

    def note(layer, inputs):
        candidate = by_id[id(layer)]
        first = not candidate.shapes
        candidate.adds_up = (first or candidate.adds_up) and adds_up(inputs)
        candidate.shapes.append(tuple(inputs.shape))

    with (
        watched(model, [candidate.layer for candidate in found], note),
        _noting_masks(model) as drawing,
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            example = inputs
            if example is None:
                example = tree.pack_sequence_as(
                    graph.input, random_inputs(graph.inputs, size)
                )
            with keras.StatelessScope():
                model(example, training=True)
        except Exception as error:  # a model may raise anything
            raise not_callable(model, inputs, error) from error
    return drawing


def observed_to_draw(model: keras.Model) -> set[keras.Layer]:
    """The layers that call `keras.random.dropout` for random inputs.

    The set is empty if the model has no graph, which gives the shapes of the
    inputs, or cannot be called on random numbers.
    """
    if graph_of(model) is None or not has_own_code(model):
        return set()
    try:
        return observe(model, [], None, size=4)
    except ValueError:
        return set()


@contextlib.contextmanager
def _noting_masks(model):
    """Yields the set of the layers that use Keras' `dropout` in the block."""
    dropout = random_functions.dropout
    known = {id(layer) for layer in layers_in(model)}
    found = set()

    def noting(*args, **kwargs):
        # The innermost layer is that of the first such method on the stack.
        frame: Any = inspect.currentframe()
        while id(frame.f_locals.get("self")) not in known:
            frame = frame.f_back
        found.add(frame.f_locals["self"])
        return dropout(*args, **kwargs)

    random_functions.dropout = noting
    try:
        yield found
    finally:
        random_functions.dropout = dropout


def adds_up(x):
    """Whether `x` is a probability distribution along the last axis."""
    if len(x.shape) < 3:
        return False
    try:
        values = ops.convert_to_numpy(x).astype("float32")
    except Exception:  # inside a loop that the backend compiles
        return False
    sums = values.sum(axis=-1)
    # The scores of a fully masked query are zero.
    near = np.abs(sums - 1) < 0.02
    return bool(
        (values >= 0).all() and near.any() and (near | (sums == 0)).all()
    )
