import itertools
import warnings
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
from .._keras import layers_in
from .._keras import nodes
from ..layers._shifted_dropout import ShiftedDropout
from ._compensate import compensated
from ._copies import copied
from ._dropout_sites import warn_of_hidden_dropout
from ._graph import check_model
from ._graph import inlined
from ._graph import new_inputs
from ._graph import run_through


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 128,
    steps: int | None = None,
    *,
    keep_predictions: bool | None = None,
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

    The means are computed without dropout. A new shift changes the activities
    in all later layers; so where predictions change, the data are read again
    for dropout layers that come after others. They are read one batch at a
    time and are never in memory as a whole. The mean is over the examples and
    over the axes along which the layer shares its shift; timesteps that are
    masked as padding are left out. Regularizers and constraints of beta are
    ignored.

    Batch normalisation whose moving statistics are still the initial ones
    uses the statistics of each batch here, as in training.

    Args:
        model: A functional or sequential model that has been built, with
            `InvariantDropout` or another dropout layer of this library. See
            `invariantize` for a model with Keras' own. It is not changed.
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

    Returns:
        A new model: a copy of `model`, compiled like it, with a new optimizer.
        If there is nothing to calibrate, a warning says so and `model` itself
        is returned.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or has no
            graph of layers; if `keep_predictions` is not given; if there are
            no data, they have not the shape of the model's input or hold a
            NaN or an infinity; if they can be read only once and have to be
            read again; if a dropout layer is called again on what depends on
            its own output, so that no shift suits both; if batch
            normalisation comes before dropout and has not been trained, while
            predictions are to be kept or inside another layer; if predictions
            are to be kept and no shift can be set.

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
    check_model(model)
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
    warn_of_hidden_dropout(model)
    # The means are computed in a separate copy, whose layers are called again.
    scratch = copied(model, compiled=False)
    graph = inlined(scratch)
    arriving, waits_for = _arriving(graph)
    if not arriving:
        warnings.warn(
            f"Model '{model.name}' has no dropout layer with a shift, such as "
            "`InvariantDropout`. It is returned as it is; `invariantize` "
            "converts the `Dropout` of a model.",
            stacklevel=2,
        )
        return model
    untrained = _untrained(graph, arriving)
    if untrained and keep_predictions:
        raise ValueError(
            "Batch normalisation before dropout has its initial moving mean "
            "and variance, which are not those of the data. Calibrate with "
            "`keep_predictions=False`, or train the model first. Received: a "
            f"model in which this holds for {[x.name for x in untrained]}"
        )
    if untrained:
        graph = _with_batch_statistics(graph, untrained)
        arriving, waits_for = _arriving(graph)
    # Copied before the data are read, since the model may be refused.
    result = copied(model)
    read_once = isinstance(data, Iterator)
    done: set[ShiftedDropout] = set()
    while len(done) < len(arriving):
        ready = [
            layer
            for layer in arriving
            if layer not in done
            and (keep_predictions or waits_for[layer] <= done)
        ]
        if not ready:
            names = [layer.name for layer in arriving if layer not in done]
            raise ValueError(
                "No shift can be set of a layer that is called again on what "
                "depends on its own output. Received: a model in which this "
                f"holds for {names}"
            )
        if read_once and done:
            raise invalid(
                "data",
                "data that can be read again: the layers "
                f"{[layer.name for layer in ready]} come after others, which "
                "have to be calibrated first",
                data,
            )
        found = batches(data, batch_size, len(graph.inputs))
        found = _checked(itertools.islice(found, steps), graph)
        means = _means(ready, arriving, graph, found)
        if not keep_predictions:
            for layer, mean in means.items():
                layer.set_shift(-mean)
        done.update(ready)
    if keep_predictions:
        _report(compensated(graph, means), arriving)
        # The biases have changed, too.
        result.set_weights(scratch.get_weights())
        return result
    for layer, source in zip(_shifted(result), _shifted(scratch), strict=True):
        layer.set_shift(source.shift)
    return result


def _report(kept, arriving):
    """Says which shifts stayed, for the reasons in `kept`."""
    if not kept:
        return
    reasons = "; ".join(
        f"'{layer.name}': {reason}" for layer, reason in kept.items()
    )
    if len(kept) == len(arriving):
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


def _shifted(model):
    return [
        layer for layer in layers_in(model) if isinstance(layer, ShiftedDropout)
    ]


