"""`MaxoutDense` and `MaxoutConv2D`, compared with `Dense` and `Conv2D`.

Both networks compute the same outputs from the same input and take turns in one
process. The benchmark times a training step (forward, backward, and SGD) of one
layer, of the size of the layers of Table 6. The alternative consists of Keras'
layer, a reshape and a maximum.

    KERAS_BACKEND=jax python benchmarks/maxout.py
"""

from functools import partial

import keras
import numpy as np
from keras import ops
from turns import NAME
from turns import compare
from turns import parser

from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense


class ReshapeAndMax(keras.Layer):
    """The maximum of each group of `pieces` neighbours, in `keras.ops`."""

    def __init__(self, pieces):
        super().__init__()
        self.pieces = pieces

    def call(self, x):
        shape = (-1, *x.shape[1:-1], x.shape[-1] // self.pieces, self.pieces)
        return ops.max(ops.reshape(x, shape), axis=-1)


# Layers of Table 6 at half their width.
LAYERS = {
    "MaxoutDense(250, 5)": (
        (2048,),
        lambda: [MaxoutDense(250, 5)],
        lambda: [keras.layers.Dense(1250), ReshapeAndMax(5)],
    ),
    "MaxoutConv2D(96, 5, 2)": (
        (8, 8, 96),
        lambda: [MaxoutConv2D(96, 5, 2)],
        lambda: [keras.layers.Conv2D(192, 5), ReshapeAndMax(2)],
    ),
}


def model_of(layers, shape):
    model = keras.Sequential(
        [keras.Input(shape), *layers, keras.layers.Flatten()]
    )
    model.compile("sgd", "mse")
    return model


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=128)
    arguments = options.parse_args()
    for name, (shape, ours, rival) in LAYERS.items():
        models = {
            "Keras": model_of(rival(), shape),
            "ours": model_of(ours(), shape),
        }
        models["ours"].set_weights(models["Keras"].get_weights())
        rng = np.random.default_rng(0)
        x = rng.normal(size=(arguments.batch, *shape)).astype("float32")
        outputs = [model.predict_on_batch(x) for model in models.values()]
        np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-3)
        x, y = map(ops.convert_to_tensor, (x, np.zeros_like(outputs[0])))
        calls = {
            kind: partial(model.train_on_batch, x, y)
            for kind, model in models.items()
        }
        what = f"{NAME}, {name}, batch {arguments.batch}"
        compare(what, calls, "Keras", arguments)


if __name__ == "__main__":
    main()
