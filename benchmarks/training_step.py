"""A training step with invariant dropout, compared with Keras' `Dropout`.

The networks come from the paper and differ only in their dropout:

- Dropout: Keras' own layer,
- none: no dropout at all,
- composed: a layer that adds beta, then Keras' `Dropout`,
- invariant: `InvariantDropout`,
- hidden: `Dropout` on the input, `InvariantDropout` on the hidden layers,
- frozen: `InvariantDropout`, with the input's beta not trainable.

Images use the data format that is fastest on the backend. A step is
`train_on_batch` on a batch in memory, with SGD and Nesterov momentum. The
result is the ratio of each time to the time of `Dropout`, within each round; a
network with a ratio below 1 is faster.

    KERAS_BACKEND=jax python benchmarks/training_step.py
"""

import keras
import numpy as np
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications import relu_cnn
from keras_invdrop.experiments.train.trial import IMAGE_DATA_FORMAT
from turns import BACKEND
from turns import NAME
from turns import compare
from turns import parser

from keras_invdrop import InvariantDropout

# The ways in which the backend can run a step, with their `jit_compile`.
MODES = {NAME: BACKEND == "jax"}
if BACKEND == "tensorflow":
    MODES["TensorFlow with XLA"] = True
NETWORKS = {"mnist": mnist_mlp, "cifar10": relu_cnn}


class ComposedDropout(keras.Layer):
    """Invariant dropout: a layer that adds beta, then Keras' `Dropout`."""

    def __init__(self, rate, shape, name):
        super().__init__(name=name)
        self.dropout = keras.layers.Dropout(rate)
        self.shape = shape

    def build(self, input_shape):
        self.beta = self.add_weight(self.shape, "zeros", name="beta")

    def call(self, x, training=False):
        return self.dropout(x + self.beta, training=training)


def composed(layer):
    if isinstance(layer, InvariantDropout):
        return ComposedDropout(layer.rate, layer.beta.shape, layer.name)
    return same(layer)


def hidden(layer):
    if layer.name == "input_dropout":
        return keras.layers.Dropout(layer.rate, name=layer.name)
    return same(layer)


def same(layer):
    return layer.__class__.from_config(layer.get_config())


REPLACED = {"composed": composed, "hidden": hidden}


def step(network, kind, batch, jit_compile, **options):
    """A call that trains one step, on images in Keras' data format."""
    methods = {"Dropout": "standard", "none": "none"}
    method = methods.get(kind, "invariant")
    model = NETWORKS[network](dropout=method, **options)
    if kind in REPLACED:
        model = keras.models.clone_model(model, clone_function=REPLACED[kind])
    elif kind == "frozen":
        model.get_layer("input_dropout").trainable = False
    return training(model, batch, jit_compile)


def training(model, batch, jit_compile):
    """A call that trains a model for one step, on a batch in memory."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        "sparse_categorical_crossentropy",
        jit_compile=jit_compile,
    )
    rng = np.random.default_rng(0)
    x = keras.ops.convert_to_tensor(
        rng.random((batch, *model.input_shape[1:]), dtype="float32")
    )
    y = keras.ops.convert_to_tensor(rng.integers(0, 10, batch))
    return lambda: model.train_on_batch(x, y)


KINDS = ["Dropout", "none", "composed", "invariant", "hidden", "frozen"]


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", choices=NETWORKS, action="append")
    options.add_argument("--mode", choices=MODES, action="append")
    options.add_argument("--kind", choices=KINDS, action="append")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    arguments = options.parse_args()
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    for network in arguments.network or NETWORKS:
        for mode in arguments.mode or MODES:
            calls = {
                kind: step(
                    network,
                    kind,
                    arguments.batch,
                    MODES[mode],
                    width=arguments.width,
                )
                for kind in arguments.kind or KINDS
            }
            what = (
                f"{mode}, {network}, width {arguments.width:g}, "
                f"batch {arguments.batch}"
            )
            compare(what, calls, "Dropout", arguments)


if __name__ == "__main__":
    main()
