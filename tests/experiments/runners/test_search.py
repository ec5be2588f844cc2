import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.runners import search as tuning
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.trial import Trial

RESULTS = Path(__file__).parents[3] / "results"
SETTINGS = ["learning_rate", "beta_decay", "max_norm"]
# Here 0.2 is not one of the values.
PROBES = {
    "beta_decay": 0.1,
    "max_norm": 1.5,
    "initial_stddev": "0.01",
    "momentum": 0.9,
    "beta_factor": 10.0,
    "weight_decay": 1e-5,
    "ema_momentum": 0.99,
}


@pytest.fixture
def trainings(blobs, monkeypatch):
    monkeypatch.setattr(Trial, "dataset", lambda self: blobs)
    # The search does not use the test set.
    monkeypatch.setattr(Trainer, "test", None)
    found = []
    for method in ("standard", "invariant"):
        row = ROWS[f"table2/original/{method}"]
        recipe = dataclasses.replace(row.recipe, epochs=4, batch_size=10)
        found.append(Trial(dataclasses.replace(row, recipe=recipe), 0, 0.02))
    return found


def test_a_search_is_saved_and_resumes(trainings, tmp_path):
    seen = []
    first = tuning.tune(trainings, SETTINGS, 3, tmp_path, seen.append).trials
    assert [trial.number for trial in seen] == [0, 1, 2]
    for trial in first:
        assert 0.001 <= trial.params["learning_rate"] <= 0.3
        assert trial.params["beta_decay"] in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
        assert 1 <= trial.params["max_norm"] <= 4
        # The figure of each epoch of the first training.
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
    # The total number of trials is as requested.
    again = tuning.tune(trainings, SETTINGS, 5, tmp_path, seen.append)
    assert [trial.number for trial in seen] == [0, 1, 2, 3, 4]
    assert [t.params for t in again.trials[:3]] == [t.params for t in first]
    # It does not draw its initial settings again.
    assert len({t.params["learning_rate"] for t in again.trials}) == 5
    assert len(tuning.tune(trainings, SETTINGS, 5, tmp_path).trials) == 5
    log, table = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)[::-1]
    assert (log.suffix, table.suffix) == (".log", ".csv")
    trials = pd.read_csv(table)
    assert len(trials) == 5
    assert trials.value.min() == again.best_value


def test_the_figure_is_the_mean_of_the_selected_epochs(
    trainings, blobs, tmp_path
):
    study = tuning.tune(trainings, ["learning_rate"], 1, tmp_path)
    (trial,) = study.trials
    figures = []
    for training in trainings:
        recipe = dataclasses.replace(
            training.row.recipe, learning_rate=trial.params["learning_rate"]
        )
        trainer = Trainer(
            dataclasses.replace(
                training,
                row=dataclasses.replace(training.row, recipe=recipe),
            ),
            blobs,
        )
        fitted = trainer.fit(
            trainer.model(), blobs.train, 4, {"val": blobs.validation}
        )
        figures.append(trainer.figures(fitted.logs["val_accuracy"]).min())
    assert trial.value == pytest.approx(sum(figures) / 2)
    # The version of the code, and the selected epoch of each training.
    assert set(trial.user_attrs) == {
        "code",
        "selected epoch, table2/original/standard",
        "selected epoch, table2/original/invariant",
    }


