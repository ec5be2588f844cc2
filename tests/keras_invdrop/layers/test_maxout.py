import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import Maxout


def maxout_loop(x, pieces, axis):
    """The maximum over groups of neighbours, one unit after the other."""
    x = np.moveaxis(x, axis, -1)
    units = [
        x[..., start : start + pieces].max(axis=-1)
        for start in range(0, x.shape[-1], pieces)
    ]
    return np.moveaxis(np.stack(units, axis=-1), -1, axis)


class MaxoutTest(testing.TestCase):
    @parameterized.parameters(
        ((2, 6), 3, -1, (2, 2)),
        ((2, 4, 6), 2, 1, (2, 2, 6)),
        ((2, 3, 4, 10), 5, 3, (2, 3, 4, 2)),
        ((2, 6), 1, -1, (2, 6)),
    )
    def test_basics(self, shape, pieces, axis, output_shape):
        self.run_layer_test(
            Maxout,
            init_kwargs={"pieces": pieces, "axis": axis},
            input_shape=shape,
            expected_output_shape=output_shape,
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=0,
            expected_num_losses=0,
            supports_masking=True,
        )

    @parameterized.parameters(
        ((3, 8), 2, -1),
        ((3, 8), 8, 1),
        ((3, 6, 5), 3, 1),
        ((3, 6, 5), 3, -2),
        ((2, 4, 5, 15), 5, -1),
        ((2, 15, 4, 5), 5, 1),
    )
    def test_equals_a_loop(self, shape, pieces, axis):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        self.assertAllEqual(
            Maxout(pieces, axis)(x), maxout_loop(x, pieces, axis)
        )

    def test_gradient_flows_to_the_winning_piece(self):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(4, 6)).astype("float32")
        received = gradient_of_maxout(x, pieces=3)
        expected = np.zeros((4, 6))
        for row in range(4):
            for start in (0, 3):
                expected[row, start + x[row, start : start + 3].argmax()] = 1
        self.assertAllEqual(received, expected)

    def test_pieces_that_tie_share_the_gradient(self):
        received = gradient_of_maxout(np.zeros((1, 4), "float32"), pieces=2)
        self.assertAllClose(received, np.full((1, 4), 0.5))

    def test_unknown_sizes(self):
        inputs = keras.Input((None, None, 6))
        model = keras.Model(inputs, Maxout(2)(inputs))
        self.assertEqual(model.output_shape, (None, None, None, 3))
        x = np.random.default_rng(2).normal(size=(2, 3, 4, 6))
        x = x.astype("float32")
        self.assertAllEqual(model(x), maxout_loop(x, 2, -1))

    def test_mask_of_the_axes_that_stay(self):
        x = keras.layers.Masking()(np.ones((2, 4, 6), dtype="float32"))
        mask = keras.src.backend.get_keras_mask(Maxout(3)(x))
        self.assertAllEqual(mask, np.ones((2, 4), bool))
        # Groups of two timesteps have none of the four masks.
        mask = keras.src.backend.get_keras_mask(Maxout(2, axis=1)(x))
        self.assertIsNone(mask)

    @parameterized.parameters(0, -2, 1.5, True, "2", None)
    def test_bad_pieces(self, pieces):
        with self.assertRaisesRegex(
            ValueError, "`pieces`. Expected a positive integer. Received: "
        ):
            Maxout(pieces)

    def test_bad_axis(self):
        for axis in (0, 1.0, True, "last"):
            with self.assertRaisesRegex(ValueError, "`axis`. Expected an int"):
                Maxout(2, axis)
        for axis in (2, -2, -3):
            with self.assertRaisesRegex(ValueError, "`axis`. Expected an axis"):
                Maxout(2, axis).build((None, 4))

    def test_indivisible_channels(self):
        with self.assertRaisesRegex(
            ValueError,
            "`pieces`. Expected a divisor of the input's size along axis -1, "
            r"which is 7 \(full input shape: \(3, 7\)\). Received: pieces=2",
        ):
            Maxout(2)(np.ones((3, 7)))
        with self.assertRaisesRegex(
            ValueError,
            r"`axis`. Expected an axis of fixed size, .* \(None, None\)",
        ):
            Maxout(2)(keras.Input((None,)))

    def test_integers_become_what_the_symbolic_output_says(self):
        layer = Maxout(2)
        symbolic = layer(keras.Input((4,), dtype="int32"))
        found = layer(np.array([[1, 5, 3, 2]]))
        self.assertEqual(
            keras.backend.standardize_dtype(found.dtype), symbolic.dtype
        )
        self.assertAllEqual(found, [[5.0, 3.0]])


def gradient_of_maxout(x, pieces):
    """The gradient of the sum of the maxima, by one step of descent."""

    class Sum(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.sum(y_pred)

    class Variable(keras.Layer):
        def build(self, input_shape):
            self.x = self.add_weight(shape=x.shape, initializer="zeros")

        def call(self, inputs):
            return self.x + 0 * inputs

    inputs = keras.Input(x.shape[1:], batch_size=len(x))
    variable = Variable()
    model = keras.Model(inputs, Maxout(pieces)(variable(inputs)))
    variable.x.assign(x)
    model.compile(keras.optimizers.SGD(1.0), loss=Sum(reduction="sum"))
    data = np.zeros_like(x)
    model.fit(data, data[:, :1], batch_size=len(x), verbose=0)
    return np.round(x - ops.convert_to_numpy(variable.x), 6)
