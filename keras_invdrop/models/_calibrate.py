import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import batches
from .._batches import standardized
from .._checks import check_boolean
from .._checks import check_positive_integer
from .._checks import invalid
from .._keras import graph_of
from .._keras import layers_in
from ..arguments import Filters
from ..layers._shifted_dropout import ShiftedDropout
from ._compensate import compensated
from ._copies import copied
from ._graph import check_callable
from ._graph import inlined
from ._graph import inside_layers
from ._graph import run_through
from ._places import batch_statistics
from ._places import counting
from ._places import layers_around
from ._places import matching
from ._places import paths_of
from ._places import untrained_normalization
from ._places import watched


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 128,
    steps: int | None = None,
    *,
    keep_predictions: bool | None = None,
    filters: Filters | None = None,
) -> keras.Model:
    """Sets each shift to minus the mean activity that arrives there.

    The paper finds that training brings beta near to minus the mean activity,
    where dropping injects the least variance (Eq. 10). A model that starts
    there trains from the first step as if its input and its activation
    functions were centred, whatever their encoding.

    A shift adds a constant to the input of the next layer. The argument
    `keep_predictions`, which has no default, says what happens to it:

    - `True`, for a model that has been trained. The next bias, or the moving
      mean of the next batch normalisation, makes up for the constant; pooling,
      flattening and whatever else `fold` passes may come in between.
      Predictions stay what they were, up to rounding. Where nothing can make
      up for it, because an activation function or the model's output is next,
      a convolution pads with zeros or a layer has no bias, the dropout layer
      keeps its old shift, and a warning says what is in the way.
    - `False`, for a model that has not been trained. Only the shifts are set,
      so that each next layer starts with centred inputs. The predictions
      change.

    Layers are calibrated at any depth: in the graph of the model, in models
    nested in it and inside layers, such as the blocks of a transformer. What
    else happens inside a layer, or in a subclassed model, is not known, so
    that nothing can make up for a shift there: with `True` the shifts inside
    layers stay as they were, and the warning names them.

    The means are computed without dropout, over the examples and over the axes
    along which the layer shares its shift. Timesteps that are masked as
    padding, by Keras' masks or by an input called `padding_mask` as in
    KerasHub, are left out. Regularizers and constraints of beta are ignored.

    The data are read one batch at a time and are never in memory as a whole.
    They are read once where predictions are kept: then a new shift leaves all
    later activities as they were. Where predictions change, a new shift
    changes the activities in later layers, and the mean there is known only
    when it is set. The data are then read as often as there are layers in the
    longest chain, in which each comes after the one before: twelve times for
    the two dropout layers in each of six blocks, once for branches side by
    side. Inside a layer, those that are called one after the other are a
    chain. Where a layer calls one several times, as over timesteps, the data
    are read once more, to see that its mean does not depend on its own shift.

    Batch normalisation whose moving statistics are still the initial ones
    uses the statistics of each batch here, as in training.

    Args:
        model: A model that has been built, with `InvariantDropout` or another
            dropout layer of this library. See `invariantize` for a model with
            Keras' own. It is not changed.
        data: The examples: what `model.predict` takes. An array (or the list
            or dict of arrays that the model takes), a `tf.data.Dataset`, a
            `PyDataset` or another iterable of batches. Targets and sample
            weights are ignored. An iterator, which can be read only once, is
            enough where predictions are kept or no dropout layer comes after
            another.
        batch_size: Positive integer. Examples per batch, if `data` are
            arrays.
        steps: Positive integer. Batches to read each time; all by default.
            It is required for data that never end.
        keep_predictions: Boolean. Whether the model is to predict what it
            predicted before.
        filters: Regular expression, or list of them. Calibrates the layers
            whose path, as in the report of `invariantize`, contains a match
            of one; the others keep their shifts. All by default.

    Returns:
        A new model: a copy of `model`, compiled like it, with a new optimizer.
        If there is nothing to calibrate, a warning says so and `model` itself
        is returned. Layers that the model does not call at inference keep
        their shifts, and a warning names them.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or cannot be
            copied; if `keep_predictions` is not given; if there are no data,
            they have not the shape of the model's input or hold a NaN or an
            infinity; if they can be read only once and have to be read again;
            if a dropout layer is called again on what depends on its own
            output, so that no shift suits both; if batch normalisation comes
            before dropout and has not been trained, while predictions are to
            be kept; if predictions are to be kept and no shift can be set; if
            another argument is not of the kind described.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_invdrop.InvariantDropout(0.5)]
    ... )
    >>> x = np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> new_model = keras_invdrop.calibrate(model, x, keep_predictions=False)
    >>> ops.convert_to_numpy(new_model.layers[0].beta)
    array([-2., -2.], dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, sections 2.2 and 4
    """
    graph = graph_of(check_callable(model))
    check_positive_integer("batch_size", batch_size)
    if steps is not None:
        check_positive_integer("steps", steps)
    if keep_predictions is None:
        raise invalid(
            "keep_predictions",
            "True for a model that has been trained, which then predicts what "
            "it did before, or False for one that has not, of which the "
            "shifts alone are set",
            keep_predictions,
        )
    check_boolean("keep_predictions", keep_predictions)
    is_on_path = matching(filters)
    # The means are computed in a separate copy, which is changed.
    scratch = copied(model, compiled=False)
    paths = {
        layer: path
        for path, layer in paths_of(scratch)
        if isinstance(layer, ShiftedDropout) and is_on_path(path)
    }
    if not paths:
        warnings.warn(
            f"Model '{model.name}' has no dropout layer with a shift, such as "
            "`InvariantDropout`, that `filters` chooses. It is returned as it "
            "is; `invariantize` converts the `Dropout` of a model.",
            stacklevel=2,
        )
        return model
    kept = inside_layers(scratch, paths) if keep_predictions else {}
    chosen = [layer for layer in paths if layer not in kept]
    if not chosen:
        _report(kept, paths)
    if keep_predictions:
        _check_statistics(scratch, chosen)
    # Copied before the data are read, since the model may be refused.
    result = copied(model)
    arriving = _Arriving(model, scratch, chosen)

    def measured():
        inputs = None if graph is None else len(graph.inputs)
        found = batches(data, batch_size, inputs)
        found = _checked(itertools.islice(found, steps), graph)
        return _means(arriving, found, paths)

    if keep_predictions:
        means = {layer: mean.value() for layer, mean in measured().items()}
        _report(kept | compensated(inlined(scratch), means), paths)
        # The biases have changed, too.
        result.set_weights(scratch.get_weights())
        return result
    _set_in_order(scratch, measured, data, paths)
    for layer, source in zip(_shifted(result), _shifted(scratch), strict=True):
        layer.set_shift(source.shift)
    return result


