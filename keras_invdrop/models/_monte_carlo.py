import itertools
import json
import os
import random
import zipfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import Batch
from .._batches import Examples
from .._batches import is_data_set
from .._batches import mapped
from .._batches import of_data_set
from .._batches import standardized
from .._checks import check_boolean
from .._checks import check_path
from .._checks import check_positive_integer
from .._checks import check_seed
from .._checks import invalid
from .._files import replacing
from .._keras import graph_of
from ..arguments import Filters
from ._dropping_layers import path_filter
from ._graph import check_callable
from ._prediction import MonteCarloPrediction
from ._prediction import Samples
from ._prediction import predicted
from ._sampler import Sampler
from ._uncertainty import as_numbers
from ._uncertainty import auroc
from ._uncertainty import measures

# Archive member that holds the arguments, beside the members that Keras writes.
ARGUMENTS = "monte_carlo.json"


class MonteCarlo:
    """Averages predictions over dropout masks, and measures their uncertainty.

    Each mask selects a network, and a model trained with dropout is an
    ensemble of these networks, approximately Bayesian (section 4 of the
    paper). Ordinary inference approximates the ensemble in one pass without
    masks. `MonteCarlo` samples networks from the ensemble: the mean of their
    outputs is the prediction, and the spread is its uncertainty.

    All dropout layers at any depth draw masks: `Dropout`, `SpatialDropout`,
    `AlphaDropout` and `GaussianDropout` of Keras and the dropout layers of
    this library, recurrent layers and attention with a dropout rate, layers
    that drop whole paths, and layers whose `call` uses
    `keras.random.dropout`. A layer that makes masks of its own from
    `keras.random.uniform` is not recognised and draws none. Every other layer
    runs in inference mode: batch normalisation uses its moving statistics and
    does not update them, and `RunningAverageDropout` does the same with its
    average. Calling the model with `training=True` would update both.

    Each sample of each example has its own mask, even if the `noise_shape` of
    a layer shares one mask over the batch. With `consistent_masks=True` all
    examples share the masks: sample 3 of one example and sample 3 of another
    come from the same network. Use this to judge the predictions of several
    examples together, for example to choose a batch of examples to label
    (Kirsch et al., 2019); `predict(x, return_samples=True)` returns the
    samples.

    Args:
        model: A built model, which may contain other models. `MonteCarlo`
            copies the model, and later training of the original has no effect
            on the copy.
        samples: Positive integer. Number of masks for each example.
        seed: Integer or None. With a seed, `predict` returns the same result
            for the same data and batch size each time, whatever the seeds of
            the layers. Without a seed each call draws new masks.
        filters: Regular expression, or list of them. Only layers whose path
            (as in the report of `invariantize`) contains a match draw masks;
            the others do not drop. By default all layers drop.
        consistent_masks: Boolean. Whether all examples in one call of
            `predict` get the same `samples` masks, regardless of their batch.
            With a `seed`, other calls draw the same masks too if the examples
            have the same shape and `batch_size` is at least `samples`. The
            model then sees one example at a time, in `samples` rows, which is
            slower for few samples of many examples. The layers must draw from
            a `keras.random.SeedGenerator` of their own, as Keras' layers do.
            By default each example has its own masks.

    Raises:
        ValueError: If `model` is not a Keras model, is not built, cannot be
            copied or has no dropout layer, or if another argument is invalid.

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

    `evaluate` measures the quality of the predictions and of their
    uncertainty:

    >>> found = monte_carlo.evaluate(
    ...     np.ones((6, 4)),
    ...     np.array([0, 1, 2, 0, 1, 2]),
    ...     out_of_distribution=np.zeros((5, 4)),
    ... )
    >>> for name in found:
    ...     print(name)
    accuracy
    negative_log_likelihood
    brier_score
    expected_calibration_error
    auroc_entropy
    auroc_mutual_information

    Reference:

    - Ba, Xiong and Frey, 2014, section 4
    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142)
    - [Houlsby et al., 2011](https://arxiv.org/abs/1112.5745), the mutual
      information
    - [Kirsch et al., 2019](https://arxiv.org/abs/1906.08158), consistent masks
    """

    def __init__(
        self,
        model: keras.Model,
        samples: int = 100,
        seed: int | None = None,
        filters: Filters | None = None,
        consistent_masks: bool = False,
    ):
        check_callable(model)
        self.samples = check_positive_integer("samples", samples)
        self.seed = check_seed(seed)
        self.filters = filters
        self.consistent_masks = check_boolean(
            "consistent_masks", consistent_masks
        )
        self._sampler = Sampler(model, path_filter(filters))

    def __reduce__(self):
        # Copies and pickles hold the model, which Keras can save, and make
        # the sampler anew.
        model = self._sampler.as_it_was()
        return type(self), (model, *self._arguments().values())

    def _arguments(self):
        """The arguments of the constructor after `model`, in its order."""
        return {
            "samples": self.samples,
            "seed": self.seed,
            "filters": self.filters,
            "consistent_masks": self.consistent_masks,
        }

    def predict(
        self, x: Any, batch_size: int = 128, return_samples: bool = False
    ) -> MonteCarloPrediction | Any:
        """Predicts the mean of the samples, and their uncertainty.

        An output counts as a probability distribution if it has two or more
        elements along its last axis that add up to 1 and are not negative in
        any sample, as the outputs of a softmax are. The output of a single
        sigmoid does not count as one.

        Args:
            x: Array, or a list, tuple or dict of arrays, as `model.predict`
                takes them; or a data set, which `model.predict` takes, too: a
                `tf.data.Dataset`, a `PyDataset`, a PyTorch `DataLoader` or an
                iterator of batches. Targets and sample weights are ignored.
            batch_size: Positive integer. Largest number of rows in one call
                of the compiled model, which bounds the memory. Each sample of
                each example is a row. If `batch_size` is less than `samples`,
                several calls share the samples of an example.
            return_samples: Boolean. Whether to keep the samples, as the
                attribute `samples` of the prediction.

        Returns:
            A `MonteCarloPrediction` with float64 arrays. For a model with
            several outputs, the predictions have the structure of the
            outputs.

        Raises:
            ValueError: If `batch_size` is not a positive integer,
                `return_samples` is not a boolean, or `x` does not fit the
                model: one array for each input, all with the same number of
                examples, at least one.
        """
        check_boolean("return_samples", return_samples)
        read = (batch.examples for batch in _read("x", x))
        return self._predict(read, batch_size, return_samples)

    def _predict(self, read, batch_size, return_samples=False):
        """`predict` for an iterable of `Examples`."""
        check_positive_integer("batch_size", batch_size)
        model = self._sampler.model
        # All calls have the same size, since another size would compile the
        # model again. The surplus of a call is left out.
        calls = -(-self.samples // batch_size)
        repeats = -(-self.samples // calls)
        # Layers draw masks by row. With one example at a time, the rows have
        # the same masks for every example.
        size = 1 if self.consistent_masks else batch_size // repeats
        self._sampler.set_repeats(repeats)
        # `keras.utils.set_random_seed` seeds Python's generator.
        seed = random.getrandbits(64) if self.seed is None else self.seed
        parts: list[Any] = []
        for given in read:
            given.check(model)
            size = size if parts else min(size, len(given))
            for start in range(0, len(given), size):
                rows = np.arange(start, min(start + size, len(given)))
                filled = np.pad(rows, (0, size - len(rows)), "edge")
                batch = standardized(model, given[filled], given.argument)
                if not parts or self.consistent_masks:
                    self._sampler.set_seeds(seed)
                part = self._drawn(batch, repeats, len(rows), return_samples)
                parts.append(part)
        shapes = [[x.mean.shape[1:] for x in tree.flatten(p)] for p in parts]
        if any(shape != shapes[0] for shape in shapes):
            raise invalid(
                given.argument,
                "batches for which the outputs have one shape, apart from the "
                "number of examples",
                sorted({str(shape) for shape in shapes}),
            )
        return tree.map_structure(lambda *of: predicted(of), *parts)

    def _drawn(self, batch, repeats, examples, kept):
        """The `Samples` of each output, of the first examples of a batch."""
        batch = mapped(ops.convert_to_numpy, batch)
        graph = graph_of(self._sampler.model)
        found: list[Samples] = []
        for done in range(0, self.samples, repeats):
            outputs = self._sampler.predict_on_batch(batch)
            of_dtype = graph.outputs if graph else tree.flatten(outputs)
            found = found or [Samples(str(x.dtype), kept) for x in of_dtype]
            for samples, output in zip(
                found, tree.flatten(outputs), strict=True
            ):
                output = output.reshape((-1, repeats, *output.shape[1:]))
                samples.add(output[:examples, : self.samples - done])
        return tree.pack_sequence_as(outputs, found)

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 128,
        sample_weight: Any = None,
        out_of_distribution: Any = None,
        bins: int = 15,
    ) -> dict[str, float] | Any:
        """Measures the quality of the mean prediction and of its uncertainty.

        For a classifier:

        - `accuracy`: fraction of examples whose class has the largest mean
          probability.
        - `negative_log_likelihood`: mean negative logarithm of the probability
          of the correct class, in nats. A probability below 1.2e-38 counts as
          1.2e-38.
        - `brier_score`: mean squared distance between the probabilities and
          the one-hot label, summed over the classes: from 0 to 2, for two
          classes as well.
        - `expected_calibration_error`: difference between the confidence (the
          largest probability) and the accuracy. Bins of equal width group the
          examples by confidence; the result is the mean over the bins of the
          absolute difference between mean confidence and accuracy, weighted
          by the number of examples (Guo et al., 2017).
        - `auroc_entropy` and `auroc_mutual_information`, if
          `out_of_distribution` is given: area under the ROC curve when this
          uncertainty, averaged over the positions of a sequence or an image,
          detects the out-of-distribution examples. 1 is perfect, and 0.5 is
          guessing. Sample weights do not affect it.

        For any other model: `mean_squared_error`. The spread of the samples
        is the uncertainty of the model alone. A likelihood would also need
        the noise of the targets.

        A model counts as a classifier if its outputs are probability
        distributions, as `predict` defines them, or if each output is a
        single number between 0 and 1 (the probability of class 1) and the
        labels are 0 and 1. Logits and multi-label targets raise an error.

        Args:
            x: Examples, as `predict` takes them. Each batch of a data set is
                a tuple `(x, y)` or `(x, y, sample_weight)`.
            y: Array of targets: integer classes, of the shape of the output
                without its last axis or with a last axis of 1; one-hot
                labels, or the numbers of a regression, of the shape of the
                output. None for a data set, whose batches have the targets.
            batch_size: Positive integer. As in `predict`.
            sample_weight: Array of non-negative weights, of shape
                `(examples,)` or, for outputs of shape `(examples, time,
                classes)`, `(examples, time)`. All measures but the last two
                are weighted means. Where a weight is 0, for example at
                padding, the label has no effect. None for a data set.
            out_of_distribution: Other examples, as `predict` takes them.
            bins: Positive integer. Number of bins of the calibration error.

        Returns:
            A dict from the name of each measure to its value. For a model
            with several outputs, the dicts have the structure of the outputs,
            and so must `y` and, unless it is one array for all outputs,
            `sample_weight`.

        Raises:
            ValueError: If `y` or `sample_weight` does not fit the outputs, if
                the outputs for class labels are not probabilities (such as
                logits), if `out_of_distribution` is given for outputs without
                an entropy, or if another argument is invalid.

        Reference:

        - [Brier, 1950](https://doi.org/10.1175/1520-0493%281950%29078%3C0001:VOFEIT%3E2.0.CO;2)
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), the calibration
          error
        - [Hendrycks and Gimpel, 2017](https://arxiv.org/abs/1610.02136), the
          detection of examples that are out of distribution
        """
        check_positive_integer("bins", bins)
        labels: list[Any] = []
        weights: list[Any] = []

        def read():
            for batch in _read_labelled(x, y, sample_weight):
                labels.append(batch.targets)
                weights.append(batch.sample_weight)
                yield batch.examples

        found = self._predict(read(), batch_size)
        predictions = tree.flatten(found)
        graph = graph_of(self._sampler.model)
        names = graph.output_names if graph else ()
        targets = _for_each_output("y", labels, found, names)
        weighting = [np.ones(())] * len(predictions)
        if weights[0] is not None:
            # As in Keras, one array gives the weights for all outputs.
            of_each = [
                each
                if tree.is_nested(each)
                else tree.map_structure(lambda _, each=each: each, found)
                for each in weights
            ]
            weighting = _for_each_output("sample_weight", of_each, found, names)
        results = [
            measures(
                prediction.mean,
                prediction.entropy is not None,
                target,
                weight,
                bins,
            )
            for prediction, target, weight in zip(
                predictions, targets, weighting, strict=True
            )
        ]
        if out_of_distribution is not None:
            batches = _read("out_of_distribution", out_of_distribution)
            others = self._predict((x.examples for x in batches), batch_size)
            for result, inside, outside in zip(
                results, predictions, tree.flatten(others), strict=True
            ):
                if inside.entropy is None or outside.entropy is None:
                    raise ValueError(
                        "Argument `out_of_distribution` needs outputs that are "
                        "probability distributions, of which `predict` gives "
                        "the entropy."
                    )
                for name in ("entropy", "mutual_information"):
                    result[f"auroc_{name}"] = auroc(
                        getattr(inside, name), getattr(outside, name)
                    )
        return tree.pack_sequence_as(found, results)

    def save(self, filepath: str | os.PathLike) -> None:
        """Writes the model and the other arguments to a file.

        `keras.saving.load_model` can read the file too, and returns the model
        alone: the model that the constructor received, without its optimizer,
        losses and metrics. An existing file is replaced as a whole.

        Args:
            filepath: Path that ends in `.keras`.

        Raises:
            ValueError: If `filepath` has another ending.
            OSError: If the file cannot be written.
        """
        path = check_path("filepath", filepath)
        if path.suffix != ".keras":
            raise invalid("filepath", "a path that ends in `.keras`", filepath)
        with replacing(path) as temporary:
            self._sampler.as_it_was().save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(ARGUMENTS, json.dumps(self._arguments()))

    @classmethod
    def load(
        cls,
        filepath: str | os.PathLike,
        custom_objects: dict[str, Any] | None = None,
        safe_mode: bool = True,
    ) -> "MonteCarlo":
        """Reads a file that `save` has written, on any backend.

        Args:
            filepath: Path of the file.
            custom_objects: Dict from names to classes and functions, as
                `keras.saving.load_model` takes it.
            safe_mode: Boolean. Whether to refuse to load code, as
                `keras.saving.load_model` does.

        Raises:
            ValueError: If the file was not written by `save`.
            OSError: If the file cannot be read.
        """
        try:
            with zipfile.ZipFile(filepath) as archive:
                arguments = json.loads(archive.read(ARGUMENTS))
        except (KeyError, zipfile.BadZipFile):
            raise invalid(
                "filepath",
                "a file that `MonteCarlo.save` has written",
                filepath,
            ) from None
        model = keras.saving.load_model(
            filepath, custom_objects, compile=False, safe_mode=safe_mode
        )
        return cls(model, **arguments)


def _read(argument: str, x: Any) -> Iterator[Batch]:
    """The batches of a data set that have examples; arrays are one batch."""
    if not is_data_set(x):
        yield Batch(Examples(argument, x))
        return
    found = (batch for batch in of_data_set(argument, x) if batch.examples)
    first = next(found, None)
    if first is None:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected one "
            "example or more. Received none"
        )
    yield from itertools.chain([first], found)


