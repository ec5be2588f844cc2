"""The command `keras-invdrop`."""

import os
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# A backend that the applications bring with them, unless one is chosen. It
# has to be known before Keras is imported, here and in the commands below,
# which import what they need as they run: `--help` should not wait for Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")

app = typer.Typer(
    help="Invariant dropout (Ba, Xiong and Frey, 2014): the paper's networks."
    "\n\nThe Keras backend is JAX unless the environment variable "
    "KERAS_BACKEND names another: jax, tensorflow or torch.",
    no_args_is_help=True,
    add_completion=False,
)


class Network(StrEnum):
    mnist = "mnist"


class Dropout(StrEnum):
    none = "none"
    standard = "standard"
    invariant = "invariant"
    invariant_input = "invariant_input"
    invariant_hidden = "invariant_hidden"
    running_average = "running_average"


class Encoding(StrEnum):
    original = "original"
    inverted = "inverted"


class Data(StrEnum):
    digits = "digits"
    mnist = "mnist"


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
    from rich.console import Console

    from . import recipes
    from .console import results_table
    from .demo import run_demo

    results = run_demo(out, range(seeds), epochs or recipes.DEMO.epochs)
    console = Console()
    console.print(results_table(results))
    console.print(f"Models, histories, results and figures are in {out}/")


@app.command()
def train(
    network: Annotated[
        Network, typer.Argument(help="mnist: 784-1000-1000-10 (Table 2).")
    ],
    dropout: Annotated[
        Dropout,
        typer.Option(help="A column of Table 2, or none."),
    ] = Dropout.invariant,
    encoding: Annotated[
        Encoding,
        typer.Option(help="Ink 1, background 0, or the other way round."),
    ] = Encoding.original,
    dataset: Annotated[
        Data,
        typer.Option(
            help="digits: 5,000 that come with a package. mnist: all 70,000, "
            "by tensorflow-datasets, from TFDS_DATA_DIR or downloaded."
        ),
    ] = Data.digits,
    activation: Annotated[
        str, typer.Option(help="Of the hidden units: relu, sigmoid, tanh ...")
    ] = "relu",
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    beta_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight decay of beta: the update adds this times beta to "
            "the gradient of the mean loss.",
            show_default="the recipe's",
        ),
    ] = None,
    limit_train: Annotated[
        int | None,
        typer.Option(min=1, help="Training examples to use, for a trial."),
    ] = None,
    out: Out = Path("runs"),
):
    """Train one of the paper's networks, select on validation, test once.

    Writes the model (.keras), its history (.csv) and adds its result to
    results.jsonl.
    """
    from rich.console import Console

    from . import datasets
    from . import recipes
    from .console import results_table
    from .console import training_progress
    from .results import read_results
    from .results import write_results
    from .training import save
    from .training import train_mnist

    recipe = recipes.MNIST
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    if beta_decay is not None:
        recipe = replace(recipe, beta_decay=beta_decay)
    results = read_results(out / "results.jsonl")
    data = datasets.load(dataset, encoding, limit_train=limit_train)
    with (
        training_progress(1, recipe.epochs) as training,
        training(f"{dropout} dropout, {encoding} {dataset}") as on_epoch,
    ):
        run = train_mnist(
            data, dropout, recipe, seed, activation, on_epoch=on_epoch
        )
    save(run, out)
    write_results(out / "results.jsonl", [*results, run.result])
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
