import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_invdrop import InjectedVariance
from keras_invdrop import InvariantDropout
from keras_invdrop import LocallyConnected2D
from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import calibrate
from keras_invdrop import variance_report


def examples(*shape, seed=0):
    x = np.random.default_rng(seed).normal(1.0, 1.0, size=shape)
    return x.astype("float32")


def sequential(*model_layers, shape):
    return keras.Sequential([keras.Input(shape), *model_layers])


def measured_variance(model, x, draws=4000):
    """The variance over drawn masks of the last layer's input.

    Returns its mean over examples and units, and the standard error.
    """
    # (draws * examples, ...), each row with its own mask
    outputs = model(np.concatenate([x] * draws), training=True)
    outputs = ops.convert_to_numpy(outputs).astype("float64")
    outputs = outputs.reshape((draws, -1))
    squares = (outputs - outputs.mean(axis=0)) ** 2
    means = squares.mean(axis=1)
    return means.mean(), means.std() / np.sqrt(draws)


def test_equation_10_by_hand():
    drop = InvariantDropout(0.4, scaling="test")
    dense = layers.Dense(2, activation="relu")
    model = sequential(drop, dense, shape=(2,))
    dense.set_weights([np.array([[1.0, 2.0], [3.0, -1.0]]), np.ones(2)])
    drop.beta.assign([1.0, -1.0])
    x = np.array([[1.0, 2.0], [3.0, 0.0]], dtype="float32")
    (row,) = variance_report(model, x)
    w2 = np.array([[1.0, 4.0], [9.0, 1.0]])
    for at, beta in (
        (row.at_zero, [0.0, 0.0]),
        (row.at_present, [1.0, -1.0]),
        (row.at_best, [-2.0, -1.0]),
    ):
        per_unit = 0.6 * 0.4 * ((x + beta) ** 2) @ w2
        assert at == pytest.approx(per_unit.mean(), rel=1e-5)
    assert row.saving == pytest.approx(1 - row.at_best / row.at_present)
    assert row.layer == drop.name
    assert row.next_layer == dense.name
    assert row.rate == 0.4


