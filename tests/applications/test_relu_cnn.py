import keras
import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications import relu_cnn

from keras_invdrop import LocallyConnected2D
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import StochasticPooling2D


def convolution(filters, channels):
    return 5 * 5 * channels * filters + filters


# Three poolings halve 32 to 16, 8 and 4.
@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (  # 128c-p-128c-p-128c-p-1000fc
            {},
            convolution(128, 3)
            + 2 * convolution(128, 128)
            + (4 * 4 * 128 * 1000 + 1000)
            + (1000 * 10 + 10),
        ),
        (  # 64c-p-64c-p-64c-p-16lc: a window of 3 x 3 for each of 4 x 4 places
            {
                "filters": (64, 64, 64),
                "locally_connected": 16,
                "hidden_units": (),
            },
            convolution(64, 3)
            + 2 * convolution(64, 64)
            + 4 * 4 * (3 * 3 * 64 * 16 + 16)
            + (4 * 4 * 16 * 10 + 10),
        ),
        (  # 64c-p-64c-p-128c-p-fc, stochastic pooling
            {
                "filters": (64, 64, 128),
                "hidden_units": (),
                "pooling": "stochastic",
            },
            convolution(64, 3)
            + convolution(64, 64)
            + convolution(128, 64)
            + (4 * 4 * 128 * 10 + 10),
        ),
        (  # 64c-p-64c-p-128c-p-fc-fc
            {"filters": (64, 64, 128), "hidden_units": (2048, 2048)},
            convolution(64, 3)
            + convolution(64, 64)
            + convolution(128, 64)
            + (4 * 4 * 128 * 2048 + 2048)
            + (2048 * 2048 + 2048)
            + (2048 * 10 + 10),
        ),
    ],
)
def test_parameters_by_hand(options, parameters):
    model = relu_cnn("standard", **options)
    assert not model.compiled
    assert model.input_shape == (None, 32, 32, 3)
    assert model.output_shape == (None, 10)
    assert model.count_params() == parameters


def test_one_beta_for_each_feature_map():
    standard, invariant = relu_cnn("standard"), relu_cnn("invariant")
    # Of the colours, of the maps of three convolutions, of the hidden units.
    betas = 3 + 128 + 128 + 128 + 1000
    assert invariant.count_params() - standard.count_params() == betas
    shapes = [
        layer.beta.shape
        for layer in invariant.layers
        if isinstance(layer, SharedInvariantDropout)
    ]
    assert shapes == [(1, 1, 3), (1, 1, 128), (1, 1, 128), (1, 1, 128)]
    running = relu_cnn("running_average", width=1 / 16)
    averages = [
        layer.shift.shape
        for layer in running.layers
        if isinstance(layer, RunningAverageDropout)
    ]
    assert averages == [(1, 1, 3), (1, 1, 8), (1, 1, 8), (1, 1, 8), (62,)]


def test_the_order_of_layers():
    model = relu_cnn(
        "invariant", filters=(16, 24), locally_connected=8, hidden_units=(9,)
    )
    assert [layer.name for layer in model.layers] == [
        "input",
        "input_dropout",
        "convolution_1",
        "pooling_1",
        "convolution_1_dropout",
        "convolution_2",
        "pooling_2",
        "convolution_2_dropout",
        "locally_connected",
        "locally_connected_dropout",
        "flatten",
        "hidden_1",
        "hidden_1_dropout",
        "classifier",
    ]
    rates = [x.rate for x in model.layers if x.name.endswith("_dropout")]
    assert rates == [0.2, 0.5, 0.5, 0.5, 0.5]
    convolution = model.get_layer("convolution_1")
    assert convolution.kernel_size == (5, 5)
    assert convolution.activation is keras.activations.relu
    assert convolution.output.shape == (None, 32, 32, 16)
    pooling = model.get_layer("pooling_1")
    assert (pooling.pool_size, pooling.strides) == ((3, 3), (2, 2))
    assert pooling.output.shape == (None, 16, 16, 16)
    assert isinstance(model.get_layer("locally_connected"), LocallyConnected2D)


def test_stochastic_pooling():
    model = relu_cnn(width=1 / 16, pooling="stochastic")
    pooling = model.get_layer("pooling_1")
    assert isinstance(pooling, StochasticPooling2D)
    assert (pooling.pool_size, pooling.strides) == ((3, 3), (2, 2))


@pytest.mark.parametrize("dropout", METHODS)
def test_predicts_probabilities_and_loads_again(dropout, tmp_path):
    model = relu_cnn(
        dropout, (4, 4), locally_connected=2, hidden_units=(5,), classes=7
    )
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3))
    outputs = model.predict(x, verbose=0)
    assert outputs.shape == (3, 7)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), outputs, rtol=1e-5)


def test_max_norm_is_of_the_weights_into_one_unit():
    model = relu_cnn(
        "none",
        (4, 4),
        locally_connected=2,
        hidden_units=(5,),
        max_norm=(0.1, 0.2, 0.3, 0.4, 0.5),
    )
    names = (
        "convolution_1",
        "convolution_2",
        "locally_connected",
        "hidden_1",
        "classifier",
    )
    for name, norm in zip(names, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        layer = model.get_layer(name)
        kernel = 100 + keras.ops.convert_to_numpy(layer.kernel)
        held = keras.ops.convert_to_numpy(layer.kernel_constraint(kernel))
        # All axes but that of the units (and, where they are not shared, that
        # of the places).
        axes = {"locally_connected": (1,)}.get(
            name, tuple(range(kernel.ndim - 1))
        )
        np.testing.assert_allclose(
            np.sqrt((held**2).sum(axis=axes)), norm, rtol=1e-4
        )


def test_prior_on_beta():
    model = relu_cnn(width=1 / 16, beta_regularizer="l2")
    assert len(model.losses) == 5


def test_errors():
    with pytest.raises(ValueError, match="`pooling`. Expected one of 'max'"):
        relu_cnn(pooling="mean")
    with pytest.raises(ValueError, match="`dropout`. Expected one of 'none'"):
        relu_cnn("some")
    with pytest.raises(ValueError, match="`width`. .* 16 times 0.01 rounds to"):
        relu_cnn(width=0.01, locally_connected=16)
    for shape in ((784,), (32, 32, None), 32):
        with pytest.raises(ValueError, match="`input_shape`. .* Received: "):
            relu_cnn(input_shape=shape)
