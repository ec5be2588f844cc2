"""Does invariant dropout cost more in a larger network?

The benchmark times a training step of the MNIST network, as in
`training_step.py`, with batches of 16 to 1024 examples, widths of 1/4 to 2, and
2 to 8 hidden layers.

    KERAS_BACKEND=jax python benchmarks/growth.py --out runs/growth.jsonl
    python benchmarks/plot.py runs/growth.jsonl growth.png
"""

from training_step import MODES
from training_step import step
from turns import compare
from turns import parser

BATCH, WIDTH, DEPTH = 128, 1.0, 2
SIZES = {
    "batch": [16, 64, 256, 1024],
    "width": [0.25, 0.5, 1.0, 2.0],
    "depth": [2, 4, 6, 8],
}


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--smallest", action="store_true", help="only the first size of each"
    )
    options.add_argument("--mode", choices=MODES, action="append")
    arguments = options.parse_args()
    for mode in arguments.mode or MODES:
        for grows, sizes in SIZES.items():
            for size in sizes[: 1 if arguments.smallest else None]:
                given = {"batch": BATCH, "width": WIDTH, "depth": DEPTH}
                given[grows] = size
                calls = {
                    kind: step(
                        "mnist",
                        kind,
                        given["batch"],
                        MODES[mode],
                        width=given["width"],
                        hidden_units=[1000] * given["depth"],
                    )
                    for kind in ("Dropout", "invariant", "frozen")
                }
                compare(
                    f"{mode}, {grows} {size:g}",
                    calls,
                    "Dropout",
                    arguments,
                    mode=mode,
                    grows=grows,
                    size=size,
                )


if __name__ == "__main__":
    main()
