"""Moving averages of a model's weights, which an optimizer keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras


def averaging(model: keras.Model) -> Any:
    """The optimizer that averages the weights of a model, or None."""
    # With float16, Keras wraps the optimizer in one that scales the loss.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return optimizer if getattr(optimizer, "use_ema", False) else None


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Replaces the weights by their averages within the block.

    Nothing changes if the optimizer keeps no averages. The block restores the
    weights bit for bit; `keras.callbacks.SwapEMAWeights` swaps by adding and
    subtracting on TensorFlow, which rounds the weights.
    """
    optimizer = averaging(model)
    if optimizer is None:
        yield
        return
    weights = model.get_weights()
    # Call the class' method: the instance's may have been replaced to keep
    # `fit` from averaging the weights at its end.
    type(optimizer).finalize_variable_values(
        optimizer, model.trainable_variables
    )
    # On JAX a weight and its average now share an array, which an evaluation
    # would donate.
    model.set_weights(model.get_weights())
    try:
        yield
    finally:
        model.set_weights(weights)