def _read_labelled(x: Any, y: Any, sample_weight: Any) -> Iterator[Batch]:
    """The batches of examples with targets, from both or from a data set."""
    batches = _read("x", x)
    given = {"y": y, "sample_weight": sample_weight}
    if is_data_set(x):
        for argument, value in given.items():
            if value is not None:
                raise invalid(argument, "None, since `x` is a data set", value)
    else:
        batches = (Batch(batch.examples, y, sample_weight) for batch in batches)
    weighted = set()
    for batch in batches:
        if batch.targets is None:
            raise invalid(
                "y",
                "an array of numbers, or None if `x` is a data set whose "
                "batches have targets",
                None,
            )
        weighted.add(batch.sample_weight is not None)
        if len(weighted) > 1:
            raise ValueError(
                "Invalid value received for argument `x`. Expected sample "
                "weights in all batches or in none. Received: some batches "
                "with sample weights"
            )
        yield batch


def _for_each_output(argument, values, outputs, names):
    """The numbers for each output, from values in the structure of outputs.

    Args:
        argument: Name of the argument.
        values: The value for each batch.
        outputs: The predictions.
        names: Names of the outputs, by which a dict may name its values.
    """
    found: list[Any] = []
    try:
        if isinstance(outputs, (list, tuple)):
            outputs = list(outputs)
            values = [_listed(value, names) for value in values]
        tree.map_structure_up_to(
            outputs, lambda _, *each: found.append(each), outputs, *values
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected an "
            "array for each output, in the structure of the model's outputs. "
            f"{error}"
        ) from error
    return [_joined(argument, each) for each in found]


def _listed(value, names):
    """The values for a list of outputs; data sets have tuples for lists."""
    if isinstance(value, dict):
        return [value[name] for name in names]
    return list(value) if isinstance(value, tuple) else value


def _joined(argument, of_batches):
    """The numbers of all batches in one array."""
    arrays = [as_numbers(argument, each) for each in of_batches]
    if len(arrays) == 1:
        return arrays[0]
    shapes = [x.shape for x in arrays]
    if len({shape[1:] for shape in shapes}) > 1:
        expected = "batches of one shape, apart from the number of examples"
        raise invalid(argument, expected, shapes)
    return np.concatenate(arrays)
