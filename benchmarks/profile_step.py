"""The time of each operation in a training step.

The backend's profiler traces each network of `training_step.py`. Each line is
one operation (on TensorFlow one kind of operation, with XLA a fusion of
several), with its milliseconds per step, summed over all threads.

    KERAS_BACKEND=jax python benchmarks/profile_step.py --network cifar10
"""

import argparse
import collections
import tempfile
from pathlib import Path

import keras
from jax.profiler import ProfileData
from keras_invdrop.experiments.train.trial import IMAGE_DATA_FORMAT
from training_step import KINDS
from training_step import MODES
from training_step import NETWORKS
from training_step import step
from turns import BACKEND
from turns import NAME


def milliseconds(call, steps):
    """Dict from the name of an operation to its milliseconds per step."""
    if BACKEND == "torch":
        return _of_torch(call, steps)
    with tempfile.TemporaryDirectory() as folder:
        if BACKEND == "jax":
            import jax

            with jax.profiler.trace(folder):
                for _ in range(steps):
                    call()
        else:
            import tensorflow as tf

            with tf.profiler.experimental.Profile(folder):
                for _ in range(steps):
                    call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return _of_xplane(ProfileData.from_file(str(path)), steps)


def _of_torch(call, steps):
    import torch

    with torch.profiler.profile() as profile:
        for _ in range(steps):
            call()
    return {
        event.key: event.self_cpu_time_total / 1000 / steps
        for event in profile.key_averages()
    }


def _of_xplane(data, steps):
    """Times of XLA's operations, and of each kind of TensorFlow operation."""
    times = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name, _, kind = event.name.rpartition(":")
                if "hlo_op" in dict(event.stats):
                    times[event.name] += event.duration_ns / 1e6 / steps
                elif "/" in name and line.name.startswith("tf_Compute"):
                    times[kind] += event.duration_ns / 1e6 / steps
    return times


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--network", choices=NETWORKS, default="mnist")
    options.add_argument("--mode", choices=MODES, default=NAME)
    options.add_argument("--kind", choices=KINDS, action="append")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--top", type=int, default=12, help="operations")
    arguments = options.parse_args()
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    for kind in arguments.kind or ["Dropout", "invariant"]:
        call = step(
            arguments.network,
            kind,
            arguments.batch,
            MODES[arguments.mode],
            width=arguments.width,
        )
        for _ in range(3):
            call()
        times = milliseconds(call, arguments.steps)
        print(f"{arguments.mode}, {arguments.network}, {kind}:")
        largest = sorted(times.items(), key=lambda item: -item[1])
        for name, time in largest[: arguments.top]:
            print(f"{time:10.2f} ms  {name}")
        print(f"{sum(times.values()):10.2f} ms  in all", flush=True)


if __name__ == "__main__":
    main()
