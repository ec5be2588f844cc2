"""Checks of arguments, and the wording of their errors."""

import inspect
import math
import numbers
import os
from pathlib import Path

import keras
import numpy as np


def invalid(argument, expected, received):
    """The error for a bad argument, in Keras' wording."""
    return ValueError(
        f"Invalid value received for argument `{argument}`. "
        f"Expected {expected}. Received: {argument}={received!r}"
    )


def is_integer(value):
    """Whether `value` is a whole number; `True` and `1.0` are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value):
    """Whether `value` is a real number, not a bool, a string or a tensor."""
    return isinstance(value, numbers.Real) and not isinstance(
        value, (bool, np.bool_)
    )


def check_fraction(argument, value):
    """Returns `value` as a float in [0, 1]."""
    # A NaN fails both comparisons.
    if not is_number(value) or not 0 <= value <= 1:
        raise invalid(argument, "a float value between 0 and 1", value)
    return float(value)


def check_positive_number(argument, value):
    """Returns `value` as a float above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise invalid(argument, "a finite float above 0", value)
    return float(value)


def check_not_negative(argument, value):
    """Returns `value` as a float of at least 0."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise invalid(argument, "a finite float of at least 0", value)
    return float(value)


def check_positive_integer(argument, value):
    """Returns `value` as an int of at least 1."""
    if not is_integer(value) or value < 1:
        raise invalid(argument, "a positive integer", value)
    return int(value)


def check_integer(argument, value, low, high=math.inf):
    """Returns `value` as an int from `low` to `high`."""
    if not is_integer(value) or not low <= value <= high:
        range_ = f"of at least {low}"
        if high < math.inf:
            range_ = f"from {low} to {high}"
        raise invalid(argument, f"an integer {range_}", value)
    return int(value)


def is_shape(value, ranks):
    """Whether `value` is a list or tuple of positive integers.

    Args:
        value: Any value.
        ranks: The allowed numbers of elements.
    """
    return (
        isinstance(value, (list, tuple))
        and len(value) in ranks
        and all(is_integer(size) and size > 0 for size in value)
    )


def fits(shape, symbolic):
    """Whether a symbolic shape, with None for any size, includes a shape."""
    return len(shape) == len(symbolic) and all(
        size in (None, found)
        for found, size in zip(shape, symbolic, strict=True)
    )


def check_path(argument, path):
    """Returns `path` as a `Path`."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise invalid(argument, "a path", path)
    return Path(path)


def check_boolean(argument, value):
    """Returns `value`, a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise invalid(argument, "a boolean", value)
    return bool(value)


def check_seed(seed):
    """Returns `seed`, an int or None."""
    if seed is not None and not is_integer(seed):
        raise invalid("seed", "an integer or None", seed)
    return None if seed is None else int(seed)


def check_choice(argument, value, choices):
    """Returns `value`, one of the strings in `choices`."""
    if not isinstance(value, str) or value not in choices:
        expected = "one of " + ", ".join(repr(choice) for choice in choices)
        raise invalid(argument, expected, value)
    return value


def check_data_format(data_format):
    """Returns `data_format`, or Keras' default if it is None."""
    if data_format is None:
        data_format = keras.config.image_data_format()
    return check_choice(
        "data_format", data_format, ("channels_last", "channels_first")
    )


def resolve_data_format(data_format, rank):
    """Returns `data_format`, or the default for inputs of rank `rank`.

    For images and volumes the default is that of the Keras configuration.
    Sequences have their features on the last axis, as in `SpatialDropout1D`.
    """
    if data_format is None and rank > 3:
        return keras.config.image_data_format()
    return data_format or "channels_last"


def channel_axis(data_format, rank):
    """Returns the axis of the feature maps in inputs of rank `rank`."""
    first = resolve_data_format(data_format, rank) == "channels_first"
    return 1 if first else rank - 1


def spatial_axes(data_format, rank):
    """Returns the axes of space and time: all but batch and channels."""
    channels = channel_axis(data_format, rank)
    return [axis for axis in range(1, rank) if axis != channels]


def check_shared_axes(shared_axes):
    """Returns `shared_axes` as a list of ints, or None.

    `resolve_axes` checks the axes against the input's rank once it is known.
    """
    if shared_axes is None:
        return None
    if is_integer(shared_axes):
        shared_axes = [shared_axes]
    expected = "an integer or a list of distinct integers"
    if not isinstance(shared_axes, (list, tuple)) or not all(
        is_integer(axis) for axis in shared_axes
    ):
        raise invalid("shared_axes", expected, shared_axes)
    if 0 in shared_axes:
        raise invalid(
            "shared_axes",
            "axes other than 0, the batch, over which the weight is always "
            "shared",
            shared_axes,
        )
    if len(set(shared_axes)) < len(shared_axes):
        raise invalid("shared_axes", expected, shared_axes)
    return [int(axis) for axis in shared_axes]


