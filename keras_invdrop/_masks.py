"""Dropout masks and their scale, computed by a backend's own functions.

No other file of the library computes with them. `Backend` holds what all
backends compute alike. Its subclass for each backend draws the random numbers
and overrides the computations that run faster there in another way. The
functions below belong to the present backend.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ._checks import of_all_axes
from ._keras import random_functions


def mask_shape(noise_shape: Sequence | None, shape: tuple) -> tuple:
    """The shape of the mask for activities of shape `shape`.

    It is `noise_shape`, with the activities' size in the place of each None and
    1 for leading axes that it lacks.
    """
    if noise_shape is None:
        return shape
    noise_shape = of_all_axes(noise_shape, len(shape))
    return tuple(
        size if mask_size is None else mask_size
        for mask_size, size in zip(noise_shape, shape, strict=True)
    )


def keep_probability(rate: float) -> float:
    """The probability with which `dropout_mask` keeps an activity.

    It is exactly `1 - rate` where `rate` is a multiple of 1/256, such as 0.5
    and 0.25, and within 2^-16 of `1 - rate` otherwise. Only the rates 0 and 1
    give a probability of 1 or 0.
    """
    bits, dropped = _resolution(rate)
    return 1 - dropped / 2**bits


def _resolution(
    rate: float, widths: Sequence[int] = (8, 16)
) -> tuple[int, int]:
    """The number of bits per activity, and how many of their values drop it.

    The number is the first of `widths` that expresses the rate exactly, or the
    last of them.
    """
    for bits in widths:
        if (2**bits * rate).is_integer():
            return bits, int(2**bits * rate)
    return bits, min(max(round(2**bits * rate), 1), 2**bits - 1)


def seed_generator(seed: int | None) -> keras.random.SeedGenerator:
    """A `keras.random.SeedGenerator` from any integer, or from no seed.

    Keras takes only seeds that the backend can hold: no negative seed on JAX,
    none from 2^31 upwards on PyTorch. This function mixes them to 31 bits.
    """
    if seed is not None and not 0 <= seed < 2**31:
        mixed = np.random.SeedSequence((abs(seed), int(seed < 0)))
        seed = int(mixed.generate_state(1)[0]) >> 1
    return keras.random.SeedGenerator(seed)


class Backend:
    """The computations of the layers, as most backends do them."""

    # The number of bits in a random word.
    word = 32
    # The numbers of bits that an activity may take, the fewest first.
    widths: tuple[int, ...] = (1, 8, 16)
    # Whether operations of the traced graph draw, as in `drawn_by_graph`.
    in_graph = False
    # Whether layers can draw in a loop over time that the backend compiles.
    draws_in_loops = True

    def dropout_mask(
        self,
        shape: Sequence,
        rate: float,
        seed: keras.random.SeedGenerator,
        seeded: bool = True,
    ) -> Any:
        """Samples which activities are kept.

        An activity takes 8 bits of a random word if `rate` is a multiple of
        1/256, and 16 bits otherwise. A rate of 0.5 takes a single bit, except
        on TensorFlow. One word serves several activities of one example, never
        of two examples, so that a batch can be split over devices.

        Args:
            shape: Tuple of integers, or of scalar tensors for dimensions
                known only when the step runs. Shape of the mask, the examples
                first.
            rate: Float above 0 and below 1. Probability that an element is
                `False`; see `keep_probability` for its precision.
            seed: A `keras.random.SeedGenerator`, which is advanced by one
                draw.
            seeded: Whether `seed` has to determine the mask. If not, PyTorch
                draws the mask from its global generator, as it does for
                `keras.layers.Dropout`, and leaves `seed` as it is. Gradient
                checkpointing restores that generator before it computes a
                layer again, and a GPU draws the mask in one call, without
                the CPU waiting to read the seed from it.

        Returns:
            A boolean tensor of shape `shape`, `True` where the activity is
            kept: Bernoulli(keep_probability(rate)) elementwise.
        """
        if self.in_graph:
            return self._uniform_mask(shape, rate)
        return self._mask(shape, rate, seed.next())

    def _uniform_mask(self, shape, rate):
        drawn = keras.random.uniform(shape, dtype="float32")
        return drawn < keep_probability(rate)

    def _mask(self, shape, rate, key):
        bits, dropped = _resolution(rate, self.widths)
        examples, *sizes = shape
        size = math.prod(sizes)
        in_word = self.word // bits
        words = (size + in_word - 1) // in_word
        if bits == 1:
            kept = self._bits((examples, words), key)
        else:
            # Every backend can compare signed integers.
            fields = self._fields((examples, words), bits, key)
            kept = fields >= dropped - 2 ** (bits - 1)
        if not isinstance(size, int) or size % in_word:
            kept = ops.reshape(kept, (examples, words * in_word))[:, :size]
        return ops.reshape(kept, shape)

    def _bits(self, shape, key):
        """The bits of random words of shape `shape`, as booleans."""
        raise NotImplementedError

    def _fields(self, shape, bits, key):
        """Random words of shape `shape`, as integers of `bits` bits."""
        raise NotImplementedError

    @contextlib.contextmanager
    def drawn_by_graph(self, numbered: bool) -> Iterator[None]:
        """Has every run of a graph that is traced meanwhile draw new masks.

        Random operations of the graph draw, in layers of Keras and of this
        library alike, and the seeds of the layers have no effect. The whole
        process draws in this way meanwhile.

        Args:
            numbered: Whether each operation of TensorFlow has its number as
                its seed. Without one the operations have no seed.
        """
        numbers = itertools.count(1) if numbered else itertools.repeat(0)

        def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
            drawn = self._drawn(shape, next(numbers), normal=False)
            return ops.cast(
                minval + (maxval - minval) * drawn,
                dtype or keras.config.floatx(),
            )

        def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
            drawn = self._drawn(shape, next(numbers), normal=True)
            return ops.cast(
                mean + stddev * drawn, dtype or keras.config.floatx()
            )

        def dropout(inputs, rate, noise_shape=None, seed=None):
            kept = 1 - rate
            shape = mask_shape(noise_shape, ops.shape(inputs))
            mask = uniform(shape, dtype="float32") < kept
            return ops.where(mask, inputs / kept, 0)

        with contextlib.ExitStack() as stack:
            for function in (uniform, normal, dropout):
                name = function.__name__
                before = getattr(random_functions, name)
                stack.callback(setattr, random_functions, name, before)
                setattr(random_functions, name, function)
            stack.callback(setattr, self, "in_graph", False)
            self.in_graph = True
            yield

    def _drawn(self, shape, number, normal):
        """Float32 values, uniform in [0, 1) or normal, drawn by the graph."""
        raise NotImplementedError

    def uniform(
        self,
        shape: Sequence,
        seed: keras.random.SeedGenerator,
        seeded: bool = True,
    ) -> Any:
        """Float32 values in [0, 1); see `dropout_mask` for the seeds."""
        return keras.random.uniform(shape, dtype="float32", seed=seed)

    def check_first_pass(self, layer: keras.Layer, otherwise: str) -> None:
        """Raises an error if PyTorch recomputes a layer for the backward pass.

        Gradient checkpointing recomputes the activities that it did not keep,
        and relies on the second pass giving the same values.

        Args:
            layer: A layer whose second pass would give other values.
            otherwise: How the second pass differs, and how to avoid it.
        """

    def scaled_sum(self, x: Any, shift: Any, scale: float) -> Any:
        """`scale * (x + shift)`, in one pass over `x` if possible.

        Args:
            x: Float tensor.
            shift: Float tensor that broadcasts to `x`, usually a smaller one.
            scale: Float.

        Returns:
            A tensor of the shape of `x`.
        """
        # Compilers fuse the two operations into one pass.
        return (x + shift) * scale

    def selected(self, mask: Any, x: Any) -> Any:
        """`x` where `mask` is true, and 0 elsewhere, even if `x` is NaN there.

        Args:
            mask: Boolean tensor that broadcasts to `x`.
            x: Float tensor.

        Returns:
            A tensor of the shape of `x`. Where the mask is false, the gradient
            is 0, too. Only the mask is kept for the backward pass.
        """
        return ops.where(mask, x, 0)


BACKEND = Backend()

if keras.backend.backend() == "jax":
    import jax

    class JAX(Backend):
        draws_in_loops = False

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
        # With words of 32 bits and a mask that is used twice, XLA computes the
        # generator's rounds again and again.
        word = 64
        # Unpacking single bits would cost the time that drawing them saves.
        widths = (8, 16)

        def _fields(self, shape, bits, key):
            words = tf.random.stateless_uniform(
                shape,
                tf.cast(key, "int32"),  # XLA takes no other type
                minval=None,
                maxval=None,
                dtype="int64",
            )
            return tf.bitcast(words, f"int{bits}")

        def _drawn(self, shape, number, normal):
            # `tf.random` would take the seed of `keras.utils.set_random_seed`.
            draw = tf.raw_ops.RandomStandardNormal
            if not normal:
                draw = tf.raw_ops.RandomUniform
            shape = tf.convert_to_tensor(shape, "int32")
            return draw(shape=shape, dtype="float32", seed=0, seed2=number)

    BACKEND = TensorFlow()

elif keras.backend.backend() == "torch":
    import torch

    class PyTorch(Backend):
        def dropout_mask(self, shape, rate, seed, seeded=True):
            if self.in_graph:
                return self._uniform_mask(shape, rate)
            state, keep = seed.state.value, keep_probability(rate)
            if not seeded and state.is_cuda:
                mask = torch.empty(shape, dtype=torch.bool, device=state.device)
                return mask.bernoulli_(keep)
            key = self._key(seed, seeded)
            if not seeded and torch._C._functorch.is_functorch_wrapped_tensor(
                key
            ):
                # `torch.vmap` may require a mask for each element.
                return torch.rand(shape) < keep
            return self._mask(shape, rate, key)

        @torch._dynamo.disable
        def _key(self, seed, seeded):
            if seeded or not seed.state.value.is_cpu:
                return seed.next()
            return torch.randint(2**32, (2,), device="cpu")

        # TorchDynamo cannot trace random generators.
        @torch._dynamo.disable
        def _bits(self, shape, key):
            if key.device.type == "cpu":
                words = self._words_of_numpy(shape, key)
                bits = np.unpackbits(words.view("uint8"))
                return torch.from_numpy(bits).view(torch.bool)
            # A GPU draws more words faster than it unpacks their bits.
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
            # Mix the entropy, so that neighbouring seeds and draws start
            # unrelated generators.
            mixed = np.random.SeedSequence(self._entropy(key)).generate_state(1)
            generator = torch.Generator(device).manual_seed(int(mixed[0]))
            return words.random_(-(2**31), 2**31, generator=generator)

        def _words_of_numpy(self, shape, key):
            # On a CPU this takes a third of the time of torch's generator.
            size = math.prod(shape)
            generator = np.random.SFC64(self._entropy(key))
            raw = generator.random_raw((size + 1) // 2)
            return raw.view("int32")[:size].reshape(shape)

        def _entropy(self, key):
            # The states of Keras' generators may be negative. Tensors of
            # `torch.func` have no `tolist`.
            return [int(word) % 2**32 for word in key]

        def _drawn(self, shape, number, normal):
            draw = torch.randn if normal else torch.rand
            device = ops.zeros(()).device  # "meta" where Keras infers shapes
            return draw(tuple(shape), dtype=torch.float32, device=device)

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
            # In 16 bits a small sum would show the rounding of
            # `shift * scale`, or its overflow to infinity.
            if x.element_size() <= 2:
                return super().scaled_sum(x, shift, scale)
            shift = ops.convert_to_tensor(shift) * scale
            return torch.add(shift, x, alpha=scale)

        def selected(self, mask, x):
            if (
                x.is_cpu
                and mask.shape == x.shape
                and not (self.in_graph or torch.compiler.is_compiling())
            ):
                return _Selected.apply(x, mask)
            # `ops.where` would first copy the zero to the GPU.
            return torch.where(mask, x, 0)

    class _Selected(torch.autograd.Function):
        """`torch.where(mask, x, 0)` as a bitwise and, faster on a CPU."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x, mask):
            integer = getattr(torch, f"int{8 * x.element_size()}")
            try:
                # Turn each boolean into an integer of all ones or zeros.
                ones = mask.view(torch.int8).neg().to(integer)
                return ones.bitwise_and_(x.view(integer)).view(x.dtype)
            except RuntimeError:  # Tensors under vmap cannot be viewed as bits.
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
drawn_by_graph = BACKEND.drawn_by_graph
draws_in_loops = BACKEND.draws_in_loops
dropout_mask = BACKEND.dropout_mask
scaled_sum = BACKEND.scaled_sum
selected = BACKEND.selected
uniform = BACKEND.uniform


def check_first_draw(layer: keras.Layer) -> None:
    """`check_first_pass` for a layer that draws from its seed."""
    check_first_pass(
        layer,
        "it would draw other numbers from its seed. Make it without a seed: "
        "then they come from PyTorch's own generator, which checkpointing "
        "restores, and `keras.utils.set_random_seed` makes them repeatable. "
        f"Received: seed={layer.seed}",
    )
