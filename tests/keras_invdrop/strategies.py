"""Trains a small model; `test_strategies.py` runs it.

    python strategies.py mirrored

    python strategies.py parallel PROCESSES STORE ID

The first command runs TensorFlow on one device and on two, the second PyTorch,
whose processes meet in the file STORE.

The script prints, for rate 0 and rate 0.5, the weights and the output of the
dropout layer for ones, on each device.
"""

import json
import os
import sys

import keras
import numpy as np

from keras_invdrop import InvariantDropout

X = np.random.default_rng(0).random((40, 12), "float32")
Y = np.arange(40) % 3
RATES = 0.0, 0.5


def network(rate):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12,)),
            InvariantDropout(rate, seed=1),
            keras.layers.Dense(16, activation="relu"),
            InvariantDropout(rate, seed=2),
            keras.layers.Dense(3),
        ]
    )


def tell(model, dropped):
    weights = [np.asarray(each).tolist() for each in model.get_weights()]
    print(json.dumps([weights, [each.tolist() for each in dropped]]))


def mirrored():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    ):
        for rate in RATES:
            with strategy.scope():
                model = network(rate)
                loss = keras.losses.SparseCategoricalCrossentropy(True)
                model.compile(keras.optimizers.SGD(0.1), loss)
            data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
            model.fit(data, epochs=2, verbose=0, shuffle=False)
            call = model.layers[0].call
            dropped = strategy.run(
                tf.function(lambda: call(tf.ones((4, 12)), training=True))  # noqa: B023
            )
            each = strategy.experimental_local_results(dropped)
            tell(model, [values.numpy() for values in each])


def parallel(processes, store, process):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    processes, process = int(processes), int(process)
    # The processes meet in a file: a port could be taken by another program.
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store, processes),
        world_size=processes,
        rank=process,
    )
    each = 10 // processes
    for rate in RATES:
        model = network(rate)
        wrapped = DistributedDataParallel(model)
        if rate:  # As the documentation says.
            for i, layer in enumerate(model.layers):
                if hasattr(layer, "seed_generator"):
                    layer.seed_generator.state.assign([i, process * 2**20])
        learned = [w for w in wrapped.parameters() if w.requires_grad]
        optimizer = torch.optim.SGD(learned, 0.1)
        for start in [*range(process * each, 40, 10)] * 2:
            part = slice(start, start + each)
            optimizer.zero_grad()
            outputs = wrapped(torch.tensor(X[part]), training=True)
            loss = torch.nn.functional.cross_entropy(
                outputs, torch.tensor(Y[part])
            )
            loss.backward()
            optimizer.step()
        ones = model.layers[0](torch.ones(4, 12), training=True)
        tell(model, [ones.detach().numpy()])
    torch.distributed.barrier()
    # PyTorch's destructor of the group waits for a thread that may wait for the
    # interpreter's lock, which the destructor holds: end without it.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "mirrored":
        mirrored()
    else:
        parallel(*sys.argv[2:])
