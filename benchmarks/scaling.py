"""The communication of data-parallel training, and its arithmetic.

For each of the paper's networks the table gives its parameters, the operations
of a training step as XLA counts them, and, for several numbers of accelerators,
the bytes that each accelerator sends in a step. In a ring each of N
accelerators sends 2 (N - 1) / N times the gradients: every part goes around
once to be summed and once to be distributed.

    KERAS_BACKEND=jax python benchmarks/scaling.py
    KERAS_BACKEND=jax python benchmarks/scaling.py --measure 1 2 4

The second command trains the network of Table 2 in 1, 2 and 4 processes on this
machine, with split batches, and counts the bytes through the loopback device.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.devices import Devices
from keras_invdrop.experiments.train.devices import joined

from keras_invdrop._batches import Batches

NETWORKS = {
    "784-1000-1000-10 (Table 2)": "table2/original/invariant",
    "ReLU, CIFAR-10 (Table 3)": "table3/relu/invariant",
    "maxout, CIFAR-10 (Table 6)": "table6/cifar10/invariant",
    "maxout, SVHN (Table 6)": "table6/svhn/invariant",
}
ACCELERATORS = [8, 32, 128, 1024]


def sent(parameters, accelerators):
    """Bytes of float32 gradients that each accelerator sends in a step."""
    return 4 * parameters * 2 * (accelerators - 1) / accelerators


def network(row, width=1.0):
    shape = (784,) if row.dataset == "mnist" else (32, 32, 3)
    model = row.network.build(
        dropout=row.method,
        width=width,
        input_shape=shape,
        classifier_activation=None,
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def arithmetic(model, batch):
    """Floating-point operations of a training step, as XLA counts them."""
    import jax

    model.optimizer.build(model.trainable_variables)
    x = np.zeros((batch, *model.input_shape[1:]), "float32")
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    step = jax.jit(model.train_step)
    lowered = step.lower(state, (x, np.zeros(batch, "int32")))
    return lowered.cost_analysis()["flops"]


def compute(batch, width):
    """Prints a row for each network."""
    heads = " | ".join(f"{n:,}" for n in ACCELERATORS)
    print(f"| network | parameters | operations | {heads} |")
    print("|---" * (3 + len(ACCELERATORS)) + "|")
    for name, row in NETWORKS.items():
        model = network(ROWS[row], width)
        operations = arithmetic(model, batch)
        parameters = model.count_params()
        cells = " | ".join(
            f"{sent(parameters, n) / 1e6:.1f} MB, "
            f"{operations / sent(parameters, n):,.0f}"
            for n in ACCELERATORS
        )
        print(
            f"| {name} | {parameters:,} | {operations / 1e9:,.1f} G "
            f"| {cells} |",
            flush=True,
        )


def loopback():
    """Bytes that the loopback device has sent."""
    (line,) = (
        line
        for line in Path("/proc/net/dev").read_text().splitlines()
        if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[8])


def train(batch, width, steps, process=(None, None, None)):
    """Trains in this process, and prints its measurements."""
    with joined(*process):
        devices = Devices(batch)
        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        x = rng.random((batch * steps, 784), "float32")
        y = rng.integers(10, size=batch * steps).astype("int32")

        batches = Batches((x, y), len(y), batch)
        with devices.scope():
            model = network(ROWS["table2/original/invariant"], width)
            devices.fit(model, batches, len(y), batch, 1, [])
            start, before = time.process_time(), loopback()
            devices.fit(model, batches, len(y), batch, 1, [])
        figures = {
            "CPU ms": 1000 * (time.process_time() - start) / steps,
            "MB": (loopback() - before) / steps / 1e6,
            "parameters": model.count_params(),
        }
        print(json.dumps(figures), flush=True)


def measure(numbers, options):
    """Prints a row for each number of processes."""
    print(
        "| processes | CPU ms per step, all processes | MB per step "
        "| computed MB |"
    )
    print("|---|---|---|---|")
    for number in numbers:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *options]
                + ["--process", address, str(number), str(each)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for each in range(number)
        ]
        told = [process.communicate()[0] for process in processes]
        found = [json.loads(each.splitlines()[-1]) for each in told]
        spent = sum(each["CPU ms"] for each in found)
        computed = number * sent(found[0]["parameters"], number) / 1e6
        print(
            f"| {number} | {spent:.0f} | {found[0]['MB']:.1f} "
            f"| {computed:.1f} |",
            flush=True,
        )


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--measure", type=int, nargs="+", default=[])
    options.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.process:
        address, number, each = arguments.process
        process = address, int(number), int(each)
        train(arguments.batch, arguments.width, arguments.steps, process)
    elif arguments.measure:
        sizes = {"batch": arguments.batch, "width": arguments.width}
        sizes["steps"] = arguments.steps
        given = [f"--{name}={value}" for name, value in sizes.items()]
        measure(arguments.measure, given)
    else:
        compute(arguments.batch, arguments.width)


if __name__ == "__main__":
    main()
