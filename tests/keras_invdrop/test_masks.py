import math

import keras
import numpy as np
import pytest
from scipy import stats
from warm import Program

from keras_invdrop import InvariantDropout
from keras_invdrop._masks import dropout_mask
from keras_invdrop._masks import keep_probability
from keras_invdrop._masks import scaled_sum
from keras_invdrop._masks import selected

BACKEND = keras.backend.backend()
RATES = [0.001, 0.1, 0.2, 0.3, 0.5, 0.9]
RATES_OF_WIDTHS = [0.5, 0.25, 0.3]  # of 1 bit (8 on TensorFlow), 8 and 16


def mask(shape, rate, seed):
    if isinstance(seed, int):
        seed = keras.random.SeedGenerator(seed)
    return keras.ops.convert_to_numpy(dropout_mask(shape, rate, seed))


def assert_independent(first, second, keep):
    """A chi-square test of two masks, each with a known probability."""
    kinds = np.bincount(2 * first.ravel() + second.ravel(), minlength=4)
    expected = [(1 - keep) ** 2, (1 - keep) * keep, keep * (1 - keep), keep**2]
    test = stats.chisquare(kinds, np.array(expected) * first.size)
    assert test.pvalue > 1e-3


@pytest.fixture
def every_number(monkeypatch):
    """Makes the backend draw each 16-bit number, and so 8-bit, in turn."""
    numbers = np.arange(2**16, dtype="uint16")

    def drawn(shape, dtype):
        return np.resize(numbers.view(dtype), shape)

    if BACKEND == "jax":
        monkeypatch.setattr(
            "jax.random.bits",
            lambda key, shape, dtype: keras.ops.array(drawn(shape, dtype)),
        )
    elif BACKEND == "tensorflow":
        monkeypatch.setattr(
            "tensorflow.random.stateless_uniform",
            lambda shape, seed, minval, maxval, dtype: keras.ops.array(
                drawn(shape, dtype), dtype
            ),
        )
    else:

        class Numbers:
            def __init__(self, seed):
                pass

            def random_raw(self, size):
                return drawn(size, "uint64")

        monkeypatch.setattr(np.random, "SFC64", Numbers)


@pytest.mark.parametrize("rate", [*RATES, 1e-9, 1 - 1e-9, 1 / 256])
def test_the_fraction_of_kept_numbers_is_the_probability(rate, every_number):
    # A mask of 2^20 elements takes each 16-bit number equally often.
    kept = mask((1, 2**20), rate, 1)
    assert kept.sum() == 2**20 * keep_probability(rate)


@pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
def test_each_pattern_of_neighbours_is_as_frequent_as_it_should_be(rate):
    # A million patterns: words of 32 bits, where activities take 8 bits each.
    kept = mask((1000, 4000), rate, 1).reshape(-1, 4)
    patterns = np.bincount(kept @ [1, 2, 4, 8], minlength=16)
    keep = keep_probability(rate)
    of_pattern = [bin(pattern).count("1") for pattern in range(16)]
    expected = [keep**n * (1 - keep) ** (4 - n) for n in of_pattern]
    test = stats.chisquare(patterns, np.array(expected) * len(kept))
    assert test.pvalue > 1e-3


@pytest.mark.parametrize("rate", [*RATES, 1e-9, 1 - 1e-9, 1 / 256])
def test_probability_is_the_one_asked_for(rate):
    keep = keep_probability(rate)
    assert 0 < keep < 1
    assert abs(keep - (1 - rate)) < 2**-16


@pytest.mark.parametrize("rate", [0.5, 0.25, 255 / 256])
def test_rates_of_8_bits_are_exact(rate):
    assert keep_probability(rate) == 1 - rate


def test_certain_rates_stay_certain():
    assert keep_probability(0.0) == 1
    assert keep_probability(1.0) == 0


@pytest.mark.parametrize("floatx", ["bfloat16", "float16"])
def test_small_rates_under_every_dtype_policy(floatx):
    keras.config.set_floatx(floatx)
    try:
        kept = mask((1000, 1000), 0.001, 1)
    finally:
        keras.config.set_floatx("float32")
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, mask((1000, 1000), 0.001, 1))


@pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("apart", [1, 2, 3, 4, 8, 32])
def test_neighbours_are_independent(rate, axis, apart):
    # Along the last axis, including elements that share a word.
    kept = np.moveaxis(mask((96, 112, 128), rate, 2), axis, 0)
    kept = kept[: len(kept) // (2 * apart) * 2 * apart]
    first, second = np.moveaxis(
        kept.reshape(-1, 2, apart, *kept.shape[1:]), 1, 0
    )
    assert_independent(first, second, keep_probability(rate))


@pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
@pytest.mark.parametrize("apart", [1, 2, 17])
def test_draws_and_seeds_are_independent(rate, apart):
    shape, keep = (1000, 1000), keep_probability(rate)
    generator = keras.random.SeedGenerator(3)
    draws = [mask(shape, rate, generator) for _ in range(apart + 1)]
    other = mask(shape, rate, 3 + apart)
    assert_independent(draws[0], draws[apart], keep)
    assert_independent(draws[0], other, keep)
    # No generator lags some draws behind another.
    assert_independent(draws[apart], other, keep)


def test_the_same_seed_repeats():
    first, again = (keras.random.SeedGenerator(4) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(
            mask((50, 50), 0.5, first), mask((50, 50), 0.5, again)
        )


@pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
@pytest.mark.parametrize(
    "shape",
    [(1000,), (1000, 1), (300, 1, 1, 3), (40, 5, 7), (10, 3, 3, 17), (0, 5)],
)
def test_any_shape(shape, rate):
    kept = mask(shape, rate, 5)
    assert kept.shape == shape
    keep = keep_probability(rate)
    tolerance = 4 * np.sqrt(keep * (1 - keep) * kept.size)
    assert abs(kept.sum() - keep * kept.size) <= tolerance


def derivatives(function, x):
    """The first and second derivatives of a function of each element."""
    if BACKEND == "jax":
        import jax

        def first(x):
            return jax.grad(lambda x: function(x).sum())(x)

        return first(x), jax.grad(lambda x: first(x).sum())(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            first = inner.gradient(y, x)
        return first, outer.gradient(first, x)
    import torch

    x.requires_grad_(True)
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first, second


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kept", [[[True, False]] * 2, [[True, False]]])
def test_selected(kept, dtype):
    x = keras.ops.convert_to_tensor([[3.0, np.inf], [-2.0, np.nan]], dtype)
    mask = keras.ops.convert_to_tensor(kept)
    outputs = selected(mask, x)
    assert outputs.dtype == x.dtype
    # Every dropped value is 0, and so are its derivatives.
    x_finite = keras.ops.convert_to_tensor([[3.0, 5.0], [-2.0, 5.0]], dtype)
    first, second = derivatives(lambda x: selected(mask, x) ** 3, x_finite)
    for found, expected in (
        (outputs, [[3, 0], [-2, 0]]),
        (first, [[27, 0], [12, 0]]),
        (second, [[18, 0], [-12, 0]]),
    ):
        found = keras.ops.convert_to_numpy(keras.ops.cast(found, "float32"))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_scaled_sum(dtype):
    # The shift cancels large activities. In float16 ten times the activities or
    # the shift is infinite, but ten times their sum is not.
    x = keras.ops.convert_to_tensor([[7040.0, 1.0], [7008.0, 2.0]], dtype)
    shift = keras.ops.convert_to_tensor([-7008.0, 0.5], dtype)
    outputs = scaled_sum(x, shift, 10.0)
    assert outputs.dtype == x.dtype
    outputs = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
    np.testing.assert_array_equal(outputs, [[320, 15], [0, 25]])


def test_selected_of_a_transposed_tensor():
    x = keras.ops.transpose(keras.ops.reshape(keras.ops.arange(6.0), (2, 3)))
    kept = np.array([[True, False], [False, True], [True, True]])
    outputs = selected(keras.ops.convert_to_tensor(kept), x)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(outputs), [[0, 0], [0, 4], [2, 5]]
    )


if BACKEND == "torch":

    def test_selected_under_the_transformations_of_torch():
        import torch

        x = torch.arange(6.0).reshape(2, 3)
        mask = x % 2 == 0

        def cubes(mask, x):
            return selected(mask, x) ** 3

        def total(x, mask):
            return cubes(mask, x).sum()

        expected = torch.where(mask, 3 * x**2, 0)
        torch.testing.assert_close(torch.func.grad(total)(x, mask), expected)
        in_each_row = torch.func.vmap(torch.func.grad(total))
        torch.testing.assert_close(in_each_row(x, mask), expected)
        _, forward = torch.func.jvp(
            lambda x: cubes(mask, x), (x,), (torch.ones_like(x),)
        )
        torch.testing.assert_close(forward, expected)

    @pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
    def test_selected_in_vectorised_jacobians(strategy):
        import torch

        x = torch.arange(6.0).reshape(2, 3)
        mask = x % 2 == 0
        jacobian = torch.autograd.functional.jacobian(
            lambda x: selected(mask, x) ** 3,
            x,
            vectorize=True,
            strategy=strategy,
        )
        expected = torch.diag(torch.where(mask, 3 * x**2, 0).ravel())
        torch.testing.assert_close(jacobian.reshape((6, 6)), expected)

    def test_selected_where_one_mask_serves_every_row():
        import torch

        x = torch.arange(6.0).reshape(2, 3) + 1
        mask = torch.tensor([True, False, True])
        rows = torch.func.vmap(lambda x: selected(mask, x))(x)
        torch.testing.assert_close(rows, torch.where(mask, x, 0))

    @pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
    def test_layers_under_the_transformations_of_torch(rate):
        import torch

        x = torch.arange(12_000.0).reshape(200, 60) + 1
        layer = InvariantDropout(rate)
        layer.build(x.shape)

        def halves(x):
            return layer(x, training=True).square().sum() / 2

        keras.utils.set_random_seed(1)
        found = torch.func.grad(halves)(x)
        # Where it is not 0, the gradient is x / keep^2.
        expected = torch.where(found == 0, 0, x / keep_probability(rate) ** 2)
        torch.testing.assert_close(found, expected)
        assert abs((found != 0).double().mean() - (1 - rate)) < 0.02
        # One mask for all rows, or one mask per row.
        for randomness, same in (("same", True), ("different", False)):
            gradient = torch.func.vmap(
                torch.func.grad(lambda x: halves(x[None])),
                randomness=randomness,
            )
            kept = gradient(x) != 0
            assert bool((kept == kept[0]).all()) == same
            assert abs(kept.double().mean() - (1 - rate)) < 0.3

    def test_seeded_layers_without_state_under_the_transformations():
        import torch

        x = torch.ones((50, 60))
        layer = InvariantDropout(0.5, seed=1)
        layer.build(x.shape)
        states = [variable.value for variable in layer.non_trainable_variables]

        def total(beta):
            outputs, _ = layer.stateless_call([beta], states, x, training=True)
            return outputs.sum()

        found = torch.func.grad(total)(torch.zeros(60))
        torch.testing.assert_close(found, layer(x, training=True).sum(axis=0))


def kept_for_the_backward_pass(function, x):
    """The dtypes of the values that a function keeps per element of `x`.

    Constants are not counted: a compiled step holds one number of them.
    """
    if BACKEND == "jax":
        import jax

        _, backward = jax.vjp(function, x)
        kept = [x for x in jax.tree.leaves(backward) if len(np.unique(x)) > 1]
    elif BACKEND == "torch":
        import torch

        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            kept.append, lambda saved: saved
        ):
            function(x.requires_grad_(True))
    else:
        import tensorflow as tf

        @tf.function
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            return tape.gradient(y, x)

        graph = gradient.get_concrete_function(x).graph
        backward = {
            operation
            for operation in graph.get_operations()
            if operation.name.startswith("gradient_tape/")
        }
        kept = [
            tensor
            for operation in backward
            for tensor in operation.inputs
            if tensor.op not in backward and tensor.op.type != "Const"
        ]
    return {
        keras.backend.standardize_dtype(tensor.dtype)
        for tensor in kept
        if math.prod(tensor.shape) >= math.prod(x.shape)
    }


@pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
def test_no_float_is_kept_for_the_backward_pass(rate):
    layer = InvariantDropout(rate, seed=0)
    layer.build((None, 32))
    x = keras.ops.reshape(keras.ops.arange(256.0), (8, 32))

    def train(x):
        with keras.StatelessScope():
            return layer(x, training=True)

    assert kept_for_the_backward_pass(train, x) == {"bool"}
    # The test sees the values that a product keeps.
    assert kept_for_the_backward_pass(keras.ops.square, x) >= {"float32"}


def test_a_generator_advances_by_one_draw():
    ours = keras.random.SeedGenerator(5)
    keras_own = keras.random.SeedGenerator(5)
    dropout_mask((3, 4), 0.5, ours)
    keras.random.uniform((3, 4), seed=keras_own)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(ours.state.value),
        keras.ops.convert_to_numpy(keras_own.state.value),
    )


