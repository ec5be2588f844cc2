import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from sklearn import metrics
from small_models import random

from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import invariantize
from keras_invdrop.models import _monte_carlo
from keras_invdrop.models._uncertainty import auroc


def sequential(*model_layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *model_layers])


def says(*shape):
    """Predicts what it is given, with nothing dropped."""
    model = sequential(layers.Dropout(0.0), shape=shape)
    return MonteCarlo(model, samples=1)


def dirichlet(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype("float32")


def test_a_classifier_by_hand():
    p = [[0.75, 0.25], [0.375, 0.625], [0.125, 0.875], [0.5, 0.5]]
    found = says(2).evaluate(np.array(p), [0, 0, 1, 0], bins=4)
    assert found == pytest.approx(
        {
            "accuracy": 0.75,
            "negative_log_likelihood": -np.log(
                [0.75, 0.375, 0.875, 0.5]
            ).mean(),
            "brier_score": 2 * (0.25**2 + 0.625**2 + 0.125**2 + 0.5**2) / 4,
            # Three bins: 0.5, right; 0.625, wrong, and 0.75, right, the
            # right end of its bin; and 0.875, right.
            "expected_calibration_error": (
                0.5 + 2 * abs(0.5 - (0.625 + 0.75) / 2) + 0.125
            )
            / 4,
        },
        abs=1e-12,
    )


def calibration_error(p, y, weights, bins):
    """Equation 3 of Guo et al."""
    confidence, correct = p.max(axis=-1), p.argmax(axis=-1) == y
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            w = weights[inside]
            gap = np.average(correct[inside] - confidence[inside], weights=w)
            total += abs(gap) * w.sum()
    return total / weights.sum()


def test_tokens_are_measured_as_scikit_learn_does():
    monte_carlo = MonteCarlo(
        sequential(
            layers.Dropout(0.5),
            layers.Dense(4, activation="softmax"),
            shape=(7, 3),
        ),
        samples=20,
        seed=0,
    )
    rng = np.random.default_rng(0)
    x, y = random(30, 7, 3), rng.integers(0, 4, (30, 7))
    weights = rng.uniform(0.5, 2, (30, 7))
    weights[:, 5:] = 0
    mean = monte_carlo.predict(x).mean
    p, labels, w = mean[:, :5], y[:, :5], weights[:, :5]
    p, labels, w = p.reshape((-1, 4)), labels.ravel(), w.ravel()
    expected = {
        "accuracy": metrics.accuracy_score(
            labels, p.argmax(axis=-1), sample_weight=w
        ),
        "negative_log_likelihood": metrics.log_loss(
            labels, p / p.sum(axis=-1, keepdims=True), sample_weight=w
        ),
        "brier_score": np.average(
            ((p - np.eye(4)[labels]) ** 2).sum(axis=-1), weights=w
        ),
        "expected_calibration_error": calibration_error(p, labels, w, 15),
    }
    padded = y.copy()
    padded[:, 5:] = -100  # where the weight is 0 any label will do
    for labels in (padded, padded[..., None], np.eye(4)[y]):
        found = monte_carlo.evaluate(x, labels, sample_weight=weights)
        assert found == pytest.approx(expected, rel=1e-6)
    # A weight for each example, and tensors.
    each = rng.uniform(0.5, 2, 30)
    found = monte_carlo.evaluate(
        x, ops.convert_to_tensor(y), sample_weight=ops.convert_to_tensor(each)
    )
    assert found["accuracy"] == pytest.approx(
        np.average((mean.argmax(axis=-1) == y).mean(axis=1), weights=each)
    )


def test_one_sigmoid_is_measured_as_two_classes():
    p = np.random.default_rng(0).uniform(size=(50, 1)).astype("float32")
    y = np.random.default_rng(1).integers(0, 2, 50)
    expected = says(2).evaluate(np.concatenate([1 - p, p], axis=1), y)
    for labels in (y, y[:, None], y.astype(bool)):
        assert says(1).evaluate(p, labels) == pytest.approx(expected, rel=1e-5)
    assert expected["brier_score"] == pytest.approx(
        2 * metrics.brier_score_loss(y, p[:, 0])
    )


def test_a_probability_of_0_of_the_right_class_is_no_infinity():
    found = says(2).evaluate(np.eye(2), [0, 0])
    assert found["negative_log_likelihood"] == pytest.approx(
        87.34 / 2, rel=1e-3
    )
    assert found["brier_score"] == 1


def test_a_regression():
    x, y = random(20, 3), random(20, 3, seed=1)
    weights = np.random.default_rng(0).uniform(size=20)
    found = says(3).evaluate(x, y, sample_weight=weights)
    expected = metrics.mean_squared_error(y, x, sample_weight=weights)
    assert found == pytest.approx({"mean_squared_error": expected})
    found = says(1).evaluate(x[:, :1], y[:, 0])
    expected = metrics.mean_squared_error(y[:, 0], x[:, 0])
    assert found == pytest.approx({"mean_squared_error": expected})


def test_the_area_under_the_curve_by_hand():
    # There are six pairs: 4 exceeds three values, 2 exceeds one, and 2 ties
    # with 2.
    assert auroc(np.array([1, 2, 3]), np.array([4, 2])) == 4.5 / 6
    # The highest and the third highest of the four entropies are outside.
    inside = np.array([[0.9, 0.1], [0.4, 0.6]])
    outside = np.array([[0.3, 0.7], [0.5, 0.5]])
    found = says(2).evaluate(inside, [0, 1], out_of_distribution=outside)
    assert found["auroc_entropy"] == 3 / 4
    # With one sample the mutual information is 0 for all four.
    assert found["auroc_mutual_information"] == 1 / 2
    # For sequences, the mean over the positions counts.
    found = says(2, 2).evaluate(
        inside[None], [[0, 1]], out_of_distribution=outside[None]
    )
    assert found["auroc_entropy"] == 1


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    model = sequential(
        layers.Dropout(0.5), layers.Dense(3, activation="softmax")
    )
    monte_carlo = MonteCarlo(model, samples=10, seed=0)
    inside, outside = random(40, 6), 0.5 * random(30, 6, seed=1)
    found = monte_carlo.evaluate(
        inside, np.arange(40) % 3, out_of_distribution=outside
    )
    known, unknown = map(monte_carlo.predict, (inside, outside))
    for name in ("entropy", "mutual_information"):
        scores = [*getattr(known, name), *getattr(unknown, name)]
        expected = metrics.roc_auc_score([0] * 40 + [1] * 30, scores)
        assert found[f"auroc_{name}"] == pytest.approx(expected)
        assert abs(expected - 0.5) > 0.1


def test_each_output_is_evaluated():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    drop = layers.Dropout(0.0)
    model = keras.Model([a, b], {"kind": drop(a), "sizes": drop(b)})
    monte_carlo = MonteCarlo(model, samples=1)
    x = [dirichlet(8, 2), random(8, 3)]
    y = {"sizes": random(8, 3, seed=1), "kind": np.arange(8) % 2}
    found = monte_carlo.evaluate(x, y)
    assert found == {
        "kind": says(2).evaluate(x[0], y["kind"]),
        "sizes": says(3).evaluate(x[1], y["sizes"]),
    }
    weights = np.arange(8.0)
    found = monte_carlo.evaluate(
        x, y, sample_weight={"kind": weights, "sizes": weights}
    )
    assert found["sizes"] == says(3).evaluate(
        x[1], y["sizes"], sample_weight=weights
    )
    # As in Keras, one array has the weights for all outputs.
    assert monte_carlo.evaluate(x, y, sample_weight=weights) == found
    batches = [
        ([each[part] for each in x], {k: v[part] for k, v in y.items()}, w)
        for part, w in ((slice(5), weights[:5]), (slice(5, 8), weights[5:]))
    ]
    in_batches = monte_carlo.evaluate(iter(batches))
    for name, expected in found.items():
        assert in_batches[name] == pytest.approx(expected)
    for bad in ({"kind": y["kind"]}, y["kind"]):
        with pytest.raises(ValueError, match="`y`. Expected an array for each"):
            monte_carlo.evaluate(x, bad)


P = dirichlet(4, 3)
LOGITS = random(4, 3)
CLASSES = np.array([0, 1, 2, 0])
ONE_HOT = np.eye(3)[CLASSES]


@pytest.mark.parametrize(
    ("x", "y", "kwargs", "match"),
    [
        (LOGITS, CLASSES, {}, r"not probabilities.*logits.*softmax.*\(4, 3\)"),
        (LOGITS, ONE_HOT, {}, "not probabilities.*logits"),
        (LOGITS[:, :1], [0, 1, 1, 0], {}, "not probabilities.*sigmoid"),
        (P, CLASSES + 1, {}, "`y`.*classes from 0 to 2.*from 1 to 3"),
        (P, CLASSES + 0.5, {}, "`y`.*classes from 0 to 2"),
        (P, P, {}, "`y`.*one-hot rows"),
        (P, 1 - ONE_HOT, {}, "`y`.*one-hot rows.*add up to 2.0 to 2.0"),
        (P, CLASSES[:3], {}, r"`y`.*shape \(4, 3\).*\(4,\).*shape \(3,\)"),
        (P, None, {}, "`y`. Expected an array of numbers"),
        (P, ["a", "b", "c", "a"], {}, "`y`. Expected an array of numbers"),
        (P, CLASSES, {"sample_weight": CLASSES - 1}, "`sample_weight`.*0 or"),
        (P, CLASSES, {"sample_weight": [0] * 4}, "`sample_weight`.*not all 0"),
        (P, CLASSES, {"sample_weight": [1] * 3}, r"`sample_weight`.*\(4,\)"),
        (P, CLASSES, {"bins": 0}, "`bins`"),
        (P, CLASSES, {"batch_size": 0}, "`batch_size`"),
        (P, CLASSES, {"out_of_distribution": LOGITS}, "`out_of_distribution`"),
        (
            P,
            CLASSES,
            {"out_of_distribution": P[:, :2]},
            "`out_of_distribution`",
        ),
        (P, CLASSES, {"out_of_distribution": "P"}, "`out_of_distribution`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_evaluated(x, y, kwargs, match):
    with pytest.raises(ValueError, match=match):
        says(x.shape[1]).evaluate(x, y, **kwargs)


def test_logits_are_evaluated_as_the_error_says():
    logits = sequential(layers.Dropout(0.5), layers.Dense(3))
    model = keras.Model(logits.inputs, layers.Softmax()(logits.outputs[0]))
    x = random(4, 6)
    with pytest.raises(
        ValueError, match=r"layers\.Softmax\(\)\(model\.outputs"
    ):
        MonteCarlo(logits).evaluate(x, CLASSES)
    monte_carlo = MonteCarlo(model, samples=10, seed=0)
    found = monte_carlo.evaluate(x, CLASSES)["negative_log_likelihood"]
    of_class = monte_carlo.predict(x).mean[range(4), CLASSES]
    assert found == pytest.approx(-np.log(of_class).mean())


@keras.saving.register_keras_serializable("test_uncertainty")
class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 3, dropout=0.5)
        self.drop = layers.Dropout(0.5, name="drop")
        self.dense = layers.Dense(6, trainable=False)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.dense.build(input_shape)

    def call(self, x):
        return self.dense(self.drop(x + self.attention(x, x)))


@keras.saving.register_keras_serializable("test_uncertainty")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")

    def build(self, input_shape):
        self.block.build(input_shape)

    def call(self, x):
        return self.block(x)


def graph():
    return sequential(
        layers.Dropout(0.5, noise_shape=(1, None, 6), seed=3, name="first"),
        Block(name="block"),
        layers.BatchNormalization(),
        layers.Dense(3, activation="softmax"),
        shape=(4, 6),
    )


def converted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attention, which is not converted
        return invariantize(graph())


def subclassed():
    model = Subclassed()
    model.build((None, 4, 6))
    model(random(1, 4, 6))
    return model


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called")
@pytest.mark.parametrize("make", [graph, converted, subclassed])
def test_a_file_has_the_model_and_the_arguments(make, tmp_path):
    model, x = make(), random(5, 4, 6)
    monte_carlo = MonteCarlo(
        model, 15, seed=4, filters=["^block/drop$"], consistent_masks=True
    )
    monte_carlo.save(tmp_path / "folder" / "ensemble.keras")
    (path,) = (tmp_path / "folder").iterdir()  # and nothing else
    assert path.name == "ensemble.keras"
    loaded = MonteCarlo.load(str(path))
    assert loaded.samples == 15 and loaded.seed == 4
    assert loaded.filters == ["^block/drop$"]
    assert loaded.consistent_masks is True
    one, other = monte_carlo.predict(x), loaded.predict(x)
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        other.standard_deviation, one.standard_deviation, rtol=1e-4, atol=1e-6
    )
    assert one.standard_deviation.min() > 0

    # The model in it is the model as it was.
    same = keras.saving.load_model(path)
    y, expected = (ops.convert_to_numpy(m(x)) for m in (same, model))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    trainable = [[v.name for v in m.trainable_variables] for m in (same, model)]
    assert trainable[0] == trainable[1] != []
    assert len(trainable[0]) < len(model.weights)
    if make is not subclassed:
        first = same.get_layer("first")
        assert tuple(first.noise_shape) == (1, None, 6) and first.seed == 3


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "ensemble.keras"
    monte_carlo = MonteCarlo(sequential(InvariantDropout(0.5)), 3)
    monte_carlo.save(path)
    before = path.read_bytes()

    def fails(arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_monte_carlo.json, "dumps", fails)
        with pytest.raises(OSError, match=r"ensemble\.keras could not be writ"):
            monte_carlo.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monte_carlo.samples = 7
    monte_carlo.save(path)
    assert MonteCarlo.load(path).samples == 7


def test_a_file_that_is_no_ensemble(tmp_path):
    model = sequential(layers.Dropout(0.5))
    with pytest.raises(ValueError, match="`filepath`.*ends in `.keras`"):
        MonteCarlo(model).save(tmp_path / "ensemble.h5")
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ValueError, match="`MonteCarlo.save` has written"):
        MonteCarlo.load(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="`MonteCarlo.save` has written"):
        MonteCarlo.load(path)
    with pytest.raises(FileNotFoundError):
        MonteCarlo.load(tmp_path / "none.keras")
