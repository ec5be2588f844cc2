"""All functions take the same data as `model.predict`."""

import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from keras import layers
from keras import ops

from keras_invdrop import BetaMonitor
from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import calibrate
from keras_invdrop import variance_report
from keras_invdrop._batches import Examples
from keras_invdrop._batches import batches

RNG = np.random.default_rng(0)
WIDE = RNG.normal(2.0, 1.0, size=(9, 3)).astype("float32")
NARROW = RNG.normal(-7.0, 1.0, size=(9, 1)).astype("float32")


def joined(structure):
    """A model that concatenates its two inputs."""
    inputs = {
        "wide": keras.Input((3,), name="wide"),
        "narrow": keras.Input((1,), name="narrow"),
    }
    x = layers.Concatenate()([inputs["wide"], inputs["narrow"]])
    x = InvariantDropout(0.5, name="drop")(x)
    return keras.Model(structure(inputs), x)


def as_dict(inputs):
    return inputs


def sorted_dict(inputs):
    return dict(sorted(inputs.items()))


def as_list(inputs):
    return [inputs["wide"], inputs["narrow"]]


def single():
    return keras.Sequential(
        [keras.Input((3,)), InvariantDropout(0.5, name="drop")]
    )


def single_narrow():
    return keras.Sequential(
        [keras.Input((1,)), InvariantDropout(0.5, name="drop")]
    )


def tensorflow(x):
    import tensorflow as tf

    return tf.constant(x)


def torch(x):
    import torch

    return torch.tensor(x)


BOTH = {"wide": WIDE, "narrow": NARROW}
TAKEN = {
    "dict": (joined(as_dict), BOTH),
    "dict-in-another-order": (joined(sorted_dict), BOTH),
    "dict-with-a-vector": (
        joined(as_dict),
        {"wide": WIDE, "narrow": NARROW[:, 0]},
    ),
    "list-for-a-sorted-dict": (joined(sorted_dict), [NARROW, WIDE]),
    "list": (joined(as_list), [WIDE, NARROW]),
    "tuple": (joined(as_list), (WIDE, NARROW)),
    "dict-for-a-list": (joined(as_list), BOTH),
    "extra-key-for-a-list": (joined(as_list), {**BOTH, "a": WIDE}),
    "list-of-one": (single(), [WIDE]),
    "vector": (single_narrow(), NARROW[:, 0]),
    "last-axis-of-one": (single(), WIDE[..., None]),
    "float64": (single(), WIDE.astype("float64")),
    "integers": (single(), np.arange(27).reshape((9, 3))),
    "backend": (single(), ops.convert_to_tensor(WIDE)),
    "tensorflow": (single(), tensorflow(WIDE)),
    "torch": (single(), torch(WIDE)),
    "data-frame": (single(), pd.DataFrame(WIDE)),
    "series": (single_narrow(), pd.Series(NARROW[:, 0])),
    "sparse": (single(), scipy.sparse.csr_matrix(WIDE)),
}


@pytest.fixture(autouse=True)
def no_warnings_of_keras():
    # Keras warns of a structure that is not the model's, but takes it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The structure of `inputs`")
        yield


def predicted(model, x):
    try:
        return model.predict(x, verbose=0).astype("float64")
    except (AttributeError, TypeError, ValueError):
        # Not every backend takes a sparse matrix.
        assert scipy.sparse.issparse(x)
        return model.predict(x.toarray(), verbose=0).astype("float64")