def _set_in_order(model, measured, data, paths):
    """Sets each shift after those that come before it.

    Args:
        model: A model.
        measured: Function that reads the data and returns `_means`.
        data: The data, for an error.
        paths: Dict from the dropout layers to their paths.
    """
    means = measured()
    _warn_of_uncalled(paths, means)
    waits_for, calls = _waits_for(model, [*means])
    # What a layer calls again and again may depend on its own output.
    unsure = [x for x, mean in means.items() if mean.calls > calls[x]]
    left = [*means]
    while left:
        done = set(means) - set(left)
        ready = [layer for layer in left if waits_for[layer] <= done]
        if not ready:
            _refuse_again(left, paths)
        for layer in ready:
            layer.set_shift(-means[layer].value())
            left.remove(layer)
        if (left or unsure) and isinstance(data, Iterator):
            raise invalid(
                "data",
                "data that can be read again: the layers "
                f"{[paths[layer] for layer in left or unsure]} come after "
                "others, which have to be calibrated first, or are called "
                "more than once inside a layer",
                data,
            )
        if left or unsure:
            means = measured()
    changed = [x for x in unsure if not means[x].is_minus(x.shift)]
    if changed:
        _refuse_again(changed, paths)


def _report(kept, paths):
    """Says which shifts stayed, for the reasons in `kept`."""
    if not kept:
        return
    alike: dict[str, list[str]] = {}
    for layer, reason in kept.items():
        alike.setdefault(reason, []).append(f"'{paths[layer]}'")
    reasons = "; ".join(
        f"{', '.join(names)}: {reason}" for reason, names in alike.items()
    )
    if len(kept) == len(paths):
        raise ValueError(
            "No shift can be set without a change of what the model predicts. "
            "Train it after `calibrate` with `keep_predictions=False`, or "
            f"leave the shifts to the training. What is in the way: {reasons}"
        )
    warnings.warn(
        "The shifts of some layers stay as they were, since others would "
        f"change what the model predicts. What is in the way: {reasons}",
        stacklevel=3,
    )


