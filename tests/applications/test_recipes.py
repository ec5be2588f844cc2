import keras
import pytest
from keras_invdrop.applications.recipes import DEMO
from keras_invdrop.applications.recipes import MNIST
from keras_invdrop.applications.recipes import Recipe


def test_what_the_paper_says():
    for recipe in (MNIST, DEMO):
        assert recipe.momentum == 0.99
        optimizer = recipe.optimizer(steps_per_epoch=5)
        assert optimizer.nesterov
        assert optimizer.momentum == 0.99


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
