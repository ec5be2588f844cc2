"""The command `keras-invdrop`."""

import json
import re
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from typing import Any

import keras
import matplotlib
import typer
from keras_invdrop.applications import recipes
from keras_invdrop.applications.recipes import for_layers

import keras_invdrop
from keras_invdrop.validation import check_choice
from keras_invdrop.validation import invalid
from keras_invdrop_command import when_interrupted

from .data.splicing import generate_splicing as generated
from .data.splicing import save_splicing
from .options import Activation
from .options import BetaDecay
from .options import BetaFactor
from .options import Calibrate
from .options import Coordinator
from .options import Data
from .options import DataParallel
from .options import DtypePolicy
from .options import EmaMomentum
from .options import Epochs
from .options import HiddenRate
from .options import InitialStddev
from .options import InputRate
from .options import LearningRate
from .options import LimitTrain
from .options import MaxNorm
from .options import Momentum
from .options import Out
from .options import Processes
from .options import ProcessId
from .options import RowArguments
from .options import Scheduler
from .options import StepsPerExecution
from .options import Validation
from .options import WarmUp
from .options import WeightDecay
from .options import Width
from .options import Workers
from .paper.tables import rows
from .results.console import JobsTable
from .results.console import console
from .results.console import paper_table
from .results.measurements import as_objects
from .results.measurements import counted
from .results.records import read_results
from .results.report import write_report
from .results.report import write_summary
from .runners.demo import run_demo
from .runners.execution import cluster
from .runners.execution import run_here
from .runners.execution import run_on_cluster
from .runners.jobs import IMAGE_DATA_FORMAT
from .runners.jobs import Job
from .runners.search import SPACE
from .runners.search import SPACES
from .runners.search import completed
from .runners.search import tune as search
from .train.devices import Devices
from .train.devices import check_backend
from .train.devices import is_first
from .train.devices import joined
from .train.task import build
from .train.task import has_shift

# Settings that layers may have of their own.
FOR_LAYERS = "max_norm", "initial_stddev", "hidden_rate"

app = typer.Typer(
    help="Invariant dropout (Ba, Xiong and Frey, 2014): the paper's networks."
    "\n\nThe backend is the one that Keras is set to: by the environment "
    "variable KERAS_BACKEND (jax, tensorflow or torch) or in "
    "~/.keras/keras.json.",
    no_args_is_help=True,
    add_completion=False,
)


def print_version(wanted: bool) -> None:
    """Prints the versions, and ends the command."""
    if wanted:
        print(
            f"keras-invdrop {keras_invdrop.__version__} (Keras "
            f"{keras.__version__}, {keras.backend.backend()} backend)"
        )
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and the backend, and exit.",
            callback=print_version,
            is_eager=True,
        ),
    ] = False,
):
    pass  # They have ended the command.


def called() -> str:
    """The command as it was called, to be pasted into a shell."""
    backend = keras.backend.backend()
    arguments = shlex.join(["keras-invdrop", *sys.argv[1:]])
    return f"KERAS_BACKEND={backend} {arguments}"


