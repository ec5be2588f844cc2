import keras
import numpy as np
import pandas as pd
import pytest
from keras_invdrop.applications.metrics import CodeQuality
from keras_invdrop.experiments.data.splicing import PARTITIONS
from keras_invdrop.experiments.data.splicing import Splicing
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import load_splicing
from keras_invdrop.experiments.data.splicing import partition_of
from keras_invdrop.experiments.data.splicing import save_splicing


@pytest.fixture(scope="module")
def generated():
    """Data of the same size as in the paper."""
    return generate_splicing()


@pytest.fixture
def small():
    """Data with 12 exons, 4 features and 2 tissues."""
    return generate_splicing(exons=12, features=4, tissues=2)


@pytest.fixture
def csv(tmp_path):
    """Writes lines of CSV and returns the path.

    Line 1 is the header, line 3 blank; lines 2 and 4 to 9 are seven exons.
    """
    path = tmp_path / "exons.csv"
    exon = "0.5,0.2,0.3,0.5,1"

    def write(lines=None):
        text = [
            "length,brain/up,brain/down,brain/same,stop",
            exon,
            "",
            *[exon] * 6,
        ]
        for number, line in (lines or {}).items():
            text[number - 1] = line
        path.write_text("\n".join(text) + "\n")
        return path

    return write


def arrays_of(splicing):
    return {
        "features": splicing.features,
        "targets": splicing.targets,
        "partition": splicing.partition,
    }


def assert_equal(one, other):
    for name, array in arrays_of(one).items():
        np.testing.assert_array_equal(getattr(other, name), array)
        assert getattr(other, name).dtype == array.dtype


def test_npz_round_trip(small, tmp_path):
    save_splicing(tmp_path / "new" / "small.npz", small)
    again = load_splicing(tmp_path / "new" / "small.npz")
    assert_equal(small, again)
    assert again.source == small.source
    # No other files are left.
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["small.npz"]


def test_csv_round_trip(small, tmp_path):
    columns = {
        f"{tissue}/{outcome}": small.targets[:, i, j]
        for i, tissue in enumerate(["brain", "gut"])
        for j, outcome in enumerate(["up", "down", "same"])
    }
    first, *features = small.features.T
    # Features may stand between the targets and after them.
    table = pd.DataFrame({"first": first, **columns})
    table["partition"] = small.partition
    for number, feature in enumerate(features):
        table[f"feature {number}"] = feature
    table.to_csv(tmp_path / "small.csv", index=False)
    again = load_splicing(tmp_path / "small.csv")
    assert_equal(small, again)
    assert again.source == "small.csv"


def test_the_contents_of_a_csv_file(csv):
    splicing = load_splicing(csv())
    assert splicing.features.tolist() == [[0.5, 1]] * 7
    np.testing.assert_array_equal(
        splicing.targets, np.float32([[[0.2, 0.3, 0.5]]] * 7)
    )


def test_optional_arrays_of_an_npz_file(small, tmp_path):
    path = tmp_path / "exons.npz"
    np.savez(path, features=small.features, targets=small.targets)
    splicing = load_splicing(path)
    assert splicing.source == "exons.npz"
    # Two exons in each partition, the same ones in every run.
    assert np.bincount(splicing.partition).tolist() == [0, 2, 2, 2, 2, 2, 2]
    assert_equal(splicing, load_splicing(path))
    assert splicing.partition.tolist() != sorted(splicing.partition)


