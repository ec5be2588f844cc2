"""Several training steps as one XLA program, on the JAX backend."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jax import numpy as jnp
from keras import tree


def scan_steps(model: keras.Model) -> None:
    """Compiles the steps of one execution of a model into one program.

    Keras calls the compiled step `steps_per_execution` times from Python. On a
    GPU these calls take longer than the steps of a small network. One call of
    `jax.lax.scan` replaces them.

    Args:
        model: A compiled model on the JAX backend. This function replaces its
            training function. In an epoch all batches except the last must have
            the same shape.
    """

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        logs, state = model.train_step(state, batch)
        return state, logs

    def steps(state: Any, batches: Any) -> tuple[Any, Any]:
        state, logs = jax.lax.scan(step, state, batches)
        return tree.map_structure(lambda value: value[-1], logs), state

    compiled = jax.jit(steps, donate_argnums=0)

    def train(state: Any, iterator: Iterator[Any]) -> tuple[Any, Any]:
        # At the end of the epoch `next` raises StopIteration.
        batches = [next(iterator)]
        batches += itertools.islice(iterator, model.steps_per_execution - 1)
        for _, same in itertools.groupby(batches, _shapes):
            stacked = tree.map_structure(lambda *each: jnp.stack(each), *same)
            logs, state = compiled(state, stacked)
        return logs, state

    model.train_function = train


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(value) for value in tree.flatten(batch)]
