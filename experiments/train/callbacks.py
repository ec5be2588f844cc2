"""Callbacks of a training: evaluation, selection and exact resume."""

import time
from typing import Any

import numpy as np

from keras_invdrop._averages import averaged
from keras_invdrop.callbacks import BestEpoch
from keras_invdrop.callbacks import ExactResume

from ..data.datasets import Split
from .devices import Devices
from .devices import from_first
from .devices import is_first


class Diverged(ValueError):
    """The loss is no longer finite."""


def evaluation_batch(split: Split) -> int:
    """The batch size for evaluation.

    With larger batches of images, the paper's convolutional networks take more
    memory than in training and are no faster; on JAX they are far slower.
    """
    return 500 if len(split.x.shape) == 2 else 100


class Fitted(BestEpoch):
    """Callback that evaluates, selects an epoch and stores a fit's outcome.

    If the optimizer averages the weights (`use_ema`), the callback evaluates
    and selects the averages.

    Args:
        metric: Name of the metric that selects the epoch; higher is better.
        evaluated: Name -> examples on which to evaluate the model after each
            epoch. The examples `"val"` select the first of the best epochs;
            without them the last epoch is selected.
        devices: Devices that hold the model; None for one.

    Attributes:
        metric: As above.
        logs: Name of a loss or metric -> its value in each epoch.
        seconds: Time of the epochs, evaluations included.
    """

    def __init__(
        self,
        metric: str,
        evaluated: dict[str, Split],
        devices: Devices | None = None,
    ):
        validated = "val" in evaluated
        super().__init__(f"val_{metric}" if validated else None, "max")
        self.metric = metric
        self.evaluated = evaluated
        self.devices = devices
        self.logs: dict[str, list[float]] = {}
        self.seconds = 0.0

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.logs.get("loss", ()))

    @property
    def validation(self) -> list[float]:
        """The metric on the validation examples; empty without them."""
        return self.logs.get(f"val_{self.metric}", [])

    @property
    def selected_epoch(self) -> int:
        """The selected epoch, counted from 1."""
        return 0 if self.epoch is None else self.epoch + 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not np.isfinite(logs["loss"]):
            raise _diverged(epoch, logs["loss"])
        with averaged(self.model):
            for name, split in self.evaluated.items():
                figures = self._evaluation(split)
                logs |= {f"{name}_{key}": each for key, each in figures.items()}
        super().on_epoch_end(epoch, logs)
        # Keras measures an epoch's loss before its last step.
        if self.epoch == epoch and not all(
            np.isfinite(weight).all() for weight in self.weights
        ):
            raise _diverged(epoch, float("nan"))
        for name, value in logs.items():
            self.logs.setdefault(name, []).append(float(value))
        self.seconds += time.perf_counter() - self._started

    def _evaluation(self, split: Split) -> dict[str, float]:
        size = evaluation_batch(split)
        if self.devices is not None:
            return self.devices.evaluate(self.model, split, size)
        return self.model.evaluate(
            split.batches(size), verbose=0, return_dict=True
        )


def _diverged(epoch: int, loss: float) -> Diverged:
    return Diverged(
        f"The loss of epoch {epoch + 1} is {loss}: training diverged. Use a "
        "smaller learning rate (`--learning-rate`)."
    )


class SharedResume(ExactResume):
    """`ExactResume` in which only the first process accesses the file."""

    def read(self) -> bytes | None:
        content = super().read() if is_first() else None
        # The prefix distinguishes an empty file from an absent one.
        sent = from_first(b"" if content is None else b"." + content)
        return sent[1:] if sent else None

    def write(self, arrays: dict[str, Any]) -> None:
        if is_first():
            super().write(arrays)
