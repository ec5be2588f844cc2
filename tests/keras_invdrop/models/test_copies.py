import copy
import pickle
import threading
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras_invdrop.applications.optimizers import RampedSGD
from small_models import random

from keras_invdrop import InvariantDropout
from keras_invdrop import MaxoutDense
from keras_invdrop import MonteCarlo
from keras_invdrop import calibrate
from keras_invdrop import fold
from keras_invdrop import invariantize
from keras_invdrop.models._copies import Copies

HAS_KERAS_HUB = keras.__version__ >= "3.15"  # which KerasHub needs
if HAS_KERAS_HUB:
    import keras_hub

of_keras_hub = pytest.mark.skipif(
    not HAS_KERAS_HUB, reason="KerasHub needs a newer Keras"
)


def varied(model, seed=0):
    """Gives every floating-point weight a different value."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype):
            value = rng.uniform(-0.5, 0.5, size=weight.shape)
            weight.assign(value.astype(weight.dtype))
    return model


def predicted(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def predicted_by(layer, x):
    return ops.convert_to_numpy(layer(x))


def attention_model(change):
    """A model whose attention has been changed by `change` after training."""
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.Dropout(0.5)(attention(inputs, inputs))
    model = varied(keras.Model(inputs, layers.Dense(3)(x)))
    change(attention)
    return model


def enable_lora(attention):
    attention.query_dense.enable_lora(2)
    varied(attention, seed=1)


def quantize(attention):
    for part in attention._flatten_layers():
        if type(part) in (layers.Dense, layers.EinsumDense):
            part.quantize("int8")


@pytest.mark.parametrize("change", [enable_lora, quantize])
def test_weights_that_a_config_does_not_know_are_carried_over(change):
    model = attention_model(change)
    x = random(4, 5, 8)
    expected = predicted(model, x)
    new = invariantize(model)
    np.testing.assert_array_equal(predicted(new, x), expected)
    np.testing.assert_allclose(predicted(fold(new), x), expected, atol=1e-6)
    sampler = MonteCarlo(model, samples=1)._sampler.model
    old_weights = model.get_layer("attention").get_weights()
    new_weights = sampler.get_layer("attention").get_weights()
    assert len(old_weights) > 8
    for old, copied in zip(old_weights, new_weights, strict=True):
        np.testing.assert_array_equal(old, copied)


def test_low_rank_updates_of_a_maxout_layer():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dropout(0.5), MaxoutDense(4, 2)]
    )
    varied(model)
    model.layers[1].dense.enable_lora(2)
    varied(model.layers[1], seed=1)
    x = random(5, 6)
    np.testing.assert_array_equal(
        predicted(invariantize(model), x), predicted(model, x)
    )


def bert():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=4,
    )
    return varied(keras_hub.models.BertTextClassifier(backbone, num_classes=3))


def bert_with_low_rank_updates():
    model = bert()
    model.backbone.enable_lora(2)
    return varied(model, seed=1)


def quantized_bert():
    model = bert()
    model.quantize("int8")
    return model


def vision_transformer():
    """A model with layers that their configs do not reproduce."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    return varied(keras_hub.models.ViTImageClassifier(backbone, num_classes=3))


@of_keras_hub
@pytest.mark.filterwarnings("ignore:Dropout that is not converted")
@pytest.mark.parametrize(
    "make",
    [
        bert_with_low_rank_updates,
        pytest.param(quantized_bert, marks=pytest.mark.thorough),
        vision_transformer,
    ],
)
def test_models_of_keras_hub(make):
    model = make()
    x = random(2, 8, 8, 3)
    if isinstance(model.input, dict):
        x = {name: np.ones((2, 4), "int32") for name in model.input}
    expected = predicted(model, x)
    assert expected.std() > 0
    new = invariantize(model)
    assert len(new.weights) > len(model.weights)
    np.testing.assert_array_equal(predicted(new, x), expected)
    betas = [
        id(layer.beta)
        for layer in new._flatten_layers()
        if isinstance(layer, InvariantDropout)
    ]
    flags = [w.trainable for w in new.weights if id(w) not in betas]
    assert flags == [w.trainable for w in model.weights]


def test_adapted_statistics():
    normalization = layers.Normalization()
    normalization.adapt(5 + 3 * random(100, 4))
    model = keras.Sequential(
        [keras.Input((4,)), normalization, layers.Dropout(0.5), layers.Dense(2)]
    )
    x = 5 + 3 * random(10, 4)
    expected = predicted(model, x)
    assert np.abs(expected).max() < 20  # normalized: without it, some hundred
    np.testing.assert_array_equal(predicted(invariantize(model), x), expected)
    np.testing.assert_array_equal(predicted(fold(model), x), expected)
    # ... and the copy can be adapted again, apart from the model.
    new = invariantize(model)
    new.layers[0].adapt(random(100, 4))
    np.testing.assert_array_equal(predicted(model, x), expected)


