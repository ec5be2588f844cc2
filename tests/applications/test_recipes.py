import dataclasses

import keras
import numpy as np
import pytest
from keras_invdrop.applications import mas_mlp
from keras_invdrop.applications import maxout_cnn
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications import recipes
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.recipes import for_layers
from keras_invdrop.experiments.paper.tables import ROWS

from keras_invdrop import InvariantDropout


def test_momentum_that_does_not_rise():
    recipe = Recipe(epochs=2, momentum_ramp=0.0)
    optimizer = recipe.optimizer(steps_per_epoch=5)
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    for expected in (0.5, 0.99, 0.99):
        momentum = keras.ops.convert_to_numpy(optimizer.current_momentum())
        assert momentum == pytest.approx(expected)
        optimizer.apply([keras.ops.ones(1)], [variable])


def test_what_the_paper_says():
    # Section 3: 0.99 for fully connected networks, 0.9 for convolutional ones.
    for name, momentum in {
        "MNIST_CALIBRATED": 0.99,
        "DEMO": 0.99,
        "CIFAR10_MLP": 0.99,
        "MAS": 0.99,
        "RELU_CNN_CALIBRATED": 0.9,
    }.items():
        optimizer = getattr(recipes, name).optimizer(steps_per_epoch=5)
        assert optimizer.nesterov
        assert optimizer.momentum == momentum


def test_no_recipe_of_the_paper_is_calibrated():
    assert not Recipe().calibrated
    assert not any(row.recipe.calibrated for row in ROWS.values())


def test_published_settings_of_the_maxout_networks():
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
    # The published run for CIFAR-10 trains again on all images.
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


@pytest.mark.parametrize(
    ("decay", "regularizer"),
    [
        ("beta_decay", "beta_regularizer"),
        ("weight_decay", "kernel_regularizer"),
    ],
)
def test_decay_is_the_gradient_of_the_prior(decay, regularizer):
    def prior(value):
        return Recipe(**{decay: value}).network(dict)[regularizer]

    # d/dw of c w^2 is 0.1 w for c = 0.05.
    weight = keras.ops.convert_to_tensor([2.0])
    assert float(prior(0.1)(weight)) == pytest.approx(0.05 * 4)
    assert prior(0) is None


def test_learning_rate_rises_over_a_part_of_the_steps():
    recipe = Recipe(epochs=10, learning_rate=0.1, warm_up=0.2)
    rate = recipe.optimizer(steps_per_epoch=5)._learning_rate
    usual = Recipe(epochs=10, learning_rate=0.1).optimizer(5)._learning_rate
    for step in range(50):
        # Ten of fifty steps.
        rise = min((step + 1) / 10, 1)
        assert float(rate(step)) == pytest.approx(rise * float(usual(step)))


def test_the_beta_factor_applies_only_with_beta():
    recipe = Recipe(beta_factor=10.0, learning_rate_factors={"hidden_1": 0.5})
    assert recipe.optimizer(5).learning_rate_factors == {"hidden_1": 0.5}
    factors = recipe.optimizer(5, ["drop", "hidden_1"]).learning_rate_factors
    assert factors == {"hidden_1": 5.0, "drop": 10.0}
    assert Recipe().optimizer(5, ["drop"]).learning_rate_factors == {}


def test_the_beta_factor_applies_once_to_layers_of_one_name():
    optimizer = Recipe(beta_factor=10.0).optimizer(1, ["drop", "drop"])
    assert optimizer.learning_rate_factors == {"drop": 10.0}


def test_the_beta_factor_leaves_the_beta_of_batch_normalization():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(name="normalized"),
            InvariantDropout(0.5, name="dropped"),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    recipe = Recipe(beta_factor=10.0)
    recipe.compile(model, steps_per_epoch=5)
    assert model.optimizer.learning_rate_factors == {"dropped": 10.0}
    model.get_layer("dropped").trainable = False
    recipe.compile(model, steps_per_epoch=5)
    assert model.optimizer.learning_rate_factors == {}


def test_a_geometric_fall_does_not_end_at_zero():
    recipe = Recipe(learning_rate_end=0.0)
    with pytest.raises(ValueError, match="`learning_rate_end`.*above 0"):
        recipe.optimizer(5)
    linear = dataclasses.replace(recipe, learning_rate_fall="linear")
    assert float(linear.optimizer(5)._learning_rate(10**6)) == 0


def test_average_of_the_weights():
    optimizer = Recipe(ema_momentum=0.9).optimizer(5)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    assert not Recipe().optimizer(5).use_ema


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("warm_up", 1.5),
        ("beta_factor", -1),
        ("weight_decay", -1),
        ("ema_momentum", 2),
    ],
)
def test_a_bad_setting_is_named(setting, value):
    recipe = Recipe(**{setting: value})
    with pytest.raises(ValueError, match=f"`{setting}`"):
        recipe.network(dict)
        recipe.optimizer(5)


