"""Folding and calibration keep the outputs of random networks."""

import math
import warnings
from functools import partial

import hypothesis
import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers
from keras import ops

from keras_invdrop import InvariantDropout
from keras_invdrop import LocallyConnected2D
from keras_invdrop import MaxoutConv2D
from keras_invdrop import MaxoutDense
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import calibrate
from keras_invdrop import fold
from keras_invdrop.layers._shifted_dropout import ShiftedDropout

# Number of architectures in `make test-all` and in `make test`.
ARCHITECTURES = {True: 300, False: 16}
CALIBRATED = {True: 60, False: 12}  # each network is traced and compiled again
# There are few sizes, so that compiled operations are reused.
SIZE, CHANNELS = 6, 4
# On a CPU, TensorFlow's convolutions support channels_first only if XLA
# compiles them, which takes too long here; test_fold.py does it.
DATA_FORMATS = ["channels_last", "channels_first"]
if keras.backend.backend() == "tensorflow":
    DATA_FORMATS = ["channels_last"]


class Architecture:
    """A network made of the layers that `draw` chooses."""

    def __init__(self, draw):
        self.draw = draw
        self.data_format = draw(st.sampled_from(DATA_FORMATS))
        rank = draw(st.sampled_from((2, 3, 4, 4, 4, 5)))
        shape = (SIZE,) * (rank - 2)
        shape = (CHANNELS, *shape) if self.first else (*shape, CHANNELS)
        self.inputs = keras.Input(shape)
        x = self.dropout(self.inputs)
        for _ in range(draw(st.integers(2, 6))):
            x = self.step(x)
        self.model = keras.Model(self.inputs, x)

    @property
    def first(self):
        return self.data_format == "channels_first"

    def one(self, *choices):
        return self.draw(st.sampled_from(choices))

    def space(self, x):
        return x.shape[2:] if self.first else x.shape[1:-1]

    def step(self, x):
        rank = len(x.shape)
        kinds = [self.dropout, self.elementwise, self.dense, self.branches]
        kinds += [self.dropout, self.dense]
        if rank > 2:
            kinds += [self.rearrange] * 2
            if min(self.space(x)) >= 2:
                kinds += [self.pool, self.convolution] * 3
        return self.one(*kinds)(x)

    def dropout(self, x):
        rank = len(x.shape)
        rate = self.one(0.25, 0.5)
        scaling = self.one("train", "test")
        kinds = [
            lambda: InvariantDropout(rate, scaling=scaling),
            lambda: InvariantDropout(rate, shared_axes=[-1], scaling=scaling),
            lambda: RunningAverageDropout(rate),
            lambda: layers.Dropout(rate),
        ]
        if rank > 2:
            kinds += [
                partial(cls, rate, self.data_format, scaling=scaling)
                for cls in (
                    SharedInvariantDropout,
                    SharedInvariantDropout,
                    SpatialInvariantDropout,
                )
            ]
        return self.one(*kinds)()(x)

    def elementwise(self, x):
        axis = 1 if self.first else -1
        return self.one(
            lambda: layers.BatchNormalization(axis),
            lambda: layers.BatchNormalization(axis, scale=False),
            lambda: layers.BatchNormalization(-1, center=False),
            lambda: layers.Activation("linear"),
            lambda: layers.Activation("relu"),
            lambda: layers.LayerNormalization(),
        )()(x)

    def dense(self, x):
        units, activation = self.one(3, 4), self.one(None, "relu")
        options = {"activation": activation, "use_bias": self.one(True, False)}
        labels = "bcde"[: len(x.shape) - 1]
        last, shape = labels[-1], (*x.shape[1:-1], units)
        full = f"a{labels},{last}z->a{labels[:-1]}z"
        equations = [
            (full, shape, None, None),
            (full, shape, activation, "z"),
        ]
        # For two or more axes under the dots, Keras 3.15 computes an output
        # shape with these axes reversed, so the next layers may not fit the
        # actual output.
        if len(x.shape) <= 3:
            dots = f"...{last},{last}z->...z"
            equations += [(dots, units, activation, "z")]
        einsum = self.one(*equations)
        return self.one(
            lambda: layers.Dense(units, **options),
            lambda: MaxoutDense(units, 2, **options),
            lambda: layers.EinsumDense(*einsum),
        )()(x)

    def rearrange(self, x):
        rank = len(x.shape)
        names = {"data_format": self.data_format}
        kinds = [
            lambda: layers.Flatten(),
            lambda: layers.Permute((*range(2, rank), 1)),
            lambda: layers.Reshape((x.shape[1], -1)),
        ]
        if rank == 3 and not self.first:
            kinds += [
                lambda: layers.ZeroPadding1D(1),
                lambda: layers.UpSampling1D(2),
            ]
            if min(self.space(x)) > 1:
                kinds += [lambda: layers.Cropping1D((0, 1))]
        if rank == 4:
            kinds += [
                lambda: layers.ZeroPadding2D((1, 0), **names),
                lambda: layers.UpSampling2D(2, **names),
            ]
            if min(self.space(x)) > 1:
                kinds += [lambda: layers.Cropping2D(((1, 0), (0, 0)), **names)]
        return self.one(*kinds)()(x)

    def pool(self, x):
        d = len(x.shape) - 2
        kind = self.one("Max", "Average", "GlobalMax", "GlobalAverage")
        cls = getattr(layers, f"{kind}Pooling{d}D")
        if kind.startswith("Global"):
            return cls(self.data_format, self.one(True, False))(x)
        padding = self.one("valid", "same")
        return cls(2, self.one(None, 1), padding, self.data_format)(x)

    def convolution(self, x):
        d = len(x.shape) - 2
        filters, groups, strides, dilation = 4, 1, 1, 1
        size = self.one(1, 2, 3)
        if size > min(self.space(x)):
            size = 2
        padding = self.one("valid", "same")
        if self.one(True, False):
            strides = 2
        elif (size - 1) * 2 < min(self.space(x)):
            dilation = self.one(1, 2)
        channels = x.shape[1 if self.first else -1]
        if channels % 2 == 0:
            groups = self.one(1, 2)
        options = {
            "strides": strides,
            "padding": padding,
            "data_format": self.data_format,
            "activation": self.one(None, "relu"),
            "use_bias": self.one(True, False),
        }
        dilated = {**options, "dilation_rate": dilation}
        kinds = [
            lambda: getattr(layers, f"Conv{d}D")(
                filters, size, groups=groups, **dilated
            ),
            lambda: getattr(layers, f"Conv{d}DTranspose")(
                filters, size, **options
            ),
        ]
        if d < 3:
            kinds += [
                lambda: getattr(layers, f"SeparableConv{d}D")(
                    filters, size, **dilated
                ),
                lambda: getattr(layers, f"DepthwiseConv{d}D")(
                    size, depth_multiplier=2, **dilated
                ),
            ]
        if d == 2:
            kinds += [
                lambda: MaxoutConv2D(
                    filters, size, 2, groups=groups, **dilated
                ),
                lambda: LocallyConnected2D(filters, size, **options),
            ]
        return self.one(*kinds)()(x)

    def branches(self, x):
        axis = 1 if self.first else -1
        y = self.dropout(x)
        if self.one(True, False):
            y = layers.Activation("relu")(y)
        kinds = [
            lambda: layers.Add()([x, y]),
            lambda: layers.Subtract()([x, y]),
            lambda: layers.Average()([y, x, y]),
            lambda: layers.Concatenate(axis)([x, y]),
        ]
        return self.one(*kinds)()


