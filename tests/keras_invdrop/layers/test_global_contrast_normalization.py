import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import GlobalContrastNormalization


def normalize(x, **options):
    layer = GlobalContrastNormalization(**options)
    return ops.convert_to_numpy(layer(x))


def images(*shape):
    return np.random.default_rng(0).normal(100, 30, shape).astype("float32")


class GlobalContrastNormalizationTest(testing.TestCase):
    @parameterized.parameters(((2, 5),), ((2, 4, 5, 3),))
    def test_basics(self, shape):
        self.run_layer_test(
            GlobalContrastNormalization,
            init_kwargs={"scale": 55.0, "use_std": True, "epsilon": 1e-6},
            input_shape=shape,
            expected_output_shape=shape,
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=0,
            expected_num_losses=0,
            assert_built_after_instantiation=True,
        )

    def test_norm(self):
        x = normalize(images(4, 6, 5, 3), scale=55.0).reshape((4, -1))
        self.assertAllClose(x.mean(axis=1), np.zeros(4), atol=1e-4)
        self.assertAllClose(np.linalg.norm(x, axis=1), [55.0] * 4, rtol=1e-5)

    def test_standard_deviation(self):
        x = normalize(images(4, 6, 5, 3), use_std=True).reshape((4, -1))
        self.assertAllClose(x.mean(axis=1), np.zeros(4), atol=1e-5)
        self.assertAllClose(x.std(axis=1), np.ones(4), rtol=1e-5)

    def test_without_subtraction(self):
        x = images(4, 90)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        self.assertAllClose(
            normalize(x, subtract_mean=False), x / norm, rtol=1e-5
        )
        std = x.std(axis=1, keepdims=True)
        self.assertAllClose(
            normalize(x, subtract_mean=False, use_std=True), x / std, rtol=1e-5
        )

    def test_contrast_and_brightness_do_not_matter(self):
        x = images(4, 90)
        self.assertAllClose(normalize(x), normalize(3 * x + 7), atol=1e-5)

    def test_an_example_below_epsilon_is_left_undivided(self):
        x = np.array([[7.0, 7.0], [1.0, 1.002], [0.0, 4.0]], dtype="float32")
        outputs = normalize(x, scale=10.0, epsilon=0.01)
        self.assertAllClose(
            outputs,
            [[0, 0], [-0.001, 0.001], [-(50**0.5), 50**0.5]],
            atol=1e-5,
        )

    @parameterized.product(
        value=[0.7, 200.1, 1 / 3, 1e6, 1e-3, 255.0],
        size=[1, 32, 500],
        use_std=[False, True],
    )
    def test_an_image_of_one_colour(self, value, size, use_std):
        x = np.full((1, size, size, 3), value, dtype="float32")
        outputs = normalize(x, scale=55.0, use_std=use_std)
        self.assertAllEqual(outputs, np.zeros_like(x))
        kept = normalize(x, scale=55.0, use_std=True, subtract_mean=False)
        self.assertAllEqual(kept, x)
        # An image stays as it is if its values are equal up to rounding.
        x[:, ::2] = np.nextafter(x[:, ::2], np.float32(0))
        outputs = normalize(x, scale=55.0, use_std=use_std)
        self.assertLess(np.abs(outputs).max(), 2e-7 * value)

    def test_the_faintest_contrast(self):
        # One value of 224 x 224 x 3, the first one too, differs by 1 of 255.
        x = np.full((2, 224, 224, 3), 255, dtype="uint8")
        x[0, 4, 5, 1] = x[1, 0, 0, 0] = 254
        outputs = normalize(x, scale=55.0).reshape((2, -1))
        self.assertAllClose(outputs.min(axis=1), [-55.0, -55.0], rtol=1e-4)
        self.assertAllClose(outputs.mean(axis=1), [0.0, 0.0], atol=1e-5)

    def test_large_means_in_float64(self):
        if keras.backend.backend() == "jax":
            self.skipTest("JAX has no float64 by default")
        x = np.array([[1e10, 1e10 + 2, 1e10 + 4]])
        x = ops.convert_to_tensor(x, "float64")
        outputs = normalize(x, use_std=True, dtype="float64")
        self.assertAllClose(outputs, [[-(1.5**0.5), 0, 1.5**0.5]], rtol=1e-9)

    def test_large_values_in_float16(self):
        x = images(2, 500)
        outputs = normalize(x.astype("float16"), dtype="float16", scale=10.0)
        self.assertEqual(outputs.dtype, "float16")
        self.assertAllClose(outputs, normalize(x, scale=10.0), atol=0.01)

    def test_inside_tf_data(self):
        x = images(6, 5, 3)
        layer = GlobalContrastNormalization(use_std=True)
        data = tf.data.Dataset.from_tensor_slices(x).batch(4).map(layer)
        outputs = np.concatenate([batch.numpy() for batch in data])
        self.assertAllClose(outputs, layer(x), atol=1e-5)

    def test_integers(self):
        x = np.array([[0, 255, 10, 20]], dtype="uint8")
        self.assertAllClose(normalize(x), normalize(x.astype("float32")))

    def test_in_a_model_and_its_file(self):
        model = keras.Sequential(
            [keras.Input((5,)), GlobalContrastNormalization(scale=3.0)]
        )
        path = self.get_temp_dir() + "/model.keras"
        model.save(path)
        x = images(4, 5)
        self.assertAllClose(
            keras.saving.load_model(path).predict(x), normalize(x, scale=3.0)
        )

    def test_errors(self):
        for value in (0, -1, np.nan, np.inf, True, "1"):
            with self.assertRaisesRegex(ValueError, "`scale`. Expected a fin"):
                GlobalContrastNormalization(scale=value)
            with self.assertRaisesRegex(ValueError, "`epsilon`. Expected a f"):
                GlobalContrastNormalization(epsilon=value)
        with self.assertRaisesRegex(ValueError, "`use_std`. Expected a bool"):
            GlobalContrastNormalization(use_std=1)
        with self.assertRaisesRegex(ValueError, "`subtract_mean`. Expected"):
            GlobalContrastNormalization(subtract_mean="yes")


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_inputs_are_not_rounded_to_16_bits(dtype):
    x = np.random.default_rng(0).normal(250, 0.1, size=(5, 40))
    layer = GlobalContrastNormalization(use_std=True, dtype=dtype)
    exact = GlobalContrastNormalization(use_std=True)
    found = keras.ops.cast(layer(x.astype("float32")), "float32")
    # Equal up to the rounding of the output.
    np.testing.assert_allclose(
        found, exact(x.astype("float32")), rtol=2.0**-8, atol=1e-6
    )


@pytest.mark.parametrize("use_std", [False, True])
def test_constant_examples_pass_finite_gradients(use_std):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, kernel_initializer="zeros"),
            GlobalContrastNormalization(use_std=use_std),
        ]
    )
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
