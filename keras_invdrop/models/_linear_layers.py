"""Layers that are linear in their input, and their response to a shift."""

import keras
import numpy as np
from keras import layers
from keras import ops

from .._checks import channel_axis
from ..layers.locally_connected2d import LocallyConnected2D
from ..layers.maxout_conv2d import MaxoutConv2D
from ..layers.maxout_dense import MaxoutDense

# Convolutions that treat every position alike, except for padding.
CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)
# Layers that are linear in their input, except for their bias and activation.
# Match exact types; subclasses may override `call`.
LINEAR = (
    layers.Dense,
    layers.EinsumDense,
    LocallyConnected2D,
    MaxoutConv2D,
    MaxoutDense,
    *CONVOLUTIONS,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)


# How the names of settings end whose values are objects.
OF_WEIGHTS = "_initializer", "_regularizer", "_constraint"


def core_of(layer):
    """The layer that holds the kernel and the bias of `layer`."""
    if isinstance(layer, MaxoutDense):
        return layer.dense
    return layer.conv if isinstance(layer, MaxoutConv2D) else layer


def kernels_of(core):
    """The weights of a layer with a kernel, without its bias.

    The activation of a layer may be a layer with weights of its own.
    """
    others = [core.bias]
    if isinstance(core.activation, keras.Layer):
        others += core.activation.weights
    left_out = {id(weight) for weight in others}
    return [array(x) for x in core.weights if id(x) not in left_out]


def fixed_kernel(layer):
    """Why the kernel of a layer in `LINEAR` cannot change, or None."""
    core = core_of(layer)
    if getattr(core, "quantization_mode", None) is not None:
        return "is quantized"
    if getattr(core, "lora_enabled", False):
        return "has a low-rank update"
    return None


def array(weight):
    """A weight or another tensor in double precision."""
    return ops.convert_to_numpy(weight).astype("float64")


def as_bias(array, shape):
    """Turns an array of the shape of an output into a bias of `shape`.

    The bias may have fewer axes. Returns None if the array varies along an
    axis along which the bias is constant.
    """
    full = (1,) * (array.ndim - len(shape)) + tuple(shape)
    if any(n not in (1, m) for n, m in zip(array.shape, full, strict=True)):
        return None
    return np.broadcast_to(array, full).reshape(shape)


def finest_dtype():
    """The most precise dtype of the backend.

    This is float64, or float32 on JAX unless `jax_enable_x64` is set.
    """
    return keras.backend.standardize_dtype(
        ops.convert_to_tensor(np.zeros(1)).dtype
    )


def evaluated(layer, shift, shape):
    """The output of `layer` for a shift, broadcast to `shape` without batch."""
    x = np.broadcast_to(shift, shape).astype(layer.dtype)
    return array(layer(x[None], training=False))[0]


def settings_of(layer):
    """The arguments that would create a layer like `layer`.

    Unlike a config they have the functions and objects of the layer themselves,
    which need not be registered, or have a config of their own.
    """
    bare = object.__new__(type(layer))
    vars(bare).update(vars(layer))
    for name in vars(layer):
        if name.endswith(OF_WEIGHTS):
            vars(bare)[name] = None
        elif name == "activation":
            vars(bare)[name] = keras.activations.linear
    settings = bare.get_config()
    # The config of a layer without an `activity_regularizer` may lack the key.
    for name in {*settings, "activity_regularizer"}:
        if name.endswith(OF_WEIGHTS) or name == "activation":
            holder = layer if hasattr(layer, name) else core_of(layer)
            settings[name] = getattr(holder, name)
    return settings


def without_bias(layer, **changes):
    """A layer like `layer` with no bias and no activation function."""
    nothing = dict.fromkeys(("activation", "activity_regularizer"))
    config = {**settings_of(layer), **nothing, **changes}
    for lora in ("lora_rank", "lora_alpha"):
        # `layer.kernel` already includes the low-rank update.
        config.pop(lora, None)
    if isinstance(layer, layers.EinsumDense):
        config["bias_axes"] = None
    else:
        config["use_bias"] = False
    return type(layer).from_config(config)


