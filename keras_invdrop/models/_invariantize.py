import warnings
from dataclasses import dataclass
from typing import Any
from typing import Literal

import keras
from keras import ops
from keras import tree

from .._batches import mapped
from .._checks import check_boolean
from .._checks import check_choice
from .._checks import check_data_format
from .._checks import check_keras_object
from .._checks import fits
from .._checks import invalid
from .._checks import spatial_axes
from .._keras import graph_of
from .._keras import layers_in
from ..arguments import Constraint
from ..arguments import DataFormat
from ..arguments import Filters
from ..arguments import Regularizer
from ..layers._dropout_by_shape import DropoutByShape
from ..layers.invariant_dropout import InvariantDropout
from ..layers.spatial_invariant_dropout import SpatialInvariantDropout
from ._converted import exchange
from ._copies import copied
from ._copies import recompile
from ._dropping_layers import SPATIAL_DROPOUT
from ._dropping_layers import Candidate
from ._dropping_layers import candidates
from ._dropping_layers import has_own_code
from ._dropping_layers import no_match
from ._dropping_layers import path_filter
from ._dropping_layers import rate_in_words
from ._graph import calls
from ._graph import check_model
from ._observation import observe


@dataclass(frozen=True)
class Conversion:
    """What `invariantize` did with one layer that drops.

    Attributes:
        path: The names of the layers around the layer and its own name, joined
            by `/`.
        layer: The name of the original class.
        rate: The fraction of activities that the layer drops; None if unknown.
        beta: The shape of the beta; None if the layer was not converted. A
            tuple of shapes if the layer is called on different numbers of
            features.
        reason: Why the layer was not converted; None if it was.
    """

    path: str
    layer: str
    rate: float | None
    beta: tuple | None
    reason: str | None

    def __str__(self):
        became = (
            f"not converted: {self.reason}"
            if self.beta is None
            else f"beta of shape {self.beta}"
        )
        rate = rate_in_words(self.rate)
        return f"{self.path} ({self.layer}, {rate}): {became}"


