"""The paper's optimizer."""

import math
from typing import Any

import keras
from keras import ops
from keras.optimizers import schedules

from keras_invdrop._checks import StrictConfig
from keras_invdrop._checks import check_fraction
from keras_invdrop._checks import check_not_negative
from keras_invdrop._checks import check_positive_integer
from keras_invdrop._checks import invalid
from keras_invdrop._keras import variable_index


@keras.saving.register_keras_serializable(package="keras_invdrop")
class WarmUp(StrictConfig, schedules.LearningRateSchedule):
    """A learning rate schedule with a linear warm-up.

    At step `t`, counted from 0, the learning rate is
    `schedule(t) * min((t + 1) / steps, 1)`.

    Args:
        schedule: The learning rate schedule.
        steps: Positive integer. Number of warm-up steps.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> decay = keras.optimizers.schedules.ExponentialDecay(0.1, 100, 1.0)
    >>> rate = keras_invdrop.applications.WarmUp(decay, steps=4)
    >>> [round(float(rate(step)), 3) for step in range(6)]
    [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    """

    def __init__(self, schedule: schedules.LearningRateSchedule, steps: int):
        if not isinstance(schedule, schedules.LearningRateSchedule):
            raise invalid("schedule", "a learning rate schedule", schedule)
        self.schedule = schedule
        self.steps = check_positive_integer("steps", steps)

    def __call__(self, step):
        rate = ops.convert_to_tensor(self.schedule(step))
        done = (ops.cast(step, rate.dtype) + 1) / self.steps
        return rate * ops.minimum(done, 1.0)

    def get_config(self):
        schedule = schedules.serialize(self.schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("schedule"), dict):
            schedule = schedules.deserialize(config["schedule"])
            config = {**config, "schedule": schedule}
        return super().from_config(config)


@keras.saving.register_keras_serializable(package="keras_invdrop")
class RampedSGD(keras.optimizers.SGD):
    """SGD with Nesterov momentum that rises in the first steps of training.

    At step `t` the momentum is
    `momentum_start + (momentum - momentum_start) * min(t / ramp_steps, 1)`,
    computed from the optimizer's step counter inside the training step, so
    no backend recompiles the step while the momentum rises.

    Args:
        learning_rate: Float or learning rate schedule.
        momentum: Float above 0, at most 1. The momentum after the ramp.
        momentum_start: Float between 0 and 1. The momentum of the first step.
        ramp_steps: Positive integer. Number of steps of the ramp.
        nesterov: Boolean. Whether to apply Nesterov momentum.
        learning_rate_factors: Dictionary from names of layers, or of weights
            in any layer (`"beta"`, `"bias"`), to floats of at least 0 that
            multiply the learning rate of these weights. With 0 the weights
            stay as they are, unless `weight_decay` changes them: the factors
            do not apply to it (see `exclude_from_weight_decay`). If several
            names match a weight (its own, its layer's, an enclosing layer's),
            their factors multiply. The published maxout networks use 0.05 for
            each convolution.
        **kwargs: As in `keras.optimizers.SGD`.

    Raises:
        ValueError: If an argument is invalid or, when training starts, if a
            name in `learning_rate_factors` matches no trainable weight and no
            layer with trainable weights.

    Example:

    >>> optimizer = keras_invdrop.applications.RampedSGD(
    ...     0.1, momentum=0.9, momentum_start=0.5, ramp_steps=600
    ... )
    >>> round(float(optimizer.current_momentum()), 3)
    0.5

    Reference:

    - Ba, Xiong and Frey, 2014, section 3
    - Sutskever, Martens, Dahl and Hinton, 2013, On the importance of
      initialization and momentum in deep learning
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.99,
        momentum_start: float = 0.5,
        ramp_steps: int = 1,
        nesterov: bool = True,
        learning_rate_factors: dict[str, float] | None = None,
        name: str = "ramped_sgd",
        **kwargs: Any,
    ):
        if check_fraction("momentum", momentum) == 0:
            raise invalid("momentum", "a float above 0", momentum)
        super().__init__(
            learning_rate,
            momentum=float(momentum),
            nesterov=nesterov,
            name=name,
            **kwargs,
        )
        self.momentum_start = check_fraction("momentum_start", momentum_start)
        self.ramp_steps = check_positive_integer("ramp_steps", ramp_steps)
        self.learning_rate_factors = {
            name: check_not_negative("learning_rate_factors", factor)
            for name, factor in (learning_rate_factors or {}).items()
        }

    def build(self, variables):
        # "convolution_1/conv/kernel": the layers, then the weight.
        paths = [variable.path.split("/") for variable in variables]
        unknown = set(self.learning_rate_factors).difference(*paths)
        if unknown:
            raise invalid(
                "learning_rate_factors",
                "names of layers with trainable weights, or of such weights, "
                "which are "
                + ", ".join(sorted(variable.path for variable in variables)),
                self.learning_rate_factors,
            )
        self._factors = [
            math.prod(self.learning_rate_factors.get(name, 1) for name in path)
            for path in paths
        ]
        super().build(variables)

    def current_momentum(self) -> Any:
        """The momentum of the next step, a scalar tensor."""
        done = ops.cast(self.iterations, "float32") / self.ramp_steps
        rise = self.momentum - self.momentum_start
        return self.momentum_start + rise * ops.minimum(done, 1.0)

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        index = variable_index(self, variable)
        step = ops.cast(gradient, dtype) * ops.cast(learning_rate, dtype)
        step = step * self._factors[index]
        momentum = ops.cast(self.current_momentum(), dtype)
        velocity = self.momentums[index]
        moved = velocity * momentum - step
        self.assign(velocity, moved)
        if self.nesterov:
            moved = moved * momentum - step
        self.assign_add(variable, moved)

    def get_config(self):
        config = {
            "momentum_start": self.momentum_start,
            "ramp_steps": self.ramp_steps,
            "learning_rate_factors": self.learning_rate_factors,
        }
        return {**super().get_config(), **config}
