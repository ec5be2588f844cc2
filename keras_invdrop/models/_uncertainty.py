"""Measures of the quality of predictions and of their uncertainty.

Each measure is a line or two of NumPy, which saves a dependency. The tests
compare the measures with those of scikit-learn where available.
"""

import numpy as np
from keras import ops

from .._checks import invalid

# A lower bound before `log`: the probability of a class may be 0 in every
# sample.
SMALLEST = np.finfo("float32").tiny


def measures(
    mean: np.ndarray,
    distribution: bool,
    y: np.ndarray,
    sample_weight: np.ndarray,
    bins: int,
) -> dict[str, float]:
    """The measures of one output; `MonteCarlo.evaluate` describes them.

    Args:
        mean: The mean of the samples, of shape `(examples, ..., units)`.
        distribution: Whether all samples are probability distributions.
        y: The targets, as an array of numbers.
        sample_weight: The weights, which broadcast to all axes of `mean` except
            the last.
        bins: The number of bins of the calibration error.

    Raises:
        ValueError: If `y` or `sample_weight` is invalid.
    """
    if mean.ndim == 1:
        mean = mean[:, None]
    if y.shape == mean.shape[:-1]:
        y = y[..., None]
    shape, units = mean.shape, mean.shape[-1]
    if y.shape not in (shape, (*shape[:-1], 1)):
        raise ValueError(
            "Invalid value received for argument `y`. Expected targets of "
            f"shape {shape}, as the output, or classes of shape {shape[:-1]}. "
            f"Received: shape {y.shape}"
        )
    weights = _weights(sample_weight, shape[:-1])
    kept = weights > 0
    mean, y, weights = mean[kept], y[kept], weights[kept]
    if distribution:
        return _of_classes(mean, _classes(y, units), weights, bins)
    are_labels = y.shape != mean.shape or np.isin(y, (0, 1)).all()
    if not are_labels:
        errors = ((mean - y) ** 2).mean(axis=-1)
        return {"mean_squared_error": _average(errors, weights)}
    if units > 1 or not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(
            "Argument `y` has labels, but the outputs are not probabilities of "
            "classes. If they are logits, end the model with a softmax: "
            "`keras.Model(model.inputs, "
            "keras.layers.Softmax()(model.outputs[0]))`, or with "
            "`keras.layers.Activation('sigmoid')` for a single logit. "
            f"Received: outputs of shape {shape} from {mean.min():.3g} to "
            f"{mean.max():.3g}"
        )
    both = np.concatenate([1 - mean, mean], axis=-1)
    return _of_classes(both, _classes(y, 2), weights, bins)


def _of_classes(p, classes, weights, bins):
    """The measures of probabilities of shape `(positions, classes)`."""
    of_class = np.take_along_axis(p, classes[:, None], axis=-1)[:, 0]
    confidence = p.max(axis=-1)
    correct = p.argmax(axis=-1) == classes
    # The bins are open on the left, as in Guo et al.
    which = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    gaps = np.bincount(which, weights * (correct - confidence))
    surprise = -np.log(np.maximum(of_class, SMALLEST))
    squares = (p**2).sum(axis=-1) - 2 * of_class + 1
    return {
        "accuracy": _average(correct, weights),
        "negative_log_likelihood": _average(surprise, weights),
        "brier_score": _average(squares, weights),
        "expected_calibration_error": float(np.abs(gaps).sum() / weights.sum()),
    }


def _average(values, weights):
    return float(np.average(values, weights=weights))


def _classes(y, classes):
    """The class of each row of `y`, as an integer."""
    if y.shape[-1] == 1:
        number = y[:, 0]
        if np.isin(number, np.arange(classes)).all():
            return number.astype(int)
    elif np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all():
        return y.argmax(axis=-1)
    sums = ""
    if y.shape[-1] > 1:
        of_rows = y.sum(axis=-1)
        sums = f", with rows that add up to {of_rows.min()} to {of_rows.max()}"
    raise ValueError(
        "Invalid value received for argument `y`. Expected classes from 0 to "
        f"{classes - 1}, or one-hot rows. Received: values from {y.min()} to "
        f"{y.max()}{sums}"
    )


def _weights(given, shape):
    """Broadcasts weights to `shape` from a scalar or its leading axes."""
    fits = given.ndim == 0 or given.shape == shape[: given.ndim]
    if (
        not fits
        or not (np.isfinite(given) & (given >= 0)).all()
        or not given.any()
    ):
        shapes = " or ".join(map(str, dict.fromkeys((shape, shape[:1]))))
        raise ValueError(
            "Invalid value received for argument `sample_weight`. Expected "
            f"weights of 0 or more, not all 0, of shape {shapes}. "
            f"Received: shape {given.shape}"
        )
    missing = (1,) * (len(shape) - given.ndim)
    return np.broadcast_to(given.reshape(given.shape + missing), shape)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The area under the ROC curve of a score that detects `outside`.

    This is the probability that the score of an example in `outside` exceeds
    that of an example in `inside`, where a tie counts one half: the
    Mann-Whitney statistic divided by the number of pairs.

    Args:
        inside: Scores of shape `(examples, ...)`; further axes are averaged.
        outside: Scores of other examples, in the same form.
    """
    inside, outside = (
        x.reshape((len(x), -1)).mean(axis=1) for x in (inside, outside)
    )
    inside = np.sort(inside)
    below = np.searchsorted(inside, outside, "left")
    not_above = np.searchsorted(inside, outside, "right")
    return float((below + not_above).mean() / (2 * len(inside)))


def as_numbers(argument: str, value) -> np.ndarray:
    """`value` as an array of numbers.

    Raises:
        ValueError: If `value` is not an array of numbers.
    """
    is_tensor = ops.is_tensor(value)
    found = ops.convert_to_numpy(value) if is_tensor else np.asarray(value)
    if found.dtype.kind not in "biuf":
        raise invalid(argument, "an array of numbers", value)
    return found