if BACKEND != "jax":  # whose generators are unsigned

    @pytest.mark.parametrize("rate", RATES_OF_WIDTHS)
    def test_a_generator_of_a_negative_seed(rate):
        # As `keras.layers.Dropout(seed=-1)` has.
        kept = mask((1000, 100), rate, -1)
        keep = keep_probability(rate)
        assert_independent(kept, mask((1000, 100), rate, 1), keep)


def gpu_of_torch():
    if BACKEND != "torch":
        return False
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif(not gpu_of_torch(), reason="needs PyTorch and a GPU")
def test_masks_without_a_seed_come_from_the_generator_of_the_gpu():
    layer = InvariantDropout(0.25)
    layer.build((None, 1000))
    before = layer.seed_generator.state.numpy()
    kept = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        y = layer(keras.ops.ones((1000, 1000)), training=True)
        kept.append(keras.ops.convert_to_numpy(y) != 0)
    np.testing.assert_array_equal(kept[0], kept[1])
    assert_independent(kept[0], kept[2], 0.75)
    np.testing.assert_array_equal(layer.seed_generator.state.numpy(), before)


ON_FOUR_DEVICES = """
import re
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
from keras.random import SeedGenerator
from keras_invdrop._masks import dropout_mask

mesh = jax.make_mesh((4,), ("batch",))
split = NamedSharding(mesh, PartitionSpec("batch"))
generator = SeedGenerator(6)

x = jax.device_put(jax.numpy.ones((8, 6, 5, 3)), split)
state = generator.state.value
for rate in map(float, sys.argv[1:]):

    def step(state, x):
        generator.state.assign(state)
        return jax.numpy.where(dropout_mask(x.shape, rate, generator), x, 0)

    compiled = jax.jit(step, out_shardings=split).lower(state, x).compile()
    program = compiled.as_text()
    # No device speaks with another one, or holds more than its two examples.
    collectives = "all-gather|all-reduce|all-to-all|collective-permute"
    assert not re.search(collectives, program), program
    batches = set(re.findall(r"(?:pred|[su]\\d+|f32)\\[(\\d+),\\d", program))
    assert batches == {"2"}, program
    one = jax.jit(step)(state, jax.device_get(x))
    assert (compiled(state, x) == one).all(), rate
"""

if keras.backend.backend() == "jax":

    def test_stays_on_the_device_of_its_examples(tmp_path):
        program = tmp_path / "on_four_devices.py"
        program.write_text(ON_FOUR_DEVICES)
        flags = "--xla_force_host_platform_device_count=4"
        process = Program(
            program, *RATES_OF_WIDTHS, XLA_FLAGS=flags, JAX_PLATFORMS="cpu"
        )
        _, errors = process.communicate()
        assert process.returncode == 0, errors
