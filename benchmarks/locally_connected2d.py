"""`LocallyConnected2D`, compared with `extract_patches` and `einsum`.

Both layers compute the same outputs from the same input and take turns in one
process. The benchmark times a training step (forward, backward, and SGD) of the
layer of Table 3 ("16lc", windows of 3 x 3 over 4 x 4 x 64) and of a larger one.
The result is the ratio of the times: below 1, `LocallyConnected2D` is faster.

    KERAS_BACKEND=jax python benchmarks/locally_connected2d.py
"""

from functools import partial

import keras
import numpy as np
from keras import ops
from turns import NAME
from turns import compare
from turns import parser

from keras_invdrop import LocallyConnected2D

BATCH = 128


class PatchesAndEinsum(keras.Layer):
    """A locally connected layer in plain `keras.ops`."""

    def __init__(self, filters, kernel_size):
        super().__init__()
        self.filters = filters
        self.kernel_size = kernel_size

    def build(self, input_shape):
        _, height, width, channels = input_shape
        size = self.kernel_size**2 * channels
        self.kernel = self.add_weight((height, width, size, self.filters))
        self.bias = self.add_weight((height, width, self.filters), "zeros")

    def call(self, inputs):
        patches = ops.image.extract_patches(
            inputs, self.kernel_size, strides=1, padding="same"
        )
        x = ops.einsum("bhwi,hwif->bhwf", patches, self.kernel)
        return ops.relu(x + self.bias)


def model_of(layer, shape):
    model = keras.Sequential(
        [keras.Input(shape), layer, keras.layers.Flatten()]
    )
    model.compile("sgd", "mse")
    return model


def check_same(models, x):
    """Raises an error if equal weights do not give equal outputs."""
    kernel, bias = models["einsum"].get_weights()
    ours = models["ours"].layers[0].kernel.shape
    models["ours"].set_weights([kernel.reshape(ours), bias])
    outputs = [model.predict_on_batch(x) for model in models.values()]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def main():
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    for shape, filters in (((4, 4, 64), 16), ((16, 16, 32), 32)):
        ours = LocallyConnected2D(filters, 3, padding="same", activation="relu")
        models = {
            "ours": model_of(ours, shape),
            "einsum": model_of(PatchesAndEinsum(filters, 3), shape),
        }
        x = np.random.default_rng(0).normal(size=(BATCH, *shape))
        check_same(models, x)
        y = np.zeros((BATCH, shape[0] * shape[1] * filters))
        calls = {
            name: partial(model.train_on_batch, x, y)
            for name, model in models.items()
        }
        what = f"{NAME}, {shape} -> {filters} maps"
        compare(what, calls, "einsum", arguments)


if __name__ == "__main__":
    main()
