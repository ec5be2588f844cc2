import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop.models.dropout_sites import all_activities
from keras_invdrop.models.dropout_sites import dropout_sites


def names(sites):
    return [site.layer.name for site in sites]


def next_names(site):
    return [
        ([layer.name for layer in between], layer.name)
        for between, layer in site.next_layers
    ]


def test_sequential():
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.Dropout(0.2, name="a"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, name="dense"),
            InvariantDropout(0.5, name="b"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.5, name="c"),
        ]
    )
    sites = dropout_sites(model)
    assert names(sites) == ["a", "b", "c"]
    assert next_names(sites[0]) == [(["flatten"], "dense")]
    assert next_names(sites[1]) == [([], "relu")]
    assert next_names(sites[2]) == []


def test_activities_are_those_of_inference():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dropout(0.9),
            layers.Dense(4),
            InvariantDropout(0.9, beta_initializer="ones"),
            layers.Dense(2),
            layers.Dropout(0.9),
        ]
    )
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    first, second, third = dropout_sites(model)
    np.testing.assert_array_equal(first.activities(x), x)
    hidden = ops.convert_to_numpy(model.layers[1](x))
    np.testing.assert_allclose(second.activities(x), hidden, rtol=1e-5)
    outputs = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(third.activities(x), outputs, rtol=1e-5)


def test_branches_shared_layers_and_several_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    drop = layers.Dropout(0.5, name="shared")
    dropped_a, dropped_b = drop(a), drop(b)
    left = layers.Dense(2, name="left")(dropped_a)
    right = layers.Dense(2, name="right")(dropped_a)
    other = layers.Dense(2, name="other")(dropped_b)
    model = keras.Model({"a": a, "b": b}, [left, right, other])
    sites = dropout_sites(model)
    assert names(sites) == ["shared", "shared"]
    found = sorted(sorted(n for _, n in next_names(site)) for site in sites)
    assert found == [["left", "right"], ["other"]]
    x = {"a": np.ones((2, 3)), "b": np.zeros((2, 3))}
    means = {
        next_names(site)[0][1]: float(np.mean(site.activities(x)))
        for site in sites
    }
    assert means["other"] == 0
    assert {means.get("left"), means.get("right")} == {1.0, None}


def test_nested_models():
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, name="inner_dense"),
            layers.Dropout(0.5, name="inner_drop"),
        ],
        name="inner",
    )
    inputs = keras.Input((4,))
    x = layers.Dropout(0.2, name="outer_drop")(inputs)
    outputs = layers.Dense(2, name="outer_dense")(inner(x))
    model = keras.Model(inputs, outputs)
    sites = {site.layer.name: site for site in dropout_sites(model)}
    assert set(sites) == {"outer_drop", "inner_drop"}
    # From the outer model into the nested one, and out of it.
    assert next_names(sites["outer_drop"]) == [([], "inner_dense")]
    assert next_names(sites["inner_drop"]) == [([], "outer_dense")]
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(
        sites["inner_drop"].activities(x),
        ops.convert_to_numpy(inner(x)),
        rtol=1e-5,
    )


def test_a_nested_model_with_two_outputs():
    inputs = keras.Input((4,))
    dropped = layers.Dropout(0.5, name="drop")(inputs)
    inner = keras.Model(inputs, [inputs, dropped])
    inputs = keras.Input((4,))
    plain, dropped = inner(inputs)
    a = layers.Dense(2, name="after_plain")(plain)
    b = layers.Dense(2, name="after_drop")(dropped)
    (site,) = dropout_sites(keras.Model(inputs, [a, b]))
    assert next_names(site) == [([], "after_drop")]


def test_a_layer_that_takes_the_activities_twice_counts_once():
    inputs = keras.Input((4, 6))
    x = layers.Dropout(0.5)(inputs, training=False)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    (site,) = dropout_sites(keras.Model(inputs, x))
    assert next_names(site) == [([], "attention")]


def test_inputs_given_by_name():
    inputs = keras.Input((4,))
    outputs = layers.Dropout(0.5)(training=True, inputs=inputs)
    (site,) = dropout_sites(keras.Model(inputs, outputs))
    x = np.ones((2, 4), dtype="float32")
    np.testing.assert_array_equal(site.activities(x), x)


def test_the_model_is_left_as_it_is():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2), layers.Dropout(0.5)]
    )
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    dropout_sites(model)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]


@pytest.mark.parametrize(
    ("layer", "shape", "mask_shape", "shift_axes"),
    [
        (layers.Dropout(0.5), (8, 3), (8, 3), (0,)),
        (layers.Dropout(0.5), (8, 4, 3), (8, 4, 3), (0, 1)),
        (layers.Dropout(0.5, (None, 1, 3)), (8, 4, 3), (8, 1, 3), (0, 1)),
        (layers.SpatialDropout1D(0.5), (8, 4, 3), (8, 1, 3), (0, 1)),
        (
            layers.SpatialDropout2D(0.5, "channels_last"),
            (8, 4, 5, 3),
            (8, 1, 1, 3),
            (0, 1, 2),
        ),
        (
            layers.SpatialDropout3D(0.5, "channels_first"),
            (8, 3, 4, 5, 6),
            (8, 3, 1, 1, 1),
            (0, 2, 3, 4),
        ),
        (InvariantDropout(0.5), (8, 4, 3), (8, 4, 3), (0,)),
        (
            RunningAverageDropout(0.5, shared_axes=2),
            (8, 4, 3),
            (8, 4, 3),
            (0, 2),
        ),
        (
            SharedInvariantDropout(0.5, "channels_last"),
            (8, 4, 5, 3),
            (8, 4, 5, 3),
            (0, 1, 2),
        ),
        (
            SpatialInvariantDropout(0.5, "channels_first"),
            (8, 3, 4, 5),
            (8, 3, 1, 1),
            (0, 2, 3),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_masks_and_shifts(layer, shape, mask_shape, shift_axes):
    (site,) = dropout_sites(keras.Sequential([keras.Input(shape[1:]), layer]))
    assert site.mask_shape(shape) == mask_shape
    assert site.shift_axes(len(shape)) == shift_axes


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5, name="hidden_drop")

    def call(self, x):
        return self.drop(x)


def test_a_model_without_a_graph():
    with pytest.raises(ValueError, match="`model`. Expected a functional or"):
        dropout_sites(Subclassed())
    with pytest.raises(ValueError, match="`model`. Expected.*been built"):
        dropout_sites(keras.Sequential([layers.Dropout(0.5)]))


def test_dropout_that_is_not_seen_is_named():
    inputs = keras.Input((3,))
    x = layers.Dropout(0.5, name="seen")(inputs)
    model = keras.Model(inputs, Subclassed()(x))
    with pytest.warns(UserWarning, match="not seen.*hidden_drop"):
        assert names(dropout_sites(model)) == ["seen"]


def test_all_activities_are_those_of_each_site():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dropout(0.5),
            layers.Dense(4),
            InvariantDropout(0.5, beta_initializer="ones"),
        ]
    )
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dropout(0.5)
    left = layers.Dense(4)(shared(a, training=True))
    x = layers.Add()([inner(left), inner(shared(inputs=b))])
    x = layers.BatchNormalization()(x)
    model = keras.Model({"a": a, "b": b}, InvariantDropout(0.5)(x))
    rng = np.random.default_rng(0)
    batch = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(5, 4))}
    sites = dropout_sites(model)
    found = all_activities(model, batch)
    assert len(found) == len(sites) == 7
    for activities, site in zip(found, sites, strict=True):
        np.testing.assert_allclose(
            activities, site.activities(batch), rtol=1e-5, atol=1e-6
        )