def with_random_weights(model, seed):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.uniform(-1, 1, size=weight.shape)
        if "variance" in weight.path or "gamma" in weight.path:
            value = np.abs(value) + 0.5
        elif "kernel" in weight.path:
            # Activities stay of the order of 1, layer after layer.
            value *= math.sqrt(3 / max(1, math.prod(weight.shape[:-1])))
        weight.assign(value)
    return model


def relative_error(found, expected):
    found, expected = (
        ops.convert_to_numpy(found),
        ops.convert_to_numpy(expected),
    )
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3)


def drawn(count):
    """Runs a test on `count` architectures, the same ones each time."""

    def decorate(test):
        settings = hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        return settings(hypothesis.given(st.data(), st.integers(0, 1000))(test))

    return decorate


def test_random_architectures(record_property, thorough):
    errors, kinds, count = [], set(), ARCHITECTURES[thorough]

    @drawn(count)
    def folded_is_the_same(data, seed):
        model = Architecture(data.draw).model
        with_random_weights(model, seed)
        x = np.random.default_rng(seed).normal(size=(3, *model.input_shape[1:]))
        folded = fold(model)
        names = [layer.name for layer in folded.layers]
        dropped = (layers.Dropout, ShiftedDropout)
        assert not [x for x in folded.layers if isinstance(x, dropped)]
        assert len(set(names)) == len(names)
        error = relative_error(folded(x), model(x))
        assert error < 1e-5, model.summary()
        errors.append(error)
        kinds.update(type(layer).__name__ for layer in model.layers)

    folded_is_the_same()
    keras.backend.clear_session(free_memory=True)
    assert len(errors) >= count
    record_property(
        "folded",
        f"{len(errors)} random architectures of {len(kinds)} kinds of layers, "
        f"worst relative error {max(errors):.1e} ({keras.backend.backend()})",
    )