def seeds_of(text: str) -> list[int]:
    """The seeds that `"0-2,7"` stands for: 0, 1, 2 and 7."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (found[1], found[2] or found[1]) if found else (1, 0)
        if int(first) > int(last):
            raise invalid("--seeds", "seeds such as 0-4 or 0,2,7", text)
        seeds += range(int(first), int(last) + 1)
    return list(dict.fromkeys(seeds))


def jobs_of(
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    width: float,
    activation: str | None,
    data: str | None,
    limit_train: int | None,
    steps_per_execution: int,
    validation: int | None = None,
    data_parallel: bool = False,
    calibrate: bool,
    **settings: Any,
) -> list[Job]:
    """Each row with each seed, its recipe with the settings that are given."""
    given: dict[str, Any] = {
        name: for_layers(f"--{name.replace('_', '-')}", value)
        if name in FOR_LAYERS
        else value
        for name, value in settings.items()
        if value is not None
    }
    if calibrate:
        given["calibrated"] = True
    found = {each.id: each for name in names for each in rows(name)}
    if data not in (None, "digits"):
        # Wherever the process is that reads it.
        data = str(Path(data).absolute())
    return [
        Job(
            replace(row, recipe=replace(row.trained(calibrate), **given)),
            seed,
            width,
            activation,
            data,
            limit_train,
            called(),
            steps_per_execution=steps_per_execution,
            validation=validation,
            data_parallel=data_parallel,
        )
        for seed in seeds
        for row in found.values()
    ]


def check(jobs: Sequence[Job]) -> None:
    """Finds what cannot be trained before the data are loaded.

    Raises:
        ValueError: If a row cannot be calibrated, takes no such data, or its
            network cannot be built; if the backend makes no several steps.
    """
    if keras.backend.backend() == "torch" and jobs[0].steps_per_execution > 1:
        raise invalid(
            "--steps-per-execution",
            "1 on PyTorch, whose steps Keras makes one by one",
            jobs[0].steps_per_execution,
        )
    for job in jobs:
        if job.row.recipe.calibrated and not has_shift(job.row.method):
            raise invalid(
                "row",
                "one whose dropout has a shift that `--calibrate` can set",
                job.row.id,
            )
        job.check_data()
    for job in {job.row.network: job for job in jobs}.values():
        build(job.row, job.width, job.activation)
        job.row.recipe.optimizer(steps_per_epoch=1)


def check_writable(out: Path) -> None:
    """Raises an `OSError` if no file can be written to a directory."""
    try:
        parents = (out, *out.absolute().parents)
        there = next(path for path in parents if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        # Better said now than after the first epoch.
        raise OSError(f"{out} is not writable: {error.strerror}") from error


def do(
    jobs: Sequence[Job],
    out: Path,
    workers: int = 1,
    scheduler: str | None = None,
) -> None:
    """Does jobs, and prints what was measured."""
    check(jobs)
    check_writable(out)
    first = not jobs[0].data_parallel or is_first()
    if first:
        say(f"Training {announced(jobs)}")
    if first and jobs[0].data_parallel:
        tell_devices(jobs)
    # A network that is trained anew takes as many again, at most.
    epochs = {
        job.title: job.row.recipe.epochs * (1 + job.row.recipe.retrain)
        for job in jobs
    }
    units = {job.title: job.row.unit for job in jobs}
    with (
        when_interrupted(lambda: kept(jobs, out) if first else None),
        JobsTable(epochs, units, quiet=not first) as table,
        cluster(workers, scheduler) as client,
    ):
        if client is None:
            run_here(jobs, out, table)
        else:
            run_on_cluster(jobs, out.absolute(), table, client)
    results = [each for title in epochs if (each := table.results.get(title))]
    if results and first:
        console().print(paper_table(results, measured_only=True))
        print(f"Models, histories and results are in {out}/")
    if table.failures:
        raise ValueError(
            f"{len(table.failures)} of {len(jobs)} trainings failed: "
            + "; ".join(table.failures)
        )


def say(text: str) -> None:
    """Prints a line that is no result, as it stands."""
    console(stderr=True).print(text, soft_wrap=True)


def announced(jobs: Sequence[Job]) -> str:
    """What is going to be trained, and on what, in a line."""

    def listed(values: Iterable[Any], shown: int = 8) -> str:
        texts = list(dict.fromkeys(map(str, values)))
        more = len(texts) - shown
        return ", ".join(texts[:shown]) + f" and {more} more" * (more > 0)

    seeds = {job.seed for job in jobs}
    epochs = {job.row.recipe.epochs for job in jobs}
    return (
        f"{counted(len(jobs), 'network')} on "
        f"{listed(job.data or job.row.dataset for job in jobs)}, "
        f"{listed(sorted(epochs))} epoch{'s' * (epochs != {1})}, "
        f"{jobs[0].backend} backend: {listed(job.row.id for job in jobs)}; "
        f"seed{'s' * (len(seeds) > 1)} {listed(job.seed for job in jobs)}. "
        "The first epoch begins when the data are loaded and the network is "
        "compiled."
    )


def kept(jobs: Sequence[Job], out: Path) -> str:
    """What is left of trainings that are interrupted."""
    files = (
        out / f"{job.name}{end}" for job in jobs for end in (".npz", ".json")
    )
    if any(file.exists() for file in files):
        return (
            "the same command goes on from the last epoch that was finished, "
            f"which is kept in {out}/"
        )
    return "no epoch was finished, so the same command begins anew"


def tell_devices(jobs: Sequence[Job]) -> None:
    """Says over how many devices batches are divided."""
    for size in dict.fromkeys(job.row.recipe.batch_size for job in jobs):
        devices = Devices(size)
        divided = size % devices.number == 0
        say(
            f"Processes: {devices.processes}. Batches of {size} are "
            + (
                f"divided over {devices.number} of "
                f"{counted(devices.available, 'device')}"
                if divided
                else f"computed whole on each of {devices.number} devices, as "
                "they do not divide evenly: no faster than on one device"
            )
        )


@contextmanager
def together(
    data_parallel: bool,
    process: tuple[str | None, int | None, int | None],
    with_others: bool,
) -> Iterator[None]:
    """Joins the processes of a training that the options name.

    Args:
        data_parallel: Whether one training is on many devices.
        process: Coordinator, number of processes, and which this is.
        with_others: Whether trainings are done side by side.

    Raises:
        ValueError: If the options do not go together, or with the backend.
        OSError: If the processes do not find together.
    """
    if not data_parallel:
        if any(each is not None for each in process):
            raise invalid(
                "--coordinator",
                "nothing, or `--data-parallel` with it",
                process,
            )
        yield
        return
    if with_others:
        raise invalid(
            "--data-parallel",
            "nothing with `--workers` or `--scheduler`, which do several "
            "trainings at once",
            data_parallel,
        )
    check_backend("--data-parallel")
    with joined(*process):
        yield


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Number of seeds, which are 0, 1, ..."),
    ] = 3,
    epochs: Epochs = None,
):
    """Train with standard and invariant dropout on two encodings of digits.

    Trains the paper's 784-1000-1000-10 ReLU network on 5,000 MNIST digits that
    come with a package, which takes about five minutes on two cores. Invariant
    dropout is trained twice: beta starts at 0, as in the paper, and at minus
    the mean activity (calibrated). Writes the trained models (.keras), their
    histories (.csv), the results (.json) and the paper's figures 1 and 2
    (.png).
    """
    epochs = epochs or recipes.DEMO.epochs
    say(
        f"Training 6 networks with {counted(seeds, 'seed')} on digits, "
        f"{counted(epochs, 'epoch')} each, {keras.backend.backend()} backend: "
        "standard, invariant and calibrated dropout on two encodings."
    )
    with when_interrupted(
        lambda: (
            f"what was finished is in {out}/, but the same command begins anew"
        )
    ):
        results = run_demo(out, range(seeds), epochs, called())
    console().print(paper_table(results, measured_only=True))
    print(f"Models, histories, results and figures are in {out}/")


@app.command()
def train(
    row: Annotated[
        str,
        typer.Argument(
            metavar="ROW",
            help="A row of the paper's tables, such as table3/relu/invariant, "
            "or the beginning that several rows share: table5, table5/1. "
            "`keras-invdrop tables` lists them.",
        ),
    ],
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seed of the initial weights, the masks and the order of the "
            "examples.",
        ),
    ] = 0,
    width: Width = 1.0,
    epochs: Epochs = None,
    limit_train: LimitTrain = None,
    validation: Validation = None,
    data: Data = None,
    activation: Activation = None,
    learning_rate: LearningRate = None,
    beta_decay: BetaDecay = None,
    max_norm: MaxNorm = None,
    initial_stddev: InitialStddev = None,
    input_rate: InputRate = None,
    hidden_rate: HiddenRate = None,
    momentum: Momentum = None,
    beta_factor: BetaFactor = None,
    warm_up: WarmUp = None,
    weight_decay: WeightDecay = None,
    ema_momentum: EmaMomentum = None,
    calibrate: Calibrate = False,
    dtype_policy: DtypePolicy = None,
    steps_per_execution: StepsPerExecution = 1,
    out: Out = Path("runs"),
    data_parallel: DataParallel = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process_id: ProcessId = None,
):
    """Train rows of the paper's tables with one seed.

    `keras-invdrop reproduce` does the same with several seeds, and its help
    says what is written.
    """
    reproduce(
        [row],
        str(seed),
        width,
        epochs,
        limit_train,
        validation,
        data,
        activation,
        learning_rate,
        beta_decay,
        max_norm,
        initial_stddev,
        input_rate,
        hidden_rate,
        momentum,
        beta_factor,
        warm_up,
        weight_decay,
        ema_momentum,
        calibrate,
        dtype_policy,
        steps_per_execution,
        out,
        data_parallel=data_parallel,
        coordinator=coordinator,
        processes=processes,
        process_id=process_id,
    )


@app.command()
def reproduce(
    row: RowArguments,
    seeds: Annotated[
        str, typer.Option(help="Seeds of the trainings: 0-4, or 0,2,7.")
    ] = "0-2",
    width: Width = 1.0,
    epochs: Epochs = None,
    limit_train: LimitTrain = None,
    validation: Validation = None,
    data: Data = None,
    activation: Activation = None,
    learning_rate: LearningRate = None,
    beta_decay: BetaDecay = None,
    max_norm: MaxNorm = None,
    initial_stddev: InitialStddev = None,
    input_rate: InputRate = None,
    hidden_rate: HiddenRate = None,
    momentum: Momentum = None,
    beta_factor: BetaFactor = None,
    warm_up: WarmUp = None,
    weight_decay: WeightDecay = None,
    ema_momentum: EmaMomentum = None,
    calibrate: Calibrate = False,
    dtype_policy: DtypePolicy = None,
    steps_per_execution: StepsPerExecution = 1,
    out: Out = Path("runs"),
    workers: Workers = 1,
    scheduler: Scheduler = None,
    data_parallel: DataParallel = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process_id: ProcessId = None,
):
    """Train rows with several seeds, select on validation, test once.

    Each row with each seed is a training of its own, and leaves a model
    (.keras), its history (.csv) and its result (.json). A finished training is
    not repeated. One that was stopped goes on from the last finished epoch,
    and ends with the weights that it would have had. All methods of a table
    start from the same initial weights.
    """
    jobs = jobs_of(
        row,
        seeds_of(seeds),
        width=width,
        activation=activation,
        data=data,
        limit_train=limit_train,
        steps_per_execution=steps_per_execution,
        validation=validation,
        data_parallel=data_parallel,
        calibrate=calibrate,
        epochs=epochs,
        learning_rate=learning_rate,
        beta_decay=beta_decay,
        max_norm=max_norm,
        initial_stddev=initial_stddev,
        input_rate=input_rate,
        hidden_rate=hidden_rate,
        momentum=momentum,
        beta_factor=beta_factor,
        warm_up=warm_up,
        weight_decay=weight_decay,
        ema_momentum=ema_momentum,
        dtype_policy=dtype_policy,
    )
    with together(
        data_parallel,
        (coordinator, processes, process_id),
        workers > 1 or scheduler is not None,
    ):
        do(jobs, out, workers, scheduler)


@app.command()
def tune(
    row: RowArguments,
    settings: Annotated[
        str,
        typer.Option(
            help="What to search, with commas between: "
            + ", ".join(SPACE)
            + "; or a set of them: "
            + ", ".join(SPACES)
        ),
    ] = "learning_rate",
    trials: Annotated[
        int,
        typer.Option(
            min=1, help="Number of trials, with those of earlier calls."
        ),
    ] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the trainings and the search.")
    ] = 0,
    width: Width = 1.0,
    epochs: Epochs = None,
    limit_train: LimitTrain = None,
    data: Data = None,
    activation: Activation = None,
    learning_rate: LearningRate = None,
    beta_decay: BetaDecay = None,
    max_norm: MaxNorm = None,
    initial_stddev: InitialStddev = None,
    input_rate: InputRate = None,
    hidden_rate: HiddenRate = None,
    momentum: Momentum = None,
    beta_factor: BetaFactor = None,
    warm_up: WarmUp = None,
    weight_decay: WeightDecay = None,
    ema_momentum: EmaMomentum = None,
    calibrate: Calibrate = False,
    dtype_policy: DtypePolicy = None,
    steps_per_execution: StepsPerExecution = 1,
    out: Out = Path("runs/tune"),
    workers: Workers = 1,
    scheduler: Scheduler = None,
):
    """Search settings by the validation examples alone, with Optuna.

    Several rows get the same settings, those with the best mean figure. Each
    trial is written to trials-*.csv when it has ended, and the same command
    goes on where it was stopped.
    """
    names = settings.split(",")
    for name in names:
        check_choice("--settings", name, (*SPACE, *SPACES))
    jobs = jobs_of(
        row,
        [seed],
        width=width,
        activation=activation,
        data=data,
        limit_train=limit_train,
        steps_per_execution=steps_per_execution,
        calibrate=calibrate,
        epochs=epochs,
        learning_rate=learning_rate,
        beta_decay=beta_decay,
        max_norm=max_norm,
        initial_stddev=initial_stddev,
        input_rate=input_rate,
        hidden_rate=hidden_rate,
        momentum=momentum,
        beta_factor=beta_factor,
        warm_up=warm_up,
        weight_decay=weight_decay,
        ema_momentum=ema_momentum,
        dtype_policy=dtype_policy,
    )
    if len({job.row.unit for job in jobs}) > 1:
        raise invalid("row", "rows with figures of one unit", row)
    check(jobs)
    check_writable(out)
    unit = jobs[0].row.unit
    say(
        f"Searching {settings} in {counted(trials, 'trial')}, each of "
        f"{announced(jobs)}"
    )
    table = JobsTable(
        defaultdict(lambda: jobs[0].row.recipe.epochs),
        defaultdict(lambda: unit),
        live=False,
    )
    with (
        when_interrupted(
            lambda: (
                "the same command goes on from the trials that have ended, "
                f"which are kept in {out}/"
            )
        ),
        cluster(workers, scheduler) as client,
    ):
        study = search(
            jobs,
            names,
            trials,
            out.absolute(),
            lambda trial: say(
                f"trial {trial.number}: {trial.params}: "
                + (
                    f"{trial.value:.2f} {unit}"
                    if completed(trial)
                    else "given up"
                )
            ),
            client,
            table.epoch,
        )
    if not any(map(completed, study.trials)):
        raise ValueError("No trial came to its end; the settings diverge")
    best = study.best_trial
    print(
        f"{best.value:.2f} {unit} on the validation examples, "
        f"trial {best.number} of {len(study.trials)}: {best.params}"
    )


@app.command()
def tables(
    results: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory of the results, which are all files *.json below "
            "it.",
            show_default="runs",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a list of objects, for scripts."),
    ] = False,
):
    """List the rows of the paper's tables, and what was measured for each."""
    found = read_results(results or Path("runs"))
    if as_json:
        print(json.dumps(as_objects(found), indent=2))
    else:
        console().print(paper_table(found))


