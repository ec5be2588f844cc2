import keras

from .shared_invariant_dropout import SharedInvariantDropout


@keras.saving.register_keras_serializable(package="keras_invdrop")
class SpatialInvariantDropout(SharedInvariantDropout):
    """Invariant dropout of whole feature maps.

    The layer is `SpatialDropout1D`, `2D` and `3D` with a learned `beta` per
    feature map, which one draw keeps or drops as a whole. In the first layers
    of a convolutional network neighbours in a feature map are strongly
    correlated, and dropping them one by one regularises little.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        data_format: `"channels_last"` or `"channels_first"`. Whether the
            feature maps are on the last axis or on axis 1; see
            `SharedInvariantDropout` for the default.
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
        `(batch, channels, ...)` if `data_format="channels_first"`.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: As in `SharedInvariantDropout`.

    Example:

    >>> layer = keras_invdrop.SpatialInvariantDropout(0.5)
    >>> x = layer(np.ones((1, 32, 32, 64)), training=True)
    >>> first_map = ops.convert_to_numpy(x)[0, :, :, 0]
    >>> first_map.min() == first_map.max()  # All kept or all dropped.
    np.True_

    Reference:

    - Ba, Xiong and Frey, 2014, section 2.1
    - [Tompson et al., 2014](https://arxiv.org/abs/1411.4280)
    """

    def build(self, input_shape):
        spatial = self.spatial_axes(input_shape)
        self.noise_shape = tuple(
            1 if axis in spatial else None for axis in range(len(input_shape))
        )
        super().build(input_shape)
