"""Makes the files of a release that later releases must load.

Run `python make.py 0.1.0` once for a release, on any backend and on the oldest
Keras that the release supports, because newer versions of Keras read its files.
The script saves each model beside itself, with the predictions for `examples`.
A released file is never made again.
"""

import sys
import zipfile
from pathlib import Path

import keras
import numpy as np

import keras_invdrop

FOLDER = Path(__file__).parent


def examples(shape):
    """Four examples, the same on every machine."""
    values = np.arange(4 * np.prod(shape)).reshape(4, *shape)
    return np.sin(values).astype("float32")


def vectors():
    """The layers for inputs of rank 2."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras_invdrop.InvariantDropout(
                0.2,
                scaling="test",
                beta_regularizer=keras_invdrop.regularizers.Variance(0.1),
                beta_constraint=keras.constraints.MaxNorm(2.0),
                seed=3,
            ),
            keras_invdrop.MaxoutDense(4, 2, activation="relu"),
            keras_invdrop.RunningAverageDropout(0.5, momentum=0.9),
            keras.layers.Dense(6),
            keras_invdrop.Maxout(2),
            keras_invdrop.InvariantDropout(
                0.5, noise_shape=(None, 1), shared_axes=[1]
            ),
            keras.layers.Dense(2),
        ],
        name="vectors",
    )


def images():
    """The layers for images."""
    place = {"data_format": "channels_last"}
    return keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            keras_invdrop.GlobalContrastNormalization(scale=2.0),
            keras_invdrop.ZCAWhitening(epsilon=0.2),
            keras_invdrop.MaxoutConv2D(3, 3, 2, padding="same", **place),
            keras_invdrop.SharedInvariantDropout(0.3, seed=1, **place),
            keras_invdrop.StochasticPooling2D(2, seed=2, **place),
            keras_invdrop.LocallyConnected2D(2, 2, **place),
            keras_invdrop.SpatialInvariantDropout(0.4, **place),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ],
        name="images",
    )


MODELS = {"vectors": vectors, "images": images}


def make(name):
    """The model, with weights that change the output of every layer."""
    model = MODELS[name]()
    x = examples(model.input_shape[1:])
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras_invdrop.ZCAWhitening):
            layer.adapt(model.layers[0](x))
            continue
        for weight in layer.trainable_weights:
            values = generator.normal(size=weight.shape)
            weight.assign(values.astype("float32"))
        if isinstance(layer, keras_invdrop.RunningAverageDropout):
            layer.set_shift(np.full(4, -0.25, "float32"))
    return model


def compressed(path):
    """Rewrites a Keras file at a tenth of its size."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


if __name__ == "__main__":
    version = sys.argv[1]
    for name in MODELS:
        model = make(name)
        stem = FOLDER / f"{name}-{version}"
        model.save(stem.with_name(f"{stem.name}.keras"))
        compressed(stem.with_name(f"{stem.name}.keras"))
        outputs = model.predict(examples(model.input_shape[1:]), verbose=0)
        np.savetxt(stem.with_name(f"{stem.name}.csv"), outputs, "%.6f", ",")
