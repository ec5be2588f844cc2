import dataclasses

import pytest
from keras_invdrop.applications import results


def test_round_trip(result, tmp_path):
    path = tmp_path / "new" / "result.json"
    result = dataclasses.replace(
        result, correlations={"input_dropout": -0.5, "hidden_1_dropout": None}
    )
    results.write_result(path, result)
    assert results.read_result(path) == result
    # A recipe from before a setting is the usual one.
    recipe = dict(result.recipe)
    del recipe["calibrated"], recipe["dtype_policy"]
    results.write_result(path, dataclasses.replace(result, recipe=recipe))
    assert results.read_result(path) == result
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


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
    # The same training in another file counts once.
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
    # What is measured, and when, makes no other training.
    again = dataclasses.replace(result, test=1.0, seconds=1.0, command="x")
    assert again.identity == result.identity
