"""Random inputs and models that several test files use."""

import keras
import numpy as np
from keras import layers
from keras import ops


def random(*shape, seed=0, mean=0.0):
    x = np.random.default_rng(seed).normal(mean, 1.0, size=shape)
    return x.astype("float32")


def efficient_net():
    return keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=3
    )


def dense_net():
    model = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    x = layers.Dropout(0.2)(model.output)
    return keras.Model(model.input, layers.Dense(3, "softmax")(x))


@keras.saving.register_keras_serializable()
class Doubled(keras.Sequential):
    """A sequential model with a `call` of its own."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable()
class WithoutOutputSpec(layers.Layer):
    """A layer of which Keras does not know the output before a call."""

    def call(self, inputs):
        return inputs + 1

    def compute_output_spec(self, *args, **kwargs):
        raise NotImplementedError


def without_graph():
    """A built sequential model of which Keras makes no graph."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            WithoutOutputSpec(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    model(random(1, 5))
    return model


@keras.saving.register_keras_serializable()
class Cell(layers.Layer):
    """A recurrent cell that drops its input."""

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.drop = layers.Dropout(0.4)
        self.dense = layers.Dense(units, activation="tanh")

    def build(self, input_shape):
        # Without it Keras cannot load the cell on PyTorch.
        *batch, features = input_shape
        self.drop.build(input_shape)
        self.dense.build((*batch, features + self.units))

    def call(self, x, states):
        y = self.dense(ops.concatenate([self.drop(x), states[0]], axis=-1))
        return y, [y]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable()
class Drawing(layers.Layer):
    """Calls `keras.random.dropout` itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if training:
            x = keras.random.dropout(x, 0.5, seed=self.seed_generator)
        return x
