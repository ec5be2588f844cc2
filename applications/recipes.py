"""How each network of the paper is trained: numbers, and where they are from.

"Paper" is Ba, Xiong and Frey, 2014. "Published" are the settings of the maxout
and dropout networks on which it built (Goodfellow et al., 2013). A "choice" is
what neither settles; it is the same for every method. "Selected" was chosen by
the error on validation examples; results/README.md has the trials.
"""

from dataclasses import dataclass

import keras

from .optimizers import RampedSGD


@dataclass(frozen=True)
class Recipe:
    """The training of the fully connected MNIST network (Table 2)."""

    # Choice: so long that the learning rate can fall slowly.
    epochs: int = 60
    # Published.
    batch_size: int = 100
    # Selected, as in the paper (3.1), which does not print the value.
    learning_rate: float = 0.01
    # Choice: the learning rate falls geometrically to this part of its start.
    learning_rate_end: float = 0.01
    # Paper 3: Nesterov, 0.99 for fully connected networks.
    momentum: float = 0.99
    # Published: momentum rises linearly from here ...
    momentum_start: float = 0.5
    # ... choice: over this part of the training.
    momentum_ramp: float = 0.25
    # Choice: largest norm of a unit's incoming weights; 1.9365 is published.
    max_norm: float = 2.0
    # Published: keep 0.8 of the input and half of the hidden units.
    input_rate: float = 0.2
    hidden_rate: float = 0.5
    # Selected from 0 and the paper's 0.1 (section 3), read as what the update
    # adds to the gradient of the mean loss: `beta_decay * beta`.
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

# The 5,000 digits of the demonstration: so many epochs that all of it ends in
# four minutes on two cores, and a learning rate selected for them.
DEMO = Recipe(epochs=35, learning_rate=0.03)
