"""The command `keras-invdrop`."""

import functools
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from typing import Any

import keras
import typer
from rich.console import Console

from keras_invdrop.validation import invalid

from . import recipes
from .console import paper_table
from .console import training_progress
from .datasets import Dataset
from .datasets import load
from .demo import run_demo
from .report import as_objects
from .report import read_all
from .results import add_result
from .results import read_results
from .splicing import generate_splicing as generated
from .splicing import load_splicing
from .splicing import partition_of
from .splicing import save_splicing
from .tables import Row
from .tables import rows
from .task import build
from .task import has_shift
from .training import save
from .training import train as train_row

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


def called() -> str:
    """The command as it was called, to be pasted into a shell."""
    backend = keras.backend.backend()
    arguments = shlex.join(["keras-invdrop", *sys.argv[1:]])
    return f"KERAS_BACKEND={backend} {arguments}"


# The rows that follow one another have their examples in common.
load_once = functools.lru_cache(maxsize=1)(load)
load_splicing_once = functools.lru_cache(maxsize=1)(load_splicing)


def dataset_of(row: Row, data: str | None, limit_train: int | None) -> Dataset:
    """The examples of a row, from where the option `--data` says."""
    if row.partition is not None:
        if data is None:
            raise invalid(
                "--data",
                "the file of the splicing data (.csv or .npz), which are not "
                "public in one file; `keras-invdrop generate-splicing "
                "FILE.npz` makes data of the same shape",
                data,
            )
        return partition_of(
            load_splicing_once(Path(data)), row.partition, limit_train
        )
    name = row.dataset
    if data is not None:
        if name != "mnist" or data != "digits":
            raise invalid(
                "--data", "'digits' for Table 2, a file for Table 5", data
            )
        name = data
    return load_once(name, row.encoding, limit_train=limit_train)


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
    with a package, about six minutes on two cores. Invariant dropout is
    trained twice: as the paper does, with beta from 0, and calibrated, with
    beta from minus the mean activity. Writes the trained models (.keras),
    their histories (.csv), the results (results.jsonl) and the paper's
    figures 1 and 2 (.png).
    """
    results = run_demo(
        out, range(seeds), epochs or recipes.DEMO.epochs, called()
    )
    console = Console()
    console.print(paper_table(results, measured_only=True))
    console.print(f"Models, histories, results and figures are in {out}/")


@app.command()
def train(
    row: Annotated[
        str,
        typer.Argument(
            metavar="ROW",
            help="A row of the paper's tables, such as table3/relu/invariant, "
            "or several: table5, table5/1. `keras-invdrop tables` lists them.",
        ),
    ],
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of initial weights, masks and shuffling."),
    ] = 0,
    width: Annotated[
        float,
        typer.Option(
            help="Multiplier of the units and feature maps of every layer."
        ),
    ] = 1.0,
    epochs: Epochs = None,
    limit_train: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training examples to use.", show_default="all"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="For Table 2: digits, 5,000 that come with a package, in "
            "place of MNIST. For Table 5: the file of the splicing data "
            "(.csv or .npz).",
            show_default="what tensorflow-datasets finds in TFDS_DATA_DIR, "
            "or downloads",
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="Of the hidden units, in Tables 2, 3 (dnn) and 5: relu, "
            "sigmoid, tanh ...",
            show_default="relu",
        ),
    ] = None,
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
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Start each shift (beta) at minus the mean activity of the "
            "training examples. The paper starts it at 0.",
        ),
    ] = False,
    dtype_policy: Annotated[
        str | None,
        typer.Option(
            help="Of the network: float32, or, where the machine is faster "
            "with it, mixed_bfloat16 (mixed_float16).",
            show_default="float32",
        ),
    ] = None,
    out: Out = Path("runs"),
):
    """Train rows of the paper's tables, select on validation, test once.

    Writes the model (.keras), its history (.csv) and adds the result to
    results.jsonl. A run takes the place of an earlier one in the same
    directory if all its settings are the same. All methods of a table start
    from the same initial weights.
    """
    options: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "beta_decay": beta_decay,
        "calibrated": calibrate or None,
        "dtype_policy": dtype_policy,
    }
    changes = {k: v for k, v in options.items() if v is not None}
    chosen = [
        replace(found, recipe=replace(found.recipe, **changes))
        for found in rows(row)
    ]
    # What cannot be calibrated, a network that cannot be built, or a file that
    # cannot be added to, is better found before the training, and before the
    # data are loaded.
    for each in chosen:
        if calibrate and not has_shift(each.method):
            raise invalid(
                "row",
                "one whose dropout has a shift that `--calibrate` can set",
                each.id,
            )
    for each in {each.network: each for each in chosen}.values():
        build(each, width, activation)
    read_results(out / "results.jsonl")
    results = []
    epochs_in_all = sum(each.recipe.epochs for each in chosen)
    with training_progress(epochs_in_all) as training:
        for each in chosen:
            dataset = dataset_of(each, data, limit_train)
            label = f"{each.id}, seed {seed}"
            with training(label, each.recipe.epochs) as on_epoch:
                run = train_row(
                    each,
                    dataset,
                    seed,
                    width,
                    activation,
                    command=called(),
                    on_epoch=on_epoch,
                )
            save(run, out)
            add_result(out / "results.jsonl", run.result)
            results.append(run.result)
    console = Console()
    console.print(paper_table(results, measured_only=True))
    console.print(f"Models, histories and results are in {out}/")


@app.command()
def tables(
    results: Annotated[
        Path,
        typer.Option(
            file_okay=False,
            help="Directory of results: all files results*.jsonl below it.",
        ),
    ] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects, for scripts.")
    ] = False,
):
    """List the rows of the paper's tables, and what was measured of each."""
    found = read_all(results)
    if as_json:
        print(json.dumps(as_objects(found), indent=2))
    else:
        Console().print(paper_table(found))


@app.command()
def generate_splicing(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write: an .npz.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the random draws.")] = 0,
):
    """GENERATE data of the shape of the splicing data, for Table 5.

    The mouse splicing data of the paper are not public in one file. These
    have their size, are drawn at random, and are sparse and biased as the
    paper says of its own: 93 % of the features are 0, and in 90 % of the
    tissues "no change" is the most likely outcome, which are choices. They
    serve to try the command, and say nothing about splicing.
    """
    save_splicing(path, generated(seed=seed))
    print(f"Generated data are in {path}")


# With which a backend trains convolutions fastest (benchmarks/README.md).
IMAGE_DATA_FORMAT = (
    "channels_first" if keras.backend.backend() == "torch" else "channels_last"
)


def main():
    """Runs the command; what the user can mend is said in one line."""
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        print(f"keras-invdrop: {error}", file=sys.stderr)
        sys.exit(1)
