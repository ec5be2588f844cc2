from typing import Any

import keras

from .._checks import StrictConfig
from .maxout import Maxout


class AffineMaxout(StrictConfig, keras.Layer):
    """Base class of the layers that take the maximum of several affine maps.

    A subclass sets `maxout` and `activation`, and its `affine` returns the
    layer that computes the affine maps.
    """

    maxout: Maxout
    activation: Any

    # A method: Keras would save a property as another layer.
    def affine(self) -> Any:
        """The layer that computes the affine maps."""
        raise NotImplementedError

    @property
    def kernel(self) -> keras.Variable:
        return self.affine().kernel

    @property
    def bias(self) -> keras.Variable | None:
        return self.affine().bias

    def build(self, input_shape):
        affine = self.affine()
        affine.build(input_shape)
        self.maxout.build(affine.compute_output_shape(input_shape))
        self.input_spec = affine.input_spec

    def call(self, inputs):
        return self.activation(self.maxout(self.affine()(inputs)))

    def quantized_call(self, inputs):
        # The inner layer computes in integers; see `get_config`.
        return self.call(inputs)

    def get_config(self):
        # `model.quantize` changes the policy of the inner layer alone.
        policy = keras.dtype_policies.serialize(self.affine().dtype_policy)
        return {**super().get_config(), "dtype": policy}
