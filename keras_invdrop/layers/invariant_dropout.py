from typing import Any

import keras
from keras import ops

from .. import arguments
from .._checks import check_choice
from .._checks import config_of
from .._masks import keep_probability
from ._shifted_dropout import ShiftedDropout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class InvariantDropout(ShiftedDropout):
    """Dropout that learns the level that replaces a dropped activity.

    `Dropout` replaces a dropped activity by zero, and the meaning of zero
    depends on the input encoding and the activation function.
    `InvariantDropout` first adds a learned shift `beta`, one per activity, and
    drops the sum. The bias of the next layer compensates for the constant, so
    the layer in effect replaces a dropped activity by `-beta`, its `level`.

    With the keep probability `p = 1 - rate` and a mask `m ~ Bernoulli(p)` for
    each activity, the layer computes:

    | `scaling`  | training             | inference        |
    |------------|----------------------|------------------|
    | `"train"`  | `m * (x + beta) / p` | `x + beta`       |
    | `"test"`   | `m * (x + beta)`     | `p * (x + beta)` |

    Beta starts at 0, where the layer equals `Dropout`: exactly at inference,
    and in training up to the draw of the mask. `rate=0` drops nothing and keeps
    the shift; `rate=1` gives zeros in training.

    The mask takes at most 8 random bits per activity if `rate` is a multiple of
    1/256, such as 0.5 or 0.25, and 16 otherwise. With 16 bits `p` is `1 - rate`
    to within 2^-16, in the mask and in the scale.

    The layer drops in training only: `model.fit` sets `training=True`, and
    prediction leaves it `False`. `trainable=False` freezes `beta`, but the
    layer still drops in training.

    Gradient checkpointing: Keras does not recompute this layer in the backward
    pass if the layer was created in a `keras.RematScope`. If `keras.remat` or
    `torch.utils.checkpoint` recomputes a whole model or block, PyTorch draws
    the same mask again if the layer has no seed; with a seed, the layer raises
    an error. TensorFlow draws a second mask, as for `keras.layers.Dropout`, and
    the gradients are wrong: exclude dropout from the recomputation.

    Args:
        rate: Float between 0 and 1. Fraction of the activities to drop. The
            paper's networks use 0.2 on the input and 0.5 on hidden layers. The
            rate may change later; a compiled step keeps the rate with which it
            was compiled.
        noise_shape: Tuple of integers and `None`, one per axis of the input.
            Shape of the mask: 1 uses one draw for the whole axis, `None` stands
            for the size of the input. For inputs of shape
            `(batch, timesteps, features)`, `noise_shape=(None, 1, None)` drops
            the same features at every timestep.
        seed: Integer to use as random seed, of either sign and any size.
        shared_axes: Integer or list of integers. Axes along which activities
            share one `beta`. For feature maps of shape
            `(batch, height, width, channels)`, `shared_axes=[1, 2]` learns one
            `beta` per feature map. An axis of variable length (`None`) must be
            shared.
        scaling: `"train"` or `"test"`. When to correct for dropped activities:
            `"train"` divides by `p` in training, as Keras does; `"test"`
            multiplies by `p` at inference, as the paper does (Eq. 8 and 9).
            Both train the same network up to the factor `p`.
        beta_initializer: Initializer for `beta`.
        beta_regularizer: Regularizer for `beta`. The paper's two priors
            (section 2.1) are `keras.regularizers.L2(c)`, for small values,
            and `keras_invdrop.regularizers.Variance(c)`, for a small
            variance. A weight decay of `d` on a loss that is a mean over the
            batch, `gradient + d * beta`, is `L2(d / 2)`.
        beta_constraint: Constraint for `beta`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more. Cast to the layer's compute dtype,
            integers and, with `autocast=False`, floats as well.
        training: Boolean. Whether to drop (`True`) or only to shift
            (`False`).

    Input shape:
        `(batch, ...)`, with a fixed size on every axis that is not shared.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If `rate` is not a number between 0 and 1, `scaling` is
            neither `"train"` nor `"test"`, an axis in `shared_axes` is out of
            range, repeated or the batch, `noise_shape` does not broadcast to
            the input, an axis that is not shared has no fixed size, or the
            input has rank 1.
        RuntimeError: If PyTorch recomputes a layer with a seed, see above.

    Attributes:
        beta: The weight, of shape `input_shape[1:]` with size 1 on each axis
            in `shared_axes`.
        level: NumPy array of the shape of `beta`, the level `-beta` that
            replaces each activity when the layer drops it, in the units of the
            input. `np.where(missing, layer.level, x)` fills in missing
            activities. Raises a `ValueError` before the layer is built.

    Example:

    >>> layer = keras_invdrop.InvariantDropout(0.5, beta_initializer="ones")
    >>> x = layer(np.array([[1.0, 2.0]]))  # Inference only shifts.
    >>> ops.convert_to_numpy(x)
    array([[2., 3.]], dtype=float32)
    >>> layer.level
    array([-1., -1.], dtype=float32)

    Reference:

    - Ba, Xiong and Frey, 2014, Making dropout invariant to transformations of
      activation functions and inputs, section 2, Eq. 8 and 9
    """

    def __init__(
        self,
        rate: float,
        noise_shape: arguments.NoiseShape | None = None,
        seed: int | None = None,
        *,
        shared_axes: arguments.Axes | None = None,
        scaling: arguments.Scaling = "train",
        beta_initializer: arguments.Initializer = "zeros",
        beta_regularizer: arguments.Regularizer | None = None,
        beta_constraint: arguments.Constraint | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            rate, noise_shape, seed, shared_axes=shared_axes, **kwargs
        )
        self.scaling = check_choice("scaling", scaling, ("train", "test"))
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)

    @property
    def beta(self) -> keras.Variable:
        """The shift, a weight."""
        if not self.built:
            raise AttributeError(
                "You must build the layer before accessing `beta`."
            )
        return self._beta

    @property
    def shift(self) -> Any:
        return self.beta

    def set_shift(self, value: Any) -> None:
        self.check_built("shift")
        self.check_shift(value, self.beta)
        self.beta.assign(value)

    def build(self, input_shape):
        super().build(input_shape)
        self._beta = self.add_weight(
            name="beta",
            shape=self.shift_shape(input_shape),
            initializer=self.beta_initializer,
            regularizer=self.beta_regularizer,
            constraint=self.beta_constraint,
        )

    def call(self, inputs, training=False):
        x = ops.cast(inputs, self.compute_dtype)
        beta = ops.convert_to_tensor(self.beta)
        if training:
            return self.drop(x, beta, scale=self.scaling == "train")
        x = x + beta
        return x if self.scaling == "train" else x * keep_probability(self.rate)

    def get_config(self):
        return {**super().get_config(), **config_of(InvariantDropout, self)}
