import dataclasses
import json

import numpy as np
import pytest
from keras_invdrop.applications import results


def test_round_trip(result, tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    other = dataclasses.replace(result, seed=1, validation=2.5)
    assert results.read_results(path) == []
    results.write_results(path, [result, other])
    assert results.read_results(path) == [result, other]
    lines = path.read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    assert [file.name for file in path.parent.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"seed": 1}', '{"surprise": 1}'])
def test_a_line_that_is_no_result_is_named(result, line, tmp_path):
    path = tmp_path / "results.jsonl"
    results.write_results(path, [result])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="Line 2 of .*results.jsonl is not"):
        results.read_results(path)


def test_a_result_takes_the_place_of_one_of_its_name(result, tmp_path):
    path = tmp_path / "results.jsonl"
    other = dataclasses.replace(result, seed=1)
    again = dataclasses.replace(result, test=3.0)
    for each in (result, other, again):
        results.add_result(path, each)
    assert results.read_results(path) == [other, again]


def test_names_tell_apart_what_is_kept_apart(result):
    assert result.name.startswith("table2-inverted-invariant-digits-seed0-")
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
    assert len({other.name for other in others}) == len(changes)
    # What is measured, and when, makes no other run.
    again = dataclasses.replace(result, test=1.0, seconds=1.0, command="x")
    assert again.name == result.name


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), results.replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("half of i")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_mean_and_interval():
    # Student's t with 2 degrees of freedom: 4.3027; s = 1.
    mean, half_width = results.mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half_width == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    mean, half_width = results.mean_and_interval([7.0])
    assert mean == 7
    assert np.isnan(half_width)


def test_the_interval_holds_the_mean_in_95_of_100():
    rng = np.random.default_rng(0)
    n = 4000
    held = 0
    for sample in rng.normal(3.0, 2.0, size=(n, 3)):
        mean, half_width = results.mean_and_interval(sample)
        held += abs(mean - 3.0) < half_width
    # Four standard errors of a proportion.
    assert abs(held / n - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n)
