"""A training, described so that any process can do it."""

import functools
import hashlib
import json
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path

import keras
from keras_invdrop.applications.recipes import setting

from keras_invdrop._checks import invalid

from ..data.datasets import Dataset
from ..data.datasets import load
from ..data.own_images import check_images
from ..data.own_images import load_images
from ..data.splicing import check_file
from ..data.splicing import load_splicing
from ..data.splicing import partition_of
from ..paper.tables import Row
from ..results.records import Result
from ..results.records import read_result
from ..results.records import this_code
from .devices import from_first
from .devices import is_first
from .training import OnEpoch
from .training import remove_backups
from .training import save
from .training import train

# With which a backend trains convolutions fastest (benchmarks/README.md).
IMAGE_DATA_FORMAT = (
    "channels_first" if keras.backend.backend() == "torch" else "channels_last"
)

# Trials that follow one another have their examples in common, on two
# encodings.
_load = functools.lru_cache(maxsize=2)(load)
_load_images = functools.lru_cache(maxsize=2)(load_images)
_load_splicing = functools.lru_cache(maxsize=1)(load_splicing)


@dataclass(frozen=True)
class Trial:
    """One training: a row with one seed.

    It is made once, from the command line or in Python, and says all on which
    the result depends.

    Attributes:
        row: The row, with the recipe by which it is trained.
        command: What was called, for the result.
        backend: Keras' backend.
    """

    row: Row
    seed: int = setting(
        0,
        "Seed of the initial weights, the masks and the order of the examples.",
        min=0,
    )
    width: float = setting(
        1.0, "Multiplies the units and feature maps of every layer."
    )
    limit_train: int | None = setting(
        None, "Number of training examples to use.", min=1, show_default="all"
    )
    validation: int | None = setting(
        None,
        "Number of examples to set aside for validation. With 0 the network "
        "is trained on all examples, and tested as it is after the last epoch.",
        min=0,
        show_default="as in the paper",
    )
    data: str | None = setting(
        None,
        "Images of your own, for any table but 5: a file .npz with x_train, "
        "y_train, x_test and y_test. For Table 2, `digits` are 5,000 digits "
        "that come with a package. For Table 5, the file of the splicing data "
        "(.csv or .npz).",
        show_default="what tensorflow-datasets finds in TFDS_DATA_DIR, or "
        "downloads",
    )
    activation: str | None = setting(
        None,
        "Activation function of the hidden units, in Tables 2, 3 (dnn) and 5: "
        "relu, sigmoid, tanh ...",
        show_default="relu",
    )
    steps_per_execution: int = setting(
        1,
        "Training steps in one call of the backend, on JAX and TensorFlow. On "
        "a GPU, 100 steps save most of the time that a small network takes.",
        min=1,
    )
    # Results differ by rounding alone, so that a training that was stopped may
    # go on with another number of devices.
    data_parallel: bool = setting(
        False,
        "Divide each batch over all devices, on JAX: those of this machine, "
        "and of the machines that the next three options or a launcher (Slurm, "
        "Kubernetes, Open MPI) add. See docs/scaling_out.md.",
    )
    command: str = ""
    backend: str = field(default_factory=keras.backend.backend)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.row.id}, seed {self.seed}"

    @property
    def name(self) -> str:
        """What its files are called; with other settings, other names."""
        settings = {
            "width": self.width,
            "activation": self.activation,
            "data": self._digest_of_data(),
            "limit_train": self.limit_train,
            "backend": self.backend,
            "recipe": asdict(self.row.recipe),
        }
        if self.validation is not None:
            settings["validation"] = self.validation
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.row.id.replace('/', '-')}-seed{self.seed}-{digest}"

    def _digest_of_data(self) -> str | None:
        """What tells apart files of data, wherever they lie."""
        if self.data in (None, "digits"):
            return self.data
        return hashlib.sha256(Path(self.data).read_bytes()).hexdigest()

    def finished(self, directory: Path) -> Result | None:
        """Its result, if it has been done.

        Raises:
            ValueError: If the result is that of another version of the code,
                with which results of this one are not to be mixed.
        """
        path = directory / f"{self.name}.json"
        if not path.exists():
            return None
        result = read_result(path)
        if result.code != this_code():
            raise ValueError(
                f"{path} was trained with {result.code}; this is "
                f"{this_code()}. Give results of this one another `--out`."
            )
        return result

    def check_data(self) -> None:
        """Raises an error if `data` is not what the row takes."""
        if self.row.partition is None:
            if self.data == "digits" and self.row.dataset != "mnist":
                raise invalid(
                    "--data", "'digits' for rows of Table 2 alone", self.row.id
                )
            if self.data not in (None, "digits"):
                check_images(Path(self.data))
        elif self.validation is not None:
            raise invalid(
                "--validation",
                "nothing for Table 5, whose partitions say what is set aside",
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
            ValueError: If there are none as `data` says.
            OSError: If they cannot be read.
        """
        self.check_data()
        row = self.row
        if row.partition is not None:
            splicing = _load_splicing(Path(str(self.data)))
            return partition_of(splicing, row.partition, self.limit_train)
        how = row.encoding, self.validation, self.limit_train
        if self.data in (None, "digits"):
            return _load(self.data or row.dataset, *how)
        return _load_images(Path(self.data), row.dataset, *how)


def run(
    trial: Trial,
    directory: Path,
    on_epoch: OnEpoch = lambda done, validation: None,
) -> Result:
    """Trains, or does what is left of a training.

    Writes to `directory` the model (`.keras`), the history (`.csv`) and the
    result (`.json`), called by the trial's name, and until then a backup after
    each epoch. A trial that is finished is not repeated, and one that was
    stopped goes on from its last backup, to the same result. Of several
    processes that train together, all call this; the first one alone reads
    and writes files.

    Args:
        trial: The training.
        directory: Where to write; it is made if it does not exist.
        on_epoch: Called after each epoch with the number of epochs done and
            the figure of the validation examples, None without.

    Raises:
        ValueError: If it cannot be done, or the loss is no longer
            finite.
        OSError: If a file cannot be read or written.
    """
    if trial.backend != keras.backend.backend():
        raise invalid(
            "KERAS_BACKEND", f"'{trial.backend}'", keras.backend.backend()
        )
    backup = directory / f"{trial.name}.npz"
    first = not trial.data_parallel or is_first()
    result = trial.finished(directory) if first else None
    if trial.data_parallel:
        result = _from_first(result)
    if result is None:
        trained = train(
            trial.row,
            trial.dataset(),
            trial.seed,
            trial.width,
            trial.activation,
            command=trial.command,
            steps_per_execution=trial.steps_per_execution,
            backup=backup,
            on_epoch=on_epoch,
            data_parallel=trial.data_parallel,
        )
        result = replace(trained.result, limit_train=trial.limit_train)
        if first:
            save(replace(trained, result=result), directory, trial.name)
    if first:
        remove_backups(backup)
    return result


def _from_first(result: Result | None) -> Result | None:
    """The result that the first process has found, in every process."""
    found = json.dumps(asdict(result)) if result else ""
    sent = from_first(found.encode())
    return Result(**json.loads(sent)) if sent else None
