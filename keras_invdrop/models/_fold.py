from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import tree

from .._checks import check_boolean
from .._checks import invalid
from .._keras import compile_config
from .._keras import graph_of
from .._keras import operations
from .._keras import origin
from ..layers._shifted_dropout import ShiftedDropout
from ..layers.maxout import Maxout
from ._copies import Copies
from ._copies import compile_like
from ._dropping_layers import drops
from ._dropping_layers import paths_of
from ._dropping_layers import rate_in_words
from ._dropping_layers import rate_of
from ._graph import Names
from ._graph import check_model
from ._graph import followed
from ._graph import inside_layers
from ._graph import new_inputs
from ._graph import run_through
from ._linear_layers import LINEAR
from ._linear_layers import array
from ._linear_layers import as_bias
from ._linear_layers import core_of
from ._linear_layers import fixed_kernel
from ._linear_layers import kernels_of
from ._linear_layers import response_to
from ._linear_layers import settings_of
from ._linear_layers import sizes_from
from ._linear_layers import with_bias
from ._linear_layers import without_bias
from ._shifts import MERGING
from ._shifts import SHIFTED
from ._shifts import VANISHING
from ._shifts import Shifted
from ._shifts import carried
from ._shifts import compact
from ._shifts import has_one_for_each_feature
from ._shifts import kept_by
from ._shifts import sources_of


@dataclass(frozen=True)
class Folded:
    """What `fold` did with one layer that drops.

    Attributes:
        path: The names of the layers around the layer and its own name, joined
            by `/`.
        layer: The name of the layer's class.
        rate: The fraction of activities that the layer drops in training; None
            if unknown.
        into: Tuple of strings: the weights that now contain beta, and the keep
            probability `p` if the layer multiplies by `p` at inference. Empty
            if the layer has no effect at inference.
        reason: Why a separate layer adds beta for some or all of the next
            layers; None if beta needs no separate layer.
    """

    path: str
    layer: str
    rate: float | None
    into: tuple[str, ...]
    reason: str | None

    def __str__(self):
        became = [*self.into]
        if self.reason is not None:
            became.append(f"not folded: {self.reason}")
        return (
            f"{self.path} ({self.layer}, {rate_in_words(self.rate)}): "
            f"{'; '.join(became) or 'nothing to fold'}"
        )


