"""A training step of the CIFAR-10 network, with channels first and last.

The network is the ReLU network of Table 3, and a step takes `--batch` images.
On a CPU TensorFlow has no gradient for convolutions with channels first.

    KERAS_BACKEND=torch python benchmarks/image_data_format.py
"""

import keras
from training_step import MODES
from training_step import NAME
from training_step import step
from turns import BACKEND
from turns import compare
from turns import parser

FORMATS = ["channels_last"]
if BACKEND != "tensorflow":
    FORMATS.append("channels_first")


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    arguments = options.parse_args()
    calls = {}
    for data_format in FORMATS:
        keras.config.set_image_data_format(data_format)
        calls[data_format] = step(
            "cifar10",
            "invariant",
            arguments.batch,
            MODES[NAME],
            width=arguments.width,
        )
    what = f"{NAME}, width {arguments.width:g}, batch {arguments.batch}"
    compare(what, calls, "channels_last", arguments)


if __name__ == "__main__":
    main()
