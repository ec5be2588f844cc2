"""The time of `BetaMonitor`, compared with an epoch of training.

The network is that of Table 2 with invariant dropout, 784-1000-1000-10. "epoch"
is an epoch of `model.fit` on 5,000 images, the number in `--data digits`, in
batches of 100. "monitor" is the callback's work at the end of an epoch, with
its default settings, including the CSV file and TensorBoard. The result is the
ratio of the times within each round. An epoch of the 50,000 training images of
MNIST has ten times as many steps.

    KERAS_BACKEND=jax python benchmarks/beta_monitor.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from keras_invdrop.applications import mnist_mlp
from turns import NAME
from turns import compare
from turns import parser

from keras_invdrop import BetaMonitor

BATCH = 100


def calls(steps, width, directory):
    """An epoch of `steps` steps, and the callback at its end."""
    model = mnist_mlp("invariant", width=width)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    rng = np.random.default_rng(0)
    x = rng.random((steps * BATCH, 784), dtype="float32")
    y = rng.integers(0, 10, len(x))
    monitor = BetaMonitor(x, directory / "beta.csv", directory / "logs")
    monitor.set_model(model)
    monitor.on_train_begin()
    return {
        "epoch": lambda: model.fit(x, y, BATCH, verbose=0),
        "monitor": lambda: monitor.on_epoch_end(0, {}),
    }


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--width", type=float, default=1.0)
    arguments = options.parse_args()
    what = f"{NAME}, mnist, epoch of {arguments.steps} steps"
    with tempfile.TemporaryDirectory() as directory:
        compare(
            what,
            calls(arguments.steps, arguments.width, Path(directory)),
            "epoch",
            arguments,
        )


if __name__ == "__main__":
    main()