def test_the_space_of_table_2(trainings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning, "_figure", lambda trainings, changes, trial, tell: trial.number
    )
    study = tuning.tune(trainings[1:], ["table2"], 8, tmp_path)
    settings = {"learning_rate", "input_rate", "hidden_rate", "warm_up"}
    settings |= {"initial_stddev", "norms", "beta_factor"}
    for trial in study.trials:
        assert set(trial.params) - {"max_norm"} == settings
        # One norm for all layers, or a literal for each.
        assert ("max_norm" in trial.params) == (
            trial.params["norms"] == "equal"
        )
    # Standard dropout has the same settings without the factor of beta, and
    # begins with the same trials.
    standard = tuning.tune(trainings[:1], ["table2"], 8, tmp_path)
    for one, other in zip(standard.trials, study.trials, strict=True):
        expected = dict(other.params)
        del expected["beta_factor"]
        assert one.params == expected


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("relu_cnn", "table3/relu/invariant"),
        ("maxout_cnn", "table6/cifar10/invariant"),
    ],
)
def test_the_spaces_of_the_networks_for_images(name, row):
    import optuna

    row = ROWS[row]
    space = tuning.space_of([name], [Trial(row, 0, 0.02)])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = set()
    for _ in range(20):
        trial = study.ask()
        changes = {name: draw(trial, name) for name, draw in space.items()}
        recipe = dataclasses.replace(row.recipe, **changes)
        Trial(dataclasses.replace(row, recipe=recipe), 0, 0.02).network()
        rates.add(recipe.hidden_rate)
    assert {(0.25, 0.25, 0.5, 0.5), (0.0, 0.0, 0.0, 0.5)} < rates
    # Only the published maxout networks have one rate for all layers.
    assert (0.5 in rates) == (name == "maxout_cnn")


@pytest.mark.parametrize("name", tuning.SPACE)
def test_each_setting_is_one_of_a_recipe(trainings, name):
    import optuna

    (draw,) = tuning.space_of([name], trainings).values()
    trial = optuna.trial.FixedTrial({name: PROBES.get(name, 0.2)})
    drawn = draw(trial, name)
    text = isinstance(PROBES.get(name), str)
    assert drawn == (float(PROBES[name]) if text else PROBES.get(name, 0.2))
    recipe = dataclasses.replace(trainings[0].row.recipe, **{name: drawn})
    row = dataclasses.replace(trainings[0].row, recipe=recipe)
    dataclasses.replace(trainings[0], row=row).network()
    recipe.optimizer(5, ["input_dropout"])


def test_another_search_has_trials_of_its_own(trainings, tmp_path):
    tuning.tune(trainings, ["learning_rate"], 1, tmp_path)
    for others in (trainings[:1], trainings[::-1]):
        study = tuning.tune(others, ["learning_rate"], 1, tmp_path)
        assert len(study.trials) == 1
    assert len(list(tmp_path.glob("*.csv"))) == 3


def test_a_search_starts_from_the_best_of_another(
    trainings, tmp_path, monkeypatch
):
    figures = [3.0, 1.0, 2.0, 4.0]
    monkeypatch.setattr(
        tuning,
        "_figure",
        lambda trainings, changes, trial, tell: figures[trial.number],
    )
    short = tuning.tune(trainings, SETTINGS, 4, tmp_path)
    (journal,) = tmp_path.glob("*.log")

    def longer(trials):
        return tuning.tune(
            trainings[1:], SETTINGS, trials, tmp_path, start_from=journal
        )

    expected = [short.trials[number].params for number in (1, 2)]
    study = longer(2)
    assert [trial.params for trial in study.trials] == expected
    # A search that resumes does not try them again.
    study = longer(3)
    assert [trial.params for trial in study.trials[:2]] == expected
    assert study.trials[2].params == short.trials[0].params
    numbered = tuning.tune(
        trainings[::-1], SETTINGS, 2, tmp_path, start_from=journal,
        start_trials=[3, 0],
    )  # fmt: skip
    expected = [short.trials[number].params for number in (3, 0)]
    assert [trial.params for trial in numbered.trials] == expected
    for wrong, options in (
        ("completed trials, of 0, 1, 2, 3", {"start_from": journal}),
        ("`--start-from` as well", {}),
    ):
        with pytest.raises(ValueError, match=f"`--start-trials`.*{wrong}"):
            tuning.tune(
                trainings, SETTINGS, 2, tmp_path, start_trials=[4], **options
            )


