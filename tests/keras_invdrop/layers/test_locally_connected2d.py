import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import LocallyConnected2D


class LocallyConnected2DTest(testing.TestCase):
    @parameterized.parameters(
        ("channels_last", "valid", (2, 5, 6, 4), (2, 3, 4, 3)),
        ("channels_last", "same", (2, 5, 6, 4), (2, 5, 6, 3)),
        ("channels_first", "valid", (2, 4, 5, 6), (2, 3, 3, 4)),
    )
    def test_basics(self, data_format, padding, shape, output_shape):
        self.run_layer_test(
            LocallyConnected2D,
            init_kwargs={
                "filters": 3,
                "kernel_size": 3,
                "padding": padding,
                "data_format": data_format,
                "activation": "relu",
                "kernel_initializer": "he_uniform",
                "bias_initializer": "ones",
                "kernel_regularizer": "l2",
                "bias_regularizer": "l1",
                "activity_regularizer": "l2",
                "kernel_constraint": keras.constraints.MaxNorm(2, axis=1),
                "bias_constraint": "non_neg",
            },
            input_shape=shape,
            expected_output_shape=output_shape,
            expected_num_trainable_weights=2,
            expected_num_non_trainable_weights=0,
            expected_num_seed_generators=0,
            expected_num_losses=3,
            supports_masking=False,
        )

    @parameterized.parameters(
        ((1, 1), "valid"), ((2, 1), "valid"), ((1, 2), "same")
    )
    def test_equals_a_loop(self, strides, padding):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 6, 7, 3)).astype("float32")
        layer = LocallyConnected2D(
            4,
            (3, 2),
            strides,
            padding,
            data_format="channels_last",
            bias_initializer="normal",
        )
        outputs = ops.convert_to_numpy(layer(x))
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = ops.convert_to_numpy(layer.bias)
        if padding == "same":
            # 6 rows, stride 1: 2 more. 7 columns, stride 2: 4 windows of 2
            # span 8, one more, on the right.
            x = np.pad(x, [(0, 0), (1, 1), (0, 1), (0, 0)])
        _, height, width, _ = outputs.shape
        for i in range(height):
            for j in range(width):
                top, left = i * strides[0], j * strides[1]
                patch = x[:, top : top + 3, left : left + 2].reshape((2, -1))
                self.assertAllClose(
                    outputs[:, i, j],
                    patch @ kernel[i * width + j] + bias[i, j],
                    atol=1e-5,
                )

    def test_with_one_kernel_everywhere_it_is_a_convolution(self):
        x = np.random.default_rng(1).normal(size=(2, 6, 7, 3))
        x = x.astype("float32")
        for data_format in ("channels_last", "channels_first"):
            if data_format == "channels_first":
                x = x.transpose(0, 3, 1, 2)
            local = LocallyConnected2D(
                4, 3, padding="same", data_format=data_format
            )
            conv = keras.layers.Conv2D(
                4, 3, padding="same", data_format=data_format
            )
            local.build(x.shape)
            conv.build(x.shape)
            kernel = ops.convert_to_numpy(conv.kernel).reshape((1, -1, 4))
            local.kernel.assign(np.repeat(kernel, 42, axis=0))
            self.assertAllClose(local(x), conv(x), atol=1e-5)

    def test_without_bias(self):
        layer = LocallyConnected2D(4, 3, use_bias=False)
        layer.build((None, 5, 5, 2))
        self.assertIsNone(layer.bias)
        self.assertEqual(layer.count_params(), 9 * 18 * 4)

    def test_a_config_of_keras_2(self):
        config = LocallyConnected2D(4, 3, activation="relu").get_config()
        for implementation in (1, 2, 3):
            old = {
                **config,
                "implementation": implementation,
                "batch_input_shape": (None, 8, 8, 3),
            }
            layer = LocallyConnected2D.from_config(old)
            self.assertEqual(layer.get_config(), config)
        for wrong in ({"implementation": 4}, {"implementations": 1}):
            with self.assertRaisesRegex(ValueError, "implementation"):
                LocallyConnected2D.from_config({**config, **wrong})

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "`filters`. Expected a posit"):
            LocallyConnected2D(0, 3)
        with self.assertRaisesRegex(ValueError, "`kernel_size`. Expected a p"):
            LocallyConnected2D(4, 1.5)
        with self.assertRaisesRegex(ValueError, "`strides`. Expected a posit"):
            LocallyConnected2D(4, 3, strides=0)
        with self.assertRaisesRegex(ValueError, "`padding`. Expected one of"):
            LocallyConnected2D(4, 3, padding="full")
        with self.assertRaisesRegex(ValueError, "fixed size.*Received: input"):
            LocallyConnected2D(4, 3)(keras.Input((None, 5, 2)))
        with self.assertRaisesRegex(ValueError, "No window of size 3 fits"):
            LocallyConnected2D(4, 3)(np.ones((1, 2, 5, 2)))