@pytest.mark.parametrize(
    ("drop", "next_layers", "shape"),
    [
        (lambda: layers.Dropout(0.3), [layers.Dense(3)], (5,)),
        (lambda: InvariantDropout(0.3), [layers.Dense(3)], (4, 5)),
        (
            lambda: InvariantDropout(0.3, scaling="test"),
            [layers.Flatten(), layers.Dense(3)],
            (4, 5),
        ),
        (
            lambda: layers.Dropout(0.3),
            [layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d")],
            (4, 5),
        ),
        (
            lambda: layers.Dropout(0.3, noise_shape=(None, 1, None)),
            [layers.Flatten(), layers.Dense(3)],
            (4, 5),
        ),
        (
            lambda: layers.Dropout(0.3),
            [layers.Conv2D(3, 3, padding="same", data_format="channels_last")],
            (4, 5, 2),
        ),
        (
            lambda: layers.SpatialDropout2D(0.3, "channels_last"),
            [layers.Conv2D(3, 3, data_format="channels_last")],
            (4, 5, 2),
        ),
        (
            lambda: SpatialInvariantDropout(0.3, "channels_last"),
            [layers.Conv1D(3, 2, data_format="channels_last")],
            (6, 2),
        ),
        (
            lambda: layers.Dropout(0.3),
            [layers.DepthwiseConv2D(2, data_format="channels_last")],
            (4, 5, 2),
        ),
        (
            lambda: layers.Dropout(0.3),
            [layers.Conv2DTranspose(3, 2, data_format="channels_last")],
            (3, 4, 2),
        ),
        # For a nonlinear layer, the variance of its own input.
        (lambda: InvariantDropout(0.3), [layers.Activation("linear")], (5,)),
    ],
)
def test_the_report_is_what_masks_do(drop, next_layers, shape):
    keras.utils.set_random_seed(0)
    drop = drop()
    model = sequential(drop, *next_layers, shape=shape)
    x = examples(3, *shape)
    if isinstance(drop, InvariantDropout):
        drop.beta.assign(examples(*drop.beta.shape, seed=1))
    (row,) = variance_report(model, x)
    variance, error = measured_variance(model, x)
    assert abs(row.at_present - variance) < 4 * error
    if not isinstance(drop, InvariantDropout):
        # At the best shift: one per unit or feature map.
        shifted = x - x.mean(axis=tuple(range(x.ndim - 1)))
        variance, error = measured_variance(model, shifted)
        assert abs(row.at_best - variance) < 4 * error


@pytest.mark.parametrize("linear", ["dense", "conv"])
def test_maxout_counts_its_pieces(linear):
    if linear == "dense":
        maxout, shape = MaxoutDense(2, 3), (5,)
    else:
        maxout, shape = (
            MaxoutConv2D(2, 3, 2, data_format="channels_last"),
            (4, 4, 2),
        )
    model = sequential(layers.Dropout(0.3), maxout, shape=shape)
    x = examples(3, *shape)
    (row,) = variance_report(model, x)
    pieces = sequential(
        layers.Dropout(0.3), getattr(maxout, linear), shape=shape
    )
    (of_pieces,) = variance_report(pieces, x)
    assert row.at_zero == pytest.approx(of_pieces.at_zero, rel=1e-6)


@pytest.mark.parametrize(
    ("drop", "shape"),
    [(layers.Dropout(0.3), (3,)), (layers.SpatialDropout1D(0.3), (4, 3))],
    ids=["each", "spatial"],
)
def test_batches_and_remainders_do_not_matter(drop, shape):
    model = sequential(drop, layers.Dense(2), shape=shape)
    x = examples(11, *shape)
    (whole,) = variance_report(model, x)
    (parts,) = variance_report(model, x, batch_size=4)
    assert dataclasses.astuple(whole)[3:] == pytest.approx(
        dataclasses.astuple(parts)[3:], rel=1e-6
    )


def test_a_shift_of_the_input_is_answered_by_the_best_shift():
    model = sequential(layers.Dropout(0.3), layers.Dense(2), shape=(3,))
    x = examples(50, 3)
    (original,) = variance_report(model, x)
    (inverted,) = variance_report(model, 1 - x)
    assert inverted.at_zero != pytest.approx(original.at_zero, rel=0.01)
    assert inverted.at_best == pytest.approx(original.at_best, rel=1e-4)


def test_running_average_counts_as_a_shift():
    drop = RunningAverageDropout(0.3)
    model = sequential(drop, layers.Dense(2), shape=(3,))
    x = examples(50, 3)
    drop.average.assign(x.mean(axis=0))
    (row,) = variance_report(model, x)
    assert row.at_present == pytest.approx(row.at_best, rel=1e-4)


def test_the_report_adds_up_its_rows():
    drops = InvariantDropout(0.3), InvariantDropout(0.5)
    model = sequential(
        drops[0], layers.Dense(4), drops[1], layers.Dense(2), shape=(3,)
    )
    for drop in drops:
        drop.beta.assign(np.full(drop.beta.shape, 0.7))
    report = variance_report(model, examples(20, 3))
    first, second = report
    for name in ("at_zero", "at_present", "at_best", "of_data"):
        sizes = getattr(first, name), getattr(second, name)
        assert min(sizes) > 0
        assert getattr(report, name) == pytest.approx(sum(sizes))
    removed = report.at_present - report.at_best
    assert report.saving == pytest.approx(removed / report.at_present)
    assert report.excess == pytest.approx(removed / report.of_data)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_at_which_nothing_varies(rate):
    model = sequential(InvariantDropout(rate), layers.Dense(2), shape=(3,))
    (row,) = variance_report(model, examples(5, 3))
    assert (row.at_zero, row.at_present, row.at_best) == (0, 0, 0)
    assert row.saving == 0


def test_a_recurrent_layer_that_keeps_its_state_between_batches():
    reports, weights = [], None
    for batch, stateful in ((4, True), (None, False)):
        model = keras.Sequential(
            [
                keras.Input(batch_shape=(batch, 5, 3)),
                layers.LSTM(6, stateful=stateful, return_sequences=True),
                InvariantDropout(0.5, name="drop"),
                layers.Dense(2, name="dense"),
            ]
        )
        weights = weights or model.get_weights()
        model.set_weights(weights)
        reports.append(variance_report(model, examples(8, 5, 3), batch_size=4))
    kept, not_kept = reports
    # The report measures each batch from the state that the model has.
    assert dataclasses.astuple(kept[0])[:2] == ("drop", "dense")
    assert dataclasses.astuple(kept[0])[3:] == pytest.approx(
        dataclasses.astuple(not_kept[0])[3:], rel=1e-5
    )


def test_the_model_is_left_as_it_is():
    drop = InvariantDropout(0.5)
    model = sequential(drop, layers.Dense(2), shape=(3,))
    model.compile("sgd", "mse")
    before = model.get_weights()
    variance_report(model, examples(5, 3))
    assert model.compiled
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_row_reads_as_a_sentence():
    model = sequential(
        layers.Dropout(0.5, name="drop"),
        layers.Dense(2, name="dense"),
        shape=(3,),
    )
    (row,) = variance_report(model, examples(50, 3))
    assert str(row).startswith("drop (rate 0.5) -> dense: variance ")
    assert str(row).endswith(
        f"({row.saving:.0%} less than now, by {row.excess:.2g} times the "
        "variance over the examples)"
    )


class Doubling(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_a_layer_that_may_do_anything_is_not_taken_for_linear():
    x = examples(5, 3)
    model = sequential(layers.Dropout(0.5), Doubling(2), shape=(3,))
    (row,) = variance_report(model, x)
    assert row.at_zero == pytest.approx(np.mean(x**2), rel=1e-5)


def test_a_row_inside_a_layer_names_no_next_layer():
    row = InjectedVariance("block/drop", None, 0.5, 1.0, 1.0, 0.5, 0.25)
    assert str(row).startswith("block/drop (rate 0.5): variance 1 with")


def test_a_worse_shift_reads_as_more():
    row = InjectedVariance("drop", "dense", 0.5, 1.0, 1.0, 1.5, 0.25)
    assert "(50% more than now, by 2 times the variance" in str(row)


@pytest.mark.parametrize("scaling", ["train", "test"])
def test_the_variance_of_the_data_is_that_of_what_the_next_layer_gets(scaling):
    drop = InvariantDropout(0.4, scaling=scaling, beta_initializer="ones")
    dense = layers.Dense(3, bias_initializer="ones")
    model = sequential(drop, dense, shape=(5,))
    x = examples(40, 5)
    (row,) = variance_report(model, x, batch_size=7)
    variance = model.predict(x, verbose=0).var(axis=0).mean()
    # The masks of `keep` are drawn from 16 bits.
    assert row.of_data == pytest.approx(variance, rel=1e-4)
    difference = row.at_present - row.at_best
    assert row.excess == pytest.approx(difference / row.of_data)


def test_the_variance_of_the_data_leaves_padding_out():
    x, counts = padded(9, 4, 3)
    model = sequential(
        layers.Masking(0.0),
        layers.Dropout(0.5),
        layers.Dense(2, kernel_initializer="ones"),
        shape=(4, 3),
    )
    (row,) = variance_report(model, x, batch_size=4)
    sums = x.sum(axis=-1)
    steps = [sums[counts[:, step], step] for step in range(3)]
    expected = sum(s.var() * len(s) for s in steps) / counts.sum()
    assert row.of_data == pytest.approx(expected, rel=1e-5)


def test_examples_that_are_all_the_same():
    model = sequential(
        InvariantDropout(0.5),
        layers.Dense(2, kernel_initializer="ones"),
        shape=(3,),
    )
    (row,) = variance_report(model, np.ones((5, 3)))
    assert (row.at_present, row.at_best, row.of_data) == (3, 0, 0)
    assert row.excess == np.inf
    (row,) = variance_report(model, np.zeros((5, 3)))
    assert row.excess == 0


def test_squares_beyond_half_precision():
    x = 200 + 300 * examples(64, 4, 4, 1)
    reports = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        reports.append(
            variance_report(
                sequential(
                    layers.Dropout(0.2, dtype=policy),
                    layers.Flatten(dtype=policy),
                    layers.Dense(3, dtype=policy),
                    shape=(4, 4, 1),
                ),
                x,
            )
        )
    one, other = reports
    for name in ("at_zero", "at_present", "at_best"):
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=0.02
        )


def test_quantized_weights_are_refused():
    model = sequential(layers.Dropout(0.5), layers.Dense(4), shape=(4,))
    model.quantize("int8")
    with pytest.raises(ValueError, match="not quantized. Received: .*'int8'"):
        variance_report(model, examples(5, 4))


def test_errors():
    model = sequential(layers.Dropout(0.5), shape=(3,))
    with pytest.raises(ValueError, match="`x`. Expected an array"):
        variance_report(model, [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="`x`. Expected.*at least one"):
        variance_report(model, np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"`x`. Expected.*\(2, 3\), \(3, 3\)"):
        variance_report(model, [np.zeros((2, 3)), np.zeros((3, 3))])
    with pytest.raises(ValueError, match="`batch_size`. Expected a positive"):
        variance_report(model, np.zeros((2, 3)), batch_size=0)
    with pytest.raises(ValueError, match="`model`. Expected a model with a"):
        variance_report(
            sequential(layers.Dense(2), shape=(3,)), np.ones((2, 3))
        )


class Counting(layers.Layer):
    """Counts how often it is called on numbers."""

    calls = 0

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            return inputs
        Counting.calls += 1
        return inputs


def test_a_residual_network_is_run_once_for_each_batch():
    inputs = x = keras.Input((3,))
    for _ in range(60):
        y = layers.Dropout(0.5)(layers.Dense(3)(Counting()(x)))
        x = layers.Add()([x, y])
    model = keras.Model(inputs, x)
    Counting.calls = 0
    report = variance_report(model, examples(6, 3), batch_size=3)
    assert len(report) == 60
    # Once more on one example, by which the places are found.
    assert Counting.calls == (1 + 2) * 60


def padded(*shape):
    """Examples, a third of which are padding after the first timesteps."""
    x = examples(*shape)
    counts = np.arange(shape[1]) < np.arange(shape[0])[:, None] % 3 + 1
    x[~counts] = 0
    return x, counts


def test_padding_is_left_out_as_calibrate_leaves_it_out():
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 1, 2, 0]])
    inputs = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(
        5, 3, mask_zero=True, embeddings_initializer="normal"
    )
    drop = InvariantDropout(0.5, shared_axes=[1])
    dense = layers.Dense(2)
    outputs = dense(drop(embedded(inputs)))
    model = keras.Model(inputs, outputs)
    table = np.arange(15.0).reshape((5, 3)) + 10
    embedded.set_weights([table])
    model = calibrate(model, x, keep_predictions=False)
    (row,) = variance_report(model, x)
    assert row.saving == pytest.approx(0, abs=1e-6)
    # Only the six timesteps that are not padding count.
    a = table[x[x > 0]]
    w2 = ops.convert_to_numpy(dense.kernel) ** 2
    expected = ((a - a.mean(axis=0)) ** 2 @ w2).mean()
    assert row.at_present == pytest.approx(expected, rel=1e-4)
    assert row.at_zero == pytest.approx((a**2 @ w2).mean(), rel=1e-4)


