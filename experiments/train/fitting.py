"""Fits a model epoch by epoch, and goes on where it was stopped.

Whatever is random in an epoch, the order of the examples and the masks, is
drawn anew from the seed and the number of the epoch. So all that the next
epoch depends on fits into one file, and a fit that was killed and goes on from
its file ends with the weights of one that was never stopped.
"""

import functools
import io
import itertools
import json
import time
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_invdrop._files import replacing

from ..data.datasets import Split
from ..data.datasets import Stream
from ..results.records import this_code
from .devices import Devices
from .devices import Logs
from .devices import from_first
from .devices import is_first


class Diverged(ValueError):
    """The loss is no longer finite."""


def evaluation_batch(split: Split) -> int:
    """How many examples to evaluate at once.

    With more images the paper's convolutional networks take more memory than
    in training, and are no faster; on JAX slower by far.
    """
    return 500 if len(split.x.shape) == 2 else 100


@dataclass
class Fitted:
    """What a fit has led to so far.

    Attributes:
        metric: Name of the metric that selects: the higher the better.
        logs: Name of a loss or metric -> its value in each epoch.
        selected_epoch: The epoch, counted from 1, with the highest value of
            the metric on the examples for validation, the first if several
            are equal; the last epoch where there are none.
        selected: The weights of that epoch, or their averages if the
            optimiser takes such.
        seconds: What the epochs have taken, with the validation after each.
    """

    metric: str
    logs: dict[str, list[float]] = field(default_factory=dict)
    selected_epoch: int = 0
    selected: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """The number of epochs done."""
        return len(self.logs.get("loss", ()))

    @property
    def validation(self) -> list[float]:
        """The metric on the examples for validation; empty without any."""
        return self.logs.get(f"val_{self.metric}", [])


def fit(
    model: keras.Model,
    examples: Split | Stream,
    batch_size: int,
    epochs: int,
    seed: int,
    metric: str,
    evaluated: dict[str, Split],
    backup: Path | None = None,
    on_epoch: Callable[[Fitted], None] = lambda fitted: None,
    devices: Devices | None = None,
) -> Fitted:
    """Fits a compiled model, and selects an epoch.

    Where its optimiser averages the weights (`use_ema`), the model is
    evaluated, and selected, with the averages.

    Args:
        model: The model; it is left with the weights of the last epoch.
        examples: What it is fitted to, in batches of `batch_size`.
        batch_size: Number of examples in a batch.
        epochs: Number of epochs.
        seed: Of the order of the examples and of the masks.
        metric: Name of the metric that selects: the higher the better.
        evaluated: Examples on which to evaluate the model after each epoch;
            those called `"val"` select.
        backup: File that holds, after each epoch, what the next one depends
            on. If it is there, the fit goes on from it. The caller deletes it.
        on_epoch: Called after each epoch.
        devices: Over which the batches are divided, and on which the model
            is; None for one. The first process alone reads and writes
            `backup`.

    Returns:
        A `Fitted`.

    Raises:
        Diverged: If the loss is no longer finite.
        ValueError: If `backup` is not that of this fit.
        OSError: If `backup` cannot be written; it is then what it was.
    """
    fitted = Fitted(metric)
    content = None if backup is None else _content(backup, devices)
    if backup is not None and content is not None:
        fitted = _restored(model, metric, backup, content)
    average = _averages_by(model.optimizer)
    for epoch in range(fitted.epochs, epochs):
        started = time.perf_counter()
        reseed = functools.partial(_reseed, model, seed, epoch)
        # Again, as what Keras does before the first epoch of a process takes
        # random numbers, too.
        again = _AtTheBeginning(reseed)
        with examples.reading():
            batches = examples.batches(batch_size, reseed())
            logs = _epoch(
                model, batches, len(examples), batch_size, again, devices
            )
        if not np.isfinite(logs["loss"]).all():
            raise _diverged(epoch, logs["loss"])
        with _averaged(model, average):
            for name, split in evaluated.items():
                values = _evaluation(model, split, devices)
                logs |= {f"{name}_{key}": each for key, each in values.items()}
            for name, value in logs.items():
                fitted.logs.setdefault(name, []).append(float(value))
            figures = fitted.validation
            if not figures or figures[-1] > max(figures[:-1], default=-np.inf):
                fitted.selected_epoch = epoch + 1
                fitted.selected = model.get_weights()
                # The loss of an epoch was measured before its last step.
                if not all(np.isfinite(each).all() for each in fitted.selected):
                    raise _diverged(epoch, float("nan"))
        fitted.seconds += time.perf_counter() - started
        if backup is not None and (devices is None or is_first()):
            _back_up(model, fitted, backup)
        on_epoch(fitted)
    return fitted


# Puts the averages of weights in their place.
Average = Callable[[list[keras.Variable]], None]


