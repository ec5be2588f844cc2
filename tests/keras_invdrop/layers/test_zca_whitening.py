import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import ZCAWhitening


def correlated(n=500, shape=(4, 3), seed=0):
    """Examples around 10, whose elements are correlated."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mixing = rng.normal(size=(size, size)) + 2
    x = rng.normal(size=(n, size)) @ mixing + 10
    return x.reshape((n, *shape)).astype("float32")


def whitening_by_hand(x, epsilon):
    x = x.reshape((len(x), -1)).astype("float64")
    eigenvalues, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    matrix = vectors @ np.diag(1 / np.sqrt(eigenvalues + epsilon)) @ vectors.T
    return x.mean(axis=0), matrix


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return -(-len(self.x) // 64)

    def __getitem__(self, i):
        return self.x[64 * i : 64 * (i + 1)], np.zeros(1)


class Adapted(ZCAWhitening):
    """A layer that is adapted as soon as it is built."""

    def build(self, input_shape):
        super().build(input_shape)
        self.whitening.assign(np.eye(self.mean.shape[0]))


class ZCAWhiteningTest(testing.TestCase):
    def test_basics(self):
        self.run_layer_test(
            Adapted,
            init_kwargs={"epsilon": 0.2},
            custom_objects={"Adapted": Adapted},
            input_shape=(2, 4, 3),
            expected_output_shape=(2, 4, 3),
            expected_num_trainable_weights=0,
            expected_num_non_trainable_weights=2,
            expected_num_seed_generators=0,
            expected_num_losses=0,
        )

    def test_calls_before_adapt_are_refused(self):
        x = correlated(5)
        for layer in (ZCAWhitening(name="zca"), ZCAWhitening(name="zca")):
            # Symbolic inputs build a model, to adapt later.
            inputs = keras.Input((4, 3))
            model = keras.Model(inputs, layer(inputs))
            for function in (layer, model):
                with self.assertRaisesRegex(
                    ValueError, r"Layer 'zca' has not learned.*`adapt\(data\)`"
                ):
                    function(x)
            data = tf.data.Dataset.from_tensors(x)
            if keras.backend.backend() != "tensorflow":
                with self.assertRaisesRegex(ValueError, "has not learned"):
                    data.map(layer)
        layer.adapt(correlated())
        self.assertAllClose(model.predict(x), layer(x), atol=1e-5)

    def test_not_adapted_a_compiled_step_gives_nan(self):
        model = keras.Sequential([keras.Input((4, 3)), ZCAWhitening()])
        if keras.backend.backend() == "torch":  # which does not compile
            with self.assertRaisesRegex(ValueError, "has not learned"):
                model.predict(correlated(5))
        else:
            outputs = model.predict(correlated(5))
            self.assertTrue(np.isnan(outputs).all())

    def test_a_subclassed_model_is_built_before(self):
        class Whitened(keras.Model):
            def __init__(self):
                super().__init__()
                self.whiten = ZCAWhitening()
                self.dense = keras.layers.Dense(2)

            def call(self, inputs):
                return self.dense(self.whiten(inputs))

        model = Whitened()
        self.assertEqual(
            model.compute_output_spec(keras.Input((4, 3))).shape, (None, 4, 2)
        )

    def test_weights_of_another_layer_count(self):
        layer, other = ZCAWhitening(), ZCAWhitening()
        x = correlated()
        layer.adapt(x)
        inputs = keras.Input((4, 3))
        model = keras.Model(inputs, other(inputs))
        model.set_weights(layer.get_weights())
        self.assertAllClose(model.predict(x), layer(x), atol=1e-4)
        self.assertAllEqual(other(x), layer(x))

    @parameterized.parameters("bfloat16", "mixed_bfloat16", "float16")
    def test_pixels_in_16_bits(self, dtype):
        rng = np.random.default_rng(6)
        # Whole numbers to 255, of which 16 bits hold all, smooth as images.
        x = np.cumsum(rng.normal(size=(500, 30)), axis=1) * 12 + 120
        x = np.clip(np.round(x), 0, 255)
        exact, layer = ZCAWhitening(), ZCAWhitening(dtype=dtype)
        exact.adapt(x)
        layer.adapt(x)
        outputs = layer(x)
        self.assertDType(outputs, layer.compute_dtype)
        # Equal up to the rounding of the output.
        self.assertAllClose(
            ops.cast(outputs, "float32"), exact(x), atol=1e-3, rtol=2.0**-8
        )

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_inputs_are_not_rounded_to_16_bits(self, dtype):
        rng = np.random.default_rng(7)
        x = np.cumsum(rng.normal(size=(500, 30)), axis=1) + 120
        exact, layer = ZCAWhitening(0.01), ZCAWhitening(0.01, dtype=dtype)
        exact.adapt(x)
        layer.adapt(x)
        model = keras.Sequential([keras.Input((30,)), layer])
        # Equal up to the rounding of the output.
        self.assertAllClose(
            ops.cast(model(x), "float32"), exact(x), atol=1e-3, rtol=2.0**-8
        )

    @parameterized.parameters(*range(6))
    def test_a_direction_that_does_not_vary_is_found(self, seed):
        x = np.random.default_rng(seed).normal(size=(100, 2))
        x = np.column_stack([x, x.sum(axis=1)])
        with self.assertRaisesRegex(ValueError, "singular.*epsilon=0.0"):
            ZCAWhitening(epsilon=0.0).adapt(x)
        layer = ZCAWhitening(epsilon=0.0)
        layer.adapt(x[:, :2])
        white = ops.convert_to_numpy(layer(x[:, :2]))
        self.assertAllClose(np.cov(white, rowvar=False), np.eye(2), atol=1e-4)

    @parameterized.parameters(0.1, 10.0)
    def test_equals_the_formula(self, epsilon):
        x = correlated()
        layer = ZCAWhitening(epsilon)
        layer.adapt(x)
        mean, matrix = whitening_by_hand(x, epsilon)
        self.assertAllClose(layer.mean, mean, rtol=1e-5)
        self.assertAllClose(layer.whitening, matrix, atol=1e-4)
        expected = ((x.reshape((500, -1)) - mean) @ matrix).reshape(x.shape)
        self.assertAllClose(layer(x), expected, atol=1e-3)

    def test_covariance_is_the_identity_but_for_epsilon(self):
        x = correlated()
        layer = ZCAWhitening(epsilon=1e-6)
        layer.adapt(x)
        white = ops.convert_to_numpy(layer(x)).reshape((500, -1))
        covariance = np.cov(white, rowvar=False)
        self.assertAllClose(covariance, np.eye(12), atol=2e-3)
        # With epsilon the variance along an eigenvector is l / (l + epsilon).
        layer = ZCAWhitening(epsilon=5.0)
        layer.adapt(x)
        white = ops.convert_to_numpy(layer(x)).reshape((500, -1))
        eigenvalues = np.linalg.eigvalsh(
            np.cov(x.reshape((500, -1)), rowvar=False)
        )
        self.assertAllClose(
            np.linalg.eigvalsh(np.cov(white, rowvar=False)),
            eigenvalues / (eigenvalues + 5.0),
            atol=1e-4,
        )

    def test_every_kind_of_data_gives_the_same(self):
        x = correlated(22_000)  # more than two chunks
        tensors = tf.data.Dataset.from_tensor_slices((x, np.zeros(22_000)))
        kinds = {
            "array": x,
            "tensor": ops.convert_to_tensor(x),
            "tf.data": tensors.batch(100),
            "PyDataset": Batches(x),
            "generator": (x[i : i + 7] for i in range(0, 22_000, 7)),
            "list": [x[:1], x[1:2], x[2:]],
        }
        mean, matrix = whitening_by_hand(x, 0.1)
        for kind, data in kinds.items():
            layer = ZCAWhitening()
            layer.adapt(data)
            self.assertAllClose(layer.mean, mean, rtol=1e-5, msg=kind)
            self.assertAllClose(layer.whitening, matrix, atol=1e-4, msg=kind)

    def test_no_more_than_a_chunk_is_in_memory(self):
        # Of 30,000 examples memory holds at most the 5,000 of a chunk and the
        # batch that is being made.
        alive = weakref.WeakSet()

        class Tracked(np.ndarray):
            __hash__ = object.__hash__

        most = 0

        def batches():
            nonlocal most
            for seed in range(60):
                x = correlated(500, (4,), seed=seed % 3).view(Tracked)
                alive.add(x)
                gc.collect(0)  # On PyTorch Keras 3.13 leaves cycles.
                most = max(most, len(alive))
                yield x

        layer = ZCAWhitening()
        layer.adapt(batches())
        self.assertBetween(most, 1, 5000 // 500 + 1)
        x = np.concatenate([correlated(500, (4,), seed=s) for s in range(3)])
        self.assertAllClose(layer.mean, x.mean(axis=0), rtol=1e-5)

    def test_a_large_mean_costs_no_accuracy(self):
        # Sums of squares without correction would lose all digits here.
        x = correlated(20_000, (5,))
        data = [x[:10_000] + 3000, x[10_000:] + 3100]  # two chunks
        layer = ZCAWhitening()
        layer.adapt(data)
        _, matrix = whitening_by_hand(np.concatenate(data), 0.1)
        self.assertAllClose(layer.whitening, matrix, atol=1e-3)

    def test_adapting_again_forgets(self):
        layer, other = ZCAWhitening(), ZCAWhitening()
        layer.adapt(correlated(seed=1))
        layer.adapt(correlated(seed=2))
        other.adapt(correlated(seed=2))
        self.assertAllEqual(layer.whitening, other.whitening)

    def test_inside_tf_data(self):
        x = correlated()
        layer = ZCAWhitening()
        layer.adapt(x)
        data = tf.data.Dataset.from_tensor_slices(x).batch(64).map(layer)
        outputs = np.concatenate([batch.numpy() for batch in data])
        self.assertAllClose(outputs, layer(x), atol=1e-4)

    def test_in_a_model_and_its_file(self):
        x = correlated()
        layer = ZCAWhitening()
        layer.adapt(x)
        model = keras.Sequential([keras.Input((4, 3)), layer])
        path = self.get_temp_dir() + "/model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, safe_mode=True)
        self.assertAllClose(loaded.predict(x), layer(x), atol=1e-5)

    def test_fewer_examples_than_elements(self):
        x = correlated(5)
        layer = ZCAWhitening(epsilon=0.1)
        layer.adapt(x)
        self.assertAllClose(
            layer.whitening, whitening_by_hand(x, 0.1)[1], atol=1e-3
        )

    def test_constant_examples(self):
        layer = ZCAWhitening(epsilon=0.25)
        layer.adapt(np.full((10, 3), 7.0))
        self.assertAllClose(layer.whitening, 2 * np.eye(3))
        self.assertAllClose(layer(np.full((2, 3), 7.0)), np.zeros((2, 3)))
        with self.assertRaisesRegex(ValueError, "singular.*epsilon=0.0"):
            ZCAWhitening(epsilon=0).adapt(np.full((10, 3), 7.0))

    def test_bad_data_leaves_the_layer_as_it_was(self):
        layer = ZCAWhitening()
        x = correlated(20)
        layer.adapt(x)
        before = layer.get_weights()
        broken = x.copy()
        broken[7, 0, 0] = np.nan
        for data, message in (
            (broken, "`data`. Expected finite numbers.*examples 0 to 19"),
            (x[:1], "`data`. Expected two examples or more.*Received: 1"),
            ([], "`data`. Expected two examples or more.*Received: 0"),
            ([x, x[:, :2]], r"`data`. Expected examples of shape \(4, 3\)"),
            (
                [np.zeros((10_000, 4, 3)), x[:, :2]],
                r"`data`. Expected examples of shape \(4, 3\)",
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                layer.adapt(data)
        for old, new in zip(before, layer.get_weights(), strict=True):
            self.assertAllEqual(old, new)

    def test_errors(self):
        for value in (-0.1, np.nan, np.inf, True, "0.1", None):
            with self.assertRaisesRegex(ValueError, "`epsilon`. Expected a f"):
                ZCAWhitening(value)
        with self.assertRaisesRegex(ValueError, "fixed size.*Received: input"):
            ZCAWhitening()(keras.Input((None, 3)))


def test_examples_of_the_shape_that_the_layer_was_built_for():
    layer = ZCAWhitening()
    layer.build((None, 4, 6))
    with pytest.raises(ValueError, match=r"`data`.*\(4, 6\), for.*\(6, 4\)"):
        layer.adapt(np.ones((50, 6, 4)))
    for wrong in (np.ones(5), {"a": np.ones((5, 3))}):
        with pytest.raises(ValueError, match="`data`. Expected examples in"):
            ZCAWhitening().adapt(wrong)
