"""A training killed at any moment ends like an undisturbed one."""

import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from warm import Program

from keras_invdrop import BestEpoch
from keras_invdrop import ExactResume
from keras_invdrop import InvariantDropout
from keras_invdrop import Reseed
from keras_invdrop.callbacks import exact_resume

PROGRAM = Path(__file__).with_name("resumed_training.py")
X = np.linspace(0, 1, 12, dtype="float32").reshape(12, 1)
Y = X / 2


def run(directory, *spot):
    """The exit code of a training, and its errors."""
    program = Program(PROGRAM, directory, *spot)
    _, errors = program.communicate()
    return program.returncode, errors


def end(directory):
    """The bytes of a training's result, which leaves no other files."""
    assert [path.name for path in directory.iterdir()] == ["end.npz"]
    with np.load(directory / "end.npz") as file:
        return [(file[name].dtype, file[name].tobytes()) for name in file]


# Before the first backup, and after one; `make test` leaves out some of these.
SPOTS = [("step", 3), ("begin", 2), ("step", 8), ("rename", 1), ("renamed", 2)]


def test_killed_again_and_again(tmp_path, thorough):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    code, errors = run(undisturbed)
    assert code == 0, errors
    for spot in SPOTS if thorough else SPOTS[1::2]:
        code, errors = run(killed, *spot)
        assert code == -signal.SIGKILL, errors
    code, errors = run(killed)
    assert code == 0, errors
    for path in killed.glob(".*"):
        path.unlink()  # a file that a kill left half-written
    assert end(killed) == end(undisturbed)


class Stopped(Exception):
    pass


def stop_after(epoch):
    def stop(number, logs):
        if number == epoch:
            raise Stopped

    return keras.callbacks.LambdaCallback(on_epoch_end=stop)


def network(rate=0.5):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            InvariantDropout(rate),
            keras.layers.Dense(1, kernel_initializer="ones"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def fitted(path, stopped=None, model=None, before=(), **options):
    """The model after a fit, and its history."""
    model = model or network()
    epochs = options.pop("epochs", 5)
    batch_size = options.pop("batch_size", 5)
    resume = ExactResume(path, callbacks=before, **options)
    after = [] if stopped is None else [stop_after(stopped)]
    history = model.fit(
        resume.shuffled(X, Y, batch_size=batch_size),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*before, resume, *after],
    )
    return model, history


def weights(model):
    return [weight.tobytes() for weight in model.get_weights()]


def test_history_and_callbacks_continue(tmp_path):
    def rate(model):
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))

    def callbacks():
        # The loss rises now and then, with other masks.
        return [
            BestEpoch("loss"),
            keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1),
            keras.callbacks.EarlyStopping("loss", patience=3),
        ]

    one = callbacks()
    model, expected = fitted(tmp_path / "one", before=one, epochs=40)
    for stopped in (0, 2):
        with pytest.raises(Stopped):
            fitted(tmp_path / "two", stopped, before=callbacks(), epochs=40)
    two = callbacks()
    resumed, history = fitted(tmp_path / "two", before=two, epochs=40)
    assert weights(resumed) == weights(model)
    assert history.history == expected.history
    assert history.epoch == expected.epoch
    # Training stopped early, after the learning rate had fallen.
    assert 3 < len(history.epoch) < 40
    assert rate(resumed) == rate(model) < 0.01
    for a, b in zip(one, two, strict=True):
        assert a.best == b.best
    assert two[0].epoch == one[0].epoch
    assert not list(tmp_path.iterdir())


def test_a_smallest_change_survives_a_resume(tmp_path):
    def callbacks():
        # The loss never falls by so much after the first epoch.
        return [
            keras.callbacks.ReduceLROnPlateau(
                "loss", 0.5, patience=2, min_delta=10.0
            )
        ]

    model, expected = fitted(tmp_path / "one", before=callbacks(), epochs=8)
    for stopped in (1, 4):
        with pytest.raises(Stopped):
            fitted(tmp_path / "two", stopped, before=callbacks(), epochs=8)
    resumed, history = fitted(tmp_path / "two", before=callbacks(), epochs=8)
    assert len(set(expected.history["learning_rate"])) > 2
    assert history.history == expected.history
    assert weights(resumed) == weights(model)


