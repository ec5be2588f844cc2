import inspect
import os

import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import MaxoutDense


class MaxoutDenseTest(testing.TestCase):
    def test_basics(self):
        self.run_layer_test(
            MaxoutDense,
            init_kwargs={
                "units": 4,
                "pieces": 3,
                "activation": "relu",
                "kernel_initializer": "he_uniform",
                "bias_initializer": "ones",
                "kernel_regularizer": "l2",
                "bias_regularizer": "l1",
                "activity_regularizer": "l2",
                "kernel_constraint": keras.constraints.MaxNorm(2, axis=0),
                "bias_constraint": "non_neg",
            },
            input_shape=(2, 5),
            expected_output_shape=(2, 4),
            expected_num_trainable_weights=2,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=0,
            expected_num_losses=3,
            supports_masking=True,
        )

    @parameterized.parameters(((3, 6),), ((3, 4, 6),))
    def test_equals_a_loop(self, shape):
        rng = np.random.default_rng(0)
        x = rng.normal(size=shape).astype("float32")
        layer = MaxoutDense(2, pieces=3, bias_initializer="normal")
        layer.build(shape)
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = ops.convert_to_numpy(layer.bias)
        expected = np.empty((*shape[:-1], 2))
        for unit in range(2):
            responses = [
                x @ kernel[:, 3 * unit + piece] + bias[3 * unit + piece]
                for piece in range(3)
            ]
            expected[..., unit] = np.max(responses, axis=0)
        self.assertAllClose(layer(x), expected, atol=1e-5)

    def test_a_quantized_layer_can_be_saved_and_cloned(self):
        model = keras.Sequential([keras.Input((8,)), MaxoutDense(4, 3)])
        model.quantize("int8")
        self.assertEqual(model.layers[0].dense.kernel.dtype, "int8")
        x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
        expected = model.predict(x, verbose=0)
        path = os.path.join(self.get_temp_dir(), "model.keras")
        model.save(path)
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        for copy in keras.models.load_model(path), clone:
            self.assertEqual(copy.layers[0].dense.quantization_mode, "int8")
            self.assertAllClose(copy.predict(x, verbose=0), expected)

    def test_without_bias(self):
        layer = MaxoutDense(4, 2, use_bias=False)
        layer.build((None, 5))
        self.assertIsNone(layer.bias)
        self.assertEqual(layer.count_params(), 5 * 4 * 2)

    def test_max_norm_holds_each_piece(self):
        layer = MaxoutDense(
            3, 2, kernel_constraint=keras.constraints.MaxNorm(0.5, axis=0)
        )
        model = keras.Sequential([keras.Input((8,)), layer])
        model.compile(keras.optimizers.SGD(10.0), "mse")
        x = np.random.default_rng(1).normal(size=(16, 8))
        model.fit(x, np.ones((16, 3)), epochs=2, verbose=0)
        norms = np.linalg.norm(ops.convert_to_numpy(layer.kernel), axis=0)
        self.assertEqual(norms.shape, (6,))
        self.assertLess(norms.max(), 0.5 + 1e-5)
        # The step of 10 drives pieces to the limit.
        self.assertGreater(norms.max(), 0.5 - 1e-3)

    def test_arguments_of_dense(self):
        of_dense = inspect.signature(keras.layers.Dense).parameters
        ours = inspect.signature(MaxoutDense).parameters
        # Low-rank adaptation is done to `layer.dense`; no quantisation.
        elsewhere = {"lora_rank", "lora_alpha", "quantization_config"}
        self.assertLessEqual(set(of_dense) - set(ours), elsewhere)
        for name in set(of_dense) & set(ours):
            self.assertEqual(of_dense[name].default, ours[name].default)

    @parameterized.parameters(0, -1, 2.0, True, "2")
    def test_bad_units_and_pieces(self, value):
        with self.assertRaisesRegex(ValueError, "`units`. Expected a positive"):
            MaxoutDense(value, 2)
        with self.assertRaisesRegex(ValueError, "`pieces`. Expected a positiv"):
            MaxoutDense(2, value)
