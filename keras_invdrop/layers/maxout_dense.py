from typing import Any

import keras

from .. import arguments
from .._checks import check_boolean
from .._checks import check_positive_integer
from .._checks import config_of
from ._affine_maxout import AffineMaxout
from .maxout import Maxout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class MaxoutDense(AffineMaxout):
    """Densely-connected layer whose activation function is maxout.

    `output = max over pieces of (dot(input, kernel) + bias)`: each unit has
    `pieces` weight vectors, each with its own bias, and outputs the largest of
    their responses. The layer equals a `Dense` layer of `units * pieces` units
    followed by `Maxout(pieces)`; the pieces of one unit are adjacent.

    Args:
        units: Positive integer, dimensionality of the output space.
        pieces: Positive integer, number of linear pieces of each unit.
        activation: Activation function to apply to the maximum. None by
            default, because the maximum is the nonlinearity.
        use_bias: Boolean, whether each piece has a bias.
        kernel_initializer: Initializer for the kernel, of shape
            `(input_dim, units * pieces)`.
        bias_initializer: Initializer for the bias, of shape
            `(units * pieces,)`.
        kernel_regularizer: Regularizer for the kernel.
        bias_regularizer: Regularizer for the bias.
        activity_regularizer: Regularizer for the output of the layer.
        kernel_constraint: Constraint for the kernel. To hold the incoming
            weights of each piece to a maximum norm:
            `keras.constraints.MaxNorm(max_value, axis=0)`.
        bias_constraint: Constraint for the bias.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: If `units` or `pieces` is not a positive integer.

    Example:

    >>> layer = keras_invdrop.MaxoutDense(500, pieces=5)
    >>> x = layer(np.ones((8, 100)))
    >>> ops.shape(x), ops.shape(layer.kernel)
    ((8, 500), (100, 2500))

    Reference:

    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    - Ba, Xiong and Frey, 2014, section 3.5 and Table 6
    """

    def __init__(
        self,
        units: int,
        pieces: int,
        activation: arguments.Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: arguments.Initializer = "glorot_uniform",
        bias_initializer: arguments.Initializer = "zeros",
        kernel_regularizer: arguments.Regularizer | None = None,
        bias_regularizer: arguments.Regularizer | None = None,
        activity_regularizer: arguments.Regularizer | None = None,
        kernel_constraint: arguments.Constraint | None = None,
        bias_constraint: arguments.Constraint | None = None,
        **kwargs: Any,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.units = check_positive_integer("units", units)
        self.pieces = check_positive_integer("pieces", pieces)
        self.activation = keras.activations.get(activation)
        self.dense = keras.layers.Dense(
            self.units * self.pieces,
            use_bias=check_boolean("use_bias", use_bias),
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            dtype=self.dtype_policy,
            name="dense",
        )
        self.maxout = Maxout(self.pieces, dtype=self.compute_dtype)
        self.supports_masking = True

    def affine(self) -> Any:
        return self.dense

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        config = config_of(MaxoutDense, self, self.dense)
        return {**super().get_config(), **config}
