"""The command `keras-invdrop`."""

import json
import re
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated
from typing import Any

import keras
import matplotlib
import typer
from keras_invdrop.applications import recipes
from keras_invdrop.applications.recipes import Recipe

import keras_invdrop
from keras_invdrop._checks import check_choice
from keras_invdrop._checks import invalid
from keras_invdrop._interruptions import when_interrupted

from .data.splicing import generate_splicing as generated
from .data.splicing import save_splicing
from .options import Calibrate
from .options import Given
from .options import Out
from .options import RowArguments
from .options import taken
from .options import takes
from .options import with_options
from .results.console import ProgressTable
from .results.console import console
from .results.console import encodings_table
from .results.console import paper_table
from .results.console import say
from .results.measurements import as_objects
from .results.measurements import counted
from .results.records import read_results
from .results.report import write_report
from .results.summary import write_summary
from .runners.demo import run_demo
from .runners.pool import Resources
from .runners.pool import cluster
from .runners.reproduce import reproduce as train_rows
from .runners.search import SPACE
from .runners.search import SPACES
from .runners.search import completed
from .runners.search import tune as search
from .runners.trials import announced
from .runners.trials import check
from .runners.trials import check_writable
from .runners.trials import trials_of
from .train.trial import IMAGE_DATA_FORMAT
from .train.trial import Trial

app = typer.Typer(
    help="Invariant dropout (Ba, Xiong and Frey, 2014): the paper's networks."
    "\n\nKeras selects the backend from the environment variable "
    "KERAS_BACKEND (jax, tensorflow or torch) or from ~/.keras/keras.json.",
    no_args_is_help=True,
    add_completion=False,
)


def print_version(wanted: bool) -> None:
    """Prints the versions and ends the command."""
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
    pass  # `print_version` has handled `--version`.


def called() -> str:
    """The command line of this call, to paste into a shell."""
    backend = keras.backend.backend()
    arguments = shlex.join(["keras-invdrop", *sys.argv[1:]])
    return f"KERAS_BACKEND={backend} {arguments}"


