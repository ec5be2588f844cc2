"""Peak memory of a training step, with invariant dropout and with Dropout.

Each network of `training_step.py` runs in a process of its own. The result is
the peak of the resident memory in `--steps` steps after the first steps, minus
the resident memory before the network was built, as Linux reports them.

    KERAS_BACKEND=jax python benchmarks/peak_memory.py
"""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
from keras_invdrop.experiments.train.trial import IMAGE_DATA_FORMAT
from training_step import MODES
from training_step import NETWORKS
from training_step import step
from turns import parser
from turns import report

KINDS = ["Dropout", "none", "invariant", "frozen"]


def resident(field, process="self"):
    """Bytes of `VmRSS`, the present, or `VmHWM`, the peak since a reset."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def peak(network, mode, kind, batch, width, steps):
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    keras.ops.zeros(1)  # loads the backend, whose memory does not count
    before = resident("VmRSS")
    call = step(network, kind, batch, MODES[mode], width=width)
    for _ in range(3):
        call()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    for _ in range(steps):
        call()
    return resident("VmHWM") - before


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", choices=NETWORKS, action="append")
    options.add_argument("--mode", choices=MODES, action="append")
    options.add_argument("--kind", choices=KINDS, action="append")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument(
        "--one",
        nargs=3,
        metavar=("NETWORK", "MODE", "KIND"),
        help="measure one network in this process and print its bytes",
    )
    arguments = options.parse_args()
    sizes = arguments.batch, arguments.width, arguments.steps
    if arguments.one:
        print(peak(*arguments.one, *sizes))
        return
    for network in arguments.network or NETWORKS:
        for mode in arguments.mode or MODES:
            peaks = {kind: [] for kind in arguments.kind or KINDS}
            for _ in range(arguments.rounds):
                for kind in peaks:
                    one = ["--one", network, mode, kind]
                    process = subprocess.run(
                        [sys.executable, *sys.argv, *one],
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                    )
                    peaks[kind].append(int(process.stdout.split()[-1]))
            report(
                f"{mode}, {network}, width {arguments.width:g}, "
                f"batch {arguments.batch}, memory",
                {kind: np.array(each) for kind, each in peaks.items()},
                "Dropout",
                arguments.out,
                unit="MB",
            )


if __name__ == "__main__":
    main()
