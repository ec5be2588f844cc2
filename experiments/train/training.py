"""Trains one row of the paper's tables with one seed."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_invdrop.batches import Examples
from keras_invdrop.layers.shifted_dropout import ShiftedDropout
from keras_invdrop.models.dropout_sites import all_activities
from keras_invdrop.models.dropout_sites import dropout_sites
from keras_invdrop.models.variance_report import means_for_shifts
from keras_invdrop.models.variance_report import moments_of
from keras_invdrop.statistics import correlation
from keras_invdrop.validation import invalid

from ..data.datasets import Dataset
from ..data.datasets import Split
from ..data.datasets import Stream
from ..data.datasets import in_memory
from ..paper.tables import Row
from ..results.records import Result
from ..results.records import packed
from ..results.records import replacing
from ..results.records import this_code
from ..results.records import write_result
from .fitting import Fitted
from .fitting import evaluation_batch
from .task import Task

# The number of examples over which activities are averaged, to be compared
# with beta.
OBSERVED = 1000


@dataclass(frozen=True)
class Run:
    """The outcome of a training.

    Attributes:
        model: The network at the selected epoch, or trained anew for so many
            epochs; it returns probabilities.
        history: One row per epoch: `training_loss` and `training_error`
            (measured while training, with dropout), `validation_error` if
            there is a validation set, `test_error` if a curve was asked for.
            Errors are in percent; for the splicing data, `_bits` of code
            quality stand in their place.
        result: The figures, and all that is needed to repeat them.
    """

    model: keras.Model
    history: pd.DataFrame
    result: Result


# Called after each epoch with the number of epochs done and the figure of the
# validation examples, None without such.
OnEpoch = Callable[[int, float | None], None]


def train(
    row: Row,
    dataset: Dataset,
    seed: int,
    width: float = 1.0,
    activation: str | None = None,
    test_curve: bool = False,
    command: str = "",
    steps_per_execution: int = 1,
    backup: Path | None = None,
    on_epoch: OnEpoch = lambda done, validation: None,
    data_parallel: bool = False,
) -> Run:
    """Trains the network of a row by its recipe.

    The weights of the epoch with the lowest validation error (or the highest
    code quality) are selected, the earlier one if two are equal, or those of
    the last epoch where the data set has no validation examples. If the
    recipe says so, the network is trained anew, on the validation examples as
    well, for as many epochs. Only then is the test set looked at, once: by
    the selected weights or, for a curve, after every epoch, by which nothing
    is selected.

    With one seed, the networks of all methods have the same initial weights.

    Args:
        row: The row, with the network, the method and the recipe.
        dataset: The examples.
        seed: Integer. Seed of initial weights, masks and the order of the
            examples.
        width: Multiplier of the units of the network's layers.
        activation: Activation function of the hidden units, by default the
            network's own. For the fully connected networks.
        test_curve: Whether to measure the test set after every epoch, too.
        command: What was called, for the result.
        steps_per_execution: Training steps in one call of the backend.
        backup: File (`.npz`) to write to after each epoch, from which a
            training that was stopped goes on, to the same weights. It and
            that of training anew, `-anew.npz`, are left: see
            `remove_backups`.
        on_epoch: Called after each epoch with the number of epochs done and
            the figure of the validation examples, None without.
        data_parallel: Whether to divide batches over all devices of all
            processes, on JAX; see `devices.joined`.

    Returns:
        A `Run`.

    Raises:
        ValueError: If the loss is no longer finite, the recipe trains a
            network anew whose examples are a `Stream`, `width` leaves a layer
            empty, the network does not take an `activation`, or `backup` is
            not that of this training.
        OSError: If `backup` cannot be written.
    """
    anew = row.recipe.retrain and len(dataset.validation) > 0
    if anew and isinstance(dataset.train, Stream):
        # Refuse now rather than after the first of two trainings.
        raise invalid(
            "retrain",
            "False for training examples that are read while they are used, "
            "to which those for validation cannot be added",
            True,
        )
    code = this_code()  # before its files change
    task = Task(
        row,
        dataset,
        seed,
        width,
        activation,
        steps_per_execution,
        data_parallel,
    )
    evaluated = {"val": dataset.validation}
    if test_curve:
        evaluated["test"] = dataset.test

    def told(fitted: Fitted) -> None:
        on_epoch(fitted.epochs, task.validation(fitted, fitted.epochs))

    fitted = task.fit(
        task.model(),
        dataset.train,
        row.recipe.epochs,
        evaluated,
        backup,
        told,
    )
    history = _history(task, fitted)
    selected = fitted.selected_epoch
    examples, tested = len(dataset.train), fitted
    if anew:
        examples += len(dataset.validation)
        tested = _trained_anew(task, fitted, backup, on_epoch)
        tested.seconds += fitted.seconds
    network = task.network("softmax")
    network.set_weights(tested.selected)
    # Everything is selected: from here on the test set may be used.
    figure, wrong = task.test(network)
    result = Result(
        row=row.id,
        dataset=dataset.name,
        source=dataset.source,
        encoding=dataset.encoding,
        training_examples=examples,
        validation_examples=len(dataset.validation),
        test_examples=len(dataset.test),
        network=row.network.name,
        width=width,
        parameters=network.count_params(),
        activation=activation,
        dropout=row.method,
        seed=seed,
        epochs=row.recipe.epochs,
        selected_epoch=selected,
        unit=row.unit,
        validation=task.validation(fitted, selected),
        test=figure,
        correlations=_correlations(network, dataset),
        seconds=round(tested.seconds, 1),
        backend=keras.backend.backend(),
        versions=_versions(),
        commit=code.commit,
        command=command,
        recipe=asdict(row.recipe),
        wrong=None if wrong is None else packed(wrong),
    )
    return Run(network, history, result)


def _history(task: Task, fitted: Fitted) -> pd.DataFrame:
    """The losses and figures of each epoch."""
    metric, logs = fitted.metric, fitted.logs
    history = pd.DataFrame({"training_loss": logs["loss"]})
    for prefix, name in {
        "": "training",
        "val_": "validation",
        "test_": "test",
    }.items():
        if prefix + metric in logs:
            history[f"{name}_{task.measure}"] = task.figures(
                logs[prefix + metric]
            )
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


def _trained_anew(
    task: Task, fitted: Fitted, backup: Path | None, on_epoch: OnEpoch
) -> Fitted:
    """Trains a network on the validation examples as well."""
    splits = in_memory(task.dataset.train), task.dataset.validation
    everything = Split(
        np.concatenate([split.x for split in splits]),
        np.concatenate([split.y for split in splits]),
    )

    def told(anew: Fitted) -> None:
        on_epoch(fitted.epochs + anew.epochs, None)

    return task.fit(
        task.model(),
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
    """Of beta with the mean activity, by layer (Figure 2).

    A layer whose shifts, or means, are all equal has None. Without examples
    in memory the dictionary is empty.
    """
    examples = dataset.train
    if not isinstance(examples, Split):
        examples = dataset.validation
    observed, size = examples.x[:OBSERVED], evaluation_batch(examples)
    correlations: dict[str, float | None] = {}
    if not len(observed):
        return correlations
    sites = dropout_sites(network)
    batches = (
        all_activities(network, part)
        for part in Examples("x", observed).parts(size)
    )
    means = means_for_shifts(sites, moments_of(batches))
    for site, mean in zip(sites, means, strict=True):
        if not isinstance(site.layer, ShiftedDropout):
            continue
        shift = keras.ops.convert_to_numpy(site.layer.shift)
        r = correlation(mean, shift)
        correlations[site.layer.name] = None if np.isnan(r) else round(r, 4)
    return correlations


def save(run: Run, directory: Path, name: str) -> None:
    """Writes model (`.keras`), history (`.csv`) and result (`.json`) of a run.

    Each file appears when it is whole, and the result last: where it is, the
    others are, too.
    """
    with replacing(directory / f"{name}.keras") as temporary:
        run.model.save(temporary)
    with replacing(directory / f"{name}.csv") as temporary:
        run.history.to_csv(temporary)
    write_result(directory / f"{name}.json", run.result)


def remove_backups(backup: Path) -> None:
    """Deletes the backups of a training that has ended.

    Files that were being written when it was killed go as well.
    """
    for path in (backup, _anew(backup)):
        path.unlink(missing_ok=True)
    for path in backup.parent.glob(f".{backup.stem}*"):
        path.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    packages = "keras-invdrop", "keras", keras.backend.backend(), "numpy"
    return {name: importlib.metadata.version(name) for name in packages}