def _warn_of_uncalled(paths, means):
    uncalled = [path for layer, path in paths.items() if layer not in means]
    if uncalled:
        warnings.warn(
            "The shifts of some layers stay as they were, since the model "
            f"does not call these layers at inference: {uncalled}",
            stacklevel=4,
        )


def _refuse_again(layers, paths):
    raise ValueError(
        "No shift can be set of a layer that is called again on what depends "
        "on its own output; `filters` can leave it out. Received: a model in "
        f"which this holds for {[paths[layer] for layer in layers]}"
    )


def _shifted(model):
    return [
        layer for layer in layers_in(model) if isinstance(layer, ShiftedDropout)
    ]


def _waits_for(model, called):
    """Which layers come before others, so that their shifts arrive there.

    In a graph they are those on which the input depends. What happens inside
    a layer is not known: there they are all those that are called earlier.

    Args:
        model: A model.
        called: Layers of it, at any depth, in the order of their first calls.

    Returns:
        Two dicts with the layers as keys: the set of those that come before
        each, and in how many calls of the graph it is.
    """
    if graph_of(model) is None:
        before = {x: set(called[:i]) for i, x in enumerate(called)}
        return before, dict.fromkeys(called, 1)
    before = {layer: set() for layer in called}
    calls = dict.fromkeys(called, 0)

    def call(operation, *args, **kwargs):
        given = tree.flatten((args, kwargs))
        found = set().union(*(x for x in given if isinstance(x, frozenset)))
        is_layer = isinstance(operation, keras.Layer)
        inside = set(layers_in(operation)) if is_layer else ()
        for layer in called:
            if layer in inside:
                before[layer] |= found
                found = found | {layer}
                calls[layer] += 1
        return [frozenset(found)] * len(tree.flatten(operation.output))

    graph = graph_of(model)
    run_through(graph, [frozenset()] * len(graph.inputs), call)
    return before, calls


def _check_statistics(model, chosen):
    """Raises an error if untrained batch normalisation comes before dropout.

    Raises:
        ValueError: If it comes before one of the dropout layers in `chosen`,
            which are in the graph.
    """
    untrained = untrained_normalization(model)
    before, _ = _waits_for(model, [*untrained, *chosen])
    found = set().union(*(before[layer] for layer in chosen))
    if names := [path for x, path in untrained.items() if x in found]:
        raise ValueError(
            "Batch normalisation before dropout has its initial moving mean "
            "and variance, which are not those of the data. Calibrate with "
            "`keep_predictions=False`, or train the model first. Received: a "
            f"model in which this holds for {names}"
        )


