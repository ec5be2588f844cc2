"""Searches settings of a recipe by the figures on validation examples."""

import functools
import hashlib
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from keras_invdrop.applications.recipes import for_layers

from keras_invdrop._checks import invalid
from keras_invdrop._extras import imported
from keras_invdrop._files import replacing

from ..results.records import this_code
from ..train.callbacks import Diverged
from ..train.callbacks import Fitted
from ..train.trainer import Trainer
from ..train.trial import Trial
from .pool import Tell
from .pool import killed
from .pool import outcomes

# Draws the value of a setting, by its name, for a trial.
Draw = Callable[[Any, str], Any]


def _one_of(*values: Any) -> Draw:
    return lambda trial, name: trial.suggest_categorical(name, values)


def _for_layers_one_of(*texts: str) -> Draw:
    draw = _one_of(*texts)
    return lambda trial, name: for_layers(name, draw(trial, name))


def _between(low: float, high: float, **options: Any) -> Draw:
    def draw(trial: Any, name: str) -> float:
        # Some multiples of a step are inexact: 0.1 + 4 * 0.05 is above 0.3.
        return round(trial.suggest_float(name, low, high, **options), 12)

    return draw


# Setting -> how a trial draws its value.
SPACE: dict[str, Draw] = {
    "learning_rate": _between(0.001, 0.3, log=True),
    "beta_decay": _one_of(0.0, 1e-4, 1e-3, 1e-2, 1e-1),
    "max_norm": _between(1.0, 4.0, step=0.25),
    "initial_stddev": _for_layers_one_of("none", "0.003", "0.01", "0.03"),
    "input_rate": _between(0.0, 0.5, step=0.05),
    "hidden_rate": _between(0.2, 0.7, step=0.05),
    "momentum": _one_of(0.8, 0.9, 0.95, 0.98, 0.99),
    "beta_factor": _one_of(1.0, 3.0, 10.0, 30.0),
    "warm_up": _one_of(0.0, 0.1, 0.2),
    "weight_decay": _between(1e-6, 1e-2, log=True),
    "ema_momentum": _one_of(None, 0.99, 0.999, 0.9999),
}


def _norms_of_table_2(trial: Any, name: str) -> Any:
    # One norm for all layers, or norms published for similar networks.
    norms = trial.suggest_categorical(
        "norms", ("equal", "none,4.5,4.5", "4.4,3,4.6")
    )
    if norms == "equal":
        return trial.suggest_float(name, 1.0, 4.0, step=0.5)
    return for_layers(name, norms)


# Named sets of settings to search together: settings that the paper does not
# print, around the values published for similar networks, in a space small
# enough for about 25 trials. The setting that only some methods have comes
# last, so that the searches of all methods start with the same trials.
SPACES: dict[str, dict[str, Draw]] = {
    "table2": {
        "learning_rate": _between(0.002, 0.1, log=True),
        "input_rate": _between(0.1, 0.4, step=0.05),
        "hidden_rate": _between(0.4, 0.65, step=0.05),
        "initial_stddev": _for_layers_one_of(
            "none", "0.01,none,none", "0.01,0.01,0"
        ),
        "warm_up": _one_of(0.0, 0.1),
        "max_norm": _norms_of_table_2,
        "beta_factor": _one_of(1.0, 10.0),
    },
    # For the ReLU network of Tables 3 and 4, around the rates and the norm of
    # Srivastava et al. (2014, appendix B), who keep 0.9 of the input and 0.75,
    # 0.75, 0.5 and 0.5 of the activities after each layer; others drop only in
    # the dense part.
    "relu_cnn": {
        "learning_rate": _between(0.005, 0.05, log=True),
        "input_rate": _one_of(0.0, 0.1),
        "hidden_rate": _for_layers_one_of(
            "0.25,0.25,0.5,0.5",
            "0.1,0.25,0.25,0.5",
            "0,0,0,0.5",
        ),
        "max_norm": _for_layers_one_of("none", "4"),
        # The gradient of a shared beta is a sum over positions.
        "beta_factor": _one_of(0.1, 1.0, 10.0),
    },
    # For the maxout networks of Table 6, whose norms are published: the same
    # rates, and the 0.2 and 0.5 of the published network.
    "maxout_cnn": {
        "learning_rate": _between(0.02, 0.3, log=True),
        "input_rate": _one_of(0.0, 0.1, 0.2),
        "hidden_rate": _for_layers_one_of(
            "0.5",
            "0.25,0.25,0.5,0.5",
            "0.1,0.25,0.25,0.5",
            "0,0,0,0.5",
        ),
        "beta_factor": _one_of(0.1, 1.0, 10.0),
    },
}

