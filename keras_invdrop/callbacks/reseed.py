from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import Batches
from .._batches import mapped
from .._checks import check_integer
from .._checks import check_positive_integer
from .._checks import invalid


class Reseed(keras.callbacks.Callback):
    """Callback that derives all random numbers of an epoch from its number.

    At the start of an epoch the callback calls `keras.utils.set_random_seed`
    and sets the state of each `keras.random.SeedGenerator` in the model. The
    values depend only on the seed and the number of the epoch, so masks and the
    order of the examples do not depend on earlier epochs. The seeds of the
    layers have no effect.

    On JAX and PyTorch the callback also fixes the order in which Keras shuffles
    the arrays that `model.fit` gets. On TensorFlow the callback cannot fix this
    order, because Keras shuffles with a generator whose state cannot be set.
    `shuffled` returns batches whose order depends only on the seed and the
    epoch, on every backend.

    Args:
        seed: Non-negative integer.

    Attributes:
        order_seed: The seed for the order of the examples in this epoch.

    Raises:
        ValueError: If `seed` is not a non-negative integer.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dropout(0.5)]
    ... )
    >>> model.add(keras.layers.Dense(1, kernel_initializer="ones"))
    >>> model.compile(loss="mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> reseed = keras_invdrop.Reseed(seed=0)
    >>> batches = reseed.shuffled(x, y, batch_size=4)
    >>> history = model.fit(
    ...     batches, epochs=2, shuffle=False, verbose=0, callbacks=[reseed]
    ... )
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = check_integer("seed", seed, 0)
        self.order_seed = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        weights = {id(weight) for weight in self.model.non_trainable_weights}
        generators = [
            variable
            for variable in self.model.non_trainable_variables
            # Variables that are not weights: states of a `SeedGenerator`.
            if id(variable) not in weights and tuple(variable.shape) == (2,)
        ]
        # Every backend represents integers below 2^31.
        drawn = np.random.SeedSequence((self.seed, epoch)).generate_state(
            2 + len(generators)
        ) >> np.uint32(1)
        self.order_seed, backend_seed, *states = map(int, drawn)
        # The backend's global generator draws the masks of Keras' dropout on
        # PyTorch, and all numbers drawn without a generator.
        keras.utils.set_random_seed(backend_seed)
        for variable, state in zip(generators, states, strict=True):
            variable.assign(np.array([state, 0]))

    def shuffled(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        sample_weight: Any = None,
    ) -> keras.utils.PyDataset:
        """Returns all examples in batches, in a new order in each epoch.

        Args:
            x: Array, or a list, tuple or dict of arrays.
            y: Targets, in the same form; None for none.
            batch_size: Positive integer. Number of examples in a batch.
            sample_weight: Weights of the examples; None for none.

        Returns:
            A `keras.utils.PyDataset` for `model.fit`. Pass this callback and
            `shuffle=False` to `model.fit`; otherwise Keras shuffles the batches
            again.

        Raises:
            ValueError: If the arrays have no examples or different numbers of
                examples, or if `batch_size` is not a positive integer.
        """
        given: tuple = mapped(_by_position, (x, y, sample_weight))
        while len(given) > 1 and given[-1] is None:
            given = given[:-1]
        return _Shuffled(
            self, given, check_positive_integer("batch_size", batch_size)
        )


def _by_position(array: Any) -> Any:
    """The array, in a form that an array of numbers of examples can index."""
    if ops.is_tensor(array):
        return ops.convert_to_numpy(array)
    if hasattr(array, "iloc"):  # pandas, which would select by label
        return np.asarray(array)
    return array  # Arrays that read or prepare on demand stay what they are.


class _Shuffled(Batches):
    """Batches of examples in the order of the epoch."""

    def __init__(self, reseed: Reseed, given: tuple, batch_size: int):
        sizes = {
            len(array) for array in tree.flatten(given) if array is not None
        }
        if len(sizes) != 1 or 0 in sizes:
            raise invalid(
                "x, y, sample_weight",
                "arrays with the same number of examples, at least one",
                sorted(sizes),
            )
        super().__init__(given, sizes.pop(), batch_size)
        self.reseed = reseed
        # One attribute, set atomically: TensorFlow loads batches in threads.
        self.drawn: tuple[Any, Any] = (None, None)

    def which(self, places: slice) -> Any:
        seed, order = self.drawn
        if seed != self.reseed.order_seed:
            seed = self.reseed.order_seed
            order = np.random.default_rng(seed).permutation(self.examples)
            self.drawn = seed, order
        return order[places]
