"""Types of arguments that accept several forms."""

from collections.abc import Callable
from typing import Literal

import keras

# A name, a config, an instance of Keras' class such as
# `keras_invdrop.regularizers.Variance`, or any function.
Activation = str | dict | Callable
Constraint = str | dict | keras.constraints.Constraint | Callable
Initializer = str | dict | keras.initializers.Initializer | Callable
Regularizer = str | dict | keras.regularizers.Regularizer | Callable

Axes = int | list[int] | tuple[int, ...]
# Regular expressions that match paths of layers.
Filters = str | list[str] | tuple[str, ...]
DataFormat = Literal["channels_last", "channels_first"]
NoiseShape = list[int | None] | tuple[int | None, ...]
Padding = Literal["valid", "same"]
Pair = int | list[int] | tuple[int, int]
Scaling = Literal["train", "test"]
