import inspect
import random
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import Examples
from .._batches import standardized
from .._checks import check_positive_integer
from .._checks import check_seed
from .._checks import invalid
from .._keras import graph_of
from .._keras import layers_in
from .._keras import seed_generators
from .._keras import seeded
from ..arguments import Filters
from ._copies import Copies
from ._copies import copied
from ._dropout_sites import DROPOUT
from ._graph import check_model
from ._places import OTHER_DROPOUT
from ._places import drops
from ._places import matching
from ._places import paths_of

SAMPLED = (*DROPOUT, *OTHER_DROPOUT)
# What is changed in these layers.
CHANGED = ("seed", "noise_shape")


@dataclass(frozen=True, eq=False)
class MonteCarloPrediction:
    """What the samples of one output of a model say.

    Attributes:
        mean: The mean of the samples, of the shape of the output.
        standard_deviation: Their standard deviation, of the same shape: the
            root of the mean squared deviation, which is 0 of one sample.
        entropy: The predictive entropy in nats: that of the mean, over the
            last axis. None where the output is no probability distribution.
        mutual_information: The mutual information, in nats, between the
            prediction and the masks: the predictive entropy less the mean of
            the entropies of the samples. It is 0 where all samples say the
            same. None where the output is no probability distribution.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    entropy: np.ndarray | None
    mutual_information: np.ndarray | None


class MonteCarlo:
    """Predicts with an average over dropout masks, and says how sure it is.

    Each mask makes a network of its own, and a model that was trained with
    dropout is an ensemble of them, approximately Bayesian (section 4 of the
    paper). Inference stands in for the whole ensemble with one pass, without
    masks. Here networks are sampled from it: their mean is the prediction and
    their spread its uncertainty.

    Masks are drawn by what drops, at any depth: `Dropout`, `SpatialDropout`,
    `AlphaDropout` and `GaussianDropout` of Keras and those of this library,
    recurrent layers and attention with a rate of dropout, layers that drop
    whole paths, and those whose own `call` uses `keras.random.dropout`.
    Every other layer is in inference mode: batch normalization uses its moving
    statistics and does not change them, and `RunningAverageDropout` does the
    same with its average. Calling the model with `training=True` would change
    both.

    Every sample of every example has a mask of its own, also where the
    `noise_shape` of a layer shares one over the batch.

    Keras on JAX draws no masks in the loop over a recurrent cell, so that a
    cell of your own that holds a dropout layer fails there.

    Args:
        model: A model that has been built, which may contain other models. It
            is copied and not changed: what it learns later has no influence.
        samples: Positive integer. Masks to draw for each example.
        seed: Integer. With a seed, `predict` returns the same for the same
            data and batch size each time, whatever the seeds of the layers.
            Without one it draws new masks each time.
        filters: Regular expression, or list of them. Draws the masks of
            layers whose path, as in the report of `invariantize`, contains a
            match of one; the others do not drop. All by default.

    Raises:
        ValueError: If `model` is not a Keras model, is not built, cannot be
            copied or has no dropout layer; if another argument is not of the
            kind described.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4,)),
    ...         keras_invdrop.InvariantDropout(0.5),
    ...         keras.layers.Dense(3, activation="softmax"),
    ...     ]
    ... )
    >>> monte_carlo = keras_invdrop.MonteCarlo(model, samples=50)
    >>> prediction = monte_carlo.predict(np.ones((2, 4)))
    >>> prediction.mean.shape, prediction.standard_deviation.shape
    ((2, 3), (2, 3))
    >>> prediction.entropy.shape, prediction.mutual_information.shape
    ((2,), (2,))

    Reference:

    - Ba, Xiong and Frey, 2014, section 4
    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142)
    - [Houlsby et al., 2011](https://arxiv.org/abs/1112.5745), the mutual
      information
    """

    def __init__(
        self,
        model: keras.Model,
        samples: int = 100,
        seed: int | None = None,
        filters: Filters | None = None,
    ):
        is_subclass = (
            isinstance(model, keras.Model)
            and not isinstance(model, keras.Sequential)
            and model.built
        )
        if not is_subclass:
            check_model(model)
        self.samples = check_positive_integer("samples", samples)
        self.seed = check_seed(seed)
        self.filters = filters
        self._sampler = _Sampler(model, matching(filters))

    def __reduce__(self):
        # To copy and to pickle: the model, which Keras can save. The sampler
        # is made anew.
        model = self._sampler.as_it_was()
        return type(self), (model, self.samples, self.seed, self.filters)

    def predict(
        self, x: Any, batch_size: int = 128
    ) -> MonteCarloPrediction | Any:
        """The mean of the samples, and their uncertainty.

        Whether an output is a probability distribution is seen in the data:
        it is if it has two or more elements along its last axis, none
        negative in any sample, that add up to 1, as those of softmax do. The
        output of one sigmoid is not.

        Args:
            x: Array, or a list, tuple or dict of arrays, as `model.predict`
                takes them.
            batch_size: Positive integer. The most rows that the model sees
                at once, which bounds the memory. Each sample of each example
                is a row: up to so many run in one call of the compiled model.
                If it is less than `samples`, those of an example are shared
                out over several calls.

        Returns:
            A `MonteCarloPrediction`, whose arrays are of float64; of a model
            with several outputs a structure of them, as the outputs of the
            model have it.

        Raises:
            ValueError: If `batch_size` is not a positive integer, or `x` is
                not what the model takes: one array for each input, all with
                the same number of examples, one or more.
        """
        check_positive_integer("batch_size", batch_size)
        graph = graph_of(self._sampler.model)
        given = Examples("x", x)
        if graph is not None:
            given.check(graph)
        examples = len(given)
        # Calls of equal size, of which the last one's surplus is left out:
        # for another size the model would be compiled once more.
        calls = -(-self.samples // batch_size)
        repeats = -(-self.samples // calls)
        size = min(examples, batch_size // repeats)
        self._sampler.set_repeats(repeats)
        self._sampler.set_seeds(self.seed)
        parts: list[list[_Statistics]] = []
        for start in range(0, examples, size):
            rows = np.minimum(np.arange(start, start + size), examples - 1)
            batch = given[rows]
            if graph is not None:
                batch = tree.map_structure(
                    ops.convert_to_numpy, standardized(graph, batch, "x")
                )
            part: list[_Statistics] = []
            for done in range(0, self.samples, repeats):
                outputs = self._sampler.predict_on_batch(batch)
                of_dtype = graph.outputs if graph else tree.flatten(outputs)
                part = part or [
                    _Statistics(_tolerance(str(x.dtype))) for x in of_dtype
                ]
                for statistics, output in zip(
                    part, tree.flatten(outputs), strict=True
                ):
                    output = output.reshape((size, repeats, *output.shape[1:]))
                    statistics.add(output[:, : self.samples - done])
            parts.append(part)
        predictions = [
            _prediction(of_output, examples)
            for of_output in zip(*parts, strict=True)
        ]
        return tree.pack_sequence_as(outputs, predictions)


class _Sampler(keras.Model):
    """Repeats each example, and gives each copy masks of its own."""

    def __init__(self, model, is_chosen):
        super().__init__(name="monte_carlo", autocast=False)
        self.model = copied(model, compiled=False)
        dropping = {
            id(layer)
            for path, layer in paths_of(self.model)
            if drops(layer) and is_chosen(path)
        }
        if not dropping:
            raise invalid(
                "model",
                "a model with a dropout layer, chosen by `filters`: without "
                "one all samples are the same",
                model,
            )
        # What each layer had before `_in_mode` and `seed` changed it.
        self.before: list[dict] = []
        for layer in layers_in(self.model):
            self.before.append({})
            if isinstance(layer, SAMPLED):
                known = [x for x in CHANGED if hasattr(layer, x)]
                self.before[-1] |= {x: getattr(layer, x) for x in known}
                layer.seed = 0  # as `seeded` says
            for generator in seed_generators(layer):
                seeded(generator)
            # A recurrent layer draws the masks of its cells with them.
            is_recurrent = isinstance(layer, keras.layers.RNN)
            drawing = layers_in(layer) if is_recurrent else [layer]
            _in_mode(layer, any(id(x) in dropping for x in drawing))
        # No average of activities moves.
        self.model.trainable = False
        self.repeats = 1
        self.run_eagerly = model.run_eagerly
        self.jit_compile = model.jit_compile
        self.built = True

    def as_it_was(self):
        """A copy of the model that draws no masks at inference."""
        model = Copies().of(self.model)
        for layer, before in zip(layers_in(model), self.before, strict=True):
            vars(layer).pop("call", None)
            for name, value in before.items():
                setattr(layer, name, value)
        return model

    def call(self, inputs):
        repeated = tree.map_structure(
            lambda x: ops.repeat(x, self.repeats, axis=0), inputs
        )
        return self.model(repeated, training=False)

    def set_repeats(self, repeats):
        if repeats != self.repeats:
            self.repeats = repeats
            self.make_predict_function(force=True)

    def set_seeds(self, seed):
        """Starts every generator anew, each from a seed of its own."""
        # Python's generator is one that `keras.utils.set_random_seed` sets.
        entropy = random.getrandbits(64) if seed is None else seed % 2**64
        generators = [
            generator
            for layer in layers_in(self)
            for generator in seed_generators(layer)
        ]
        seeds = np.random.SeedSequence(entropy).generate_state(len(generators))
        for generator, value in zip(generators, seeds, strict=True):
            # 31 bits, which the signed seeds of some backends hold.
            generator.state.assign([int(value) >> 1, 0])


def _in_mode(layer, training):
    """Fixes the mode of a layer, whatever it is called with."""
    call = layer.call
    signature = inspect.signature(call)
    if "training" not in signature.parameters:
        return

    noise_shape = getattr(layer, "noise_shape", None)

    def in_mode(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.arguments["training"] = training
        if noise_shape is not None:
            # A mask for each row.
            rank = len(given.args[0].shape)
            mask = (1,) * (rank - len(noise_shape)) + tuple(noise_shape)
            layer.noise_shape = (None, *mask[1:])
        return call(*given.args, **given.kwargs)

    vars(layer)["call"] = in_mode


def _tolerance(dtype):
    """How far from 1 the sum of probabilities may be."""
    return 0.02 if dtype in ("float16", "bfloat16") else 1e-3


class _Statistics:
    """Those of the samples seen so far, of some examples."""

    def __init__(self, tolerance):
        self.tolerance = tolerance
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # The sum of the squared deviations.
        self.entropies: Any = 0.0  # The sum over samples.
        self.distribution = True

    def add(self, samples):
        """Adds samples, an array of shape `(examples, samples, ...)`."""
        samples = samples.astype("float64")
        # Two sets of samples are merged by the difference of their means: no
        # sum of squares cancels against another.
        count = self.count + samples.shape[1]
        mean = samples.mean(axis=1)
        squares = np.sum((samples - mean[:, None]) ** 2, axis=1)
        difference = mean - self.mean
        self.mean = self.mean + difference * (samples.shape[1] / count)
        self.squares = self.squares + squares
        self.squares += difference**2 * (self.count * samples.shape[1] / count)
        self.count = count
        self.distribution = self.distribution and bool(
            samples.ndim > 2
            and samples.shape[-1] > 1
            and np.all(samples >= 0)
            and np.all(np.abs(samples.sum(axis=-1) - 1) <= self.tolerance)
        )
        if self.distribution:
            self.entropies = self.entropies + _entropy(samples).sum(axis=1)


def _entropy(p):
    """The entropy over the last axis, in nats."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def _prediction(parts, examples):
    """The statistics of one output, of which `parts` holds some examples."""

    def joined(name):
        # The last part is filled up with repetitions.
        arrays = [getattr(part, name) for part in parts]
        return np.concatenate(arrays)[:examples]

    mean = joined("mean")
    count = parts[0].count
    entropy = mutual_information = None
    if all(part.distribution for part in parts):
        entropy = _entropy(mean)
        # Never negative, but for the rounding.
        mutual_information = np.maximum(
            entropy - joined("entropies") / count, 0
        )
    return MonteCarloPrediction(
        mean=mean,
        standard_deviation=np.sqrt(joined("squares") / count),
        entropy=entropy,
        mutual_information=mutual_information,
    )
