import json
import math

import keras
import numpy as np
import pytest
from keras import ops
from keras_invdrop.applications.metrics import CodeQuality

NAIVE = [1 / 2, 1 / 4, 1 / 4]
TARGETS = [[1 / 2, 1 / 2, 0], [0, 0, 1], [1, 0, 0]]
PREDICTIONS = [[1 / 2, 1 / 2, 0], [1 / 4, 1 / 4, 1 / 2], [1 / 8, 3 / 8, 1 / 2]]

# KL(target || naive guess), the sum of target * log2(target / naive guess):
#     1/2 log2(1) + 1/2 log2(2) = 1/2,  log2(4) = 2,  log2(2) = 1
# KL(target || prediction):
#     1/2 log2(1) + 1/2 log2(1) = 0,    log2(2) = 1,  log2(8) = 3
BITS = [1 / 2, 1, -2]


def code_quality(naive_guess, targets, predictions, sample_weight=None):
    metric = CodeQuality(naive_guess)
    metric.update_state(targets, predictions, sample_weight)
    return float(metric.result())


def bits(expected):
    """Equality up to the rounding of logarithms to float32."""
    return pytest.approx(expected, rel=1e-5, abs=1e-5)


def divergence(targets, guess):
    """The sum of KL(target || guess) in bits, in float64."""
    guess = np.broadcast_to(guess, targets.shape)
    there = targets > 0
    return (targets[there] * np.log2(targets[there] / guess[there])).sum()


@pytest.fixture
def tissues():
    """Targets and predictions of 20 examples in 2 tissues, 3 outcomes each."""
    targets, predictions = np.random.default_rng(0).dirichlet(
        [0.5, 0.5, 2], size=(2, 20, 2)
    )
    targets[3] = [0, 0, 1]
    return targets, predictions


def test_by_hand():
    assert code_quality(NAIVE, TARGETS, PREDICTIONS) == bits(-1 / 2)
    for target, prediction, expected in zip(
        TARGETS, PREDICTIONS, BITS, strict=True
    ):
        assert code_quality(NAIVE, [target], [prediction]) == bits(expected)


def test_tissues_by_hand():
    # The same three predictions, as one example with three tissues.
    assert code_quality([NAIVE] * 3, [TARGETS], [PREDICTIONS]) == bits(-1 / 2)


def test_it_is_the_difference_of_two_divergences(tissues):
    targets, predictions = tissues
    naive = targets.mean(axis=0)
    expected = divergence(targets, naive) - divergence(targets, predictions)
    assert code_quality(naive, targets, predictions) == bits(expected)


def test_the_naive_guess_is_worth_nothing(tissues):
    targets, _ = tissues
    naive = targets.mean(axis=0)
    guesses = np.broadcast_to(naive, targets.shape)
    assert code_quality(naive, targets, guesses) == bits(0)


def test_a_perfect_prediction_is_worth_the_divergence_of_the_naive(tissues):
    targets, _ = tissues
    naive = targets.mean(axis=0)
    assert code_quality(naive, targets, targets) == bits(
        divergence(targets, naive)
    )


@pytest.mark.parametrize("size", [1, 7, 20])
def test_it_does_not_depend_on_the_batches(tissues, size):
    naive = tissues[0].mean(axis=0)
    metric = CodeQuality(naive)
    for start in range(0, 20, size):
        metric.update_state(*(x[start : start + size] for x in tissues))
    assert float(metric.result()) == bits(code_quality(naive, *tissues))
    metric.reset_state()
    assert float(metric.result()) == 0


def test_weights_of_examples():
    # 3 * 1/2 + 0 * 1 + 1/2 * -2
    weights = np.array([3, 0, 1 / 2])
    assert code_quality(NAIVE, TARGETS, PREDICTIONS, weights) == bits(1 / 2)


def test_weights_where_there_are_tissues():
    arrays = [NAIVE] * 3, [TARGETS] * 2, [PREDICTIONS] * 2
    assert code_quality(*arrays, np.array([3, 1])) == bits(4 * -1 / 2)
    # Only the second tissue of the first example.
    weights = np.array([[0, 1, 0], [0, 0, 0]])
    assert code_quality(*arrays, weights) == bits(1)


