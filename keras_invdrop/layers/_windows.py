"""The windows of an image, for layers that process each separately."""

from keras import ops

from .._checks import check_choice
from .._checks import invalid
from .._checks import is_integer
from .._checks import is_shape


def check_pair(argument, value):
    """Returns `value`, an int or a pair of ints of at least 1, as a pair."""
    pair = (value, value) if is_integer(value) else value
    if not is_shape(pair, (2,)):
        expected = "a positive integer or a pair of positive integers"
        raise invalid(argument, expected, value)
    return tuple(int(size) for size in pair)


def check_padding(padding):
    """Returns `padding`, "valid" or "same" in lower case, as Keras does."""
    if isinstance(padding, str):
        padding = padding.lower()
    return check_choice("padding", padding, ("valid", "same"))


def count_windows(length, size, stride, padding):
    """How many windows fit along an axis; None if `length` is None."""
    if length is None:
        return None
    if padding == "same":
        return -(-length // stride)
    count = (length - size) // stride + 1
    # On TensorFlow `count` is a tensor if the length is unknown until run time.
    if is_integer(count) and count < 1:
        raise ValueError(
            f"No window of size {size} fits into an axis of length {length}: "
            "take a smaller `kernel_size` or `pool_size`, or "
            '`padding="same"`.'
        )
    return count


def windows_shape(input_shape, size, strides, padding, data_format, channels):
    """The shape of an output of `channels` for each window of the input."""
    first = data_format == "channels_first"
    lengths = input_shape[2:] if first else input_shape[1:3]
    counts = [
        count_windows(*each, padding)
        for each in zip(lengths, size, strides, strict=True)
    ]
    if first:
        return (input_shape[0], channels, *counts)
    return (input_shape[0], *counts, channels)


def windows(images, size, strides, padding):
    """Each window's pixels, as one image per position in the window.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.
        size: Pair of integers, height and width of a window.
        strides: Pair of integers, from one window to the next.
        padding: `"valid"`: windows inside the image. `"same"`: zeros around it,
            with the extra zero of an odd number below and on the right.

    Returns:
        A list of `size[0] * size[1]` tensors of shape
        `(batch, new_height, new_width, channels)`: the first contains the top
        left pixel of each window, the last the bottom right one.
    """
    images = padded(images, size, strides, padding)
    spans = [
        # From the first pixel of the first window to that of the last.
        (count_windows(length, window, stride, "valid") - 1) * stride + 1
        for length, window, stride in zip(
            _lengths(images), size, strides, strict=True
        )
    ]
    return [
        images[
            :,
            top : top + spans[0] : strides[0],
            left : left + spans[1] : strides[1],
        ]
        for top in range(size[0])
        for left in range(size[1])
    ]


def padded(images, size, strides, padding):
    """The images with the zeros around them, for `"same"`, that windows reach.

    The windows of the result with the padding `"valid"` are those of `images`
    with `padding`. Arguments: those of `windows`.
    """
    if padding == "valid":
        return images
    margins = []
    for length, window, stride in zip(
        _lengths(images), size, strides, strict=True
    ):
        count = count_windows(length, window, stride, padding)
        margin = _at_least_zero((count - 1) * stride + window - length)
        margins.append((margin // 2, margin - margin // 2))
    return ops.pad(images, [(0, 0), *margins, (0, 0)])


def _lengths(images):
    """Height and width, which are tensors if unknown until run time."""
    lengths = images.shape[1:3]
    if None in lengths:
        # Only then: in a file for OpenVINO the shape would become an output.
        lengths = ops.shape(images)[1:3]
    return lengths


def _at_least_zero(margin):
    return max(margin, 0) if is_integer(margin) else ops.maximum(margin, 0)
