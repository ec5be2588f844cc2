"""Trains one network with one method, one encoding and one seed."""

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from .datasets import Dataset
from .datasets import Split
from .networks import mnist_mlp
from .recipes import Recipe
from .results import Result
from .results import replacing


@dataclass(frozen=True)
class Run:
    """What a training leaves.

    Attributes:
        model: The network at the selected epoch; it returns probabilities.
        history: One row per epoch: `training_loss` and `training_error`
            (measured while training, with dropout), `validation_error` if
            there is a validation set, `test_error` if a curve was asked for.
            Errors are in percent.
        result: The figures, and all that is needed to repeat them.
    """

    model: keras.Model
    history: pd.DataFrame
    result: Result


class _Snapshots(keras.callbacks.Callback):
    """Keeps weights in a directory: after each epoch, or of the best alone.

    The best epoch is the first with the lowest validation error, or the last
    one where there is no validation.
    """

    def __init__(self, directory: Path, every_epoch: bool):
        super().__init__()
        self.directory = directory
        self.every_epoch = every_epoch
        self.best_epoch = 0
        self.best_accuracy = -1.0

    def path(self, epoch: int) -> Path:
        return self.directory / f"{epoch if self.every_epoch else 'best'}.npz"

    def on_epoch_end(self, epoch, logs=None):
        accuracy = logs.get("val_accuracy", self.best_accuracy)
        best = accuracy > self.best_accuracy or "val_accuracy" not in logs
        if best:
            self.best_epoch, self.best_accuracy = epoch, accuracy
        if best or self.every_epoch:
            np.savez(self.path(epoch), *self.model.get_weights())

    def restore(self, epoch: int):
        with np.load(self.path(epoch)) as weights:
            self.model.set_weights(list(weights.values()))


def train_mnist(
    dataset: Dataset,
    dropout: str,
    recipe: Recipe,
    seed: int,
    activation: str = "relu",
    hidden_units: Sequence[int] = (1000, 1000),
    test_curve: bool = False,
    command: str = "",
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Run:
    """Trains the network of Table 2.

    The weights of the epoch with the lowest validation error are selected,
    the earlier one if two are equal, or those of the last epoch where the
    data set has no validation examples. Only then is the test set looked at,
    once: by the selected weights or, for a curve, by those of every epoch.

    Args:
        dataset: The examples.
        dropout: One of the methods of `mnist_mlp`.
        recipe: How to train.
        seed: Integer. Seed of initial weights, masks and the order of the
            examples.
        activation: Activation function of the hidden units.
        hidden_units: Units of each hidden layer.
        test_curve: Whether to measure the test error of every epoch, too.
        command: What was called, for the result.
        on_epoch: Called with the number of epochs done after each.

    Returns:
        A `Run`.
    """
    keras.utils.set_random_seed(seed)

    def network(classifier_activation):
        return mnist_mlp(
            dropout,
            activation,
            hidden_units,
            input_rate=recipe.input_rate,
            hidden_rate=recipe.hidden_rate,
            beta_regularizer=recipe.beta_regularizer(),
            max_norm=recipe.max_norm,
            classifier_activation=classifier_activation,
        )

    train, validation = dataset.train, dataset.validation
    model = network(None)
    model.compile(
        optimizer=recipe.optimizer(-(-len(train) // recipe.batch_size)),
        # From the logits: a probability rounded to 0 has no gradient.
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    progress = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1)
    )
    with tempfile.TemporaryDirectory() as directory:
        snapshots = _Snapshots(Path(directory), every_epoch=test_curve)
        started = time.perf_counter()
        logs = model.fit(
            train.x,
            train.y,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            validation_data=(validation.x, validation.y)
            if len(validation)
            else None,
            validation_batch_size=1000,
            callbacks=[snapshots, progress],
            verbose=0,
        ).history
        seconds = time.perf_counter() - started
        history = pd.DataFrame(
            {
                "training_loss": logs["loss"],
                "training_error": _percent_wrong(logs["accuracy"]),
            },
            index=pd.RangeIndex(1, recipe.epochs + 1, name="epoch"),
        )
        if len(validation):
            errors = _percent_wrong(logs["val_accuracy"])
            history["validation_error"] = errors
        # Everything is chosen: from here on the test set may be seen.
        if test_curve:
            test_errors = []
            for epoch in range(recipe.epochs):
                snapshots.restore(epoch)
                test_errors.append(error_percent(model, dataset.test))
            history["test_error"] = test_errors
        snapshots.restore(snapshots.best_epoch)
    selected = snapshots.best_epoch + 1
    trained = network("softmax")
    trained.set_weights(model.get_weights())
    result = Result(
        dataset=dataset.name,
        source=dataset.source,
        encoding=dataset.encoding,
        training_examples=len(train),
        validation_examples=len(validation),
        test_examples=len(dataset.test),
        network="-".join(
            map(str, (train.x.shape[1], *hidden_units, trained.output_shape[1]))
        ),
        activation=activation,
        dropout=dropout,
        seed=seed,
        epochs=recipe.epochs,
        selected_epoch=selected,
        validation_error=float(history.validation_error[selected])
        if len(validation)
        else None,
        test_error=error_percent(trained, dataset.test),
        seconds=round(seconds, 1),
        backend=keras.backend.backend(),
        versions=_versions(),
        command=command,
        recipe=asdict(recipe),
    )
    return Run(trained, history, result)


def save(run: Run, directory: Path) -> None:
    """Writes the model (`.keras`) and the history (`.csv`) of a run.

    The files are named after the run; each takes its place when it is whole.
    """
    name = run.result.name
    with replacing(directory / f"{name}.keras") as temporary:
        run.model.save(temporary)
    with replacing(directory / f"{name}.csv") as temporary:
        run.history.to_csv(temporary)


def error_percent(model: keras.Model, split: Split) -> float:
    """Percent of the examples in `split` that `model` classifies wrongly."""
    outputs = model.predict(split.x, batch_size=1000, verbose=0)
    wrong = np.mean(outputs.argmax(axis=1) != split.y)
    return round(100 * float(wrong), 4)


def _percent_wrong(accuracy: list[float]) -> np.ndarray:
    # Accuracies are float32: 0.982 is 0.98199999332.
    return np.round(100 * (1 - np.asarray(accuracy)), 4)


def _versions() -> dict[str, str]:
    packages = "keras-invdrop", "keras", keras.backend.backend(), "numpy"
    return {name: importlib.metadata.version(name) for name in packages}