def test_statistics_of_a_layer_that_only_its_config_can_copy():
    class Reading(layers.Normalization):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.file = open(__file__)  # noqa: SIM115

    normalization = Reading()
    normalization.adapt(5 + 3 * random(100, 4))
    copied = Copies().of(normalization)
    x = random(10, 4)
    np.testing.assert_array_equal(
        predicted_by(copied, x), predicted_by(normalization, x)
    )
    for layer in (copied, normalization):
        layer.file.close()


def test_a_vocabulary():
    lookup = layers.StringLookup(output_mode="one_hot", name="lookup")
    lookup.adapt(np.array(["a", "b", "b", "c"]))
    copied = Copies().of(lookup)
    assert copied is not lookup
    assert copied.get_vocabulary() == lookup.get_vocabulary()
    words = np.array(["c", "a", "z"])
    np.testing.assert_array_equal(
        ops.convert_to_numpy(copied(words)), ops.convert_to_numpy(lookup(words))
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="strings are tensors on TensorFlow only",
)
def test_a_vocabulary_in_a_model():
    vectorization = layers.TextVectorization(output_mode="multi_hot")
    vectorization.adapt(["a b c", "b c", "c d"])
    inputs = keras.Input((), dtype="string")
    x = layers.Dropout(0.5)(vectorization(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    text = ops.convert_to_tensor(["a d", "c x"])
    expected = predicted(model, text)
    np.testing.assert_array_equal(
        predicted(invariantize(model), text), expected
    )
    np.testing.assert_array_equal(predicted(fold(model), text), expected)


def test_what_was_frozen_inside_a_layer_stays_frozen():
    model = attention_model(enable_lora)
    dense = model.layers[-1]
    dense.bias.trainable = False
    new = invariantize(model)
    before = [
        (w.path, w.trainable) for layer in model.layers for w in layer.weights
    ]
    after = [
        (w.path, w.trainable)
        for layer in new.layers
        for w in layer.weights
        if w.name != "beta"
    ]
    assert after == before
    assert sum(not trainable for _, trainable in after) == 2
    frozen = ops.convert_to_numpy(new.layers[-1].bias).copy()
    kernel = ops.convert_to_numpy(new.layers[-1].kernel).copy()
    new.compile("sgd", "mse")
    new.fit(random(8, 5, 8), random(8, 5, 3), verbose=0)
    np.testing.assert_array_equal(new.layers[-1].bias, frozen)
    assert (
        np.abs(ops.convert_to_numpy(new.layers[-1].kernel) - kernel).max() > 0
    )


class Tied(layers.Layer):
    """Layers, a variable and functions that refer to each other."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(3, name="first")
        self.parts = {"again": self.first, "others": [layers.Dense(3)]}
        self.shift = self.add_weight(shape=(3,), name="shift")
        self.function = lambda x: self.first(x) + self.shift
        self.method = self.first.call
        self.lock = threading.Lock()
        self.settings = {"scale": np.array([2.0], "float32")}

    def build(self, input_shape):
        for part in (self.first, *self.parts["others"]):
            part.build(input_shape)
        self.built = True

    def call(self, inputs):
        x = self.function(inputs) + self.method(inputs)
        scale = ops.convert_to_tensor(self.settings["scale"])
        return x * scale + self.parts["others"][0](inputs)


def test_what_a_layer_refers_to_is_copied_with_it():
    layer = Tied(name="tied")
    x = random(4, 2)
    layer(x)
    varied(layer)
    expected = ops.convert_to_numpy(layer(x))
    new = Copies().of(layer)
    np.testing.assert_array_equal(ops.convert_to_numpy(new(x)), expected)
    assert new.first is not layer.first
    assert new.parts["again"] is new.first
    assert len(new.weights) == len(layer.weights) == 5
    assert not {id(w) for w in new.weights} & {id(w) for w in layer.weights}
    # The function and the method are those of the copy.
    for weight in new.weights:
        weight.assign(np.zeros(weight.shape))
    new.settings["scale"][0] = 5
    assert np.abs(ops.convert_to_numpy(new(x))).max() == 0
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), expected)


def test_tracked_collections_go_on_tracking():
    layer = Tied()
    new = Copies().of(layer)
    assert new._layers is not layer._layers
    new._tracker.unlock()
    new.parts["others"].append(layers.Dense(1))
    assert len(new._flatten_layers(include_self=False)) == 3
    assert len(layer._flatten_layers(include_self=False)) == 2
    # Tracked objects are not tracked twice.
    new.another = new.first
    assert len(new._layers) == 3


def test_one_copy_of_what_several_layers_share():
    shared = layers.Dense(3, name="shared")

    class Using(layers.Layer):
        def __init__(self, dense, options, **kwargs):
            super().__init__(**kwargs)
            self.dense = dense
            self.options = options

        def call(self, inputs):
            return self.dense(inputs)

    class Options:
        pass

    options = Options()
    inputs = keras.Input((3,))
    x = Using(shared, options)(layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, Using(shared, options)(x))
    new = invariantize(model)
    first, second = new.layers[-2:]
    assert first.dense is second.dense is not shared
    assert first.options is second.options is not options
    assert len(new.trainable_weights) == 3


def test_a_layer_that_can_be_copied_in_no_way():
    class Reading(layers.Layer):
        def __init__(self, path, **kwargs):
            super().__init__(**kwargs)
            self.file = open(path)  # noqa: SIM115

        def call(self, inputs):
            return inputs

        def get_config(self):
            return super().get_config()

    layer = Reading(__file__, name="reading")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(layers.Dropout(0.5)(inputs)))
    with pytest.raises(
        ValueError,
        match=r"(?s)Layer 'reading', a `Reading`, cannot be copied"
        r".*TextIOWrapper.*nor by its config.*path",
    ):
        invariantize(model)
    layer.file.close()


def test_a_model_inside_a_layer():
    class Holding(layers.Layer):
        def __init__(self, model, **kwargs):
            super().__init__(**kwargs)
            self.model = model

        def call(self, inputs):
            return self.model(inputs)

    class Named(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((3,))
            super().__init__(inputs, layers.Dense(units)(inputs))
            self.units = units

        def doubled(self, x):
            return 2 * self(x)

    held = Named(4)
    held.compile("sgd", "mse")
    inputs = keras.Input((3,))
    x = Holding(held)(layers.Dropout(0.5)(inputs))
    model = varied(keras.Model(inputs, x))
    new = invariantize(model)
    copied = new.layers[-1].model
    assert type(copied) is Named and copied is not held and copied.units == 4
    assert not copied.compiled and held.compiled
    x = random(2, 3)
    np.testing.assert_array_equal(predicted(new, x), predicted(model, x))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(copied.doubled(x)), 2 * predicted(model, x)
    )
    held.layers[-1].kernel.assign(np.zeros((3, 4)))
    assert np.abs(predicted(new, x)).max() > 0


def compiled_model(**kwargs):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dropout(0.5), layers.Dense(2)]
    )
    kwargs = {"optimizer": "sgd", **kwargs}
    model.compile(**kwargs)
    return varied(model)


class Margin(keras.losses.Loss):
    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def call(self, y_true, y_pred):
        return ops.mean(ops.relu(ops.abs(y_true - y_pred) - self.margin), -1)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.Huber(delta=20.0),
        keras.losses.CosineSimilarity(axis=0),
        Margin(0.25),
    ],
)
@pytest.mark.parametrize("function", [invariantize, fold])
def test_the_loss_is_the_same(loss, function):
    model = compiled_model(loss=loss)
    x, y = random(8, 6), 30 * random(8, 2)
    new = function(model)
    assert new.loss is loss
    np.testing.assert_allclose(
        new.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), 1e-6
    )
    # Prediction needs no compiled model.
    MonteCarlo(model, samples=2).predict(x)


def test_a_metric_keeps_its_arguments_and_counts_apart():
    class Within(keras.metrics.Metric):
        def __init__(self, limit, name="within"):
            super().__init__(name=name)
            self.limit = limit
            self.total = self.add_weight((), "zeros", name="total")

        def update_state(self, y_true, y_pred, sample_weight=None):
            near = ops.abs(y_true - y_pred) < self.limit
            self.total.assign_add(ops.sum(ops.cast(near, "float32")))

        def result(self):
            return self.total + 0.0

    model = compiled_model(loss="mse", metrics=[Within(0.5)])
    x, y = random(8, 6), random(8, 2)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)["within"]
    assert 0 < expected < 16
    new = invariantize(model)
    for _ in range(2):
        found = new.evaluate(x, y, verbose=0, return_dict=True)["within"]
        assert found == expected
    assert model.metrics[-1].metrics[0].result() == expected


def test_weights_that_do_not_decay():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    model = compiled_model(optimizer=optimizer, loss="mse")
    kernel = model.layers[-1].kernel
    optimizer.exclude_from_weight_decay([kernel], ["bias", "beta"])
    new = invariantize(model)
    weights = {w.name: w for w in new.trainable_weights}
    decays = {k: new.optimizer._use_weight_decay(w) for k, w in weights.items()}
    assert decays == {"kernel": False, "bias": False, "beta": False}
    plain = invariantize(compiled_model(optimizer="adamw", loss="mse"))
    assert all(map(plain.optimizer._use_weight_decay, plain.trainable_weights))


def test_an_optimizer_that_cannot_be_made_again_is_said():
    class Scheduled(keras.optimizers.SGD):
        def __init__(self, plan):
            super().__init__(learning_rate=plan[0])

    model = compiled_model(optimizer=Scheduled([0.1]), loss="mse")
    with pytest.warns(UserWarning, match="is not compiled.*call its `compile`"):
        new = invariantize(model)
    assert not new.compiled


def test_a_folded_network_needs_no_optimizer_of_the_model():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            InvariantDropout(0.5, name="drop"),
            layers.Dense(2, name="dense"),
        ]
    )
    model.compile(RampedSGD(learning_rate_factors={"drop": 10.0}), "mse")
    x, y = random(8, 6), random(8, 2)
    model.fit(x, y, verbose=0)
    folded = fold(model)
    assert type(folded.optimizer).__module__.startswith("keras.")
    folded.fit(x, y, verbose=0)
    # Copies for training keep it.
    assert calibrate(
        model, x, keep_predictions=True
    ).optimizer.learning_rate_factors == {"drop": 10}


class OwnStep(keras.Sequential):
    def train_step(self, *args, **kwargs):
        raise RuntimeError("the step of its own")


def test_a_subclass_that_is_made_of_layers_keeps_its_class():
    model = OwnStep([keras.Input((6,)), layers.Dropout(0.5), layers.Dense(2)])
    model.compile("sgd", "mse")
    model.note = "kept"
    new = invariantize(model)
    assert type(new) is OwnStep and new.note == "kept"
    with pytest.raises(RuntimeError, match="the step of its own"):
        new.fit(random(8, 6), random(8, 2), verbose=0)


def test_a_subclass_with_a_constructor_of_its_own_keeps_its_class():
    class Scaled(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((6,))
            x = layers.Dropout(0.5)(InvariantDropout(0.5)(inputs))
            super().__init__(inputs, layers.Dense(units)(x))
            self.units = units

        def train_step(self, *args, **kwargs):
            raise RuntimeError("the step of its own")

    model = Scaled(2)
    model.compile("sgd", "mse")
    for function in (
        invariantize,
        partial(calibrate, data=random(8, 6), keep_predictions=False),
    ):
        new = function(model)
        assert isinstance(new, Scaled) and new.units == 2
        with pytest.raises(RuntimeError, match="the step of its own"):
            new.fit(random(8, 6), random(8, 2), verbose=0)
    MonteCarlo(model, samples=2).predict(random(3, 6))
    with pytest.warns(UserWarning, match="not compiled.*own `train_step`"):
        assert predicted(fold(model), random(3, 6)).shape == (3, 2)


def test_a_compile_of_its_own_is_not_passed_over_in_silence():
    class Weighted(keras.Model):
        def compile(self, optimizer, gamma):
            super().compile(optimizer, "mse")
            self.gamma = gamma

    inputs = keras.Input((6,))
    model = Weighted(inputs, layers.Dense(2)(layers.Dropout(0.5)(inputs)))
    model.compile("sgd", gamma=3.0)
    with pytest.warns(UserWarning, match="is not compiled.*own `compile`"):
        new = invariantize(model)
    assert type(new) is Weighted and not new.compiled
    new.compile("sgd", gamma=model.gamma)
    new.fit(random(8, 6), random(8, 2), verbose=0)


def test_monte_carlo_is_copied_and_pickled():
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            layers.Dropout(0.5, noise_shape=(1, None, 3)),
            InvariantDropout(0.5, beta_initializer="ones"),
            layers.Dense(2),
        ]
    )
    monte_carlo = MonteCarlo(model, samples=10, seed=1)
    x = random(4, 6, 3)
    expected = monte_carlo.predict(x)
    for other in (
        copy.deepcopy(monte_carlo),
        copy.copy(monte_carlo),
        pickle.loads(pickle.dumps(monte_carlo)),
    ):
        found = other.predict(x)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(
            found.standard_deviation, expected.standard_deviation, rtol=1e-5
        )
