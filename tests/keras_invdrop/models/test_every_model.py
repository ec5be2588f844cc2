"""What each function does with models that people use: a table of the docs.

The models are small and have random weights.
"""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree
from small_models import Cell
from small_models import Drawing
from small_models import dense_net
from small_models import efficient_net

from keras_invdrop import InvariantDropout
from keras_invdrop import MonteCarlo
from keras_invdrop import calibrate
from keras_invdrop import fold
from keras_invdrop import invariantize
from keras_invdrop import variance_report

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
WORDS = 12


def tokens(**others):
    """Two sequences of six tokens, with the other inputs of a model."""
    ones = np.ones((2, 6), "int32")
    found = {"token_ids": np.arange(WORDS).reshape((2, 6))}
    return {**found, "padding_mask": ones, **others}


def images(size=16):
    rng = np.random.default_rng(0)
    return rng.random((2, size, size, 3), dtype="float32")


SIZES = {
    "vocabulary_size": WORDS,
    "num_layers": 1,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "dropout": 0.2,
}


def _encoder(name, classifier, **segments):
    def make():
        from keras_hub import models

        backbone = getattr(models, f"{name}Backbone")(
            num_heads=2, max_sequence_length=6, **SIZES
        )
        model = getattr(models, classifier)(backbone, num_classes=3)
        return model, tokens(**segments)

    return make


def _decoder(name, **sizes):
    def make():
        from keras_hub import models

        model = getattr(models, f"{name}Backbone")(**SIZES, **sizes)
        return model, tokens()

    return make


def _both(name, **sizes):
    """An encoder with a decoder."""

    def make():
        from keras_hub import models

        backbone = getattr(models, f"{name}Backbone")
        model = backbone(num_heads=2, **SIZES, **sizes)
        words = tokens()
        x = {
            f"{part}_{key}": value
            for part in ("encoder", "decoder")
            for key, value in words.items()
        }
        if name == "Whisper":
            rng = np.random.default_rng(0)
            features = rng.random((2, 12, 4), dtype="float32")
            x = {"encoder_features": features} | {
                key: value
                for key, value in x.items()
                if key.startswith("decoder")
            }
        return model, x

    return make


def _vision(name, **sizes):
    def make():
        from keras_hub import models

        backbone = getattr(models, f"{name}Backbone")(
            image_shape=(16, 16, 3), **sizes
        )
        classifier = getattr(models, f"{name}ImageClassifier")
        return classifier(backbone, num_classes=3), images()

    return make


HEADS = {"num_query_heads": 2, "num_key_value_heads": 1}
PATCHES = {
    "patch_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "dropout_rate": 0.2,
    "attention_dropout": 0.2,
}
KERAS_HUB = {
    "BERT": _encoder(
        "Bert", "BertTextClassifier", segment_ids=np.zeros((2, 6), "int32")
    ),
    "RoBERTa": _encoder("Roberta", "RobertaTextClassifier"),
    "DistilBERT": _encoder("DistilBert", "DistilBertTextClassifier"),
    "DeBERTa": _encoder("DebertaV3", "DebertaV3TextClassifier"),
    "ViT": _vision("ViT", mlp_dim=16, **PATCHES),
    "DeiT": _vision("DeiT", intermediate_dim=16, **PATCHES),
    "Swin": _vision(
        "SwinTransformer",
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=2,
        patch_size=4,
        dropout_rate=0.2,
        attention_dropout=0.2,
    ),
    "MiT": _vision(
        "MiT",
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.2,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
    ),
    "Gemma": _decoder("Gemma", head_dim=4, **HEADS),
    "Llama": _decoder("Llama", **HEADS),
    "Qwen3": _decoder("Qwen3", head_dim=4, **HEADS),
    "GPT-2": _decoder("GPT2", num_heads=2, max_sequence_length=6),
    "Whisper": _both(
        "Whisper",
        num_mels=4,
        max_encoder_sequence_length=12,
        max_decoder_sequence_length=6,
    ),
    "T5": _both("T5"),
    "BART": _both("Bart", max_sequence_length=6),
}


def normalised_once(model):
    """A convolutional network whose batch normalisation has seen a batch.

    At the end of these networks each of two images has one pixel. Untrained
    batch normalisation would compute its statistics from two numbers, which
    amplifies rounding errors from layer to layer.
    """
    x = images(32)
    model(x, training=True)
    return model, x


def lstm():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(WORDS, 8),
            layers.Dropout(0.2),
            layers.LSTM(8, dropout=0.2, recurrent_dropout=0.2),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return model, tokens()["token_ids"]