def _arriving(graph):
    """What arrives at each dropout layer, and which others come before it."""
    arriving: dict[ShiftedDropout, list] = {}
    waits_for: dict[ShiftedDropout, set] = {}
    before: dict[int, set] = {}  # The layers before each tensor.
    for node in nodes(graph):
        found = set().union(*(before[id(x)] for x in node.input_tensors))
        if isinstance(layer := node.operation, ShiftedDropout):
            arriving.setdefault(layer, []).append(node.input_tensors[0])
            waits_for.setdefault(layer, set()).update(found)
            found = found | {layer}
        before |= {id(x): found for x in node.outputs}
    return arriving, waits_for


def _untrained(graph, arriving):
    """Batch normalisation before dropout that has not seen data yet.

    A layer that is frozen takes its moving statistics in training, too.
    """
    found = []
    before = keras.Model(graph.inputs, tree.flatten(list(arriving.values())))
    for layer in before.layers:
        for part in layers_in(layer):
            if not (
                isinstance(part, keras.layers.BatchNormalization)
                and part.trainable
                and _is_initial(part.moving_mean, part.moving_mean_initializer)
                and _is_initial(
                    part.moving_variance, part.moving_variance_initializer
                )
            ):
                continue
            if part is not layer:
                raise ValueError(
                    f"Batch normalisation '{part.name}' in layer "
                    f"'{layer.name}', which comes before dropout, has its "
                    "initial moving mean and variance, which are not those of "
                    "the data. Train the model for a few steps first"
                )
            found.append(layer)
    return found


def _is_initial(weight, initializer):
    initial = initializer(weight.shape, dtype=weight.dtype)
    return np.array_equal(
        ops.convert_to_numpy(weight), ops.convert_to_numpy(initial)
    )


def _with_batch_statistics(graph, untrained):
    """`graph` with the layers in `untrained` as in training."""
    in_training = {id(layer): _InTraining(layer) for layer in untrained}

    def call(layer, *args, **kwargs):
        return in_training.get(id(layer), layer)(*args, **kwargs)

    inputs = new_inputs(graph)
    return keras.Model(inputs, run_through(graph, inputs, call))


class _InTraining(keras.Layer):
    """A layer that does at inference what it does in training."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return self.layer(inputs, training=True, mask=mask)


class _Probe(keras.Layer):
    """Returns its input, and the mask of it if there is one."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        x = ops.cast(inputs, "float32")
        return [x] if mask is None else [x, ops.cast(mask, "bool")]


def _means(ready, arriving, graph, found):
    """The mean of what arrives at each dropout layer in `ready`."""
    probes = [_Probe()(x) for layer in ready for x in arriving[layer]]
    owners = [layer for layer in ready for _ in arriving[layer]]
    probe = keras.Model(graph.inputs, probes)
    sums: dict[ShiftedDropout, Any] = dict.fromkeys(ready, 0.0)
    counts: dict[ShiftedDropout, Any] = dict.fromkeys(ready, 0)
    for batch in found:
        outputs = iter(tree.flatten(probe.predict_on_batch(batch)))
        for layer, tensors in zip(owners, probes, strict=True):
            x = next(outputs)
            mask = np.ones(1, "bool") if len(tensors) == 1 else next(outputs)
            mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
            mask = np.broadcast_to(mask, x.shape)
            shared = [i for i, n in enumerate(layer.shift.shape, 1) if n == 1]
            axes = (0, *shared)
            sums[layer] += np.sum(
                x, axes, dtype="float64", where=mask, keepdims=True
            )
            counts[layer] += np.sum(mask, axes, keepdims=True)
    means = {}
    for layer in ready:
        if not np.all(counts[layer]):
            raise ValueError(
                f"No mean arrives at layer '{layer.name}': every example or "
                "timestep in `data` is masked as padding there"
            )
        mean = (sums[layer] / counts[layer])[0]
        if not np.isfinite(mean).all():
            raise ValueError(
                f"The activities that arrive at layer '{layer.name}' hold a "
                "NaN or an infinity, though the data do not: look at the "
                "weights before it"
            )
        means[layer] = mean
    return means


def _checked(found, graph):
    """The batches as lists of arrays, as the model takes them."""
    names = [x.name for x in graph.inputs]
    examples = 0
    for batch in found:
        arrays = [
            None if x is None else ops.convert_to_numpy(x)
            for x in tree.flatten(standardized(graph, batch, "data"))
        ]
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
            yield arrays
    if not examples:
        raise ValueError(
            "Invalid value received for argument `data`. Expected one example "
            "or more. Received none"
        )