def test_targets_are_scaled_to_a_sum_of_1(csv):
    splicing = load_splicing(csv({4: "0.5,0.2002,0.3003,0.5,1"}))
    np.testing.assert_allclose(
        splicing.targets[1, 0],
        np.array([0.2002, 0.3003, 0.5]) / 1.0005,
        rtol=1e-7,
    )
    np.testing.assert_allclose(splicing.targets.sum(axis=-1), 1, rtol=2e-7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,0.2,0.3,0.5,1", "column `length`: expected a finite.*: 'x'"),
        ("nan,0.2,0.3,0.5,1", "column `length`: expected a finite.*: 'nan'"),
        ("0.5,0.2,0.3,0.5,inf", "column `stop`: expected a finite.*: 'inf'"),
        ("0.5,0.2,0.3,0.5,1e39", "column `stop`: expected a finite.*: '1e39'"),
        ("0.5,0.2,,0.5,1", "column `brain/down`: expected a prob.*: ''"),
        ("0.5,-0.2,0.7,0.5,1", "column `brain/up`: expected a prob.*: '-0.2'"),
        ("0.5,nan,0.7,0.5,1", "column `brain/up`: expected a prob.*: 'nan'"),
        ("0.5,0.2,0.3,0.7,1", "tissue `brain`: .* a sum of 1. Found: 1.2$"),
        ("0.5,0.2,0.3,0.502,1", "tissue `brain`: .* a sum of 1. Found: 1.002$"),
        # Ragged lines: too short and too long.
        ("0.5,0.2,0.3,0.5", "column `stop`: expected a finite.*: ''"),
        ("0.5,0.2,0.3,0.5,1,7", "says: .*Expected 5 fields in line 6, saw 6"),
    ],
)
def test_a_wrong_line_is_named(csv, line, message):
    # Line 6, though line 3 is blank.
    path = csv({6: line})
    with pytest.raises(ValueError, match=message) as caught:
        load_splicing(path)
    assert str(path) in str(caught.value)
    assert "line 6" in str(caught.value)


def test_an_unclosed_quotation_mark(csv):
    # pandas counts rows from 0, and the message says so.
    with pytest.raises(ValueError, match="rows from 0.*starting at row 5"):
        load_splicing(csv({6: '0.5,0.2,"0.3,0.5,1'}))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,b,c,d,e", "three columns `tissue/outcome`, .* Found: none"),
        ("a,b/x,b/y,c/z,d", "Found: 2 of `b`, 1 of `c`"),
        ("b/x,b/y,a,b/z,d", "Found: 2 of `b`, 1 of `b`"),
        ("a,b/x,b/y,b/z,a", "line 1, column 5: .* Found: 'a'"),
        ("a,b/x,b/y,b/z,", "line 1, column 5: .* Found: ''"),
    ],
)
def test_wrong_headers(csv, header, message):
    with pytest.raises(ValueError, match=message):
        load_splicing(csv({1: header}))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_that_no_comma_separates(tmp_path, separator):
    path = tmp_path / "exons.csv"
    lines = ["a,b/x,b/y,b/z", *["1.5,0.2,0.3,0.5"] * 6]
    path.write_text("\n".join(lines).replace(",", separator))
    with pytest.raises(ValueError, match="separated by commas.*: 'a.*b/z'"):
        load_splicing(path)


def test_a_file_without_features(tmp_path):
    path = tmp_path / "exons.csv"
    path.write_text("b/x,b/y,b/z\n" + "0.2,0.3,0.5\n" * 6)
    with pytest.raises(ValueError, match="expected a feature or more"):
        load_splicing(path)


def test_partitions_of_a_csv_file(csv):
    header = {1: "length,brain/up,brain/down,brain/same,partition"}
    numbers = dict(
        zip([2, 4, 5, 6, 7, 8, 9], [3, 1, 2, 6, 5, 4, 4], strict=True)
    )
    lines = {n: f"0.5,0.2,0.3,0.5,{k}" for n, k in numbers.items()}
    splicing = load_splicing(csv(header | lines))
    assert splicing.partition.tolist() == [3, 1, 2, 6, 5, 4, 4]
    assert splicing.features.tolist() == [[0.5]] * 7

    for wrong in ("7", "0", "1.5", "one", ""):
        line = {8: f"0.5,0.2,0.3,0.5,{wrong}"}
        message = f"line 8, column `partition`: .* 1 to 6. Found: '{wrong}'"
        with pytest.raises(ValueError, match=message):
            load_splicing(csv(header | lines | line))

    with pytest.raises(ValueError, match="Found none in partition 3"):
        load_splicing(csv(header | lines | {2: "0.5,0.2,0.3,0.5,4"}))


