"""A user's training, which `test_exact_resume.py` kills.

    python resumed_training.py DIRECTORY [SPOT COUNT]

The process kills itself, as `kill -9` does, when it passes a spot for the
`COUNT`th time, counted from 1: `step`, in the middle of an epoch; `begin`, when
the backup is half-written; `rename`, when the backup is written but not yet
renamed; `renamed`, just after the backup is renamed.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

import keras_invdrop
from keras_invdrop.callbacks import exact_resume

EPOCHS = 6


def passing(spot):
    if LEFT[0] == spot:
        LEFT[1] -= 1
        if LEFT[1] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def replacing(path, whole=exact_resume.replacing):
    with whole(path) as temporary:
        temporary.write_bytes(b"half of it")
        passing("begin")
        yield temporary
        passing("rename")
    passing("renamed")


def network():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras_invdrop.InvariantDropout(0.2),
            keras.layers.Dense(6, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.05, 5 * EPOCHS),
            use_ema=True,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main(directory, spot="", count="0"):
    global LEFT
    LEFT = [spot, int(count)]
    exact_resume.replacing = replacing
    directory = Path(directory)
    keras.utils.set_random_seed(1)  # of the initial weights
    model = network()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(46, 8)).astype("float32")
    y = rng.integers(3, size=46)
    best = keras_invdrop.BestEpoch("val_loss")
    early = keras.callbacks.EarlyStopping("loss", patience=EPOCHS)
    resume = keras_invdrop.ExactResume(
        directory / "backup.npz", seed=2, callbacks=[best, early]
    )
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: passing("step")
    )
    data = {"x": x, "y": y, "batch_size": 10}
    if keras.backend.backend() == "tensorflow":
        data = {
            "x": resume.shuffled(x, y, batch_size=10),
            "shuffle": False,
        }
    history = model.fit(
        **data,
        validation_data=(x, y),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[best, early, resume, step],
    )
    arrays = [
        *model.get_weights(),
        *(keras.ops.convert_to_numpy(v) for v in model.optimizer.variables),
        *best.weights,
        np.array([best.epoch, best.best, early.wait, early.best]),
        *(np.array(history.history[name]) for name in sorted(history.history)),
        np.array(history.epoch),
    ]
    np.savez(directory / "end.npz", *arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
