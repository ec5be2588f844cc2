"""The moving averages that an optimizer takes of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras


def averaging(model: keras.Model) -> Any:
    """The optimizer that averages the weights of a model; None without."""
    # With float16, Keras wraps the optimizer in one that scales the loss.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return optimizer if getattr(optimizer, "use_ema", False) else None


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """In the block, the averages stand in the place of the weights.

    Nothing changes if the optimizer takes none. After the block the weights
    are bit for bit what they were: `keras.callbacks.SwapEMAWeights` adds and
    subtracts on TensorFlow, which rounds them.
    """
    optimizer = averaging(model)
    if optimizer is None:
        yield
        return
    weights = model.get_weights()
    # The method of the class: that of an instance may have been replaced, to
    # keep `fit` from doing the same when it ends.
    type(optimizer).finalize_variable_values(
        optimizer, model.trainable_variables
    )
    # On JAX a weight and its average are one array now, which an evaluation
    # would give away.
    model.set_weights(model.get_weights())
    try:
        yield
    finally:
        model.set_weights(weights)