# Settings without effect on a network without beta, and without any dropout.
OF_BETA = ("beta_decay", "beta_factor")
OF_DROPOUT = ("input_rate", "hidden_rate")


def space_of(
    settings: Sequence[str], trainings: Sequence[Trial]
) -> dict[str, Draw]:
    """The settings that a search draws.

    Args:
        settings: Names in `SPACE`, or in `SPACES` for sets of settings.
        trainings: The trainings. Without any beta among them, the function
            leaves out the settings of beta, and without any dropout its rates.

    Raises:
        ValueError: If no setting is left.
    """
    found: dict[str, Draw] = {}
    for name in settings:
        found |= SPACES.get(name) or {name: SPACE[name]}
    methods = {each.row.method for each in trainings}
    without = "a trained beta"
    left_out: tuple[str, ...] = OF_BETA
    if methods == {"none"}:
        without, left_out = "dropout", (*OF_BETA, *OF_DROPOUT)
    if not any(method.startswith("invariant") for method in methods):
        found = {k: each for k, each in found.items() if k not in left_out}
    if not found:
        raise invalid(
            "--settings",
            f"a setting that has an effect without {without}",
            ",".join(settings),
        )
    return found


def tune(
    trainings: Sequence[Trial],
    settings: Sequence[str],
    trials: int,
    directory: Path,
    on_trial: Callable[[Any], None] = lambda trial: None,
    client: Any = None,
    on_epoch: Tell = lambda title, done, validation: None,
    start_from: Path | None = None,
    start_trials: Sequence[int] = (),
) -> Any:
    """Searches settings for one or several trainings, with Optuna.

    A trial's figure is the mean over the trainings of the figure on the
    validation examples at the selected epoch; the test set is never used. A
    trial is pruned if it is worse than the median after the same number of
    epochs of the first training. Each trial is saved in `directory`, and a
    second call resumes the search.

    Args:
        trainings: The trainings, with figures of one unit.
        settings: Names in `SPACE` and `SPACES` of the settings to search. The
            trainings keep their other settings.
        trials: Number of trials, those of earlier calls included.
        directory: Directory of `trials-<name>.log`, Optuna's journal, and
            `trials-<name>.csv`.
        on_trial: Called with each trial (`optuna.trial.FrozenTrial`).
        client: A `distributed.Client` of the cluster that runs several trials
            at once; None for this process.
        on_epoch: Called after each epoch with the title of the training, the
            number of finished epochs and the figure on the validation
            examples.
        start_from: Journal of another search for the same settings, such as one
            of fewer epochs. The search first tries the best of its completed
            trials, best first.
        start_trials: Numbers of the trials of `start_from` to try first, in
            place of the best.

    Returns:
        The study (`optuna.Study`).

    Raises:
        OSError: If the examples cannot be read, a file cannot be written, or
            a process is killed repeatedly.
        ValueError: If the settings do not affect the trainings, there are no
            validation examples, or `start_from` is not the journal of such a
            search, or has no completed trials with these numbers.
    """
    optuna = _optuna()
    first = []
    if start_trials and not start_from:
        raise invalid("--start-trials", "`--start-from` as well", start_trials)
    space_of(settings, trainings)
    if start_from:
        first = _first_trials(start_from, settings, start_trials, trials)
    for training in trainings:
        # Report data that are absent or too few before the first trial.
        if not len(training.dataset().validation):
            raise invalid(
                "--validation",
                "validation examples, by which the search selects",
                training.validation,
            )
    names = " ".join(training.name for training in trainings)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    name = "-".join([trainings[0].row.id.replace("/", "-"), digest, *settings])
    directory.mkdir(parents=True, exist_ok=True)
    journal = directory / f"trials-{name}.log"
    study = optuna.create_study(
        study_name=name,
        storage=_storage(journal),
        direction="maximize" if trainings[0].row.unit == "bits" else "minimize",
        load_if_exists=True,
    )
    for params in first:
        study.enqueue_trial(params, skip_if_exists=True)

    # Interrupted trials do not count; pruned trials do.
    states = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    ended = len(study.get_trials(states=states))
    # A resumed search must not draw its first trials again.
    sequence = np.random.SeedSequence((trainings[0].seed, len(study.trials)))
    seeds = map(int, sequence.generate_state(max(0, trials - ended)))
    make = functools.partial(_make_trial, trainings, settings, journal, name)
    for _, outcome in outcomes(make, seeds, on_epoch, client):
        try:
            number = outcome.result()
        except killed(client) as error:
            raise OSError(
                "The process of a trial was killed repeatedly, perhaps for "
                "lack of memory. The same command resumes the search"
            ) from error
        with replacing(journal.with_suffix(".csv")) as temporary:
            study.trials_dataframe().to_csv(temporary, index=False)
        on_trial(study.trials[number])
    return study