def response_to(shift, layer, kernels, input_shape):
    """The output of `layer`, without its bias, for a shift as its input.

    Args:
        shift: Array of the shape of one example, with size 1 on each axis
            along which the shift is constant.
        layer: A layer of one of the classes in `LINEAR`, with its own kernel.
        kernels: The weights of the layer without the bias.
        input_shape: The shape of the input of the layer, `(batch, ...)`.

    Returns:
        Array of the shape of one output in channels_last, with size 1 on each
        axis along which the output is known to be constant. None if the
        output depends on a size that is not fixed.
    """
    shape = _probe_shape(layer, shift, input_shape)
    if None in shape:
        return None
    shift, changes = np.broadcast_to(shift, shape), {"dtype": finest_dtype()}
    if getattr(layer, "data_format", None) == "channels_first":
        # On CPUs TensorFlow computes most convolutions only in channels_last.
        shift = np.moveaxis(shift, 0, -1)
        input_shape = (input_shape[0], *input_shape[2:], input_shape[1])
        changes["data_format"] = "channels_last"
    twin = without_bias(layer, **changes)
    twin.build(input_shape)
    twin.set_weights(kernels)
    return evaluated(twin, shift, shift.shape)


def _probe_shape(layer, shift, input_shape):
    """The smallest shape of a shift, without batch, that shows its response.

    If the shift is constant along an axis and the layer treats every position
    alike, one position is enough; for a convolution, one window.
    """
    shape = list(shift.shape)
    for axis, n in enumerate(shape, start=1):
        if n == 1:
            window = _window(layer, axis, len(input_shape))
            shape[axis - 1] = input_shape[axis] if window is None else window
    return shape


def with_bias(layer, bias):
    """The settings with which `layer` can hold `bias`, or None.

    `bias` has the shape of an output in channels_last, with size 1 where it
    is constant.
    """
    if isinstance(layer, layers.EinsumDense):
        output = layer.equation.split("->")[1]
        labels = _labels(output, bias.ndim + 1)[1:]
        axes = {x for x, n in zip(labels, bias.shape, strict=True) if n > 1}
        named = output.replace("...", "")
        axes |= set(layer.bias_axes or named[-1])
        if not axes <= set(named):
            return None
        return {"bias_axes": "".join(x for x in output if x in axes)}
    if isinstance(layer, LocallyConnected2D) or bias.size == bias.shape[-1]:
        return {"use_bias": True}
    return None


def sizes_from(bias, layer):
    """The settings that fill in the sizes that `layer` leaves open.

    An `EinsumDense` may have an `output_shape` with None, which suits no bias
    along that axis.

    Args:
        bias: As in `with_bias`.
        layer: A layer of one of the classes in `LINEAR`.
    """
    if not isinstance(layer, layers.EinsumDense):
        return {}
    given = layer.partial_output_shape
    elided = layer.equation.split("->")[1].startswith("...")
    first = bias.ndim - len(given) if elided else 0
    known = bias.shape[first : first + len(given)]
    return {
        "output_shape": tuple(
            n if size is None and n > 1 else size
            for size, n in zip(given, known, strict=True)
        )
    }


def _window(layer, axis, rank):
    """The number of positions along `axis` on which one output depends.

    None if the output of `layer` depends on its own position or on all
    positions.
    """
    if isinstance(layer, layers.Dense):
        return None if axis == rank - 1 else 1
    if isinstance(layer, layers.EinsumDense):
        given, output = layer.equation.split("->")
        given, kernel = given.split(",")
        label = _labels(given, rank)[axis]
        return None if label in kernel or label not in output else 1
    if type(layer) not in CONVOLUTIONS:
        return None
    channels = channel_axis(layer.data_format, rank)
    if axis == channels:
        return None
    place = axis - 1 if axis < channels else axis - 2
    size = layer.kernel_size[place]
    if layer.padding != "valid" and size > 1:
        return None
    return (size - 1) * layer.dilation_rate[place] + 1


def _labels(subscripts, rank):
    """The label of each axis; axes under an ellipsis get the label "..."."""
    before, dots, after = subscripts.partition("...")
    missing = rank - len(before) - len(after)
    return [*before, *[dots] * missing, *after]