def test_values_for_layers_are_parsed():
    assert for_layers("x", "2") == 2
    assert for_layers("x", "none") is None
    assert for_layers("x", "none, 4.5,4.5") == (None, 4.5, 4.5)
    with pytest.raises(
        ValueError, match="`x`. Expected numbers or none.*'1,a'"
    ):
        for_layers("x", "1,a")


def test_the_network_of_a_recipe_has_its_rates_norms_and_priors():
    recipe = Recipe(
        input_rate=0.1,
        hidden_rate=(0.3, 0.6),
        max_norm=(None, 1.5, 2.0),
        initial_stddev=(0.1, None, 0.0),
        weight_decay=1e-3,
        beta_decay=0.1,
    )
    model = recipe.network(mnist_mlp, dropout="invariant", width=0.01)
    layer = model.get_layer
    rates = [
        layer(f"{each}_dropout").rate
        for each in ("input", "hidden_1", "hidden_2")
    ]
    assert rates == [0.1, 0.3, 0.6]
    assert layer("input_dropout").beta_regularizer.l2 == pytest.approx(0.05)
    assert layer("hidden_1").kernel_constraint is None
    assert layer("hidden_2").kernel_constraint.max_value == 1.5
    assert layer("hidden_1").kernel_initializer.stddev == 0.1
    assert layer("hidden_1").kernel_regularizer.l2 == pytest.approx(5e-4)
    assert not keras.ops.convert_to_numpy(layer("classifier").kernel).any()
    # An argument overrides a setting.
    other = recipe.network(mnist_mlp, hidden_rate=0.5, width=0.01)
    assert other.get_layer("hidden_1_dropout").rate == 0.5


@pytest.mark.parametrize(
    ("activation", "from_logits"), [(None, True), ("softmax", False)]
)
def test_the_loss_fits_the_outputs(activation, from_logits):
    labels = keras.losses.SparseCategoricalCrossentropy
    distributions = keras.losses.CategoricalCrossentropy
    for build, loss in ((mnist_mlp, labels), (mas_mlp, distributions)):
        model = build(width=0.01, classifier_activation=activation)
        around = keras.Sequential([keras.Input(model.input_shape[1:]), model])
        for each in (model, around):
            Recipe().compile(each, steps_per_epoch=1)
            assert type(each.loss) is loss
            assert each.loss.get_config()["from_logits"] is from_logits
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs))
    Recipe().compile(model, 1)
    assert not model.loss.get_config()["from_logits"]


def test_from_logits_is_required_for_other_outputs():
    inputs = keras.Input((3,))
    for outputs in (
        keras.layers.Dense(2, "sigmoid")(inputs),
        keras.layers.Reshape((3,))(inputs),
        keras.ops.softmax(keras.layers.Dense(2)(inputs)),
    ):
        model = keras.Model(inputs, outputs)
        with pytest.raises(ValueError, match="`from_logits`. Expected a bool"):
            Recipe().compile(model, 1)
        Recipe().compile(model, 1, from_logits=False)
        assert not model.loss.get_config()["from_logits"]
    with pytest.raises(ValueError, match="`from_logits`. Expected a bool"):
        Recipe().compile(model, 1, from_logits="no")
    with pytest.raises(ValueError, match="`steps_per_epoch`. Expected a pos"):
        Recipe().compile(model, 0, from_logits=False)
    two = keras.Model(inputs, [inputs, inputs])
    with pytest.raises(ValueError, match="`model`. Expected a functional"):
        Recipe().compile(two, 1)


def test_arguments_of_compile_override_the_recipe():
    model = mnist_mlp(width=0.01)
    Recipe().compile(model, 1, loss="mse", metrics=["mae"], jit_compile=False)
    assert (model.loss, model.jit_compile) == ("mse", False)
    x, y = np.zeros((2, 784)), np.zeros((2, 10))
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "mae"}


def test_compile_gives_the_whole_recipe():
    """Schedule, ramp, the factors of layers and of beta, and averages."""
    recipe = dataclasses.replace(
        recipes.CIFAR10_MAXOUT, beta_factor=10.0, warm_up=0.1, ema_momentum=0.9
    )
    for method in ("invariant", "standard"):
        model = maxout_cnn(dropout=method, width=1 / 16)
        recipe.compile(model, steps_per_epoch=4)
        betas = [
            weight.path.split("/")[-2]
            for weight in model.trainable_weights
            if weight.name == "beta"
        ]
        assert bool(betas) == (method == "invariant")
        expected = recipe.optimizer(4, betas)
        assert model.optimizer.get_config() == expected.get_config()
        factors = model.optimizer.learning_rate_factors
        assert all(factors[name] == 10.0 for name in betas)
        assert factors["convolution_1"] == 0.05
