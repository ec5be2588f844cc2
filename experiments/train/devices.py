"""One training on many devices of one or several processes, with JAX.

`keras.distribution` and JAX keep the weights on every device and divide each
batch. This module assigns examples to the devices of each process, so that an
epoch uses each example once.
"""

import os
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_invdrop._averages import averaging
from keras_invdrop._checks import invalid
from keras_invdrop._keras import initial_epoch
from keras_invdrop._keras import set_initial_epoch

from ..data.datasets import Split

# Seconds of silence after which a process counts as lost. JAX's default of 100
# exceeds a user's patience; 30 still bridge a short network failure.
HEARTBEAT = 30

# Name of a loss or metric -> its value over all examples.
Logs = dict[str, float]


def check_backend(option: str) -> None:
    """Raises a `ValueError` if Keras' backend has no `keras.distribution`."""
    if keras.backend.backend() != "jax":
        raise invalid(
            "KERAS_BACKEND",
            f"'jax' with `{option}`; docs/scaling_out.md has what TensorFlow "
            "and PyTorch offer",
            keras.backend.backend(),
        )


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the processes that train together, until the end of the block.

    JAX takes arguments that are None from the environment of a launcher that
    it supports (Slurm, Kubernetes, Open MPI). Without a launcher and without a
    coordinator, this process trains alone. Enter the block before JAX computes
    anything.

    If the block raises an error, this process prints the error and ends at
    once; otherwise the other processes would wait for this one.

    Args:
        coordinator: `"HOST:PORT"` of process 0.
        processes: Number of processes.
        process_id: Number of this process, from 0 on.

    Raises:
        ValueError: If only some of the three arguments are known.
        OSError: If the processes cannot connect to one another.
    """
    if not _found_together(coordinator, processes, process_id):
        yield
        return
    try:
        yield
    except BaseException as error:
        _leave(error)


def _found_together(
    coordinator: str | None, processes: int | None, process_id: int | None
) -> bool:
    """Connects the processes; returns whether there are several."""
    import jax

    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        alone = coordinator is processes is process_id is None
        if alone and "coordinator_address" in str(error):
            return False  # No launcher has started this process.
        raise ValueError(
            "Expected `--coordinator`, `--processes` and `--process-id`, a "
            "number below that of the processes, or none of them. Received: "
            f"{coordinator}, {processes}, {process_id} ({error})"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise OSError(
            f"The {processes} processes cannot connect to one another at "
            f"{coordinator}: {error}"
        ) from error
    return True


def _leave(error: BaseException) -> None:
    """Prints the error and ends this process."""
    import jax

    told = f"keras-invdrop: process {jax.process_index()}: "
    # If another process is lost, a collective sum fails in this process.
    if "Gloo" in str(error) or isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"{told}a computation of all processes has failed. If a process is "
            f"lost, JAX names it within {HEARTBEAT} s: by its number, or as "
            "the leader, which is process 0. The same command, given in every "
            f"process, resumes after the last epoch. ({error})",
            file=sys.stderr,
            flush=True,
        )
        # Meanwhile JAX prints the coordinator's report and ends this process.
        time.sleep(HEARTBEAT + 15)
    else:
        print(f"{told}{error}", file=sys.stderr, flush=True)
    os._exit(1)


def is_first() -> bool:
    """Whether this process writes the files and prints."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


