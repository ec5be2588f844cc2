import keras
import numpy as np
import pytest

from keras_invdrop import BestEpoch


def model_of(use_ema=False):
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.0, use_ema=use_ema, ema_momentum=0.5), "mse"
    )
    model.optimizer.build(model.trainable_variables)
    return model


def followed(callback, figures, model=None):
    """A callback after epochs with these figures, each with another weight."""
    model = model or model_of()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, figure in enumerate(figures):
        model.layers[-1].kernel.assign([[float(epoch)]])
        callback.on_epoch_end(epoch, {"val_loss": figure})
    return callback


@pytest.mark.parametrize(
    ("mode", "figures", "epoch"),
    [
        ("min", [3.0, 1.0, 2.0, 1.0], 1),
        ("max", [1.0, 3.0, 3.0, 2.0], 1),
        ("min", [2.0, float("nan"), 1.0], 2),
        ("max", [float("nan"), 1.0, 0.5], 1),
    ],
)
def test_the_first_of_the_best_epochs(mode, figures, epoch):
    best = followed(BestEpoch("val_loss", mode), figures)
    assert (best.epoch, best.best) == (epoch, figures[epoch])
    assert best.weights[0].tolist() == [[float(epoch)]]


def test_keras_knows_which_values_of_a_metric_are_better():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(np.ones((2, 1)), np.ones(2), verbose=0)
    for monitor, epoch in {"val_accuracy": 1, "val_loss": 2, "loss": 2}.items():
        best = BestEpoch(monitor)
        best.set_model(model)
        best.on_train_begin()
        for number, figure in enumerate([0.5, 0.9, 0.1]):
            best.on_epoch_end(number, {monitor: figure})
        assert best.epoch == epoch


def test_the_last_epoch_where_nothing_is_monitored():
    best = followed(BestEpoch(None), [1.0, 2.0])
    assert (best.epoch, best.best) == (1, None)
    assert best.weights[0].tolist() == [[1.0]]


def test_averages_are_kept_and_the_weights_stay():
    model = model_of(use_ema=True)
    x = np.ones((2, 1), "float32")
    model.fit(x, x, verbose=0)
    best = followed(BestEpoch(), [1.0], model)
    # The only average so far is that of the initial weight.
    assert best.weights[0].tolist() == [[1.0]]
    assert model.get_weights()[0].tolist() == [[0.0]]


def test_each_fit_begins_anew():
    best = followed(BestEpoch(), [1.0, 0.5])
    assert followed(best, [2.0]).epoch == 0


def test_epochs_without_validation_do_not_count():
    model = model_of()
    x = np.ones((2, 1), "float32")

    def fit(best, **options):
        model.fit(x, 2 * x, verbose=0, epochs=4, callbacks=[best], **options)

    best = BestEpoch()
    fit(best, validation_data=(x, x), validation_freq=2)
    # The weights stay the same, and epochs 1 and 3 are validated.
    assert (best.epoch, best.best) == (1, 0.0)
    fit(BestEpoch("loss"))
    with pytest.raises(ValueError, match="`monitor`.*`validation_data`"):
        fit(BestEpoch())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`mode`. Expected one of 'auto', 'm"):
        BestEpoch(mode="largest")
    mine = BestEpoch("mine")
    mine.set_model(model_of())
    mine.on_train_begin()
    # After the first epoch, not after hours of a second one.
    with pytest.raises(ValueError, match="`mode`.*which values of 'mine' are"):
        mine.on_epoch_end(0, {"mine": 1.0})
    named = BestEpoch("mine", mode="max")
    named.set_model(model_of())
    named.on_train_begin()
    for number, figure in enumerate([1.0, 2.0]):
        named.on_epoch_end(number, {"mine": figure})
    assert named.epoch == 1
    with pytest.raises(ValueError, match="`monitor`. Expected one of 'val_lo"):
        followed(BestEpoch("val_acc"), [1.0])
