"""Trains one row of the paper's tables with one seed."""

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from .datasets import Dataset
from .datasets import Split
from .datasets import in_memory
from .results import Result
from .results import replacing
from .tables import Row
from .task import Task


@dataclass(frozen=True)
class Run:
    """What a training leaves.

    Attributes:
        model: The network at the selected epoch, or trained anew for so many
            epochs; it returns probabilities.
        history: One row per epoch: `training_loss` and `training_error`
            (measured while training, with dropout), `validation_error` if
            there is a validation set, `test_error` if a curve was asked for.
            Errors are in percent; for the splicing data, `_bits` of code
            quality stand in their place.
        result: The figures, and all that is needed to repeat them.
    """

    model: keras.Model
    history: pd.DataFrame
    result: Result


class _Snapshots(keras.callbacks.Callback):
    """Keeps weights in a directory: after each epoch, or of the best alone.

    The best epoch is the first with the highest `metric` on validation, or
    the last one where there is no validation.
    """

    def __init__(self, directory: Path, metric: str, every_epoch: bool):
        super().__init__()
        self.directory = directory
        self.metric = f"val_{metric}"
        self.every_epoch = every_epoch
        self.best_epoch = 0
        self.best = -np.inf

    def path(self, epoch: int) -> Path:
        return self.directory / f"{epoch if self.every_epoch else 'best'}.npz"

    def on_epoch_end(self, epoch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise ValueError(
                f"The loss of epoch {epoch + 1} is {logs['loss']}: training "
                "diverged. Take a smaller `learning_rate`."
            )
        value = logs.get(self.metric, self.best)
        best = value > self.best or self.metric not in logs
        if best:
            self.best_epoch, self.best = epoch, value
        if best or self.every_epoch:
            np.savez(self.path(epoch), *self.model.get_weights())

    def restore(self, model: keras.Model, epoch: int):
        with np.load(self.path(epoch)) as weights:
            model.set_weights(list(weights.values()))


def train(
    row: Row,
    dataset: Dataset,
    seed: int,
    width: float = 1.0,
    activation: str | None = None,
    test_curve: bool = False,
    command: str = "",
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Run:
    """Trains the network of a row by its recipe.

    The weights of the epoch with the lowest validation error (or the highest
    code quality) are selected, the earlier one if two are equal, or those of
    the last epoch where the data set has no validation examples. If the
    recipe says so, the network is trained anew, on the validation examples as
    well, for as many epochs. Only then is the test set looked at, once: by
    the selected weights or, for a curve, by those of every epoch.

    With one seed, the networks of all methods have the same initial weights.

    Args:
        row: The row, with the network, the method and the recipe.
        dataset: The examples.
        seed: Integer. Seed of initial weights, masks and the order of the
            examples.
        width: Multiplier of the units of the network's layers.
        activation: Activation function of the hidden units, by default the
            network's own. For the fully connected networks.
        test_curve: Whether to measure the test set after every epoch, too.
        command: What was called, for the result.
        on_epoch: Called with the number of epochs done after each.

    Returns:
        A `Run`.

    Raises:
        ValueError: If the loss is no longer finite, `width` leaves a layer
            empty, or the network does not take an `activation`.
    """
    task = Task(row, dataset, seed, width, activation)
    with tempfile.TemporaryDirectory() as directory:
        snapshots = _Snapshots(
            Path(directory), task.metric(from_logits=True).name, test_curve
        )
        model = task.model()
        started = time.perf_counter()
        logs = task.fit(
            model,
            dataset.train,
            row.recipe.epochs,
            dataset.validation,
            snapshots,
            _told(on_epoch),
        )
        history = _history(task, logs)
        network = task.network("softmax")
        examples = len(dataset.train)
        if row.recipe.retrain and len(dataset.validation):
            examples += len(dataset.validation)
            epochs = snapshots.best_epoch + 1
            retrained = _retrained(task, epochs, on_epoch)
            network.set_weights(retrained.get_weights())
        else:
            snapshots.restore(network, snapshots.best_epoch)
        seconds = time.perf_counter() - started
        # Everything is chosen: from here on the test set may be seen.
        if test_curve:
            history[f"test_{task.measure}"] = _test_curve(task, snapshots)
    selected = snapshots.best_epoch + 1
    validation = history.get(f"validation_{task.measure}")
    result = Result(
        row=row.id,
        dataset=dataset.name,
        source=dataset.source,
        encoding=dataset.encoding,
        training_examples=examples,
        validation_examples=len(dataset.validation),
        test_examples=len(dataset.test),
        network=row.network.name,
        width=width,
        parameters=network.count_params(),
        activation=activation,
        dropout=row.method,
        seed=seed,
        epochs=row.recipe.epochs,
        selected_epoch=selected,
        unit=row.unit,
        validation=None if validation is None else float(validation[selected]),
        test=task.test(network),
        seconds=round(seconds, 1),
        backend=keras.backend.backend(),
        versions=_versions(),
        command=command,
        recipe=asdict(row.recipe),
    )
    return Run(network, history, result)


def _told(on_epoch: Callable[[int], None], before: int = 0):
    """A callback that calls `on_epoch` with the number of epochs done."""
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: on_epoch(before + epoch + 1)
    )


def _history(task: Task, logs: dict[str, list[float]]) -> pd.DataFrame:
    """The losses and figures of each epoch."""
    metric = task.metric(from_logits=True).name
    history = pd.DataFrame({"training_loss": logs["loss"]})
    history[f"training_{task.measure}"] = task.figures(logs[metric])
    if f"val_{metric}" in logs:
        validation = task.figures(logs[f"val_{metric}"])
        history[f"validation_{task.measure}"] = validation
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


def _retrained(
    task: Task, epochs: int, on_epoch: Callable[[int], None]
) -> keras.Model:
    """A network trained on the validation examples as well."""
    splits = in_memory(task.dataset.train), task.dataset.validation
    everything = Split(
        np.concatenate([split.x for split in splits]),
        np.concatenate([split.y for split in splits]),
    )
    model = task.model()
    told = _told(on_epoch, before=task.row.recipe.epochs)
    task.fit(model, everything, epochs, None, told)
    return model


def _test_curve(task: Task, snapshots: _Snapshots) -> list[float]:
    """The figure of the test set after each epoch."""
    network = task.network("softmax")
    figures = []
    for epoch in range(task.row.recipe.epochs):
        snapshots.restore(network, epoch)
        figures.append(task.test(network))
    return figures


def save(run: Run, directory: Path) -> None:
    """Writes the model (`.keras`) and the history (`.csv`) of a run.

    The files are named after the run; each takes its place when it is whole.
    """
    name = run.result.name
    with replacing(directory / f"{name}.keras") as temporary:
        run.model.save(temporary)
    with replacing(directory / f"{name}.csv") as temporary:
        run.history.to_csv(temporary)


def _versions() -> dict[str, str]:
    packages = "keras-invdrop", "keras", keras.backend.backend(), "numpy"
    return {name: importlib.metadata.version(name) for name in packages}
