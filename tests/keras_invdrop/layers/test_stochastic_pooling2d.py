import keras
import numpy as np
import pytest
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import StochasticPooling2D


def pool(x, *arguments, training=False, **options):
    layer = StochasticPooling2D(
        *arguments, data_format="channels_last", **options
    )
    return ops.convert_to_numpy(layer(x, training=training))


class StochasticPooling2DTest(testing.TestCase):
    @parameterized.parameters(
        ("channels_last", "valid", (2, 5, 6, 4), (2, 2, 2, 4)),
        ("channels_last", "same", (2, 5, 6, 4), (2, 3, 3, 4)),
        ("channels_first", "valid", (2, 4, 5, 6), (2, 4, 2, 2)),
    )
    def test_basics(self, data_format, padding, shape, output_shape):
        self.run_layer_test(
            StochasticPooling2D,
            init_kwargs={
                "pool_size": 3,
                "strides": 2,
                "padding": padding,
                "data_format": data_format,
            },
            input_shape=shape,
            call_kwargs={"training": True},
            expected_output_shape=output_shape,
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=False,
            assert_built_after_instantiation=True,
        )

    def test_inference_is_the_weighted_mean(self):
        x = np.random.default_rng(0).random((2, 5, 7, 3)).astype("float32")
        pooled = pool(x, 3, 2)
        for i in range(2):
            for j in range(3):
                a = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                expected = (a**2).sum((1, 2)) / a.sum((1, 2))
                self.assertAllClose(pooled[:, i, j], expected, rtol=1e-5)

    @parameterized.parameters("float16", "bfloat16", "float32")
    def test_sums_of_large_and_small_activities(self, dtype):
        # Squares of 300, and sums of 60,000, are infinite in float16; squares
        # of 2^-90 are zero in float32. Each is 1/4 and 3/4 of its window.
        scales = [300 / 3, 60_000 / 3, 2.0**-14]
        if dtype != "float16":
            scales.append(2.0**-90)
        for scale in scales:
            x = scale * np.array([1.0, 3.0, 0.0, 0.0]).reshape((1, 2, 2, 1))
            x = ops.cast(x, dtype)
            mean, drawn = (
                float(pool(x, 2, training=training, dtype=dtype).item())
                for training in (False, True)
            )
            self.assertAllClose(mean / scale, 2.5, rtol=0.01)
            self.assertIn(round(drawn / scale, 1), (1.0, 3.0))

    def test_draws_are_in_proportion(self):
        a = np.array([1.0, 2.0, 0.0, 5.0]).reshape((1, 2, 2, 1))
        draws = 40_000
        x = np.repeat(a, draws, axis=0).astype("float32")
        pooled = pool(x, 2, training=True, seed=1).ravel()
        for value, p in ((1.0, 1 / 8), (2.0, 2 / 8), (0.0, 0), (5.0, 5 / 8)):
            # Four standard errors of a proportion; none for 0.
            tolerance = 4 * np.sqrt(p * (1 - p) / draws)
            self.assertLessEqual(abs(np.mean(pooled == value) - p), tolerance)

    def test_windows_and_channels_draw_by_themselves(self):
        x = np.tile(np.array([[1.0, 2.0]]), (5000, 1, 2))
        x = np.repeat(x[..., None], 2, axis=-1).astype("float32")
        # (5000, 1, 4, 2) -> (5000, 1, 2, 2): four draws between 1 and 2.
        draws = pool(x, (1, 2), training=True, seed=2).reshape((5000, 4))
        r = np.corrcoef(draws.T) - np.eye(4)
        self.assertLess(np.abs(r).max(), 4 / np.sqrt(5000))

    @parameterized.parameters(-1, 2**40)
    def test_any_integer_is_a_seed(self, seed):
        x = np.random.default_rng(5).random((20, 6, 6, 1)).astype("float32")
        first = pool(x, 3, training=True, seed=seed)
        self.assertAllEqual(pool(x, 3, training=True, seed=seed), first)
        other = pool(x, 3, training=True, seed=seed + 1)
        self.assertNotAllClose(other, first)

    def test_a_window_of_zeros_gives_zero(self):
        x = np.zeros((2, 4, 4, 3), dtype="float32")
        for training in (False, True):
            self.assertAllEqual(
                pool(x, 2, training=training), np.zeros((2, 2, 2, 3))
            )

    def test_padding_is_never_drawn(self):
        x = np.ones((50, 3, 3, 2), dtype="float32")
        for training in (False, True):
            self.assertAllEqual(
                pool(x, 2, 2, "same", training=training),
                np.ones((50, 2, 2, 2)),
            )

    def test_one_activity_among_zeros_is_always_drawn(self):
        x = np.zeros((1000, 3, 3, 1), dtype="float32")
        for location in range(9):
            x[:] = 0
            x[:, location // 3, location % 3] = 1e-3
            pooled = pool(x, 3, training=True)
            self.assertAllEqual(
                pooled, np.full((1000, 1, 1, 1), 1e-3, "float32")
            )

    def test_data_formats_agree_at_inference(self):
        x = np.random.default_rng(3).random((2, 5, 6, 3)).astype("float32")
        first = StochasticPooling2D(2, data_format="channels_first")
        outputs = ops.transpose(first(x.transpose(0, 3, 1, 2)), (0, 2, 3, 1))
        self.assertAllClose(outputs, pool(x, 2), rtol=1e-6)

    def test_gradient_flows_to_the_drawn_location(self):
        a = np.array([1.0, 2.0, 3.0, 4.0]).reshape((1, 2, 2, 1))

        class Variable(keras.Layer):
            def build(self, input_shape):
                self.a = self.add_weight(shape=a.shape, initializer="zeros")

            def call(self, inputs):
                return self.a + 0 * inputs

        class Sum(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return ops.sum(y_pred)

        inputs = keras.Input((2, 2, 1), batch_size=1)
        variable = Variable()
        pooling = StochasticPooling2D(2, data_format="channels_last", seed=4)
        model = keras.Model(inputs, pooling(variable(inputs)))
        variable.a.assign(a)
        model.compile(keras.optimizers.SGD(1.0), Sum(reduction="sum"))
        model.fit(0 * a, np.zeros((1, 1, 1, 1)), verbose=0)
        moved = a - ops.convert_to_numpy(variable.a)
        self.assertEqual(sorted(moved.ravel()), [0, 0, 0, 1])

    def test_unknown_sizes(self):
        for padding, counts in (("valid", (2, 3)), ("same", (3, 3))):
            inputs = keras.Input((None, None, 3))
            outputs = StochasticPooling2D(
                2, padding=padding, data_format="channels_last"
            )(inputs)
            self.assertEqual(outputs.shape, (None, None, None, 3))
            model = keras.Model(inputs, outputs)
            x = np.ones((2, 5, 6, 3), dtype="float32")
            self.assertAllEqual(model.predict(x), np.ones((2, *counts, 3)))

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "`pool_size`. Expected a pos"):
            StochasticPooling2D(0)
        with self.assertRaisesRegex(ValueError, "`strides`. Expected a posit"):
            StochasticPooling2D(2, strides=(1, 2, 3))
        with self.assertRaisesRegex(ValueError, "`data_format`. Expected one"):
            StochasticPooling2D(2, data_format="first")
        with self.assertRaisesRegex(ValueError, "No window of size 3 fits"):
            pool(np.ones((1, 2, 2, 1)), 3)


@pytest.mark.parametrize("training", [False, True])
def test_divergence_is_not_hidden(training):
    layer = StochasticPooling2D(2, data_format="channels_last")
    x = np.ones((1, 4, 4, 1), "float32")
    x[0, 0, 1] = np.nan
    x[0, 2, 2] = np.inf
    pooled = ops.convert_to_numpy(layer(x, training=training))[0, :, :, 0]
    np.testing.assert_array_equal(np.isfinite(pooled), [[0, 1], [1, 0]])
    assert pooled[0, 1] == pooled[1, 0] == 1


def test_a_sum_beyond_float16_is_drawn_from():
    layer = StochasticPooling2D(2, data_format="channels_last", dtype="float16")
    x = np.full((1, 2, 2, 1), 6e4, "float16")
    np.testing.assert_array_equal(layer(x, training=True), x[:, :1, :1])


def test_padding_in_capitals_as_keras_takes_it():
    layer = StochasticPooling2D(2, padding="SAME", data_format="channels_last")
    assert layer(np.ones((1, 3, 3, 1))).shape == (1, 2, 2, 1)
    assert layer.get_config()["padding"] == "same"


def test_integers_are_averaged_as_floats():
    layer = StochasticPooling2D(2, data_format="channels_last")
    x = np.array([[1, 3], [0, 0]], "int32").reshape((1, 2, 2, 1))
    assert float(layer(x)[0, 0, 0, 0]) == 2.5
