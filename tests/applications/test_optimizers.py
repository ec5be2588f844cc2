import keras
import numpy as np
import pytest
from keras import ops
from keras_invdrop.applications.optimizers import RampedSGD
from keras_invdrop.applications.optimizers import WarmUp

from keras_invdrop import MaxoutConv2D


def weights_of(optimizer, gradients):
    variable = keras.Variable(np.array([1.0, -2.0], dtype="float32"))
    optimizer.build([variable])
    for gradient in gradients:
        gradient = ops.convert_to_tensor(np.array(gradient, dtype="float32"))
        optimizer.apply([gradient], [variable])
    return ops.convert_to_numpy(variable)


GRADIENTS = np.random.default_rng(0).normal(size=(8, 2))


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_by_hand(nesterov):
    optimizer = RampedSGD(
        0.1, momentum=0.9, momentum_start=0.5, ramp_steps=4, nesterov=nesterov
    )
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    for step, gradient in enumerate(GRADIENTS):
        mu = 0.5 + 0.4 * min(step / 4, 1)
        v = mu * v - 0.1 * gradient
        w = w + (mu * v - 0.1 * gradient if nesterov else v)
    np.testing.assert_allclose(weights_of(optimizer, GRADIENTS), w, rtol=1e-5)


def test_without_a_ramp_it_equals_the_sgd_of_keras():
    ours = RampedSGD(0.1, momentum=0.9, momentum_start=0.9)
    theirs = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    np.testing.assert_allclose(
        weights_of(ours, GRADIENTS), weights_of(theirs, GRADIENTS), rtol=1e-5
    )


def test_other_arguments_are_those_of_sgd():
    options = {"use_ema": True, "ema_momentum": 0.5, "clipvalue": 0.1}
    ours = RampedSGD(0.1, momentum=0.9, momentum_start=0.9, **options)
    theirs = keras.optimizers.SGD(0.1, 0.9, nesterov=True, **options)
    expected = weights_of(theirs, GRADIENTS)
    np.testing.assert_allclose(weights_of(ours, GRADIENTS), expected, rtol=1e-5)
    config = RampedSGD.from_config(ours.get_config()).get_config()
    assert options.items() <= config.items()


def test_the_ramp_runs_inside_one_compiled_step():
    # The step is traced once for the whole training: momentum is read from
    # the step counter, not from Python.
    traces = []

    class Traced(RampedSGD):
        def current_momentum(self):
            traces.append(1)
            return super().current_momentum()

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(Traced(0.01, 0.99, 0.5, ramp_steps=50), "mse")
    x = np.ones((8, 3), dtype="float32")
    model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=0)
    after_first_epoch = len(traces)
    model.fit(x, x[:, :1], batch_size=4, epochs=5, verbose=0)
    momentum = float(model.optimizer.current_momentum())
    assert momentum == pytest.approx(0.5 + 0.49 * 12 / 50)
    if keras.backend.backend() != "torch":  # PyTorch runs steps in Python
        # The line above adds one step.
        assert len(traces) == after_first_epoch + 1


def test_config_round_trip():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = RampedSGD(
        schedule,
        0.95,
        0.4,
        ramp_steps=7,
        nesterov=False,
        learning_rate_factors={"convolution_1": 0.05},
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.momentum_start, again.ramp_steps) == (
        0.95,
        0.4,
        7,
    )
    assert again.nesterov is False
    assert again.learning_rate_factors == {"convolution_1": 0.05}


