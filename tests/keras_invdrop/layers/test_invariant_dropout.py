import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop.regularizers import Variance

# Rows of identical examples, each with a mask of its own.
DRAWS = 40_000
STANDARD_ERRORS = 4


def dropped_sums(layer, a, w):
    """`sum_i m_i w_i (a_i + beta_i)`, scaled, for DRAWS masks."""
    x = np.tile(a.astype("float32"), (DRAWS, 1))
    return ops.convert_to_numpy(layer(x, training=True)).astype("float64") @ w


class InvariantDropoutTest(testing.TestCase):
    def assert_mean(self, samples, expected):
        error = samples.std() / np.sqrt(len(samples))
        self.assertLess(abs(samples.mean() - expected), STANDARD_ERRORS * error)

    def assert_variance(self, samples, expected):
        squares = (samples - samples.mean()) ** 2
        # The standard error of a variance, from the fourth moment.
        error = squares.std() / np.sqrt(len(samples))
        self.assertLess(abs(squares.mean() - expected), STANDARD_ERRORS * error)

    @parameterized.parameters("train", "test")
    def test_basics(self, scaling):
        self.run_layer_test(
            InvariantDropout,
            init_kwargs={"rate": 0.2, "scaling": scaling},
            input_shape=(2, 3),
            call_kwargs={"training": True},
            expected_output_shape=(2, 3),
            expected_num_trainable_weights=1,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
        )

    def test_basics_with_every_argument(self):
        self.run_layer_test(
            InvariantDropout,
            init_kwargs={
                "rate": 0.5,
                "shared_axes": [1, -2],
                "noise_shape": (None, 1, 1, None),
                "scaling": "test",
                "beta_initializer": "ones",
                "beta_regularizer": Variance(0.1),
                "beta_constraint": "non_neg",
                "seed": 3,
            },
            input_shape=(2, 3, 4, 5),
            call_kwargs={"training": True},
            expected_output_shape=(2, 3, 4, 5),
            expected_num_trainable_weights=1,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=1,
            expected_num_losses=1,
            supports_masking=True,
        )

    # The facts that Keras tests of `Dropout`, with beta at 0.

    @parameterized.parameters(
        (InvariantDropout, (None, 4)),
        (SharedInvariantDropout, (None, 3, 3, 4)),
        (SpatialInvariantDropout, (None, 3, 3, 4)),
    )
    def test_beta_has_its_initializer_regularizer_and_constraint(
        self, layer_type, shape
    ):
        layer = layer_type(
            0.5,
            beta_initializer=keras.initializers.Constant(2.0),
            beta_regularizer=keras.regularizers.L2(0.5),
            beta_constraint=keras.constraints.MaxNorm(1.0, axis=-1),
        )
        layer.build(shape)
        self.assertAllEqual(np.ravel(layer.beta), [2.0] * 4)
        (loss,) = layer.losses
        self.assertAllClose(loss, 0.5 * 4 * 2.0**2)
        # An optimizer applies the constraint after its step.
        keras.optimizers.SGD(0.0).apply(
            [ops.zeros(layer.beta.shape)], [layer.beta]
        )
        self.assertAllClose(np.ravel(layer.beta), [0.5] * 4)

    def test_rescaling(self):
        inputs = np.ones((20, 500))
        outputs = ops.convert_to_numpy(
            InvariantDropout(0.5, seed=1337)(inputs, training=True)
        )
        self.assertAllClose(np.mean(outputs), 1.0, atol=0.02)
        self.assertEqual(set(np.unique(outputs)), {0.0, 2.0})

    def test_nothing_is_dropped_at_inference(self):
        inputs = np.random.default_rng(0).normal(size=(20, 500))
        inputs = inputs.astype("float32")
        layer = InvariantDropout(0.5)
        self.assertAllEqual(layer(inputs), inputs)
        self.assertAllEqual(layer(inputs, training=False), inputs)

    @parameterized.parameters((None, 1, None), (20, 1, 10))
    def test_partial_noise_shape(self, *noise_shape):
        inputs = np.ones((20, 5, 10))
        layer = InvariantDropout(0.5, noise_shape=noise_shape)
        outputs = ops.convert_to_numpy(layer(inputs, training=True))
        for step in range(1, 5):
            self.assertAllEqual(outputs[:, 0, :], outputs[:, step, :])
        self.assertEqual(set(np.unique(outputs)), {0.0, 2.0})

    @parameterized.parameters(0, 1, 0.2)
    def test_the_rate_may_be_set(self, rate):
        x = np.ones((40, 50), dtype="float32")
        layer = InvariantDropout(rate, seed=1)
        layer.build(x.shape)
        layer.rate = 0.5
        self.assertEqual(layer.get_config()["rate"], 0.5)
        self.assertAllEqual(
            layer(x, training=True),
            InvariantDropout(0.5, seed=1)(x, training=True),
        )
        layer.rate = 0
        self.assertAllEqual(layer(x, training=True), x)

    def test_a_rate_out_of_range_cannot_be_set(self):
        layer = InvariantDropout(0.5)
        for rate in (1.5, -0.1, np.nan, "0.5", None):
            with self.assertRaisesRegex(
                ValueError, "`rate`. Expected a float value between 0 and 1"
            ):
                layer.rate = rate
        self.assertEqual(layer.rate, 0.5)

    def test_full_rate(self):
        inputs = np.ones((4, 5), dtype="float32")
        layer = InvariantDropout(1.0, beta_initializer="ones")
        self.assertAllEqual(layer(inputs, training=True), np.zeros((4, 5)))
        self.assertAllEqual(layer(inputs), np.full((4, 5), 2.0))
        layer = InvariantDropout(1.0, scaling="test")
        self.assertAllEqual(layer(inputs, training=True), np.zeros((4, 5)))
        self.assertAllEqual(layer(inputs), np.zeros((4, 5)))

    @parameterized.parameters(-0.5, 1.5, np.nan, "0.5", True, None)
    def test_bad_rate(self, rate):
        with self.assertRaisesRegex(
            ValueError,
            "Invalid value received for argument `rate`. "
            "Expected a float value between 0 and 1. Received: rate=",
        ):
            InvariantDropout(rate)

    def test_noise_shape_is_kept_as_a_tuple(self):
        for given, kept in (
            (None, None),
            ((20, 1, 10), (20, 1, 10)),
            ((None, 1, None), (None, 1, None)),
            ([20, 1, 10], (20, 1, 10)),
        ):
            layer = InvariantDropout(0.5, noise_shape=given)
            self.assertEqual(layer.noise_shape, kept)

    @parameterized.parameters(
        ("Invalid", "Expected a tuple or list of integers."),
        (3, "Expected a tuple or list of integers."),
        ((20, 1.5, 10), "Expected all elements to be integers or None."),
        ((20, True, 10), "Expected all elements to be integers or None."),
        ((20, -1, 10), "Expected all dimensions to be positive integers or"),
        ((20, 0, 10), "Expected all dimensions to be positive integers or"),
    )
    def test_bad_noise_shape(self, noise_shape, expected):
        with self.assertRaisesRegex(
            ValueError,
            "Invalid value received for argument `noise_shape`. " + expected,
        ):
            InvariantDropout(0.5, noise_shape=noise_shape)

    # The shift.

    def test_shift_at_inference_and_in_training(self):
        inputs = np.array([[1.0, -2.0, 0.5]] * 200, dtype="float32")
        beta = np.array([0.5, 3.0, -0.5], dtype="float32")
        for scaling, kept, inference in (("train", 2, 1), ("test", 1, 0.5)):
            layer = InvariantDropout(0.5, scaling=scaling, seed=0)
            layer.build(inputs.shape)
            layer.beta.assign(beta)
            self.assertAllClose(layer(inputs), inference * (inputs + beta))
            outputs = ops.convert_to_numpy(layer(inputs, training=True))
            for i in range(2):
                self.assertEqual(
                    set(np.unique(outputs[:, i])),
                    {0.0, kept * (inputs[0, i] + beta[i])},
                )
            # A shift to zero leaves nothing to drop.
            self.assertAllEqual(outputs[:, 2], np.zeros(200))

    def test_zero_rate_keeps_the_shift(self):
        inputs = np.zeros((2, 3), dtype="float32")
        layer = InvariantDropout(0, beta_initializer="ones")
        for training in (False, True):
            self.assertAllEqual(layer(inputs, training=training), inputs + 1)

    def test_shape_of_beta(self):
        for shared_axes, shape in (
            (None, (3, 4, 5)),
            (1, (1, 4, 5)),
            ([1, 2], (1, 1, 5)),
            ([-1], (3, 4, 1)),
            ([-3, 3], (1, 4, 1)),
        ):
            layer = InvariantDropout(0.5, shared_axes=shared_axes)
            layer.build((None, 3, 4, 5))
            self.assertEqual(layer.beta.shape, shape)
            self.assertEqual(layer.beta.name, "beta")
            self.assertLen(layer.trainable_weights, 1)

    def test_an_axis_of_variable_length_is_shared(self):
        layer = InvariantDropout(0.5, shared_axes=[1], beta_initializer="ones")
        inputs = keras.Input((None, 3))
        model = keras.Model(inputs, layer(inputs))
        for length in (2, 7):
            outputs = model(np.zeros((4, length, 3), dtype="float32"))
            self.assertAllEqual(outputs, np.ones((4, length, 3)))
            outputs = model(np.zeros((4, length, 3)), training=True)
            values = set(np.unique(ops.convert_to_numpy(outputs)))
            self.assertLessEqual(values, {0.0, 2.0})

    def test_a_shared_axis_of_size_1_may_grow(self):
        layer = InvariantDropout(0.5, shared_axes=[1], beta_initializer="ones")
        for length in (1, 7):
            outputs = layer(np.zeros((2, length, 3), dtype="float32"))
            self.assertAllEqual(outputs, np.ones((2, length, 3)))

    def test_a_subclass_loads(self):
        class Noisy(InvariantDropout):
            def __init__(self, *args, extra=1, **kwargs):
                super().__init__(*args, **kwargs)
                self.extra = extra

            def get_config(self):
                return {**super().get_config(), "extra": self.extra}

        config = Noisy(0.3, scaling="test", extra=5).get_config()
        again = Noisy.from_config(config)
        self.assertEqual((again.rate, again.scaling, again.extra),
                         (0.3, "test", 5))  # fmt: skip
        # Arguments that the file of an older release lacks take their default.
        del config["scaling"], config["extra"]
        older = Noisy.from_config(config)
        self.assertEqual((older.rate, older.scaling, older.extra),
                         (0.3, "train", 1))  # fmt: skip

    def test_integers_are_cast(self):
        layer = InvariantDropout(0.5, beta_initializer="ones")
        outputs = layer(np.array([[1, 2]], dtype="int32"))
        self.assertDType(outputs, "float32")
        self.assertAllEqual(outputs, [[2.0, 3.0]])
        self.assertDType(layer(keras.Input((2,), dtype="int32")), "float32")

    def test_mask_is_passed_on(self):
        layer = InvariantDropout(0.5, shared_axes=[1])
        x = keras.layers.Embedding(5, 3, mask_zero=True)(np.array([[1, 0]]))
        outputs = layer(x)
        mask = keras.src.backend.get_keras_mask(outputs)
        self.assertAllEqual(mask, [[True, False]])

    def test_seeds(self):
        inputs = np.ones((10, 100), dtype="float32")

        def first_two(seed):
            layer = InvariantDropout(0.5, seed=seed)
            return [
                ops.convert_to_numpy(layer(inputs, training=True))
                for _ in range(2)
            ]

        a, b = first_two(1)
        self.assertNotAllClose(a, b)
        again, _ = first_two(1)
        self.assertAllEqual(a, again)
        other, _ = first_two(2)
        self.assertNotAllClose(a, other)

    @parameterized.parameters(-1, -(2**40), 2**31, 2**32, 2**70, np.int64(7))
    def test_any_integer_is_a_seed(self, seed):
        inputs = np.ones((10, 100), dtype="float32")

        def drawn(layer):
            return ops.convert_to_numpy(layer(inputs, training=True))

        layer = InvariantDropout(0.5, seed=seed)
        first = drawn(layer)
        self.assertAllEqual(
            drawn(InvariantDropout.from_config(layer.get_config())), first
        )
        for other in (-seed, seed + 1, seed % 2**31):
            if other != seed:
                self.assertNotAllClose(
                    drawn(InvariantDropout(0.5, seed=int(other))), first
                )

    def test_a_dropped_infinity_is_zero(self):
        layer = InvariantDropout(0.5, seed=1)
        inputs = np.full((4, 50), np.inf, dtype="float32")
        outputs = ops.convert_to_numpy(layer(inputs, training=True))
        self.assertEqual(set(np.unique(outputs)), {0.0, np.inf})

    # The equations.

    def test_equation_9_mean(self):
        rng = np.random.default_rng(0)
        a, beta, w = rng.normal(size=(3, 30))
        for scaling, factor in (("train", 1.0), ("test", 0.7)):
            layer = InvariantDropout(0.3, scaling=scaling, seed=7)
            layer.build((None, 30))
            layer.beta.assign(beta)
            z = dropped_sums(layer, a, w)
            self.assert_mean(z, factor * w @ (a + beta))
            mean_network = ops.convert_to_numpy(layer(a[None])) @ w
            self.assertAllClose(
                mean_network, [factor * w @ (a + beta)], rtol=1e-5
            )

    def test_equation_10_variance(self):
        rng = np.random.default_rng(1)
        a, beta, w = rng.normal(size=(3, 30))
        p = 0.7
        expected = np.sum(w**2 * (a + beta) ** 2 * p * (1 - p))
        for scaling, factor in (("train", 1 / p**2), ("test", 1.0)):
            layer = InvariantDropout(1 - p, scaling=scaling, seed=8)
            layer.build((None, 30))
            layer.beta.assign(beta)
            self.assert_variance(dropped_sums(layer, a, w), factor * expected)

    def test_equation_3_a_bias_makes_good_the_mean(self):
        rng = np.random.default_rng(2)
        a, w = rng.normal(size=(2, 30))
        p, phi, k, b = 0.6, 1.5, 4, 0.25
        shifted = a.copy()
        shifted[k] += phi
        layer = InvariantDropout(1 - p, scaling="test", seed=9)
        z = dropped_sums(layer, a, w) + b
        z_shifted = dropped_sums(layer, shifted, w) + b - p * w[k] * phi
        expected = p * w @ a + b
        self.assert_mean(z, expected)
        self.assert_mean(z_shifted, expected)

    def test_equation_7_no_bias_makes_good_the_variance(self):
        # The paper prints phi (phi - 2 a); from its Eq. 5 and 6 it is
        # a^2 - (a + phi)^2 = -phi (phi + 2 a).
        rng = np.random.default_rng(3)
        a, w = rng.normal(size=(2, 6))
        p, phi, k = 0.6, 1.5, 4
        a[k], w[k] = 1.0, 2.0
        shifted = a.copy()
        shifted[k] += phi
        layer = InvariantDropout(1 - p, scaling="test", seed=10)
        z = dropped_sums(layer, a, w)
        z_shifted = dropped_sums(layer, shifted, w)
        difference = -p * (1 - p) * w[k] ** 2 * phi * (phi + 2 * a[k])
        squares = (z - z.mean()) ** 2
        squares_shifted = (z_shifted - z_shifted.mean()) ** 2
        error = np.hypot(squares.std(), squares_shifted.std()) / np.sqrt(DRAWS)
        measured = squares.mean() - squares_shifted.mean()
        self.assertLess(abs(measured - difference), STANDARD_ERRORS * error)
        printed = p * (1 - p) * w[k] ** 2 * phi * (phi - 2 * a[k])
        self.assertGreater(abs(measured - printed), 10 * error)

    def test_a_learned_shift_makes_good_the_variance(self):
        # The purpose of invariant dropout: beta = -phi restores every mask's z.
        rng = np.random.default_rng(4)
        a, w = rng.normal(size=(2, 30))
        phi = 1.5
        layer = InvariantDropout(0.5, seed=11)
        invariant = InvariantDropout(
            0.5,
            seed=11,
            beta_initializer=keras.initializers.Constant(-phi),
        )
        self.assertAllClose(
            dropped_sums(layer, a, w),
            dropped_sums(invariant, a + phi, w),
            atol=1e-4,
        )

    def test_scalings_are_the_same_network(self):
        inputs = np.random.default_rng(5).normal(size=(8, 20))
        outputs = {}
        for scaling in ("train", "test"):
            layer = InvariantDropout(
                0.3, scaling=scaling, beta_initializer="ones", seed=12
            )
            outputs[scaling] = [
                ops.convert_to_numpy(layer(inputs, training=training))
                for training in (True, False)
            ]
        for train, test in zip(outputs["train"], outputs["test"], strict=True):
            self.assertAllClose(0.7 * train, test, rtol=1e-5)

    # Training.

    def test_gradient_of_beta_is_the_sum_over_examples(self):
        # d/dbeta of sum(m (x + beta) / p) is the number of kept examples / p.
        class Sum(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return ops.sum(y_pred)

        layer = InvariantDropout(0.5, seed=13)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layer(inputs))
        loss = Sum(reduction="sum")
        model.compile(keras.optimizers.SGD(1.0), loss=loss)
        x = np.ones((6, 4), dtype="float32")
        kept = ops.convert_to_numpy(
            InvariantDropout(0.5, seed=13)(x, training=True)
        )
        model.fit(x, x, batch_size=6, epochs=1, shuffle=False, verbose=0)
        self.assertAllClose(layer.beta, -kept.sum(axis=0))

    @parameterized.named_parameters(
        ("train", InvariantDropout, {}, (6, 5)),
        ("test", InvariantDropout, {"scaling": "test"}, (6, 5)),
        ("steps", InvariantDropout, {"noise_shape": (None, None, 1)}, (6, 5)),
        ("shared_axes", InvariantDropout, {"shared_axes": [1]}, (1, 5)),
        ("shared", SharedInvariantDropout, {"scaling": "test"}, (1, 5)),
        ("spatial", SpatialInvariantDropout, {}, (1, 5)),
        ("average", RunningAverageDropout, {"trainable": False}, (6, 5)),
    )
    def test_level_replaces_a_dropped_activity(
        self, layer_type, options, shape
    ):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(40, 6, 5)).astype("float32")
        layer = layer_type(0.25, seed=1, **options)
        layer.build(x.shape)
        layer.set_shift(rng.normal(3, 1, size=shape).tolist())
        self.assertIsInstance(layer.level, np.ndarray)
        self.assertEqual(layer.level.shape, shape)
        # In training, the next layer receives the same as at inference on
        # inputs in which each dropped activity is replaced by its level, up to
        # the factor 1 / p.
        trained = ops.convert_to_numpy(layer(x, training=True))
        kept = trained != 0
        self.assertAllClose(kept.mean(), 0.75, atol=0.1)
        filled = layer(np.where(kept, x, layer.level))
        self.assertAllClose(0.75 * trained, filled, rtol=1e-5, atol=1e-6)

    def test_level_follows_beta(self):
        layer = InvariantDropout(0.5)
        with self.assertRaisesRegex(
            ValueError, "'my_dropout' has no `level` before it is built"
        ):
            _ = InvariantDropout(0.5, name="my_dropout").level
        with self.assertRaisesRegex(
            ValueError, "'my_dropout' has no `shift` before it is built"
        ):
            InvariantDropout(0.5, name="my_dropout").set_shift([1.0, -2.0])
        # PyTorch has its own words for a missing attribute.
        with self.assertRaisesRegex(AttributeError, "beta"):
            _ = layer.beta
        layer.build((None, 2))
        with self.assertRaisesRegex(
            ValueError, r"`value`.*shape \(2,\).*Received: shape \(3,\)"
        ):
            layer.set_shift([1.0, -2.0, 3.0])
        before = layer.level
        # Zero has no sign.
        self.assertEqual(str(before), "[0. 0.]")
        layer.beta.assign([1.0, -2.0])
        self.assertAllEqual(layer.level, [-1.0, 2.0])
        self.assertAllEqual(before, [0.0, 0.0])

    def test_frozen_beta_stays_and_still_drops(self):
        layer = InvariantDropout(0.5, trainable=False, seed=14)
        inputs = keras.Input((40,))
        model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
        model.compile("sgd", "mse")
        x = np.ones((8, 40), dtype="float32")
        model.fit(x, x[:, :1], epochs=2, verbose=0)
        self.assertAllEqual(layer.beta, np.zeros(40))
        dropped = ops.convert_to_numpy(layer(x, training=True))
        self.assertEqual(set(np.unique(dropped)), {0.0, 2.0})

    # Errors.

    def test_bad_scaling(self):
        for scaling in ("both", None, 1):
            with self.assertRaisesRegex(
                ValueError,
                "`scaling`. Expected one of 'train', 'test'. Received: ",
            ):
                InvariantDropout(0.5, scaling=scaling)

    @parameterized.parameters(
        ([0], "axes other than 0, the batch"),
        ([1, 1], "list of distinct integers"),
        ([1.0], "list of distinct integers"),
        ("1", "list of distinct integers"),
        (True, "list of distinct integers"),
    )
    def test_bad_shared_axes(self, shared_axes, expected):
        with self.assertRaisesRegex(
            ValueError,
            f"received for argument `shared_axes`. Expected.*{expected}.*"
            "Received: shared_axes=",
        ):
            InvariantDropout(0.5, shared_axes=shared_axes)

    @parameterized.parameters(
        ([3], "axes between 1 and 2", (None, 4, 5)),
        ([-3], "axes between 1 and 2", (None, 4, 5)),
        ([-4], "axes between 1 and 2", (None, 4, 5)),
        ([2], "axis 1 .or -1. for", (None, 4)),
        ([1, -2], "distinct axes", (None, 4, 5)),
    )
    def test_shared_axes_beyond_the_input(
        self, shared_axes, expected, input_shape
    ):
        layer = InvariantDropout(0.5, shared_axes=shared_axes)
        with self.assertRaisesRegex(
            ValueError, f"`shared_axes`. Expected {expected}"
        ):
            layer.build(input_shape)

    def test_variable_length_without_sharing(self):
        layer = InvariantDropout(0.5, name="drop")
        with self.assertRaisesRegex(
            ValueError, r"'drop'.*axis 1 is None.*`shared_axes=\[1\]`"
        ):
            layer(keras.Input((None, 3)))
        layer = InvariantDropout(0.5, shared_axes=[1])
        with self.assertRaisesRegex(
            ValueError, r"axis 2 is None.*`shared_axes=\[1, 2\]`"
        ):
            layer(keras.Input((None, None, 3)))

    def test_rank_1(self):
        with self.assertRaisesRegex(ValueError, "Expected.*rank 2 or more"):
            InvariantDropout(0.5)(np.ones(3))

    def test_noise_shape_that_does_not_broadcast(self):
        layer = InvariantDropout(0.5, noise_shape=(None, 2))
        with self.assertRaisesRegex(
            ValueError, r"`noise_shape`.*to broadcast.*Received: noise_shape="
        ):
            layer(np.ones((4, 3)))

    @parameterized.parameters(1, 4, 16)
    def test_a_mask_of_another_batch(self, batch):
        # One example would become eight.
        layer = InvariantDropout(0.5, noise_shape=(8, 3))
        layer.build((None, 3))
        with self.assertRaisesRegex(
            ValueError, rf"`noise_shape`.*broadcast.*\({batch}, 3\)"
        ):
            layer(np.ones((batch, 3)), training=True)
        outputs = ops.convert_to_numpy(layer(np.ones((8, 3)), training=True))
        self.assertEqual(outputs.shape, (8, 3))
        model = keras.Sequential(
            [keras.Input((3,)), layer, keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse", jit_compile=False)
        with self.assertRaises(Exception):  # noqa: B017, each backend has its own
            model.fit(
                np.ones((batch, 3)), np.ones((batch, 1)), batch, verbose=0
            )

    def test_another_shape_than_at_first(self):
        layer = InvariantDropout(0.5)
        layer(np.ones((4, 3)))
        with self.assertRaisesRegex(ValueError, "incompatible"):
            layer(np.ones((4, 5)))


def test_a_noise_shape_may_lack_leading_axes():
    """As in Keras' own layer."""
    x = np.ones((4, 50, 60), "float32")
    for noise_shape in ((60,), (50, 1)):
        for layer in (InvariantDropout, keras.layers.Dropout):
            drawn = layer(0.5, noise_shape=noise_shape)(x, training=True)
            drawn = keras.ops.convert_to_numpy(drawn)
            varying = [bool(np.ptp(drawn, axis=i).any()) for i in range(3)]
            assert varying == [
                False,
                noise_shape == (50, 1),
                noise_shape == (60,),
            ]
