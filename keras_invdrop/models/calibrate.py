import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from ..batches import batches
from ..batches import standardized
from ..layers.shifted_dropout import ShiftedDropout
from ..validation import check_positive_integer
from ..validation import invalid
from .copies import copied
from .dropout_sites import warn_of_hidden_dropout
from .graph import check_model
from .graph import inlined
from .graph import nodes


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 128,
    steps: int | None = None,
) -> keras.Model:
    """Sets each shift to minus the mean activity that arrives there.

    The paper finds that training brings beta near to minus the mean activity,
    where dropping injects the least variance (Eq. 10). A model that starts
    there trains from the first step as if its input and its activation
    functions were centred, whatever their encoding.

    The means are those of inference, taken from the input on: what arrives at
    a layer has been shifted by the layers before it. So the data are read
    once for each dropout layer that has others before it, a batch at a time
    and never all in memory. The mean is over the examples and over the axes
    along which the layer shares its shift; timesteps that are masked as
    padding are left out. A regularizer or constraint of beta has no say.

    Args:
        model: A functional or sequential model that has been built, with
            `InvariantDropout` or another dropout layer of this library. See
            `invariantize` for a model with Keras' own. It is left as it is.
        data: The examples: what `model.predict` takes. An array (or the list
            or dict of arrays that the model takes), a `tf.data.Dataset`, a
            `PyDataset` or another iterable of batches. Targets and sample
            weights are ignored. An iterator, which can be read only once,
            will do where no dropout layer has another before it.
        batch_size: Positive integer. Examples per batch, if `data` are
            arrays.
        steps: Positive integer. Batches to read each time; all by default.
            It is needed where the data do not end by themselves.

    Returns:
        A new model: a copy of `model`, compiled like it, with a new optimizer.
        If there is nothing to calibrate it is `model` itself, and a warning
        says so.

    Raises:
        ValueError: If `model` is not a Keras model, is not built or has no
            graph of layers; if there are no data, they have not the shape of
            the model's input or hold a NaN or an infinity; if they can be
            read only once and have to be read again; if a dropout layer is
            called again on what depends on its own output, so that no shift
            suits both.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_invdrop.InvariantDropout(0.5)]
    ... )
    >>> x = np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> new_model = keras_invdrop.calibrate(model, x)
    >>> ops.convert_to_numpy(new_model.layers[0].beta)
    array([-2., -2.], dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, sections 2.2 and 4
    """
    check_model(model)
    check_positive_integer("batch_size", batch_size)
    if steps is not None:
        check_positive_integer("steps", steps)
    warn_of_hidden_dropout(model)
    # The means are taken in a copy of its own, whose layers are called anew.
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
    read_once = isinstance(data, Iterator)
    done: set[ShiftedDropout] = set()
    while len(done) < len(arriving):
        ready = [
            layer
            for layer in arriving
            if layer not in done and waits_for[layer] <= done
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
        _calibrate(ready, arriving, graph, found)
        done.update(ready)
    result = copied(model)
    for layer, source in zip(_shifted(result), _shifted(scratch), strict=True):
        layer.set_shift(source.shift)
    return result


def _shifted(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, ShiftedDropout)
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


class _Probe(keras.Layer):
    """Gives out what comes in, with its mask if it has one."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        x = ops.cast(inputs, "float32")
        return [x] if mask is None else [x, ops.cast(mask, "bool")]


def _calibrate(ready, arriving, graph, found):
    """Sets the shift of each layer in `ready`, of which none needs another."""
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
        layer.set_shift(-mean)


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
