import copy
import csv
import math
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from keras_invdrop import BetaMonitor
from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import _extras
from keras_invdrop import variance_report
from keras_invdrop.callbacks import beta_monitor

FIGURES = (
    "beta_mean",
    "beta_std",
    "beta_norm",
    "correlation",
    "variance_saved",
)
X = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]], dtype="float32")


def sequential(*model_layers, shape=(3,), learning_rate=0.0):
    """A compiled model, which learns nothing by default."""
    model = keras.Sequential([keras.Input(shape), *model_layers])
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    return model


def small(**options):
    drop = InvariantDropout(0.5, name="drop")
    dense = layers.Dense(2, name="dense")
    model = sequential(drop, dense, **options)
    dense.set_weights([np.array([[1.0, 0], [2, 1], [0, 3]]), np.zeros(2)])
    drop.beta.assign([-2.0, -1.0, 1.0])
    return model


def fit(model, *callbacks, epochs=1, x=X, **options):
    y = np.zeros((len(x), *model.output_shape[1:]))
    return model.fit(
        x, y, epochs=epochs, verbose=0, callbacks=[*callbacks], **options
    ).history


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(directory):
    """TensorBoard's view of a directory: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_figures_by_hand():
    history = fit(small(), BetaMonitor(X))
    (mean,) = history["drop/beta_mean"]
    (std,) = history["drop/beta_std"]
    (norm,) = history["drop/beta_norm"]
    (r,) = history["drop/correlation"]
    (saved,) = history["drop/variance_saved"]
    # Beta is (-2, -1, 1): deviations -4/3, -1/3, 5/3 from its mean.
    assert mean == pytest.approx(-2 / 3)
    assert std == pytest.approx(math.sqrt(42 / 27))
    assert norm == pytest.approx(math.sqrt(6))
    # The mean activities are (2, 2, 2).
    assert math.isnan(r)
    # Eq. 10: the squares of the kernel, summed over both units, are 1, 5 and 9.
    # The squares of the activities, summed over both examples, are 10, 8 and
    # 16, and with beta 2, 2 and 26.
    zero = 1 * 10 + 5 * 8 + 9 * 16
    present = 1 * 2 + 5 * 2 + 9 * 26
    assert saved == pytest.approx(1 - present / zero)
    assert saved < 0  # beta is on the wrong side of the last activity


def test_correlation_by_hand():
    x = np.array([[0.0, 1.0, 2.0, 3.0]] * 2, dtype="float32")
    x += [[-1.0], [1.0]]
    drop = InvariantDropout(0.5, name="drop")
    model = sequential(drop, layers.Dense(1), shape=(4,))
    drop.beta.assign([0.0, -1.0, -2.0, -1.0])
    (r,) = fit(model, BetaMonitor(x), x=x)["drop/correlation"]
    assert r == pytest.approx(-2 / math.sqrt(5 * 2))


def test_beta_at_minus_the_mean_saves_what_the_report_says():
    drop = InvariantDropout(0.3, name="drop")
    hidden = [layers.Dense(5, "relu"), InvariantDropout(0.5, name="hidden")]
    model = sequential(drop, *hidden, layers.Dense(2))
    x = np.random.default_rng(0).normal(3, 1, (300, 3)).astype("float32")
    drop.beta.assign(-x.mean(axis=0))
    first, second = variance_report(model, x)
    monitor = BetaMonitor(x, examples=300, batch_size=77)
    history = fit(model, monitor, x=x)
    saved = 1 - first.at_best / first.at_zero
    assert history["drop/variance_saved"] == [pytest.approx(saved, rel=1e-4)]
    assert history["drop/correlation"] == [pytest.approx(-1, abs=1e-5)]
    # A beta of zeros.
    assert second.at_present == second.at_zero
    assert history["hidden/variance_saved"] == [0]
    assert math.isnan(history["hidden/correlation"][0])


def test_figures_are_those_of_each_epoch():
    # One of 64 masks drops all, and beta does not move.
    keras.utils.set_random_seed(0)
    model = small(learning_rate=0.01)
    norms = []
    after = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: norms.append(
            np.linalg.norm(keras.ops.convert_to_numpy(model.layers[0].beta))
        )
    )
    history = fit(model, BetaMonitor(X), after, epochs=3)
    assert len(set(norms)) == 3
    np.testing.assert_allclose(history["drop/beta_norm"], norms, rtol=1e-6)
    assert set(history) == {"loss"} | {f"drop/{name}" for name in FIGURES}


def test_the_training_is_the_same_as_without():
    weights = []
    for monitored in (False, True):
        keras.utils.set_random_seed(0)
        model = sequential(
            InvariantDropout(0.5, seed=1),
            layers.Dense(4, "relu", activity_regularizer="l2"),
            layers.BatchNormalization(),
            RunningAverageDropout(0.5, seed=2),
            layers.Dense(2),
            learning_rate=0.1,
        )
        fit(model, *[BetaMonitor(X)] * monitored, epochs=3)
        weights.append(model.get_weights())
    for without, with_monitor in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_monitor)


def test_every_nth_epoch(tmp_path):
    path = tmp_path / "new" / "beta.csv"
    history = fit(small(), BetaMonitor(X, path, freq=3), epochs=7)
    assert len(history["drop/beta_norm"]) == 3
    assert [row["epoch"] for row in rows(path)] == ["0", "3", "6"]


def test_rows_of_the_file(tmp_path):
    path = tmp_path / "beta.csv"
    history = fit(small(learning_rate=0.01), BetaMonitor(X, path), epochs=2)
    written = rows(path)
    assert list(written[0]) == ["epoch", "layer", *FIGURES]
    assert [(row["epoch"], row["layer"]) for row in written] == [
        ("0", "drop"),
        ("1", "drop"),
    ]
    for name in FIGURES:
        values = [float(row[name]) for row in written]
        # To the last bit; two NaN are equal here.
        np.testing.assert_array_equal(values, history[f"drop/{name}"])


def test_a_continued_training_appends_rows(tmp_path):
    path = tmp_path / "beta.csv"
    model = small(learning_rate=0.01)
    fit(model, BetaMonitor(X, path), epochs=4)
    before = rows(path)
    # The last two epochs are lost, as after a kill, and run again.
    fit(model, BetaMonitor(X, path), epochs=5, initial_epoch=2)
    after = rows(path)
    assert [row["epoch"] for row in after] == list("01234")
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    # A training that starts at epoch 0 is a new one.
    fit(model, BetaMonitor(X, path), epochs=1)
    assert [row["epoch"] for row in rows(path)] == ["0"]


def test_a_restored_training_appends_rows(tmp_path):
    path = tmp_path / "beta.csv"

    def stop(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    for _ in range(2):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        stopping = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
        monitor = BetaMonitor(X, path)
        model = small(learning_rate=0.01)
        if path.exists():
            before = rows(path)
            assert [row["epoch"] for row in before] == ["0", "1"]
            fit(model, monitor, backup, epochs=4)
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(model, monitor, backup, stopping, epochs=4)
    after = rows(path)
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"]
    assert after[:2] == before


def test_the_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "beta.csv"
    monitor = BetaMonitor(X, path)
    fit(small(), monitor)
    before = path.read_bytes()

    class HalfWriter(csv.DictWriter):
        def writerows(self, rows):
            super().writerows(rows[:1])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(beta_monitor.csv, "DictWriter", HalfWriter)
    with pytest.raises(OSError, match="beta.csv could not be written: No sp"):
        fit(small(), monitor, epochs=3, initial_epoch=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_events_are_what_tensorboard_reads(tmp_path):
    model = small(learning_rate=0.01)
    history = fit(model, BetaMonitor(X, log_dir=tmp_path, freq=2), epochs=4)
    shown = scalars(tmp_path)
    assert set(shown) == {f"drop/{name}" for name in FIGURES}
    for tag, found in shown.items():
        assert [step for step, _ in found] == [0, 2]
        values = [value for _, value in found]
        np.testing.assert_allclose(values, history[tag], rtol=1e-6)


def test_events_of_a_continued_training(tmp_path):
    model = small(learning_rate=0.01)
    first = fit(model, BetaMonitor(X, log_dir=tmp_path), epochs=4)
    second = fit(
        model, BetaMonitor(X, log_dir=tmp_path), epochs=5, initial_epoch=2
    )
    expected = first["drop/beta_norm"][:2] + second["drop/beta_norm"]
    found = scalars(tmp_path)["drop/beta_norm"]
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([v for _, v in found], expected, rtol=1e-6)


def test_other_callbacks_see_the_figures(tmp_path):
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    stopping = keras.callbacks.EarlyStopping(
        "drop/beta_norm", mode="min", patience=0, min_delta=1.0
    )
    history = fit(small(), BetaMonitor(X), logger, stopping, epochs=9)
    # Nothing is learned: the second epoch is no better than the first.
    assert len(history["loss"]) == 2
    norms = [float(row["drop/beta_norm"]) for row in rows(tmp_path / "log.csv")]
    assert norms == history["drop/beta_norm"]


def test_mixed_precision_and_integers():
    drop = InvariantDropout(0.5, name="drop", dtype="mixed_bfloat16")
    hidden = layers.Dense(4, "relu", dtype="mixed_bfloat16")
    last = InvariantDropout(0.5, name="last", dtype="mixed_bfloat16")
    model = sequential(drop, hidden, last, layers.Dense(2))
    drop.beta.assign([-2.0, -1.0, 1.0])
    last.beta.assign([-1.0, 0.5, 0.25, 0.0])
    report = {row.layer: row for row in variance_report(model, X)}
    history = fit(model, BetaMonitor(X.astype("uint8")))
    for name, row in report.items():
        (saved,) = history[f"{name}/variance_saved"]
        # Activities have 8 bits in both layers; those of the input are exact.
        expected = 1 - row.at_present / row.at_zero
        assert saved == pytest.approx(expected, rel=1e-4)
    # Beta itself is in single precision.
    assert history["drop/beta_mean"] == [pytest.approx(-2 / 3, rel=1e-6)]


def test_a_sample_of_the_examples():
    x = np.arange(1000.0, dtype="float32")[:, None]
    one, other = BetaMonitor(x, examples=10), BetaMonitor(x, examples=10)
    np.testing.assert_array_equal(one.x, other.x)
    assert len(np.unique(one.x)) == 10
    # Not the first examples, which may all belong to one class.
    assert one.x.max() > 500
    np.testing.assert_array_equal(BetaMonitor(x[:10], examples=10).x, x[:10])


def test_branches_count_together():
    inputs = keras.Input((3,))
    drop = InvariantDropout(0.5, name="drop", beta_initializer="ones")
    x = drop(inputs)
    left = layers.Dense(2, kernel_initializer="ones")(x)
    right = layers.Dense(1, kernel_initializer="ones")(layers.Dense(2)(x))
    model = keras.Model(inputs, layers.Concatenate()([left, right]))
    model.compile("sgd", "mse")
    report = variance_report(model, X)
    assert len(report) == 2
    monitor = BetaMonitor(X)
    monitor.set_model(model)
    monitor.on_train_begin()
    logs = {}
    monitor.on_epoch_end(0, logs)
    saved = 1 - sum(row.at_present for row in report) / sum(
        row.at_zero for row in report
    )
    assert logs["drop/variance_saved"] == pytest.approx(saved, rel=1e-5)


def test_a_shared_layer_counts_once_and_names_are_unique():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    drop = InvariantDropout(0.5, name="drop")
    inner = keras.Sequential(
        [keras.Input((2,)), InvariantDropout(0.5, name="drop")], name="inner"
    )
    outputs = inner(layers.Add()([drop(a), drop(b)]))
    model = keras.Model({"a": a, "b": b}, outputs)
    drop.beta.assign([1.0, 0.0])
    x = {
        "a": np.array([[1.0, 2.0]], dtype="float32"),
        "b": np.array([[0.0, 4.0]], dtype="float32"),
    }
    monitor = BetaMonitor(x)
    monitor.set_model(model)
    monitor.on_train_begin()
    logs = {}
    monitor.on_epoch_end(0, logs)
    assert {name.rpartition("/")[0] for name in logs} == {"drop", "inner/drop"}
    # The mean activities over both calls are (1/2, 3); beta is (1, 0).
    assert logs["drop/correlation"] == pytest.approx(-1)
    # The next layer has no weights: the squares of (1, 2) and (0, 4) compare
    # with those of (2, 2) and (1, 4).
    assert logs["drop/variance_saved"] == pytest.approx(1 - 25 / 21)


def test_feature_maps():
    x = np.random.default_rng(0).normal(1, 1, (6, 4, 4, 2)).astype("float32")
    shared = SharedInvariantDropout(0.5, "channels_last", name="shared")
    spatial = SpatialInvariantDropout(0.5, "channels_last", name="spatial")
    conv = layers.Conv2D(3, 3, data_format="channels_last")
    model = sequential(shared, spatial, conv, shape=(4, 4, 2))
    shared.beta.assign([[[-1.0, -0.5]]])
    spatial.beta.assign([[[0.25, -0.5]]])
    report = {row.layer: row for row in variance_report(model, x)}
    history = fit(model, BetaMonitor(x, batch_size=4), x=x)
    for name, row in report.items():
        (saved,) = history[f"{name}/variance_saved"]
        expected = 1 - row.at_present / row.at_zero
        assert saved == pytest.approx(expected, abs=1e-5)
    means = x.mean(axis=(0, 1, 2))
    sign = np.sign((means[1] - means[0]) * 0.5)
    assert history["shared/correlation"] == [pytest.approx(sign)]


def test_a_running_average_is_minus_beta():
    drop = RunningAverageDropout(0.5, name="drop", trainable=False)
    model = sequential(drop, layers.Dense(2))
    drop.average.assign([1.0, 2.0, 2.0])
    history = fit(model, BetaMonitor(X))
    assert history["drop/beta_mean"] == [pytest.approx(-5 / 3)]
    assert history["drop/beta_norm"] == [pytest.approx(3)]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_divergence_causes_no_warnings(tmp_path):
    model = small()
    model.layers[0].beta.assign([np.nan, np.inf, 1e30])
    model.layers[1].kernel.assign(np.full((3, 2), 1e30))
    path = tmp_path / "beta.csv"
    monitor = BetaMonitor(X, path)
    monitor.set_model(model)
    monitor.on_train_begin()
    monitor.on_epoch_end(0, {})
    (row,) = rows(path)
    assert math.isnan(float(row["beta_mean"]))


def test_errors():
    with pytest.raises(ValueError, match="`x`. Expected an array"):
        BetaMonitor([[1.0, 2.0]])
    with pytest.raises(ValueError, match="`x`. Expected.*at least one"):
        BetaMonitor(X[:0])
    for argument in ("freq", "examples", "batch_size"):
        with pytest.raises(ValueError, match=f"`{argument}`. Expected a posi"):
            BetaMonitor(X, **{argument: 0})
    for argument in ("filename", "log_dir"):
        with pytest.raises(ValueError, match=f"`{argument}`. Expected a path"):
            BetaMonitor(X, **{argument: 3})
    with pytest.raises(ValueError, match="`model`. Expected a model with a"):
        fit(sequential(layers.Dropout(0.5)), BetaMonitor(X))
    losses = []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    with pytest.raises(ValueError, match=r"`x`.*\(None, 3\).*shape \(2, 2\)"):
        fit(small(), BetaMonitor(X[:, :2]), seen)
    assert not losses  # before an epoch is lost


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,1.0\n")
    with pytest.raises(ValueError, match="`filename`.*Received: .*epoch,loss"):
        BetaMonitor(X, path)
    assert path.read_text() == "epoch,loss\n0,1.0\n"


def test_without_tensorboardx(monkeypatch, tmp_path):
    monkeypatch.setattr(_extras, "find_spec", lambda name: None)
    error = _extras.missing("Argument `log_dir`", "tensorboardX", "tensorboard")
    with pytest.raises(ImportError, match=re.escape(str(error))):
        BetaMonitor(X, log_dir=tmp_path)
    BetaMonitor(X, tmp_path / "beta.csv")


def test_padding_is_left_out():
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 1, 2, 0]])
    embedded = layers.Embedding(5, 3, mask_zero=True)
    drop = InvariantDropout(0.5, shared_axes=[1], name="drop")
    model = sequential(embedded, drop, layers.Dense(2), shape=(4,))
    table = np.random.default_rng(0).normal(size=(5, 3)) + 10
    embedded.set_weights([table])
    a = table[x[x > 0]]
    drop.set_shift(-a.mean(axis=0, keepdims=True))
    history = fit(model, BetaMonitor(x, batch_size=2), x=x)
    assert history["drop/correlation"] == [pytest.approx(-1, abs=1e-5)]
    (row,) = variance_report(model, x)
    assert row.saving == pytest.approx(0, abs=1e-6)
    assert history["drop/variance_saved"] == [
        pytest.approx(1 - row.at_best / row.at_zero, rel=1e-5)
    ]


def test_pickled_and_copied_before_during_and_after_training(tmp_path):
    model = small(learning_rate=0.01)
    monitor = BetaMonitor(X, tmp_path / "beta.csv", log_dir=tmp_path, freq=2)
    copies = []

    class Copying(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            copies.append(copy.deepcopy(monitor))
            copies.append(pickle.loads(pickle.dumps(monitor)))
            logs["same"] = all(
                dict(new._measure()) == dict(monitor._measure())
                for new in copies[-2:]
            )

    new = pickle.loads(pickle.dumps(copy.deepcopy(monitor)))
    np.testing.assert_array_equal(new.x, X)
    assert (new.filename, new.freq) == (monitor.filename, 2)
    model.layers[0].beta.assign([-2.0, -1.5, 1.0])
    x = X + [[1, 2, 3]]
    monitor.x = new.x = x  # no correlation is NaN, which equals nothing
    history = fit(model, monitor, Copying(), epochs=2, x=x)
    assert history["same"] == [True, True]
    # Each goes on by itself.
    for again in (new, *copies[:2]):
        assert fit(small(), again, x=x)["drop/correlation"]


def test_a_model_of_a_fixed_batch_size():
    drop = InvariantDropout(0.5, name="drop")
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 4, 3)),
            # Keras trains no stateful layer on PyTorch.
            layers.GRU(
                3, stateful=True, return_sequences=True, trainable=False
            ),
            drop,
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    drop.beta.assign(np.arange(12.0).reshape(4, 3))
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")
    monitor = BetaMonitor(x, batch_size=2)
    history = fit(model, monitor, x=x, batch_size=2)
    assert history["drop/beta_mean"] == [5.5]


def test_a_sequential_model_without_input():
    model = keras.Sequential(
        [InvariantDropout(0.5, name="drop"), layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    history = model.fit(
        X, np.ones((2, 2)), epochs=2, verbose=0, callbacks=[BetaMonitor(X)]
    ).history
    assert len(history["drop/beta_norm"]) == 2
    model = keras.Sequential([layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model`. Expected a model with a"):
        model.fit(X, np.ones((2, 2)), verbose=0, callbacks=[BetaMonitor(X)])
