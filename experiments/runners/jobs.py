"""Trainings that are described, so that any process can do them."""

import functools
import hashlib
import json
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path

import keras

from keras_invdrop.validation import invalid

from ..data.datasets import Dataset
from ..data.datasets import load
from ..data.splicing import check_file
from ..data.splicing import load_splicing
from ..data.splicing import partition_of
from ..paper.tables import Row
from ..results.records import Result
from ..results.records import read_result
from ..results.records import this_code
from ..train.devices import from_first
from ..train.devices import is_first
from ..train.training import OnEpoch
from ..train.training import remove_backups
from ..train.training import save
from ..train.training import train

# With which a backend trains convolutions fastest (benchmarks/README.md).
IMAGE_DATA_FORMAT = (
    "channels_first" if keras.backend.backend() == "torch" else "channels_last"
)

# Jobs that follow one another have their examples in common, on two encodings.
_load = functools.lru_cache(maxsize=2)(load)
_load_splicing = functools.lru_cache(maxsize=1)(load_splicing)


@dataclass(frozen=True)
class Job:
    """One row, trained with one seed.

    Attributes:
        row: The row, with the recipe by which it is trained.
        seed: Of initial weights, masks and the order of the examples.
        width: Multiplier of the units of the network's layers.
        activation: Of the hidden units; None for the network's own.
        data: For Table 2, `"digits"` in place of MNIST; for Table 5, the file
            of the splicing data; else None.
        limit_train: Number of training examples; None for all.
        validation: Number of examples to set aside for validation; None for
            as many as in the paper.
        command: What was called, for the result.
        backend: Keras' backend.
        steps_per_execution: Training steps in one call of the backend.
        data_parallel: Whether to divide batches over all devices of all
            processes. Results differ by rounding alone, so that one that was
            stopped may go on with another number of devices.
    """

    row: Row
    seed: int
    width: float = 1.0
    activation: str | None = None
    data: str | None = None
    limit_train: int | None = None
    command: str = ""
    backend: str = field(default_factory=keras.backend.backend)
    steps_per_execution: int = 1
    validation: int | None = None
    data_parallel: bool = False

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
        if self.row.partition is None or self.data is None:
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
            names = (None, "digits") if self.row.dataset == "mnist" else (None,)
            if self.data not in names:
                raise invalid(
                    "--data",
                    "'digits' for Table 2, a file for Table 5",
                    self.data,
                )
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
        if self.row.partition is not None:
            splicing = _load_splicing(Path(str(self.data)))
            return partition_of(splicing, self.row.partition, self.limit_train)
        name = self.data or self.row.dataset
        return _load(name, self.row.encoding, self.validation, self.limit_train)


def run(
    job: Job,
    directory: Path,
    on_epoch: OnEpoch = lambda done, validation: None,
) -> Result:
    """Does a job, or what is left of it.

    Writes to `directory` the model (`.keras`), the history (`.csv`) and the
    result (`.json`), called by the job's name, and until then a backup after
    each epoch. A job that is finished is not repeated, and one that was
    stopped goes on from its last backup, to the same result. Of several
    processes that do a job together, all call this; the first one alone reads
    and writes files.

    Args:
        job: The job.
        directory: Where to write; it is made if it does not exist.
        on_epoch: Called after each epoch with the number of epochs done and
            the figure of the validation examples, None without.

    Raises:
        ValueError: If the job cannot be done, or the loss is no longer
            finite.
        OSError: If a file cannot be read or written.
    """
    if job.backend != keras.backend.backend():
        raise invalid(
            "KERAS_BACKEND", f"'{job.backend}'", keras.backend.backend()
        )
    backup = directory / f"{job.name}.npz"
    first = not job.data_parallel or is_first()
    result = job.finished(directory) if first else None
    if job.data_parallel:
        result = _from_first(result)
    if result is None:
        trained = train(
            job.row,
            job.dataset(),
            job.seed,
            job.width,
            job.activation,
            command=job.command,
            steps_per_execution=job.steps_per_execution,
            backup=backup,
            on_epoch=on_epoch,
            data_parallel=job.data_parallel,
        )
        result = replace(trained.result, limit_train=job.limit_train)
        if first:
            save(replace(trained, result=result), directory, job.name)
    if first:
        remove_backups(backup)
    return result


def _from_first(result: Result | None) -> Result | None:
    """The result that the first process has found, in every process."""
    found = json.dumps(asdict(result)) if result else ""
    sent = from_first(found.encode())
    return Result(**json.loads(sent)) if sent else None
