import dataclasses
import json

import numpy as np
import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import records as results
from keras_invdrop.experiments.train.training import finished
from keras_invdrop.experiments.train.trial import Trial


def test_round_trip(result, tmp_path):
    path = tmp_path / "new" / "result.json"
    result = dataclasses.replace(
        result, correlations={"input_dropout": -0.5, "hidden_1_dropout": None}
    )
    results.write_result(path, result)
    assert results.read_result(path) == result
    assert json.loads(path.read_text())["format"] == results.FORMAT
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


# The recipe's settings in files without a format number.
SETTINGS = [
    "batch_size",
    "beta_decay",
    "epochs",
    "hidden_rate",
    "input_rate",
    "learning_rate",
    "learning_rate_end",
    "learning_rate_factors",
    "learning_rate_fall",
    "max_norm",
    "momentum",
    "momentum_ramp",
    "momentum_start",
    "retrain",
]


def old_content(result):
    content = dataclasses.asdict(result)
    recipe = {name: content["recipe"][name] for name in SETTINGS}
    return content | {"recipe": recipe}


def test_an_old_result_is_read_as_what_it_was(result, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(old_content(result)))
    # Whatever settings the row has today.
    row = ROWS[result.row]
    for name, value in {
        "initial_stddev": (0.01, 0.01, 0.0),
        "beta_factor": 10.0,
        "warm_up": 0.1,
        "weight_decay": 1e-5,
        "ema_momentum": 0.999,
        "calibrated": True,
        "dtype_policy": "mixed_bfloat16",
    }.items():
        recipe = dataclasses.replace(row.recipe, **{name: value})
        monkeypatch.setitem(
            ROWS, result.row, dataclasses.replace(row, recipe=recipe)
        )
        recipe = results.read_result(path).recipe
        assert recipe == results.BEFORE | old_content(result)["recipe"]
        assert recipe[name] != value
    # A missing setting that all files have is not invented.
    content = old_content(result)
    del content["recipe"]["momentum"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its recipe lacks momentum"):
        results.read_result(path)


def test_a_result_says_all_settings(result, tmp_path):
    path = tmp_path / "result.json"
    results.write_result(path, result)
    content = json.loads(path.read_text())
    del content["recipe"]["warm_up"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its recipe lacks warm_up"):
        results.read_result(path)
    content = json.loads(path.read_text()) | {"format": results.FORMAT + 1}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="of a later version"):
        results.read_result(path)


def test_which_examples_were_wrong(result, tmp_path):
    assert result.wrong_examples is None
    wrong = [True] + 8 * [False] + [True]
    # The bits 1000 0000, 01 and six of no example.
    assert results.packed(np.array(wrong)) == "gEA="
    result = dataclasses.replace(result, test_examples=10, wrong="gEA=")
    assert result.wrong_examples.tolist() == wrong
    path = tmp_path / "result.json"
    results.write_result(path, result)
    assert results.read_result(path) == result


def test_results_of_other_code_are_not_mixed(result, tmp_path):
    trial = Trial(ROWS[result.row], 0)
    path = tmp_path / f"{trial.name}.json"
    code = results.this_code()
    versions = {"keras-invdrop": code.version}
    own = dataclasses.replace(result, versions=versions, commit=code.commit)
    results.write_result(path, own)
    assert finished(trial, tmp_path) == own
    for change in ({"commit": "abc"}, {"versions": {"keras-invdrop": "9"}}):
        results.write_result(path, dataclasses.replace(own, **change))
        with pytest.raises(
            ValueError, match=f"{path} was trained with .*; this is {code}. "
        ):
            finished(trial, tmp_path)


def test_values_for_layers_are_read_as_they_were_written(result, tmp_path):
    path = tmp_path / "result.json"
    recipe = result.recipe | {"max_norm": (None, 4.5, 4.5)}
    result = dataclasses.replace(result, recipe=recipe)
    results.write_result(path, result)
    assert results.read_result(path) == result


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"seed": 1}', '{"surprise": 1}', "unknown row"]
)
def test_a_file_that_is_no_result_is_named(result, text, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    if text == "unknown row":
        other = dataclasses.replace(result, row="table9/standard")
        results.write_result(path, other)
    with pytest.raises(ValueError, match="result.json is not a result: "):
        results.read_result(path)
    with pytest.raises(ValueError, match="result.json is not a result: "):
        results.read_results(tmp_path)


def test_reads_all_files_below_a_directory(result, tmp_path):
    assert results.read_results(tmp_path / "absent") == []
    other = dataclasses.replace(result, seed=1)
    results.write_result(tmp_path / "one.json", result)
    results.write_result(tmp_path / "a" / "b" / "other.json", other)
    (tmp_path / "history.csv").write_text("epoch\n")
    (tmp_path / ".half-written.json").write_text('{"row"')
    # The same training in two files counts once.
    again = dataclasses.replace(result, test=1.0, seconds=1.0, command="x")
    results.write_result(tmp_path / "a" / "copy.json", again)
    found = results.read_results(tmp_path)
    assert sorted(each.seed for each in found) == [0, 1]


def test_identity_tells_apart_what_is_kept_apart(result):
    changes = (
        {},
        {"seed": 3},
        {"row": "table2/inverted/standard"},
        {"width": 0.25},
        {"activation": "tanh"},
        {"training_examples": 10},
        {"source": "elsewhere"},
        {"backend": "torch"},
        {"recipe": {"beta_decay": 0.1}},
    )
    others = [dataclasses.replace(result, **change) for change in changes]
    assert len({other.identity for other in others}) == len(changes)
    # Other measurements and times do not make another training.
    again = dataclasses.replace(result, test=1.0, seconds=1.0, command="x")
    assert again.identity == result.identity
