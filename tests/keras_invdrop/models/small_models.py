"""Random inputs and models that several test files use."""

import keras
import numpy as np
from keras import layers


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
