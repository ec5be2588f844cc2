"""The measure of Table 5."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_invdrop._checks import check_boolean
from keras_invdrop._checks import invalid
from keras_invdrop._keras import set_direction


@keras.saving.register_keras_serializable(package="keras_invdrop")
class CodeQuality(keras.metrics.Sum):
    """The gain of predictions over a naive guess, in bits.

    The metric sums `KL(target || naive guess) - KL(target || prediction)`,
    with logarithms to base 2, over the examples and their tissues. That
    difference equals the sum of `target * log2(prediction / naive_guess)` over
    the outcomes. The naive guess itself scores 0, worse predictions score
    below 0, and higher is better. As a sum rather than a mean, the metric
    grows with the number of examples and, up to rounding, does not depend on
    the batch size.

    `keras.config.epsilon()` is a lower bound for predicted and guessed
    probabilities. Otherwise an outcome that the training set lacks, for which
    the naive guess is 0, would be worth infinitely many bits. With the bound it
    is worth at most `-log2(1e-7)`, 23 bits, and nothing if the prediction is
    also 0.

    Args:
        naive_guess: Array of shape `(outcomes,)` or `(tissues, outcomes)`:
            the mean target of the training set, a distribution along the last
            axis.
        name: Name of the metric.
        dtype: The dtype of the metric's computations.
        from_logits: Boolean. Whether predictions are logits rather than
            probabilities.

    Call arguments:
        y_true: Targets, distributions over the outcomes, of shape
            `(batch, *naive_guess.shape)`.
        y_pred: Predictions, of the same shape.
        sample_weight: Weights of the examples, of shape `(batch,)`, or of
            their tissues, `(batch, tissues)`; by default all are 1.

    Raises:
        ValueError: If `naive_guess` or `from_logits` is not as described, or
            the shape of `y_true` or `y_pred` does not match `naive_guess`.

    Example:

    >>> metric = CodeQuality(naive_guess=[0.25, 0.25, 0.5])
    >>> metric.update_state([[1.0, 0.0, 0.0]], [[0.5, 0.25, 0.25]])
    >>> float(metric.result())
    1.0

    Reference:

    - Ba, Xiong and Frey, 2014, section 3.4
    - Barash et al., 2010, Deciphering the splicing code
    """

    def __init__(
        self,
        naive_guess: Any,
        name: str = "code_quality",
        dtype: Any = None,
        from_logits: bool = False,
    ):
        super().__init__(name=name, dtype=dtype)
        self.naive_guess = _check_naive_guess(naive_guess)
        self.from_logits = check_boolean("from_logits", from_logits)
        set_direction(self, "up")

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        target = ops.convert_to_tensor(y_true, dtype=self.dtype)
        prediction = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        shape = self.naive_guess.shape
        _check_shape("y_pred", prediction, (None, *shape))
        _check_shape("y_true", target, (prediction.shape[0], *shape))
        if self.from_logits:
            prediction = ops.softmax(prediction, axis=-1)
        naive = ops.convert_to_tensor(self.naive_guess, dtype=self.dtype)
        gain = ops.log2(_floored(prediction) / _floored(naive))
        # (batch,) or (batch, tissues)
        bits = ops.sum(target * gain, axis=-1)
        super().update_state(bits, sample_weight)

    def result(self) -> Any:
        # On PyTorch, Keras' sum may be the variable itself: validation would
        # overwrite the value in the training logs.
        return ops.copy(super().result())

    def get_config(self):
        config = {
            "naive_guess": self.naive_guess.tolist(),
            "from_logits": self.from_logits,
        }
        return {**super().get_config(), **config}


def _floored(probabilities):
    return ops.maximum(probabilities, keras.config.epsilon())


def _check_naive_guess(naive_guess):
    """Returns `naive_guess` as an array of distributions."""
    expected = (
        "an array of shape (outcomes,) or (tissues, outcomes), finite and not "
        "negative, that sums to 1 along the last axis"
    )
    try:
        array = np.array(naive_guess, dtype="float64")
    except (TypeError, ValueError) as error:
        raise invalid("naive_guess", expected, naive_guess) from error
    # A NaN fails the comparison; an infinity does not sum to 1.
    if array.ndim not in (1, 2) or not (array >= 0).all():
        raise invalid("naive_guess", expected, naive_guess)
    if not np.allclose(array.sum(axis=-1), 1, rtol=0, atol=1e-3):
        raise invalid("naive_guess", expected, naive_guess)
    return array


def _check_shape(argument, value, expected):
    """Raises unless `value` has shape `expected`; None means any size."""
    shape = tuple(value.shape)
    fits = len(shape) == len(expected) and all(
        None in (size, wanted) or size == wanted
        for size, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected the "
            f"shape {expected}, the batch and that of the naive guess. "
            f"Received: {argument}.shape={shape}"
        )
