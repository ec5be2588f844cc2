import math
from typing import Any

import keras
import numpy as np

from .._averages import averaged
from .._checks import check_choice
from .._checks import invalid
from .._keras import better


class BestEpoch(keras.callbacks.Callback):
    """Callback that keeps the weights of the best epoch.

    Among equally good epochs the callback keeps the first. If the optimizer
    averages the weights (`use_ema`), the callback keeps the averages. Epochs
    without validation, as with `validation_freq=2`, do not count if `monitor`
    begins with `"val_"`.

    Args:
        monitor: Name of the loss or metric by which to compare epochs, such as
            `"val_accuracy"`. None keeps the last epoch.
        mode: `"min"` if smaller values of `monitor` are better, `"max"`, or
            `"auto"` to find out as `keras.callbacks.EarlyStopping` does.

    Attributes:
        epoch: The number of the best epoch, counted from 0; None before the
            first.
        best: The value of `monitor` in that epoch.
        weights: The weights after that epoch, in the form of
            `model.get_weights()`.

    Raises:
        ValueError: If `mode` is not one of these; when an epoch ends, if no
            loss or metric has the name `monitor`, or if Keras does not know
            which of its values are better; when training ends, if no epoch had
            a validation that `monitor` needs.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> best = keras_invdrop.BestEpoch("val_loss")
    >>> history = model.fit(
    ...     x, y, epochs=3, verbose=0, callbacks=[best], validation_data=(x, y)
    ... )
    >>> model.set_weights(best.weights)
    """

    def __init__(self, monitor: str | None = "val_loss", mode: str = "auto"):
        super().__init__()
        self.monitor = monitor
        self.mode = check_choice("mode", mode, ("auto", "min", "max"))
        self._begin()

    def _begin(self) -> None:
        self.epoch: int | None = None
        self.best: float | None = None
        self.weights: list[np.ndarray] = []
        self._skipped = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._not_validated(logs or {}):
            self._skipped = True
            return
        value = self._value(logs or {})
        if not self._better(value):
            return
        self.epoch, self.best = epoch, value
        with averaged(self.model):
            self.weights = self.model.get_weights()

    def on_train_end(self, logs: Any = None) -> None:
        if self._skipped and self.epoch is None:
            raise invalid(
                "monitor",
                "a loss or metric of the training examples, as no epoch had a "
                "validation: pass `validation_data` to `model.fit`, or another "
                "`monitor`",
                self.monitor,
            )

    def _not_validated(self, logs: dict[str, Any]) -> bool:
        """Whether `monitor` needs a validation that this epoch did not have."""
        needed = (self.monitor or "").startswith("val_")
        return needed and not any(name.startswith("val_") for name in logs)

    def _value(self, logs: dict[str, Any]) -> float | None:
        if self.monitor is None:
            return None
        if self.monitor not in logs:
            raise invalid(
                "monitor", "one of " + ", ".join(map(repr, logs)), self.monitor
            )
        return float(logs[self.monitor])

    def _better(self, value: float | None) -> bool:
        if value is None:
            return True
        mode = self.mode
        if mode == "auto":
            try:
                mode = better(self.monitor, self.model)
            except ValueError as error:
                raise invalid(
                    "mode",
                    "'min' or 'max', since Keras does not know which values "
                    f"of '{self.monitor}' are better",
                    mode,
                ) from error
        if self.best is None or math.isnan(self.best):
            return True
        return value < self.best if mode == "min" else value > self.best