def two_layers(optimizer):
    """The changes of the weights of two layers in one step."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3, 3, 1)),
            MaxoutConv2D(2, 2, pieces=2, name="convolution"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, name="hidden"),
        ]
    )
    model.compile(optimizer, "mse")
    x = np.random.default_rng(0).normal(size=(8, 3, 3, 1))
    before = [w.copy() for w in model.get_weights()]
    model.fit(x, x[:, 0, 0], batch_size=8, epochs=1, verbose=0)
    return [
        after - start
        for after, start in zip(model.get_weights(), before, strict=True)
    ]


def test_a_layer_has_a_learning_rate_of_its_own():
    # In one step from the same weights, so that the gradients are the same;
    # the convolution is a layer within a layer.
    usual = two_layers(RampedSGD(0.01))
    scaled = two_layers(
        RampedSGD(0.01, learning_rate_factors={"convolution": 0.05})
    )
    for i in (0, 1):  # kernel and bias
        assert np.abs(usual[i]).max() > 0
        # Differences of weights below 1: each is rounded to 2 ** -25.
        np.testing.assert_allclose(
            scaled[i], 0.05 * usual[i], rtol=1e-6, atol=2 * 2.0**-25
        )
    for i in (2, 3):
        np.testing.assert_allclose(scaled[i], usual[i], rtol=1e-6)


def test_a_weight_has_a_learning_rate_of_its_own():
    usual = two_layers(RampedSGD(0.01))
    factors = {"bias": 10, "hidden": 0.5}
    scaled = two_layers(RampedSGD(0.01, learning_rate_factors=factors))
    # Kernel and bias of the convolution, and of the hidden layer.
    for one, other, factor in zip(usual, scaled, (1, 10, 0.5, 5), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(
            other, factor * one, rtol=1e-5, atol=2 * 2.0**-25
        )


def test_a_weight_without_a_learning_rate_stays():
    factors = {"hidden": 0}
    changes = two_layers(RampedSGD(0.01, learning_rate_factors=factors))
    assert [bool(np.any(change)) for change in changes] == [
        True,
        True,
        False,
        False,
    ]


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.4


def test_the_learning_rate_rises_first():
    falling = keras.optimizers.schedules.PolynomialDecay(0.8, 8, 0.0)
    rate = WarmUp(falling, 4)
    # The product of the first four of 0.8, 0.7, 0.6 ...
    expected = [0.8 / 4, 0.7 * 2 / 4, 0.6 * 3 / 4, 0.5, 0.4, 0.3]
    found = [float(rate(step)) for step in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # A schedule of numbers, as Keras takes it.
    assert float(WarmUp(Constant(), 4)(0)) == pytest.approx(0.4 / 4)
    # In training the optimizer computes it from its own counter.
    optimizer = RampedSGD(rate, momentum=0.5)
    weights = weights_of(optimizer, [[1.0, 0.0]])
    # w - (mu + 1) * 0.2 * gradient, with Nesterov momentum
    assert weights[0] == pytest.approx(1 - 1.5 * 0.2)
    assert float(optimizer.learning_rate) == pytest.approx(0.35)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert float(again.learning_rate) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps`. Expected a positive integer"),
        ({"steps": None}, "`WarmUp`: .*missing.*'steps'"),
        ({"schedule": None}, "`WarmUp`: .*missing.*'schedule'"),
        ({"schedule": 0.1}, "`schedule`. Expected a learning rate schedule"),
        ({"surprise": 1}, "`WarmUp`: .*surprise"),
    ],
)
def test_an_altered_config_of_a_warm_up_is_refused(changes, message):
    falling = keras.optimizers.schedules.PolynomialDecay(0.8, 8, 0.0)
    config = {**WarmUp(falling, 4).get_config(), **changes}
    config = {k: value for k, value in config.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        WarmUp.from_config(config)


def test_a_factor_for_no_layer():
    optimizer = RampedSGD(0.01, learning_rate_factors={"convolutoin": 0.05})
    with pytest.raises(
        ValueError,
        match="`learning_rate_factors`. Expected names of layers .*/hidden/"
        "kernel. Received: .*convolutoin",
    ):
        two_layers(optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate_factors": {"a": -1}}, "`learning_rate_factors`. Exp"),
        ({"momentum": 0}, "`momentum`. Expected a float above 0"),
        ({"momentum": 1.5}, "`momentum`. Expected a float value between"),
        ({"momentum_start": -1}, "`momentum_start`. Expected a float"),
        ({"ramp_steps": 0}, "`ramp_steps`. Expected a positive integer"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        RampedSGD(**options)
