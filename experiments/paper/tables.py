"""The paper's tables as data, one literal per row.

`printed` is the paper's figure, in the unit of the table: the test error in
percent, or, in Table 5, the code quality in bits.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import Literal

import keras
from keras_invdrop.applications import SVHN_CONVOLUTIONS
from keras_invdrop.applications import cifar10_mlp
from keras_invdrop.applications import mas_mlp
from keras_invdrop.applications import maxout_cnn
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications import recipes
from keras_invdrop.applications import relu_cnn
from keras_invdrop.applications.recipes import Recipe
from keras_invdrop.applications.recipes import Selection

from keras_invdrop._checks import invalid


@dataclass(frozen=True)
class Network:
    """A network under the paper's name, and the function that builds it.

    `any_activation` says whether the function takes an `activation`.
    """

    name: str
    build: Callable[..., keras.Model]
    any_activation: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        id: Table, row and method: `"table2/inverted/invariant"`.
        dataset: Name of the data set.
        network: The network.
        method: The dropout method, one of `METHODS`.
        printed: The paper's figure.
        recipe: The settings of the training.
        encoding: `"original"` or `"inverted"`.
        partition: Partition of the splicing data, from 1 to 6.
        calibrated_recipe: The recipe for beta that starts calibrated; None to
            use `recipe`.
        selection: The search that selected settings of `recipe` for this row;
            None if the recipe reuses another row's settings.
        calibrated_selection: The search for `calibrated_recipe`.
    """

    id: str
    dataset: str
    network: Network
    method: str
    printed: float
    recipe: Recipe
    encoding: str = "original"
    partition: int | None = None
    calibrated_recipe: Recipe | None = None
    selection: Selection | None = None
    calibrated_selection: Selection | None = None

    def trained(self, calibrated: bool) -> Recipe:
        """The recipe, for beta that starts at 0 or calibrated."""
        if not calibrated:
            return self.recipe
        return replace(self.calibrated_recipe or self.recipe, calibrated=True)

    def selected_by(self, calibrated: bool) -> Selection | None:
        """The search that selected the settings of `trained(calibrated)`."""
        return self.calibrated_selection if calibrated else self.selection

    @property
    def table(self) -> int:
        """The number of the table."""
        return int(self.id.partition("/")[0].removeprefix("table"))

    @property
    def unit(self) -> Literal["%", "bits"]:
        """The unit of `printed` and of the measurements."""
        return "bits" if self.dataset == "mas" else "%"


MNIST_MLP = Network("784-1000-1000-10", mnist_mlp, any_activation=True)
CIFAR10_MLP = Network("DNN 2000-2000", cifar10_mlp, any_activation=True)
RELU_CNN = Network("ReLU CNN 128c-p-128c-p-128c-p-1000fc", relu_cnn)
# Hinton et al., 2012.
LOCALLY_CONNECTED = Network(
    "ReLU CNN 64c-p-64c-p-64c-p-16lc",
    partial(
        relu_cnn, filters=(64, 64, 64), locally_connected=16, hidden_units=()
    ),
)
# Zeiler and Fergus, 2013: the only fully connected layer is the softmax.
STOCHASTIC_POOLING = Network(
    "ReLU CNN 64c-p-64c-p-128c-p-fc, stochastic pooling",
    partial(
        relu_cnn, filters=(64, 64, 128), hidden_units=(), pooling="stochastic"
    ),
)
# Choice: 2,048 units in each of the two layers; the paper prints no size.
TWO_HIDDEN = Network(
    "ReLU CNN 64c-p-64c-p-128c-p-fc-fc",
    partial(relu_cnn, filters=(64, 64, 128), hidden_units=(2048, 2048)),
)
CIFAR10_MAXOUT = Network("Maxout CNN 96c-p-192c-p-192c-p-500fc", maxout_cnn)
SVHN_MAXOUT = Network(
    "Maxout CNN 64c-p-128c-p-128c-p-400fc",
    partial(maxout_cnn, convolutions=SVHN_CONVOLUTIONS, hidden_units=400),
)
MAS_MLP = Network("1014-1000, softmax", mas_mlp, any_activation=True)


def _table_2(encoding, method, printed, recipe, **selected):
    id = f"table2/{encoding}/{method}"
    return Row(
        id, "mnist", MNIST_MLP, method, printed, recipe, encoding, **selected
    )


def _table_5(partition, method, printed):
    id = f"table5/{partition}/{method}"
    return Row(
        id, "mas", MAS_MLP, method, printed, recipes.MAS, partition=partition
    )


_SELECTED = {
    "selection": recipes.MNIST_SELECTION,
    "calibrated_recipe": recipes.MNIST_CALIBRATED,
    "calibrated_selection": recipes.MNIST_SELECTION,
}

