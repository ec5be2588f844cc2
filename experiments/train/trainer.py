"""Builds, fits and measures the network of a training."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras_invdrop.applications import METHODS
from keras_invdrop.applications.metrics import CodeQuality

from keras_invdrop import calibrate
from keras_invdrop._checks import invalid
from keras_invdrop.layers._shifted_dropout import ShiftedDropout

from ..data.datasets import Dataset
from ..data.datasets import Split
from ..data.datasets import Stream
from ..data.datasets import in_memory
from ..paper.tables import Row
from .devices import Devices
from .fitting import Fitted
from .fitting import evaluation_batch
from .fitting import fit
from .trial import Trial


def has_shift(method: str) -> bool:
    """Whether a dropout layer of the method has a shift to calibrate."""
    return any(
        layer is not None and issubclass(layer, ShiftedDropout)
        for layer in METHODS[method]
    )


@dataclass(frozen=True)
class Trainer:
    """Builds, fits and measures the network of a trial.

    Attributes:
        trial: The training.
        dataset: The examples.
    """

    trial: Trial
    dataset: Dataset

    @property
    def row(self) -> Row:
        """The row, with the network, the method and the recipe."""
        return self.trial.row

    @property
    def measure(self) -> str:
        """The measure, for headings: `"error"` or `"bits"`."""
        return "bits" if self.row.unit == "bits" else "error"

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

        Raises:
            ValueError: If the recipe is calibrated and the method has no
                shift.
        """
        calibrated = self.row.recipe.calibrated
        if calibrated and not has_shift(self.row.method):
            raise invalid(
                "calibrated",
                f"False for '{self.row.method}' dropout, which has no shift",
                calibrated,
            )
        initial = _drawn_from(self.trial.seed, self.network(None, "standard"))
        model = self.network(None)
        for layer in initial.layers:
            if layer.weights:
                model.get_layer(layer.name).set_weights(layer.get_weights())
        return self._calibrated(model) if calibrated else model

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
        """Compiles and fits `model` by the recipe; see `fitting.fit`.

        With several devices, this method fits a copy of `model` that is on
        all devices.
        """
        recipe = self.row.recipe
        devices = (
            Devices(recipe.batch_size) if self.trial.data_parallel else None
        )
        with nullcontext() if devices is None else devices.scope():
            metric = self.metric(from_logits=True)
            if devices is not None:
                # The devices must agree on the weights, which every process
                # would draw differently.
                keras.utils.set_random_seed(self.trial.seed)
                weights = model.get_weights()
                model = type(model).from_config(model.get_config())
                model.set_weights(weights)
            recipe.compile(
                model,
                steps_per_epoch=-(-len(examples) // recipe.batch_size),
                metrics=[metric],
                steps_per_execution=self.trial.steps_per_execution,
            )
            scans = self.trial.steps_per_execution > 1 and devices is None
            if scans and keras.backend.backend() == "jax":
                from .scanning import scan_steps

                scan_steps(model)
            return fit(
                model,
                examples,
                recipe.batch_size,
                epochs,
                self.trial.seed,
                metric.name,
                {k: each for k, each in (evaluated or {}).items() if len(each)},
                backup,
                on_epoch,
                devices,
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
