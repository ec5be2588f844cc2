from collections.abc import Sequence

import keras

from .._checks import StrictConfig
from .._checks import invalid
from .invariant_dropout import InvariantDropout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class DropoutByShape(StrictConfig, keras.Layer):
    """Invariant dropout with a beta for each shape of its input.

    `invariantize` replaces a dropout layer that is called on different numbers
    of features by this layer.

    Args:
        parts: List of `InvariantDropout`, or their configs.
        shapes: The input shape of each part, from which `build` builds it.
    """

    def __init__(
        self,
        parts: Sequence[InvariantDropout | dict],
        shapes: Sequence[Sequence[int | None]],
        **kwargs,
    ):
        super().__init__(**kwargs)
        kinds = InvariantDropout, dict
        if not isinstance(parts, (list, tuple)) or not all(
            isinstance(x, kinds) for x in parts
        ):
            expected = "a list of `InvariantDropout`, or of their configs"
            raise invalid("parts", expected, parts)
        self.parts = [
            x
            if isinstance(x, InvariantDropout)
            else InvariantDropout.from_config(x)
            for x in parts
        ]
        self.shapes = [tuple(shape) for shape in shapes]
        self.supports_masking = True

    @property
    def rate(self) -> float:
        return self.parts[0].rate

    def build(self, input_shape=None):
        # Keras passes the shape of the first call, which has one beta only.
        for part, shape in zip(self.parts, self.shapes, strict=True):
            part.build(shape)

    def call(self, inputs, training=False):
        for part in self.parts:
            spec = part.input_spec
            if len(inputs.shape) == spec.ndim and all(
                inputs.shape[axis] == size for axis, size in spec.axes.items()
            ):
                return part(inputs, training=training)
        raise ValueError(
            f"Layer '{self.name}' has a beta for each of the shapes "
            f"{[tuple(part.shift.shape) for part in self.parts]}. "
            f"Received: an input of shape {tuple(inputs.shape)}"
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        parts = [part.get_config() for part in self.parts]
        shapes = list(self.shapes)  # not the list that Keras tracks
        return {**super().get_config(), "parts": parts, "shapes": shapes}