def fold(model: keras.Model, *, return_report: bool = False) -> Any:
    """Makes the mean network: the model for inference, without dropout.

    At inference an invariant dropout layer adds beta, and with `scaling="test"`
    multiplies by the keep probability `p`. `fold` moves both into the kernels
    and biases of the next layers. The result consists of the layers of the
    network without dropout: Keras' own, unless the network has other layers of
    this library, such as `MaxoutDense`. Its output equals that of `model` up to
    rounding: the order of the sums differs, which in float32 changes each
    by about 1e-6 of its largest term. If beta nearly cancels the activities,
    the output is small compared with these terms, and the relative difference
    is larger.

    - Beta goes into `Dense`, `EinsumDense`, convolutions of every kind and this
      library's `MaxoutDense`, `MaxoutConv2D` and `LocallyConnected2D`. Beta
      passes through `Flatten`, `Reshape` and the like, pooling, `Add`,
      `Concatenate` and `BatchNormalization`.
    - If a convolution pads its input with zeros, beta adds less near the
      border: the bias becomes a map, held by an additional `EinsumDense` with a
      diagonal kernel after the convolution.
    - Before any other layer, such as an activation function, beta stays in such
      an `EinsumDense`, named after the dropout layer. To pass on a mask, an
      `Add`, a `PReLU` with beta as its weight and two `Rescaling` layers take
      its place.
    - Standard dropout, which has no effect at inference, disappears.
    - Dropout inside other layers, and inside a nested model of a class with a
      `call` of its own, stays there, because `fold` does not know which layer
      comes next. At inference it adds its beta.

    Args:
        model: A functional or sequential model that has been built, and may
            contain other models. The function does not change it.
        return_report: Boolean. Whether to return a report as well.

    Returns:
        A new functional model for inference, which contains the layers of
        nested models directly. It is compiled with the loss and the metrics of
        `model`, for `evaluate`, and several outputs keep their names; further
        training would use no dropout, and Keras' default optimizer. With
        `return_report` a pair: the model, and a list with a `Folded` for each
        layer that drops, which prints as a line.

    Raises:
        ValueError: If `model` is not a Keras model, is not built, has no graph
            of layers or is of a class with a `call` of its own; if a nested
            model is called with another `mask` than its input carries; if a
            dropout layer of this library is of an unknown subclass; if
            `return_report` is not a boolean.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((784,)),
    ...         keras_invdrop.InvariantDropout(
    ...             0.2, beta_initializer="ones", name="drop"
    ...         ),
    ...         keras.layers.Dense(100, activation="relu", name="hidden"),
    ...         keras.layers.Dropout(0.5, name="standard"),
    ...         keras.layers.Dense(10, name="classifier"),
    ...     ]
    ... )
    >>> folded, report = keras_invdrop.fold(model, return_report=True)
    >>> [layer.name for layer in folded.layers[1:]]
    ['hidden', 'classifier']
    >>> for row in report:
    ...     print(row)
    drop (InvariantDropout, rate 0.2): beta in bias of 'hidden'
    standard (Dropout, rate 0.5): nothing to fold

    Reference:

    - Ba, Xiong and Frey, 2014, section 2, Eq. 9
    """
    check_boolean("return_report", return_report)
    check_model(model)
    graph = followed(model)
    if graph is None:
        raise invalid(
            "model", "a model of a class without a `call` of its own", model
        )
    inputs = new_inputs(graph)
    folding = _Folding(tensor.name for tensor in tree.flatten(inputs))
    values = run_through(
        graph, tree.map_structure(Shifted, inputs), folding.call
    )
    outputs = tree.map_structure(
        lambda value: folding.materialised(value, "the model's output follows"),
        values,
    )
    result = keras.Model(inputs, outputs, name=model.name)
    if _names_matter(model):
        result = _with_output_names(result, graph.output_names, folding.names)
    compile_like(result, model, folding.copies, trained=False)
    return (result, _report(model, folding)) if return_report else result


def _names_matter(model):
    """Whether losses, metrics or targets may be given by name of output."""
    names = graph_of(model).output_names
    if len(names) > 1:
        return len(set(names)) == len(names)
    config = compile_config(model) or {}
    by_name = "loss", "metrics", "weighted_metrics"
    return any(isinstance(config.get(name), dict) for name in by_name)


def _with_output_names(model, output_names, names):
    """A model with these names of its outputs.

    The layer that gave an output its name may be gone, as a `Dropout` or a
    nested model is. Then an `Identity` takes its name.

    Args:
        model: A functional model.
        output_names: The names.
        names: The `Names` of its layers.
    """
    if model.output_names == output_names:
        return model
    outputs = []
    kept = {
        id(origin(output))
        for output, name in zip(model.outputs, output_names, strict=True)
        if origin(output).name == name
    }
    for operation in operations(graph_of(model)):
        if operation.name in output_names and id(operation) not in kept:
            operation.name = names.unique(operation.name)
    for output, name in zip(model.outputs, output_names, strict=True):
        if origin(output).name != name:
            output = layers.Identity(name=name, dtype=output.dtype)(output)
        outputs.append(output)
    outputs = tree.pack_sequence_as(model.output, outputs)
    return keras.Model(model.input, outputs, name=model.name)


