"""The training settings of each network of the paper, and their sources.

"Paper" is Ba, Xiong and Frey, 2014. "Published" marks settings of the maxout
and dropout networks on which the paper builds (Goodfellow et al., 2013).
"Choice" marks settings that neither source gives; every method of a table
shares them. "Selected" marks settings chosen by the validation error;
results/README.md lists the trials that were kept.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import Literal

import keras
from keras.optimizers import schedules

from keras_invdrop import InvariantDropout
from keras_invdrop._checks import check_boolean
from keras_invdrop._checks import check_choice
from keras_invdrop._checks import check_fraction
from keras_invdrop._checks import check_not_negative
from keras_invdrop._checks import check_positive_integer
from keras_invdrop._checks import check_positive_number
from keras_invdrop._checks import invalid
from keras_invdrop._keras import layers_in

from .optimizers import RampedSGD
from .optimizers import WarmUp

# One value for all layers, or one per layer, from the first to the last.
ForEach = float | tuple[float, ...]
# As `ForEach`; None leaves a layer without the setting.
ForSome = float | None | tuple[float | None, ...]

# All policies keep the weights in float32: 16 bits would lose small steps.
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def for_layers(argument: str, text: str) -> ForSome:
    """Parses the values of layers: `"2"`, `"none"`, `"none,4.5,4.5"`."""
    try:
        values = tuple(
            None if each.strip() == "none" else float(each)
            for each in text.split(",")
        )
    except ValueError as error:
        raise invalid(
            argument, "numbers or none, such as 2 or none,4.5,4.5", text
        ) from error
    return values[0] if len(values) == 1 else values


def setting(default: Any, help: str, **shown: Any) -> Any:
    """A dataclass field that becomes an option of the command.

    Args:
        default: Default of the field.
        help: Help text of the option.
        **shown: Other arguments of the option: `min`, `max`, `metavar`,
            `show_default`.
    """
    return field(default=default, metadata={"help": help, **shown})


def fraction(default: float | None, help: str) -> Any:
    """A setting from 0 to 1."""
    return setting(default, help, min=0, max=1)


# Settings that may differ by layer.
FOR_LAYERS = "max_norm", "initial_stddev", "hidden_rate"


@dataclass(frozen=True)
class Selection:
    """The search by which settings of a recipe were selected.

    Attributes:
        settings: The settings searched, as `keras-invdrop tune --settings`
            takes them.
        rounds: The number of trials and of their epochs, for each round. A
            round after the first trains the best of the round before.
    """

    settings: str
    rounds: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return ", then ".join(
            f"{trials} trials of {epochs} epochs"
            for trials, epochs in self.rounds
        )


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; the defaults fit a fully connected network.

    `network` builds a network with the rates, norms and priors of the recipe,
    and `compile` prepares the network for `model.fit`. Pass the recipe's
    `batch_size` and `epochs` to `model.fit`. The caller handles `calibrated`
    and `retrain`: `keras_invdrop.calibrate` needs the training examples, and
    retraining needs the validation examples.

    Example:

    ```python
    from keras_invdrop.applications import mnist_mlp, recipes

    recipe = recipes.MNIST_CALIBRATED
    model = recipe.network(mnist_mlp, dropout="invariant")
    model = keras_invdrop.calibrate(model, x, keep_predictions=False)
    recipe.compile(model, steps_per_epoch=600)
    model.fit(x, y, batch_size=recipe.batch_size, epochs=recipe.epochs)
    ```
    """

    # Choice: enough epochs for the learning rate to fall slowly.
    epochs: int = setting(60, "Epochs of each training.", min=1)
    # Published.
    batch_size: int = setting(100, "Number of examples in a batch.", min=1)
    # Selected on MNIST with 20 epochs. The paper (3.1) also selects this value,
    # but does not print it. Table 2 has other values, see below.
    learning_rate: float = setting(
        0.01, "Learning rate at the start of the training.", min=0
    )
    # Choice: the learning rate falls to this fraction of its start ...
    learning_rate_end: float = fraction(
        0.01,
        "Fraction of its start to which the learning rate falls; above 0 for a "
        "geometric fall.",
    )
    # ... choice: by a constant factor per step, or by a constant amount.
    learning_rate_fall: Literal["geometric", "linear"] = setting(
        "geometric",
        "Fall of the learning rate: by a constant factor per step (geometric), "
        "or by a constant amount (linear).",
        metavar="geometric|linear",
    )
    # Choice: fraction of the steps in which the learning rate rises from 0.
    warm_up: float = fraction(
        0.0, "Fraction of the steps in which the learning rate rises."
    )
    # By layer; published for the maxout networks.
    learning_rate_factors: dict[str, float] = field(default_factory=dict)
    # Ours: beta's learning rate is this multiple of the weights' rate.
    beta_factor: float = setting(
        1.0,
        "Multiplier of the learning rate for beta; 0 keeps beta at its start.",
        min=0,
    )
    # Paper 3: Nesterov, 0.99 for fully connected networks.
    momentum: float = fraction(0.99, "Momentum after its rise.")
    # Published: the momentum rises linearly from this value ...
    momentum_start: float = fraction(0.5, "Momentum of the first step.")
    # ... choice: over this fraction of the training.
    momentum_ramp: float = fraction(
        0.25, "Fraction of the training over which the momentum rises."
    )
    # Choice: None keeps Keras' initial weights or the network's published
    # ones; a number is the standard deviation of a normal distribution.
    # Published for networks like MNIST's: 0.01 in the hidden layers, 0 in the
    # last layer.
    initial_stddev: ForSome = setting(
        None,
        "Standard deviation of the initial weights, or none for the network's "
        "default; for all layers, or for each: 0.01,0.01,0.",
        metavar="SD[,SD...]",
    )
    # Choice: largest norm of a unit's incoming weights; 1.9365 is published.
    max_norm: ForSome = setting(
        2.0,
        "Largest norm of the incoming weights of a unit, or none; for all "
        "layers, or for each: none,4.5,4.5.",
        metavar="NORM[,NORM...]",
    )
    # Published: keep 0.8 of the input and half of the hidden units.
    input_rate: float = fraction(0.2, "Fraction of the input to drop.")
    hidden_rate: ForEach = setting(
        0.5,
        "Fraction of the hidden activities to drop; of all hidden layers, or "
        "of each: 0.4,0.6.",
        metavar="RATE[,RATE...]",
    )
    # Choice, not in the paper: a prior in the loss adds
    # `weight_decay * kernel` to the gradient of the mean loss.
    weight_decay: float = setting(
        0.0,
        "Weight decay of the kernels: this times the kernel is added to the "
        "gradient of the mean loss.",
        min=0,
    )
    # Choice: momentum of the weights' moving average, which replaces the
    # weights in the trained network. None keeps the weights themselves.
    ema_momentum: float | None = fraction(
        None,
        "Take the moving average of the weights, with this momentum in each "
        "step: 0.999.",
    )
    # Choice: the paper names no precision. "mixed_bfloat16" computes in 16
    # bits.
    dtype_policy: str = setting(
        "float32",
        "Dtype policy of the network: float32, or mixed_bfloat16 or "
        "mixed_float16 if the machine is faster with them.",
        show_default="float32",
    )
    # Selected on MNIST from 0, 0.001 and the paper's 0.1 (section 3), read as
    # adding `decay * beta` to the gradient of the mean loss. The other data
    # sets reuse MNIST's value.
    beta_decay: float = setting(
        0.0,
        "Weight decay of beta: this times beta is added to the gradient of the "
        "mean loss.",
        min=0,
    )
    # Ours: whether each shift starts at minus the mean activity of the training
    # examples (`keras_invdrop.calibrate`). The paper starts beta at 0 and
    # finds that it converges to that value.
    calibrated: bool = False
    # Whether to retrain on all examples, validation examples included, for the
    # selected number of epochs.
    retrain: bool = False

    def network(
        self, build: Callable[..., keras.Model], **options: Any
    ) -> keras.Model:
        """Builds a network with the rates, norms and priors of the recipe.

        Args:
            build: Function that builds the network, such as `mnist_mlp`.
            **options: Other arguments of `build`, such as `dropout`.

        Returns:
            The uncompiled model.

        Raises:
            ValueError: If a setting of the recipe, or an argument, is not
                valid.
        """
        settings = {
            "input_rate": self.input_rate,
            "hidden_rate": self.hidden_rate,
            "beta_regularizer": _prior("beta_decay", self.beta_decay),
            "max_norm": self.max_norm,
            "initial_stddev": self.initial_stddev,
            "kernel_regularizer": _prior("weight_decay", self.weight_decay),
        }
        with _dtype_policy(self.dtype_policy):
            return build(**(settings | options))

    def compile(
        self,
        model: keras.Model,
        steps_per_epoch: int,
        from_logits: bool | None = None,
        **options: Any,
    ) -> None:
        """Compiles a model for training by this recipe.

        The loss is the cross-entropy between the outputs and integer labels,
        and the metric is the accuracy. If the outputs have a tissue axis
        before the classes, as those of `mas_mlp` have, the targets are
        distributions over the classes, and the model has no metric.

        Args:
            model: The model, such as one that `network` builds.
            steps_per_epoch: Number of batches in an epoch.
            from_logits: Boolean. Whether the model returns logits. By default
                derived from the activation function of the last layer.
            **options: Other arguments of `model.compile`. They override the
                recipe's, such as `loss` and `metrics`.

        Raises:
            ValueError: If an argument, or a setting of the recipe, is not
                valid, or `from_logits` is not given and the last layer is
                neither linear nor a softmax.
        """
        outputs = getattr(model, "outputs", None)
        if outputs is None or len(outputs) != 1:
            raise invalid(
                "model", "a functional or sequential model of one output", model
            )
        if from_logits is None:
            from_logits = _returns_logits(model)
        check_boolean("from_logits", from_logits)
        beta_layers = [
            each.name
            for each in layers_in(model)
            if isinstance(each, InvariantDropout) and each.trainable_weights
        ]
        loss: type[keras.losses.Loss] = keras.losses.CategoricalCrossentropy
        metrics = []
        if len(outputs[0].shape) <= 2:
            loss = keras.losses.SparseCategoricalCrossentropy
            metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        defaults = {
            "optimizer": self.optimizer(steps_per_epoch, beta_layers),
            "loss": loss(from_logits=from_logits),
            "metrics": metrics,
        }
        model.compile(**(defaults | options))

    def optimizer(
        self, steps_per_epoch: int, beta_layers: Sequence[str] = ()
    ) -> RampedSGD:
        """The optimizer of a training.

        Args:
            steps_per_epoch: Number of batches in an epoch.
            beta_layers: Names of the layers with a trained beta, whose
                learning rate is `beta_factor` times that of the weights.
        """
        schedule: schedules.LearningRateSchedule
        per_epoch = check_positive_integer("steps_per_epoch", steps_per_epoch)
        steps = self.epochs * per_epoch
        rate, end = self.learning_rate, self.learning_rate_end
        fall = self.learning_rate_fall
        check_choice("learning_rate_fall", fall, ("geometric", "linear"))
        if fall == "geometric":
            check_positive_number("learning_rate_end", end)
            schedule = schedules.ExponentialDecay(rate, steps, end)
        else:
            schedule = schedules.PolynomialDecay(rate, steps, rate * end)
        warm_up_steps = round(check_fraction("warm_up", self.warm_up) * steps)
        if warm_up_steps:
            schedule = WarmUp(schedule, warm_up_steps)
        factors = dict(self.learning_rate_factors)
        check_not_negative("beta_factor", self.beta_factor)
        if self.beta_factor != 1:
            # Layers in different blocks may have the same name.
            for name in dict.fromkeys(beta_layers):
                factors[name] = factors.get(name, 1) * self.beta_factor
        averaged: dict[str, Any] = {}
        if self.ema_momentum is not None:
            averaged = {"use_ema": True, "ema_momentum": self.ema_momentum}
        return RampedSGD(
            schedule,
            momentum=self.momentum,
            momentum_start=self.momentum_start,
            ramp_steps=max(1, round(self.momentum_ramp * steps)),
            learning_rate_factors=factors,
            **averaged,
        )


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Gives layers created in the block this dtype policy.

    The data preparation, outside the block, keeps Keras' global policy.
    """
    check_choice("dtype_policy", name, DTYPE_POLICIES)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _returns_logits(model: keras.Model) -> bool:
    """Whether a model returns logits rather than probabilities."""
    last = model
    while isinstance(last, keras.Model):
        # A functional model may end with an operation of `keras.ops`, which
        # `layers` does not list.
        last = getattr(last, "operations", last.layers)[-1]
    if isinstance(last, keras.layers.Softmax):
        return False
    activation = getattr(last, "activation", None)
    if activation is keras.activations.softmax:
        return False
    if activation is keras.activations.linear:
        return True
    raise invalid(
        "from_logits",
        f"a boolean, as the last layer of the model, '{last.name}', is neither "
        "linear nor a softmax",
        None,
    )


def _prior(
    argument: str, decay: float
) -> keras.regularizers.Regularizer | None:
    """The prior that adds `decay * weight` to the gradient."""
    if decay == 0:
        return None
    # The gradient of L2(c) is 2 c weight.
    return keras.regularizers.L2(check_positive_number(argument, decay) / 2)


# Table 2. Selected for each method and encoding alone, by searches of the same
# length in the same space. Choice: 240 epochs.
MNIST_SELECTION = Selection("table2", ((12, 30), (2, 90)))

# Calibrated beta, on both encodings: one training is the mirror of the other.
MNIST_CALIBRATED = Recipe(
    epochs=240,
    learning_rate=0.016,
    warm_up=0.1,
    beta_factor=10.0,
    initial_stddev=(0.01, None, None),
    max_norm=2.0,
    input_rate=0.25,
    hidden_rate=0.45,
)
# The same trial was the best of standard dropout on the original encoding.
MNIST_STANDARD = replace(MNIST_CALIBRATED, beta_factor=1.0)
MNIST_FROM_ZERO = Recipe(
    epochs=240,
    learning_rate=0.017,
    max_norm=4.0,
    input_rate=0.4,
    hidden_rate=0.4,
)
# Beta on the input alone, and on the hidden layers alone: the same trial again.
MNIST_INPUT_FROM_ZERO = MNIST_CALIBRATED
MNIST_HIDDEN_FROM_ZERO = MNIST_CALIBRATED
MNIST_RUNNING_AVERAGE = Recipe(
    epochs=240,
    learning_rate=0.029,
    initial_stddev=(0.01, 0.01, 0.0),
    max_norm=1.5,
    input_rate=0.4,
    hidden_rate=0.4,
)
MNIST_INVERTED_STANDARD = Recipe(
    epochs=240,
    learning_rate=0.002,
    max_norm=(None, 4.5, 4.5),
    input_rate=0.1,
)
MNIST_INVERTED_FROM_ZERO = Recipe(
    epochs=240,
    learning_rate=0.039,
    initial_stddev=(0.01, 0.01, 0.0),
    max_norm=1.0,
    input_rate=0.25,
    hidden_rate=0.4,
)
MNIST_INVERTED_INPUT_FROM_ZERO = Recipe(
    epochs=240,
    learning_rate=0.079,
    warm_up=0.1,
    max_norm=2.0,
    input_rate=0.3,
    hidden_rate=0.4,
)
MNIST_INVERTED_HIDDEN_FROM_ZERO = Recipe(
    epochs=240,
    learning_rate=0.0067,
    warm_up=0.1,
    beta_factor=10.0,
    initial_stddev=(0.01, 0.01, 0.0),
    max_norm=1.5,
    input_rate=0.1,
    hidden_rate=0.4,
)
# Again the same trial as on the original encoding for standard dropout.
MNIST_INVERTED_RUNNING_AVERAGE = MNIST_STANDARD

# The 5,000 digits of the demonstration, which takes two to four minutes on two
# cores with 30 epochs. The learning rate was selected with 40 epochs, the
# factor for beta with 30.
DEMO = Recipe(epochs=30, learning_rate=0.03, beta_factor=10.0)

# Table 3, fully connected. Published: 128 images in a batch. Choice, not
# selected on CIFAR-10: all other settings are the defaults of `Recipe`.
CIFAR10_MLP = Recipe(batch_size=128)

# Tables 3 and 4. Paper 3: momentum 0.9 for convolutional networks. Published
# (Zeiler and Fergus, 2013): the learning rate falls linearly to 1 %. Selected
# for each method of the ReLU network alone, at half of the width on CIFAR-10,
# by searches of the same length in the same space; the last round varies the
# weight decay and tries higher rates. Choice: 60 epochs.
RELU_CNN_SELECTION = Selection("relu_cnn", ((8, 8), (2, 12), (5, 30)))

# Calibrated beta.
RELU_CNN_CALIBRATED = Recipe(
    batch_size=128,
    learning_rate=0.043,
    learning_rate_fall="linear",
    beta_factor=0.1,
    momentum=0.9,
    max_norm=4.0,
    input_rate=0.0,
    hidden_rate=(0.1, 0.25, 0.25, 0.5),
    weight_decay=0.004,
)
# The same trial was the best of standard dropout and the second best from 0,
# and the last round tried its settings for all three.
RELU_CNN_STANDARD = replace(RELU_CNN_CALIBRATED, beta_factor=1.0)
RELU_CNN_FROM_ZERO = RELU_CNN_CALIBRATED
# The networks without a dense hidden layer, and with two.
RELU_CNN_NO_HIDDEN = replace(RELU_CNN_STANDARD, hidden_rate=(0.1, 0.25, 0.25))
RELU_CNN_TWO_HIDDEN = replace(
    RELU_CNN_STANDARD, hidden_rate=(0.1, 0.25, 0.25, 0.5, 0.5)
)

# Table 6. Published, except Nesterov momentum (paper 3) and the length of the
# training: the published runs stop by the validation error; these run until
# the learning rate has fallen. The norm of a unit is 1.9365 except in the
# first convolution and in the dense maxout layer.
CIFAR10_MAXOUT = Recipe(
    epochs=500,
    batch_size=128,
    learning_rate=0.17,
    learning_rate_fall="linear",
    learning_rate_factors={f"convolution_{i}": 0.05 for i in (1, 2, 3)},
    momentum=0.6,
    momentum_ramp=0.5,
    max_norm=(0.9, 1.9365, 1.9365, 1.9, 1.9365),
    retrain=True,
)
SVHN_MAXOUT = replace(
    CIFAR10_MAXOUT,
    epochs=250,
    learning_rate=0.2,
    learning_rate_end=0.001,
    momentum_ramp=1.0,
    retrain=False,
)

# Table 5. Choice, not selected: the defaults of `Recipe`. Paper 3.4: all three
# methods share their settings, "not tuned to amplify the improvement".
MAS = Recipe()
