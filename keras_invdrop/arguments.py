"""The types of the arguments that layers share with those of Keras."""

from collections.abc import Callable
from typing import Literal

# Each by its name, by its config, or itself.
Activation = str | dict | Callable
Constraint = str | dict | Callable
Initializer = str | dict | Callable
Regularizer = str | dict | Callable

Axes = int | list[int] | tuple[int, ...]
DataFormat = Literal["channels_last", "channels_first"]
NoiseShape = list[int | None] | tuple[int | None, ...]
Padding = Literal["valid", "same"]
Pair = int | list[int] | tuple[int, int]
Scaling = Literal["train", "test"]