def test_a_search_for_bits_finds_the_most(trainings, tmp_path, monkeypatch):
    figures = [1.0, 3.0, 2.0]
    monkeypatch.setattr(
        tuning,
        "_figure",
        lambda trainings, changes, trial, tell: figures[trial.number],
    )
    row = dataclasses.replace(trainings[1].row, dataset="mas")
    in_bits = [dataclasses.replace(trainings[1], row=row)]
    study = tuning.tune(in_bits, SETTINGS, 3, tmp_path / "short")
    assert study.best_value == 3.0
    (journal,) = (tmp_path / "short").glob("*.log")
    longer = tuning.tune(
        in_bits, SETTINGS, 2, tmp_path / "long", start_from=journal
    )
    assert [trial.params for trial in longer.trials] == [
        study.trials[number].params for number in (1, 2)
    ]


def test_the_other_search_must_be_for_the_same_settings(trainings, tmp_path):
    row = "trials-table2-original-standard-0a1b2c3d"
    others = [
        tmp_path / f"{row}-beta_decay.log",
        # More settings, of which the last are the searched ones.
        tmp_path / f"{row}-max_norm-learning_rate.log",
    ]
    for other in others:
        other.touch()
    absent = tmp_path / f"{row}-learning_rate.log"
    for path, error, said in [
        *((other, ValueError, r"\*-learning_rate.log") for other in others),
        (absent, FileNotFoundError, f"there is no file {absent}"),
    ]:
        with pytest.raises(error, match=f"`--start-from`.*{said}"):
            tuning.tune(
                trainings, ["learning_rate"], 1, tmp_path, start_from=path
            )


def test_a_renamed_journal_is_named(trainings, tmp_path):
    tuning.tune(trainings, ["learning_rate"], 1, tmp_path)
    (journal,) = tmp_path.glob("*.log")
    name = "trials-mine-00000000-learning_rate.log"
    renamed = journal.rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"`--start-from`.*wrote it.*{name}"):
        tuning.tune(
            trainings, ["learning_rate"], 1, tmp_path, start_from=renamed
        )


def test_a_search_needs_validation_examples(
    trainings, tmp_path, blobs, monkeypatch
):
    x, y = blobs.validation.x[:0], blobs.validation.y[:0]
    none = dataclasses.replace(blobs, validation=Split(x, y))
    monkeypatch.setattr(Trial, "dataset", lambda self: none)
    with pytest.raises(ValueError, match="`--validation`. Expected validation"):
        tuning.tune(trainings, ["learning_rate"], 1, tmp_path)


def test_a_search_needs_settings_with_an_effect(trainings, tmp_path):
    row = dataclasses.replace(trainings[0].row, method="standard")
    standard = dataclasses.replace(trainings[0], row=row)
    with pytest.raises(ValueError, match="`--settings`.*effect without"):
        tuning.tune([standard], ["beta_factor"], 1, tmp_path)
    row = dataclasses.replace(row, method="none")
    without = dataclasses.replace(trainings[0], row=row)
    with pytest.raises(ValueError, match="effect without dropout"):
        tuning.tune([without], ["hidden_rate"], 1, tmp_path)