def time_distributed():
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.TimeDistributed(layers.Dense(8, activation="relu")),
            layers.TimeDistributed(layers.Dropout(0.5)),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    return model, rng.random((2, 6, 4), dtype="float32")


registered = keras.saving.register_keras_serializable("test_every_model")


@registered
class TransformerBlock(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.2)
        self.drop = layers.Dropout(0.2)
        self.hidden = layers.Dense(16, activation="relu")
        self.hidden_drop = layers.Dropout(0.2)
        self.top = layers.Dense(4)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.hidden.build(input_shape)
        self.top.build((*input_shape[:-1], 16))

    def call(self, x):
        x = x + self.drop(self.attention(x, x))
        return x + self.top(self.hidden_drop(self.hidden(x)))


@registered
class ResidualBlock(layers.Layer):
    """Holds its layers in a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = {
            "conv": layers.Conv2D(3, 3, padding="same"),
            "drop": layers.SpatialDropout2D(0.3, "channels_last"),
        }

    def build(self, input_shape):
        self.parts["conv"].build(input_shape)

    def call(self, x):
        return x + self.parts["drop"](self.parts["conv"](x))


@registered
class HalfDropout(layers.Dropout):
    def call(self, inputs, training=False):
        return super().call(inputs, training=training) / 2


@registered
def doubled(x):
    return 2 * x


def classifier(*model_layers, shape=(6, 4)):
    """A function that makes a model, and two examples of its input."""

    def make():
        model = keras.Sequential(
            [
                keras.Input(shape),
                *(type(x).from_config(x.get_config()) for x in model_layers),
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        )
        rng = np.random.default_rng(0)
        return model, rng.random((2, *shape), dtype="float32")

    return make


def two_shapes():
    a, b = keras.Input((4,)), keras.Input((6,))
    drop = layers.Dropout(0.5)
    x = layers.Concatenate()([drop(a), drop(b)])
    model = keras.Model([a, b], layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(0)
    return model, [rng.random((2, n), dtype="float32") for n in (4, 6)]


@registered
class Subclass(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(8, activation="relu")
        self.drop = layers.Dropout(0.5)
        self.top = layers.Dense(3, activation="softmax")

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.top.build((None, 8))
        self.built = True

    def call(self, x, training=None):
        return self.top(self.drop(self.hidden(x), training=training))


def subclass():
    rng = np.random.default_rng(0)
    x = rng.random((2, 4), dtype="float32")
    model = Subclass()
    model(x)
    return model, x


def convolutions():
    """With batch normalisation."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SpatialDropout2D(0.2),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return model, images(8)


MODELS = {
    **KERAS_HUB,
    "DenseNet": lambda: normalised_once(dense_net()),
    "EfficientNet": lambda: normalised_once(efficient_net()),
    "convolutions, batch normalisation": convolutions,
    "LSTM with `dropout=`": lstm,
    "GRU with `dropout=`": classifier(
        layers.Dropout(0.2), layers.GRU(8, dropout=0.2)
    ),
    "ConvLSTM with `dropout=`": classifier(
        layers.ConvLSTM1D(2, 3, dropout=0.2),
        layers.Dropout(0.2),
        shape=(3, 6, 2),
    ),
    "custom recurrent cell": classifier(layers.RNN(Cell(8), unroll=True)),
    "`TimeDistributed(Dropout)`": time_distributed,
    "own transformer block": classifier(TransformerBlock()),
    "own residual block": classifier(ResidualBlock(), shape=(8, 8, 3)),
    "`Lambda` layer": classifier(layers.Lambda(doubled), layers.Dropout(0.5)),
    "`keras.random.dropout` in a `call`": classifier(
        layers.Dropout(0.2), layers.Dense(4, activation="relu"), Drawing()
    ),
    "subclass of `Dropout` with its own `call`": classifier(
        layers.Dropout(0.2),
        layers.Dense(4, activation="relu"),
        HalfDropout(0.5),
    ),
    "one dropout layer on two shapes": two_shapes,
    "subclassed `Model`": subclass,
}

# These take from ten seconds to a minute each.
LARGE = {*KERAS_HUB, "DenseNet", "EfficientNet"}

# These are slow to trace on TensorFlow.
RECURRENT = {
    "LSTM with `dropout=`",
    "GRU with `dropout=`",
    "ConvLSTM with `dropout=`",
    "custom recurrent cell",
    "`TimeDistributed(Dropout)`",
}

# On one backend alone: the other large models are made of the same parts.
ON_JAX = LARGE - {"BERT", "ViT", "GPT-2"}

pytestmark = pytest.mark.filterwarnings("ignore")


