import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import RunningAverageDropout


class RunningAverageDropoutTest(testing.TestCase):
    def test_basics(self):
        self.run_layer_test(
            RunningAverageDropout,
            init_kwargs={"rate": 0.2, "momentum": 0.9, "shared_axes": [1]},
            input_shape=(2, 4, 3),
            call_kwargs={"training": True},
            expected_output_shape=(2, 4, 3),
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=1,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
        )

    def test_average_follows_the_recursion(self):
        rng = np.random.default_rng(0)
        layer = RunningAverageDropout(0.5, momentum=0.9)
        layer.build((None, 5))
        average = np.zeros(5)
        for _ in range(20):
            x = rng.normal(3, 1, size=(7, 5)).astype("float32")
            layer(x, training=True)
            average = 0.9 * average + 0.1 * x.mean(axis=0)
        self.assertAllClose(layer.average, average, rtol=1e-5)
        # Only training changes the average.
        layer(x)
        self.assertAllClose(layer.average, average, rtol=1e-5)
        self.assertAllClose(layer(x), x - average, rtol=1e-4, atol=1e-5)
        self.assertAllClose(layer.shift, -average, rtol=1e-5)

    def test_the_average_before_the_batch_is_subtracted(self):
        layer = RunningAverageDropout(0.5, momentum=0.5, seed=0)
        layer.build((None, 100))
        layer.average.assign(np.full(100, 2.0))
        x = np.full((4, 100), 5.0, dtype="float32")
        outputs = ops.convert_to_numpy(layer(x, training=True))
        self.assertEqual(set(np.unique(outputs)), {0.0, (5.0 - 2.0) / 0.5})
        self.assertAllClose(layer.average, np.full(100, 3.5))

    def test_mean_over_shared_axes(self):
        x = np.random.default_rng(1).normal(size=(6, 4, 3)).astype("float32")
        layer = RunningAverageDropout(0.0, momentum=0.0, shared_axes=[1])
        layer(x, training=True)
        self.assertAllClose(
            layer.average, x.mean(axis=(0, 1))[None], rtol=1e-5, atol=1e-6
        )

    def test_padding_is_left_out_of_the_mean(self):
        x = np.random.default_rng(2).normal(size=(5, 4, 3)).astype("float32")
        mask = np.array([[1, 1, 1, 0]] * 3 + [[1, 0, 0, 0]] * 2, dtype=bool)
        shared = RunningAverageDropout(0.0, momentum=0.0, shared_axes=[1])
        shared(x, training=True, mask=mask)
        self.assertAllClose(shared.average, x[mask].mean(axis=0)[None], 1e-5)
        # A timestep that is padding in every example keeps its average.
        layer = RunningAverageDropout(0.0, momentum=0.0)
        layer.build(x.shape)
        layer.average.assign(np.full((4, 3), 7.0))
        layer(x, training=True, mask=mask)
        self.assertAllClose(layer.average[0], x[:, 0].mean(axis=0), 1e-5)
        self.assertAllClose(layer.average[1], x[:3, 1].mean(axis=0), 1e-5)
        self.assertAllEqual(layer.average[3], np.full(3, 7.0))

    def test_padding_may_hold_anything(self):
        x = np.array([[[1.0], [np.nan]], [[3.0], [np.inf]]], "float32")
        mask = np.array([[True, False]] * 2)
        layer = RunningAverageDropout(0.0, momentum=0.0, shared_axes=[1])
        layer(x, training=True, mask=mask)
        self.assertAllClose(layer.average, [[2.0]])

    def test_frozen_average_stays(self):
        layer = RunningAverageDropout(0.5, trainable=False, seed=0)
        x = np.ones((4, 50), dtype="float32")
        outputs = ops.convert_to_numpy(layer(x, training=True))
        self.assertAllEqual(layer.average, np.zeros(50))
        self.assertEqual(set(np.unique(outputs)), {0.0, 2.0})

    def test_average_is_learned_by_fit(self):
        layer = RunningAverageDropout(0.2, momentum=0.9)
        inputs = keras.Input((3,))
        model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
        model.compile("sgd", "mse")
        x = np.tile(np.array([[1.0, -2.0, 3.0]], "float32"), (32, 1))
        model.fit(x, np.zeros((32, 1)), batch_size=8, epochs=1, verbose=0)
        self.assertAllClose(layer.average, (1 - 0.9**4) * x[0], rtol=1e-5)

    def test_average_in_16_bits(self):
        # A step of 1 % of 1.0 from 100 is below the resolution of float16.
        layer = RunningAverageDropout(0.0, dtype="mixed_float16")
        layer.build((None, 1))
        layer.average.assign([100.0])
        layer(np.full((4, 1), 101.0, dtype="float16"), training=True)
        self.assertAllClose(layer.average, [100.01], rtol=1e-6)

    def test_every_weight_in_16_bits(self):
        # The sum of 300 examples of 300 is infinite in float16.
        layer = RunningAverageDropout(0.0, momentum=0.99, dtype="float16")
        layer.build((None, 1))
        layer.average.assign([299.0])
        x = np.full((300, 1), 300.0, dtype="float16")
        outputs = layer(x, training=True)
        self.assertDType(outputs, "float16")
        self.assertAllClose(layer.average, [299.01], rtol=1e-6)

    @parameterized.parameters(-0.1, 1.1, True, "0.9", np.nan)
    def test_bad_momentum(self, momentum):
        with self.assertRaisesRegex(
            ValueError, "`momentum`. Expected a float value between 0 and 1"
        ):
            RunningAverageDropout(0.5, momentum=momentum)
