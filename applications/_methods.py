"""Shared by the networks: dropout methods, widths, kernel options."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop._checks import check_choice
from keras_invdrop._checks import check_fraction
from keras_invdrop._checks import check_positive_number
from keras_invdrop._checks import invalid
from keras_invdrop._checks import is_number
from keras_invdrop._checks import is_shape

# The dropout layers on the input and on the hidden units, for each method of
# Table 2 and for "none".
METHODS: dict[str, tuple[type | None, type | None]] = {
    "none": (None, None),
    "standard": (keras.layers.Dropout, keras.layers.Dropout),
    "invariant": (InvariantDropout, InvariantDropout),
    "invariant_input": (InvariantDropout, keras.layers.Dropout),
    "invariant_hidden": (keras.layers.Dropout, InvariantDropout),
    "running_average": (RunningAverageDropout, RunningAverageDropout),
}


def dropouts(
    method: str,
    input_rate: float,
    hidden_rate: float | Sequence[float],
    beta_regularizer: Any,
    hidden_layers: int = 1,
) -> tuple[Callable, Callable]:
    """The input dropout and the hidden dropout of a method.

    Both are functions `(x, name) -> x`. Call the hidden dropout once per
    hidden layer, from the first to the last. If `x` has rank 4, each feature
    map has one shift (section 2.1); otherwise each activity has its own.
    """
    check_choice("dropout", method, tuple(METHODS))

    def dropout(layer, rates):
        rates = iter(rates)

        def drop(x, name):
            rate = next(rates)
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
    check_fraction("input_rate", input_rate)
    hidden_rates = for_each("hidden_rate", hidden_rate, hidden_layers)
    for rate in hidden_rates:
        check_fraction("hidden_rate", rate)
    return dropout(on_input, [input_rate]), dropout(on_hidden, hidden_rates)


def spatial_axes() -> tuple[int, int]:
    """The height and width axes in Keras' image data format."""
    if keras.config.image_data_format() == "channels_last":
        return 1, 2
    return 2, 3


def image_shape(input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """`input_shape`; if None, the image shape of CIFAR-10 and SVHN."""
    if input_shape is not None:
        if not is_shape(input_shape, ranks=(3,)):
            raise invalid(
                "input_shape",
                "the shape of an image, three positive integers",
                input_shape,
            )
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


def classified(
    inputs: Any, x: Any, classes: int, activation: Any, options: dict, name: str
) -> keras.Model:
    """The model from `inputs` to a dense classifier of `x`."""
    outputs = keras.layers.Dense(
        classes,
        activation,
        **options,
        # In mixed precision, 16-bit logits would often tie, and the ties would
        # hide the predicted class.
        dtype=keras.config.dtype_policy().variable_dtype,
        name="classifier",
    )(x)
    return keras.Model(inputs, outputs, name=name)


def for_each(argument: str, value: Any, layers: int) -> Sequence[Any]:
    """One value per layer; repeats `value` unless it is a sequence."""
    if not isinstance(value, (list, tuple)):
        return [value] * layers
    if len(value) != layers:
        raise invalid(
            argument, f"one value, or one for each of {layers} layers", value
        )
    return value


def kernels(
    axes: Sequence[Any],
    max_norm: float | None | Sequence[float | None] = None,
    initial_stddev: float | None | Sequence[float | None] = None,
    regularizer: Any = None,
    initializer: Callable[[], Any] = lambda: "glorot_uniform",
) -> Iterator[dict[str, Any]]:
    """The kernel options of each layer, from the first to the last.

    Args:
        axes: The kernel axes of each layer over which to compute a unit's norm.
        max_norm: The largest norm of the incoming weights of a unit: one
            value for all layers or one per layer; None for no limit.
        initial_stddev: The standard deviation of the initial weights, drawn
            from a normal distribution with mean 0: one value for all layers
            or one per layer; None to use `initializer`.
        regularizer: Prior on the weights.
        initializer: Returns the initializer of layers without an
            `initial_stddev`.
    """
    norms = for_each("max_norm", max_norm, len(axes))
    stddevs = for_each("initial_stddev", initial_stddev, len(axes))
    return iter(
        [
            {
                "kernel_initializer": _normal(stddev) or initializer(),
                "kernel_regularizer": regularizer,
                "kernel_constraint": None
                if norm is None
                else keras.constraints.MaxNorm(
                    check_positive_number("max_norm", norm), axis
                ),
            }
            for axis, norm, stddev in zip(axes, norms, stddevs, strict=True)
        ]
    )


def _normal(stddev: float | None) -> keras.initializers.Initializer | None:
    if stddev is None:
        return None
    if is_number(stddev) and stddev == 0:
        return keras.initializers.Zeros()
    return keras.initializers.RandomNormal(
        stddev=check_positive_number("initial_stddev", stddev)
    )
