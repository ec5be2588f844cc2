"""Trains one row of the paper's tables with one seed."""

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_invdrop.validation import invalid

from .datasets import Dataset
from .datasets import Split
from .datasets import Stream
from .datasets import in_memory
from .metrics import CodeQuality
from .results import Result
from .results import replacing
from .tables import Row


@dataclass(frozen=True)
class Run:
    """What a training leaves.

    Attributes:
        model: The network at the selected epoch; it returns probabilities.
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
    """
    task = _Task(row, dataset, seed, width, activation)
    recipe, training, validation = row.recipe, dataset.train, dataset.validation
    progress = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1)
    )
    with tempfile.TemporaryDirectory() as directory:
        metric = task.metric(from_logits=True)
        snapshots = _Snapshots(Path(directory), metric.name, test_curve)
        started = time.perf_counter()
        logs = task.fit(
            task.model(),
            training,
            recipe.epochs,
            validation,
            snapshots,
            progress,
        )
        seconds = time.perf_counter() - started
        selected = snapshots.best_epoch + 1
        history = pd.DataFrame(
            {"training_loss": logs["loss"]},
            index=pd.RangeIndex(1, recipe.epochs + 1, name="epoch"),
        )
        history[f"training_{task.measure}"] = task.figures(logs[metric.name])
        validated = None
        if len(validation):
            figures = task.figures(logs[snapshots.metric])
            history[f"validation_{task.measure}"] = figures
            validated = float(figures[selected - 1])
        network = task.network("softmax")
        if recipe.retrain and len(validation):
            retrained = task.model()
            task.fit(
                retrained,
                _joined(in_memory(training), validation),
                selected,
                None,
                keras.callbacks.LambdaCallback(
                    on_epoch_end=lambda epoch, logs: on_epoch(
                        recipe.epochs + epoch + 1
                    )
                ),
            )
            network.set_weights(retrained.get_weights())
        else:
            snapshots.restore(network, snapshots.best_epoch)
        # Everything is chosen: from here on the test set may be seen.
        if test_curve:
            curve = task.network("softmax")
            tested = []
            for epoch in range(recipe.epochs):
                snapshots.restore(curve, epoch)
                tested.append(task.test(curve))
            history[f"test_{task.measure}"] = tested
    result = Result(
        row=row.id,
        dataset=dataset.name,
        source=dataset.source,
        encoding=dataset.encoding,
        training_examples=len(training),
        validation_examples=len(validation),
        test_examples=len(dataset.test),
        network=row.network.name,
        width=width,
        parameters=network.count_params(),
        activation=activation,
        dropout=row.method,
        seed=seed,
        epochs=recipe.epochs,
        selected_epoch=selected,
        unit=row.unit,
        validation=validated,
        test=task.test(network),
        seconds=round(seconds, 1),
        backend=keras.backend.backend(),
        versions=_versions(),
        command=command,
        recipe=asdict(recipe),
    )
    return Run(network, history, result)


def build(
    row: Row, width: float, activation: str | None, **options: Any
) -> keras.Model:
    """The network of a row, with the constraints of its recipe.

    Args:
        row: The row.
        width: Multiplier of the units of its layers.
        activation: Activation function of the hidden units, or None.
        **options: Other arguments of the function that builds it.

    Raises:
        ValueError: If `width` leaves a layer empty, or the network does not
            take an activation function.
    """
    recipe = row.recipe
    if activation is not None:
        if not row.network.any_activation:
            raise invalid(
                "activation", f"None for '{row.network.name}'", activation
            )
        options["activation"] = activation
    return row.network.build(
        dropout=row.method,
        width=width,
        input_rate=recipe.input_rate,
        hidden_rate=recipe.hidden_rate,
        beta_regularizer=recipe.beta_regularizer(),
        max_norm=recipe.max_norm,
        **options,
    )


