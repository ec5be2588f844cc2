import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from .._batches import Examples
from .._batches import standardized
from .._checks import check_boolean
from .._checks import check_positive_integer
from .._checks import check_seed
from .._checks import invalid
from .._files import replacing
from .._keras import graph_of
from ..arguments import Filters
from ._graph import check_model
from ._places import matching
from ._prediction import MonteCarloPrediction
from ._prediction import Samples
from ._prediction import predicted
from ._sampler import Sampler
from ._uncertainty import array
from ._uncertainty import auroc
from ._uncertainty import measures

# The name of the arguments in a file that has the model as Keras writes it.
ARGUMENTS = "monte_carlo.json"


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
    `noise_shape` of a layer shares one over the batch. With
    `consistent_masks=True` the examples share theirs: sample 3 of one example
    and sample 3 of another come from the same network. Take that where
    predictions for several examples are judged together, as to choose a batch
    of them to label (Kirsch et al., 2019), and get the samples from
    `predict(x, return_samples=True)`.

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
        consistent_masks: Boolean. Whether all examples given to one call of
            `predict` get the same `samples` masks, whatever batch they are in;
            with a `seed` those of other calls too, if the examples have the
            same shape and `batch_size` is not less than `samples`. The model
            then sees one example at a time, `samples` rows: for few samples of
            many examples this takes longer. Layers must draw from a
            `keras.random.SeedGenerator` that they hold, as those of Keras do.
            By default each example has masks of its own.

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

    `evaluate` says how good they are, and `save` keeps the model with the
    arguments, for `MonteCarlo.load`:

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
        self.consistent_masks = check_boolean(
            "consistent_masks", consistent_masks
        )
        self._sampler = Sampler(model, matching(filters))

    def __reduce__(self):
        # To copy and to pickle: the model, which Keras can save. The sampler
        # is made anew.
        model = self._sampler.as_it_was()
        return type(self), (model, *self._arguments().values())

    def _arguments(self):
        """Those of the constructor after `model`, in its order."""
        return {
            "samples": self.samples,
            "seed": self.seed,
            "filters": self.filters,
            "consistent_masks": self.consistent_masks,
        }

    def predict(
        self, x: Any, batch_size: int = 128, return_samples: bool = False
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
            return_samples: Boolean. Whether to keep the samples themselves,
                as the attribute `samples` of the prediction.

        Returns:
            A `MonteCarloPrediction`, whose arrays are of float64; of a model
            with several outputs a structure of them, as the outputs of the
            model have it.

        Raises:
            ValueError: If `batch_size` is not a positive integer,
                `return_samples` not a boolean, or `x` is not what the model
                takes: one array for each input, all with the same number of
                examples, one or more.
        """
        check_positive_integer("batch_size", batch_size)
        check_boolean("return_samples", return_samples)
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
        if self.consistent_masks:
            # Masks are drawn for rows: the rows of one example at a time are
            # the same for all, whichever kind of layer draws.
            size = 1
        self._sampler.set_repeats(repeats)
        # Python's generator is one that `keras.utils.set_random_seed` sets.
        seed = random.getrandbits(64) if self.seed is None else self.seed
        parts: list[list[Samples]] = []
        for start in range(0, examples, size):
            rows = np.minimum(np.arange(start, start + size), examples - 1)
            batch = given[rows]
            if graph is not None:
                batch = tree.map_structure(
                    ops.convert_to_numpy, standardized(graph, batch, "x")
                )
            if start == 0 or self.consistent_masks:
                self._sampler.set_seeds(seed)
            part: list[Samples] = []
            for done in range(0, self.samples, repeats):
                outputs = self._sampler.predict_on_batch(batch)
                of_dtype = graph.outputs if graph else tree.flatten(outputs)
                part = part or [
                    Samples(str(x.dtype), kept=return_samples) for x in of_dtype
                ]
                for drawn, output in zip(
                    part, tree.flatten(outputs), strict=True
                ):
                    output = output.reshape((size, repeats, *output.shape[1:]))
                    drawn.add(output[:, : self.samples - done])
            parts.append(part)
        predictions = [
            predicted(list(of_output), examples)
            for of_output in zip(*parts, strict=True)
        ]
        return tree.pack_sequence_as(outputs, predictions)

    def evaluate(
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        sample_weight: Any = None,
        out_of_distribution: Any = None,
        bins: int = 15,
    ) -> dict[str, float] | Any:
        """How good the averaged prediction is, and its uncertainty.

        Of a classifier:

        - `accuracy`: how often the class of the largest mean probability is
          the right one.
        - `negative_log_likelihood`: the mean of minus the logarithm of the
          probability of the right class, in nats. A probability below 1.2e-38
          counts as that number.
        - `brier_score`: the mean of the squared distance between the
          probabilities and the one-hot label, summed over the classes: from 0
          to 2, also of two classes.
        - `expected_calibration_error`: how far the confidence, the largest
          probability, is from the accuracy. The examples are put into bins of
          equal width by their confidence. In each bin the mean confidence is
          compared with the accuracy, and the absolute differences are averaged
          with the number of examples as weight (Guo et al., 2017).
        - `auroc_entropy` and `auroc_mutual_information`, with
          `out_of_distribution`: the area under the ROC curve where that
          uncertainty, averaged over the positions of a sequence or an image,
          detects the examples that are out of distribution. 1 is perfect, and
          0.5 is guessing. Sample weights have no influence on it.

        Of any other model `mean_squared_error`. The spread of the samples is
        that of the model alone, so that it gives no likelihood: the noise of
        the targets would have to be known.

        A classifier is seen in the data: its outputs are probability
        distributions, as `predict` says, or each is one number between 0 and
        1, the probability of class 1, and the labels are 0 and 1. Logits are
        an error, and so are several labels at once.

        Args:
            x: Examples, as `predict` takes them.
            y: Array. The targets: classes as integers, of the shape of the
                output without its last axis, or with a last axis of 1; or
                one-hot, or numbers for a regression, of the shape of the
                output.
            batch_size: Positive integer. As in `predict`.
            sample_weight: Array of weights of 0 or more, of shape
                `(examples,)` or, for outputs of shape `(examples, time,
                classes)`, `(examples, time)`. All measures but the last two
                are weighted means. Where a weight is 0, as at padding, any
                label will do.
            out_of_distribution: Other examples, as `predict` takes them.
            bins: Positive integer. Bins of the calibration error.

        Returns:
            A dict from the name of each measure to its value. Of a model with
            several outputs a structure of dicts, and `y` and `sample_weight`
            are structures, too, as the outputs of the model have it.

        Raises:
            ValueError: If `y` or `sample_weight` does not fit the outputs, if
                there are labels for outputs that are no probabilities, such as
                logits, or `out_of_distribution` for outputs without an
                entropy; if another argument is not of the kind described.

        Reference:

        - [Brier, 1950](https://doi.org/10.1175/1520-0493%281950%29078%3C0001:VOFEIT%3E2.0.CO;2)
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), the calibration
          error
        - [Hendrycks and Gimpel, 2017](https://arxiv.org/abs/1610.02136), the
          detection of examples that are out of distribution
        """
        check_positive_integer("bins", bins)
        found = self.predict(x, batch_size)
        predictions = tree.flatten(found)
        targets = _for_each_output("y", y, found)
        weights: list[Any] = [1.0] * len(predictions)
        if sample_weight is not None:
            weights = _for_each_output("sample_weight", sample_weight, found)
        results = [
            measures(
                prediction.mean,
                prediction.entropy is not None,
                array("y", target),
                array("sample_weight", weight),
                bins,
            )
            for prediction, target, weight in zip(
                predictions, targets, weights, strict=True
            )
        ]
        if out_of_distribution is not None:
            others = tree.flatten(self.predict(out_of_distribution, batch_size))
            for result, inside, outside in zip(
                results, predictions, others, strict=True
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

        `keras.saving.load_model` takes the file, too, and returns the model
        alone. It is the model as it was given, but for its optimizer, losses
        and metrics. A file of that name is replaced as a whole.

        Args:
            filepath: Path that ends in `.keras`.

        Raises:
            ValueError: If `filepath` has another ending.
            OSError: If the file cannot be written.
        """
        path = Path(filepath)
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
        """Reads what `save` has written, on any backend.

        Args:
            filepath: Path of the file.
            custom_objects: Dict from names to classes and functions, as
                `keras.saving.load_model` takes it.
            safe_mode: Boolean. Whether to refuse to load code, as
                `keras.saving.load_model` does.

        Raises:
            ValueError: If `save` has not written the file.
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


def _for_each_output(argument, value, outputs):
    """What a structure, of the structure of the outputs, has for each."""
    found: list[Any] = []
    try:
        tree.map_structure_up_to(
            outputs, lambda _, each: found.append(each), outputs, value
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected an "
            "array for each output, in the structure of the model's outputs. "
            f"{error}"
        ) from error
    return found
