import keras
import pytest
from keras_invdrop.applications import recipes
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.tables import ROWS


def test_what_the_paper_says():
    # Section 3: 0.99 for fully connected networks, 0.9 for convolutional ones.
    for name, momentum in {
        "MNIST": 0.99,
        "DEMO": 0.99,
        "CIFAR10_MLP": 0.99,
        "MAS": 0.99,
        "RELU_CNN": 0.9,
    }.items():
        optimizer = getattr(recipes, name).optimizer(steps_per_epoch=5)
        assert optimizer.nesterov
        assert optimizer.momentum == momentum


def test_no_recipe_of_the_paper_is_calibrated():
    assert not Recipe().calibrated
    assert not any(row.recipe.calibrated for row in ROWS.values())


def test_what_is_published_of_the_maxout_networks():
    cifar10, svhn = recipes.CIFAR10_MAXOUT, recipes.SVHN_MAXOUT
    assert (cifar10.batch_size, svhn.batch_size) == (128, 128)
    # Of CIFAR-10: linearly to 1 % over 500 epochs, momentum over 250.
    optimizer = cifar10.optimizer(steps_per_epoch=4)
    rate = optimizer._learning_rate
    assert float(rate(0)) == pytest.approx(0.17)
    assert float(rate(1000)) == pytest.approx(0.17 * (1 + 0.01) / 2)
    assert float(rate(2000)) == pytest.approx(0.0017)
    assert (optimizer.momentum_start, optimizer.momentum) == (0.5, 0.6)
    assert optimizer.ramp_steps == 1000
    # Of SVHN: to 0.1 % over 250 epochs, momentum over as many.
    optimizer = svhn.optimizer(steps_per_epoch=4)
    assert float(optimizer._learning_rate(0)) == pytest.approx(0.2)
    assert float(optimizer._learning_rate(1000)) == pytest.approx(0.0002)
    assert optimizer.ramp_steps == 1000
    for recipe in (cifar10, svhn):
        factors = recipe.optimizer(4).learning_rate_factors
        assert factors == {f"convolution_{i}": 0.05 for i in (1, 2, 3)}
        assert recipe.max_norm == (0.9, 1.9365, 1.9365, 1.9, 1.9365)
        assert recipe.momentum == 0.6
    # The published run for CIFAR-10 is trained anew on all images.
    assert cifar10.retrain
    assert not svhn.retrain


def test_learning_rate_falls_geometrically():
    recipe = Recipe(epochs=10, learning_rate=0.1, learning_rate_end=0.01)
    rate = recipe.optimizer(steps_per_epoch=5)._learning_rate
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(25)) == pytest.approx(0.01)
    assert float(rate(50)) == pytest.approx(0.001)


def test_momentum_rises_over_a_part_of_the_training():
    recipe = Recipe(epochs=10, momentum_ramp=0.2)
    assert recipe.optimizer(steps_per_epoch=5).ramp_steps == 10


def test_decay_of_beta_is_the_gradient_of_the_prior():
    recipe = Recipe(beta_decay=0.1)
    # d/dbeta of c beta^2 is 0.1 beta for c = 0.05.
    beta = keras.ops.convert_to_tensor([2.0])
    assert float(recipe.beta_regularizer()(beta)) == pytest.approx(0.05 * 4)
    assert Recipe(beta_decay=0).beta_regularizer() is None
