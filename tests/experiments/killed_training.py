"""Runs some small trainings; `test_kills.py` kills the process.

    python killed_training.py DIRECTORY [SPOT SUFFIX COUNT]

The process kills itself, as `kill -9` does, at the `COUNT`th file with the
suffix that it writes, counted from 1: `begin`, when the file is half-written;
`rename`, when the file is written but not yet renamed; `renamed`, just after
the file is renamed.
"""

import dataclasses
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from keras_invdrop.experiments.data.datasets import Dataset
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import records as results
from keras_invdrop.experiments.train import training
from keras_invdrop.experiments.train import trial as trials

from keras_invdrop.callbacks import exact_resume

EPOCHS = 25  # enough for all kills, on fast machines too


def dataset(self):
    rng = np.random.default_rng(0)
    splits = [
        Split(
            rng.random((examples, 784), "float32"),
            np.arange(examples, dtype="int32") % 10,
        )
        for examples in (300, 50, 50)
    ]
    return Dataset("mnist", "generated", "original", *splits)


def trial(method, **changes):
    row = ROWS[f"table2/original/{method}"]
    recipe = dataclasses.replace(row.recipe, epochs=EPOCHS, **changes)
    row = dataclasses.replace(row, recipe=recipe)
    return trials.Trial(row, seed=1, width=0.05)


TRIALS = (trial("standard", retrain=True), trial("invariant", calibrated=True))


def die_at(spot, suffix, count):
    """Wraps the functions that write files, so that the process dies there."""
    left = int(count)
    whole = results.replacing

    def passing(here, path):
        nonlocal left
        if (here, path.suffix) == (spot, suffix):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def replacing(path):
        with whole(path) as temporary:
            temporary.write_bytes(b"half of it")
            passing("begin", path)
            yield temporary
            passing("rename", path)
        passing("renamed", path)

    for module in (exact_resume, training, results):
        module.replacing = replacing


def main(directory, *spot):
    trials.Trial.dataset = dataset
    if spot:
        die_at(*spot)
    print("started", flush=True)
    for each in TRIALS:
        training.run(
            each,
            Path(directory),
            lambda done, _, title=each.title: print(title, done, flush=True),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