def test_an_outcome_that_training_never_saw():
    naive, unseen = [1 / 2, 1 / 2, 0], [[0, 0, 1]]
    most = -math.log2(keras.config.epsilon())
    assert code_quality(naive, unseen, [naive]) == bits(0)
    assert code_quality(naive, unseen, unseen) == bits(most)
    # A prediction that rules out the actual outcome costs as much.
    assert code_quality([0, 0, 1], unseen, [naive]) == bits(-most)


def test_logits(tissues):
    targets, predictions = tissues
    naive = targets.mean(axis=0)
    metric = CodeQuality(naive, from_logits=True)
    # Logits are known up to a constant.
    metric.update_state(targets, np.log(predictions) + 3)
    assert float(metric.result()) == bits(
        code_quality(naive, targets, predictions)
    )
    with pytest.raises(ValueError, match="`from_logits`. Expected a boolean"):
        CodeQuality(naive, from_logits="no")


def test_a_prediction_that_is_not_a_number_is_no_good():
    assert math.isnan(code_quality(NAIVE, TARGETS, np.full((3, 3), np.nan)))


def test_config_round_trip():
    metric = CodeQuality(
        [NAIVE, [0.1, 0.2, 0.7]], name="bits", from_logits=True
    )
    config = json.loads(json.dumps(keras.metrics.serialize(metric)))
    again = keras.metrics.deserialize(config)
    assert isinstance(again, CodeQuality)
    assert again.name == "bits"
    assert again.from_logits is True
    assert again.get_config() == metric.get_config()
    np.testing.assert_array_equal(again.naive_guess, metric.naive_guess)


def test_in_a_compiled_model(tmp_path):
    # The model returns its inputs, the predictions above.
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    model.compile(
        loss="categorical_crossentropy",
        metrics=[CodeQuality(NAIVE)],
        weighted_metrics=[CodeQuality(NAIVE, name="weighted")],
    )
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        logs = each.evaluate(
            np.array(PREDICTIONS),
            np.array(TARGETS),
            batch_size=2,
            sample_weight=np.array([3, 0, 1 / 2]),
            verbose=0,
            return_dict=True,
        )
        assert logs["code_quality"] == bits(-1 / 2)
        assert logs["weighted"] == bits(1 / 2)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
def test_while_training():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    model.compile(loss="categorical_crossentropy", metrics=[CodeQuality(NAIVE)])
    x, y = np.array(PREDICTIONS), np.array(TARGETS)
    stopping = keras.callbacks.EarlyStopping("val_code_quality")
    logs = model.fit(
        x,
        y,
        epochs=2,
        validation_data=(x[:2], y[:2]),
        callbacks=[stopping],
        verbose=0,
    ).history
    assert logs["code_quality"] == bits([sum(BITS)] * 2)
    assert logs["val_code_quality"] == bits([sum(BITS[:2])] * 2)
    # By default callbacks know that larger values are better.
    assert stopping.monitor_op(2.0, 1.0)


@pytest.mark.parametrize(
    "naive_guess",
    [
        1.0,
        [[[1.0]]],
        [1 / 2, 1 / 4],
        [[1 / 2, 1 / 2], [1 / 2, 0.502]],
        [3 / 2, -1 / 2],
        [math.nan, 1],
        [math.inf, 0],
        [[1], [1 / 2, 1 / 2]],
        "abc",
        None,
    ],
)
def test_bad_naive_guess(naive_guess):
    message = r"`naive_guess`. Expected an array .* sums to 1.* Received"
    with pytest.raises(ValueError, match=message):
        CodeQuality(naive_guess)


@pytest.mark.parametrize(
    ("targets", "predictions", "message"),
    [
        ((2, 3), (2, 4), r"`y_pred`. .* \(None, 3\).* y_pred.shape=\(2, 4\)"),
        ((2, 3), (2, 1, 3), r"`y_pred`. .* y_pred.shape=\(2, 1, 3\)"),
        ((2, 1), (2, 3), r"`y_true`. .* \(2, 3\).* y_true.shape=\(2, 1\)"),
        ((1, 3), (2, 3), r"`y_true`. .* y_true.shape=\(1, 3\)"),
    ],
)
def test_incompatible_shapes(targets, predictions, message):
    metric = CodeQuality(NAIVE)
    with pytest.raises(ValueError, match=message):
        metric.update_state(ops.ones(targets), ops.ones(predictions))
