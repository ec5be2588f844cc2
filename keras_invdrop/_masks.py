"""Dropout masks and their scale. The only file that may name a backend.

`Backend` has what every backend computes in the same way. A subclass for each
of them draws the random numbers, and overrides what that backend does faster
in a way of its own. The functions at the end are those of the present one.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


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


def _resolution(
    rate: float, widths: Sequence[int] = (8, 16)
) -> tuple[int, int]:
    """The bits that decide on an activity, and how many values drop it.

    Of the `widths`, it is the first that has the rate exactly, or the last.
    """
    for bits in widths:
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


class Backend:
    """What the layers compute, in the way that suits most backends."""

    # Bits that are drawn at once.
    word = 32
    # Bits that may decide on an activity, the fewest first.
    widths: tuple[int, ...] = (1, 8, 16)

    def dropout_mask(
        self,
        shape: Sequence,
        rate: float,
        seed: keras.random.SeedGenerator,
        seeded: bool = True,
    ) -> Any:
        """Samples which activities are kept.

        An activity takes 8 bits of a random word where `rate` is a multiple
        of 1/256, and 16 otherwise; one bit for 0.5, but on TensorFlow. One
        word serves several activities of an example, never of two examples,
        so that a batch can be split over devices.

        Args:
            shape: Tuple of integers (or, for a dimension that is only known
                when the step runs, scalar tensors). Shape of the mask, the
                examples first.
            rate: Float between 0 and 1, neither of them. Probability that an
                element is `False`; see `keep_probability` for how exactly.
            seed: A `keras.random.SeedGenerator`, which is advanced by one
                draw.
            seeded: Whether the mask has to be that of `seed`. Where not,
                PyTorch takes it from its global generator, as for
                `keras.layers.Dropout`, and leaves `seed` as it is. Gradient
                checkpointing restores that generator before it computes a
                layer again; and a GPU draws the mask in one call, without
                waiting for it to tell the seed.

        Returns:
            A boolean tensor of shape `shape`, `True` where the activity is
            kept: Bernoulli(keep_probability(rate)) elementwise.
        """
        return self._mask(shape, rate, seed.next())

    def _mask(self, shape, rate, key):
        bits, dropped = _resolution(rate, self.widths)
        examples, *sizes = shape
        size = math.prod(sizes)
        in_word = self.word // bits
        words = (size + in_word - 1) // in_word
        if bits == 1:
            kept = self._bits((examples, words), key)
        else:
            # As signed integers, which every backend can compare.
            fields = self._fields((examples, words), bits, key)
            kept = fields >= dropped - 2 ** (bits - 1)
        if not isinstance(size, int) or size % in_word:
            kept = ops.reshape(kept, (examples, words * in_word))[:, :size]
        return ops.reshape(kept, shape)

    def _bits(self, shape, key):
        """Random words of this shape as booleans, in any shape."""
        raise NotImplementedError

    def _fields(self, shape, bits, key):
        """Random words of this shape as integers of so many bits."""
        raise NotImplementedError

    def uniform(
        self,
        shape: Sequence,
        seed: keras.random.SeedGenerator,
        seeded: bool = True,
    ) -> Any:
        """Float32s between 0 and 1; see `dropout_mask` for the seeds."""
        return keras.random.uniform(shape, dtype="float32", seed=seed)

    def check_first_pass(self, layer: keras.Layer, otherwise: str) -> None:
        """Raises where PyTorch computes a layer again in the backward pass.

        There gradient checkpointing computes what it has not kept, and relies
        on getting the same again.

        Args:
            layer: The layer, of which a second pass would give something
                else.
            otherwise: What that is, and the way out.
        """

    def scaled_sum(self, x: Any, shift: Any, scale: float) -> Any:
        """`scale * (x + shift)`, in one pass over `x` where possible.

        Args:
            x: Float tensor.
            shift: Float tensor that broadcasts to `x`, usually a smaller one.
            scale: Float.

        Returns:
            A tensor of the shape of `x`.
        """
        # Compilers make one pass of the two.
        return (x + shift) * scale

    def selected(self, mask: Any, x: Any) -> Any:
        """`x` where `mask` is true, else 0, whatever `x` is there.

        Args:
            mask: Boolean tensor that broadcasts to `x`.
            x: Float tensor.

        Returns:
            A tensor of the shape of `x`. Where the mask is false its gradient
            is 0, too. The mask is all that is kept for the backward pass.
        """
        return ops.where(mask, x, 0)


BACKEND = Backend()

if keras.backend.backend() == "jax":
    import jax

    class JAX(Backend):
        def _bits(self, shape, key):
            words = jax.random.bits(key, shape, "uint32")
            shifted = words[..., None] >> jax.numpy.arange(
                self.word, dtype="uint32"
            )
            return (shifted & 1) == 1

        def _fields(self, shape, bits, key):
            words = jax.random.bits(key, shape, "uint32")
            return jax.lax.bitcast_convert_type(words, f"int{bits}")

    BACKEND = JAX()

elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    class TensorFlow(Backend):
        # Where XLA draws words of 32 bits for TensorFlow and a mask is used
        # twice, it computes the generator's rounds over and over.
        word = 64
        # What drawing single bits saves, taking them apart would lose.
        widths = (8, 16)

        def _fields(self, shape, bits, key):
            words = tf.random.stateless_uniform(
                shape,
                tf.cast(key, "int32"),  # XLA takes no other
                minval=None,
                maxval=None,
                dtype="int64",
            )
            return tf.bitcast(words, f"int{bits}")

    BACKEND = TensorFlow()

elif keras.backend.backend() == "torch":
    import torch

    class PyTorch(Backend):
        def dropout_mask(self, shape, rate, seed, seeded=True):
            state, keep = seed.state.value, keep_probability(rate)
            if not seeded and state.is_cuda:
                mask = torch.empty(shape, dtype=torch.bool, device=state.device)
                return mask.bernoulli_(keep)
            key = self._key(seed, seeded)
            if not seeded and torch._C._functorch.is_functorch_wrapped_tensor(
                key
            ):
                # `torch.vmap` may ask for a mask for each element.
                return torch.rand(shape) < keep
            return self._mask(shape, rate, key)

        @torch._dynamo.disable
        def _key(self, seed, seeded):
            if seeded or not seed.state.value.is_cpu:
                return seed.next()
            return torch.randint(2**32, (2,), device="cpu")

        # TorchDynamo knows no generators.
        @torch._dynamo.disable
        def _bits(self, shape, key):
            if key.device.type == "cpu":
                words = self._words_of_numpy(shape, key)
                bits = np.unpackbits(words.view("uint8"))
                return torch.from_numpy(bits).view(torch.bool)
            # On a GPU taking words apart takes longer than drawing more.
            examples, words = shape
            return self._fields((examples, 8 * words), 8, key) < 0

        @torch._dynamo.disable
        def _fields(self, shape, bits, key):
            return self._words(shape, key).view(getattr(torch, f"int{bits}"))

        def _words(self, shape, key):
            device = key.device
            if device.type == "cpu":
                return torch.from_numpy(self._words_of_numpy(shape, key))
            words = torch.empty(shape, dtype=torch.int32, device=device)
            if device.type == "meta":
                return words
            # Of neighbouring seeds and draws, seeds that have nothing to do
            # with each other.
            mixed = np.random.SeedSequence(self._entropy(key)).generate_state(1)
            generator = torch.Generator(device).manual_seed(int(mixed[0]))
            return words.random_(-(2**31), 2**31, generator=generator)

        def _words_of_numpy(self, shape, key):
            # A third of the time that torch's generator takes on a CPU.
            size = math.prod(shape)
            generator = np.random.SFC64(self._entropy(key))
            raw = generator.random_raw((size + 1) // 2)
            return raw.view("int32")[:size].reshape(shape)

        def _entropy(self, key):
            # States of Keras' generators may be negative. Not `tolist`, which
            # the tensors of `torch.func` do not have.
            return [int(word) % 2**32 for word in key]

        def uniform(self, shape, seed, seeded=True):
            if seeded:
                return super().uniform(shape, seed)
            return torch.rand(shape, device=seed.state.value.device)

        def check_first_pass(self, layer, otherwise):
            if self._is_in_backward_pass():
                raise RuntimeError(
                    f"Layer '{layer.name}' is computed again in the backward "
                    f"pass, by gradient checkpointing. There {otherwise}"
                )

        @torch._dynamo.disable
        def _is_in_backward_pass(self):
            return torch._C._current_graph_task_id() != -1

        def scaled_sum(self, x, shift, scale):
            # In 16 bits the rounding of `shift * scale`, or its infinity,
            # would show where the sum is small.
            if x.element_size() <= 2:
                return super().scaled_sum(x, shift, scale)
            shift = ops.convert_to_tensor(shift) * scale
            return torch.add(shift, x, alpha=scale)

        def selected(self, mask, x):
            if (
                x.is_cpu
                and mask.shape == x.shape
                and not torch.compiler.is_compiling()
            ):
                return _Selected.apply(x, mask)
            # Keras would bring the zero to the GPU first.
            return torch.where(mask, x, 0)

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

    BACKEND = PyTorch()

check_first_pass = BACKEND.check_first_pass
dropout_mask = BACKEND.dropout_mask
scaled_sum = BACKEND.scaled_sum
selected = BACKEND.selected
uniform = BACKEND.uniform
