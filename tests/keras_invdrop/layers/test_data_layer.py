import re
from pathlib import Path

from keras import layers

import keras_invdrop
from keras_invdrop.layers._data_layer import DataLayer


def test_it_is_the_class_of_the_preprocessing_layers_of_keras():
    for layer in (layers.Rescaling, layers.Normalization, layers.RandomFlip):
        assert issubclass(layer, DataLayer)
    assert not issubclass(layers.Dense, DataLayer)
    for name in ("convert_weight", "__call__"):
        assert name in vars(DataLayer)


def test_no_layer_is_imported_from_the_inside_of_keras():
    """Where they are, and their names, differ between versions."""
    found = [
        line
        for path in Path(keras_invdrop.__file__).parent.rglob("*.py")
        for line in re.findall(
            r"^ *(?:from|import) keras\.src\.layers.*", path.read_text(), re.M
        )
    ]
    assert found == []
