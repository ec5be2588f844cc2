import inspect

import keras
import numpy as np
from absl.testing import parameterized
from keras import ops
from keras.src import testing

from keras_invdrop import MaxoutConv2D


class MaxoutConv2DTest(testing.TestCase):
    @parameterized.parameters(
        ("channels_last", "valid", (2, 5, 6, 4), (2, 3, 4, 6)),
        ("channels_last", "same", (2, 5, 6, 4), (2, 5, 6, 6)),
        ("channels_first", "valid", (2, 4, 5, 6), (2, 6, 3, 4)),
    )
    def test_basics(self, data_format, padding, shape, output_shape):
        self.run_layer_test(
            MaxoutConv2D,
            init_kwargs={
                "filters": 6,
                "kernel_size": 3,
                "pieces": 2,
                "padding": padding,
                "data_format": data_format,
                "groups": 2,
                "activation": "relu",
                "kernel_initializer": "he_uniform",
                "bias_initializer": "ones",
                "kernel_regularizer": "l2",
                "bias_regularizer": "l1",
                "activity_regularizer": "l2",
                "kernel_constraint": keras.constraints.MaxNorm(
                    2, axis=[0, 1, 2]
                ),
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
        {},
        {"strides": 2},
        {"dilation_rate": 2},
        {"groups": 2},
        {"use_bias": False},
    )
    def test_equals_a_loop(self, **options):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 7, 8, 4)).astype("float32")
        layer = MaxoutConv2D(
            2, (3, 2), pieces=3, bias_initializer="normal", **options
        )
        layer.build(x.shape)
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = np.zeros(6)
        if options.get("use_bias", True):
            bias = ops.convert_to_numpy(layer.bias)
        stride = options.get("strides", 1)
        dilation = options.get("dilation_rate", 1)
        groups = options.get("groups", 1)
        height = (7 - 2 * dilation - 1) // stride + 1
        width = (8 - dilation - 1) // stride + 1
        channels = 4 // groups
        expected = np.full((2, height, width, 2), -np.inf)
        for i in range(height):
            for j in range(width):
                for channel in range(6):
                    group = channel // (6 // groups)
                    patch = x[
                        :,
                        i * stride : i * stride + 2 * dilation + 1 : dilation,
                        j * stride : j * stride + dilation + 1 : dilation,
                        group * channels : (group + 1) * channels,
                    ]
                    response = (patch * kernel[..., channel]).sum((1, 2, 3))
                    expected[:, i, j, channel // 3] = np.maximum(
                        expected[:, i, j, channel // 3],
                        response + bias[channel],
                    )
        outputs = layer(x)
        self.assertEqual(outputs.shape, expected.shape)
        self.assertAllClose(outputs, expected, atol=1e-5)

    def test_data_formats_agree(self):
        x = np.random.default_rng(1).normal(size=(2, 6, 7, 3))
        x = x.astype("float32")
        last = MaxoutConv2D(4, 3, 2, data_format="channels_last")
        first = MaxoutConv2D(4, 3, 2, data_format="channels_first")
        last.build(x.shape)
        first.build((2, 3, 6, 7))
        first.set_weights(last.get_weights())
        outputs = ops.transpose(first(x.transpose(0, 3, 1, 2)), (0, 2, 3, 1))
        self.assertAllClose(outputs, last(x), atol=1e-5)

    def test_max_norm_holds_each_piece(self):
        layer = MaxoutConv2D(
            3,
            3,
            2,
            kernel_constraint=keras.constraints.MaxNorm(0.5, axis=[0, 1, 2]),
        )
        model = keras.Sequential([keras.Input((5, 5, 2)), layer])
        model.compile(keras.optimizers.SGD(10.0), "mse")
        x = np.random.default_rng(2).normal(size=(8, 5, 5, 2))
        model.fit(x, np.ones((8, 3, 3, 3)), epochs=2, verbose=0)
        kernel = ops.convert_to_numpy(layer.kernel)
        norms = np.sqrt((kernel**2).sum(axis=(0, 1, 2)))
        self.assertEqual(norms.shape, (6,))
        self.assertLess(norms.max(), 0.5 + 1e-5)
        self.assertGreater(norms.max(), 0.5 - 1e-3)

    def test_arguments_of_conv2d(self):
        of_conv = inspect.signature(keras.layers.Conv2D).parameters
        ours = inspect.signature(MaxoutConv2D).parameters
        self.assertEqual(set(ours) - set(of_conv), {"pieces"})
        self.assertEqual(set(of_conv) - set(ours), set())
        for name, parameter in of_conv.items():
            self.assertEqual(parameter.default, ours[name].default)

    def test_errors(self):
        for value in (0, 1.5, True):
            with self.assertRaisesRegex(ValueError, "`filters`. Expected a po"):
                MaxoutConv2D(value, 3, 2)
            with self.assertRaisesRegex(ValueError, "`pieces`. Expected a pos"):
                MaxoutConv2D(4, 3, value)
            with self.assertRaisesRegex(ValueError, "`groups`. Expected a pos"):
                MaxoutConv2D(4, 3, 2, groups=value)
        # 3 x 2 filters are divisible by 2 groups, but a unit would be split.
        with self.assertRaisesRegex(
            ValueError, "`groups`. Expected a divisor of filters=3. Received"
        ):
            MaxoutConv2D(3, 3, 2, groups=2)