def arriving(model, layer, x):
    """The mean activity at a dropout layer, in the shape of its shift.

    It is computed in double precision.
    """
    part = keras.Model(model.inputs, layer.input)
    arrives = ops.convert_to_numpy(part(x)).astype("float64")
    shared = [i for i, n in enumerate(layer.shift.shape, 1) if n == 1]
    return arrives.mean(axis=(0, *shared), keepdims=True)[0]


def test_random_architectures_calibrated(record_property, thorough):
    errors, calibrated, left = [], [], []
    count = CALIBRATED[thorough]

    @drawn(count)
    def calibrated_is_the_same(data, seed):
        model = Architecture(data.draw).model
        # The bias of this classifier absorbs the constants that reach the
        # output.
        outputs = layers.Dense(3)(layers.Flatten()(model.output))
        model = keras.Model(model.inputs, outputs)
        with_random_weights(model, seed)
        x = np.random.default_rng(seed).normal(size=(3, *model.input_shape[1:]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = calibrate(model, x, keep_predictions=True)
        except ValueError as error:
            assert "Setting any shift would" in str(error)
            return
        error = relative_error(new(x), model(x))
        assert error < 1e-5, model.summary()
        errors.append(error)
        for old, layer in zip(model.layers, new.layers, strict=True):
            if not isinstance(layer, ShiftedDropout):
                continue
            shift = ops.convert_to_numpy(layer.shift)
            if np.array_equal(shift, ops.convert_to_numpy(old.shift)):
                left.append(layer)
                continue
            mean = arriving(new, layer, x)
            difference = np.abs(shift + mean).max()
            assert difference < 1e-5 * max(1, np.abs(mean).max())
            calibrated.append(layer)

    calibrated_is_the_same()
    keras.backend.clear_session(free_memory=True)
    # The test would show nothing if it set no shift, or every shift. Few
    # architectures may happen to leave none.
    assert len(calibrated) > count / 2
    assert not thorough or len(left) > count / 10
    record_property(
        "calibrated",
        f"{len(errors)} of {count} random architectures, "
        f"{len(calibrated)} shifts set and {len(left)} left, worst relative "
        f"error {max(errors):.1e} ({keras.backend.backend()})",
    )
