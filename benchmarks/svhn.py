"""The time and memory that reading SVHN at its full size takes.

If the folder `--data` has no data set, the benchmark generates one there, in
the file format of tensorflow-datasets: 630,420 images, as many as SVHN has, of
shape (32, 32, 3) and about 2.2 kB each.

First the benchmark compares the time to read and normalise a batch with a
training step of each of the paper's networks, in turns. Then it measures the
peak resident memory of `keras-invdrop train` in one epoch of the ReLU network:
a narrow version, whose epochs are short, with a hundredth of the training
images and with all of them, and the network at full width.

    KERAS_BACKEND=jax python benchmarks/svhn.py
"""

import io
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import sleep

import keras
import numpy as np
from keras_invdrop.experiments.data import datasets
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.trial import IMAGE_DATA_FORMAT
from peak_memory import resident
from PIL import Image
from training_step import MODES
from training_step import training
from turns import NAME
from turns import compare
from turns import parser
from turns import report

SIZES = {"train": 73_257, "extra": 531_131, "test": 26_032}
NETWORKS = {"ReLU": "table4/relu/invariant", "maxout": "table6/svhn/invariant"}
BATCH = 128


def images(number):
    """Distinct smooth images with a little noise, as bytes of PNG files."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        few = rng.integers(40, 216, (4, 4, 3), "uint8")
        smooth = np.asarray(Image.fromarray(few).resize((32, 32)), "int16")
        noisy = smooth + rng.integers(-8, 9, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.astype("uint8")).save(file, "png")
        yield file.getvalue()


def generate(directory, part):
    """Writes the data set, each split at `part` of its real size."""
    import tensorflow_datasets as tfds  # reads TFDS_DATA_DIR on import

    builder = tfds.builder("svhn_cropped", data_dir=directory)
    largest = int(max(SIZES.values()) * part)
    different = list(images(min(largest, 10_000)))

    def examples(split):
        for i in range(int(SIZES[split] * part)):
            png = different[i % len(different)]
            name = f"{split}_{i:06d}"
            yield name, {"id": name, "image": io.BytesIO(png), "label": i % 10}

    builder._split_generators = lambda manager: {
        split: examples(split) for split in SIZES
    }
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def time(arguments):
    """Compares the time of reading with the time of the steps."""
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    train = datasets.load("svhn_cropped", validation=arguments.validation).train

    def again():
        while True:
            yield from train.batches(BATCH, 0).as_numpy_iterator()

    batches = again()
    for name, id_ in NETWORKS.items():
        row = ROWS[id_]
        model = row.network.build(dropout=row.method, width=arguments.width)
        calls = {
            "step": training(model, BATCH, MODES[NAME]),
            "reading": lambda: next(batches),
        }
        what = f"{NAME}, SVHN, {name}, width {arguments.width:g}, batch {BATCH}"
        compare(what, calls, "step", arguments, examples=len(train))


def peak(row, *options):
    """Peak resident memory, in bytes, of training for one epoch."""
    with tempfile.TemporaryDirectory() as out:
        command = "-m", "keras_invdrop.experiments", "train", row
        process = subprocess.Popen(
            [sys.executable, *command, "--epochs=1", f"--out={out}", *options],
            stdout=subprocess.DEVNULL,
        )
        # On Linux `ru_maxrss` would include the parent, this process.
        most = 0
        while process.poll() is None:
            with suppress(OSError, TypeError):  # if the process just ended
                most = resident("VmHWM", process.pid)
            sleep(0.1)
    if process.returncode:
        sys.exit(f"The training of {row} has failed.")
    return most


def weigh(arguments):
    """Measures the peak resident memory of training."""
    held_out = f"--validation={arguments.validation}"
    some = f"--limit-train={int(sum(SIZES.values()) * arguments.part) // 100}"
    small, full = f"--width={arguments.small}", f"--width={arguments.width}"
    peaks = {
        "a hundredth": peak(NETWORKS["ReLU"], held_out, small, some),
        "all": peak(NETWORKS["ReLU"], held_out, small),
        "full width": peak(NETWORKS["ReLU"], held_out, full, some),
    }
    report(
        f"{NAME}, SVHN, resident",
        {kind: np.array([bytes_]) for kind, bytes_ in peaks.items()},
        "a hundredth",
        arguments.out,
        unit="MB",
    )


MEASURES = {"time": time, "memory": weigh}


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--what", choices=MEASURES, action="append")
    options.add_argument("--data", type=Path, default=Path("runs/svhn"))
    options.add_argument("--part", type=float, default=1.0, help="of SVHN")
    options.add_argument("--validation", type=int, default=6000)
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--small", type=float, default=0.02)
    options.set_defaults(seconds=2.0)
    arguments = options.parse_args()
    os.environ["TFDS_DATA_DIR"] = str(arguments.data.resolve())
    if not (arguments.data / "svhn_cropped").exists():
        generate(arguments.data, arguments.part)
    for what in arguments.what or MEASURES:
        MEASURES[what](arguments)


if __name__ == "__main__":
    main()
