import subprocess
import sys

import keras
import matplotlib
import numpy as np
import pytest
from keras import layers

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402

from keras_invdrop import InvariantDropout  # noqa: E402
from keras_invdrop import RunningAverageDropout  # noqa: E402
from keras_invdrop import SharedInvariantDropout  # noqa: E402
from keras_invdrop import plots  # noqa: E402
from keras_invdrop import variance_report  # noqa: E402


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def built(layer, shape, beta=None):
    layer.build((None, *shape))
    if beta is not None:
        layer.set_shift(np.reshape(beta, layer.shift.shape))
    return layer


@pytest.mark.one_backend
def test_the_library_is_imported_without_matplotlib():
    # Keras imports it where it is installed.
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'scipy.stats', 'tensorboardX'):\n"
        "    sys.modules[name] = None  # cannot be imported\n"
        "import keras_invdrop\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_zeros_alone_are_in_the_middle_of_the_scale(ax):
    plots.plot_image(np.zeros((2, 2)), ax, symmetric=True)
    (image,) = ax.images
    assert image.get_clim() == (-1, 1)
    white = image.to_rgba(0.0)[:3]
    assert min(white) > 0.95


def test_an_image_has_two_axes():
    with pytest.raises(ValueError, match=r"`values`.*Received: shape \(3,\)"):
        plots.plot_image([1.0, 2.0, 3.0])


def test_beta_of_a_flat_input(ax):
    beta = np.arange(6.0) - 2
    layer = built(InvariantDropout(0.5), (6,), beta)
    assert plots.plot_beta(layer, ax, "a title", shape=(2, 3)) is ax
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), beta.reshape(2, 3))
    assert image.get_clim() == (-3, 3)
    assert ax.get_title() == "a title"


def test_beta_of_an_image_and_of_its_channels(ax):
    beta = np.arange(12.0).reshape(2, 3, 2)
    plots.plot_beta(built(InvariantDropout(0.5), (2, 3), beta[..., 0]), ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), beta[..., 0])
    plots.plot_beta(built(InvariantDropout(0.5), (2, 3, 2), beta), ax)
    # The mean of the neighbours 2 i and 2 i + 1.
    np.testing.assert_array_equal(
        ax.images[1].get_array(), [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    )


def test_beta_of_channels_first(ax):
    beta = np.arange(12.0).reshape(2, 2, 3)
    keras.config.set_image_data_format("channels_first")
    try:
        plots.plot_beta(built(InvariantDropout(0.5), (2, 2, 3), beta), ax)
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(
        ax.images[0].get_array(), [[3, 4, 5], [6, 7, 8]]
    )


def test_the_shift_of_a_running_average_is_its_negative(ax):
    layer = built(RunningAverageDropout(0.5), (1, 2))
    layer.average.assign([[1.0, 2.0]])
    plots.plot_beta(layer, ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[-1, -2]])


@pytest.mark.parametrize("shape", [None, (2, 4), (6,), "six", (2.0, 3.0)])
def test_a_beta_that_does_not_have_the_shape_of_an_image(shape):
    layer = built(InvariantDropout(0.5), (6,))
    with pytest.raises(ValueError, match=r"`shape`. Expected \(height, width"):
        plots.plot_beta(layer, shape=shape)


def test_what_has_no_beta_for_each_pixel():
    shared = built(SharedInvariantDropout(0.5, "channels_last"), (4, 4, 3))
    with pytest.raises(ValueError, match="`layer`.*one for each feature map"):
        plots.plot_beta(shared)
    for layer in (layers.Dropout(0.5), InvariantDropout(0.5)):
        with pytest.raises(ValueError, match="`layer`. Expected a dropout"):
            plots.plot_beta(layer)


def test_errors_are_means_with_their_intervals(ax):
    errors = {"invariant, test": [[40.0, 2.0], [42.0, 3.0], [44.0, 7.0]]}
    assert plots.plot_errors(errors, ax, "a title") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2])
    np.testing.assert_array_equal(line.get_ydata(), [42.0, 4.0])
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    # Student's t with 2 degrees of freedom is 4.3027. In the first epoch
    # s = 2, in the second sqrt(7).
    first, second = 4.3027 * 2 / 3**0.5, 4.3027 * (7 / 3) ** 0.5
    for height in (42 - first, 42 + first, 4 - second, 4 + second):
        assert np.isclose(heights, height, atol=1e-3).any()
    # The last interval reaches below zero, but the axis does not.
    assert 4 - second < 0
    assert ax.get_ylim()[0] == pytest.approx(2)
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "invariant, test"
    assert "95 %" in ax.get_legend().get_title().get_text()
    assert ax.get_xlabel() == "epoch"
    assert "%" in ax.get_ylabel()


