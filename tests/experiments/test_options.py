"""The options of the command are what classes say of their fields."""

import dataclasses

import pytest
import typer
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.recipes import setting
from keras_invdrop.experiments.command_line import app
from keras_invdrop.experiments.options import Given
from keras_invdrop.experiments.options import taken
from keras_invdrop.experiments.options import takes
from keras_invdrop.experiments.runners.pool import Resources
from keras_invdrop.experiments.runners.trials import trials_of
from keras_invdrop.experiments.train.trial import Trial
from typer.testing import CliRunner

pytestmark = pytest.mark.one_backend


@dataclasses.dataclass(frozen=True)
class Cake:
    name: str = "plain"  # has no help text, so it is no option
    eggs: int = setting(2, "Number of eggs.", min=1)
    sugar_free: bool = setting(False, "Whether to leave out the sugar.")


def parameters(command):
    """Name of each option of a command -> the option."""
    found = typer.main.get_command(app).commands[command].params
    return {parameter.name: parameter for parameter in found}


def described(kind):
    return {f.name: f for f in dataclasses.fields(kind) if "help" in f.metadata}


def test_the_fields_of_a_class_become_options():
    seen = []
    bakery = typer.Typer()

    @bakery.command()
    @takes(Cake)
    def bake(guest: str, given: Given):
        seen.append((guest, taken(Cake, given), given))

    def call(*arguments):
        return CliRunner().invoke(bakery, arguments)

    assert call("me").exit_code == 0
    assert call("me", "--eggs", "3", "--sugar-free").exit_code == 0
    # Options that the class took are no longer in `given`.
    assert seen == [("me", Cake(), {}), ("me", Cake("plain", 3, True), {})]
    for wrong in ("--eggs=0", "--name=rich", "--no-sugar-free"):
        assert call("me", wrong).exit_code == 2
    text = call("--help").output
    assert "Number of eggs." in text
    assert "x>=1" in text


@pytest.mark.parametrize("kind", [Recipe, Trial, Resources])
def test_each_description_is_an_option(kind):
    found = parameters("reproduce")
    fields = described(kind)
    assert len(fields) >= 5
    for name, field in fields.items():
        if name == "seed":  # the command has several: --seeds
            continue
        assert found[name].help == field.metadata["help"]
        # Each row has a recipe of its own.
        default = None if kind is Recipe else field.default
        assert found[name].default == default


def test_a_command_omits_unused_fields():
    assert set(parameters("reproduce")) - set(parameters("train")) == {
        "seeds",
        "workers",
        "scheduler",
    }
    assert "data_parallel" not in parameters("tune")


def test_trials_in_python():
    (trial,) = trials_of(["table2/original/invariant"], [3])
    assert trial == Trial(trial.row, 3)
    # What is None is the row's own.
    first, second = trials_of(
        ["table2/original/standard"],
        [0, 1],
        max_norm="none,2,2",
        momentum=None,
        epochs=5,
        width=0.5,
    )
    assert (first.seed, second.seed) == (0, 1)
    assert first.row == second.row
    assert first.row.recipe.max_norm == (None, 2.0, 2.0)
    assert first.row.recipe.epochs == 5
    assert first.row.recipe.momentum == 0.99
    assert first.width == 0.5
    (calibrated,) = trials_of(["table2/inverted/invariant"], [0], True)
    assert calibrated.row.recipe.calibrated