def invariantize(
    model: keras.Model,
    shared: Literal["auto", "none"] = "auto",
    layers: list[str] | None = None,
    data_format: DataFormat | None = None,
    beta_regularizer: Regularizer | None = None,
    beta_constraint: Constraint | None = None,
    *,
    filters: Filters | None = None,
    attention: bool = False,
    inputs: Any = None,
    inplace: bool = False,
    return_report: bool = False,
) -> Any:
    """Turns the dropout of a model into invariant dropout.

    Every `Dropout` becomes an `InvariantDropout`, and every `SpatialDropout1D`,
    `2D` and `3D` a `SpatialInvariantDropout`, with the same rate, noise shape,
    seed, name and dtype policy: in the graph of the model, in nested models,
    and inside layers, such as the blocks of a transformer, wrappers and
    recurrent cells. The copy keeps everything else: the state of all layers
    (adapted statistics, vocabularies, low-rank updates, quantized kernels) and
    which variables are trainable. It is compiled with the same losses, copies
    of the metrics and a new optimizer. Beta starts at zero, so the new model
    predicts exactly what `model` predicts.

    Other kinds of dropout remain, and a warning names them: masks that a layer
    draws itself (in LSTM, GRU and ConvLSTM, and in a `call` that uses
    `keras.random.dropout`), subclasses of `Dropout` that override `call`,
    `AlphaDropout`, `GaussianDropout` and layers that drop whole paths. The
    function cannot recognise a layer that makes masks of its own from
    `keras.random.uniform`. The dropout of attention scores also remains unless
    `attention` is true, because scores add up to 1 and shifted scores do not. A
    layer that is called on different numbers of features gets a beta for each
    number: the list `layer.parts` has an `InvariantDropout` for each.

    To find dropout inside layers, and attention scores, the function calls the
    model in training mode, without changing its variables: once, or, with
    `shared="none"` and random numbers as its input, for two lengths.

    Args:
        model: A model that has been built, which may contain other models.
        shared: `"auto"` or `"none"`. Which activities share a `beta`: `"auto"`
            shares it over the axes of space and time, if the input has any, as
            section 2.1 of the paper does for feature maps; `"none"` gives each
            activity its own.
        layers: List of names. The dropout layers to convert; all by default.
        data_format: `"channels_last"` or `"channels_first"`. The position of
            the feature maps for a `Dropout`, which has no such argument. It
            defaults to the `image_data_format` of the Keras configuration for
            images and volumes, and to the last axis for sequences.
        beta_regularizer: Regularizer for each `beta`.
        beta_constraint: Constraint for each `beta`.
        filters: Regular expression, or list of them. Converts only layers whose
            path, such as `"encoder/dropout"`, contains a match; all by default.
            The report lists the paths.
        attention: Boolean. Whether to convert the dropout of attention scores
            as well, with one beta per head.
        inputs: An example of the input on which to call the model. Required for
            a subclass without a graph of layers; defaults to random numbers for
            other models.
        inplace: Boolean. Whether to convert `model` itself instead of a copy.
            Other models that share its layers change, too.
        return_report: Boolean. Whether to return a report as well.

    Returns:
        A new model of the same class, or `model` if `inplace`. If Keras can
        load `model` from a file, it can load the new model after
        `import keras_invdrop`. If `model` has nothing to convert, the function
        warns and returns `model` itself. With `return_report` a pair: the
        model, and a list with a `Conversion` for each layer that drops, which
        prints as a line.

    Raises:
        ValueError: If `model` is not a Keras model, or not built; if a name in
            `layers` is not that of a dropout layer of `model`; if the model
            cannot be copied or called; if another argument is not of the kind
            described.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((784,)),
    ...         keras.layers.Dense(100, activation="relu"),
    ...         keras.layers.Dropout(0.5, name="drop"),
    ...         keras.layers.Dense(10),
    ...     ]
    ... )
    >>> new_model, report = keras_invdrop.invariantize(
    ...     model, return_report=True
    ... )
    >>> new_model.get_layer("drop").count_params()
    100
    >>> print(report[0])
    drop (Dropout, rate 0.5): beta of shape (100,)

    Reference:

    - Ba, Xiong and Frey, 2014, section 2
    """
    check_choice("shared", shared, ("auto", "none"))
    if data_format is not None:
        check_data_format(data_format)
    check_boolean("attention", attention)
    check_boolean("inplace", inplace)
    check_boolean("return_report", return_report)
    check_keras_object("beta_regularizer", beta_regularizer)
    check_keras_object("beta_constraint", beta_constraint)
    is_on_path = path_filter(filters)
    inputs = _tensors(inputs)
    _build(model, inputs)
    _check_names(candidates(model), layers)
    result = model if inplace else _copied(model)
    found = {candidate.layer: candidate for candidate in candidates(result)}

    def is_chosen(candidate):
        return is_on_path(candidate.path) and (
            layers is None or candidate.layer.name in layers
        )

    chosen = [*filter(is_chosen, found.values())]
    drawing = _find_shapes(result, chosen, inputs, shared)
    new, report = {}, []
    for candidate in candidates(result, drawing):
        candidate = found.get(candidate.layer, candidate)
        axes = _shared_axes(candidate, shared, data_format)
        beta, reason = _beta(candidate, axes, attention)
        if not is_chosen(candidate):
            beta, reason = None, LEFT_OUT
        if beta is not None:
            new[id(candidate.layer)] = _invariant(
                candidate,
                axes,
                beta_regularizer=beta_regularizer,
                beta_constraint=beta_constraint,
            )
        kind = type(candidate.layer).__name__
        report.append(
            Conversion(candidate.path, kind, candidate.rate, beta, reason)
        )
    _warn(report)
    if new:
        exchange(result, new)
        if inplace:
            recompile(result)
    else:
        result = model
        why = f"Model '{model.name}' has no `Dropout` layer to convert."
        if report and all(row.reason == LEFT_OUT for row in report):
            given = ("layers", layers), ("filters", filters)
            names = [f"`{name}`" for name, x in given if x is not None]
            why = no_match(" and ".join(names), (row.path for row in report))
        warnings.warn(f"{why} It is returned as it is.", stacklevel=2)
    return (result, report) if return_report else result