def _first_trials(
    journal: Path, settings: Sequence[str], numbers: Sequence[int], most: int
) -> list[Any]:
    """The settings of trials of a search: the numbered or the best ones."""
    name = journal.stem.removeprefix("trials-")
    searched = "-".join(settings)
    # After the digest the name lists the settings, all of them.
    ending = rf"-[0-9a-f]{{8}}-{re.escape(searched)}"
    if not journal.exists():
        raise FileNotFoundError(
            f"Argument `--start-from`: there is no file {journal}"
        )
    if not (journal.is_file() and re.search(f"{ending}$", name)):
        raise invalid(
            "--start-from",
            f"the journal of a search for {','.join(settings)}, "
            f"trials-*-{searched}.log",
            str(journal),
        )
    optuna = _optuna()
    try:
        study = optuna.load_study(study_name=name, storage=_storage(journal))
    except KeyError as error:
        raise invalid(
            "--start-from",
            "a journal that has the name under which the search wrote it",
            str(journal),
        ) from error
    best = sorted(
        filter(completed, study.trials),
        key=lambda trial: trial.value,
        reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE,
    )
    params = {trial.number: trial.params for trial in best}
    if not set(numbers) <= set(params):
        raise invalid(
            "--start-trials",
            "numbers of completed trials, of "
            + ", ".join(map(str, sorted(params))),
            ",".join(map(str, numbers)),
        )
    return [params[number] for number in (numbers or params)][:most]


def _storage(journal: Path) -> Any:
    """The storage that all processes of a search share."""
    storages = _optuna().storages
    backend = storages.journal.JournalFileBackend(str(journal))
    return storages.JournalStorage(backend)


def _make_trial(
    trainings: Sequence[Trial],
    settings: Sequence[str],
    journal: Path,
    name: str,
    seed: int,
    tell: Tell,
) -> int:
    """Runs one trial and returns its number."""
    optuna = _optuna()
    study = optuna.load_study(
        study_name=name,
        storage=_storage(journal),
        # `constant_liar` avoids settings that other workers are trying.
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        # A trial with a high learning rate looks bad until the rate has fallen.
        pruner=optuna.pruners.MedianPruner(
            n_warmup_steps=trainings[0].row.recipe.epochs // 2
        ),
    )
    numbers: list[int] = []

    def objective(trial: Any) -> float:
        numbers.append(trial.number)
        trial.set_user_attr("code", str(this_code()))
        space = space_of(settings, trainings)
        changes = {name: draw(trial, name) for name, draw in space.items()}
        return _figure(trainings, changes, trial, tell)

    study.optimize(objective, n_trials=1)
    return numbers[0]


def completed(trial: Any) -> bool:
    """Whether a trial finished without being pruned."""
    return trial.state.name == "COMPLETE"


def _figure(
    trainings: Sequence[Trial],
    changes: Mapping[str, Any],
    trial: Any,
    tell: Tell,
) -> float:
    optuna = _optuna()
    figures: list[Any] = []
    for number, training in enumerate(trainings):
        row = replace(
            training.row, recipe=replace(training.row.recipe, **changes)
        )
        trainer = Trainer(replace(training, row=row), training.dataset())

        def after_epoch(
            fitted: Fitted, number: int = number, trainer: Trainer = trainer
        ) -> None:
            figure = trainer.validation(fitted, fitted.epochs)
            tell(
                f"trial {trial.number}, {trainer.row.id}", fitted.epochs, figure
            )
            if number > 0:
                return  # Figures of other rows have other magnitudes.
            trial.report(figure, fitted.epochs)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            fitted = trainer.fit(
                trainer.model(),
                trainer.dataset.train,
                row.recipe.epochs,
                {"val": trainer.dataset.validation},
                on_epoch=after_epoch,
            )
        except Diverged as error:
            raise optuna.TrialPruned(str(error)) from error
        figures.append(trainer.validation(fitted, fitted.selected_epoch))
        trial.set_user_attr(f"selected epoch, {row.id}", fitted.selected_epoch)
    return float(np.mean(figures))


def _optuna() -> Any:
    (optuna,) = imported("The search for settings", ["optuna"], "experiments")
    # `on_trial` reports each trial instead of Optuna, and an error that ends a
    # trial ends the search.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
