from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from .. import arguments
from .._checks import StrictConfig
from .._checks import check_broadcast
from .._checks import check_fraction
from .._checks import check_noise_shape
from .._checks import check_seed
from .._checks import check_shared_axes
from .._checks import of_all_axes
from .._checks import resolve_axes
from .._masks import check_first_draw
from .._masks import dropout_mask
from .._masks import keep_probability
from .._masks import mask_shape
from .._masks import scaled_sum
from .._masks import seed_generator
from .._masks import selected


class ShiftedDropout(StrictConfig, keras.Layer):
    """Base class of the layers that shift each activity before dropping.

    A subclass creates a weight of shape `self.shift_shape(input_shape)`, and
    implements `shift` and `set_shift`, which read and set the shift.

    Args:
        rate: Float in [0, 1]. Fraction of the activities to drop.
        noise_shape: Tuple of integers and `None`. Shape of the mask.
        seed: Integer. Seed of the mask.
        shared_axes: Integer or list of integers. Axes along which activities
            share one shift.
    """

    def __init__(
        self,
        rate: float,
        noise_shape: arguments.NoiseShape | None = None,
        seed: int | None = None,
        *,
        shared_axes: arguments.Axes | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.rate = rate
        self.noise_shape = check_noise_shape(noise_shape)
        self.seed = check_seed(seed)
        self.shared_axes = check_shared_axes(shared_axes)
        # Even for a rate of 0, which may change later.
        self.seed_generator = seed_generator(self.seed)
        self.supports_masking = True

    @property
    def rate(self) -> float:
        """Fraction of the activities to drop."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate = check_fraction("rate", value)

    @property
    def shift(self) -> Any:
        """The shift of each activity: `x.shape[1:]`, with 1 on shared axes."""
        raise NotImplementedError

    def set_shift(self, value: Any) -> None:
        """Sets the shift to `value`.

        Raises:
            ValueError: If the layer has not been built, or `value` has another
                shape than the shift.
        """
        raise NotImplementedError

    def check_shift(self, value: Any, weight: keras.Variable) -> None:
        """Raises an error unless `value` has the shape of its weight."""
        if tuple(np.shape(value)) != tuple(weight.shape):
            raise ValueError(
                "Invalid value received for argument `value`. Expected an "
                f"array of shape {tuple(weight.shape)}, that of the shift of "
                f"layer '{self.name}'. Received: shape {np.shape(value)}"
            )

    @property
    def level(self) -> np.ndarray:
        """The level that replaces a dropped activity: minus the shift.

        NumPy array of shape `x.shape[1:]`, with 1 on every shared axis, in the
        units of the layer's input `x`. An activity of this value adds nothing
        to the next layer, like a dropped one, whatever the rate and the
        scaling. `np.where(missing, layer.level, x)` therefore fills in missing
        activities.

        The array is a copy; training changes the layer's own values.

        Raises:
            ValueError: If the layer has not been built.
        """
        self.check_built("level")
        # Avoids -0.0 for a shift of 0.
        return 0 - ops.convert_to_numpy(self.shift)

    def check_built(self, name: str) -> None:
        """Raises an error unless the layer is built and so has `name`."""
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' has no `{name}` before it is built, "
                "since its shape is that of the input. Expected a layer that "
                "has been called on data, or on which `build(input_shape)` "
                "has been called. Received: built=False"
            )

    def build(self, input_shape):
        if len(input_shape) < 2:
            raise ValueError(
                f"Invalid input shape received by layer '{self.name}'. "
                "Expected an input of rank 2 or more, "
                "`(batch, ..., features)`. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        check_broadcast(self.noise_shape, input_shape)
        shared = resolve_axes(self.shared_axes, input_shape)
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape),
            axes={
                axis: input_shape[axis]
                for axis in range(1, len(input_shape))
                if axis not in shared
            },
        )

    def shift_shape(self, input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """`input_shape[1:]`, with 1 on every shared axis."""
        shared = resolve_axes(self.shared_axes, input_shape)
        shape: tuple[Any, ...] = tuple(
            1 if axis in shared else input_shape[axis]
            for axis in range(1, len(input_shape))
        )
        if None in shape:
            axis = shape.index(None) + 1
            raise ValueError(
                f"Layer '{self.name}' needs a fixed size along every axis "
                "that does not share its shift. "
                f"Received: input_shape={tuple(input_shape)}, in which axis "
                f"{axis} is None. Share the shift along that axis: "
                f"`shared_axes={sorted(shared | {axis})}`."
            )
        return shape

    def drop(self, x: Any, shift: Any, scale: bool = True) -> Any:
        """Returns `mask * (x + shift)`, with a new mask (Eq. 8).

        With `scale` the result is divided by the keep probability.
        """
        if self.rate == 0:
            return x + shift
        if self.rate == 1:
            return ops.zeros_like(x)
        if scale:
            x = scaled_sum(x, shift, 1 / keep_probability(self.rate))
        else:
            x = x + shift
        # Checked here because the batch size is unknown before the call.
        check_broadcast(self.noise_shape, x.shape)
        shape = mask_shape(self.noise_shape, ops.shape(x))
        seeded = self.seed is not None
        if seeded:
            check_first_draw(self)
        mask = dropout_mask(shape, self.rate, self.seed_generator, seeded)
        if self.noise_shape is not None and any(
            size is None and mask_size not in (None, 1)
            for mask_size, size in zip(
                of_all_axes(self.noise_shape, len(x.shape)),
                x.shape,
                strict=True,
            )
        ):
            # In a compiled TensorFlow step, only this checks the size.
            mask = ops.broadcast_to(mask, ops.shape(x))
        # Select instead of multiplying: a dropped infinity becomes 0.
        return selected(mask, x)

    def rematerialized_call(self, layer_call, *args, **kwargs):
        # Do not recompute in the backward pass: a second pass would draw
        # another mask, and would save no memory, because only the mask is kept.
        return layer_call

    def compute_output_shape(self, input_shape):
        return input_shape
