import numpy as np
from absl.testing import parameterized
from keras import layers
from keras import ops
from keras.src import testing

from keras_invdrop import SpatialInvariantDropout


class SpatialInvariantDropoutTest(testing.TestCase):
    @parameterized.product(
        sizes=[(6,), (6, 5), (6, 5, 4)],
        data_format=["channels_last", "channels_first"],
    )
    def test_feature_maps_are_dropped_whole(self, sizes, data_format):
        layer = SpatialInvariantDropout(
            0.5, data_format, beta_initializer="ones", seed=0
        )
        first = data_format == "channels_first"
        shape = (100, 3, *sizes) if first else (100, *sizes, 3)
        outputs = layer(np.ones(shape, dtype="float32"), training=True)
        outputs = ops.convert_to_numpy(outputs)
        channels = shape.index(3)
        maps = np.moveaxis(outputs, channels, 1).reshape((100, 3, -1))
        self.assertAllEqual(maps.min(axis=2), maps.max(axis=2))
        dropped = maps[:, :, 0]
        self.assertEqual(set(np.unique(dropped)), {0.0, 4.0})
        # Examples and feature maps have draws of their own: 300 draws of
        # 0 or 4 have a mean of 2, with a standard error of 0.115.
        self.assertAllClose(dropped.mean(), 2.0, atol=4 * 0.115)
        # The correlation of 100 independent pairs: standard error 0.1.
        r = np.corrcoef(dropped[:, 0], dropped[:, 1])[0, 1]
        self.assertLess(abs(r), 0.4)

    @parameterized.parameters(
        (layers.SpatialDropout1D, (50, 6, 3), {}),
        (
            layers.SpatialDropout2D,
            (50, 6, 5, 3),
            {"data_format": "channels_last"},
        ),
        (
            layers.SpatialDropout2D,
            (50, 3, 6, 5),
            {"data_format": "channels_first"},
        ),
        (
            layers.SpatialDropout3D,
            (50, 3, 2, 6, 5),
            {"data_format": "channels_first"},
        ),
    )
    def test_same_groups_as_spatial_dropout(self, keras_layer, shape, options):
        x = np.ones(shape, dtype="float32")
        theirs = keras_layer(0.5, seed=0, **options)(x, training=True)
        data_format = options.get("data_format", "channels_last")
        ours = SpatialInvariantDropout(0.5, data_format)(x, training=True)
        for outputs in (theirs, ours):
            outputs = ops.convert_to_numpy(outputs)
            constant = [
                axis
                for axis in range(len(shape))
                if (outputs == np.take(outputs, [0], axis)).all()
            ]
            channels = 1 if data_format == "channels_first" else len(shape) - 1
            spatial = set(range(1, len(shape))) - {channels}
            self.assertEqual(set(constant), spatial)

    def test_config_round_trip_to_another_rank(self):
        layer = SpatialInvariantDropout(0.5, "channels_last")
        layer.build((None, 4, 3))
        again = SpatialInvariantDropout.from_config(layer.get_config())
        again.build((None, 4, 5, 3))
        self.assertEqual(again.noise_shape, (None, 1, 1, None))
        self.assertEqual(again.beta.shape, (1, 1, 3))

    def test_rank_2(self):
        with self.assertRaisesRegex(ValueError, "rank 3, 4 or 5"):
            SpatialInvariantDropout(0.5)(np.ones((4, 3)))
