"""The programs that `test_devices.py` and `test_hosts.py` start.

    python many_devices.py HEARTBEAT [dies] train ROW ...
    python many_devices.py seen PATH PORT PROCESSES ID
    python many_devices.py program

The first is the command keras-invdrop, which gives up a process that has been
silent for `HEARTBEAT` seconds; with `dies` it kills itself after an epoch.
`seen` counts how often each example is seen and writes it to the file at
`PATH`, as Gloo prints, in pieces, to the output; `program` counts the tensors
of a device.
"""

import itertools
import os
import re
import signal
import sys
from pathlib import Path

import jax
import keras
import numpy as np
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.experiments.command_line import main
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.data.datasets import Stream
from keras_invdrop.experiments.train import devices as data_parallel
from keras_invdrop.experiments.train.callbacks import Fitted
from keras_invdrop.experiments.train.devices import Devices

from keras_invdrop.callbacks import Reseed

EXAMPLES = 30


class Counts(keras.Layer):
    """Counts how often it has seen each example in training."""

    def build(self, input_shape):
        self.seen = self.add_weight(
            name="seen", shape=(EXAMPLES,), initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        if training:
            seen = keras.ops.one_hot(inputs[:, 0], EXAMPLES)
            self.seen.assign(self.seen + keras.ops.sum(seen, axis=0))
        return keras.ops.cast(inputs, "float32")


def streamed(split):
    """The same examples, read one after another."""
    import tensorflow as tf

    def batches(batch_size, seed):
        data = tf.data.Dataset.from_tensor_slices((split.x, split.y))
        return data.shuffle(EXAMPLES, seed=seed).batch(batch_size)

    return Stream(EXAMPLES, batches, split.reading)


def seen(path, port, processes, process_id):
    """Writes how many devices split a batch, and the uses of each example."""
    lines = []
    identifiers = np.arange(EXAMPLES).reshape(-1, 1)
    split = Split(identifiers, identifiers.astype("float32"))
    with data_parallel.joined(
        f"127.0.0.1:{port}", int(processes), int(process_id)
    ):
        for examples in (split, streamed(split)):
            for batch_size in (8, 6, 7):
                devices = Devices(batch_size)
                keras.utils.set_random_seed(0)
                with devices.scope():
                    counts = Counts()
                    model = keras.Sequential(
                        [
                            keras.Input((1,), dtype="int32"),
                            counts,
                            keras.layers.Dense(1, kernel_initializer="zeros"),
                        ]
                    )
                    model.compile("sgd", "mae", metrics=["mse"])
                    model.optimizer.learning_rate = 0.0
                    fitted, reseed = (
                        Fitted("mse", {"val": split}, devices),
                        Reseed(),
                    )
                    batches = examples.shuffled(batch_size, reseed)
                    devices.fit(
                        model,
                        batches,
                        EXAMPLES,
                        batch_size,
                        2,
                        [fitted, reseed],
                    )
                seen = sorted(set(counts.seen.numpy().tolist()))
                logs = {name: each[-1] for name, each in fitted.logs.items()}
                lines.append(f"{[batch_size, devices.number, seen, logs]}\n")
    Path(path).write_text("".join(lines))


def program():
    """Prints the tensors of a step of the paper's network on a device."""
    batch_size = 4096 + 4  # so that no other tensor has this size
    memory = {}
    for devices in (Devices(batch_size), Devices(1)):
        keras.utils.set_random_seed(0)
        compiled = compiled_step(devices, batch_size)
        analysis = compiled.memory_analysis()
        memory[devices.number] = analysis.temp_size_in_bytes
        sizes = re.findall(r"(?:pred|[suf]\d+)\[(\d+),\d", compiled.as_text())
        numbers = sizes.count("1025"), sizes.count("4100")
        print((devices.number, *numbers))
    print(memory[4] / memory[1])


def compiled_step(devices, batch_size):
    """The program of a training step, with batches split over devices."""
    x = np.zeros((batch_size, 784), "float32")
    y = np.zeros(batch_size, "int32")
    with devices.scope():
        model = mnist_mlp(dropout="invariant", width=0.1)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.train_on_batch(x, y)
        distribution = keras.distribution.distribution()
        data = tuple(
            jax.device_put(
                array, distribution.get_data_layout(array.shape).backend_layout
            )
            for array in (x, y)
        )
        state = tuple(
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        step = jax.jit(model.train_step, donate_argnums=0)
        return step.lower(state, data).compile()


def die_in_the_second_epoch():
    whole, epochs = Reseed.on_epoch_begin, itertools.count(1)

    def epoch(*arguments):
        if next(epochs) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    Reseed.on_epoch_begin = epoch


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    command, *arguments = sys.argv[1:]
    if command in ("seen", "program"):
        {"seen": seen, "program": program}[command](*arguments)
    else:
        # Keras imports it if it is installed, which takes seconds.
        sys.modules["tensorflow"] = None
        data_parallel.HEARTBEAT = int(command)
        if arguments[0] == "dies":
            die_in_the_second_epoch()
            del arguments[0]
        sys.argv[1:] = arguments
        main()
