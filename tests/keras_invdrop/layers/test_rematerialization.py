"""Random layers that a backward pass computes a second time."""

import keras
import numpy as np
import pytest

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import StochasticPooling2D

SHAPE = (8, 4, 4, 6)
LAYERS = {
    "1 bit": lambda **options: InvariantDropout(0.5, **options),
    "16 bits": lambda **options: InvariantDropout(0.3, **options),
    "noise shape": lambda **options: InvariantDropout(
        0.5, noise_shape=(None, 1, 4, None), **options
    ),
    "shared": lambda **options: SharedInvariantDropout(0.5, **options),
    "spatial": lambda **options: SpatialInvariantDropout(0.5, **options),
    "pooling": lambda **options: StochasticPooling2D(
        2, data_format="channels_last", **options
    ),
}


def trained(layer, epochs=3):
    """The weights after steps through a layer between two others."""
    first, last = (
        keras.layers.Dense(
            units,
            "sigmoid",
            kernel_initializer=keras.initializers.RandomNormal(seed=seed),
        )
        for units, seed in ((6, 1), (1, 2))
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(SHAPE[1:]), first, layer, last])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    rng = np.random.default_rng(3)
    x = rng.normal(size=SHAPE).astype("float32")
    y = rng.normal(size=(8, *model.output_shape[1:]))
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model.get_weights()


# A seed of its own makes the same difference to all: one layer stands for them.
@pytest.mark.parametrize(
    ("make", "seed"),
    [
        pytest.param(
            make,
            seed,
            id=f"{name}-{seed}",
            marks=[pytest.mark.thorough] if seed and name != "1 bit" else [],
        )
        for name, make in {
            **LAYERS,
            "average": lambda **options: RunningAverageDropout(0.5, **options),
        }.items()
        for seed in (None, 1)
    ],
)
def test_a_layer_made_in_a_scope(make, seed):
    keras.utils.set_random_seed(4)
    expected = trained(make(seed=seed))
    keras.utils.set_random_seed(4)
    with keras.RematScope("full"):
        layer = make(seed=seed)
    for one, other in zip(trained(layer), expected, strict=True):
        np.testing.assert_array_equal(one, other)


if keras.backend.backend() == "torch":
    import torch
    from torch.utils.checkpoint import checkpoint

    def gradients(layer, again, **options):
        """The gradients of x and the weights, recomputed (`again`) or not."""
        dense = keras.layers.Dense(
            3,
            "tanh",
            kernel_initializer=keras.initializers.RandomNormal(seed=1),
        )

        def function(x):
            return dense(layer(x, training=True) ** 2)

        x = torch.from_numpy(np.random.default_rng(2).random(SHAPE))
        x = x.to(torch.float32).requires_grad_(True)
        layer.build(SHAPE)
        dense.build(layer.compute_output_shape(SHAPE))
        keras.utils.set_random_seed(5)
        y = checkpoint(function, x, **options) if again else function(x)
        y.square().sum().backward()
        variables = layer.trainable_variables + dense.trainable_variables
        return [x.grad, *(variable.value.grad for variable in variables)]

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
    def test_a_checkpoint_draws_the_same_again(make, reentrant):
        expected = gradients(make(), False)
        found = gradients(make(), True, use_reentrant=reentrant)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
    def test_a_seed_in_a_checkpoint_is_refused(make):
        with pytest.raises(
            RuntimeError,
            match="again in the backward pass.*without a seed.*seed=1",
        ):
            gradients(make(seed=1), True, use_reentrant=False)

    def test_a_running_average_in_a_checkpoint_is_refused():
        with pytest.raises(RuntimeError, match="average would move once more"):
            gradients(RunningAverageDropout(0.5), True, use_reentrant=False)
        expected = gradients(RunningAverageDropout(0.5, trainable=False), False)
        found = gradients(
            RunningAverageDropout(0.5, trainable=False),
            True,
            use_reentrant=False,
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
