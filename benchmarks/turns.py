"""Times several calls by turns, in one process."""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

BACKEND = keras.backend.backend()
NAME = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}[BACKEND]


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

    The calls run in another order in each round, each as often in its turn as
    fits into `seconds`. Before, its compilation and one turn are not timed.
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
            # Threads of the one before, which wait for more to do, go to sleep
            # in the meantime.
            time.sleep(min(0.1, seconds))
            call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: np.array(each) for name, each in times.items()}


def report(what, times, against, out=None):
    """Prints each call's time in units of that of the call `against`.

    The ratio is taken within each round; its median and quartiles are given.
    """
    for name, each in times.items():
        low, ratio, high = np.quantile(each / times[against], [0.25, 0.5, 0.75])
        milliseconds = 1000 * np.median(each)
        print(
            f"{what}, {name}: {ratio:.3f} of {against} "
            f"({low:.3f} to {high:.3f}), {milliseconds:.2f} ms",
            flush=True,
        )
        if out is not None:
            line = {
                "what": what,
                "name": name,
                "against": against,
                "ratio": round(ratio, 4),
                "quartiles": [round(low, 4), round(high, 4)],
                "milliseconds": round(milliseconds, 3),
                "rounds": len(each),
                **machine(),
            }
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def machine():
    """What a figure depends on."""
    return {
        "backend": BACKEND,
        "versions": {name: version(name) for name in ("keras", BACKEND)},
        "threads": len(os.sched_getaffinity(0)),
    }
