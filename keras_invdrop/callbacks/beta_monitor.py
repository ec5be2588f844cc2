import csv
import os
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import fields
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from .._batches import Examples
from .._checks import check_path
from .._checks import check_positive_integer
from .._checks import invalid
from .._extras import require
from .._files import replacing
from .._keras import graph_of
from .._statistics import correlation
from ..layers._shifted_dropout import ShiftedDropout
from ..models._dropout_sites import DropoutSite
from ..models._dropout_sites import all_activities
from ..models._dropout_sites import dropout_sites
from ..models._graph import Names
from ..models._graph import check_callable
from ..models._injected_variance import LinearPart
from ..models._injected_variance import fraction_saved
from ..models._injected_variance import injected_variances
from ..models._injected_variance import linear_parts
from ..models._injected_variance import means_for_shifts
from ..models._injected_variance import moments_of
from ..models._injected_variance import present_shift


@dataclass(frozen=True)
class BetaFigures:
    """The figures of one layer; `BetaMonitor` defines them."""

    beta_mean: float
    beta_std: float
    beta_norm: float
    correlation: float
    variance_saved: float


class _Sites(NamedTuple):
    """The calls of layers with a beta.

    Attributes:
        sites: The sites.
        linear: The `linear_parts(site)` of each site.
        which: The number of each site among all sites of the model.
    """

    sites: list[DropoutSite]
    linear: list[list[LinearPart]]
    which: list[int]


COLUMNS = ["epoch", "layer", *(field.name for field in fields(BetaFigures))]


