import keras
import numpy as np
import pytest

from keras_invdrop import InvariantDropout
from keras_invdrop.regularizers import Variance


def test_penalty_is_the_sum_of_squared_deviations():
    x = np.array([[1.0, 2.0], [3.0, 6.0]], dtype="float32")
    # The mean is 3; deviations -2, -1, 0, 3.
    assert float(Variance(0.5)(x)) == pytest.approx(0.5 * (4 + 1 + 0 + 9))


def test_a_common_constant_costs_nothing():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
    assert float(Variance(1.0)(x + 10)) == pytest.approx(
        float(Variance(1.0)(x)), rel=1e-5
    )
    assert float(Variance(1.0)(np.full((4,), 3.0, "float32"))) == 0


def test_penalty_of_16_bits():
    # In float16 a square of 300 is infinite, as is the sum of 1,000 times 200.
    x = np.array([-300.0, 300.0] * 500, dtype="float16") + np.float16(200)
    assert float(Variance(1.0)(x)) == pytest.approx(1000 * 300**2)


def test_it_is_a_loss_of_the_layer():
    layer = InvariantDropout(0.5, beta_regularizer=Variance(0.1))
    layer.build((None, 2))
    layer.beta.assign([1.0, 3.0])
    assert float(layer.losses[0]) == pytest.approx(0.1 * (1 + 1))


def test_config_round_trip():
    prior = keras.regularizers.deserialize(
        keras.regularizers.serialize(Variance(0.3))
    )
    assert isinstance(prior, Variance)
    assert prior.factor == 0.3


@pytest.mark.parametrize("factor", [-1, np.nan, np.inf, "0.1", True, None])
def test_bad_factor(factor):
    with pytest.raises(ValueError, match="`factor`.*finite.*Received"):
        Variance(factor)


def test_an_older_config_has_the_default():
    assert Variance.from_config({}).factor == Variance().factor


def test_an_altered_config_is_refused():
    with pytest.raises(ValueError, match="unexpected.*'surprise'"):
        Variance.from_config({"factor": 0.1, "surprise": 1})
