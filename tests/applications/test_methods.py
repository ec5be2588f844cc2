import keras
import pytest
from keras_invdrop.applications import _methods as methods
from keras_invdrop.applications import mnist_mlp

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout


def layers_of(method, shape):
    """The layers on the input and on hidden activities of a shape."""
    on_input, on_hidden = methods.dropouts(method, 0.2, 0.5, "l2")
    x = keras.Input(shape)
    model = keras.Model(x, on_hidden(on_input(x, "first"), "second"))
    return [layer for layer in model.layers if layer.name != x.name][-2:]


@pytest.mark.parametrize(
    ("method", "shape", "on_input", "on_hidden"),
    [
        ("standard", (4,), keras.layers.Dropout, keras.layers.Dropout),
        ("invariant", (4,), InvariantDropout, InvariantDropout),
        (
            "invariant",
            (4, 4, 2),
            SharedInvariantDropout,
            SharedInvariantDropout,
        ),
        (
            "invariant_input",
            (4, 4, 2),
            SharedInvariantDropout,
            keras.layers.Dropout,
        ),
        (
            "invariant_hidden",
            (4,),
            keras.layers.Dropout,
            InvariantDropout,
        ),
    ],
)
def test_layers_of_a_method(method, shape, on_input, on_hidden):
    first, second = layers_of(method, shape)
    assert [type(first), type(second)] == [on_input, on_hidden]
    assert [first.name, second.name] == ["first", "second"]
    assert [first.rate, second.rate] == [0.2, 0.5]
    for layer in (first, second):
        if isinstance(layer, InvariantDropout):
            assert isinstance(layer.beta_regularizer, keras.regularizers.L2)


def test_one_running_average_for_each_feature_map():
    for shape, shift in (((5,), (5,)), ((4, 3, 2), (1, 1, 2))):
        for layer in layers_of("running_average", shape):
            assert isinstance(layer, RunningAverageDropout)
            assert layer.shift.shape == shift


@pytest.mark.parametrize("method", ["none", "standard", "invariant"])
def test_a_rate_is_between_0_and_1(method):
    for wrong in ({"input_rate": 1.5}, {"hidden_rate": (0.5, None)}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"`{name}`.*between 0 and 1"):
            mnist_mlp(method, **wrong)


def test_none_drops_nothing():
    x = keras.Input((4,))
    for drop in methods.dropouts("none", 0.2, 0.5, None):
        assert drop(x, "name") is x


def test_images_are_in_the_image_data_format(image_data_format):
    for data_format, axes, shape in (
        ("channels_last", (1, 2), (32, 32, 3)),
        ("channels_first", (2, 3), (3, 32, 32)),
    ):
        image_data_format(data_format)
        assert methods.spatial_axes() == axes
        assert methods.image_shape(None) == shape
    assert methods.image_shape([8, 8, 1]) == (8, 8, 1)


def test_scaled():
    assert methods.scaled(1000, 1.0) == 1000
    assert methods.scaled(96, 1 / 16) == 6
    assert methods.scaled(3, 2) == 6
    assert methods.scaled(100, 0.006) == 1
    for width in (0, -1, "1", None, float("nan")):
        with pytest.raises(ValueError, match="`width`. Expected a finite fl"):
            methods.scaled(100, width)
    with pytest.raises(ValueError, match="100 times 0.004 rounds to 0"):
        methods.scaled(100, 0.004)


def constraints(max_norm, axes):
    return [
        options["kernel_constraint"]
        for options in methods.kernels(axes, max_norm)
    ]


def test_constraints():
    assert constraints(None, [0, 0]) == [None, None]
    for norms in (1.5, [1.5, 1.5]):
        first, second = constraints(norms, [[0, 1, 2], 0])
        assert (first.max_value, second.max_value) == (1.5, 1.5)
        assert (first.axis, second.axis) == ([0, 1, 2], 0)
    first, second = constraints((None, 4.5), [0, 0])
    assert first is None
    assert second.max_value == 4.5
    with pytest.raises(ValueError, match="or one for each of 2 layers"):
        constraints([1.5], [0, 0])
    with pytest.raises(ValueError, match="`max_norm`. Expected a finite"):
        constraints([1.5, 0], [0, 0])


def initial_weights(stddev, shape=(200, 300)):
    return [
        keras.ops.convert_to_numpy(
            keras.initializers.get(options["kernel_initializer"])(shape)
        )
        for options in methods.kernels([0, 0], None, stddev)
    ]


def test_initial_weights():
    for stddev, expected in (
        # Glorot's: uniform within the root of 6 / 500.
        (None, [(2 / 500) ** 0.5] * 2),
        (0.03, [0.03, 0.03]),
        ((0.01, 0), [0.01, 0]),
        ((None, 0.1), [(2 / 500) ** 0.5, 0.1]),
    ):
        for weights, deviation in zip(
            initial_weights(stddev), expected, strict=True
        ):
            # Of 60,000 draws: the deviation is off by 0.3 %, one sigma.
            assert weights.std() == pytest.approx(deviation, rel=0.02)
            assert abs(weights.mean()) <= 5 * deviation / 60_000**0.5
    with pytest.raises(ValueError, match="`initial_stddev`. Expected a finite"):
        initial_weights((0.1, -1))
    with pytest.raises(ValueError, match="`initial_stddev`. Expected one"):
        initial_weights((0.1, 1, 1))


def test_one_rate_for_each_hidden_layer():
    _, drop = methods.dropouts("standard", 0.2, (0.3, 0.6), None, 2)
    x = keras.Input((4,))
    model = keras.Model(x, drop(drop(x, "first"), "second"))
    rates = [model.get_layer(name).rate for name in ("first", "second")]
    assert rates == [0.3, 0.6]
    with pytest.raises(ValueError, match="`hidden_rate`. .* of 2 layers"):
        methods.dropouts("standard", 0.2, (0.3, 0.6, 0.5), None, 2)
