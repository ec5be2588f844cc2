import keras
import numpy as np
import pandas as pd
import pytest

from keras_invdrop import InvariantDropout
from keras_invdrop import Reseed

EXAMPLES = 12


class Seen(keras.Layer):
    """Records in which step of an epoch it has seen each example."""

    def build(self, input_shape):
        self.seen = self.add_weight(
            name="seen", shape=(EXAMPLES,), initializer="zeros", trainable=False
        )
        self.step = self.add_weight(
            name="step", shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        if training:
            ones = keras.ops.one_hot(
                keras.ops.cast(inputs[:, 0], "int32"), EXAMPLES
            )
            self.step.assign(self.step + 1)
            self.seen.assign(
                self.seen + self.step * keras.ops.sum(ones, axis=0)
            )
        return inputs


class Orders(keras.callbacks.Callback):
    """The steps of each epoch, by the number of the epoch."""

    def on_train_begin(self, logs=None):
        self.steps = {}

    def on_epoch_begin(self, epoch, logs=None):
        for weight in self.model.layers[0].weights:
            weight.assign(np.zeros(weight.shape))

    def on_epoch_end(self, epoch, logs=None):
        seen = self.model.layers[0].seen
        self.steps[epoch] = keras.ops.convert_to_numpy(seen).tolist()


def orders(first, arrays):
    """The step in which each example is seen, in the epochs 0 to 3."""
    model = keras.Sequential([keras.Input((1,)), Seen(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.arange(EXAMPLES, dtype="float32")[:, None]
    reseed, seen = Reseed(5), Orders()
    if arrays:
        data = {"x": x, "y": x, "batch_size": 5}
    else:
        data = {"x": reseed.shuffled(x, x, batch_size=5), "shuffle": False}
    model.fit(
        **data,
        initial_epoch=first,
        epochs=4,
        verbose=0,
        callbacks=[reseed, seen],
    )
    return seen.steps


@pytest.mark.parametrize(
    "arrays",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                keras.backend.backend() == "tensorflow",
                reason="Keras shuffles arrays by a generator of its own",
            ),
        ),
    ],
)
def test_the_order_depends_only_on_seed_and_epoch(arrays):
    whole = orders(0, arrays)
    assert list(whole) == [0, 1, 2, 3]
    # Each example appears once, in batches of 5, 5 and 2.
    for steps in whole.values():
        assert sorted(steps) == [1] * 5 + [2] * 5 + [3] * 2
    assert len({tuple(steps) for steps in whole.values()}) == 4
    np.random.seed(1)
    keras.utils.set_random_seed(1)
    later = orders(2, arrays)
    assert later == {epoch: whole[epoch] for epoch in (2, 3)}


def test_masks_depend_on_seed_epoch_and_layer():
    class Masks(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.drawn = []

        def on_epoch_begin(self, epoch, logs=None):
            ones = np.ones((1, 64), "float32")
            for layer in self.model.layers[:2]:
                mask = layer(ones, training=True)
                self.drawn.append(tuple(keras.ops.convert_to_numpy(mask)[0]))

    def masks(seed):
        model = keras.Sequential(
            [
                keras.Input((64,)),
                InvariantDropout(0.5, seed=3),
                InvariantDropout(0.5, seed=3),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.SGD(0.0), "mse")
        drawn = Masks()
        model.fit(
            np.ones((2, 64)),
            np.ones((2, 1)),
            epochs=2,
            verbose=0,
            callbacks=[Reseed(seed), drawn],
        )
        return drawn.drawn

    found = masks(1)
    # Two layers in two epochs.
    assert len(set(found)) == 4
    assert masks(1) == found
    assert not set(masks(2)) & set(found)


def test_batches_of_nested_arrays():
    reseed = Reseed()
    x = {"a": np.arange(5), "b": [np.arange(5) * 2]}
    y, weight = np.arange(5) * 3, np.arange(5) * 4
    batches = reseed.shuffled(x, y, 2, weight)
    assert len(batches) == 3
    parts = [batches[i] for i in range(3)]
    for inputs, targets, weights in parts:
        np.testing.assert_array_equal(inputs["b"][0], 2 * inputs["a"])
        np.testing.assert_array_equal(targets, 3 * inputs["a"])
        np.testing.assert_array_equal(weights, 4 * inputs["a"])
    seen = np.concatenate([inputs["a"] for inputs, *_ in parts])
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(reseed.shuffled(y)[0]) == 1
    assert reseed.shuffled(y, sample_weight=weight)[0][1] is None


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`batch_size`. Expected a positive"):
        Reseed().shuffled(np.ones(3), batch_size=0)
    for x, y in ((np.ones(3), np.ones(2)), (np.ones(0), None)):
        with pytest.raises(ValueError, match="the same number of examples"):
            Reseed().shuffled(x, y)


def test_pandas_rows_are_examples_in_their_order():
    x = np.arange(8.0)[:, None]
    targets = pd.Series(np.arange(8.0), index=range(7, -1, -1))
    frame = pd.DataFrame(x, index=range(10, 18))
    for given in (x, frame, keras.ops.convert_to_tensor(x)):
        batches = Reseed().shuffled(given, targets, batch_size=4)
        for found, wanted in (batches[0], batches[1]):
            np.testing.assert_array_equal(found[:, 0], wanted)
    with pytest.raises(ValueError, match="`x, y, sample_weight`. Expected"):
        Reseed().shuffled(None)


def test_arrays_that_read_on_demand_are_not_read_at_once():
    class OnDemand:
        def __len__(self):
            return 8

        def __getitem__(self, which):
            return np.asarray(which)

        def __array__(self, *arguments, **options):
            raise AssertionError("all examples are read at once")

    x, y = Reseed().shuffled(OnDemand(), np.arange(8), batch_size=8)[0]
    np.testing.assert_array_equal(x, y)
