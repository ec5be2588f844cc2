"""A training resumed from a backup ends like one never stopped."""

import dataclasses
import errno

import keras
import numpy as np
import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import records as results
from keras_invdrop.experiments.train import trainer as trainers
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.trial import Trial

from keras_invdrop import Reseed

EPOCHS = 4

one_backend = pytest.mark.one_backend
thorough = pytest.mark.thorough
thorough_elsewhere = pytest.mark.thorough_elsewhere
several_steps = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras makes the steps of PyTorch one by one",
)
BLOBS = "table2/original/invariant"
LOSS = keras.losses.SparseCategoricalCrossentropy


class Stopped(Exception):
    pass


def trainer_of(row, dataset, seed=3, steps=1, **changes):
    row = ROWS[row]
    changes = {"batch_size": 25, "epochs": EPOCHS, **changes}
    recipe = dataclasses.replace(row.recipe, **changes)
    row = dataclasses.replace(row, recipe=recipe)
    return Trainer(Trial(row, seed, 1 / 16, steps_per_execution=steps), dataset)


def fitted(trainer, backup=None, stop_after=None):
    """Fits a new network; returns the network and the result."""

    def on_epoch(so_far):
        if so_far.epochs == stop_after:
            raise Stopped

    model = trainer.model()
    found = trainer.fit(
        model,
        trainer.dataset.train,
        EPOCHS,
        {"val": trainer.dataset.validation},
        backup,
        on_epoch,
    )
    return model, found


def state(model):
    """All state that training changes, byte by byte."""
    return [
        keras.ops.convert_to_numpy(variable).tobytes()
        for variable in (*model.variables, *model.optimizer.variables)
    ]


