import keras
import numpy as np
import pytest
from keras_invdrop.applications import SVHN_CONVOLUTIONS
from keras_invdrop.applications import maxout_cnn
from keras_invdrop.applications import relu_cnn

SVHN = {"convolutions": SVHN_CONVOLUTIONS, "hidden_units": 400}


def convolution(size, channels, filters):
    # Two pieces, each with a bias of its own.
    return 2 * (size * size * channels * filters + filters)


CIFAR10_PARAMETERS = (
    convolution(8, 3, 96)
    + convolution(8, 96, 192)
    + convolution(5, 192, 192)
    + 5 * (5 * 5 * 192 * 500 + 500)
    + (500 * 10 + 10)
)
SVHN_PARAMETERS = (
    convolution(5, 3, 64)
    + convolution(5, 64, 128)
    + convolution(5, 128, 128)
    + 5 * (6 * 6 * 128 * 400 + 400)
    + (400 * 10 + 10)
)


@pytest.mark.parametrize(
    ("options", "parameters", "betas"),
    [
        ({}, CIFAR10_PARAMETERS, 3 + 96 + 192 + 192 + 500),
        (SVHN, SVHN_PARAMETERS, 3 + 64 + 128 + 128 + 400),
    ],
)
def test_parameters_by_hand(options, parameters, betas):
    assert maxout_cnn("standard", **options).count_params() == parameters
    model = maxout_cnn("invariant", **options)
    assert model.count_params() == parameters + betas
    assert model.output_shape == (None, 10)
    assert not model.compiled


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        # Padded, convolved, pooled: (32 + 8 - 8) + 1 = 33, of which windows
        # of 4 with stride 2 cover 32 and a last one the rest: 16.
        ({}, [(40, 33, 16), (22, 15, 7), (13, 9, 5)]),
        (SVHN, [(40, 36, 18), (24, 20, 10), (16, 12, 6)]),
    ],
)
def test_published_geometry(options, sizes):
    model = maxout_cnn("none", **options)
    found = [
        tuple(
            model.get_layer(f"{name}_{i}").output.shape[1]
            for name in ("padding", "convolution", "pooling")
        )
        for i in (1, 2, 3)
    ]
    assert found == sizes


def test_less_than_half_the_parameters():
    # Section 3.5, of the network without maxout. It has less than a fifth.
    ours = relu_cnn("invariant").count_params()
    assert ours < CIFAR10_PARAMETERS / 2
    assert 0.17 < ours / CIFAR10_PARAMETERS < 0.18


def test_the_last_partial_window_counts():
    model = maxout_cnn("none", convolutions=((1, 1, 0, 2),), hidden_units=1)
    through = keras.Model(model.input, model.get_layer("pooling_1").output)
    layer = model.get_layer("convolution_1")
    # Both pieces are -1 times the first colour: negative throughout.
    kernel = np.zeros((1, 1, 3, 2))
    kernel[:, :, 0] = -1
    layer.kernel.assign(kernel)
    x = np.arange(1.0, 32 * 32 + 1).reshape((1, 32, 32, 1)) * np.ones(3)
    odd = maxout_cnn(
        "none",
        convolutions=((1, 1, 0, 3),),
        hidden_units=1,
        input_shape=(32, 32, 3),
    )
    odd.get_layer("convolution_1").kernel.assign(kernel)
    pooled = keras.Model(odd.input, odd.get_layer("pooling_1").output)
    image = -x[0, :, :, 0]
    # Windows of 2 with stride 2 fit; of 3 with stride 2 the last has 2 left.
    np.testing.assert_allclose(
        through.predict(x, verbose=0)[0, :, :, 0], image[::2, ::2]
    )
    expected = [
        [image[i : i + 3, j : j + 3].max() for j in range(0, 31, 2)]
        for i in range(0, 31, 2)
    ]
    np.testing.assert_allclose(
        pooled.predict(x, verbose=0)[0, :, :, 0], expected
    )


def test_initial_weights_and_norms():
    norms = (0.9, 1.9365, 1.9365, 1.9, 1.9365)
    model = maxout_cnn("none", width=1 / 32, max_norm=norms)
    names = [f"convolution_{i}" for i in (1, 2, 3)] + ["hidden_1", "classifier"]
    for name, norm in zip(names, norms, strict=True):
        layer = model.get_layer(name)
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        assert 0.0045 < np.abs(kernel).max() <= 0.005
        layer = getattr(layer, "conv", getattr(layer, "dense", layer))
        constraint = layer.kernel_constraint
        held = keras.ops.convert_to_numpy(constraint(kernel + 100))
        axes = tuple(range(kernel.ndim - 1))
        np.testing.assert_allclose(
            np.sqrt((held**2).sum(axis=axes)), norm, rtol=1e-4
        )
    # No two layers have the same draws.
    kernels = [model.get_layer(name).get_weights()[0].ravel() for name in names]
    assert len({kernel[0] for kernel in kernels}) == len(names)


def test_predicts_probabilities_and_loads_again(tmp_path):
    model = maxout_cnn(width=1 / 32, classes=7)
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3))
    outputs = model.predict(x, verbose=0)
    assert outputs.shape == (3, 7)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), outputs, rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="`width`. .* 96 times 0.005 rounds"):
        maxout_cnn(width=0.005)
    with pytest.raises(ValueError, match="`max_norm`. Expected .* of 5 layers"):
        maxout_cnn(max_norm=(1.0, 2.0))
