import collections
import statistics

import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications.tables import ROWS
from keras_invdrop.applications.tables import rows


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


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (row, part)
        for row in ROWS.values()
        for part in row.network.name.split()[-1].split("-")
        if row.table in (3, 4, 6) and part.rstrip("cfl").isdigit()
    ],
    ids=lambda value: getattr(value, "id", value),
)
def test_networks_are_what_their_names_say(row, name):
    # 128c, 1000fc, 16lc or 2000: some layer has so many units.
    size = int(name.rstrip("cfl"))
    layers = row.network.build(dropout="none").layers
    units = {
        getattr(layer, "filters", getattr(layer, "units", None))
        for layer in layers
    }
    assert size in units


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
    with pytest.raises(ValueError, match="`row`. Expected the id of a row"):
        rows(name)


def test_the_nearest_names_are_suggested():
    with pytest.raises(ValueError, match="near are table3/relu/invariant"):
        rows("table3/relu/invarient")
    with pytest.raises(ValueError, match=r"lists them\). Received: row='q'"):
        rows("q")
