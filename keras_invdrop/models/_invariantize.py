import warnings
from typing import Literal

import keras

from .._checks import channel_axis
from .._checks import check_choice
from .._checks import check_data_format
from .._checks import invalid
from .._keras import graph_of
from ..arguments import Constraint
from ..arguments import DataFormat
from ..arguments import Regularizer
from ..layers.invariant_dropout import InvariantDropout
from ..layers.spatial_invariant_dropout import SpatialInvariantDropout
from ._copies import copied
from ._dropout_sites import SPATIAL_DROPOUT
from ._dropout_sites import warn_of_hidden_dropout
from ._graph import calls
from ._graph import check_model

CONVERTED = (keras.layers.Dropout, *SPATIAL_DROPOUT)


def invariantize(
    model: keras.Model,
    shared: Literal["auto", "none"] = "auto",
    layers: list[str] | None = None,
    data_format: DataFormat | None = None,
    beta_regularizer: Regularizer | None = None,
    beta_constraint: Constraint | None = None,
) -> keras.Model:
    """Turns the dropout of a model into invariant dropout.

    Every `Dropout` becomes an `InvariantDropout`, every `SpatialDropout1D`,
    `2D` and `3D` a `SpatialInvariantDropout`, of the same rate, noise shape,
    seed, name and dtype policy. Everything else is copied as it is: layers with
    all that they hold (adapted statistics, vocabularies, low-rank updates,
    quantized kernels), which variables are trainable, and how the model was
    compiled: with the same losses, with copies of its metrics and with a new
    optimizer. As beta starts at zero, the new model predicts exactly what
    `model` does.

    Dropout inside other layers is not converted: that of attention, of
    recurrent layers (`dropout`, `recurrent_dropout`), and of subclassed layers
    and models; nor are `AlphaDropout` and `GaussianDropout`, which do not
    replace activities by zero. A warning names all of these layers.

    Args:
        model: A functional or sequential model that has been built, which
            may contain other models. It is not changed. The new model has the
            same class where the constructor of the class takes inputs and
            outputs (or, of a sequential model, layers). For any other
            subclass, such as those of KerasHub, it is a functional model.
        shared: `"auto"` or `"none"`. Which activities share a `beta`:
            `"auto"` shares it over space and time where the input has such
            axes, as section 2.1 of the paper does for feature maps; `"none"`
            gives each activity its own.
        layers: List of names. The dropout layers to convert; all by default.
        data_format: `"channels_last"` or `"channels_first"`. Where a
            `Dropout`, which has no such argument, has its feature maps. It
            defaults to the `image_data_format` of the Keras configuration for
            images and volumes, and to the last axis for sequences.
        beta_regularizer: Regularizer for each `beta`.
        beta_constraint: Constraint for each `beta`.

    Returns:
        A new model. If there is nothing to convert, a warning says so and
        `model` itself is returned.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or has no
            graph of layers; if `layers` names what is not a dropout layer of
            `model`; if a layer to convert is of a subclass of `Dropout`; if a
            layer is called on inputs of different shapes that cannot share a
            `beta`; if a layer cannot be copied; if the model has a
            `train_step`, `compute_loss` or the like of its own and its class
            cannot be kept.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((784,)),
    ...         keras.layers.Dense(100, activation="relu"),
    ...         keras.layers.Dropout(0.5, name="drop"),
    ...         keras.layers.Dense(10),
    ...     ]
    ... )
    >>> new_model = keras_invdrop.invariantize(model)
    >>> new_model.get_layer("drop").count_params()
    100

    Reference:

    - Ba, Xiong and Frey, 2014, section 2
    """
    check_choice("shared", shared, ("auto", "none"))
    if data_format is not None:
        check_data_format(data_format)
    graph = graph_of(check_model(model))
    shapes: dict[int, set] = {}
    found: dict[int, keras.Layer] = {}
    for layer, inputs in calls(graph):
        if isinstance(layer, CONVERTED):
            found[id(layer)] = layer
            shapes.setdefault(id(layer), set()).add(tuple(inputs[0].shape))
    chosen = _chosen(list(found.values()), layers)
    warn_of_hidden_dropout(model)
    if not chosen:
        warnings.warn(
            f"Model '{model.name}' has no `Dropout` or `SpatialDropout` layer "
            "to convert. It is returned as it is.",
            stacklevel=2,
        )
        return model
    new = {
        id(layer): _invariant(
            layer,
            shapes[id(layer)],
            shared,
            data_format,
            beta_regularizer=beta_regularizer,
            beta_constraint=beta_constraint,
        )
        for layer in chosen
    }
    return copied(model, replace=lambda layer: new.get(id(layer)))


def _chosen(found, names):
    """Those of the dropout layers `found` that are to be converted."""
    if names is not None:
        if isinstance(names, str) or not all(
            isinstance(name, str) for name in names
        ):
            raise invalid("layers", "a list of names of layers", names)
        of_model = [layer.name for layer in found]
        unknown = sorted(set(names) - set(of_model))
        if unknown:
            raise ValueError(
                "Invalid value received for argument `layers`. Expected names "
                "of `Dropout` or `SpatialDropout` layers, of which the model "
                f"has {sorted(set(of_model))}. Received: {unknown}"
            )
        found = [layer for layer in found if layer.name in names]
    for layer in found:
        if type(layer) not in CONVERTED:
            raise ValueError(
                f"Layer '{layer.name}' is a `{type(layer).__name__}`, a "
                "subclass of dropout of which it is not known what it does. "
                "Convert the others by naming them in `layers`, or replace it."
            )
    return found


def _invariant(layer, shapes, shared, data_format, **beta):
    """The invariant dropout for a dropout layer of Keras.

    `shapes` holds the shapes of its inputs.
    """
    kwargs = {
        "rate": layer.rate,
        "seed": layer.seed,
        "name": layer.name,
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
        **beta,
    }
    if isinstance(layer, SPATIAL_DROPOUT):
        # A SpatialDropout1D has its feature maps on the last axis, always.
        data_format = getattr(layer, "data_format", "channels_last")
        shared = "auto"
    beta_shapes, shared_axes = set(), None
    for shape in shapes:
        axes = range(1, len(shape))
        if shared == "auto":
            channels = channel_axis(data_format, len(shape))
            shared_axes = [axis for axis in axes if axis != channels] or None
        beta_shapes.add(
            tuple(
                1 if axis in (shared_axes or ()) else shape[axis]
                for axis in axes
            )
        )
    if len(beta_shapes) > 1:
        raise ValueError(
            f"Layer '{layer.name}' is called on inputs of different shapes, "
            f"{sorted(map(str, shapes))}, which cannot share a beta. Give "
            "each its own layer, or leave it out of `layers`."
        )
    if isinstance(layer, SPATIAL_DROPOUT):
        return SpatialInvariantDropout(data_format=data_format, **kwargs)
    return InvariantDropout(
        shared_axes=shared_axes, noise_shape=layer.noise_shape, **kwargs
    )
