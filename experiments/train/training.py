"""Trains the network of a trial and saves the outcome."""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_invdrop._checks import invalid
from keras_invdrop._files import replacing
from keras_invdrop._statistics import correlation
from keras_invdrop.layers._shifted_dropout import ShiftedDropout
from keras_invdrop.models._injected_variance import means_by_site

from ..data.datasets import Dataset
from ..data.datasets import Split
from ..data.datasets import Stream
from ..data.datasets import in_memory
from ..results.records import Result
from ..results.records import packed
from ..results.records import read_result
from ..results.records import restored
from ..results.records import this_code
from ..results.records import write_result
from .callbacks import Fitted
from .devices import from_first
from .devices import is_first
from .trainer import Trainer
from .trial import Trial

# Number of examples for the mean activity that is compared with beta.
OBSERVED = 1000


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        model: The network at the selected epoch, or retrained for that number
            of epochs. It returns probabilities.
        history: One row per epoch: `training_loss` and `training_error`
            (measured during the training, with dropout), `validation_error`
            if there is a validation set, `test_error` if the trial has a
            `test_curve`. Errors are in percent; for the splicing data, code
            quality in `_bits` replaces them.
        result: The figures, and everything needed to repeat them.
    """

    model: keras.Model
    history: pd.DataFrame
    result: Result


# Called after each epoch with the number of finished epochs and the figure on
# the validation examples, or None without validation examples.
OnEpoch = Callable[[int, float | None], None]


def train(
    trial: Trial,
    dataset: Dataset | None = None,
    backup: Path | None = None,
    on_epoch: OnEpoch = lambda done, validation: None,
) -> Trained:
    """Trains the network of a row by its recipe.

    The validation examples select the epoch with the lowest error (or the
    highest code quality), the earliest one in a tie; without validation
    examples, the last epoch is selected. If the recipe sets `retrain`, a new
    network is trained for the selected number of epochs on the training and
    validation examples. Afterwards the final weights are tested once; a test
    curve (`Trial.test_curve`) never affects the selection.

    With the same seed and `initial_stddev`, the networks of all methods have
    the same initial weights.

    Args:
        trial: The training.
        dataset: The examples; by default the trial loads them.
        backup: File (`.npz`) to write after each epoch. A stopped training
            resumes from this file and ends with the same weights. This file
            and the backup of the retraining, `-anew.npz`, remain: see
            `remove_backups`.
        on_epoch: Called after each epoch with the number of finished epochs
            and the figure on the validation examples, or None without
            validation examples.

    Returns:
        A `Trained`.

    Raises:
        ValueError: If the loss is no longer finite, the recipe retrains but
            the examples are a `Stream`, `width` leaves a layer empty, the
            network does not take an `activation`, or `backup` belongs to
            another training.
        OSError: If `backup` cannot be written.
    """
    row = trial.row
    if dataset is None:
        dataset = trial.dataset()
    anew = row.recipe.retrain and len(dataset.validation) > 0
    if anew and isinstance(dataset.train, Stream):
        # Refuse before the first of two trainings.
        raise invalid(
            "retrain",
            "False for training examples that are read on demand, to which "
            "validation examples cannot be added",
            True,
        )
    code = this_code()  # before its files change
    trainer = Trainer(trial, dataset)
    evaluated = {"val": dataset.validation}
    if trial.test_curve:
        evaluated["test"] = dataset.test

    def told(fitted: Fitted) -> None:
        on_epoch(fitted.epochs, trainer.validation(fitted, fitted.epochs))

    fitted = trainer.fit(
        trainer.model(),
        dataset.train,
        row.recipe.epochs,
        evaluated,
        backup,
        told,
    )
    history = _history(trainer, fitted)
    selected = fitted.selected_epoch
    examples, tested = len(dataset.train), fitted
    if anew:
        examples += len(dataset.validation)
        tested = _trained_anew(trainer, fitted, backup, on_epoch)
        tested.seconds += fitted.seconds
    network = trainer.network("softmax")
    network.set_weights(tested.weights)
    # Use the test set only now that the selection is over.
    figure, wrong = trainer.test(network)
    result = Result(
        row=row.id,
        dataset=dataset.name,
        source=dataset.source,
        encoding=dataset.encoding,
        training_examples=examples,
        validation_examples=len(dataset.validation),
        test_examples=len(dataset.test),
        network=row.network.name,
        width=trial.width,
        parameters=network.count_params(),
        activation=trial.activation,
        dropout=row.method,
        seed=trial.seed,
        epochs=row.recipe.epochs,
        selected_epoch=selected,
        unit=row.unit,
        validation=trainer.validation(fitted, selected),
        test=figure,
        correlations=_correlations(network, dataset),
        seconds=round(tested.seconds, 1),
        backend=keras.backend.backend(),
        versions=_versions(),
        commit=code.commit,
        command=trial.command,
        limit_train=trial.limit_train,
        recipe=asdict(row.recipe),
        wrong=None if wrong is None else packed(wrong),
    )
    return Trained(network, history, result)


def _history(trainer: Trainer, fitted: Fitted) -> pd.DataFrame:
    """The losses and figures of each epoch."""
    metric, logs = fitted.metric, fitted.logs
    measure = "bits" if trainer.row.unit == "bits" else "error"
    history = pd.DataFrame({"training_loss": logs["loss"]})
    for prefix, name in {
        "": "training",
        "val_": "validation",
        "test_": "test",
    }.items():
        if prefix + metric in logs:
            values = logs[prefix + metric]
            history[f"{name}_{measure}"] = trainer.figures(values)
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


def _trained_anew(
    trainer: Trainer, fitted: Fitted, backup: Path | None, on_epoch: OnEpoch
) -> Fitted:
    """Retrains with the validation examples among the training examples."""
    splits = in_memory(trainer.dataset.train), trainer.dataset.validation
    everything = Split(
        np.concatenate([split.x for split in splits]),
        np.concatenate([split.y for split in splits]),
    )

    def told(anew: Fitted) -> None:
        on_epoch(fitted.epochs + anew.epochs, None)

    return trainer.fit(
        trainer.model(),
        everything,
        fitted.selected_epoch,
        backup=None if backup is None else _anew(backup),
        on_epoch=told,
    )


def _anew(backup: Path) -> Path:
    return backup.with_stem(f"{backup.stem}-anew")


def _correlations(
    network: keras.Model, dataset: Dataset
) -> dict[str, float | None]:
    """Correlations of beta and the mean activity, by layer (Figure 2).

    The correlation is None for a layer with equal shifts or equal means.
    Without examples in memory the dictionary is empty.
    """
    examples = dataset.train
    if not isinstance(examples, Split):
        examples = dataset.validation
    observed = examples.x[:OBSERVED]
    correlations: dict[str, float | None] = {}
    if not len(observed):
        return correlations
    for site, mean in means_by_site(network, observed):
        if not isinstance(site.layer, ShiftedDropout):
            continue
        shift = keras.ops.convert_to_numpy(site.layer.shift)
        r = correlation(mean, shift)
        correlations[site.layer.name] = None if np.isnan(r) else round(r, 4)
    return correlations


def save(trained: Trained, directory: Path, name: str) -> None:
    """Writes model (`.keras`), history (`.csv`) and result (`.json`).

    Each file appears only when complete, and the result last: if the result
    exists, the other files exist, too.
    """
    with replacing(directory / f"{name}.keras") as temporary:
        trained.model.save(temporary)
    with replacing(directory / f"{name}.csv") as temporary:
        trained.history.to_csv(temporary)
    write_result(directory / f"{name}.json", trained.result)


def remove_backups(backup: Path) -> None:
    """Deletes the backups of a finished training.

    Also deletes partial files that a killed process left.
    """
    for path in (backup, _anew(backup)):
        path.unlink(missing_ok=True)
    for path in backup.parent.glob(f".{backup.stem}*"):
        path.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    packages = "keras-invdrop", "keras", keras.backend.backend(), "numpy"
    return {name: importlib.metadata.version(name) for name in packages}


def finished(trial: Trial, directory: Path) -> Result | None:
    """The result of a finished trial, or None.

    Raises:
        ValueError: If another version of the code has trained the trial: the
            results of two versions must not be mixed.
    """
    path = directory / f"{trial.name}.json"
    if not path.exists():
        return None
    result = read_result(path)
    if result.code != this_code():
        raise ValueError(
            f"{path} was trained with {result.code}; this is {this_code()}. "
            "Write the results of this version to another `--out`."
        )
    return result


def run(
    trial: Trial,
    directory: Path,
    on_epoch: OnEpoch = lambda done, validation: None,
) -> Result:
    """Trains a trial, or finishes a stopped training.

    Writes a backup after each epoch and finally the model (`.keras`), the
    history (`.csv`) and the result (`.json`), named after the trial, to
    `directory`. A finished trial is not repeated. A stopped trial resumes from
    its last backup and leads to the same result. All processes that train
    together call this function; only the first one reads and writes files.

    Args:
        trial: The training.
        directory: Directory to write to, created if it does not exist.
        on_epoch: Called after each epoch with the number of finished epochs
            and the figure on the validation examples, or None without
            validation examples.

    Raises:
        ValueError: If the trial cannot be trained, or the loss is no longer
            finite.
        OSError: If a file cannot be read or written.
    """
    backup = directory / f"{trial.name}.npz"
    first = not trial.data_parallel or is_first()
    result = finished(trial, directory) if first else None
    if trial.data_parallel:
        result = _from_first(result)
    if result is None:
        trained = train(trial, backup=backup, on_epoch=on_epoch)
        result = trained.result
        if first:
            save(trained, directory, trial.name)
    if first:
        remove_backups(backup)
    return result


def _from_first(result: Result | None) -> Result | None:
    """Sends the first process' result to every process."""
    found = json.dumps(asdict(result)) if result else ""
    sent = from_first(found.encode())
    if not sent:
        return None
    received = Result(**json.loads(sent))
    return replace(received, recipe=restored(received.recipe))