@pytest.mark.parametrize(
    ("row", "data", "changes"),
    [
        pytest.param("table2/original/standard", "blobs", {}, marks=thorough),
        pytest.param(
            "table2/original/invariant",
            "blobs",
            {"calibrated": True},
            marks=one_backend,
        ),
        pytest.param(
            "table2/original/running_average", "blobs", {}, marks=thorough
        ),
        ("table2/original/invariant", "streamed", {}),
        pytest.param(
            "table2/original/invariant",
            "blobs",
            {"dtype_policy": "mixed_bfloat16"},
            marks=thorough,
        ),
        pytest.param(
            "table2/original/standard",
            "blobs",
            {"dtype_policy": "mixed_float16", "ema_momentum": 0.5},
            marks=one_backend,
        ),
        (
            "table2/original/invariant",
            "blobs",
            {
                "ema_momentum": 0.9,
                "warm_up": 0.3,
                "beta_factor": 10.0,
                "weight_decay": 1e-3,
                "initial_stddev": (0.1, None, 0.0),
                "max_norm": (None, 1.5, 2.0),
                "hidden_rate": (0.3, 0.6),
            },
        ),
        pytest.param(
            "table3/stochastic_pooling/standard",
            "images",
            {},
            marks=one_backend,
        ),
        pytest.param(
            "table5/2/invariant",
            "exons",
            {"beta_decay": 0.1},
            marks=one_backend,
        ),
        pytest.param(
            BLOBS,
            "blobs",
            {"steps": 2, "ema_momentum": 0.9},
            marks=[several_steps, thorough_elsewhere],
        ),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    row, data, changes, request, tmp_path
):
    trainer = trainer_of(row, request.getfixturevalue(data), **changes)
    model, expected = fitted(trainer)
    backup = tmp_path / "backup.npz"
    for stop_after in (1, 3):
        with pytest.raises(Stopped):
            fitted(trainer, backup, stop_after)
        # Other work of the process has no effect on the training.
        np.random.seed(stop_after)
        keras.utils.set_random_seed(stop_after)
    resumed, found = fitted(trainer, backup)
    assert state(resumed) == state(model)
    assert found.logs == expected.logs
    assert found.selected_epoch == expected.selected_epoch
    for a, b in zip(found.weights, expected.weights, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    # A finished training is only read.
    again, read = fitted(trainer, backup)
    assert read.logs == expected.logs
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_each_epoch_has_masks_and_an_order_of_its_own(blobs):
    model = trainer_of("table2/original/invariant", blobs).model()
    layer = model.get_layer("hidden_1_dropout")
    layer.trainable = False
    x = np.ones((4, *layer.beta.shape), "float32")

    def drawn(seed, epoch):
        reseed = Reseed(seed)
        reseed.set_model(model)
        reseed.on_epoch_begin(epoch)
        batches = blobs.train.shuffled(60, reseed)
        mask = keras.ops.convert_to_numpy(layer(x, training=True)) > 0
        return mask.tolist(), batches[0][1].tolist()

    first = drawn(0, 0)
    assert drawn(0, 0) == first
    for other in (drawn(0, 1), drawn(1, 0)):
        assert other[0] != first[0]
        assert other[1] != first[1]
        assert sorted(other[1]) == sorted(first[1])
    # Two layers do not share masks, either.
    states = [
        keras.ops.convert_to_numpy(each.seed_generator.state).tolist()
        for each in model.layers
        if "dropout" in each.name
    ]
    assert len({state[0] for state in states}) == len(states) == 3


@one_backend
def test_the_backup_of_other_code_is_named(blobs, tmp_path, monkeypatch):
    backup = tmp_path / "backup.npz"
    trainer = trainer_of(BLOBS, blobs)
    with pytest.raises(Stopped):
        fitted(trainer, backup, 1)
    other = results.Code("0.1.0", "abc")
    monkeypatch.setattr(trainers, "this_code", lambda: other)
    with pytest.raises(
        ValueError,
        match="backup.npz is not the backup of this training: the file has "
        "version .*, this training has version 0.1.0, commit abc. Delete it to "
        "start over",
    ):
        fitted(trainer, backup)


@one_backend
def test_a_failed_backup_leaves_the_one_before(blobs, tmp_path, monkeypatch):
    backup = tmp_path / "backup.npz"
    trainer = trainer_of("table2/original/invariant", blobs)
    with pytest.raises(Stopped):
        fitted(trainer, backup, 2)
    before = backup.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        OSError,
        match="backup.npz could not be written: No space left on device",
    ):
        fitted(trainer, backup)
    assert backup.read_bytes() == before
    assert list(tmp_path.iterdir()) == [backup]


def averages(weights, momentum):
    """The moving average after each of the weights, Keras' way."""
    averaged = list(weights[0])
    for weight in weights[1:]:
        averaged = [
            momentum * a + (1 - momentum) * w
            for a, w in zip(averaged, weight, strict=True)
        ]
    return averaged


def test_averaged_weights_are_selected(blobs):
    # An epoch is one step, so that the callback sees all weights. The average
    # uses the weights after the step and before the constraint; this network
    # has no constraint.
    settings = {"batch_size": 60, "max_norm": None}
    seen = []

    def on_epoch(so_far):
        seen.append(model.get_weights())
        selected.append(so_far.weights)

    found = {}
    for ema_momentum in (None, 0.9):
        trainer = trainer_of(
            BLOBS, blobs, ema_momentum=ema_momentum, **settings
        )
        model, seen, selected = trainer.model(), [], []
        found[ema_momentum] = trainer.fit(
            model, blobs.train, EPOCHS, None, None, on_epoch
        )
        # Averaging does not change the training.
        for weight in seen[-1]:
            assert np.isfinite(weight).all()
        if ema_momentum is None:
            trained = seen
    for one, other in zip(trained, seen, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.tobytes() == b.tobytes()
    assert found[None].logs == found[0.9].logs
    for epoch in range(EPOCHS):
        expected = averages(trained[: epoch + 1], 0.9)
        for a, b in zip(selected[epoch], expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_averaged_weights_are_evaluated(blobs):
    # An average this slow stays at the weights of the first step.
    trainer = trainer_of(BLOBS, blobs, ema_momentum=1.0)
    _, found = fitted(trainer)
    model = trainer.model()
    model.set_weights(found.weights)
    model.compile(loss=LOSS(from_logits=True))
    loss = model.evaluate(blobs.validation.batches(12), verbose=0)
    assert len(set(found.logs["val_loss"])) == 1
    assert found.logs["val_loss"][0] == pytest.approx(loss, rel=1e-5)
    assert len(set(found.logs["loss"])) == EPOCHS


@several_steps
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(2, marks=thorough),
        4,
        pytest.param(100, marks=pytest.mark.one_backend("jax")),
    ],
)
def test_several_steps_per_execution_are_the_same_steps(blobs, steps):
    # 60 examples are seven batches of eight, and one of four.
    settings = {"batch_size": 8, "ema_momentum": 0.9, "warm_up": 0.3}
    one, expected = fitted(trainer_of(BLOBS, blobs, **settings))
    several, found = fitted(trainer_of(BLOBS, blobs, steps=steps, **settings))
    assert several.optimizer.iterations == 8 * EPOCHS
    for name, values in expected.logs.items():
        # Equal up to the order of summation.
        np.testing.assert_allclose(found.logs[name], values, rtol=1e-4)
    for weight, other in zip(one.weights, several.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(other),
            keras.ops.convert_to_numpy(weight),
            rtol=1e-3,
            atol=1e-5,
        )


@pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the other backends have several steps per execution of Keras' own",
)
def test_on_jax_the_steps_are_one_program(blobs):
    trainer = trainer_of(BLOBS, blobs, steps=3, batch_size=10)
    model, _ = fitted(trainer)
    calls = []
    train = model.train_function
    batches = blobs.train.batches(10)
    model.train_function = lambda *given: calls.append(1) or train(*given)
    model.fit(batches, verbose=0)
    assert len(calls) == 2  # six batches