@pytest.mark.parametrize("spatial", [False, True])
def test_padding_before_layers_that_keep_it_and_that_do_not(spatial):
    x, counts = padded(9, 4, 3)
    a = x[counts]
    one = layers.SpatialDropout1D(0.5) if spatial else layers.Dropout(0.5)
    flat = layers.Flatten()
    inputs = keras.Input((4, 3))
    dropped = one(layers.Masking(0.0)(inputs))
    dense = layers.Dense(2, name="dense")
    outputs = [
        dense(dropped),
        layers.LSTM(2, name="lstm")(dropped),
        layers.Dense(2, name="sum", kernel_initializer="ones")(flat(dropped)),
    ]
    report = variance_report(keras.Model(inputs, outputs), x)
    found = {row.next_layer: row for row in report}
    w2 = ops.convert_to_numpy(dense.kernel) ** 2
    per_step = (a**2 @ w2).mean()
    assert found["dense"].at_zero == pytest.approx(per_step, rel=1e-5)
    assert found["lstm"].at_zero == pytest.approx((a**2).mean(), rel=1e-5)
    shifted = a - a.mean(axis=0)
    best = (shifted**2 @ w2).mean()
    assert found["dense"].at_best == pytest.approx(best, rel=1e-4)
    # The sum includes padding, which adds nothing. If the timesteps share a
    # mask, the sums over them are squared.
    sums = x.sum(axis=1) ** 2 if spatial else (x**2).sum(axis=1)
    whole = sums.sum(axis=-1).mean()
    assert found["sum"].at_zero == pytest.approx(whole, rel=1e-5)


