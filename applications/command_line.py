"""The command `keras-invdrop`."""

import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from typing import Literal

import keras
import typer
from rich.console import Console

from . import recipes
from .console import results_table
from .console import training_progress
from .datasets import DATASETS
from .datasets import ENCODINGS
from .datasets import load
from .demo import run_demo
from .networks import METHODS
from .results import add_result
from .results import read_results
from .training import save
from .training import train_mnist

app = typer.Typer(
    help="Invariant dropout (Ba, Xiong and Frey, 2014): the paper's networks."
    "\n\nThe backend is the one that Keras is set to: by the environment "
    "variable KERAS_BACKEND (jax, tensorflow or torch) or in "
    "~/.keras/keras.json.",
    no_args_is_help=True,
    add_completion=False,
)

Epochs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Epochs of each training.", show_default="the recipe's"
    ),
]
Out = Annotated[
    Path,
    typer.Option(file_okay=False, help="Directory to write to."),
]


# What an option takes is what the functions take.
Dropout = StrEnum("Dropout", {name: name for name in METHODS})  # type: ignore[misc]
Encoding = StrEnum("Encoding", {name: name for name in ENCODINGS})  # type: ignore[misc]
Data = StrEnum("Data", {name: name for name in DATASETS})  # type: ignore[misc]


def one_of(choices, what):
    """An option that takes one of `choices`, which the help text lists."""
    return typer.Option(metavar="NAME", help=f"{what}: {', '.join(choices)}.")


def called() -> str:
    """The command as it was called, to be pasted into a shell."""
    backend = keras.backend.backend()
    arguments = shlex.join(["keras-invdrop", *sys.argv[1:]])
    return f"KERAS_BACKEND={backend} {arguments}"


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")
    ] = 3,
    epochs: Epochs = None,
):
    """Train with standard and invariant dropout on two encodings of digits.

    The paper's 784-1000-1000-10 ReLU network on 5,000 MNIST digits that come
    with a package, about three minutes on two cores. Writes the trained
    models (.keras), their histories (.csv), the results (results.jsonl) and
    the paper's figures 1 and 2 (.png).
    """
    results = run_demo(
        out, range(seeds), epochs or recipes.DEMO.epochs, called()
    )
    console = Console()
    console.print(results_table(results))
    console.print(f"Models, histories, results and figures are in {out}/")


@app.command()
def train(
    network: Annotated[
        Literal["mnist"],
        typer.Argument(
            metavar="NETWORK", help="mnist: 784-1000-1000-10, of Table 2."
        ),
    ],
    dropout: Annotated[
        Dropout, one_of(METHODS, "The columns of Table 2, or none")
    ] = Dropout["invariant"],
    encoding: Annotated[
        Encoding,
        one_of(ENCODINGS, "Ink 1 and background 0, or the other way round"),
    ] = Encoding["original"],
    dataset: Annotated[
        Data,
        one_of(
            DATASETS,
            "5,000 digits that come with a package, or all 70,000, which "
            "tensorflow-datasets takes from TFDS_DATA_DIR or downloads",
        ),
    ] = Data["digits"],
    activation: Annotated[
        str, typer.Option(help="Of the hidden units: relu, sigmoid, tanh ...")
    ] = "relu",
    epochs: Epochs = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of initial weights, masks and shuffling."),
    ] = 0,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="At the start.", show_default="the recipe's"),
    ] = None,
    beta_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight decay of beta: this times beta is added to the "
            "gradient of the mean loss.",
            show_default="the recipe's",
        ),
    ] = None,
    limit_train: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training examples to use.", show_default="all"
        ),
    ] = None,
    out: Out = Path("runs"),
):
    """Train one of the paper's networks, select on validation, test once.

    Writes the model (.keras), its history (.csv) and adds its result to
    results.jsonl. A run of the same data set, encoding, activation, dropout
    and seed takes the place of an earlier one in the same directory.
    """
    recipe = recipes.MNIST
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    if beta_decay is not None:
        recipe = replace(recipe, beta_decay=beta_decay)
    # A file that cannot be added to is better found before than after.
    read_results(out / "results.jsonl")
    data = load(dataset, encoding, limit_train=limit_train)
    with (
        training_progress(1, recipe.epochs) as training,
        training(f"{dropout} dropout, {encoding} {dataset}") as on_epoch,
    ):
        run = train_mnist(
            data,
            dropout,
            recipe,
            seed,
            activation,
            command=called(),
            on_epoch=on_epoch,
        )
    save(run, out)
    add_result(out / "results.jsonl", run.result)
    console = Console()
    console.print(results_table([run.result]))
    console.print(f"The model, its history and the result are in {out}/")


def main():
    """Runs the command; what the user can mend is said in one line."""
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        print(f"keras-invdrop: {error}", file=sys.stderr)
        sys.exit(1)
