import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout

CASES = [
    ((2, 6, 3), "channels_last"),
    ((2, 3, 6), "channels_first"),
    ((2, 6, 5, 3), "channels_last"),
    ((2, 3, 6, 5), "channels_first"),
    ((2, 6, 5, 4, 3), "channels_last"),
    ((2, 3, 6, 5, 4), "channels_first"),
]


class SharedInvariantDropoutTest(testing.TestCase):
    @parameterized.product(
        layer_type=[SharedInvariantDropout, SpatialInvariantDropout],
        case=CASES,
    )
    def test_basics(self, layer_type, case):
        shape, data_format = case
        self.run_layer_test(
            layer_type,
            init_kwargs={"rate": 0.2, "data_format": data_format},
            input_shape=shape,
            call_kwargs={"training": True},
            expected_output_shape=shape,
            expected_num_trainable_weights=1,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
        )

    @parameterized.parameters(*CASES)
    def test_one_beta_per_feature_map(self, shape, data_format):
        layer = SharedInvariantDropout(0.5, data_format=data_format)
        layer.build((None, *shape[1:]))
        channels = [3 if size == 3 else 1 for size in shape[1:]]
        self.assertEqual(layer.beta.shape, tuple(channels))
        beta = np.array([1.0, 2.0, 3.0]).reshape(channels)
        layer.beta.assign(beta)
        outputs = layer(np.zeros(shape, dtype="float32"))
        self.assertAllEqual(outputs, np.broadcast_to(beta, shape))

    @parameterized.parameters(*CASES)
    def test_each_activity_has_a_mask(self, shape, data_format):
        layer = SharedInvariantDropout(0.5, data_format=data_format, seed=0)
        shape = (100, *shape[1:])
        outputs = layer(np.ones(shape, dtype="float32"), training=True)
        outputs = ops.convert_to_numpy(outputs)
        self.assertEqual(set(np.unique(outputs)), {0.0, 2.0})
        for axis in range(1, len(shape)):
            here, there = np.take(outputs, 0, axis), np.take(outputs, 1, axis)
            self.assertNotAllClose(here, there)

    def test_variable_sizes(self):
        layer = SharedInvariantDropout(0.5, "channels_last")
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layer(inputs))
        for size in (4, 9):
            x = np.zeros((2, size, size + 1, 3), dtype="float32")
            self.assertEqual(model(x, training=True).shape, x.shape)

    @parameterized.product(
        configured=["channels_last", "channels_first"],
        given=[None, "channels_last", "channels_first"],
        shape=[(4, 3, 3), (4, 3, 5, 3), (4, 3, 5, 6, 3)],
        layer_type=[SharedInvariantDropout, SpatialInvariantDropout],
    )
    def test_the_axis_of_the_channels(
        self, configured, given, shape, layer_type
    ):
        # The given format; by default the last axis for sequences, and Keras'
        # configuration for images. A file keeps it, wherever it is loaded.
        by_default = "channels_last" if len(shape) == 3 else configured
        data_format = given or by_default
        ones = [1] * (len(shape) - 2)
        expected = (*ones, 3) if data_format == "channels_last" else (3, *ones)
        before = keras.config.image_data_format()
        try:
            keras.config.set_image_data_format(configured)
            inputs = keras.Input(shape[1:])
            model = keras.Model(inputs, layer_type(0.5, given)(inputs))
            path = self.get_temp_dir() + "/model.keras"
            model.save(path)
            for loaded_under in ("channels_last", "channels_first"):
                keras.config.set_image_data_format(loaded_under)
                layer = keras.saving.load_model(path).layers[1]
                self.assertEqual(layer.data_format, data_format)
                self.assertEqual(layer.beta.shape, expected)
        finally:
            keras.config.set_image_data_format(before)
        layer = layer_type(0.5, given)
        self.assertEqual(layer.get_config()["data_format"], given)

    def test_config_holds_what_the_constructor_takes(self):
        layer = SharedInvariantDropout(0.5, "channels_first")
        layer.build((None, 3, 4))
        config = layer.get_config()
        self.assertNotIn("shared_axes", config)
        self.assertNotIn("noise_shape", config)
        again = SharedInvariantDropout.from_config(config)
        again.build((None, 3, 4, 5))
        self.assertEqual(again.beta.shape, (3, 1, 1))

    def test_axes_cannot_be_given(self):
        for argument in ({"noise_shape": (None, 1, 1)}, {"shared_axes": [1]}):
            (name,) = argument
            with self.assertRaisesRegex(
                ValueError, f"`{name}`: `SharedInvariantDropout` sets it"
            ):
                SharedInvariantDropout(0.5, **argument)

    def test_errors(self):
        with self.assertRaisesRegex(
            ValueError, "`data_format`. Expected one of.*Received: data_format"
        ):
            SharedInvariantDropout(0.5, data_format="last")
        with self.assertRaisesRegex(ValueError, "`data_format`. Expected one"):
            SharedInvariantDropout(0.5, data_format="")
        for shape in ((4, 3), (1, 1, 1, 1, 1, 3)):
            with self.assertRaisesRegex(ValueError, "rank 3, 4 or 5"):
                SharedInvariantDropout(0.5)(np.ones(shape))
        with self.assertRaisesRegex(ValueError, "use `InvariantDropout`"):
            SharedInvariantDropout(0.5)(np.ones((4, 3)))
        with self.assertRaisesRegex(ValueError, "axis 3 is None"):
            SharedInvariantDropout(0.5, "channels_last").build(
                (None, 4, 4, None)
            )
