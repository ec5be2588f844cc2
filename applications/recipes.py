"""How each network of the paper is trained: numbers, and where they are from.

"Paper" is Ba, Xiong and Frey, 2014. A "choice" is what the paper leaves open:
the same for every method, from the published settings of the maxout networks
(Goodfellow et al., 2013) that the paper built on unless it says otherwise, and
never chosen by a look at test data.
"""

from dataclasses import dataclass

import keras

from .optimizers import RampedSGD


@dataclass(frozen=True)
class Recipe:
    """The training of the fully connected MNIST network (Table 2)."""

    # Choice: so long that the learning rate can fall slowly.
    epochs: int = 60
    # Choice.
    batch_size: int = 100
    # Paper 3.1: selected on the validation set; the value is not printed.
    learning_rate: float = 0.01
    # Choice: the learning rate falls geometrically to this part of its start.
    learning_rate_end: float = 0.01
    # Paper 3: Nesterov, 0.99 for fully connected networks.
    momentum: float = 0.99
    # Choice: momentum rises linearly from here ...
    momentum_start: float = 0.5
    # ... over this part of the training.
    momentum_ramp: float = 0.25
    # Choice: largest norm of the incoming weights of a unit.
    max_norm: float = 2.0
    # Choice: keep 0.8 of the input and half of the hidden units.
    input_rate: float = 0.2
    hidden_rate: float = 0.5
    # Paper 3: 0.1. On a mean loss, where the update adds `beta_decay * beta`
    # to the gradient, that takes the benefit away on the inverted encoding.
    beta_decay: float = 0.0

    def beta_regularizer(self) -> keras.regularizers.Regularizer | None:
        # The gradient of L2(c) is 2 c beta.
        if self.beta_decay == 0:
            return None
        return keras.regularizers.L2(self.beta_decay / 2)

    def optimizer(self, steps_per_epoch: int) -> RampedSGD:
        steps = self.epochs * steps_per_epoch
        schedule = keras.optimizers.schedules.ExponentialDecay(
            self.learning_rate,
            decay_steps=steps,
            decay_rate=self.learning_rate_end,
        )
        return RampedSGD(
            schedule,
            momentum=self.momentum,
            momentum_start=self.momentum_start,
            ramp_steps=max(1, round(self.momentum_ramp * steps)),
        )


MNIST = Recipe()

# The 5,000 digits of the demonstration: a tenth of the examples, and so many
# epochs that all of it ends in four minutes on two cores.
DEMO = Recipe(epochs=35, learning_rate=0.03)
