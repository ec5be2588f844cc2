import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402

from keras_invdrop import plots  # noqa: E402


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_image_shows_the_values(ax):
    values = np.array([[0.0, 1.0], [2.0, -4.0]])
    assert plots.plot_image(values, ax, "a title") is ax
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), values)
    assert image.get_clim() == (-4, 2)
    assert ax.get_title() == "a title"


def test_symmetric_image_has_zero_in_the_middle(ax):
    plots.plot_image([[1.0, -3.0]], ax, symmetric=True)
    assert ax.images[0].get_clim() == (-3, 3)


def test_errors_are_means_within_their_range(ax):
    errors = {"invariant, test": [[4.0, 2.0], [2.0, 1.0]]}
    assert plots.plot_errors(errors, ax, "a title") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2])
    np.testing.assert_array_equal(line.get_ydata(), [3.0, 1.5])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 1
    assert corners[:, 1].max() == 4
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "invariant, test"
    assert ax.get_xlabel() == "epoch"
    assert "%" in ax.get_ylabel()


def test_mean_against_shift_prints_the_correlation(ax):
    mean = np.array([0.0, 1.0, 2.0, 3.0])
    shift = np.array([0.0, -1.0, -2.0, -1.0])
    assert plots.plot_mean_against_shift(mean, shift, ax) is ax
    np.testing.assert_array_equal(
        ax.collections[0].get_offsets(), np.stack([mean, shift], axis=1)
    )
    # By hand: -2 / sqrt(5 * 2).
    assert ax.texts[0].get_text() == "r = -0.63"


def test_new_axes_where_none_are_given():
    ax = plots.plot_image([[1.0]])
    assert ax.figure.axes[0] is ax
    plt.close(ax.figure)
