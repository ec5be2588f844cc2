"""The description of a training, and the names of its files."""

from dataclasses import replace

import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.measurements import METHOD_LABELS
from keras_invdrop.experiments.results.measurements import METHOD_NAMES
from keras_invdrop.experiments.train.trial import Trial

TRIAL = Trial(ROWS["table2/original/invariant"])


def test_what_changes_the_result_changes_the_name():
    recipe = replace(TRIAL.row.recipe, learning_rate=0.5)
    changes = [
        {},
        {"row": replace(TRIAL.row, recipe=recipe)},
        {"seed": 1},
        {"width": 0.5},
        {"limit_train": 9},
        {"validation": 7},
        {"data": "digits"},
        {"activation": "tanh"},
        {"test_curve": True},
        {"backend": "another"},
    ]
    names = {replace(TRIAL, **change).name for change in changes}
    assert len(names) == len(changes)


def test_how_a_training_runs_does_not_change_its_name():
    for change in (
        {"steps_per_execution": 2},
        {"data_parallel": True},
        {"command": "keras-invdrop train"},
    ):
        assert replace(TRIAL, **change).name == TRIAL.name


@pytest.mark.parametrize("method", METHODS)
def test_dropout_without_a_shift_is_not_calibrated(method):
    recipe = replace(TRIAL.row.recipe, calibrated=True)
    row = replace(TRIAL.row, method=method, recipe=recipe)
    if method in ("none", "standard"):
        with pytest.raises(ValueError, match="`row`.* `--calibrate` can set"):
            Trial(row)
    else:
        assert Trial(row).row.recipe.calibrated
        assert (method, True) in METHOD_NAMES.keys() & METHOD_LABELS.keys()


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "pictures.npz"
    trial = replace(TRIAL, data=str(path), validation=0)
    y = np.arange(4) % 2
    for level in (0.0, 1.0):
        x = np.full((4, 2, 2), level)
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
        assert trial.dataset().train.x.max() == level