def test_a_step_that_is_always_padding_injects_nothing():
    x = examples(6, 4, 3)
    x[:, 3] = 0
    model = sequential(
        layers.Masking(0.0),
        InvariantDropout(0.5),
        layers.Dense(2, kernel_initializer="ones"),
        shape=(4, 3),
    )
    (row,) = variance_report(model, x)
    assert row.at_zero == pytest.approx(3 * np.mean(x[:, :3] ** 2), rel=1e-5)
    (row,) = variance_report(model, np.zeros_like(x))
    assert (row.at_zero, row.at_best) == (0, 0)


def test_a_shared_layer_has_one_best_shift():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    drop, dense = InvariantDropout(0.5), layers.Dense(2)
    model = keras.Model([a, b], [dense(drop(a)), dense(drop(b))])
    x = [examples(50, 3), examples(50, 3, seed=1) - 5]
    for row in variance_report(calibrate(model, x, keep_predictions=False), x):
        assert row.at_present == pytest.approx(row.at_best, rel=1e-5)


def normalized(shape):
    """Batch normalisation, of mean 1 in training, before dropout."""
    data_format = "channels_last"
    linear = layers.Dense(4)
    if len(shape) > 1:
        linear = layers.Conv2D(4, 3, data_format=data_format)
    return sequential(
        linear,
        layers.BatchNormalization(beta_initializer="ones", epsilon=0.0),
        InvariantDropout(0.2, shared_axes=[*range(1, len(shape))] or None),
        layers.ReLU(),
        shape=shape,
    )


