"""Every row of the paper's tables, from its data to its result.

The images are `mock_data`: random, in the form of the real ones.
"""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from keras import ops
from keras_invdrop.experiments.command_line import IMAGE_DATA_FORMAT
from keras_invdrop.experiments.data import datasets
from keras_invdrop.experiments.data.downloads import Download
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import partition_of
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.training import train
from keras_invdrop.experiments.train.trial import Trial

from keras_invdrop import ZCAWhitening

# The smallest layer, 16lc, keeps one map.
WIDTH = 1 / 16


class Unwhitened(ZCAWhitening):
    """Leaves images as they are: decomposing 3,072 x 3,072 takes seconds."""

    def adapt(self, data):
        self.build(data.shape)
        self.whitening.assign(np.eye(*self.whitening.shape))


@functools.cache
def mock(name, encoding):
    with (
        tfds.testing.mock_data(num_examples=80),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(datasets, "ZCAWhitening", Unwhitened)
        patch.setattr(Download, "_missing", lambda self, downloads: [])
        # These sizes give whole batches with and without the validation
        # examples. SVHN needs a multiple of 30 for validation.
        validation = 30 if name == "svhn_cropped" else 32
        dataset = datasets.load(name, encoding, validation, limit_train=16)
        if name == "svhn_cropped":
            # A stream reads when it is used, when the mock is gone, so its
            # batches are cached here.
            batches = dataset.train.batches(8, 0).cache()
            list(batches)
            stream = dataclasses.replace(
                dataset.train, batches=lambda batch_size, seed: batches
            )
            dataset = dataclasses.replace(dataset, train=stream)
    return dataset


@functools.cache
def splicing():
    return generate_splicing(exons=60, features=40)


# Together these rows have every layer and a row of each table. They are trained
# on every backend.
ON_EVERY_BACKEND = (
    "table2/inverted/running_average",
    "table3/locally_connected/standard",
    "table4/stochastic_pooling/standard",
    "table4/relu/invariant",
    "table5/1/invariant",
    "table6/svhn/invariant",
)
# Of the other rows, only the last one for each network and method is trained.
ON_ONE = {
    (row.network.name, row.method): row.id
    for row in ROWS.values()
    # Rows of Table 5 differ in their partition, which test_splicing.py tests.
    if row.partition in (None, 1)
}


def marks(row):
    if row.id in ON_EVERY_BACKEND:
        return []
    if row.id in ON_ONE.values():
        return [pytest.mark.one_backend]
    return [pytest.mark.thorough]


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=marks(row)) for row in ROWS.values()],
    ids=ROWS,
)
def test_row(row, image_data_format):
    image_data_format(IMAGE_DATA_FORMAT)
    if row.partition is None:
        dataset = mock(row.dataset, row.encoding)
    else:
        dataset = partition_of(splicing(), row.partition, limit_train=16)
    recipe = dataclasses.replace(row.recipe, batch_size=8, epochs=2)
    row = dataclasses.replace(row, recipe=recipe)
    run = train(Trial(row, width=WIDTH), dataset)

    assert run.result.row == row.id
    assert run.result.dropout == row.method
    # In its second training, a network also learns from the 32 validation
    # examples.
    assert run.result.training_examples == (48 if recipe.retrain else 16)
    assert run.result.unit == row.unit
    assert np.isfinite(run.history.to_numpy()).all()
    # Each layer has learned, including beta and the running averages.
    before = Trainer(Trial(row, 0, WIDTH), dataset).model().get_weights()
    after = run.model.get_weights()
    for old, new in zip(before, after, strict=True):
        assert np.isfinite(new).all()
        assert np.any(old != new)
    outputs = ops.convert_to_numpy(run.model(dataset.test.x[:4]))
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, rtol=1e-5)
    assert (
        run.result.validation
        == run.history.iloc[:, -1][run.result.selected_epoch]
    )
