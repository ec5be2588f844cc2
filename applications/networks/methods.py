"""What the networks have in common: methods of dropout, widths and norms."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop.validation import check_choice
from keras_invdrop.validation import check_positive_number
from keras_invdrop.validation import invalid

# The columns of Table 2 and "none": the layer on the input and the layer on
# the hidden units.
METHODS: dict[str, tuple[type | None, type | None]] = {
    "none": (None, None),
    "standard": (keras.layers.Dropout, keras.layers.Dropout),
    "invariant": (InvariantDropout, InvariantDropout),
    "invariant_input": (InvariantDropout, keras.layers.Dropout),
    "invariant_hidden": (keras.layers.Dropout, InvariantDropout),
    "running_average": (RunningAverageDropout, RunningAverageDropout),
}


def dropouts(
    method: str, input_rate: float, hidden_rate: float, beta_regularizer: Any
) -> tuple[Callable, Callable]:
    """The dropout on the input, and that on the hidden units, of a method.

    Both are functions `(x, name) -> x`. Feature maps, `x` of rank 4, have one
    shift each (section 2.1), other activities one for each.
    """
    check_choice("dropout", method, tuple(METHODS))

    def dropout(layer, rate):
        def drop(x, name):
            if layer is None:
                return x
            maps = len(x.shape) == 4
            kind, options = layer, {}
            if layer is InvariantDropout:
                options["beta_regularizer"] = beta_regularizer
                kind = SharedInvariantDropout if maps else InvariantDropout
            if layer is RunningAverageDropout and maps:
                options["shared_axes"] = spatial_axes()
            return kind(rate, name=name, **options)(x)

        return drop

    on_input, on_hidden = METHODS[method]
    return dropout(on_input, input_rate), dropout(on_hidden, hidden_rate)


def spatial_axes() -> tuple[int, int]:
    """The axes of height and width in Keras' image data format."""
    if keras.config.image_data_format() == "channels_last":
        return 1, 2
    return 2, 3


def image_shape(input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """`input_shape`, or where it is None that of CIFAR-10 and SVHN."""
    if input_shape is not None:
        return tuple(input_shape)
    if keras.config.image_data_format() == "channels_last":
        return 32, 32, 3
    return 3, 32, 32


def scaled(units: int, width: float) -> int:
    """`units` times `width`, rounded."""
    number = round(units * check_positive_number("width", width))
    if number == 0:
        raise invalid(
            "width",
            f"a float that leaves every layer a unit: {units} times {width} "
            "rounds to 0",
            width,
        )
    return number


def full_precision() -> str:
    """The dtype of variables, in which outputs are computed.

    In mixed precision logits of 16 bits would often be equal, so that the
    larger one is not known.
    """
    return keras.config.dtype_policy().variable_dtype


def constraints(
    max_norm: float | Sequence[float] | None, axes: Sequence[Any]
) -> list[keras.constraints.MaxNorm | None]:
    """Constraints for the kernels of the layers, from first to last.

    Args:
        max_norm: The largest norm of the incoming weights of a unit: one for
            all layers or one for each, or None.
        axes: For each layer, the axes of its kernel that lead to one unit.
    """
    if max_norm is None:
        return [None] * len(axes)
    if not isinstance(max_norm, (list, tuple)):
        max_norm = [max_norm] * len(axes)  # type: ignore[list-item]
    if len(max_norm) != len(axes):
        raise invalid(
            "max_norm",
            f"a float, or one for each of {len(axes)} layers",
            max_norm,
        )
    return [
        keras.constraints.MaxNorm(check_positive_number("max_norm", norm), axis)
        for norm, axis in zip(max_norm, axes, strict=True)
    ]
