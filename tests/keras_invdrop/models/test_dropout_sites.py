import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout
from keras_invdrop import SharedInvariantDropout
from keras_invdrop import SpatialInvariantDropout
from keras_invdrop import invariantize
from keras_invdrop.models._dropout_sites import all_activities
from keras_invdrop.models._dropout_sites import dropout_sites


def names(sites):
    return [site.layer.name for site in sites]


def arriving(model, x):
    return [activities.values for activities in all_activities(model, x)]


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
    first, second, third = arriving(model, x)
    np.testing.assert_array_equal(first, x)
    hidden = ops.convert_to_numpy(model.layers[1](x))
    np.testing.assert_allclose(second, hidden, rtol=1e-5)
    outputs = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(third, outputs, rtol=1e-5)


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
        next_names(site)[0][1]: float(np.mean(values))
        for site, values in zip(sites, arriving(model, x), strict=True)
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
    sites = dropout_sites(model)
    assert names(sites) == ["outer_drop", "inner_drop"]
    # From the outer model into the nested one, and out of it.
    assert next_names(sites[0]) == [([], "inner_dense")]
    assert next_names(sites[1]) == [([], "outer_dense")]
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(
        arriving(model, x)[1],
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
    model = keras.Model(inputs, outputs)
    (site,) = dropout_sites(model)
    assert next_names(site) == []
    x = np.ones((2, 4), dtype="float32")
    np.testing.assert_array_equal(*arriving(model, x), x)


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


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize(("rank", "channels"), [(3, 2), (4, 1), (5, 1)])
def test_all_agree_on_where_channels_are(channels_first, rank, channels):
    """A sequence has its features last, whatever the configuration."""
    shape = (8, 4, 5, 6, 7)[:rank]
    shared = (0, *(axis for axis in range(1, rank) if axis != channels))
    of_shift = tuple(1 if i in shared else shape[i] for i in range(1, rank))
    of_mask = (8, *of_shift)
    spatial = layers.SpatialDropout1D, layers.SpatialDropout2D
    spatial = (*spatial, layers.SpatialDropout3D)[rank - 3]
    for layer, drops_channels in (
        (layers.Dropout(0.5), False),
        (spatial(0.5), True),
        (SharedInvariantDropout(0.5), False),
        (SpatialInvariantDropout(0.5), True),
    ):
        model = keras.Sequential([keras.Input(shape[1:]), layer])
        models = [model]
        if layer.__module__.startswith("keras.src"):
            models.append(invariantize(model, shared="auto"))
        for each in models:
            (site,) = dropout_sites(each)
            assert site.shift_axes(rank) == shared
            expected = of_mask if drops_channels else shape
            assert site.mask_shape(shape) == expected
            if hasattr(site.layer, "beta"):
                assert site.layer.beta.shape == of_shift


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, name="hidden_drop")

    def call(self, x):
        return self.drop(x)


def test_a_model_without_a_graph():
    with pytest.raises(ValueError, match="`model`. Expected a functional or"):
        dropout_sites(Subclassed())
    with pytest.raises(ValueError, match="`model`. Expected.*been built"):
        dropout_sites(keras.Sequential([layers.Dropout(0.5)]))


def test_dropout_inside_layers_is_found_by_a_call():
    inputs = keras.Input((3,))
    x = layers.Dropout(0.5, name="seen")(inputs)
    subclass = Subclassed(name="inside")
    model = keras.Model(inputs, layers.AlphaDropout(0.5)(subclass(x)))
    assert names(dropout_sites(model)) == ["seen"]
    x = np.ones((1, 3), dtype="float32")
    with pytest.warns(UserWarning, match="is ignored: 'alpha_dropout"):
        sites = dropout_sites(model, x)
    assert [site.name for site in sites] == ["seen", "inside/hidden_drop"]
    assert [len(site.next_layers) for site in sites] == [1, 0]
    (site,) = dropout_sites(subclass, x)
    assert site.name == "hidden_drop"


def test_all_activities_are_those_of_each_site():
    keras.utils.set_random_seed(0)
    first = layers.Dropout(0.5)
    dense = layers.Dense(4)
    second = InvariantDropout(0.5, beta_initializer="ones")
    inner = keras.Sequential([keras.Input((4,)), first, dense, second])
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared, to_left = layers.Dropout(0.5), layers.Dense(4)
    left = to_left(shared(a, training=True))
    x = layers.Add()([inner(left), inner(shared(inputs=b))])
    x = layers.BatchNormalization()(x)
    last = InvariantDropout(0.5)
    model = keras.Model({"a": a, "b": b}, last(x))
    rng = np.random.default_rng(0)
    batch = {
        "b": rng.normal(size=(5, 4)).astype("float32"),
        "a": rng.normal(size=(5, 4)).astype("float32"),
    }
    left = to_left(batch["a"])
    # Each branch adds 1. The normalisation is untrained, so it uses the
    # statistics of the batch.
    both = ops.convert_to_numpy(dense(left) + dense(batch["b"]) + 2)
    expected = {
        shared: [batch["a"], batch["b"]],
        first: [left, batch["b"]],
        second: [dense(left), dense(batch["b"])],
        last: [(both - both.mean(axis=0)) / np.sqrt(both.var(axis=0) + 1e-3)],
    }
    sites, found = dropout_sites(model), arriving(model, batch)
    assert len(found) == len(sites) == 7
    for site, activities in zip(sites, found, strict=True):
        values = [ops.convert_to_numpy(x) for x in expected[site.layer]]
        # Each appears once, in any order.
        (i,) = [
            i
            for i, value in enumerate(values)
            if np.allclose(activities, value, rtol=1e-5, atol=1e-6)
        ]
        del expected[site.layer][i]
    assert not any(expected.values())


def residual(blocks):
    inputs = x = keras.Input((3,))
    for _ in range(blocks):
        y = layers.Dropout(0.5)(layers.Dense(3)(x))
        x = layers.Add()([x, y])
    return keras.Model(inputs, x)


def calls_of(function, *args):
    """The number of function calls that it takes."""
    count = 0

    def counting(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(counting)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return count


def test_residual_networks_take_work_in_proportion_to_their_size():
    small, large = residual(6), residual(12)
    # If each block doubled the calls, 64 times as many.
    assert calls_of(dropout_sites, large) < 3 * calls_of(dropout_sites, small)
    x = np.ones((2, 3), dtype="float32")
    work = [calls_of(all_activities, model, x) for model in (small, large)]
    assert work[1] < 3 * work[0]


def test_next_layers_in_a_residual_network():
    sites = dropout_sites(residual(60))
    assert len(sites) == 60
    assert all(
        isinstance(last, layers.Add)
        for site in sites
        for _, last in site.next_layers
    )
    assert {len(site.next_layers) for site in sites} == {1}
