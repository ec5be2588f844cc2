import io
import itertools
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import keras
import numpy as np

from .._checks import check_boolean
from .._checks import check_path
from .._files import replacing
from .._keras import set_initial_epoch
from .reseed import Reseed


class ExactResume(Reseed):
    """Callback that resumes a stopped training bit for bit.

    At the end of each epoch the callback writes a file with all state on which
    the next epoch depends. After Ctrl-C, `kill -9` or a power cut, calling
    `model.fit` with the same arguments in a new process resumes training after
    the last completed epoch, and ends with the same weights, byte for byte, as
    an uninterrupted training. The file is never half-written: it contains the
    last epoch or the one before.

    `keras.callbacks.BackupAndRestore` also resumes, but guarantees neither the
    same masks nor the same order of the examples, and `History` starts empty.
    This callback restores weights, optimizer, learning rate, `History` and the
    given `callbacks`, and all random numbers of an epoch depend only on the
    seed and the number of the epoch; see `Reseed`.

    On JAX and PyTorch `model.fit` also takes arrays with `shuffle=True`. On
    TensorFlow Keras shuffles arrays with a generator whose state cannot be
    set: pass `resume.shuffled(x, y, batch_size)` and `shuffle=False` to
    `model.fit`, as in the example, which works on every backend. The batches of
    any other data set must not depend on how much of it was read before. Do not
    pass `steps_per_epoch` with arrays: each epoch would then start where the
    previous one ended.

    Args:
        filepath: Path of the file, `.npz`.
        seed: Non-negative integer. The seed of the training.
        callbacks: The stateful callbacks of the training, such as
            `keras.callbacks.EarlyStopping`, `keras.callbacks.ReduceLROnPlateau`
            or `BestEpoch`. The file keeps attributes that are numbers, strings,
            arrays, or lists and dicts of these. Put these callbacks before this
            one in the list for `model.fit`.
        identity: String that distinguishes this training from others, such as
            the version of the code. The callback refuses a file with another
            identity.
        delete_checkpoint: Boolean. Whether to delete the file when
            `model.fit` has ended.

    Raises:
        ValueError: If an argument is not of the kind described; at the start of
            training, if the file comes from a training with another model,
            optimizer, seed, number of steps, `identity`, backend or version of
            Keras.
        OSError: If the file cannot be written; the old file then remains.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> resume = keras_invdrop.ExactResume("backup.npz", seed=0)
    >>> batches = resume.shuffled(x, y, batch_size=4)
    >>> history = model.fit(
    ...     batches, epochs=6, shuffle=False, verbose=0, callbacks=[resume]
    ... )
    >>> len(history.history["loss"])  # all epochs, even after a kill
    6
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        seed: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        identity: str = "",
        delete_checkpoint: bool = True,
    ):
        super().__init__(seed)
        self.filepath = check_path("filepath", filepath)
        self.callbacks = list(callbacks)
        self.identity = str(identity)
        self.delete_checkpoint = check_boolean(
            "delete_checkpoint", delete_checkpoint
        )

    def on_train_begin(self, logs: Any = None) -> None:
        self._history: dict[str, list[Any]] = {}
        self._epochs: list[int] = []
        if not self.model.built:
            raise ValueError(
                "`ExactResume` needs a model that is built before `fit` is "
                "called, with an `Input` or by a call with a batch of data. "
                f"Received: {self.model}"
            )
        content = self.read()
        if content is not None:
            try:
                self._restore(content)
            except (
                EOFError,
                KeyError,
                TypeError,
                ValueError,
                zipfile.BadZipFile,
            ) as error:
                raise ValueError(
                    f"{self.filepath} is not the backup of this training: "
                    f"{error}. Delete it to start over."
                ) from error

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # `model.fit` has read its initial epoch; later calls must not reuse it.
        set_initial_epoch(self.model, None)
        self._continue_history()
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epochs.append(epoch)
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(
                float(value) if np.ndim(value) == 0 else np.array(value)
            )
        arrays = {
            f"variable_{i}": keras.ops.convert_to_numpy(variable)
            for i, variable in enumerate(self._variables())
        }
        kept: list[np.ndarray] = []
        state = {
            "training": self._training(),
            "epochs": self._epochs,
            "history": _packed(self._history, kept),
            "stopped": bool(self.model.stop_training),
            "callbacks": [_state(each, kept) for each in self.callbacks],
        }
        arrays |= {f"array_{i}": array for i, array in enumerate(kept)}
        self.write({"state": np.array(json.dumps(state)), **arrays})

    def on_train_end(self, logs: Any = None) -> None:
        set_initial_epoch(self.model, None)
        self._continue_history()
        if self.delete_checkpoint:
            self.filepath.unlink(missing_ok=True)

    def read(self) -> bytes | None:
        """The content of the file; None if no file exists."""
        return self.filepath.read_bytes() if self.filepath.exists() else None

    def write(self, arrays: dict[str, Any]) -> None:
        """Writes the file, replacing the file of the epoch before."""
        with (
            replacing(self.filepath) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, **arrays)

    def _training(self) -> list[str]:
        """What an epoch depends on, besides the restored state."""
        return [
            self.identity,
            f"seed {self.seed}",
            f"epochs of {self.params.get('steps')} steps",
            f"Keras {keras.__version__} on {keras.backend.backend()}",
        ]

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def _restore(self, content: bytes) -> None:
        with np.load(io.BytesIO(content)) as file:
            state = json.loads(str(file["state"]))
            for began, now in zip(
                state["training"], self._training(), strict=True
            ):
                if began != now:
                    raise ValueError(
                        f"the file has {began}, this training has {now}"
                    )
            optimizer = self.model.optimizer
            if not optimizer.built:
                optimizer.build(self.model.trainable_variables)
            variables = self._variables()
            values = _numbered(file, "variable")
            shapes = [tuple(variable.shape) for variable in variables]
            if [value.shape for value in values] != shapes:
                raise ValueError("the file has another model or optimizer")
            kept = _numbered(file, "array")
        for variable, value in zip(variables, values, strict=True):
            if value.dtype.kind == "V":  # NumPy does not know bfloat16
                value = value.view(keras.ops.convert_to_numpy(variable).dtype)
            variable.assign(value)
        for callback, attributes in zip(
            self.callbacks, state["callbacks"], strict=True
        ):
            found = _unpacked(attributes, kept)
            if getattr(callback, "monitor_op", self) is None:
                # Keras changes the sign when it sets the operation.
                found.pop("min_delta", None)
            vars(callback).update(found)
        self._history = _unpacked(state["history"], kept)
        self._epochs = state["epochs"]
        following = self._epochs[-1] + 1
        if state["stopped"]:
            following = self.params["epochs"]
        set_initial_epoch(self.model, following)

    def _continue_history(self) -> None:
        """Adds the earlier epochs to `History`.

        Keras appends `History` to the callbacks, so its `on_train_begin` runs
        after that of this callback and empties the history.
        """
        history = self.model.history
        if len(history.epoch) < len(self._epochs):
            history.epoch = list(self._epochs)
            history.history = {
                name: list(values) for name, values in self._history.items()
            }


def _numbered(file: Any, name: str) -> list[np.ndarray]:
    names = (f"{name}_{i}" for i in itertools.count())
    return [
        file[each] for each in itertools.takewhile(file.__contains__, names)
    ]


def _state(
    callback: keras.callbacks.Callback, kept: list[np.ndarray]
) -> dict[str, Any]:
    """The attributes of a callback that JSON can represent."""
    state = {}
    for name, value in vars(callback).items():
        # Every callback has the model and the parameters of the training.
        if name not in vars(keras.callbacks.Callback()):
            arrays = list(kept)
            # Functions and data sets are not state.
            with suppress(TypeError):
                state[name] = _packed(value, arrays)
                kept[:] = arrays
    return {"attributes": state}


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
    """`value` as JSON, with a number for each array."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1, "dtype": value.dtype.name}
    if isinstance(value, (list, tuple)):
        return [_packed(each, arrays) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        packed = {key: _packed(each, arrays) for key, each in value.items()}
        return {"attributes": packed}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value)} cannot be kept")


def _unpacked(packed: Any, kept: list[np.ndarray]) -> Any:
    """The value that `_packed` packed."""
    if isinstance(packed, list):
        return [_unpacked(each, kept) for each in packed]
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        array = kept[packed["array"]]
        if array.dtype.kind == "V":  # NumPy files do not name bfloat16.
            array = array.view(packed["dtype"])
        return array
    return {
        key: _unpacked(each, kept) for key, each in packed["attributes"].items()
    }