def check(model, x, expected):
    """Each function sees the activities `expected` at the dropout layer."""
    mean = expected.mean(axis=0)
    new = calibrate(model, x, batch_size=4, keep_predictions=False)
    beta = ops.convert_to_numpy(new.get_layer("drop").beta)
    np.testing.assert_allclose(beta, -mean, rtol=1e-5)
    (row,) = variance_report(new, x, batch_size=4)
    assert row.at_zero == pytest.approx(np.mean(expected**2), rel=1e-5)
    assert row.at_present == pytest.approx(expected.var(axis=0).mean(), 1e-4)
    monitor = BetaMonitor(x, batch_size=4)
    monitor.set_model(new)
    monitor.on_train_begin()
    monitor.on_epoch_end(0, logs := {})
    assert logs["drop/variance_saved"] == pytest.approx(
        1 - row.at_present / row.at_zero, rel=1e-4
    )
    found = MonteCarlo(model, samples=4000, seed=0).predict(x, 8000)
    # Each value is doubled or 0.
    np.testing.assert_allclose(
        found.standard_deviation, np.abs(expected), rtol=0.01
    )
    np.testing.assert_allclose(
        found.mean, expected, atol=5 * np.abs(expected).max() / 4000**0.5
    )


@pytest.mark.parametrize("case", TAKEN)
def test_inputs_as_for_predict(case):
    model, x = TAKEN[case]
    check(model, x, predicted(model, x))


def test_an_extra_key_does_not_take_the_place_of_an_input():
    # Keras' `predict` takes the first ones in alphabetical order.
    x = {"a": NARROW, "wide": WIDE, "narrow": NARROW, "z": WIDE}
    for structure in (as_dict, sorted_dict):
        check(joined(structure), x, np.concatenate([WIDE, NARROW], axis=1))


REFUSED = {
    "list-for-a-dict-in-another-order": (joined(as_dict), [WIDE, NARROW]),
    "list-in-another-order": (joined(as_list), [NARROW, WIDE]),
    "missing-key": (joined(as_dict), {"wide": WIDE, "thin": NARROW}),
    "too-many": (joined(as_list), (WIDE, NARROW, WIDE)),
    "too-wide": (single(), np.ones((9, 4))),
    "vector": (single(), np.ones(9)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_the_model(case):
    # Depending on the backend, Keras takes some of these as if they fitted.
    model, x = REFUSED[case]
    monitor = BetaMonitor(x)
    monitor.set_model(model)
    for function, argument in (
        (lambda: calibrate(model, x, keep_predictions=False), "data"),
        (lambda: variance_report(model, x), "x"),
        (monitor.on_train_begin, "x"),
        (lambda: MonteCarlo(model).predict(x), "x"),
    ):
        match = f"`{argument}`. Expected arrays.*None.*Received: shape.*9"
        with pytest.raises(ValueError, match=match):
            function()


def test_the_error_shows_the_shape_of_all_examples():
    x = np.ones((500, 4))
    for function in (variance_report, lambda m, x: MonteCarlo(m).predict(x)):
        with pytest.raises(ValueError, match=r"\(None, 3\).*\(500, 4\)"):
            function(single(), x)


def test_examples():
    x = {"a": np.arange(5), "b": [pd.DataFrame(np.arange(10).reshape(5, 2))]}
    examples = Examples("x", x)
    assert len(examples) == 5
    part = examples[[3, 1]]
    np.testing.assert_array_equal(part["a"], [3, 1])
    np.testing.assert_array_equal(part["b"][0], [[6, 7], [2, 3]])
    sizes = [len(part["a"]) for part in examples.parts(2)]
    assert sizes == [2, 2, 1]


def test_batches_of_kinds_of_arrays():
    frame = pd.DataFrame(WIDE)
    found = list(batches([frame[:5], (torch(WIDE[5:]), NARROW[5:])], 32))
    np.testing.assert_array_equal(np.concatenate(found), WIDE)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_rows_of_numbers_are_named(count):
    with pytest.raises(ValueError, match="a list of numbers; convert"):
        list(batches([[1.0] * count] * 3, 2))


def test_targets_may_be_numbers():
    x = np.ones((2, 3))
    for batch in ((x, [0, 1]), (x, (0, 1), [1.0, 1.0])):
        (found,) = batches(iter([batch]), 2)
        np.testing.assert_array_equal(found, x)