def numbers_of(argument: str, text: str) -> list[int]:
    """The numbers that `"0-2,7"` stands for: 0, 1, 2 and 7."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (found[1], found[2] or found[1]) if found else (1, 0)
        if int(first) > int(last):
            raise invalid(argument, "numbers such as 0-4 or 0,2,7", text)
        numbers += range(int(first), int(last) + 1)
    return list(dict.fromkeys(numbers))


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Number of seeds, which are 0, 1, ..."),
    ] = 3,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of each training.")
    ] = recipes.DEMO.epochs,
):
    """Train with standard and invariant dropout on two encodings of digits.

    Trains the paper's 784-1000-1000-10 ReLU network on 5,000 MNIST digits that
    come with a package, in two to four minutes on two cores. Invariant dropout
    is trained twice: with beta from 0, as in the paper, and with beta from
    minus the mean activity (calibrated). Writes the trained models (.keras),
    their histories (.csv), the results (.json) and the paper's figures 1 and 2
    (.png).
    """
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
    console().print(encodings_table(results))
    print(f"Models, histories, results and the figures 1 and 2 are in {out}/")


@app.command()
@takes(Recipe, Trial, Resources, without=("workers", "scheduler"))
def train(
    row: RowArguments,
    given: Given,
    calibrate: Calibrate = False,
    out: Out = Path("runs"),
):
    """Train rows of the paper's tables with one seed.

    `keras-invdrop reproduce` does the same with several seeds; its help lists
    the files that both write.
    """
    seeds, resources = [given.pop("seed")], taken(Resources, given)
    trials = trials_of(row, seeds, calibrate, command=called(), **given)
    train_rows(trials, out, resources)


@app.command()
@takes(Recipe, Trial, Resources, without=("seed",))
def reproduce(
    row: RowArguments,
    given: Given,
    seeds: Annotated[
        str, typer.Option(help="Seeds of the trainings: 0-4, or 0,2,7.")
    ] = "0-2",
    calibrate: Calibrate = False,
    out: Out = Path("runs"),
):
    """Train rows with several seeds, select on validation, test once.

    Each row with each seed is a separate training, which writes a model
    (.keras), its history (.csv) and its result (.json). Finished trainings are
    not repeated. A stopped training resumes after its last finished epoch and
    ends with the same weights as an uninterrupted one. With the same seed and
    standard deviations, all methods start from the same initial weights.
    """
    resources = taken(Resources, given)
    trials = trials_of(
        row, numbers_of("--seeds", seeds), calibrate, command=called(), **given
    )
    train_rows(trials, out, resources)


@app.command()
@takes(
    Recipe,
    Trial,
    Resources,
    without=(
        "test_curve",
        "data_parallel",
        "coordinator",
        "processes",
        "process_id",
    ),
)
def tune(
    row: RowArguments,
    given: Given,
    settings: Annotated[
        str,
        typer.Option(
            help="Settings to search, separated by commas: "
            + ", ".join(SPACE)
            + "; or a set of them: "
            + ", ".join(SPACES)
        ),
    ] = "learning_rate",
    trials: Annotated[
        int,
        typer.Option(
            min=1, help="Number of trials, including those of earlier calls."
        ),
    ] = 20,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="Journal of another search for the same settings, "
            "trials-*.log: its best trials are tried first, such as those of a "
            "search with shorter trainings.",
            show_default="none",
        ),
    ] = None,
    start_trials: Annotated[
        str,
        typer.Option(
            help="Numbers of the trials of --start-from to try in place of its "
            "best ones, such as 3,0.",
            show_default="the best",
        ),
    ] = "",
    calibrate: Calibrate = False,
    out: Out = Path("runs/tune"),
):
    """Search for settings on the validation examples alone, with Optuna.

    Given several rows, the search finds the settings with the best mean
    figure, the same for all of them. Each finished trial is written to
    trials-*.csv, and the same command resumes a stopped search.
    """
    names = settings.split(",")
    for name in names:
        check_choice("--settings", name, (*SPACE, *SPACES))
    seeds, resources = [given.pop("seed")], taken(Resources, given)
    trainings = trials_of(row, seeds, calibrate, command=called(), **given)
    if len({training.row.unit for training in trainings}) > 1:
        raise invalid("row", "rows with figures of one unit", row)
    check(trainings)
    check_writable(out)
    recipe, unit = trainings[0].row.recipe, trainings[0].row.unit
    say(
        f"Searching {settings} in {counted(trials, 'trial')}, each of "
        f"{announced(trainings)}"
    )
    table = ProgressTable(
        defaultdict(lambda: recipe.epochs),
        defaultdict(lambda: unit),
        live=False,
    )

    def say_trial(trial: Any) -> None:
        figure = f"{trial.value:.2f} {unit}" if completed(trial) else "given up"
        say(f"trial {trial.number}: {trial.params}: {figure}")

    with (
        when_interrupted(
            lambda: (
                "the same command resumes after the trials that have ended, "
                f"which are kept in {out}/"
            )
        ),
        cluster(resources) as client,
    ):
        study = search(
            trainings,
            names,
            trials,
            out.absolute(),
            on_trial=say_trial,
            client=client,
            on_epoch=table.epoch,
            start_from=start_from,
            start_trials=numbers_of("--start-trials", start_trials)
            if start_trials
            else (),
        )
    if not any(map(completed, study.trials)):
        raise ValueError("No trial finished; the settings diverge")
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
            help="Directory of the results: all files *.json below it.",
            show_default="runs",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a list of objects, for scripts."),
    ] = False,
):
    """List the rows of the paper's tables with their measurements."""
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
            help="A Markdown file in which to replace the table of test "
            "errors between two marks.",
            show_default="none",
        ),
    ] = None,
):
    """Write report.md: the paper's and the measured figures, and tested claims.

    For trainings of Table 2 the report draws the paper's figure 1 from the
    histories (.csv), and figure 2 from the models (.keras).
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
    """Generate data of the shape of the splicing data, for Table 5.

    The mouse splicing data of the paper are not published as one file. The
    generated data are random numbers of the same size, sparse and biased like
    the paper's data: 93 % of the features are 0, and in 90 % of the tissues "no
    change" is the most likely outcome. Both numbers are our choice.

    Use generated data only to try the command; they say nothing about splicing.
    """
    save_splicing(path, generated(seed=seed))
    print(f"Generated data are in {path}")


def main():
    """Runs the command; errors that the user can fix take one sentence."""
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    matplotlib.use("agg")  # figures go to files; no display needed
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            # Without Python's error number.
            told = f"{error.filename}: {error.strerror}"
        print(f"keras-invdrop: {with_options(told)}", file=sys.stderr)
        sys.exit(1)