def _averages_by(optimizer: keras.optimizers.Optimizer) -> Average | None:
    """How an optimiser averages weights; None if it does not.

    Keras does so at the end of each call of `fit`, which is here that of an
    epoch. From now on it leaves the weights alone: the next epoch goes on from
    them.
    """
    # With float16, Keras wraps an optimiser in one that scales the loss.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        return None
    inner.finalize_variable_values = lambda variables: None
    return functools.partial(type(inner).finalize_variable_values, inner)


@contextmanager
def _averaged(model: keras.Model, average: Average | None) -> Iterator[None]:
    """In the block, the averages stand in place of the weights."""
    if average is None:
        yield
        return
    weights = model.get_weights()
    average(model.trainable_variables)
    # On JAX a weight and its average are one array now, which an evaluation
    # would give away.
    model.set_weights(model.get_weights())
    try:
        yield
    finally:
        model.set_weights(weights)


def _epoch(
    model: keras.Model,
    batches: Any,
    examples: int,
    batch_size: int,
    at_the_beginning: keras.callbacks.Callback,
    devices: Devices | None,
) -> Logs:
    """Fits the model to all batches once; gives the losses and metrics."""
    if devices is not None:
        return devices.fit(
            model, batches, examples, batch_size, at_the_beginning
        )
    history = model.fit(
        batches, shuffle=False, verbose=0, callbacks=[at_the_beginning]
    ).history
    return {name: value for name, (value,) in history.items()}


def _evaluation(
    model: keras.Model, split: Split, devices: Devices | None
) -> Logs:
    size = evaluation_batch(split)
    if devices is not None:
        return devices.evaluate(model, split.x, split.y, size)
    return model.evaluate(split.batches(size), verbose=0, return_dict=True)


def _diverged(epoch: int, loss: float) -> Diverged:
    return Diverged(
        f"The loss of epoch {epoch + 1} is {loss}: training diverged. Take a "
        "smaller `learning_rate`."
    )


class _AtTheBeginning(keras.callbacks.Callback):
    """Calls a function before the first step."""

    def __init__(self, function: Callable[[], Any]):
        super().__init__()
        self.function = function

    def on_epoch_begin(self, epoch, logs=None):
        self.function()


def _reseed(model: keras.Model, seed: int, epoch: int) -> int:
    """Sets all that is random in an epoch; gives the seed of its order."""
    weights = {id(weight) for weight in model.non_trainable_weights}
    generators = [
        variable
        for variable in model.non_trainable_variables
        if id(variable) not in weights  # the states of `SeedGenerator`s
    ]
    # Below 2^31, which every backend can hold.
    drawn = np.random.SeedSequence((seed, epoch)).generate_state(
        2 + len(generators)
    ) >> np.uint32(1)
    order_seed, backend_seed, *states = map(int, drawn)
    # From the backend's own generator come the masks of Keras' dropout on
    # PyTorch, and numbers for which no generator was made.
    keras.utils.set_random_seed(backend_seed)
    for variable, state in zip(generators, states, strict=True):
        variable.assign(np.array([state, 0]))
    return order_seed


def _back_up(model: keras.Model, fitted: Fitted, path: Path) -> None:
    groups = {
        "weights": model.get_weights(),
        "optimizer": [
            keras.ops.convert_to_numpy(variable)
            for variable in model.optimizer.variables
        ],
        "selected": fitted.selected,
    }
    arrays: dict[str, Any] = {
        f"{group}_{i}": value
        for group, values in groups.items()
        for i, value in enumerate(values)
    }
    arrays["state"] = json.dumps(
        [
            str(this_code()),
            fitted.logs,
            fitted.selected_epoch,
            fitted.seconds,
        ]
    )
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def _content(backup: Path, devices: Devices | None) -> bytes | None:
    """What was backed up; None if there is no backup."""
    if devices is None:
        return backup.read_bytes() if backup.exists() else None
    found = b""
    if is_first() and backup.exists():
        found = b"." + backup.read_bytes()  # an empty file is one, too
    sent = from_first(found)
    return sent[1:] if sent else None


def _restored(
    model: keras.Model, metric: str, path: Path, content: bytes
) -> Fitted:
    """Sets the model and its optimiser to what was backed up in `path`."""
    try:
        with np.load(io.BytesIO(content)) as file:

            def group(name: str) -> list[np.ndarray]:
                names = (f"{name}_{i}" for i in itertools.count())
                return [
                    file[each]
                    for each in itertools.takewhile(file.__contains__, names)
                ]

            code, *state = json.loads(str(file["state"]))
            if code != str(this_code()):
                raise ValueError(f"{code} began it; this is {this_code()}")
            logs, selected_epoch, seconds = state
            model.set_weights(group("weights"))
            model.optimizer.build(model.trainable_variables)
            variables = model.optimizer.variables
            for variable, value in zip(
                variables, group("optimizer"), strict=True
            ):
                variable.assign(value)
            selected = group("selected")
            return Fitted(metric, logs, selected_epoch, selected, seconds)
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not the backup of this training: {error}. Delete it to "
            "begin anew."
        ) from error
