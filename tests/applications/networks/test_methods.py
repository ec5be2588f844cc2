import keras
import pytest
from keras_invdrop.applications.networks import methods

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


def test_constraints():
    assert methods.constraints(None, [0, 0]) == [None, None]
    for norms in (1.5, [1.5, 1.5]):
        first, second = methods.constraints(norms, [[0, 1, 2], 0])
        assert (first.max_value, second.max_value) == (1.5, 1.5)
        assert (first.axis, second.axis) == ([0, 1, 2], 0)
    with pytest.raises(ValueError, match="or one for each of 2 layers"):
        methods.constraints([1.5], [0, 0])
    with pytest.raises(ValueError, match="`max_norm`. Expected a finite"):
        methods.constraints([1.5, 0], [0, 0])