@pytest.mark.parametrize("shape", [(3,), (6, 5, 3)])
def test_untrained_batch_normalisation_takes_the_statistics_of_the_batch(shape):
    model = normalized(shape)
    x = examples(60, *shape) + 4  # of mean 5
    before = model.get_weights()
    (row,) = variance_report(model, x)
    # The normalised activities have mean 1 and variance 1, whatever the input.
    factor = 0.2 / 0.8
    assert row.at_zero == pytest.approx(2 * factor, rel=1e-3)
    assert row.at_best == pytest.approx(factor, rel=1e-3)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    new = calibrate(model, x, keep_predictions=False)
    (row,) = variance_report(new, x)
    assert row.at_present == pytest.approx(factor, rel=1e-3)
    assert row.saving == pytest.approx(0, abs=1e-5)
    # If the data come in parts, both functions use the statistics of each part.
    parts = [x[:45], x[45:] + 7]
    new = calibrate(model, iter(parts), keep_predictions=False)
    (row,) = variance_report(new, np.concatenate(parts), batch_size=45)
    assert row.at_present == pytest.approx(factor, rel=1e-3)
    assert row.saving == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("why", ["frozen", "trained"])
def test_other_batch_normalisation_takes_its_moving_statistics(why):
    model = normalized((3,))
    norm = model.layers[1]
    x = examples(60, 3) + 4
    arrives = ops.convert_to_numpy(model.layers[0](x))
    mean = 0
    if why == "frozen":
        norm.trainable = False
    else:
        mean = 0.5
        norm.moving_mean.assign(4 * [mean])
    (row,) = variance_report(model, x)
    expected = 0.2 / 0.8 * ((arrives - mean + 1) ** 2).mean()
    assert row.at_zero == pytest.approx(expected, rel=1e-3)


def test_attention_scores_in_the_graph_have_one_mean_per_head():
    inputs = keras.Input((2, 4, 4))
    scores = layers.Dropout(0.5)(layers.Softmax()(inputs))
    model = keras.Model(inputs, scores)
    x = np.random.default_rng(0).normal(size=(8, 2, 4, 4))
    (row,) = variance_report(model, x)
    # The mean of four numbers that add up to 1.
    y = np.exp(x) / np.exp(x).sum(-1, keepdims=True) - 0.25
    assert row.at_best == pytest.approx(np.mean(y**2), rel=1e-4)


def test_layers_of_nested_models_have_paths():
    def nested(name):
        inputs = keras.Input((3,))
        outputs = layers.Dense(3)(layers.Dropout(0.5, name="drop")(inputs))
        return keras.Model(inputs, outputs, name=name)

    x = keras.Input((3,))
    model = keras.Model(x, nested("decoder")(nested("encoder")(x)))
    report = variance_report(model, examples(20, 3))
    assert [row.layer for row in report] == ["encoder/drop", "decoder/drop"]
    # The sums are those of the rows that the list still has.
    both = report.at_zero
    last = report.pop()
    assert report.at_zero == pytest.approx(both - last.at_zero)


def test_locally_connected_layers_are_linear_in_their_kernels():
    rows = {}
    for layer in (
        LocallyConnected2D(2, 1, data_format="channels_last"),
        layers.Conv2D(2, 1, data_format="channels_last"),
    ):
        model = sequential(layers.Dropout(0.5), layer, shape=(1, 1, 3))
        size = np.prod(layer.kernel.shape)
        layer.kernel.assign(np.arange(size).reshape(layer.kernel.shape))
        (rows[type(layer)],) = variance_report(model, examples(9, 1, 1, 3))
    one, other = rows.values()
    assert one.at_zero == pytest.approx(other.at_zero, rel=1e-5)
