import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .._batches import batches
from .._checks import StrictConfig
from .._checks import check_not_negative
from .._checks import config_of
from .._checks import invalid
from .._keras import DataLayer
from .._keras import in_symbolic_scope
from .._precision import dtype_of_sums

# The number of examples whose products are summed in float32. Adding the sum to
# a float64 matrix is slow, so small batches are gathered first. 5,000 images of
# 32 x 32 x 3 take 60 MB.
CHUNK = 5000


@keras.saving.register_keras_serializable(package="keras_invdrop")
class ZCAWhitening(StrictConfig, DataLayer):
    """Makes the elements of examples uncorrelated, each with variance 1.

    `adapt()` learns the mean and the covariance `V diag(l) V^T` of the
    flattened examples. The layer subtracts the mean and multiplies by
    `V diag(1 / sqrt(l + epsilon)) V^T`, the whitening that changes the examples
    least: whitened images still look like images. Before `adapt()`, and without
    weights from a file, a call raises an error; a compiled step, which cannot
    check the weights, returns NaN.

    The whitening matrix has the square of an example's size (38 MB for images
    of 32 x 32 x 3) and is saved with the model. The layer works in a `tf.data`
    pipeline on every backend.

    Args:
        epsilon: Float, 0 or more. Added to the eigenvalues of the covariance,
            to limit the amplification of directions in which the examples
            hardly vary. The published maxout run on CIFAR-10 uses 0.1.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more, a batch of examples.

    Input shape:
        `(batch, ...)`, with a fixed size except for the batch.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If `epsilon` is not a finite number of at least 0, the
            size of the input is not fixed, or the layer is called before
            `adapt()`.

    Example:

    >>> x = np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 0.0], [2.0, 4.0]])
    >>> layer = keras_invdrop.ZCAWhitening(epsilon=1e-6)
    >>> layer.adapt(x)
    >>> white = ops.convert_to_numpy(layer(x))
    >>> np.round(np.cov(white, rowvar=False), 2) + 0
    array([[1., 0.],
           [0., 1.]])

    Reference:

    - Ba, Xiong and Frey, 2014, section 3.2
    - [Goodfellow et al., 2013](https://arxiv.org/abs/1302.4389)
    """

    def __init__(self, epsilon: float = 0.1, **kwargs: Any):
        # Keras would round the inputs to 16 bits before `call`.
        super().__init__(**{"autocast": False, **kwargs})
        self.epsilon = check_not_negative("epsilon", epsilon)
        self._adapted = False  # False also if unknown
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        if None in input_shape[1:]:
            raise ValueError(
                f"Layer '{self.name}' needs examples of a fixed size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        size = math.prod(input_shape[1:])
        dtype = dtype_of_sums(self.variable_dtype)

        def add_weight(name, shape):
            # `adapt` learns a matrix with a positive diagonal: zeros mean that
            # it has not been called.
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

        self.mean = add_weight("mean", (size,))
        self.whitening = add_weight("whitening", (size, size))
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape),
            axes=dict(enumerate(input_shape[1:], start=1)),
        )

    def adapt(self, data: Any) -> None:
        """Learns the whitening of a data set, in one pass.

        The method sums the products of 5,000 or more examples in float32 and
        adds these sums in float64, with a correction for the running mean.
        Memory holds two or three copies of fewer than 5,000 examples plus one
        batch, and a few matrices of the size of the whitening matrix. Another
        call replaces the earlier whitening.

        Args:
            data: The examples: an array, a `tf.data.Dataset` or a
                `keras.utils.PyDataset` of batches, or an iterable of batches. A
                batch may be a tuple whose first element contains the examples.

        Raises:
            ValueError: If `data` has fewer than two examples, examples of
                different shapes, or a NaN or an infinity, or if the covariance
                is singular and `epsilon` is 0.
        """
        count, shape = 0, ()
        for x in _chunks(data):
            if count == 0:
                self._check_shape(x.shape[1:])
                shape = x.shape[1:]
                size = math.prod(shape)
                mean, scatter = np.zeros(size), np.zeros((size, size))
            if not np.isfinite(x).all():
                raise ValueError(
                    "Invalid value received for argument `data`. Expected "
                    "finite numbers. Received a NaN or an infinity among "
                    f"examples {count} to {count + len(x) - 1}"
                )
            x = x.reshape((len(x), -1)).astype("float32")
            chunk_mean = x.mean(axis=0, dtype="float64")
            x -= chunk_mean.astype("float32")
            scatter += x.T @ x
            # The mean of the chunk minus the mean of all earlier examples.
            difference = chunk_mean - mean
            weight = len(x) / (count + len(x))
            scatter += np.outer(difference, difference * (count * weight))
            mean += difference * weight
            count += len(x)
        if count < 2:
            raise ValueError(
                "Invalid value received for argument `data`. Expected two "
                f"examples or more, of which to learn. Received: {count}"
            )
        eigenvalues, vectors = np.linalg.eigh(scatter / (count - 1))
        # Rounding makes eigenvalues of 0 slightly negative or positive.
        rounding = size * np.finfo("float32").eps * eigenvalues.max()
        variances = np.maximum(eigenvalues, 0) + self.epsilon
        if self.epsilon == 0 and variances.min() <= rounding:
            raise ValueError(
                "The covariance of the examples is singular: some direction "
                "does not vary. Take a larger epsilon. "
                f"Received: epsilon={self.epsilon}, {count} examples of "
                f"{size} elements"
            )
        if not self.built:
            self.build((None, *shape))
        self.mean.assign(mean)
        # A matrix times its own transpose: half of the products suffice.
        root = vectors / variances**0.25
        self.whitening.assign(root @ root.T)
        self._adapted = True

    def _check_shape(self, shape):
        """Raises an error if the layer was built for another shape."""
        expected = shape
        if self.built:
            expected = tuple(self.input_spec.axes.values())
        if shape != expected:
            raise ValueError(
                "Invalid value received for argument `data`. Expected "
                f"examples of shape {expected}, for which layer "
                f"'{self.name}' was built. Received: {shape}"
            )

    def call(self, inputs):
        backend, numpy = self.backend, self.backend.numpy
        # Near 255 bfloat16 represents only integers, and whitening multiplies
        # the rounding error by a hundred where images hardly vary.
        dtype = dtype_of_sums(self.compute_dtype)
        mean = backend.cast(self.convert_weight(self.mean), dtype)
        matrix = backend.cast(self.convert_weight(self.whitening), dtype)
        if not self._adapted:
            self._adapted = self._is_adapted()
            mean = numpy.where(matrix[0, 0] > 0, mean, math.nan)
        shape = backend.shape(inputs)
        x = backend.cast(inputs, dtype)
        x = numpy.reshape(x, (-1, self.mean.shape[0]))
        x = numpy.reshape(numpy.matmul(x - mean, matrix), shape)
        return backend.cast(x, self.compute_dtype)

    def _is_adapted(self):
        """Whether the weights are known to be learned.

        Raises:
            ValueError: If they are known not to be.
        """
        if in_symbolic_scope():  # A model may be built before `adapt`.
            return False
        try:
            corner = float(ops.convert_to_numpy(self.whitening.value[0, 0]))
        except Exception:
            return False  # A step being compiled has no values.
        if corner > 0:
            return True
        raise ValueError(
            f"Layer '{self.name}' has not learned what to whiten. Call "
            "`adapt(data)` first, or load its weights from a file."
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), **config_of(ZCAWhitening, self)}


def _chunks(data):
    """The examples in arrays of at least `CHUNK` examples, except the last."""
    gathered, examples, shape = [], 0, None
    for batch in batches(data, CHUNK):
        if not isinstance(batch, np.ndarray) or batch.ndim < 2:
            raise invalid(
                "data", "examples in one array of rank 2 or more", batch
            )
        if shape not in (None, batch.shape[1:]):
            raise ValueError(
                "Invalid value received for argument `data`. Expected "
                f"examples of shape {shape}. Received: {batch.shape[1:]}"
            )
        shape = batch.shape[1:]
        gathered.append(batch)
        examples += len(batch)
        if examples >= CHUNK:
            yield batch if len(gathered) == 1 else np.concatenate(gathered)
            gathered, examples = [], 0
    if gathered:
        yield np.concatenate(gathered)