def predicted(model, x):
    return [np.asarray(y) for y in tree.flatten(model.predict(x, verbose=0))]


def spread_in_training(model, x, samples):
    """The mean standard deviation of each output in training mode."""
    rows = tree.map_structure(lambda a: np.repeat(a, samples, axis=0), x)
    return [
        ops.convert_to_numpy(y)
        .reshape((-1, samples, *y.shape[1:]))
        .std(axis=1)
        .mean()
        for y in tree.flatten(model(rows, training=True))
    ]


def converted(model, x):
    """The table cell of `invariantize`, the model, and what is left out."""
    new, report = invariantize(
        model, attention=True, inputs=x, return_report=True
    )
    places = [row for row in report if row.rate != 0]
    done = [row for row in places if row.beta is not None]
    left = {row.path: row.reason for row in places if row.beta is None}
    assert all(left.values())
    for one, other in zip(predicted(model, x), predicted(new, x), strict=True):
        np.testing.assert_array_equal(one, other)
    cell = f"{len(done)} of {len(places)}"
    return "; ".join([cell, *sorted({*left.values()})]), new, left


def trained(model, x):
    """Whether one `fit` changes each beta."""

    def betas():
        return [
            ops.convert_to_numpy(layer.beta)
            for layer in model._flatten_layers()
            if isinstance(layer, InvariantDropout)
        ]

    rng = np.random.default_rng(0)
    y = tree.map_structure(
        lambda each: rng.random(each.shape, dtype="float32"),
        model.predict(x, verbose=0),
    )
    model.compile("adam", "mse", metrics=[])  # KerasHub would add accuracy
    before = betas()
    model.fit(x, y, verbose=0)
    return all(
        np.any(one != other) for one, other in zip(before, betas(), strict=True)
    )


def cells(name, tmp_path):
    """The table row of a model: the outcome of each function."""
    keras.utils.set_random_seed(0)
    model, x = MODELS[name]()
    cell, new, left = converted(model, x)
    yield cell

    set_ = calibrate(new, x, keep_predictions=False)
    report = variance_report(set_, x)
    # No variance is left to remove at any converted place.
    for row in report:
        if row.layer not in left:
            assert row.at_present - row.at_best <= 1e-3 * row.at_zero
    yield "works"

    # The spread of the samples is that of training.
    samples, rtol = (200, 0.2) if name in LARGE else (4000, 0.05)
    spread = [
        part.standard_deviation.mean()
        for part in tree.flatten(
            MonteCarlo(new, samples, seed=0).predict(x, batch_size=1024)
        )
    ]
    if not any("moving_mean" in weight.path for weight in new.weights):
        expected = spread_in_training(new, x, samples)
        np.testing.assert_allclose(spread, expected, rtol=rtol)
    assert min(spread) > 0
    yield "works"

    path = tmp_path / "new.keras"
    set_.save(path)
    loaded = keras.models.load_model(path)
    expected = predicted(set_, x)
    for one, other in zip(predicted(loaded, x), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    yield "works"

    try:
        folded = fold(set_)
    except ValueError as error:
        assert "Expected a functional or sequential model" in str(error)
        yield "needs a graph of layers"
    else:
        for one, other in zip(predicted(folded, x), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        yield "works"

    assert trained(new, x)
    yield "works"


def marks(name):
    if name in LARGE:
        yield pytest.mark.thorough
    elif name in RECURRENT:
        yield pytest.mark.thorough_elsewhere
    if name in ON_JAX:
        yield pytest.mark.one_backend("jax")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[*marks(name)]) for name in MODELS]
)
def test_the_table_says_what_happens(name, tmp_path):
    if name in KERAS_HUB:
        pytest.importorskip("keras_hub")
    line = " | ".join([name, *cells(name, tmp_path)])
    assert f"| {line} |" in PAGE.read_text().splitlines()


@pytest.mark.one_backend
def test_the_table_has_every_model():
    page = PAGE.read_text()
    rows = re.findall(r"^\| (.+?) \| \d", page, re.MULTILINE)
    assert rows == list(MODELS)
    cells = re.findall(r"\| (\d+) of (\d+)[;|  ]", page)
    done, places = (
        sum(map(int, column)) for column in zip(*cells, strict=True)
    )
    of_hub = [*zip(*cells[: len(KERAS_HUB)], strict=True)]
    hub_done, hub_places = (sum(map(int, column)) for column in of_hub)
    assert (
        f"{done} of the {places} places are converted, {hub_done} of "
        f"{hub_places} in KerasHub's models"
    ) in " ".join(page.split())