def test_an_interrupted_trial_does_not_count(trainings, tmp_path, monkeypatch):
    def stop(trial, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(tuning.SPACE, "max_norm", stop)
        with pytest.raises(KeyboardInterrupt):
            tuning.tune(trainings, SETTINGS, 1, tmp_path)
    study = tuning.tune(trainings, SETTINGS, 1, tmp_path)
    assert [tuning.completed(trial) for trial in study.trials] == [False, True]


def test_diverging_trials_are_pruned(trainings, tmp_path, monkeypatch):
    monkeypatch.setitem(
        tuning.SPACE, "learning_rate", lambda trial, name: 1e38 + trial.number
    )
    monkeypatch.setitem(
        tuning.SPACE, "max_norm", lambda trial, name: 1e30 + trial.number
    )
    # They count: the second call has nothing left to do.
    for _ in range(2):
        study = tuning.tune(
            trainings, ["learning_rate", "max_norm"], 2, tmp_path
        )
        assert [trial.state.name for trial in study.trials] == ["PRUNED"] * 2


def test_no_trial_is_pruned_before_half_of_its_epochs(
    trainings, tmp_path, monkeypatch
):
    rates = [0.1] * 5 + [0.01] * 2
    monkeypatch.setitem(
        tuning.SPACE, "learning_rate", lambda trial, name: rates[trial.number]
    )
    # The last two trials are worse from the start.
    monkeypatch.setattr(
        Trainer,
        "validation",
        lambda trainer, fitted, epoch: (
            5.0 - 20 * trainer.row.recipe.learning_rate
        ),
    )
    study = tuning.tune(trainings, ["learning_rate"], len(rates), tmp_path)
    for trial in study.trials[:5]:
        assert tuning.completed(trial)
        assert trial.value == 3
    for trial in study.trials[5:]:
        assert trial.state.name == "PRUNED"
        # Two of four trials.
        assert list(trial.intermediate_values) == [1, 2]


def search(committed, directory):
    """A committed search."""
    import optuna

    journal = shutil.copy(committed, directory)  # Optuna locks beside it.
    return optuna.load_study(
        study_name=committed.stem.removeprefix("trials-"),
        storage=tuning._storage(journal),
    )


def searches(row, settings, directory):
    """The committed searches for a row."""
    name = f"trials-{row.id.replace('/', '-')}-*-{settings}.log"
    for committed in RESULTS.glob(f"*-selection/{name}"):
        yield search(committed, directory)


def settings_of(params, space):
    """The settings of a trial, the learning rate as a recipe rounds it."""
    import optuna

    trial = optuna.trial.FixedTrial(params)
    settings = {name: draw(trial, name) for name, draw in space.items()}
    settings["learning_rate"] = float(f"{settings['learning_rate']:.2g}")
    return settings


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    "row",
    [
        row
        for row in ROWS.values()
        if row.selection and row.selection.settings == "table2"
    ],
    ids=lambda row: row.id,
)
def test_selected_recipes_are_the_best_of_their_search(
    row, calibrated, tmp_path
):
    if calibrated and row.encoding == "inverted":
        pytest.skip("mirrors the training on the original encoding")
    selection = row.selected_by(calibrated)
    if selection is None:
        pytest.skip("has no beta")
    trials, epochs = selection.rounds[-1]
    space = tuning.space_of([selection.settings], [Trial(row)])
    recipe = row.trained(calibrated)
    own = {name: getattr(recipe, name) for name in space}
    best = [
        settings_of(study.best_params, space)
        for study in searches(row, selection.settings, tmp_path)
        if len(list(filter(tuning.completed, study.trials))) == trials
        and max(study.best_trial.intermediate_values) == epochs
    ]
    assert own in best


@pytest.mark.parametrize(
    ("method", "folder"),
    [
        ("standard", "standard"),
        ("invariant", "from-0"),
        ("invariant", "calibrated"),
    ],
)
def test_recipes_of_the_relu_network_are_the_best_of_the_last_round(
    method, folder, tmp_path
):
    row = ROWS[f"table3/relu/{method}"]
    calibrated = folder == "calibrated"
    selection = row.selected_by(calibrated)
    trials, epochs = selection.rounds[-1]
    space = tuning.space_of([selection.settings], [Trial(row)])
    found = []
    # Each trial of the round has a search of its own: the weight decay was an
    # option of the command.
    journals = RESULTS / "cifar10-selection" / "round-3" / folder
    for committed in journals.glob("decay-*/*.log"):
        decay = float(committed.parent.name.removeprefix("decay-"))
        for trial in search(committed, tmp_path).trials:
            if max(trial.intermediate_values, default=0) == epochs:
                settings = settings_of(trial.params, space)
                found.append((trial.value, settings | {"weight_decay": decay}))
    if calibrated:
        # `reproduce` ran this trial.
        (path,) = (RESULTS / "cifar10-levers").glob("*.json")
        result = json.loads(path.read_text())
        of_trial = {name: result["recipe"][name] for name in found[0][1]}
        of_trial["hidden_rate"] = tuple(of_trial["hidden_rate"])
        found.append((result["validation"], of_trial))
    assert len(found) == trials
    _, best = min(found, key=lambda each: each[0])
    recipe = row.trained(calibrated)
    assert {name: getattr(recipe, name) for name in best} == best
