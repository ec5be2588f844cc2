"""Dropout masks and their scale. The only file that may name a backend."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()
if BACKEND == "jax":
    import jax
elif BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "torch":
    import torch

# Bits that are drawn at once. Where XLA draws words of 32 for TensorFlow and a
# mask is used twice, it computes the generator's rounds over and over.
WORD = 64 if BACKEND == "tensorflow" else 32

# Bits for an activity, where they have the rate exactly: coarse, fine. What
# TensorFlow saves by drawing single bits, it loses by taking them apart.
BITS = (8, 16) if BACKEND == "tensorflow" else (1, 8, 16)


def mask_shape(noise_shape: Sequence | None, shape: tuple) -> tuple:
    """The shape of the mask for activities of shape `shape`.

    It is `noise_shape`, with the size of the activities where that is None.
    """
    if noise_shape is None:
        return shape
    return tuple(
        size if mask_size is None else mask_size
        for mask_size, size in zip(noise_shape, shape, strict=True)
    )


def keep_probability(rate: float) -> float:
    """The probability with which `dropout_mask` keeps an activity.

    It is `1 - rate`, exactly where `rate` is a multiple of 1/256, such as 0.5
    and 0.25, and else to within 2^-16. No rate but 0 and 1 is rounded to
    certainty.
    """
    bits, dropped = _resolution(rate)
    return 1 - dropped / 2**bits


def _resolution(rate: float) -> tuple[int, int]:
    """The bits that decide on an activity, and how many values drop it."""
    for bits in BITS:
        if (2**bits * rate).is_integer():
            return bits, int(2**bits * rate)
    return bits, min(max(round(2**bits * rate), 1), 2**bits - 1)


def seed_generator(seed: int | None) -> keras.random.SeedGenerator:
    """A `keras.random.SeedGenerator` from any integer, or a new one.

    Those of Keras take what the backend can hold: no negative seed on JAX,
    none from 2^31 on PyTorch. Here such a seed is mixed down to 31 bits.
    """
    if seed is not None and not 0 <= seed < 2**31:
        mixed = np.random.SeedSequence((abs(seed), int(seed < 0)))
        seed = int(mixed.generate_state(1)[0]) >> 1
    return keras.random.SeedGenerator(seed)


def dropout_mask(
    shape: Sequence,
    rate: float,
    seed: keras.random.SeedGenerator,
    seeded: bool = True,
) -> Any:
    """Samples which activities are kept.

    An activity takes 8 bits of a random word where `rate` is a multiple of
    1/256, and 16 otherwise; one bit for 0.5, but on TensorFlow. One word
    serves several activities of an example, never of two examples, so that a
    batch can be split over devices.

    Args:
        shape: Tuple of integers (or, for a dimension that is only known when
            the step runs, scalar tensors). Shape of the mask, the examples
            first.
        rate: Float between 0 and 1, neither of them. Probability that an
            element is `False`; see `keep_probability` for how exactly.
        seed: A `keras.random.SeedGenerator`, which is advanced by one draw.
        seeded: Whether the mask has to be that of `seed`. Where not, PyTorch
            takes it from its global generator, as for `keras.layers.Dropout`,
            and leaves `seed` as it is. Gradient checkpointing restores that
            generator before it computes a layer again; and a GPU draws the
            mask in one call, without waiting for it to tell the seed.

    Returns:
        A boolean tensor of shape `shape`, `True` where the activity is kept:
        Bernoulli(keep_probability(rate)) elementwise.
    """
    if BACKEND == "torch" and not seeded and seed.state.value.is_cuda:
        device = seed.state.value.device
        mask = torch.empty(shape, dtype=torch.bool, device=device)
        return mask.bernoulli_(keep_probability(rate))
    drawn = _next_seed(seed, seeded)
    if not seeded and _is_transformed(drawn):
        # `torch.vmap` may ask for a mask for each element.
        return torch.rand(shape) < keep_probability(rate)
    bits, dropped = _resolution(rate)
    examples, *sizes = shape
    size = math.prod(sizes)
    in_word = WORD // bits
    words = (size + in_word - 1) // in_word
    if bits == 1:
        kept = _random_bits((examples, words), drawn)
    else:
        # As signed integers, which every backend can compare.
        fields = _random_fields((examples, words), bits, drawn)
        kept = fields >= dropped - 2 ** (bits - 1)
    if not isinstance(size, int) or size % in_word:
        kept = ops.reshape(kept, (examples, words * in_word))[:, :size]
    return ops.reshape(kept, shape)


def uniform(
    shape: Sequence,
    seed: keras.random.SeedGenerator,
    seeded: bool = True,
) -> Any:
    """Samples float32s between 0 and 1; see `dropout_mask` for the seeds."""
    if BACKEND == "torch" and not seeded:
        return torch.rand(shape, device=seed.state.value.device)
    return keras.random.uniform(shape, dtype="float32", seed=seed)


def check_first_pass(layer: keras.Layer, otherwise: str) -> None:
    """Raises where PyTorch computes a layer again in the backward pass.

    There gradient checkpointing computes what it has not kept, and relies on
    getting the same again.

    Args:
        layer: The layer, of which a second pass would give something else.
        otherwise: What that is, and the way out.
    """
    if BACKEND == "torch" and _in_backward_pass():
        raise RuntimeError(
            f"Layer '{layer.name}' is computed again in the backward pass, by "
            f"gradient checkpointing. There {otherwise}"
        )


def scaled_sum(x: Any, shift: Any, scale: float) -> Any:
    """`scale * (x + shift)`, in one pass over `x` where the backend allows.

    Args:
        x: Float tensor.
        shift: Float tensor that broadcasts to `x`, usually a smaller one.
        scale: Float.

    Returns:
        A tensor of the shape of `x`.
    """
    # In 16 bits the rounding of `shift * scale`, or its infinity, would show
    # where the sum is small.
    if BACKEND == "torch" and x.element_size() > 2:
        return torch.add(ops.convert_to_tensor(shift) * scale, x, alpha=scale)
    # Compilers make one pass of the two.
    return (x + shift) * scale


def selected(mask: Any, x: Any) -> Any:
    """`x` where `mask` is true, else 0, whatever `x` is there.

    Args:
        mask: Boolean tensor that broadcasts to `x`.
        x: Float tensor.

    Returns:
        A tensor of the shape of `x`. Where the mask is false its gradient is
        0, too. The mask is all that is kept for the backward pass.
    """
    if BACKEND != "torch":
        return ops.where(mask, x, 0)
    if x.is_cpu and mask.shape == x.shape and not torch.compiler.is_compiling():
        return _Selected.apply(x, mask)
    # Keras would bring the zero to the GPU first.
    return torch.where(mask, x, 0)


if BACKEND != "torch":

    def _next_seed(seed, seeded):
        return seed.next()

    def _is_transformed(tensor):
        return False


if BACKEND == "jax":

    def _random_fields(shape, bits, seed):
        words = jax.random.bits(seed, shape, "uint32")
        return jax.lax.bitcast_convert_type(words, f"int{bits}")

    def _random_bits(shape, seed):
        words = jax.random.bits(seed, shape, "uint32")
        shifted = words[..., None] >> jax.numpy.arange(WORD, dtype="uint32")
        return (shifted & 1) == 1

elif BACKEND == "tensorflow":

    def _random_fields(shape, bits, seed):
        words = tf.random.stateless_uniform(
            shape,
            tf.cast(seed, "int32"),  # XLA takes no other
            minval=None,
            maxval=None,
            dtype="int64",
        )
        return tf.bitcast(words, f"int{bits}")

elif BACKEND == "torch":
    _is_transformed = torch._C._functorch.is_functorch_wrapped_tensor

    @torch._dynamo.disable
    def _in_backward_pass():
        return torch._C._current_graph_task_id() != -1

    @torch._dynamo.disable
    def _next_seed(seed, seeded):
        if seeded or not seed.state.value.is_cpu:
            return seed.next()
        return torch.randint(2**32, (2,), device="cpu")

    def _random_words(shape, seed):
        device = seed.device
        if device.type == "meta":
            return torch.empty(shape, dtype=torch.int32, device=device)
        if device.type == "cpu":
            return torch.from_numpy(_words_of_numpy(shape, seed))
        # Of neighbouring seeds and draws, seeds that have nothing to do with
        # each other.
        mixed = np.random.SeedSequence(_entropy(seed)).generate_state(1)
        generator = torch.Generator(device).manual_seed(int(mixed[0]))
        words = torch.empty(shape, dtype=torch.int32, device=device)
        return words.random_(-(2**31), 2**31, generator=generator)

    def _words_of_numpy(shape, seed):
        # A third of the time that torch's generator takes on a CPU.
        size = math.prod(shape)
        raw = np.random.SFC64(_entropy(seed)).random_raw((size + 1) // 2)
        return raw.view("int32")[:size].reshape(shape)

    def _entropy(seed):
        # States of Keras' generators may be negative. Not `tolist`, which the
        # tensors of `torch.func` do not have.
        return [int(word) % 2**32 for word in seed]

    # TorchDynamo knows no generators.
    @torch._dynamo.disable
    def _random_fields(shape, bits, seed):
        words = _random_words(shape, seed)
        return words.view(getattr(torch, f"int{bits}"))

    @torch._dynamo.disable
    def _random_bits(shape, seed):
        if seed.device.type == "cpu":
            bits = np.unpackbits(_words_of_numpy(shape, seed).view("uint8"))
            return torch.from_numpy(bits).view(torch.bool)
        # On a GPU it takes longer to take words apart than to draw more.
        examples, words = shape
        return _random_fields((examples, 8 * words), 8, seed) < 0

    class _Selected(torch.autograd.Function):
        """`torch.where(mask, x, 0)`, which is slow on a CPU, made of bits."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x, mask):
            integer = getattr(torch, f"int{8 * x.element_size()}")
            try:
                # All bits, or none.
                ones = mask.view(torch.int8).neg().to(integer)
                return ones.bitwise_and_(x.view(integer)).view(x.dtype)
            except RuntimeError:  # Vectorised, tensors have no view as bits.
                return torch.where(mask, x, 0)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[1])
            ctx.save_for_forward(inputs[1])

        @staticmethod
        def jvp(ctx, tangent, _):
            return _Selected.apply(tangent, *ctx.saved_tensors)

        @staticmethod
        def backward(ctx, gradient):
            return _Selected.apply(gradient, *ctx.saved_tensors), None
