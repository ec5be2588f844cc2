"""Builds, fits and measures the network of a training."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras_invdrop.applications.metrics import CodeQuality

from keras_invdrop import calibrate
from keras_invdrop._checks import invalid
from keras_invdrop.callbacks import ExactResume
from keras_invdrop.callbacks import Reseed

from ..data.datasets import Dataset
from ..data.datasets import Split
from ..data.datasets import Stream
from ..data.datasets import in_memory
from ..paper.tables import Row
from ..results.records import this_code
from .callbacks import Fitted
from .callbacks import SharedResume
from .callbacks import evaluation_batch
from .devices import Devices
from .trial import Trial


@dataclass(frozen=True)
class Trainer:
    """Builds, fits and measures the network of a trial.

    Attributes:
        trial: The training.
        dataset: The examples.

    Raises:
        ValueError: If the trial is for another backend than Keras'.
    """

    trial: Trial
    dataset: Dataset

    def __post_init__(self) -> None:
        backend = keras.backend.backend()
        if self.trial.backend != backend:  # on a worker of a cluster
            raise invalid("KERAS_BACKEND", f"'{self.trial.backend}'", backend)

    @property
    def row(self) -> Row:
        """The row, with the network, the method and the recipe."""
        return self.trial.row

    def network(
        self, classifier_activation: str | None, method: str | None = None
    ) -> keras.Model:
        """Builds the network with the row's dropout method or another."""
        options: dict = {}
        if self.row.unit == "bits":
            _, options["tissues"], options["classes"] = (
                self.dataset.test.y.shape
            )
        else:
            options["classes"] = self.dataset.classes
        return self.trial.network(
            method or self.row.method,
            input_shape=self.dataset.test.x.shape[1:],
            classifier_activation=classifier_activation,
            **options,
        )

    def model(self) -> keras.Model:
        """Builds the network to train, which returns logits.

        Layers draw their weights in turn, and methods differ in their layers;
        therefore all methods copy the initial weights of one network. If the
        recipe is calibrated, this method calibrates the shifts on the training
        examples.
        """
        initial = _drawn_from(self.trial.seed, self.network(None, "standard"))
        model = self.network(None)
        for layer in initial.layers:
            if layer.weights:
                model.get_layer(layer.name).set_weights(layer.get_weights())
        return self._calibrated(model) if self.row.recipe.calibrated else model

    def _calibrated(self, model: keras.Model) -> keras.Model:
        examples, batch_size = self.dataset.train, self.row.recipe.batch_size
        if isinstance(examples, Stream):
            with examples.reading():
                data = examples.batches(batch_size, self.trial.seed)
                return calibrate(model, data, keep_predictions=False)
        return calibrate(model, examples.x, batch_size, keep_predictions=False)

    def metric(self, from_logits: bool) -> keras.Metric:
        """The metric that `figures` converts; higher is better."""
        if self.row.unit == "bits":
            naive_guess = in_memory(self.dataset.train).y.mean(axis=0)
            return CodeQuality(naive_guess, from_logits=from_logits)
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def fit(
        self,
        model: keras.Model,
        examples: Split | Stream,
        epochs: int,
        evaluated: dict[str, Split] | None = None,
        backup: Path | None = None,
        on_epoch: Callable[[Fitted], None] = lambda fitted: None,
    ) -> Fitted:
        """Compiles and fits a model by the recipe, and selects an epoch.

        Args:
            model: The model. On one device it ends with the weights of the
                last epoch, or with their averages if the recipe averages
                weights. With several devices, this method fits a copy that is
                on all devices.
            examples: The training examples.
            epochs: Number of epochs.
            evaluated: Name -> examples on which to evaluate the model after
                each epoch. The examples `"val"` select the epoch.
            backup: File that stores the state of the fit after each epoch. If
                the file exists, the fit resumes from it. The caller deletes
                the file. Of several processes, the first one reads and writes
                it.
            on_epoch: Function to call after each epoch.

        Raises:
            Diverged: If the loss is no longer finite.
            ValueError: If `backup` belongs to another fit.
            OSError: If `backup` cannot be written; the old file then remains.
        """
        size, seed = self.row.recipe.batch_size, self.trial.seed
        devices = Devices(size) if self.trial.data_parallel else None
        with nullcontext() if devices is None else devices.scope():
            metric = self.metric(from_logits=True)
            if devices is not None:
                # The devices must agree on the weights, which every process
                # would draw differently.
                keras.utils.set_random_seed(seed)
                weights = model.get_weights()
                model = type(model).from_config(model.get_config())
                model.set_weights(weights)
            self._compile(model, metric, -(-len(examples) // size))
            evaluated = {k: x for k, x in (evaluated or {}).items() if len(x)}
            fitted = Fitted(metric.name, evaluated, devices)
            reseed = self._reseed(fitted, backup)
            told = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: on_epoch(fitted)
            )
            callbacks = [fitted, reseed, told]
            batches = examples.shuffled(size, reseed)
            with examples.reading():
                if devices is None:
                    model.fit(
                        batches,
                        epochs=epochs,
                        shuffle=False,
                        verbose=0,
                        callbacks=callbacks,
                    )
                else:
                    devices.fit(
                        model, batches, len(examples), size, epochs, callbacks
                    )
        return fitted

    def _compile(
        self, model: keras.Model, metric: keras.Metric, steps_per_epoch: int
    ) -> None:
        steps = self.trial.steps_per_execution
        self.row.recipe.compile(
            model, steps_per_epoch, metrics=[metric], steps_per_execution=steps
        )
        scans = steps > 1 and not self.trial.data_parallel
        if scans and keras.backend.backend() == "jax":
            from .scanning import scan_steps

            scan_steps(model)

    def _reseed(self, fitted: Fitted, backup: Path | None) -> Reseed:
        """The callback that seeds each epoch, and resumes from `backup`."""
        if backup is None:
            return Reseed(self.trial.seed)
        resume = ExactResume if fitted.devices is None else SharedResume
        return resume(
            backup,
            self.trial.seed,
            callbacks=[fitted],
            identity=str(this_code()),
            delete_checkpoint=False,
        )

    def figures(self, values: list[float]) -> np.ndarray:
        """Converts the values of a metric to the unit of the row."""
        if self.row.unit == "bits":
            return np.asarray(values)
        # Accuracies are float32: 0.982 is 0.98199999332.
        return np.round(100 * (1 - np.asarray(values)), 4)

    def validation(self, fitted: Fitted, epoch: int) -> float | None:
        """The figure on the validation examples after an epoch.

        Epochs count from 1. Returns None without validation examples.
        """
        if not fitted.validation:
            return None
        return float(self.figures([fitted.validation[epoch - 1]])[0])

    def test(self, network: keras.Model) -> tuple[float, np.ndarray | None]:
        """Measures a network on the test set.

        Returns:
            The figure, in the unit of the row, and a Boolean array of the
            examples that the network gets wrong, or None if the network
            predicts distributions.
        """
        test = self.dataset.test
        batches = test.batches(evaluation_batch(test))
        outputs = network.predict(batches, verbose=0)
        if self.row.unit == "%":
            wrong = outputs.argmax(axis=1) != test.y
            return round(100 * float(wrong.mean()), 4), wrong
        metric = self.metric(from_logits=False)
        metric.update_state(test.y, outputs)
        return round(float(metric.result()), 4), None


def _drawn_from(seed: int, model: keras.Model) -> keras.Model:
    """The same network, with initial weights that depend on `seed` alone.

    Keras draws the seeds of initializers from Python's random generator. Other
    threads of the process, such as a Dask worker's, draw from it, too.
    """
    rng = np.random.default_rng(seed)

    def give_seeds(config: Any) -> None:
        if isinstance(config, dict):
            options = config.get("config", {})
            if (
                config.get("module") == "keras.initializers"
                and "seed" in options
            ):
                options["seed"] = int(rng.integers(2**31))
            config = list(config.values())
        if isinstance(config, (list, tuple)):
            for value in config:
                give_seeds(value)

    config = model.get_config()
    give_seeds(config)
    return type(model).from_config(config)