@pytest.mark.parametrize(
    ("name", "where", "value", "message"),
    [
        ("features", (5, 2), np.nan, "row 5, column `feature 2`: .*: 'nan'"),
        ("features", (5, 2), np.inf, "row 5, column `feature 2`: .*: 'inf'"),
        ("targets", (5, 1, 0), -1, "row 5, column `tissue 1/outcome 0`: .*-1"),
        ("targets", (5, 1), 0.5, "row 5, tissue `tissue 1`: .* Found: 1.5"),
        ("partition", 5, 7, "row 5, column `partition`: .* Found: '7'"),
    ],
)
def test_a_wrong_row_is_named(small, tmp_path, name, where, value, message):
    arrays = arrays_of(small)
    arrays[name][where] = value
    np.savez(tmp_path / "exons.npz", **arrays)
    with pytest.raises(ValueError, match=f"exons.npz, {message}"):
        load_splicing(tmp_path / "exons.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": None}, "expected an array `features`. Found none"),
        ({"targets": None}, "expected an array `targets`. Found none"),
        ({"targets": np.ones((12, 3))}, r"\(exons, tissues, 3\).*\(12, 3\)"),
        (
            {"features": np.ones((11, 4))},
            r"Found: `features` float64 \(11, 4\)",
        ),
        ({"partition": np.ones(11)}, r"`partition` float64 \(11,\)"),
        ({"features": np.full((12, 4), "1")}, r"arrays of numbers.*<U1"),
        (
            {"features": np.full((12, 4), None)},
            "Object arrays cannot be loaded",
        ),
    ],
)
def test_wrong_arrays(small, tmp_path, changed, message):
    arrays = arrays_of(small) | changed
    arrays = {name: x for name, x in arrays.items() if x is not None}
    np.savez(tmp_path / "exons.npz", **arrays)
    with pytest.raises(ValueError, match=f"exons.npz.*{message}"):
        load_splicing(tmp_path / "exons.npz")


def test_a_truncated_npz_file(small, tmp_path):
    path = tmp_path / "exons.npz"
    save_splicing(path, small)
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="exons.npz cannot be read as NPZ"):
            load_splicing(path)


def test_missing_files_and_unknown_formats(small, tmp_path):
    message = "no file .*absent.csv.*`keras-invdrop generate-splicing FILE.npz`"
    with pytest.raises(FileNotFoundError, match=message):
        load_splicing(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="`--data`. .* ends in .csv or .npz"):
        load_splicing(tmp_path / "exons.txt")
    with pytest.raises(ValueError, match="`path`. .* ends in .npz"):
        save_splicing(tmp_path / "exons.csv", small)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="empty.csv cannot be read as CSV"):
        load_splicing(tmp_path / "empty.csv")


def test_too_few_exons(csv):
    # Four of the seven exons are removed.
    with pytest.raises(ValueError, match="at least 6 exons.* Found: 3"):
        load_splicing(csv(dict.fromkeys([5, 7, 8, 9], ",,,,")))


