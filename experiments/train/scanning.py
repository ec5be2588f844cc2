"""Several training steps as one program of XLA, on the JAX backend."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jax import numpy as jnp
from keras import tree


def scan_steps(model: keras.Model) -> None:
    """Makes one program of the steps that a model takes per execution.

    Keras calls the compiled step as often as `steps_per_execution` says, from
    Python. On a GPU the calls take longer than the steps of a small network.
    Here the steps are one call, of `jax.lax.scan`.

    Args:
        model: A compiled model, on the JAX backend, whose training function
            is replaced. In an epoch all batches but the last have one shape.
    """

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        logs, state = model.train_step(state, batch)
        return state, logs

    def steps(state: Any, batches: Any) -> tuple[Any, Any]:
        state, logs = jax.lax.scan(step, state, batches)
        return tree.map_structure(lambda value: value[-1], logs), state

    compiled = jax.jit(steps, donate_argnums=0)

    def train(state: Any, iterator: Iterator[Any]) -> tuple[Any, Any]:
        # The first one raises StopIteration at the end of the epoch.
        batches = [next(iterator)]
        batches += itertools.islice(iterator, model.steps_per_execution - 1)
        for _, same in itertools.groupby(batches, _shapes):
            stacked = tree.map_structure(lambda *each: jnp.stack(each), *same)
            logs, state = compiled(state, stacked)
        return logs, state

    model.train_function = train


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(value) for value in tree.flatten(batch)]