def _tensors(inputs):
    """The arrays in `inputs` as tensors; None stays."""
    expected = "an example of the input of the model, in arrays of numbers"
    # TensorFlow would make a tensor of a string.
    if any(isinstance(x, (str, bytes)) for x in tree.flatten(inputs)):
        raise invalid("inputs", expected, inputs)
    try:
        return mapped(ops.convert_to_tensor, inputs)
    except (TypeError, ValueError) as error:
        raise invalid("inputs", expected, inputs) from error


def _build(model, inputs):
    """Checks the model, and calls a subclass so that it builds its layers."""
    if isinstance(model, keras.Model) and graph_of(model) is None:
        if inputs is not None:
            model(inputs)
            return
        if not isinstance(model, keras.Sequential) or model.built:
            raise invalid(
                "inputs",
                f"an example of the input of model '{model.name}', which is a "
                f"`{type(model).__name__}` without a graph of layers",
                inputs,
            )
    check_model(model)


def _check_names(found, names):
    if names is None:
        return
    if not isinstance(names, (list, tuple, set)) or not all(
        isinstance(name, str) for name in names
    ):
        raise invalid("layers", "a list of names of layers", names)
    of_model = {candidate.layer.name for candidate in found}
    if unknown := sorted(set(names) - of_model):
        raise ValueError(
            "Invalid value received for argument `layers`. Expected names "
            "of `Dropout` or `SpatialDropout` layers, of which the model "
            f"has {sorted(of_model)}. Received: {unknown}"
        )


def _copied(model):
    try:
        return copied(model)
    except ValueError as error:
        raise ValueError(
            f"{error} `invariantize(model, inplace=True)` converts the model "
            "itself instead of a copy."
        ) from error


def _find_shapes(model, chosen, inputs, shared):
    """Finds the input shapes of each candidate: in the graph, and by a call.

    Returns:
        The layers that called `keras.random.dropout`.
    """
    in_graph, of_layers = _shapes_in_graph(model, chosen)
    dropping = [x for x in chosen if not x.obstacle and x.rate]
    inside = [
        candidate
        for candidate in dropping
        if candidate not in in_graph or id(candidate.layer) in of_layers
    ]
    # The graph does not say whether activities are attention scores.
    sequences = [
        candidate
        for candidate in dropping
        if candidate not in inside and max(map(len, in_graph[candidate])) > 2
    ]
    drawing = set()
    if inside or sequences or has_own_code(model):
        try:
            drawing = observe(model, [*inside, *sequences], inputs, size=4)
        except ValueError:
            if inside or inputs is not None:
                raise
    if inside and shared == "none" and inputs is None:
        _find_variable_axes(model, inside)
    for candidate, shapes in in_graph.items():
        others = [
            x for x in candidate.shapes if not any(fits(x, y) for y in shapes)
        ]
        candidate.shapes = [*shapes, *others]
    return drawing


def _shapes_in_graph(model, chosen):
    """The input shapes in the graph, and the layers inside layers of it.

    Returns:
        A dict from candidates to lists of shapes, and a set of ids.
    """
    by_id = {id(candidate.layer): candidate for candidate in chosen}
    shapes: dict[Candidate, list] = {}
    of_layers: set[int] = set()
    graph = graph_of(model)
    for layer, tensors in calls(graph) if graph is not None else ():
        if id(layer) in by_id:
            candidate = by_id[id(layer)]
            shapes.setdefault(candidate, []).append(tuple(tensors[0].shape))
        elif isinstance(layer, keras.Layer):
            inner = layers_in(layer, include_self=False)
            of_layers |= {id(part) for part in inner}
    return shapes, of_layers


