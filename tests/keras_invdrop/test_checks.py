import numpy as np
import pytest

from keras_invdrop import _checks


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), np.int64(1)])
def test_fraction_is_returned_as_a_float(value):
    checked = _checks.check_fraction("rate", value)
    assert type(checked) is float
    assert checked == value


@pytest.mark.parametrize(
    "value",
    [-0.1, 1.5, np.nan, np.inf, True, np.True_, "0.5", None, [0.5], 1j],
)
def test_invalid_fractions(value):
    with pytest.raises(
        ValueError,
        match="Invalid value received for argument `rate`. Expected a float "
        "value between 0 and 1. Received: rate=",
    ):
        _checks.check_fraction("rate", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_invalid_positive_integers(value):
    with pytest.raises(ValueError, match="`pieces`. Expected a positive int"):
        _checks.check_positive_integer("pieces", value)


def test_booleans_and_seeds():
    assert _checks.check_boolean("use_bias", np.True_) is True
    for value in ("false", 0, None):
        with pytest.raises(ValueError, match="`use_bias`. Expected a boolean"):
            _checks.check_boolean("use_bias", value)
    assert _checks.check_seed(None) is None
    for seed in (3, -1, 2**70, np.int64(3)):
        assert _checks.check_seed(seed) == seed
        assert type(_checks.check_seed(seed)) is int
    for value in ("3", True, 1.5):
        with pytest.raises(ValueError, match="`seed`. Expected an integer or"):
            _checks.check_seed(value)


def test_axes_count_from_both_ends():
    assert _checks.resolve_axes([1, -1], (None, 4, 5, 6)) == {1, 3}
    assert _checks.resolve_axes(None, (None, 4)) == set()


@pytest.mark.parametrize(
    ("noise_shape", "input_shape"),
    [
        ((None, 1, 3), (None, 5, 3)),
        ((8, 1, 3), (None, 5, 3)),
        ((8, 1, 3), (8, 5, 3)),
        ((1, 5, None), (8, 5, 3)),
        ((None, 7), (None, None)),
        # As in Keras, the leading axes may be left out.
        ((1, 3), (8, 5, 3)),
        ((3,), (None, 5, 3)),
    ],
)
def test_noise_shapes_that_broadcast(noise_shape, input_shape):
    _checks.check_broadcast(noise_shape, input_shape)


@pytest.mark.parametrize(
    ("noise_shape", "input_shape"),
    [
        ((None, 2, 3), (None, 5, 3)),
        ((4, 1, 3), (8, 5, 3)),
        ((2, 3), (8, 5, 3)),
        ((1, 1, 5, 3), (8, 5, 3)),
    ],
)
def test_noise_shapes_that_do_not_broadcast(noise_shape, input_shape):
    with pytest.raises(ValueError, match="`noise_shape`.*broadcast"):
        _checks.check_broadcast(noise_shape, input_shape)