def test_every_exon_is_tested_once(small):
    x = np.arange(12, dtype="float32")[:, np.newaxis]
    splicing = Splicing("here", x, small.targets, small.partition)
    tested = []
    for number in range(1, PARTITIONS + 1):
        mas = partition_of(splicing, number)
        assert (mas.name, mas.source, mas.encoding) == (
            "mas",
            "here",
            "original",
        )
        splits = mas.train, mas.validation, mas.test
        assert [len(split) for split in splits] == [8, 2, 2]
        # The three parts are disjoint and cover all exons.
        exons = np.concatenate([split.x[:, 0] for split in splits])
        assert sorted(exons) == list(range(12))
        for split in splits:
            which = split.x[:, 0].astype(int)
            np.testing.assert_array_equal(split.y, small.targets[which])
        assert set(small.partition[mas.test.x[:, 0].astype(int)]) == {number}
        following = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 1}[number]
        validation = mas.validation.x[:, 0].astype(int)
        assert set(small.partition[validation]) == {following}
        tested.extend(mas.test.x[:, 0])
    assert sorted(tested) == list(range(12))


def test_fewer_exons_to_train_with(small):
    whole, few = partition_of(small, 2), partition_of(small, 2, limit_train=3)
    np.testing.assert_array_equal(few.train.x, whole.train.x[:3])
    np.testing.assert_array_equal(few.train.y, whole.train.y[:3])
    np.testing.assert_array_equal(few.test.x, whole.test.x)
    for wrong in (0, 9, 1.5):
        with pytest.raises(ValueError, match="`limit_train`. .* from 1 to 8"):
            partition_of(small, 2, wrong)


@pytest.mark.parametrize("number", [0, 7, 1.0, "1", None])
def test_partitions_that_do_not_exist(small, number):
    message = "`number`. Expected an integer from 1 to 6. Received: number="
    with pytest.raises(ValueError, match=message):
        partition_of(small, number)


def test_generated_data_are_like_the_papers(generated):
    assert generated.features.shape == (3665, 1014)
    assert generated.targets.shape == (3665, 4, 3)
    assert generated.features.dtype == generated.targets.dtype == np.float32
    assert np.bincount(generated.partition).tolist() == [0] + [611] * 5 + [610]
    # Very sparse: 93 % of the features are 0 and most others are 1.
    assert (generated.features == 0).mean() == pytest.approx(0.93, abs=0.01)
    assert (generated.features == 1).mean() == pytest.approx(0.06, abs=0.01)
    # Soft targets, of which 90 % say most of all "no change"; 72 % of the
    # exons change nowhere.
    np.testing.assert_allclose(generated.targets.sum(axis=-1), 1, rtol=2e-7)
    assert generated.targets.max() < 1
    no_change = generated.targets.argmax(axis=-1) == 2
    assert no_change.mean() == pytest.approx(0.90, abs=0.01)
    assert no_change.all(axis=1).mean() == pytest.approx(0.72, abs=0.01)


def test_generated_data_say_what_they_are(generated):
    assert "generated" in generated.source
    assert "not measured" in generated.source


def test_the_same_seed_makes_the_same_data(small):
    assert_equal(small, generate_splicing(exons=12, features=4, tissues=2))
    other = generate_splicing(exons=12, features=4, tissues=2, seed=1)
    assert not np.array_equal(other.targets, small.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exons": 5}, "`exons`. Expected an integer of at least 6"),
        ({"features": 0}, "`features`. Expected a positive integer"),
        ({"tissues": 1.5}, "`tissues`. Expected a positive integer"),
        ({"seed": -1}, "`seed`. Expected an integer of at least 0"),
    ],
)
def test_bad_options_of_the_generator(options, message):
    with pytest.raises(ValueError, match=message):
        generate_splicing(**options)


def test_a_network_learns_from_generated_data():
    mas = partition_of(generate_splicing(exons=1500, features=60), 1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((60,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(12),
            keras.layers.Reshape((4, 3)),
            keras.layers.Softmax(),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        "categorical_crossentropy",
        metrics=[CodeQuality(mas.train.y.mean(axis=0))],
    )
    logs = model.fit(
        mas.train.x,
        mas.train.y,
        epochs=5,
        validation_data=(mas.validation.x, mas.validation.y),
        verbose=0,
    ).history
    # The naive guess has a code quality of 0.
    assert logs["val_code_quality"][-1] > 50
