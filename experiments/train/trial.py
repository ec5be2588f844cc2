"""The description of a training, from which any process can run it."""

import functools
import hashlib
import json
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import keras
from keras_invdrop.applications import METHODS
from keras_invdrop.applications.recipes import setting

from keras_invdrop._checks import invalid
from keras_invdrop._files import sha256
from keras_invdrop.layers._shifted_dropout import ShiftedDropout

from ..data.datasets import Dataset
from ..data.datasets import load
from ..data.own_images import check_images
from ..data.own_images import load_images
from ..data.splicing import Splicing
from ..data.splicing import check_file
from ..data.splicing import load_splicing
from ..data.splicing import partition_of
from ..paper.tables import Row

# Format in which the backend trains convolutions fastest
# (benchmarks/README.md).
IMAGE_DATA_FORMAT = (
    "channels_first" if keras.backend.backend() == "torch" else "channels_last"
)

# Consecutive trials share their examples, in two encodings: keep both in
# memory.
_load = functools.lru_cache(maxsize=2)(load)


# The digest distinguishes what a file has held at different times.
@functools.lru_cache(maxsize=2)
def _load_images(path: Path, digest: str, *how: Any) -> Dataset:
    return load_images(path, *how)


@functools.lru_cache(maxsize=1)
def _load_splicing(path: Path, digest: str) -> Splicing:
    return load_splicing(path)


@dataclass(frozen=True)
class Trial:
    """One training: a row with one seed.

    A trial is created once, from the command line or in Python, and contains
    everything on which the result depends.

    Attributes:
        row: The row, with its recipe.
        command: The command line, recorded in the result.
        backend: Keras' backend.

    Raises:
        ValueError: If the recipe is calibrated and the dropout has no shift.
    """

    row: Row
    seed: int = setting(
        0,
        "Seed of the initial weights, the masks and the order of the examples.",
        min=0,
    )
    width: float = setting(
        1.0, "Multiplier of the units and feature maps of every layer."
    )
    limit_train: int | None = setting(
        None, "Number of training examples to use.", min=1, show_default="all"
    )
    validation: int | None = setting(
        None,
        "Number of examples to set aside for validation. With 0 the network "
        "trains on all examples and is tested after the last epoch.",
        min=0,
        show_default="as in the paper",
    )
    data: str | None = setting(
        None,
        "Your own images, for any table except 5: an .npz file with x_train, "
        "y_train, x_test and y_test. For Table 2, `digits` are 5,000 digits "
        "that come with a package. For Table 5, the file of the splicing data "
        "(.csv or .npz).",
        show_default="the paper's data, which tensorflow-datasets finds in "
        "TFDS_DATA_DIR or downloads",
    )
    activation: str | None = setting(
        None,
        "Activation function of the hidden units, in Tables 2, 3 (dnn) and 5: "
        "relu, sigmoid, tanh ...",
        show_default="relu",
    )
    steps_per_execution: int = setting(
        1,
        "Training steps per call of the backend, on JAX and TensorFlow. On a "
        "GPU, 100 steps save most of the time of a small network.",
        min=1,
    )
    test_curve: bool = setting(
        False,
        "Test after every epoch as well, for a curve of the test error. The "
        "curve selects nothing.",
    )
    # Results differ by rounding only, so a stopped training may resume with
    # another number of devices.
    data_parallel: bool = setting(
        False,
        "Divide each batch over all devices, on JAX: those of this machine "
        "and of the machines that the next three options or a launcher (Slurm, "
        "Kubernetes, Open MPI) add. See docs/scaling_out.md.",
    )
    command: str = ""
    backend: str = field(default_factory=keras.backend.backend)

    def __post_init__(self) -> None:
        if self.row.recipe.calibrated and not any(
            issubclass(layer, ShiftedDropout)
            for layer in filter(None, METHODS[self.row.method])
        ):
            raise invalid(
                "row",
                "one whose dropout has a shift that `--calibrate` can set",
                self.row.id,
            )

    @property
    def title(self) -> str:
        """Name of the trial in messages."""
        return f"{self.row.id}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of the trial's files; other settings give other names."""
        data = self.data
        if data not in (None, "digits"):
            data = sha256(Path(data))  # the content, independent of the path
        settings = {
            "width": self.width,
            "activation": self.activation,
            "data": data,
            "limit_train": self.limit_train,
            "backend": self.backend,
            "recipe": asdict(self.row.recipe),
        }
        if self.validation is not None:
            settings["validation"] = self.validation
        if self.test_curve:
            settings["test_curve"] = True
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.row.id.replace('/', '-')}-seed{self.seed}-{digest}"

    def network(self, method: str | None = None, **options: Any) -> keras.Model:
        """The network of the row, with the constraints of its recipe.

        Args:
            method: The dropout method; by default the row's.
            **options: Other arguments of the function that builds it.

        Raises:
            ValueError: If `width` leaves a layer empty, the network does not
                take an activation function, or the activation function or the
                dtype policy is unknown.
        """
        network, recipe = self.row.network, self.row.recipe
        if self.activation is not None:
            if not network.any_activation:
                raise invalid(
                    "activation", f"None for '{network.name}'", self.activation
                )
            try:
                keras.activations.get(self.activation)
            except ValueError:
                raise invalid(
                    "--activation",
                    "the name of one of Keras' activation functions",
                    self.activation,
                ) from None
            options["activation"] = self.activation
        return recipe.network(
            network.build,
            dropout=method or self.row.method,
            width=self.width,
            **options,
        )

    def check_data(self) -> None:
        """Raises an error if `data` does not suit the row."""
        if self.row.partition is None:
            if self.data == "digits" and self.row.dataset != "mnist":
                raise invalid(
                    "--data",
                    f"a file of images for row {self.row.id}, since 'digits' "
                    "are data for rows of Table 2 only",
                    self.data,
                )
            if self.data not in (None, "digits"):
                check_images(Path(self.data))
        elif self.validation is not None:
            raise invalid(
                "--validation",
                "nothing for Table 5, whose partitions select the examples",
                self.validation,
            )
        elif self.data is None:
            raise invalid(
                "--data",
                "the file of the splicing data (.csv or .npz), which are not "
                "public in one file; `keras-invdrop generate-splicing "
                "FILE.npz` makes data of the same shape",
                self.data,
            )
        else:
            check_file(Path(self.data))

    def dataset(self) -> Dataset:
        """Loads the examples.

        Raises:
            ValueError: If `data` does not suit the row.
            OSError: If the examples cannot be read.
        """
        self.check_data()
        row = self.row
        how = row.encoding, self.validation, self.limit_train
        if self.data in (None, "digits"):
            return _load(self.data or row.dataset, *how)
        path = Path(str(self.data))
        if row.partition is None:
            return _load_images(path, sha256(path), row.dataset, *how)
        splicing = _load_splicing(path, sha256(path))
        return partition_of(splicing, row.partition, self.limit_train)