class _Arriving(keras.Model):
    """Returns, for each call of dropout layers, sums of what arrives there.

    Args:
        model: The model as the user has it.
        scratch: Its copy, which is called.
        chosen: The dropout layers of the copy.
    """

    def __init__(self, model, scratch, chosen):
        super().__init__(name="calibrate", autocast=False)
        self.scratch = scratch
        self.chosen = chosen
        self.untrained = [*untrained_normalization(scratch)]
        # Where time is a loop, its steps have to be seen one by one.
        loops = (keras.layers.RNN, keras.layers.Wrapper)
        self.run_eagerly = model.run_eagerly or bool(
            layers_around(scratch, chosen, loops)
        )
        self.jit_compile = model.jit_compile
        self.built = True

    def call(self, inputs):
        found = []

        def note(layer, x):
            number = self.chosen.index(layer)
            found.append([ops.full((), number), *_sums(layer, x, inputs)])

        with (
            watched(self.scratch, self.chosen, note),
            batch_statistics(self.untrained),
        ):
            self.scratch(inputs, training=False)
        return found


def _sums(layer, x, inputs):
    """For each shift the sum of the activities that count, and their number.

    Both are arrays of shape `(batch, ...)`: one example at a time, since the
    numbers have single precision.
    """
    mask = counting(x, inputs)
    x = ops.cast(x, "float32")
    counts = ops.ones_like(x)
    if mask is not None:
        counts = ops.where(mask, counts, 0)
        x = ops.where(mask, x, 0)
    shared = [i for i, n in enumerate(layer.shift.shape, 1) if n == 1]
    if not shared:
        return x, counts
    return tuple(ops.sum(each, shared, keepdims=True) for each in (x, counts))


def _means(arriving, found, paths):
    """The mean at each dropout layer, in the order in which they are called."""
    means: dict[ShiftedDropout, _Mean] = {}
    for batch in found:
        calls: Counter = Counter()
        for number, sums, counts in arriving.predict_on_batch(batch):
            layer = arriving.chosen[int(number)]
            mean = means.setdefault(layer, _Mean(paths[layer]))
            mean.add(sums, counts)
            calls[layer] += 1
            mean.calls = max(mean.calls, calls[layer])
    return means


class _Mean:
    """The mean of what arrives at a dropout layer, for each shift.

    Attributes:
        path: The path of the layer.
        calls: How often a call of the model calls it, at most.
    """

    def __init__(self, path):
        self.path = path
        self.calls = 0
        self.sum: Any = 0.0
        self.count: Any = 0.0

    def add(self, sums, counts):
        self.sum = self.sum + sums.sum(axis=0, dtype="float64")
        self.count = self.count + counts.sum(axis=0, dtype="float64")

    def value(self):
        if not np.all(self.count):
            raise ValueError(
                f"No mean arrives at layer '{self.path}': every example or "
                "timestep in `data` is masked as padding there"
            )
        mean = self.sum / self.count
        if not np.isfinite(mean).all():
            raise ValueError(
                f"The activities that arrive at layer '{self.path}' hold a "
                "NaN or an infinity, though the data do not: look at the "
                "weights before it"
            )
        return mean

    def is_minus(self, shift):
        """Whether it is minus a shift, up to rounding."""
        shift = ops.convert_to_numpy(shift)
        return np.allclose(self.value(), -shift, rtol=1e-4, atol=1e-5)


def _checked(found, graph):
    """The batches as arrays, in the structure that the model takes."""
    examples = 0
    for batch in found:
        if graph is not None:
            batch = standardized(graph, batch, "data")
        arrays = [
            None if x is None else ops.convert_to_numpy(x)
            for x in tree.flatten(batch)
        ]
        names = sorted(batch) if isinstance(batch, dict) else range(len(arrays))
        if graph is not None:
            names = [x.name for x in graph.inputs]
        last = examples + max(len(x) for x in arrays if x is not None)
        for name, array in zip(names, arrays, strict=True):
            if array is None or array.dtype.kind != "f":
                continue
            if not np.isfinite(array).all():
                raise ValueError(
                    "Invalid value received for argument `data`. Expected "
                    "finite numbers. Received a NaN or an infinity in input "
                    f"'{name}', among examples {examples} to {last - 1}"
                )
        examples = last
        if examples:
            yield tree.pack_sequence_as(batch, arrays)
    if not examples:
        raise ValueError(
            "Invalid value received for argument `data`. Expected one example "
            "or more. Received none"
        )