class BetaMonitor(keras.callbacks.Callback):
    """Callback that records each layer's beta in CSV and TensorBoard files.

    The figures show whether beta approaches minus the mean activity, and how
    much variance this saves. At the end of an epoch the callback computes for
    each dropout layer of this library:

    - `beta_mean`, `beta_std`: mean and standard deviation of the elements of
      beta,
    - `beta_norm`: the Euclidean norm of beta,
    - `correlation`: the correlation of beta with the mean activity, which is
      negative in the paper (Figure 2); NaN if all elements are equal, as in a
      beta of zeros,
    - `variance_saved`: the fraction of the injected variance (Eq. 10) that
      beta saves, compared with a beta of zero; negative if beta increases the
      variance.

    The callback adds the figures to the `logs` of the epoch as
    `"layer/figure"`, for `History`, the progress bar, and callbacks that come
    after this one in the list, such as `EarlyStopping`. The name of a layer
    inside another is its path, such as `"block/dropout"`. For
    `RunningAverageDropout` beta is minus the average.

    The callback measures activities at inference, on a sample of `x`. A
    measurement takes one forward pass of the sample and, for each layer, a pass
    of two or three examples through the next layer. If activities share a mask,
    as in `SpatialInvariantDropout`, it takes a pass of the sample for each
    feature map: use fewer `examples` or a larger `freq`.

    Args:
        x: Array, or a list, tuple or dict of arrays, as `model.predict` takes
            them. Examples on which to measure activities, such as training
            examples. The measurement excludes timesteps masked as padding.
        filename: Filename of a CSV file, with a row for each epoch and layer:
            epochs count from 0, as in `keras.callbacks.CSVLogger`. The callback
            replaces the whole file after each epoch, so that it is never
            half-written. A training resumed with `initial_epoch` or
            `keras.callbacks.BackupAndRestore` keeps the rows of earlier epochs.
            By default the callback writes no file.
        log_dir: Path of the directory for TensorBoard, which may be that of
            `keras.callbacks.TensorBoard`. Needs the package tensorboardX, but
            not TensorFlow. By default the callback writes no events.
        freq: Positive integer. Interval between measurements: after the epochs
            0, `freq`, `2 * freq` and so on. The lists in `History` have entries
            for these epochs only.
        examples: Positive integer. The largest number of examples of `x` to
            use. The callback draws the sample once, with a fixed seed.
        batch_size: Positive integer. Examples per forward pass.

    Raises:
        ImportError: If `log_dir` is given and tensorboardX is not installed.
        ValueError: If `x` has no examples, another argument is not of the kind
            described, or `filename` is a file that this callback did not
            write; when training begins, if the model has no layer with a
            beta, or does not take `x`.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((2,)),
    ...         keras_invdrop.InvariantDropout(0.5, name="drop"),
    ...         keras.layers.Dense(1),
    ...     ]
    ... )
    >>> model.compile("sgd", "mse")
    >>> x, y = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[1.0], [2.0]])
    >>> monitor = keras_invdrop.BetaMonitor(x)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor])
    >>> len(history.history["drop/beta_norm"])
    3

    Reference:

    - Ba, Xiong and Frey, 2014, section 4, Figure 2 and Eq. 10
    """

    def __init__(
        self,
        x: Any,
        filename: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
        freq: int = 1,
        examples: int = 256,
        batch_size: int = 128,
    ):
        super().__init__()
        self.examples = check_positive_integer("examples", examples)
        self.x = _sample(Examples("x", x), self.examples)
        self.filename: Any = None
        if filename is not None:
            self.filename = check_path("filename", filename)
        self.log_dir: Any = None
        if log_dir is not None:
            self.log_dir = check_path("log_dir", log_dir)
        self.freq = check_positive_integer("freq", freq)
        self.batch_size = check_positive_integer("batch_size", batch_size)
        if self.filename is not None:
            _read_rows(self.filename)
        if self.log_dir is not None:
            require("Argument `log_dir`", ["tensorboardX"], "tensorboard")
        self._sites: _Sites | None = None
        self._writer: Any = None

    def __getstate__(self):
        # On JAX reading `model` updates the weights of a model in training.
        _ = self.model
        # These two are created again on demand.
        return {**self.__dict__, "_sites": None, "_writer": None}

    def on_train_begin(self, logs=None):
        self._close()  # the writer of a failed training
        self._sites = None
        # On TensorFlow the first batch builds a Sequential model without
        # `keras.Input`, and on all backends a subclass.
        if self.model.built or graph_of(self.model) is not None:
            self._find_sites()

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.freq:
            return
        # Divergence shows in the loss.
        with np.errstate(invalid="ignore", over="ignore"):
            measured = dict(self._measure())
        for layer, figures in measured.items():
            for name, value in asdict(figures).items():
                if logs is not None:
                    logs[f"{layer}/{name}"] = value
        if self.filename is not None:
            self._write_rows(epoch, measured)
        if self.log_dir is not None:
            self._write_events(epoch, measured)

    def on_train_end(self, logs=None):
        self._close()

    def _close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _find_sites(self) -> _Sites:
        """Finds the layers with a beta, and raises an error if none exists.

        Also raises an error if the model does not take `x`, before training.
        """
        examples = Examples("x", self.x)
        examples.check(check_callable(self.model))
        sites = dropout_sites(self.model, examples.first(self.model))
        which = [
            i
            for i, site in enumerate(sites)
            if isinstance(site.layer, ShiftedDropout)
        ]
        if not which:
            raise invalid(
                "model",
                "a model with a dropout layer that has a beta, such as "
                "`InvariantDropout`",
                self.model,
            )
        sites = [sites[i] for i in which]
        linear = [linear_parts(site) for site in sites]
        self._sites = _Sites(sites, linear, which)
        return self._sites

    def _measure(self) -> Iterator[tuple[str, BetaFigures]]:
        """Pairs of a layer's name and its figures."""
        sites, linear, which = self._sites or self._find_sites()
        arrived = []
        for part in Examples("x", self.x).parts(self.batch_size):
            activities = all_activities(self.model, part)
            arrived.append([activities[i] for i in which])
        moments = moments_of(arrived)
        means = means_for_shifts(sites, moments)
        variances = injected_variances(sites, linear, moments, lambda: arrived)
        calls: dict[keras.Layer, list[int]] = {}
        for i, site in enumerate(sites):
            calls.setdefault(site.layer, []).append(i)
        names = Names()
        for numbers in calls.values():
            rows = np.concatenate([variances[i] for i in numbers])
            zero, present, _ = rows.sum(axis=0).tolist()
            beta = present_shift(sites[numbers[0]])
            yield (
                names.unique(sites[numbers[0]].name),
                BetaFigures(
                    beta_mean=float(beta.mean()),
                    beta_std=float(beta.std()),
                    beta_norm=float(np.linalg.norm(beta)),
                    correlation=correlation(means[numbers[0]], beta),
                    variance_saved=fraction_saved(zero, present),
                ),
            )

    def _write_rows(self, epoch, measured):
        """Adds rows to the file, replacing the rows from `epoch` on."""
        kept = [
            row
            for row in _read_rows(self.filename)
            if int(row["epoch"]) < epoch
        ]
        added = [
            {"epoch": epoch, "layer": layer, **asdict(figures)}
            for layer, figures in measured.items()
        ]
        with (
            replacing(self.filename) as temporary,
            temporary.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept + added)

    def _write_events(self, epoch, measured):
        if self._writer is None:
            # tensorboardX is an optional dependency.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(self.log_dir),
                # Hides the events of an earlier training from here on.
                purge_step=epoch,
                # Distinguishes trainings that begin in the same second.
                filename_suffix=f".{epoch}",
            )
        for layer, figures in measured.items():
            for name, value in asdict(figures).items():
                self._writer.add_scalar(f"{layer}/{name}", value, epoch)
        self._writer.flush()


def _sample(examples, size):
    """At most `size` examples, the same ones in every call."""
    count = len(examples)
    if count <= size:
        return examples[range(count)]
    which = np.random.default_rng(0).choice(count, size, replace=False)
    return examples[np.sort(which)]


def _read_rows(path):
    """The rows of a file that the callback wrote; empty without a file."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError:
        return []
    if reader.fieldnames not in (None, COLUMNS):
        raise ValueError(
            "Invalid value received for argument `filename`. Expected a new "
            "file or one that `BetaMonitor` wrote, with the columns "
            f"{','.join(COLUMNS)}. Received: {path} with the columns "
            f"{','.join(reader.fieldnames)}"
        )
    return rows