def _find_variable_axes(model, inside):
    """Replaces the sizes that depend on the length of the input by None."""
    of_one_size = [candidate.shapes[:] for candidate in inside]
    observe(model, inside, None, size=5)
    for candidate, shapes in zip(inside, of_one_size, strict=True):
        others = candidate.shapes[len(shapes) :]
        # A layer may call dropout once per time step.
        if [*map(len, shapes)] == [*map(len, others)]:
            candidate.shapes = [
                tuple(a if a == b else None for a, b in zip(*pair, strict=True))
                for pair in zip(shapes, others, strict=True)
            ]


def _shared_axes(candidate, shared, data_format):
    """The axes along which a candidate's activities share a beta."""
    if not candidate.shapes:
        return []
    rank = len(candidate.shapes[0])
    if candidate.adds_up:  # of shape (batch, heads, queries, keys)
        return [rank - 2, rank - 1]
    if isinstance(candidate.layer, SPATIAL_DROPOUT):
        # SpatialDropout1D always has its feature maps on the last axis.
        data_format = getattr(candidate.layer, "data_format", "channels_last")
    elif shared == "none":
        return []
    return spatial_axes(data_format, rank)


def _beta(candidate, shared_axes, attention):
    """The shape of the beta for a candidate, or why it can have none."""
    if candidate.obstacle is not None:
        return None, candidate.obstacle
    if not candidate.shapes:
        return None, "not called" if candidate.rate else "its rate is 0"
    if candidate.adds_up and not attention:
        return None, ADDS_UP
    if len(ranks := {len(shape) for shape in candidate.shapes}) > 1:
        return None, f"called on inputs of ranks {sorted(ranks)}"
    betas = _by_beta(candidate, shared_axes)
    if len(betas) > 1 and isinstance(candidate.layer, SPATIAL_DROPOUT):
        return None, "called on different numbers of feature maps"
    return tuple(betas) if len(betas) > 1 else next(iter(betas)), None


def _by_beta(candidate, shared_axes):
    """An input shape for each shape of beta that a candidate needs."""
    return {
        tuple(
            1 if axis in shared_axes else size
            for axis, size in enumerate(shape[1:], 1)
        ): (None, *shape[1:])
        for shape in candidate.shapes
    }


LEFT_OUT = "left out by `layers` or `filters`"
ADDS_UP = (
    "its input adds up to 1, as attention scores do (`attention=True` converts "
    "it)"
)


def _warn(report):
    """Warns of the layers that drop and were not converted."""
    paths: dict[str, list[str]] = {}
    for row in report:
        if row.beta is None and row.rate != 0 and row.reason != LEFT_OUT:
            paths.setdefault(row.reason, []).append(f"'{row.path}'")
    if paths:
        named = "; ".join(f"{', '.join(x)}: {why}" for why, x in paths.items())
        warnings.warn(
            f"Dropout that is not converted stays as it is: {named}",
            stacklevel=3,
        )


def _invariant(candidate, shared_axes, **kwargs):
    """The invariant dropout for a candidate, and shapes to build it with."""
    layer = candidate.layer
    of_layer = {
        "name": layer.name,
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
    }
    kwargs |= {"rate": layer.rate, "seed": layer.seed, **of_layer}
    shapes = [*_by_beta(candidate, shared_axes).values()]
    if isinstance(layer, SPATIAL_DROPOUT):
        kwargs["data_format"] = getattr(layer, "data_format", "channels_last")
        return SpatialInvariantDropout(**kwargs), shapes[0]
    kwargs |= {
        "shared_axes": shared_axes or None,
        "noise_shape": layer.noise_shape,
    }
    if len(shapes) == 1:
        return InvariantDropout(**kwargs), shapes[0]
    parts = [
        InvariantDropout(**{**kwargs, "name": f"{layer.name}_{i}"})
        for i, _ in enumerate(shapes)
    ]
    return DropoutByShape(parts, shapes, **of_layer), shapes[0]
