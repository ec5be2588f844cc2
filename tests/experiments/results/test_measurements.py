import dataclasses
import json

import pytest
from keras_invdrop.applications import recipes
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.measurements import as_objects
from keras_invdrop.experiments.results.measurements import measurements
from keras_invdrop.experiments.results.records import read_results
from keras_invdrop.experiments.results.records import write_result

ROW = ROWS["table2/inverted/invariant"]


def test_grouped_by_all_but_the_seed(result):
    changes = (
        {},
        {"seed": 1, "test": 7.0},
        {"width": 0.5},
        {"epochs": 4, "recipe": {"epochs": 4}},
        {"backend": "torch"},
        {"training_examples": 10},
        {"row": "table2/inverted/standard"},
    )
    results = [dataclasses.replace(result, **change) for change in changes]
    first, *others = measurements(ROW, results)
    assert first.seeds == [0, 1]
    assert first.mean == 6.0
    # Student's t with 1 degree of freedom: 12.706; s / sqrt(2) = 1.
    assert first.half_width == pytest.approx(12.706, rel=1e-4)
    assert [(each.width, each.epochs) for each in others] == [
        (0.5, 3),
        (1.0, 4),
        (1.0, 3),
        (1.0, 3),
    ]
    assert all(each.half_width is None for each in others)


def test_the_note_counts_no_example_twice(result):
    recipe = dataclasses.asdict(ROW.recipe)
    found = dataclasses.replace(
        result, training_examples=120, validation_examples=20, test_examples=40
    )
    for retrain, said in (
        (False, "120 examples for training, 20 for validation, 40 for test"),
        (
            True,
            "120 examples for training, of which 20 for validation at first, "
            "then retrained on all, 40 for test",
        ),
    ):
        recipe["retrain"] = retrain
        (measured,) = measurements(
            ROW, [dataclasses.replace(found, recipe=recipe)]
        )
        assert f": {said}; " in measured.note
        assert f": {said}; " in measured.short_note


def test_settings_are_what_the_recipe_does_not_have(result):
    recipe = dataclasses.asdict(ROW.recipe)
    changed = {**recipe, "epochs": 3, "beta_decay": 0.1}
    results = [
        dataclasses.replace(result, recipe=each) for each in (recipe, changed)
    ]
    usual, other = measurements(ROW, results)
    assert usual.settings == {}
    assert other.settings == {"beta_decay": 0.1}


def test_digits_have_the_settings_of_the_demonstration(result):
    demo = dataclasses.asdict(recipes.DEMO) | {"calibrated": True}
    on_digits = dataclasses.replace(result, dataset="digits", recipe=demo)
    (measurement,) = measurements(ROW, [on_digits])
    assert measurement.settings == {"calibrated": True}


def test_a_recipe_from_a_file_is_the_same(result, tmp_path):
    row = ROWS["table6/svhn/standard"]  # which has a norm for each layer
    recipe = dataclasses.asdict(row.recipe)
    result = dataclasses.replace(result, row=row.id, recipe=recipe)
    write_result(tmp_path / "some" / "result.json", result)
    (measured,) = measurements(row, read_results(tmp_path))
    assert measured.settings == {}


def test_the_order_of_settings_in_files_separates_no_seeds(result, tmp_path):
    recipe = dataclasses.asdict(ROW.recipe) | {"max_norm": (None, 2.0, 3.0)}
    for seed, names in enumerate((list(recipe), sorted(recipe))):
        changed = {name: recipe[name] for name in names} | {"warm_up": 0.3}
        each = dataclasses.replace(result, seed=seed, recipe=changed)
        write_result(tmp_path / f"{seed}.json", each)
    (measured,) = measurements(ROW, read_results(tmp_path))
    assert measured.seeds == [0, 1]


def test_a_recipe_from_before_there_was_calibration_is_the_usual_one(result):
    recipe = dataclasses.asdict(ROW.recipe)
    old = {k: v for k, v in recipe.items() if k != "calibrated"}
    results = [
        dataclasses.replace(result, seed=seed, recipe=each)
        for seed, each in enumerate(
            (old, recipe, dataclasses.asdict(ROW.trained(calibrated=True)))
        )
    ]
    usual, calibrated = measurements(ROW, results)
    assert (usual.settings, usual.seeds) == ({}, [0, 1])
    assert calibrated.settings == {"calibrated": True}
    assert calibrated.seeds == [2]


def test_objects_for_scripts(result):
    objects = json.loads(json.dumps(as_objects([result])))
    assert len(objects) == len(ROWS)
    by_id = {each["id"]: each for each in objects}
    found = by_id["table2/inverted/invariant"]
    assert found["table"] == 2
    assert found["dataset"] == "mnist"
    assert found["encoding"] == "inverted"
    assert found["method"] == "invariant"
    assert found["printed"] == 0.94
    assert found["unit"] == "%"
    (measured,) = found["measured"]
    assert measured["mean"] == 5.0
    assert measured["half_width"] is None
    assert measured["seeds"] == [0]
    assert measured["commands"] == [result.command]
    assert by_id["table5/6/none"]["partition"] == 6
    assert by_id["table5/6/none"]["unit"] == "bits"
    assert by_id["table5/6/none"]["measured"] == []
