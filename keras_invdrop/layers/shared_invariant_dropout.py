from collections.abc import Sequence
from typing import Any

import keras

from .. import arguments
from .._checks import check_data_format
from .._checks import resolve_data_format
from .._checks import spatial_axes
from .invariant_dropout import InvariantDropout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class SharedInvariantDropout(InvariantDropout):
    """Invariant dropout with one `beta` per feature map.

    A convolution has the same weights at every position, and this layer the
    same shift: `beta` has one element per feature map, shared over space and
    time. The layer still draws a mask value for each activity. It equals
    `InvariantDropout` with `shared_axes` set to the axes of space and time.

    Args:
        rate: Float between 0 and 1. Fraction of the activities to drop.
        data_format: `"channels_last"` or `"channels_first"`. Whether the
            feature maps are on the last axis or on axis 1. When the layer is
            built, it defaults to the last axis for inputs of rank 3, which are
            sequences, and otherwise to the `image_data_format` of the Keras
            configuration.
        seed: Integer to use as random seed.
        scaling: `"train"` or `"test"`, see `InvariantDropout`.
        beta_initializer: Initializer for `beta`.
        beta_regularizer: Regularizer for `beta`.
        beta_constraint: Constraint for `beta`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 3, 4 or 5.
        training: Boolean. Whether to drop (`True`) or only to shift
            (`False`).

    Input shape:
        `(batch, ..., channels)` if `data_format="channels_last"`,
        `(batch, channels, ...)` if `data_format="channels_first"`, with one,
        two or three axes of space and time, which may be of variable length.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If `data_format` is not one of the two, the input has
            another rank, or as in `InvariantDropout`.

    Example:

    >>> layer = keras_invdrop.SharedInvariantDropout(0.5)
    >>> x = layer(np.ones((8, 32, 32, 64)))
    >>> ops.shape(x), ops.shape(layer.beta)
    ((8, 32, 32, 64), (1, 1, 64))

    Reference:

    - Ba, Xiong and Frey, 2014, section 2.1
    """

    def __init__(
        self,
        rate: float,
        data_format: arguments.DataFormat | None = None,
        seed: int | None = None,
        *,
        scaling: arguments.Scaling = "train",
        beta_initializer: arguments.Initializer = "zeros",
        beta_regularizer: arguments.Regularizer | None = None,
        beta_constraint: arguments.Constraint | None = None,
        **kwargs: Any,
    ):
        for argument in {"shared_axes", "noise_shape"} & set(kwargs):
            raise ValueError(
                f"Unrecognized argument `{argument}`: "
                f"`{type(self).__name__}` sets it itself. Use "
                "`InvariantDropout` to choose it. "
                f"Received: {argument}={kwargs[argument]!r}"
            )
        super().__init__(
            rate,
            seed=seed,
            scaling=scaling,
            beta_initializer=beta_initializer,
            beta_regularizer=beta_regularizer,
            beta_constraint=beta_constraint,
            **kwargs,
        )
        if data_format is not None:
            check_data_format(data_format)
        self.data_format = data_format

    def spatial_axes(self, input_shape: Sequence[int | None]) -> list[int]:
        """The axes of space and time: all but batch and channels."""
        rank = len(input_shape)
        if rank not in (3, 4, 5):
            flat = " For `(batch, features)` use `InvariantDropout`."
            raise ValueError(
                f"Invalid input shape received by layer '{self.name}'. "
                "Expected an input of rank 3, 4 or 5, with one, two or three "
                "axes of space and time." + flat * (rank == 2) + " "
                f"Received: input_shape={tuple(input_shape)}"
            )
        return spatial_axes(self.data_format, rank)

    def build(self, input_shape):
        self.shared_axes = self.spatial_axes(input_shape)
        # The config now contains it, so later changes of Keras' default do not
        # matter.
        self.data_format = resolve_data_format(
            self.data_format, len(input_shape)
        )
        super().build(input_shape)

    def get_config(self):
        config = {**super().get_config(), "data_format": self.data_format}
        # `build` derives both from the data format and the input's rank.
        del config["shared_axes"], config["noise_shape"]
        return config