@pytest.mark.parametrize(
    "errors", [{}, [1.0], {"a": [[1.0, 2.0], [3.0]]}, {"a": []}]
)
def test_what_are_no_errors(errors):
    with pytest.raises(ValueError, match="`errors`. Expected a dict from lab"):
        plots.plot_errors(errors)


def test_a_single_seed_has_no_interval(ax):
    plots.plot_errors({"invariant": [4.0, 2.0]}, ax)
    assert not ax.collections
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4.0, 2.0])
    assert ax.get_legend().get_title().get_text() == ""


@pytest.mark.parametrize("number", [1, 2, 6])
def test_the_legend_covers_no_curve(number):
    figure, ax = plt.subplots(layout="constrained")
    # The legend is at the top, where curves with constant errors run.
    curves = {f"method {i}, training": [[50.0] * 20] * 2 for i in range(number)}
    plots.plot_errors(curves | {"other, training": [[1.0] * 20] * 2}, ax)
    figure.draw_without_rendering()
    bottom = ax.get_legend().get_window_extent().y0
    assert ax.transData.transform((0, 50.0))[1] < bottom
    labels = [tick.get_text() for tick in ax.get_yticklabels(which="both")]
    assert max(float(label) for label in labels if label) <= 100
    plt.close(figure)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([85.0, 28.0], ["30", "40", "50", "70", "100"]),
        ([80.0, 2.0], ["2", "5", "10", "20", "50", "100"]),
    ],
)
def test_errors_can_be_read_from_the_axis(errors, expected):
    figure, ax = plt.subplots(layout="constrained")
    plots.plot_errors({"standard, training": errors}, ax)
    figure.draw_without_rendering()
    low, high = ax.get_ylim()
    labels = [
        (tick.get_position()[1], tick.get_text())
        for which in ("major", "minor")
        for tick in ax.yaxis.get_ticklabels(which=which)
    ]
    seen = [text for y, text in sorted(labels) if text and low <= y <= high]
    assert seen == expected
    plt.close(figure)


def test_shared_axes_show_the_curves_of_both():
    figure, axes = plt.subplots(1, 2, sharey=True)
    for ax, errors in zip(axes, ([9.0, 5.0], [80.0, 2.0]), strict=True):
        plots.plot_errors({"standard": errors}, ax)
    low, high = axes[0].get_ylim()
    assert low < 2 < 80 < high
    plt.close(figure)


def test_a_method_has_one_look_in_all_pictures():
    def looks(*methods):
        drawn = plots.plot_errors({f"{each}, test": [3.0] for each in methods})
        return {
            line.get_label().split(",")[0]: (
                line.get_color(),
                line.get_marker(),
            )
            for line in drawn.lines
        }

    known = looks("standard", "invariant from 0", "calibrated")
    assert len(set(known.values())) == 3
    for method, look in known.items():
        assert looks("mine", "running average", method)[method] == look
    # No other method gets the look of one that is drawn.
    crowd = looks("mine", "standard", "yours", "calibrated", "theirs")
    assert len(set(crowd.values())) == 5
    plt.close("all")


def test_methods_differ_in_more_than_colour(ax):
    labels = ["a, training", "a, test", "b, training", "b, test"]
    plots.plot_errors({label: [3.0, 2.0] for label in labels}, ax)
    looks = {
        line.get_label(): (line.get_color(), line.get_marker())
        for line in ax.lines
    }
    assert looks["a, training"] == looks["a, test"]
    assert looks["a, test"][0] != looks["b, test"][0]
    assert looks["a, test"][1] != looks["b, test"][1]
    dashed = {line.get_label(): line.get_linestyle() for line in ax.lines}
    assert [dashed[label] for label in labels] == ["--", "-", "--", "-"]


def test_mean_against_shift_prints_the_correlation(ax):
    mean = np.array([0.0, 1.0, 2.0, 3.0])
    shift = np.array([0.0, -1.0, -2.0, -1.0])
    assert plots.plot_mean_against_shift(mean, shift, ax) is ax
    np.testing.assert_array_equal(
        ax.collections[0].get_offsets(), np.stack([mean, shift], axis=1)
    )
    # By hand: -2 / sqrt(5 * 2).
    assert ax.texts[0].get_text() == "r = -0.63"