def _report(model, folding):
    """A `Folded` for each layer that drops."""
    dropping = {x: path for path, x in paths_of(model) if drops(x)}
    inside = inside_layers(model, dropping)
    report = []
    for layer, path in dropping.items():
        reasons = [*folding.reasons.get(layer, ())]
        if isinstance(layer, ShiftedDropout) and layer in inside:
            reasons = [f"it stays, and adds its beta, since {inside[layer]}"]
        report.append(
            Folded(
                path,
                type(layer).__name__,
                rate_of(layer),
                tuple(folding.into.get(layer, ())),
                "; ".join(reasons) or None,
            )
        )
    return report


class _Folding:
    """Builds the new model, layer by layer."""

    def __init__(self, names):
        self.copies = Copies()
        self.names = Names()
        for name in names:
            self.names.unique(name)
        # The new layers for each layer, scale and shift, and the tensor for
        # each value. An entry keeps its original alive, so that no other object
        # gets its id.
        self.made: dict[Any, tuple] = {}
        # Where the beta of each dropout layer went, and why a separate layer
        # adds it. The keys of the inner dicts are in the order of calls.
        self.into: dict[keras.Layer, dict[str, None]] = {}
        self.reasons: dict[keras.Layer, dict[str, None]] = {}

    def note(self, found, value, sentence):
        for source in value.sources:
            found.setdefault(source, {})[sentence] = None

    def call(self, layer, *args, **kwargs):
        """The output of `layer`, as a `Shifted`."""
        flat = tree.flatten((args, kwargs))
        values = [value for value in flat if isinstance(value, Shifted)]
        kind = type(layer)
        if kind in VANISHING:
            return values[0]
        if isinstance(layer, ShiftedDropout):
            return self.shifted(layer, values[0])
        reason = _obstacle(layer, values)
        if kind in MERGING:
            values = self.of_one_scale(values, reason)
        # Batch statistics absorb no constant.
        batch_statistics = kind is layers.BatchNormalization and kwargs.get(
            "training"
        )
        if not (batch_statistics or all(value.plain for value in values)):
            result = None
            if kind in LINEAR:
                result = self.absorbed(layer, values[0])
            elif kind is layers.BatchNormalization:
                result = self.moved(layer, values[0])
            result = result or self.carried(layer, values)
            if result is not None:
                return result
        return self.opaque(layer, args, kwargs, reason)

    def materialised(self, value, reason):
        """A tensor of the new model that equals the value.

        Args:
            value: A `Shifted`.
            reason: Why no other layer absorbs its shift.
        """
        if value.plain:
            return value.tensor
        self.note(self.reasons, value, reason)
        if id(value) not in self.made:
            dtype = value.tensor.dtype
            if dtype in ("float16", "bfloat16"):
                dtype = f"mixed_{dtype}"  # keeps the weights in float32
            self.made[id(value)] = value, self.shifted_tensor(value, dtype)
        return self.made[id(value)][1]

    def shifted_tensor(self, value, dtype):
        name = value.sources[-1].name
        return self.affine(value, value.tensor.shape, name, dtype)(value.tensor)

    def affine(self, value, shape, name, dtype):
        """Layers of Keras that multiply by the scale and add the shift.

        Both are weights, so that copies and checkpoints keep them. An
        `EinsumDense` with a diagonal kernel has a bias along any axes.

        Returns:
            Function from tensor to tensor: a layer, or several in one.
        """
        shift = value.constant()
        labels = "abcdefghijk"[: len(shape)]
        fixed = [x for x, n in zip(labels[1:], shape[1:], strict=True) if n]
        if value.masked or not fixed:
            return self.affine_with_mask(value, name, dtype)
        varies = zip(labels[1:], shift.shape, strict=True)
        new = layers.EinsumDense(
            f"{labels},{fixed[-1]}->{labels}",
            output_shape=shape[1:],
            bias_axes="".join(x for x, n in varies if n > 1) or fixed[-1],
            name=self.names.unique(name),
            dtype=dtype,
        )
        new.build(shape)
        kernel = np.full(new.kernel.shape, value.scale)
        new.set_weights([kernel, as_bias(shift, new.bias.shape)])
        return new

    def affine_with_mask(self, value, name, dtype):
        """As `affine`, in layers that pass a mask on and fit every size.

        An `EinsumDense` does neither. The output of a `PReLU` for -1 is minus
        its weight.
        """
        shift = value.constant()
        shared = [axis for axis, n in enumerate(shift.shape, 1) if n == 1]

        def unique(suffix):
            return {"name": self.names.unique(name + suffix), "dtype": dtype}

        scaling = layers.Rescaling(value.scale, **unique("_scale"))
        minus_one = layers.Rescaling(0.0, offset=-1.0, **unique("_minus_one"))
        weight = layers.PReLU(shared_axes=shared, **unique("_shift"))
        weight.build((None, *shift.shape))
        weight.set_weights([-shift])
        add = layers.Add(**unique(""))

        def affine(x):
            return add([scaling(x), weight(minus_one(x))])

        return affine

    def once(self, layer, value, make, size=()):
        """The result of `make`, called once for each layer, scale and shift.

        Shared layers thus stay shared where possible. `size` is that of the
        input, if the result fits only one.
        """
        shift = value.constant()
        key = id(layer), value.scale, shift.shape, shift.tobytes(), size
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def copy_of(self, layer):
        if id(layer) not in self.made:
            new = self.copies.of(layer)
            new.name = self.names.unique(layer.name)
            self.made[id(layer)] = layer, new
        return self.made[id(layer)][1]

    def opaque(self, layer, args, kwargs, reason):
        """The output of a layer that takes the values without a shift."""
        args, kwargs = tree.map_structure(
            lambda x: (
                self.materialised(x, reason) if isinstance(x, Shifted) else x
            ),
            (args, kwargs),
        )
        outputs = self.copy_of(layer)(*args, **kwargs)
        return tree.map_structure(Shifted, outputs)

    def shifted(self, layer, value):
        """The output of an invariant dropout layer: a shift at inference."""
        if type(layer) not in SHIFTED:
            raise ValueError(
                f"Layer '{layer.name}' is a `{type(layer).__name__}`, a "
                "subclass of invariant dropout that may override `call`. It "
                "cannot be folded: fold a model that has this library's own "
                "layer in its place."
            )
        keep = kept_by(layer)
        shift = keep * (value.constant() + array(layer.shift))
        sources = (*value.sources, layer)
        new = Shifted(value.tensor, compact(shift), keep * value.scale, sources)
        is_float = keras.backend.is_float_dtype(value.tensor.dtype)
        if keep == 0 or not is_float:
            # A kernel of zeros is useless; an integer input also needs a cast.
            reason = "its inputs are integers" if keep else "it drops all"
            self.note(self.reasons, new, reason)
            return Shifted(self.shifted_tensor(new, layer.dtype_policy))
        return new

    def of_one_scale(self, values, reason):
        """The inputs of a merging layer, brought to a common scale."""
        if len({value.scale for value in values}) == 1:
            return values
        return [
            value
            if value.scale == 1
            else Shifted(self.materialised(value, reason))
            for value in values
        ]

    def carried(self, layer, values):
        """The output of a layer that passes scale and shift on."""
        shift = carried(layer, values)
        if shift is None:
            return None
        tensors = [value.tensor for value in values]
        tensor = self.copy_of(layer)(
            tensors if type(layer) in MERGING else tensors[0]
        )
        return Shifted(
            tensor, compact(shift), values[0].scale, sources_of(values)
        )

    def moved(self, layer, value):
        """The output of a batch normalisation that absorbs scale and shift."""
        if not has_one_for_each_feature(value.constant(), layer, value.rank):
            return None

        def make():
            new = Copies().of(layer)
            new.name = self.names.unique(layer.name)
            mean, variance = layer.moving_mean, layer.moving_variance
            new.moving_mean.assign(
                (array(mean) - value.constant().ravel()) / value.scale
            )
            new.moving_variance.assign(
                (array(variance) + layer.epsilon) / value.scale**2
                - layer.epsilon
            )
            return new

        new = self.once(layer, value, make)
        where = "moving mean"
        if value.scale != 1:
            where = "moving mean and variance"
        self.note(
            self.into, value, f"{_parts(value)} in {where} of '{new.name}'"
        )
        return Shifted(new(value.tensor))

    def absorbed(self, layer, value):
        """The output of a layer with a kernel `K` and a bias `b`.

        `K (s x + c) + b = (s K) x + (K c + b)`.
        """
        core = core_of(layer)
        if fixed_kernel(layer):
            return None
        # Where a convolution pads, the bias map fits one size.
        pads = getattr(core, "padding", "valid") != "valid"
        size = tuple(value.tensor.shape[1:]) if pads else ()
        made = self.once(
            layer, value, lambda: self.linear(layer, core, value), size
        )
        if made is None:
            return None
        bias, chain = made
        where = bias if value.scale == 1 else f"kernel and {bias}"
        self.note(
            self.into, value, f"{_parts(value)} in {where} of '{chain[0].name}'"
        )
        tensor = value.tensor
        for new in chain:
            tensor = new(tensor)
        return Shifted(tensor)

    def linear(self, layer, core, value):
        """What replaces a layer with a kernel.

        Returns:
            What holds the new bias, `"bias"` or `"bias map"`, and the chain of
            layers; None if the response to the shift is not known.
        """
        kernels = kernels_of(core)
        bias = 0.0 if core.bias is None else array(core.bias)
        shape = value.tensor.shape
        response = response_to(value.constant(), core, kernels, shape)
        if response is None:
            return None
        kernels[-1] = kernels[-1] * value.scale
        # As in the layer itself, the last axes of both agree.
        bias = response + bias
        settings = with_bias(core, bias)
        sizes = sizes_from(bias, core)
        name = self.names.unique(layer.name)
        activation = []
        if isinstance(layer.activation, keras.Layer):  # with its own weights
            activation = [self.copy_of(layer.activation)]
        if settings is not None:
            config = {**settings_of(layer), **settings, **sizes, "name": name}
            if activation:
                config["activation"] = None
            new = type(layer).from_config(config)
            new.build(shape)
            bias = as_bias(bias, core_of(new).bias.shape)
            new.set_weights([*kernels, bias])
            return "bias", [new, *activation]
        new = without_bias(core, **sizes, name=name)
        new.build(shape)
        new.set_weights(kernels)
        if getattr(core, "data_format", None) == "channels_first":
            bias = np.moveaxis(bias, -1, 0)
        dtype = layer.dtype_policy
        as_map = Shifted(value.tensor, bias)
        chain = [
            new,
            self.affine(
                as_map,
                new.compute_output_shape(shape),
                f"{layer.name}_bias",
                dtype,
            ),
        ]
        if core is not layer:
            name = self.names.unique(f"{layer.name}_maxout")
            axis = layer.maxout.axis
            chain.append(Maxout(layer.pieces, axis, name=name, dtype=dtype))
        regularizer = layer.activity_regularizer
        linear = layer.activation is keras.activations.linear
        if not activation and (regularizer is not None or not linear):
            name = self.names.unique(f"{layer.name}_activation")
            activation = [
                layers.Activation(
                    layer.activation,
                    activity_regularizer=regularizer,
                    name=name,
                    dtype=dtype,
                )
            ]
        return "bias map", [*chain, *activation]


def _obstacle(layer, values):
    """Why a layer does not absorb the shift of its inputs."""
    if type(layer) in LINEAR and (why := fixed_kernel(layer)):
        return f"'{layer.name}' {why}"
    if type(layer) in MERGING and len({value.scale for value in values}) > 1:
        return f"'{layer.name}' takes inputs of different scales"
    return f"'{layer.name}' (`{type(layer).__name__}`) follows"


def _parts(value):
    """The contents of a shift, in the words of a report."""
    return "beta" if value.scale == 1 else "beta and p"
