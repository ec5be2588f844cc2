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
from .._batches import mapped
from .._batches import standardized
from .._checks import check_boolean
from .._checks import check_positive_integer
from .._checks import invalid
from .._keras import graph_of
from .._keras import layers_in
from .._precision import dtype_of_sums
from ..arguments import Filters
from ..layers._shifted_dropout import ShiftedDropout
from ._compensate import compensated
from ._copies import copied
from ._dropping_layers import no_match
from ._dropping_layers import path_filter
from ._dropping_layers import paths_of
from ._graph import check_callable
from ._graph import inlined
from ._graph import inside_layers
from ._graph import run_through
from ._observation import batch_statistics
from ._observation import counting
from ._observation import layers_around
from ._observation import untrained_normalization
from ._observation import watched


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 128,
    steps: int | None = None,
    *,
    keep_predictions: bool | None = None,
    filters: Filters | None = None,
) -> keras.Model:
    """Sets each shift to minus the mean of the activities that it shifts.

    According to the paper, training moves beta close to minus the mean
    activity, where dropout injects the least variance (Eq. 10). A calibrated
    model trains from the first step as if its input and its activation
    functions were centred, whatever their encoding.

    A shift adds a constant to the input of the next layer. The argument
    `keep_predictions`, which has no default, determines whether to compensate
    for this constant:

    - `True`, for a trained model. The next bias, or the moving mean of the next
      batch normalisation, compensates for the constant; pooling, flattening and
      other layers that `fold` passes may come in between. The predictions stay
      the same up to rounding. If nothing can compensate, because an activation
      function or the model's output comes next, a convolution pads with zeros,
      a layer has no bias, or another layer uses the bias as well, the dropout
      layer keeps its old shift, and a warning names the obstacle.
    - `False`, for an untrained model. Only the shifts change, so that each next
      layer starts with centred inputs. The predictions change.

    The function calibrates layers at any depth: in the graph of the model, in
    nested models and inside layers, such as the blocks of a transformer. It
    does not know what else a layer or a subclassed model computes, and cannot
    compensate for a shift there: with `True` the shifts inside layers stay
    unchanged, and the warning names them.

    The means are computed without dropout, over the examples and over the axes
    along which the layer shares its shift. They exclude timesteps masked as
    padding, by Keras' masks or by an input named `padding_mask` as in KerasHub.
    Regularizers and constraints of beta are ignored.

    The function reads the data one batch at a time and never holds all of them
    in memory. If predictions are kept, one pass is enough, because a new shift
    does not change later activities. Otherwise a new shift changes the
    activities in later layers, whose means can be measured only after the shift
    is set. If all data are one batch, the function sets each shift while that
    batch passes, in one pass. Otherwise it reads the data once for each dropout
    layer in the longest chain: twelve times for two dropout layers in each of
    six blocks, but once for parallel branches. Dropout layers that a layer
    calls one after another form a chain. If a layer calls one of them several
    times, as over timesteps, the function reads the data once more to check
    that the mean does not depend on the layer's own shift.

    Batch normalisation whose moving statistics are still the initial ones uses
    the statistics of each batch, as in training.

    Args:
        model: A model that has been built, with `InvariantDropout` or another
            dropout layer of this library; `invariantize` converts Keras' own.
            The function does not change `model`.
        data: The examples, as `model.predict` takes them: an array (or the list
            or dict of arrays that the model takes), a `tf.data.Dataset`, a
            `PyDataset` or another iterable of batches. Targets and sample
            weights are ignored. An iterator, which can be read only once,
            suffices if predictions are kept, if it returns a single batch, or
            if no dropout layer comes after another.
        batch_size: Positive integer. Examples per batch, if `data` are
            arrays. With the number of examples, one pass is enough.
        steps: Positive integer. Batches to read per pass; all by default.
            Required for infinite data.
        keep_predictions: Boolean. Whether to keep the predictions of the model.
        filters: Regular expression, or list of them. Calibrates only layers
            whose path, as in the report of `invariantize`, contains a match;
            all by default.

    Returns:
        A new model: a copy of `model`, compiled like it, with a new optimizer.
        If `model` has nothing to calibrate, the function warns and returns
        `model` itself. Layers that the model does not call at inference keep
        their shifts, and a warning names them.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or cannot be
            copied; if `keep_predictions` is not given; if the data are empty,
            do not fit the model's input or contain a NaN or an infinity; if an
            iterator would have to be read again; if the input of a call of a
            dropout layer depends on the layer's own output, so that no single
            shift fits; if predictions are to be kept and untrained batch
            normalisation comes before dropout, a nested model is called with
            another `mask` than its input carries, or no shift can be set; if
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
            "True for a trained model, which then keeps its predictions, or "
            "False for an untrained model, which only gets new shifts",
            keep_predictions,
        )
    check_boolean("keep_predictions", keep_predictions)
    is_on_path = path_filter(filters)
    # Compute the means in a separate copy, whose shifts change.
    scratch = copied(model, compiled=False)
    shifted = {
        layer: path
        for path, layer in paths_of(scratch)
        if isinstance(layer, ShiftedDropout)
    }
    paths = {layer: x for layer, x in shifted.items() if is_on_path(x)}
    if not paths:
        why = (
            f"Model '{model.name}' has no layer to calibrate. Convert "
            "`Dropout` first: `calibrate(invariantize(model), ...)`."
        )
        if shifted:
            why = no_match("`filters`", shifted.values())
        warnings.warn(f"{why} It is returned as it is.", stacklevel=2)
        return model
    kept = inside_layers(scratch, paths) if keep_predictions else {}
    chosen = [layer for layer in paths if layer not in kept]
    if not chosen:
        _report(kept, paths)
    if keep_predictions:
        _check_statistics(scratch, chosen)
    # Copy before reading the data, because copying may fail.
    result = copied(model)

    def read():
        inputs = None if graph is None else len(graph.inputs)
        found = batches(data, batch_size, inputs)
        return _checked(itertools.islice(found, steps), model)

    # In training mode batch normalisation updates its moving statistics, which
    # would become those of the result.
    untrained = [] if keep_predictions else untrained_normalization(scratch)
    arriving = _Arriving(model, scratch, chosen, [*untrained])
    if keep_predictions:
        found = _means(arriving, read(), paths)
        means = {layer: mean.value() for layer, mean in found.items()}
        _report(kept | compensated(inlined(scratch), means), paths)
        # The biases have changed as well.
        result.set_weights(scratch.get_weights())
        return result
    found = read()
    first = [*itertools.islice(found, 2)]
    if len(first) > 1 or not _set_in_flight(
        _Arriving(model, scratch, chosen, arriving.untrained, in_flight=True),
        first,
        paths,
    ):

        def readings():
            yield itertools.chain(first, found)
            while True:
                yield read()

        measured = (_means(arriving, reading, paths) for reading in readings())
        _set_in_order(scratch, measured, data, paths)
    for layer, source in zip(_shifted(result), _shifted(scratch), strict=True):
        layer.set_shift(source.shift)
    return result


def _set_in_flight(arriving, found, paths):
    """Sets each shift while a single batch passes.

    Args:
        arriving: The model with the dropout layers; sets shifts in flight.
        found: The batch.
        paths: Dict from the dropout layers to their paths.

    Returns:
        Whether the shifts are set. They are not if the model calls a layer
        more than once, since the first call knows nothing of the others.
    """
    before = [ops.convert_to_numpy(layer.shift) for layer in arriving.chosen]
    means = _means(arriving, found, paths)
    fits = all(mean.calls == 1 for mean in means.values())
    for layer, shift in zip(arriving.chosen, before, strict=True):
        set_now = fits and layer in means
        layer.set_shift(-means[layer].value() if set_now else shift)
    if fits:
        _warn_of_uncalled(paths, means)
    return fits


def _set_in_order(model, measured, data, paths):
    """Sets each shift after the shifts on which its mean depends.

    Args:
        model: A model.
        measured: Iterator that reads the data and returns the means, again for
            each `next`.
        data: The data, for an error.
        paths: Dict from the dropout layers to their paths.
    """
    means = next(measured)
    _warn_of_uncalled(paths, means)
    waits_for, calls = _waits_for(model, [*means])
    # A layer called repeatedly may get input that depends on its own output.
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
            means = next(measured)
    changed = [x for x in unsure if not means[x].is_minus(x.shift)]
    if changed:
        _refuse_again(changed, paths)


def _report(kept, paths):
    """Warns of the unchanged shifts in `kept`; raises an error if all are."""
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
            "Setting any shift would change the predictions. Use "
            "`keep_predictions=False` and train afterwards, or keep the "
            f"present shifts. Reasons: {reasons}"
        )
    warnings.warn(
        "Some shifts were left unchanged, because changing them would change "
        f"the predictions: {reasons}",
        stacklevel=3,
    )


def _warn_of_uncalled(paths, means):
    uncalled = [path for layer, path in paths.items() if layer not in means]
    if uncalled:
        warnings.warn(
            "Some shifts were left unchanged, because the model does not call "
            f"these layers at inference: {uncalled}",
            stacklevel=4,
        )


def _refuse_again(layers, paths):
    raise ValueError(
        "Expected no layer with a shift to take an input that depends on its "
        "own output; `filters` can exclude such layers. Received: the layers "
        f"{[paths[layer] for layer in layers]}"
    )


def _shifted(model):
    return [
        layer for layer in layers_in(model) if isinstance(layer, ShiftedDropout)
    ]


def _waits_for(model, called):
    """The dropout layers whose shifts affect the input of other layers.

    In a graph these are the layers on which the input depends; inside another
    layer, where the dependencies are unknown, all layers called earlier.

    Args:
        model: A model.
        called: Layers of it, at any depth, in the order of their first calls.

    Returns:
        Two dicts with the layers as keys: the set of layers that come before
        each layer, and the number of the graph's calls that include it.
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
        ValueError: If it comes before a dropout layer in `chosen`. These are in
            the graph.
    """
    untrained = untrained_normalization(model)
    before, _ = _waits_for(model, [*untrained, *chosen])
    found = set().union(*(before[layer] for layer in chosen))
    if names := [path for x, path in untrained.items() if x in found]:
        raise ValueError(
            "Batch normalisation before dropout has its initial moving mean "
            "and variance instead of those of the data. Calibrate with "
            "`keep_predictions=False`, or train the model first. Received: "
            f"the untrained layers {names}"
        )


class _Arriving(keras.Model):
    """Returns sums of the inputs for each call of dropout layers.

    Args:
        model: The user's model.
        scratch: The copy to call.
        chosen: The dropout layers of the copy.
        untrained: Its batch normalisation that uses the statistics of each
            batch.
        in_flight: Whether to set the shift of each layer before calling it.
    """

    def __init__(self, model, scratch, chosen, untrained, in_flight=False):
        super().__init__(name="calibrate", autocast=False)
        self.scratch = scratch
        self.chosen = chosen
        self.in_flight = in_flight
        self.untrained = untrained
        # A loop over time has to run eagerly, to reveal each step.
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
            sums, counts = _sums(layer, x, inputs)
            found.append([ops.full((), number), sums, counts])
            if self.in_flight:
                mean = ops.sum(sums, axis=0) / ops.sum(counts, axis=0)
                layer.set_shift(-mean)

        with (
            watched(self.scratch, self.chosen, note),
            batch_statistics(self.untrained),
        ):
            self.scratch(inputs, training=False)
        return found


def _sums(layer, x, inputs):
    """The sum of the counted activities for each shift, and their number.

    Both are arrays of shape `(batch, ...)`: the sums have single precision
    unless `x` has double, so `_Mean` adds the examples in double precision.
    """
    mask = counting(x, inputs)
    x = ops.cast(x, dtype_of_sums(x.dtype))
    counts = ops.ones_like(x)
    if mask is not None:
        counts = ops.where(mask, counts, 0)
        x = ops.where(mask, x, 0)
    shared = [i for i, n in enumerate(layer.shift.shape, 1) if n == 1]
    if not shared:
        return x, counts
    return tuple(ops.sum(each, shared, keepdims=True) for each in (x, counts))


def _means(arriving, found, paths):
    """The mean at each dropout layer, in the order of the calls."""
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
    """The mean input of a dropout layer for each shift.

    Attributes:
        path: The path of the layer.
        calls: The largest number of calls of the layer per call of the model.
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
                "NaN or an infinity, although the data do not: check the "
                "weights of the layers before it"
            )
        return mean

    def is_minus(self, shift):
        """Whether the mean equals minus a shift, up to rounding."""
        shift = ops.convert_to_numpy(shift)
        return np.allclose(self.value(), -shift, rtol=1e-4, atol=1e-5)


def _checked(found, model):
    """The batches as arrays, in the structure that the model takes."""
    graph, examples = graph_of(model), 0
    for batch in found:
        batch = standardized(model, batch, "data")
        arrays = tree.flatten(mapped(ops.convert_to_numpy, batch))
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