class _Task:
    """What is the same for every fit of one training."""

    def __init__(
        self,
        row: Row,
        dataset: Dataset,
        seed: int,
        width: float,
        activation: str | None,
    ):
        self.row = row
        self.dataset = dataset
        self.seed = seed
        self.width = width
        self.activation = activation
        # In the history: "training_error", "training_bits".
        self.measure = "bits" if row.unit == "bits" else "error"

    def network(
        self, classifier_activation: str | None, method: str | None = None
    ) -> keras.Model:
        options: dict = {}
        if self.row.unit == "bits":
            _, options["tissues"], options["classes"] = (
                self.dataset.test.y.shape
            )
        return build(
            self.row if method is None else replace(self.row, method=method),
            self.width,
            self.activation,
            input_shape=self.dataset.test.x.shape[1:],
            classifier_activation=classifier_activation,
            **options,
        )

    def model(self) -> keras.Model:
        """A network to train, which returns logits, with initial weights.

        Layers draw their seeds in turn, so that those of one method would get
        other weights than those of another: all take them from one network.
        """
        keras.utils.set_random_seed(self.seed)
        initial = self.network(None, "standard")
        keras.utils.set_random_seed(self.seed)
        model = self.network(None)
        for layer in initial.layers:
            if layer.weights:
                model.get_layer(layer.name).set_weights(layer.get_weights())
        return model

    def metric(self, from_logits: bool) -> keras.Metric:
        if self.row.unit == "bits":
            naive_guess = in_memory(self.dataset.train).y.mean(axis=0)
            return CodeQuality(naive_guess, from_logits=from_logits)
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def fit(
        self,
        model: keras.Model,
        examples: Split | Stream,
        epochs: int,
        validation: Split | None = None,
        *callbacks: keras.callbacks.Callback,
    ) -> dict[str, list[float]]:
        recipe = self.row.recipe
        losses = keras.losses
        model.compile(
            optimizer=recipe.optimizer(-(-len(examples) // recipe.batch_size)),
            # From the logits: a probability rounded to 0 has no gradient.
            loss=losses.CategoricalCrossentropy(from_logits=True)
            if self.row.unit == "bits"
            else losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[self.metric(from_logits=True)],
        )
        options: dict = {"epochs": epochs, "callbacks": callbacks, "verbose": 0}
        if validation is not None and len(validation):
            options["validation_data"] = validation.x, validation.y
            options["validation_batch_size"] = 1000
        if isinstance(examples, Stream):
            with examples.reading():
                data = examples.batches(recipe.batch_size, self.seed)
                return model.fit(data, shuffle=False, **options).history
        return model.fit(
            examples.x, examples.y, batch_size=recipe.batch_size, **options
        ).history

    def figures(self, values: list[float]) -> np.ndarray:
        """What a metric gave for each epoch, in the unit of the row."""
        if self.row.unit == "bits":
            return np.asarray(values)
        # Accuracies are float32: 0.982 is 0.98199999332.
        return np.round(100 * (1 - np.asarray(values)), 4)

    def test(self, network: keras.Model) -> float:
        """The figure of the test set, in the unit of the row."""
        test = self.dataset.test
        outputs = network.predict(test.x, batch_size=1000, verbose=0)
        metric = self.metric(from_logits=False)
        metric.update_state(test.y, outputs)
        return round(float(self.figures([float(metric.result())])[0]), 4)


def save(run: Run, directory: Path) -> None:
    """Writes the model (`.keras`) and the history (`.csv`) of a run.

    The files are named after the run; each takes its place when it is whole.
    """
    name = run.result.name
    with replacing(directory / f"{name}.keras") as temporary:
        run.model.save(temporary)
    with replacing(directory / f"{name}.csv") as temporary:
        run.history.to_csv(temporary)


def _joined(*splits: Split) -> Split:
    return Split(
        np.concatenate([split.x for split in splits]),
        np.concatenate([split.y for split in splits]),
    )


def _versions() -> dict[str, str]:
    packages = "keras-invdrop", "keras", keras.backend.backend(), "numpy"
    return {name: importlib.metadata.version(name) for name in packages}
