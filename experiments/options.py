"""Options that several commands of `keras-invdrop` have."""

from pathlib import Path
from typing import Annotated

import typer

Epochs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Epochs of each training.", show_default="the recipe's"
    ),
]
RowArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="ROW",
        help="Rows of the paper's tables, such as table3/relu/invariant, "
        "or the beginning that several rows share: table2, table5/1. "
        "`keras-invdrop tables` lists them.",
    ),
]
Width = Annotated[
    float,
    typer.Option(help="Multiplies the units and feature maps of every layer."),
]
LimitTrain = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of training examples to use.", show_default="all"
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="For Table 2: `digits` trains on 5,000 digits that come with a "
        "package, in place of MNIST. For Table 5: the file of the splicing "
        "data (.csv or .npz).",
        show_default="what tensorflow-datasets finds in TFDS_DATA_DIR, "
        "or downloads",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        help="Activation function of the hidden units, in Tables 2, 3 (dnn) "
        "and 5: relu, sigmoid, tanh ...",
        show_default="relu",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Learning rate at the start of the training.",
        show_default="the recipe's",
    ),
]
BetaDecay = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Weight decay of beta: this times beta is added to the "
        "gradient of the mean loss.",
        show_default="the recipe's",
    ),
]
MaxNorm = Annotated[
    str | None,
    typer.Option(
        metavar="NORM[,NORM...]",
        help="Largest norm of the incoming weights of a unit, or none; for "
        "all layers, or for each: none,4.5,4.5.",
        show_default="the recipe's",
    ),
]
InitialStddev = Annotated[
    str | None,
    typer.Option(
        metavar="SD[,SD...]",
        help="Standard deviation of the initial weights, or none for those "
        "that the network has by itself; for all layers, or for each: "
        "0.01,0.01,0.",
        show_default="the recipe's",
    ),
]
InputRate = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Fraction of the input to drop.",
        show_default="the recipe's",
    ),
]
HiddenRate = Annotated[
    str | None,
    typer.Option(
        metavar="RATE[,RATE...]",
        help="Fraction of the hidden activities to drop; of all hidden "
        "layers, or of each: 0.4,0.6.",
        show_default="the recipe's",
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="After its rise.", show_default="the recipe's"
    ),
]
BetaFactor = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="The learning rate of beta is so many times that of the weights.",
        show_default="the recipe's",
    ),
]
WarmUp = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Part of the steps over which the learning rate rises first.",
        show_default="the recipe's",
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="L2 of the weights: this times them is added to the gradient of "
        "the mean loss.",
        show_default="the recipe's",
    ),
]
EmaMomentum = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Take the moving average of the weights, with this momentum in "
        "each step: 0.999.",
        show_default="the recipe's",
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Start each shift (beta) at minus the mean activity of the "
        "training examples. The paper starts it at 0.",
    ),
]
DtypePolicy = Annotated[
    str | None,
    typer.Option(
        help="What the network computes in: float32, or mixed_bfloat16 or "
        "mixed_float16 where the machine is faster with them.",
        show_default="float32",
    ),
]
Validation = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Number of examples to set aside for validation. With 0 the "
        "network is trained on all examples, and tested as it is after the "
        "last epoch.",
        show_default="as in the paper",
    ),
]
StepsPerExecution = Annotated[
    int,
    typer.Option(
        min=1,
        help="Training steps in one call of the backend, on JAX and "
        "TensorFlow. On a GPU, 100 steps save most of the time that a small "
        "network takes.",
    ),
]
DataParallel = Annotated[
    bool,
    typer.Option(
        "--data-parallel",
        help="Divide each batch over all devices, on JAX: those of this "
        "machine, and of the machines that the next three options or a "
        "launcher (Slurm, Kubernetes, Open MPI) add. See "
        "docs/scaling_out.md.",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --data-parallel over several machines: the machine of "
        "process 0 and a free port of it, the same in every process.",
        show_default="the launcher's, or this machine alone",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of processes that train together.",
        show_default="the launcher's",
    ),
]
ProcessId = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Number of this process, from 0 on. Process 0 writes the files.",
        show_default="the launcher's",
    ),
]
Out = Annotated[
    Path,
    typer.Option(file_okay=False, help="Directory to write to."),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of processes on this machine, each of which trains "
        "networks on its share of the cores.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="A running Dask cluster, tcp://HOST:PORT. Its scheduler and "
        "workers have this package installed; each worker has one thread "
        "(--nthreads 1), the same KERAS_BACKEND and, at the same path, the "
        "directory to write to.",
        show_default="this machine",
    ),
]