def test_metrics_of_several_values(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((1,)), keras.layers.Dense(2, activation="softmax")]
        )
        metrics = [keras.metrics.F1Score()]
        model.compile("sgd", "categorical_crossentropy", metrics=metrics)
        return model

    def fit(path, stopped=None):
        resume = ExactResume(path)
        after = [] if stopped is None else [stop_after(stopped)]
        return (
            model()
            .fit(
                resume.shuffled(X, np.eye(2)[np.arange(len(X)) % 2], 5),
                epochs=3,
                shuffle=False,
                verbose=0,
                callbacks=[resume, *after],
            )
            .history
        )

    expected = fit(tmp_path / "one")
    with pytest.raises(Stopped):
        fit(tmp_path / "two", 0)
    found = fit(tmp_path / "two")
    assert np.shape(expected["f1_score"]) == (3, 2)
    for name in ("loss", "f1_score"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_early_stopping_survives_a_resume(tmp_path):
    path = tmp_path / "backup"
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    _, expected = fitted(path, before=[stop], delete_checkpoint=False)
    assert expected.epoch == [0, 1]
    model, history = fitted(path, before=[stop])
    assert (history.epoch, history.history) == ([0, 1], expected.history)
    # The next fit of the model starts at epoch 0.
    history = model.fit(X, Y, epochs=2, verbose=0)
    assert history.epoch == [0, 1]


def test_the_file_is_deleted_when_the_fit_has_ended(tmp_path):
    path = tmp_path / "folder" / "backup"
    with pytest.raises(Stopped):
        fitted(path, 0)
    assert path.exists()
    fitted(path)
    assert not path.exists()
    model, expected = fitted(path, delete_checkpoint=False)
    # A finished training only reads the file.
    again, history = fitted(path, delete_checkpoint=False)
    assert weights(again) == weights(model)
    assert history.history == expected.history
    # A fit with more epochs continues the training.
    _, history = fitted(path, epochs=7)
    assert history.epoch == list(range(7))
    assert history.history["loss"][:5] == expected.history["loss"]


def test_weights_of_sixteen_bits(tmp_path):
    def model():
        keras.config.set_dtype_policy("bfloat16")
        try:
            return network()
        finally:
            keras.config.set_dtype_policy("float32")

    # The loss is largest before the interruption.
    one, two, three = (BestEpoch("loss", "max") for _ in range(3))
    expected, _ = fitted(tmp_path / "one", model=model(), before=[one])
    with pytest.raises(Stopped):
        fitted(tmp_path / "two", 2, model=model(), before=[two])
    found, _ = fitted(tmp_path / "two", model=model(), before=[three])
    assert weights(found) == weights(expected)
    assert three.epoch == one.epoch < 2
    found.set_weights(three.weights)
    expected.set_weights(one.weights)
    assert weights(found) == weights(expected)


def test_the_file_of_another_training_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "backup.npz"
    with pytest.raises(Stopped):
        fitted(path, 1, identity="mine")
    before = path.read_bytes()

    def refused(match, **options):
        sentence = "backup.npz is not the backup of this training: "
        with pytest.raises(ValueError, match=sentence + match):
            fitted(path, **({"identity": "mine"} | options))

    refused(
        "the file has mine, this training has yours. Delete", identity="yours"
    )
    refused("the file has seed 0, this training has seed 1", seed=1)
    other = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    other.compile("sgd", "mse")
    refused("the file has another model or optimizer", model=other)
    refused("zip", before=[BestEpoch("loss")])
    refused(
        "the file has epochs of 3 steps, this training has epochs of 2 steps",
        batch_size=10,
    )
    with monkeypatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "another")
        refused("the file has Keras .* on .*, this training has .* on another")
    monkeypatch.setattr(keras, "__version__", "9.0")
    refused("the file has Keras 3.*, this training has Keras 9.0 on")
    assert path.read_bytes() == before
    for damaged in (b"", b"PK\x03\x04", b"no backup"):
        path.write_bytes(damaged)
        refused("")
    assert path.read_bytes() == damaged


def test_arguments_are_checked():
    for seed in (-1, 0.5, None, True):
        with pytest.raises(
            ValueError, match="`seed`. Expected an integer of at least 0"
        ):
            Reseed(seed)
    with pytest.raises(ValueError, match="`filepath`. Expected a path"):
        ExactResume(3)
    with pytest.raises(ValueError, match="`delete_checkpoint`. Expected a b"):
        ExactResume("backup.npz", delete_checkpoint="no")
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="needs a model that is built"):
        callback = ExactResume("backup.npz")
        callback.set_model(model)
        callback.on_train_begin()


def test_the_state_of_a_callback_is_restored():
    class Holds(keras.callbacks.Callback):
        def __init__(self, value, **others):
            super().__init__()
            self.value = value
            vars(self).update(others)

    value = {
        "number": float("inf"),
        "arrays": [np.arange(3), np.float32(0.1)],
        "nested": {"array": [None, True, "text"]},
    }
    kept = [np.zeros(1)]
    state = exact_resume._state(
        Holds(value, function=len, mixed=[np.ones(2), len]), kept
    )
    found = exact_resume._unpacked(state, kept)
    assert set(found) == {"value"}
    found = found["value"]
    assert found["number"] == value["number"]
    np.testing.assert_array_equal(found["arrays"][0], np.arange(3))
    assert np.float32(found["arrays"][1]) == np.float32(0.1)
    assert found["nested"] == value["nested"]
    assert len(kept) == 2