# fmt: off
_ROWS = (
    _table_2("original", "standard", 1.01, recipes.MNIST_STANDARD, selection=recipes.MNIST_SELECTION),
    # No search of its own yet: the recipe of the method that is most alike.
    _table_2("original", "invariant_input", 1.01, recipes.MNIST_INPUT_FROM_ZERO, calibrated_recipe=recipes.MNIST_CALIBRATED, selection=recipes.MNIST_SELECTION),
    _table_2("original", "invariant_hidden", 1.00, recipes.MNIST_HIDDEN_FROM_ZERO, selection=recipes.MNIST_SELECTION),
    _table_2("original", "invariant", 0.91, recipes.MNIST_FROM_ZERO, **_SELECTED),
    _table_2("original", "running_average", 1.00, recipes.MNIST_RUNNING_AVERAGE, selection=recipes.MNIST_SELECTION),
    _table_2("inverted", "standard", 1.32, recipes.MNIST_INVERTED_STANDARD, selection=recipes.MNIST_SELECTION),
    _table_2("inverted", "invariant_input", 1.17, recipes.MNIST_INVERTED_INPUT_FROM_ZERO, calibrated_recipe=recipes.MNIST_CALIBRATED, selection=recipes.MNIST_SELECTION),
    _table_2("inverted", "invariant_hidden", 1.23, recipes.MNIST_INVERTED_HIDDEN_FROM_ZERO, selection=recipes.MNIST_SELECTION),
    _table_2("inverted", "invariant", 0.94, recipes.MNIST_INVERTED_FROM_ZERO, **_SELECTED),
    _table_2("inverted", "running_average", 0.98, recipes.MNIST_INVERTED_RUNNING_AVERAGE, selection=recipes.MNIST_SELECTION),

    Row("table3/dnn/standard", "cifar10", CIFAR10_MLP, "standard", 57.8, recipes.CIFAR10_MLP),
    Row("table3/locally_connected/standard", "cifar10", LOCALLY_CONNECTED, "standard", 15.6, recipes.RELU_CNN_STANDARD),
    Row("table3/stochastic_pooling/standard", "cifar10", STOCHASTIC_POOLING, "standard", 15.13, recipes.RELU_CNN_NO_HIDDEN),
    Row("table3/relu/standard", "cifar10", RELU_CNN, "standard", 12.3, recipes.RELU_CNN_STANDARD, selection=recipes.RELU_CNN_SELECTION),
    Row("table3/relu/invariant", "cifar10", RELU_CNN, "invariant", 11.7, recipes.RELU_CNN_FROM_ZERO, selection=recipes.RELU_CNN_SELECTION, calibrated_recipe=recipes.RELU_CNN_CALIBRATED, calibrated_selection=recipes.RELU_CNN_SELECTION),

    Row("table4/two_hidden/standard", "svhn_cropped", TWO_HIDDEN, "standard", 2.78, recipes.RELU_CNN_TWO_HIDDEN),
    Row("table4/stochastic_pooling/standard", "svhn_cropped", STOCHASTIC_POOLING, "standard", 2.80, recipes.RELU_CNN_NO_HIDDEN),
    Row("table4/relu/standard", "svhn_cropped", RELU_CNN, "standard", 2.80, recipes.RELU_CNN_STANDARD),
    Row("table4/relu/invariant", "svhn_cropped", RELU_CNN, "invariant", 2.68, recipes.RELU_CNN_FROM_ZERO, calibrated_recipe=recipes.RELU_CNN_CALIBRATED),

    _table_5(1, "none", 411.56), _table_5(1, "standard", 445.84), _table_5(1, "invariant", 477.07),
    _table_5(2, "none", 464.39), _table_5(2, "standard", 476.74), _table_5(2, "invariant", 484.58),
    _table_5(3, "none", 429.07), _table_5(3, "standard", 485.09), _table_5(3, "invariant", 471.72),
    _table_5(4, "none", 414.77), _table_5(4, "standard", 460.88), _table_5(4, "invariant", 462.91),
    _table_5(5, "none", 433.94), _table_5(5, "standard", 471.10), _table_5(5, "invariant", 483.70),
    _table_5(6, "none", 429.43), _table_5(6, "standard", 450.85), _table_5(6, "invariant", 467.72),

    Row("table6/cifar10/standard", "cifar10", CIFAR10_MAXOUT, "standard", 11.7, recipes.CIFAR10_MAXOUT),
    Row("table6/cifar10/invariant", "cifar10", CIFAR10_MAXOUT, "invariant", 11.5, recipes.CIFAR10_MAXOUT),
    Row("table6/svhn/standard", "svhn_cropped", SVHN_MAXOUT, "standard", 2.47, recipes.SVHN_MAXOUT),
    Row("table6/svhn/invariant", "svhn_cropped", SVHN_MAXOUT, "invariant", 2.33, recipes.SVHN_MAXOUT),
)
# fmt: on

ROWS: dict[str, Row] = {row.id: row for row in _ROWS}


def rows(name: str) -> list[Row]:
    """The rows that a name stands for.

    Args:
        name: The id of a row, `"table5/1/invariant"`, or a prefix of several
            ids, up to a slash: `"table5"`, `"table5/1"`.

    Raises:
        ValueError: If no id matches. The message suggests similar ids, or
            names the tables.
    """
    found = [
        row for row in _ROWS if f"{row.id}/".startswith(f"{name}/") and name
    ]
    if not found:
        tables = dict.fromkeys(id.partition("/")[0] for id in ROWS)
        ids = [
            id for id in ROWS if id.partition("/")[0] == name.partition("/")[0]
        ]
        near = difflib.get_close_matches(
            name, ids or ROWS, n=3, cutoff=0.6 if ids else 0.8
        )
        raise invalid(
            "row",
            "a row of the paper's tables, or the beginning of several "
            f"(`keras-invdrop tables` lists them), such as "
            f"{', '.join(near or tables)}",
            name,
        )
    return found