def from_first(content: bytes) -> bytes:
    """Sends the first process' content to every process."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    size = int(broadcast_one_to_all(np.array(len(content), "uint32")))
    if size == 0:
        return b""
    array = np.zeros(size, "uint8")
    if is_first():
        array = np.frombuffer(content, "uint8")
    return np.asarray(broadcast_one_to_all(array)).tobytes()


class Devices:
    """The devices over which batches are divided.

    Every process uses the largest number of its devices that divides a batch
    without remainder. Every device computes the whole of a batch that does not
    divide evenly, such as the last one of an epoch.

    Args:
        batch_size: Number of examples in a batch.

    Attributes:
        number: Number of devices in use.
        available: Number of devices of all processes.
        processes: Number of processes.
    """

    def __init__(self, batch_size: int):
        import jax

        names = zip(
            jax.devices(), keras.distribution.list_devices(), strict=True
        )
        of_process: dict[int, list[str]] = {}
        for device, name in names:
            of_process.setdefault(device.process_index, []).append(name)
        counts = [len(names) for names in of_process.values()]
        self.processes = len(of_process)
        self.available = sum(counts)
        each = _most(batch_size, self.processes, min(counts))
        used = [name for names in of_process.values() for name in names[:each]]
        self.number = len(used)
        self._process = jax.process_index()
        self._divided = keras.distribution.DataParallel(
            devices=used, auto_shard_dataset=False
        )
        self._whole = _Whole(devices=used, auto_shard_dataset=False)

    def scope(self) -> Any:
        """Context manager that puts new variables on every device."""
        return self._divided.scope()

    def fit(
        self,
        model: keras.Model,
        batches: Any,
        examples: int,
        batch_size: int,
        epochs: int,
        callbacks: list[keras.callbacks.Callback],
    ) -> None:
        """Fits a model that was built and compiled in `scope`.

        An epoch takes two calls of `model.fit`: Keras gives all batches of a
        call the layout of the first batch, and the last batch of an epoch may
        not divide over the devices.

        Args:
            model: The model.
            batches: `PyDataset` or `tf.data.Dataset` of undivided batches,
                the same in every process.
            examples: Number of examples.
            batch_size: Number of examples in every batch but the last.
            epochs: Number of epochs.
            callbacks: Callbacks as for `model.fit`. They see whole epochs.
        """
        outer = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            model=model,
            epochs=epochs,
            steps=-(-examples // batch_size),
        )
        # Keep Keras from replacing the weights by their averages at the end of
        # each call.
        if optimizer := averaging(model):
            optimizer.finalize_variable_values = lambda variables: None
        outer.on_train_begin()
        # `ExactResume` has set the initial epoch; each call runs one epoch, 0.
        first = initial_epoch(model)
        set_initial_epoch(model, None)
        for epoch in range(first, epochs):

            def fit(parts: "_Parts", epoch: int = epoch) -> None:
                begin = keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda _, logs: outer.on_epoch_begin(epoch)
                )
                # Begin the epoch inside the first call: Keras may draw random
                # numbers before its first step.
                begins = [begin] if parts.numbers.start == 0 else []
                model.fit(parts, shuffle=False, verbose=0, callbacks=begins)

            logs = self._through(model, fit, batches, examples, batch_size)
            outer.on_epoch_end(epoch, logs)
        outer.on_train_end()

    def evaluate(
        self, model: keras.Model, examples: Split, batch_size: int
    ) -> Logs:
        """Evaluates a model in batches of at most `batch_size`."""
        size = max(batch_size // self.number, 1) * self.number

        def evaluate(parts: "_Parts") -> None:
            model.evaluate(parts, verbose=0)

        return self._through(
            model, evaluate, examples.batches(size), len(examples), size
        )

    def _through(
        self,
        model: keras.Model,
        function: Callable[["_Parts"], None],
        batches: Any,
        examples: int,
        batch_size: int,
    ) -> Logs:
        """Calls a function with the full batches, then with the last batch.

        Keras resets its metrics in each call. This method adds up their
        variables, which are sums and counts.
        """
        full, rest = divmod(examples, batch_size)
        reader = _Reader(batches)
        sums: list[list[np.ndarray]] = []
        for numbers, size in (
            (range(full), batch_size),
            (range(full, full + min(rest, 1)), rest),
        ):
            if not numbers:
                continue
            divided = size % self.number == 0
            part = self._part(size) if divided else slice(None)
            with (self._divided if divided else self._whole).scope():
                function(_Parts(reader, numbers, part))
            sums.append([np.asarray(each) for each in model.metrics_variables])
        for variable, *values in zip(
            model.metrics_variables, *sums, strict=True
        ):
            variable.assign(sum(values[1:], values[0]))
        results = model.get_metrics_result()
        return {name: float(value) for name, value in results.items()}

    def _part(self, size: int) -> slice:
        """The examples of a batch that this process feeds to its devices."""
        each = size // self.processes
        return slice(self._process * each, (self._process + 1) * each)


def _most(batch_size: int, processes: int, devices: int) -> int:
    """The most devices per process that divide a batch; all if none do."""
    divide = [
        each
        for each in range(1, devices + 1)
        if batch_size % (each * processes) == 0
    ]
    return max(divide, default=devices)


class _Whole(keras.distribution.DataParallel):
    """Every device computes the whole batch."""

    def get_data_layout(self, data_shape):
        return keras.distribution.TensorLayout(
            [None] * len(data_shape), self.device_mesh
        )


class _Reader:
    """Batches by number, read in order; batch 0 restarts the reading.

    Keras reads the first batch before an epoch begins, and reads it again once
    the order of the epoch is set.
    """

    def __init__(self, batches: Any):
        self.batches = batches
        self.number = -1

    def __getitem__(self, number: int) -> tuple:
        if number == 0:
            self.turn = _each(self.batches)
        if number in (0, self.number + 1):
            self.batch = next(self.turn)
            self.number = number
        if number != self.number:
            raise IndexError(f"Batch {number} after batch {self.number}")
        return self.batch


class _Parts(keras.utils.PyDataset):
    """This process' part of each of the numbered batches."""

    def __init__(self, reader: _Reader, numbers: range, part: slice):
        super().__init__()
        self.reader = reader
        self.numbers = numbers
        self.part = part

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        batch = self.reader[self.numbers[index]]
        return tuple(array[self.part] for array in batch)


def _each(batches: Any) -> Iterator[Any]:
    """The batches as NumPy arrays."""
    if isinstance(batches, keras.utils.PyDataset):
        return (batches[i] for i in range(len(batches)))
    return batches.as_numpy_iterator()
