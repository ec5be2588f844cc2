"""The time that a trained network takes, folded and in each engine.

The ReLU network of Table 3, its width scaled by `--width`, runs with invariant
dropout, folded, built without dropout, and exported to each engine. The first
three forms run through `predict_on_batch`, which Keras compiles. All forms take
turns in one process, with their default number of threads. The result is the
ratio of each time to the time of the network without dropout, within each
round; a form with a ratio below 1 is faster.

    KERAS_BACKEND=jax python benchmarks/export_latency.py
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from keras_invdrop.applications import relu_cnn
from turns import NAME
from turns import compare
from turns import parser

from keras_invdrop import InvariantDropout
from keras_invdrop import export
from keras_invdrop import fold
from keras_invdrop.models._export import LOAD
from keras_invdrop.models._export import SUFFIXES

SHAPE = (32, 32, 3)


def in_engine(format, path, network):
    run = LOAD[format](path, network)
    return lambda x: run([x])[0]


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--width", type=float, default=0.25)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    options.add_argument("--format", choices=LOAD, action="append")
    arguments = options.parse_args()
    model, without = (
        relu_cnn(dropout=method, width=arguments.width, input_shape=SHAPE)
        for method in ("invariant", "none")
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, InvariantDropout):
            # In place of training: with a beta of 0, `fold` has nothing to do.
            layer.beta.assign(rng.normal(scale=0.1, size=layer.beta.shape))
    folded = fold(model)
    calls = {
        "without dropout": without.predict_on_batch,
        "unfolded": model.predict_on_batch,
        "folded": folded.predict_on_batch,
    }
    with tempfile.TemporaryDirectory() as folder:
        for format in arguments.format or LOAD:
            path = Path(folder, format + SUFFIXES.get(format, ""))
            export(model, path, format)
            calls[format] = in_engine(format, path, folded)
        kinds = [
            [type(layer).__name__ for layer in each.layers]
            for each in (folded, without)
        ]
        print("layers, folded:         ", ", ".join(kinds[0]))
        print("layers, without dropout:", ", ".join(kinds[1]))
        for batch in arguments.batches:
            x = np.random.default_rng(0).normal(size=(batch, *SHAPE))
            check_and_time(calls, x.astype("float32"), arguments)


def check_and_time(calls, x, arguments):
    expected = calls["folded"](x)
    for name, call in calls.items():
        if name != "without dropout":  # its weights differ
            np.testing.assert_allclose(call(x), expected, atol=1e-4)
    bound = {name: partial(call, x) for name, call in calls.items()}
    what = f"{NAME}, width {arguments.width:g}, batch {len(x)}"
    compare(what, bound, "without dropout", arguments)


if __name__ == "__main__":
    main()