def test_a_constant_beta_has_no_correlation(ax):
    plots.plot_mean_against_shift([0.0, 1.0], [0.0, 0.0], ax)
    assert ax.texts[0].get_text() == "r undefined"


def test_a_mean_for_each_shift():
    with pytest.raises(ValueError, match="`shift`.*each of 2 mean.*3 values"):
        plots.plot_mean_against_shift([0.0, 1.0], [0.0, 1.0, 2.0])


def test_variance_report_has_three_bars_for_each_layer(ax):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            InvariantDropout(0.5, name="drop"),
            layers.Dense(1, kernel_initializer="ones", name="dense"),
            layers.Dropout(0.5, name="last"),
        ]
    )
    model.layers[0].beta.assign([-1.0, -3.0])
    report = variance_report(model, np.array([[1.0, 3.0], [3.0, 3.0]]))
    assert plots.plot_variance_report(report, ax, "a title") is ax
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    # By hand, with p = 1/2: mean of 1 + 9 and 9 + 9; of 0 and 4; of 1 and 1.
    np.testing.assert_allclose([h[0] for h in heights], [14, 2, 1], rtol=1e-6)
    # The last layer receives the sums 0 and 2: the mean of the squares 0 and 4,
    # the same, and 1 around their mean.
    np.testing.assert_allclose([h[1] for h in heights], [2, 2, 1], rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == [
        "14", "2", "2", "2", "1", "1"
    ]  # fmt: skip
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == ["drop\n→ dense", "last"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["shift at zero", "now", "at minus the mean activity"]
    assert len({bars[0].get_hatch() for bars in ax.containers}) == 3


@pytest.mark.parametrize("report", [[], None, [1.0]])
def test_what_is_no_report(report):
    with pytest.raises(ValueError, match="`report`. Expected the result"):
        plots.plot_variance_report(report)


def test_mask_is_one_that_the_layer_draws(ax):
    assert plots.plot_mask(0.25, (40, 50), ax, "a title", seed=3) is ax
    mask = np.array(ax.images[0].get_array())
    layer = built(InvariantDropout(0.25, seed=3), (50,))
    drawn = keras.ops.convert_to_numpy(
        layer(np.ones((40, 50), dtype="float32"), training=True)
    )
    np.testing.assert_array_equal(mask, drawn > 0)
    assert f"{1 - mask.mean():.1%} dropped" in ax.get_xlabel()
    plots.plot_mask(0.25, (40, 50), ax, seed=4)
    assert (np.array(ax.images[1].get_array()) != mask).any()


def test_mask_with_one_draw_for_an_axis(ax):
    plots.plot_mask(0.5, (30, 4), ax, noise_shape=(None, 1))
    mask = np.array(ax.images[0].get_array())
    assert mask.shape == (30, 4)
    assert (mask == mask[:, :1]).all()
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize("rate", [0, 1])
def test_masks_of_all_and_of_nothing(rate, ax):
    plots.plot_mask(rate, (2, 3), ax)
    assert (ax.images[0].get_array() == 1 - rate).all()
    assert f"{rate:.1%} dropped" in ax.get_xlabel()


def test_mask_errors():
    with pytest.raises(ValueError, match="`rate`. Expected a float value bet"):
        plots.plot_mask(2, (2, 2))
    with pytest.raises(ValueError, match="`shape`. Expected two positive"):
        plots.plot_mask(0.5, (2,))
    with pytest.raises(ValueError, match="`noise_shape`. Expected one elem"):
        plots.plot_mask(0.5, (2, 2), noise_shape=(1, 3))
    with pytest.raises(ValueError, match="`seed`. Expected an integer"):
        plots.plot_mask(0.5, (2, 2), seed="zero")


def test_new_axes_where_none_are_given():
    ax = plots.plot_image([[1.0]])
    assert ax.figure.axes[0] is ax
    plt.close(ax.figure)


def test_errors_of_zero_are_drawn():
    ax = plots.plot_errors({"a": np.zeros((2, 3))})
    assert ax.get_legend_handles_labels()[1] == ["a"]
    with pytest.raises(ValueError, match="`errors`. Expected a dict from lab"):
        plots.plot_errors({"a": {"b": 1}})
