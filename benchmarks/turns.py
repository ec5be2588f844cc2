"""Times several calls that take turns in one process."""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

BACKEND = keras.backend.backend()


def gpu():
    """The name of the GPU on which the backend computes, or None."""
    if BACKEND == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if BACKEND == "torch":
        import torch

        return (
            torch.cuda.get_device_name() if torch.cuda.is_available() else None
        )
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device)["device_name"]
    return None


# The packages whose versions matter, if a benchmark has loaded them: the
# backends, which are references, too, and the engines.
TIMED = (
    *("keras", "jax", "tensorflow", "torch"),
    *("onnxruntime", "openvino", "ai-edge-litert"),
)
NAME = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}[BACKEND]
if gpu() is not None:
    NAME = f"{NAME} on an {gpu()}"


def parser(description):
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument(
        "--seconds", type=float, default=0.2, help="of each turn, at least"
    )
    options.add_argument(
        "--out", type=Path, help="file to which results are added as JSON lines"
    )
    return options


def by_turns(calls, rounds, seconds):
    """The seconds that each call takes, one number for each round.

    The order of the calls differs from round to round. In its turn, a call
    repeats as often as fits into `seconds`. Compilation and the first call of
    each turn are not timed.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, round(seconds / once))
    times = {name: [] for name in calls}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(calls)):
            call = calls[name]
            # Idle threads of the previous call spin while they wait for work;
            # this pause lets them go to sleep.
            time.sleep(min(0.1, seconds))
            call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: np.array(each) for name, each in times.items()}


def compare(what, calls, against, arguments, **notes):
    """Times calls in turns and reports, with the options of `parser`."""
    times = by_turns(calls, arguments.rounds, arguments.seconds)
    report(what, times, against, arguments.out, **notes)


def report(what, figures, against, out=None, unit="ms", **notes):
    """Prints the ratio of each call's figure to that of the call `against`.

    The ratio is computed within each round; its median and quartiles are
    printed.

    Args:
        what: Text that names the measurement.
        figures: Dict from the name of a call to its figures, one per round.
        against: Name of the call to compare with.
        out: File to which a line of JSON is added for each call, or None.
        unit: `"ms"` for figures in seconds, `"MB"` for figures in bytes.
        **notes: Further items for the lines of JSON.
    """
    scale = {"ms": 1000, "MB": 1e-6}[unit]
    for name, each in figures.items():
        low, ratio, high = np.quantile(
            each / figures[against], [0.25, 0.5, 0.75]
        )
        median = scale * np.median(each)
        print(
            f"{what}, {name}: {ratio:.3f} of {against} "
            f"({low:.3f} to {high:.3f}), {median:.2f} {unit}",
            flush=True,
        )
        if out is not None:
            line = {
                "what": what,
                "name": name,
                "against": against,
                "ratio": round(ratio, 4),
                "quartiles": [round(low, 4), round(high, 4)],
                "median": round(median, 3),
                "unit": unit,
                "rounds": len(each),
                **notes,
                **machine(),
            }
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def machine():
    """What a figure depends on: backend, versions, processor and threads."""
    loaded = {name for name in TIMED if name.replace("-", "_") in sys.modules}
    return {
        "backend": BACKEND,
        "versions": {name: version(name) for name in sorted(loaded)},
        "processor": gpu() or processor(),
        "threads": len(os.sched_getaffinity(0)),
    }


def processor():
    """The name of the CPU, or None where Linux does not tell it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None