@app.command()
def report(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", file_okay=False, help="Directory of the results."
        ),
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            exists=True,
            help="A Markdown file in which to replace, between two marks, the "
            "rows that were measured and the claims that hold.",
            show_default="none",
        ),
    ] = None,
):
    """Write report.md: the paper's figures, those measured, and its claims.

    For trainings of Table 2 the report draws the paper's figure 1 from their
    histories (.csv), and figure 2 from their models (.keras).
    """
    print(f"The report is {write_report(directory)}")
    if into is not None:
        write_summary(directory, into)
        print(f"Its summary is in {into}")


@app.command()
def generate_splicing(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The .npz file to write.")
    ],
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the random draws.")
    ] = 0,
):
    """GENERATE data of the shape of the splicing data, for Table 5.

    The mouse splicing data of the paper are not public in one file. The
    generated data have their size and are drawn at random, sparse and biased
    as the paper says of its own: 93 % of the features are 0, and in 90 % of
    the tissues "no change" is the most likely outcome. Both numbers are
    choices.

    Generated data serve to try the command, and say nothing about splicing.
    """
    save_splicing(path, generated(seed=seed))
    print(f"Generated data are in {path}")


def main():
    """Runs the command; what the user can mend is said in one sentence."""
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    matplotlib.use("agg")  # pictures are files; no display is needed
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            # Without the number that Python begins with.
            told = f"{error.filename}: {error.strerror}"
        print(f"keras-invdrop: {told}", file=sys.stderr)
        sys.exit(1)