def resolve_axes(shared_axes, input_shape):
    """Returns `shared_axes` as a set of axes from 1 to rank - 1."""
    rank = len(input_shape)
    axes = set()
    for axis in shared_axes or ():
        resolved = axis + rank if axis < 0 else axis
        if not 1 <= resolved < rank:
            axes_of_rank = (
                f"axes between 1 and {rank - 1} (or -1 and {1 - rank})"
            )
            if rank == 2:
                axes_of_rank = "axis 1 (or -1)"
            raise invalid(
                "shared_axes",
                f"{axes_of_rank} for an input of shape {tuple(input_shape)}",
                shared_axes,
            )
        if resolved in axes:
            raise invalid(
                "shared_axes",
                "distinct axes; two of these name the same axis of an input "
                f"of shape {tuple(input_shape)}",
                shared_axes,
            )
        axes.add(resolved)
    return axes


def check_noise_shape(noise_shape):
    """Returns `noise_shape` as a tuple of positive ints and None, or None."""
    if noise_shape is None:
        return None
    if not isinstance(noise_shape, (list, tuple)):
        raise invalid("noise_shape", "a tuple or list of integers", noise_shape)
    if not all(size is None or is_integer(size) for size in noise_shape):
        raise invalid(
            "noise_shape", "all elements to be integers or None", noise_shape
        )
    if not all(size is None or size > 0 for size in noise_shape):
        raise invalid(
            "noise_shape",
            "all dimensions to be positive integers or None",
            noise_shape,
        )
    return tuple(noise_shape)


def of_all_axes(noise_shape, rank):
    """`noise_shape` with 1 for leading axes that it lacks, as in Keras."""
    return (1,) * (rank - len(noise_shape)) + tuple(noise_shape)


def check_broadcast(noise_shape, input_shape):
    """Raises an error if `noise_shape` does not broadcast to `input_shape`."""
    if noise_shape is None:
        return
    aligned = of_all_axes(noise_shape, len(input_shape))
    fits = len(aligned) == len(input_shape) and all(
        mask_size in (None, 1) or size in (None, mask_size)
        for mask_size, size in zip(aligned, input_shape, strict=True)
    )
    if not fits:
        raise invalid(
            "noise_shape",
            "one element per axis, each None, 1 or the size of that axis, to "
            f"broadcast to an input of shape {tuple(input_shape)}",
            noise_shape,
        )


# The module of `keras` for an argument, by the last word of its name.
KINDS = {
    "activation": "activations",
    "constraint": "constraints",
    "dtype": "dtype_policies",
    "initializer": "initializers",
    "regularizer": "regularizers",
}


def check_keras_object(argument, value):
    """Raises an error if `value` is not, for example, a valid initializer.

    Keras' own error does not name the argument.
    """
    kind = KINDS.get(argument.rpartition("_")[2])
    if kind is None:
        return
    try:
        getattr(keras, kind).get(value)
    except Exception as error:  # the object's constructor raises anything
        expected = f"what `keras.{kind}.get` takes"
        raise ValueError(
            f"{invalid(argument, expected, value)}. {error}"
        ) from error


def config_of(cls, layer, inner=None):
    """The arguments of the constructor of `cls`, as `get_config` returns them.

    Args:
        cls: A class of layers.
        layer: A layer of the class, or of a subclass with other arguments. It
            has an attribute for each argument.
        inner: A layer with the attributes that `layer` lacks.
    """
    config = {}
    for argument in inspect.signature(cls.__init__).parameters:
        if argument not in ("self", "kwargs"):
            holder = layer if hasattr(layer, argument) else inner
            value = getattr(holder, argument)
            kind = KINDS.get(argument.rpartition("_")[2])
            if kind is not None:
                value = getattr(keras, kind).serialize(value)
            # Keras tracks a list that is an attribute; a tracked list refers
            # to its layer, and `copy.deepcopy` of the config would copy both.
            config[argument] = list(value) if isinstance(value, list) else value
    return config


class StrictConfig:
    """Makes `from_config` name the invalid argument of a config.

    Keras raises a `TypeError` that hides the reason. This class raises a
    `ValueError` if an argument has the wrong kind, is unknown, or is missing
    and has no default. Other missing arguments take their defaults, so that
    files older than an argument load.
    """

    @classmethod
    def from_config(cls, config):
        for argument, value in config.items():
            check_keras_object(argument, value)
        try:
            # The method of the Keras layer, the other base class.
            return super().from_config(config)  # type: ignore[misc]
        except TypeError as error:
            # Keras raises its error while it handles the constructor's.
            cause = error.__context__ or error
            if isinstance(cause, ValueError):
                raise cause from None
            raise ValueError(
                f"Invalid config received for `{cls.__name__}`: {cause}. "
                f"Received: config={config}"
            ) from error
