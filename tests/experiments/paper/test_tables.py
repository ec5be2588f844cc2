import collections
import dataclasses
import statistics

import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications import recipes
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.paper.tables import rows

pytestmark = pytest.mark.one_backend


def printed(beginning):
    return [row.printed for row in rows(beginning)]


def test_all_rows_of_the_paper():
    tables = collections.Counter(row.table for row in ROWS.values())
    assert tables == {2: 10, 3: 5, 4: 4, 5: 18, 6: 4}
    assert {row.method for row in ROWS.values()} <= set(METHODS)
    for row in ROWS.values():
        assert row.id.endswith(f"/{row.method}")
        assert row.unit == ("bits" if row.table == 5 else "%")


def test_figures_as_printed():
    # Table 2: standard, on input only, on hidden only, invariant, running.
    assert printed("table2/original") == [1.01, 1.01, 1.00, 0.91, 1.00]
    assert printed("table2/inverted") == [1.32, 1.17, 1.23, 0.94, 0.98]
    assert printed("table3") == [57.8, 15.6, 15.13, 12.3, 11.7]
    assert printed("table4") == [2.78, 2.80, 2.80, 2.68]
    assert printed("table6") == [11.7, 11.5, 2.47, 2.33]
    # Table 5, of which section 3.4 gives the means: 431, 465 and 474 bits.
    for method, mean in (("none", 431), ("standard", 465), ("invariant", 474)):
        bits = [row.printed for row in rows("table5") if row.method == method]
        assert len(bits) == 6
        assert statistics.mean(bits) == pytest.approx(mean, abs=1)


def test_data_sets():
    sets = {row.id: row.dataset for row in ROWS.values()}
    assert sets["table2/inverted/invariant"] == "mnist"
    assert sets["table3/relu/standard"] == "cifar10"
    assert sets["table4/relu/invariant"] == "svhn_cropped"
    assert sets["table5/3/none"] == "mas"
    assert sets["table6/svhn/invariant"] == "svhn_cropped"
    for row in ROWS.values():
        if row.table == 2:
            assert row.id.split("/")[1] == row.encoding
        else:
            assert row.encoding == "original"
        if row.table == 5:
            assert row.id.split("/")[1] == str(row.partition)
        else:
            assert row.partition is None


# Feature maps and units, layer by layer; the last is the classifier.
NETWORKS = {
    "784-1000-1000-10": [1000, 1000, 10],
    "DNN 2000-2000": [2000, 2000, 10],
    "ReLU CNN 64c-p-64c-p-64c-p-16lc": [64, 64, 64, 16, 10],
    "ReLU CNN 64c-p-64c-p-128c-p-fc, stochastic pooling": [64, 64, 128, 10],
    "ReLU CNN 64c-p-64c-p-128c-p-fc-fc": [64, 64, 128, 2048, 2048, 10],
    "ReLU CNN 128c-p-128c-p-128c-p-1000fc": [128, 128, 128, 1000, 10],
    "Maxout CNN 96c-p-192c-p-192c-p-500fc": [96, 192, 192, 500, 10],
    "Maxout CNN 64c-p-128c-p-128c-p-400fc": [64, 128, 128, 400, 10],
    "1014-1000, softmax": [1000, 12],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_what_their_names_say(name):
    networks = {row.network.name: row.network for row in ROWS.values()}
    assert set(networks) == set(NETWORKS)
    model = networks[name].build(dropout="none")
    sizes = [
        getattr(layer, "filters", getattr(layer, "units", None))
        for layer in model.layers
    ]
    assert [size for size in sizes if size is not None] == NETWORKS[name]
    stochastic = [x for x in model.layers if "Stochastic" in type(x).__name__]
    assert len(stochastic) == (3 if "stochastic" in name else 0)


def test_one_row_or_several():
    assert [row.id for row in rows("table3/relu/invariant")] == [
        "table3/relu/invariant"
    ]
    assert [row.id for row in rows("table5/1")] == [
        "table5/1/none",
        "table5/1/standard",
        "table5/1/invariant",
    ]
    assert len(rows("table5")) == 18


@pytest.mark.parametrize("name", ["", "table", "table7", "table3/rel", "x"])
def test_unknown_row(name):
    with pytest.raises(ValueError, match="`row`. Expected a row of the paper"):
        rows(name)


def test_the_nearest_names_are_suggested():
    with pytest.raises(ValueError, match="such as table3/relu/invariant"):
        rows("table3/relu/invarient")
    with pytest.raises(ValueError, match="such as table2, table3, .*row='q'"):
        rows("q")


def test_settings_are_selected_for_what_trains_alike():
    table = {row.id: row for row in rows("table2")}
    # Dropping inputs to zero has a different effect on the inverted encoding,
    # so each encoding and method has its own settings.
    own = {
        str(row.recipe)
        for row in table.values()
        if row.method in ("standard", "invariant")
    }
    assert len(own) == 4
    # With calibration, both encodings train alike and share their settings.
    for encoding in ("original", "inverted"):
        row = table[f"table2/{encoding}/invariant"]
        recipe = row.trained(calibrated=True)
        assert recipe == dataclasses.replace(
            recipes.MNIST_CALIBRATED, calibrated=True
        )
        # All searches are equally long.
        assert row.selection == row.calibrated_selection
        assert row.selection == table[f"table2/{encoding}/standard"].selection
    cnn = ROWS["table3/relu/invariant"]
    recipe = dataclasses.replace(recipes.RELU_CNN_CALIBRATED, calibrated=True)
    assert cnn.trained(True) == recipe
    assert cnn.selection == cnn.calibrated_selection
    assert cnn.selection == ROWS["table3/relu/standard"].selection
    # Other rows have one recipe for both.
    other = ROWS["table6/cifar10/invariant"]
    recipe = dataclasses.replace(other.recipe, calibrated=True)
    assert other.trained(True) == recipe
