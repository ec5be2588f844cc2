"""With calibration, training on one encoding mirrors training on the other.

With `x' = 1 - x`, a first kernel `W' = -W` and a shift `beta' = -1 - beta` the
activities after the dropout are `x' + beta' = -(x + beta)`, so that the rest of
the network computes the same. Calibrated betas start in this relation, and the
gradients of W and beta only change their signs. A maximum norm, weight decay,
momentum and averages treat W and -W alike. Only a decay of beta is not
symmetric. Initial weights W and -W are equally likely, so that the errors on
the two encodings come from one distribution.
"""

import dataclasses

import numpy as np
import pytest
from keras_invdrop.experiments.data.datasets import Split
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.train.trainer import Trainer
from keras_invdrop.experiments.train.trial import Trial

# The mirror is one of the network, whatever the backend.
pytestmark = pytest.mark.one_backend
EPOCHS = 5


def inverted(split):
    return Split(1 - split.x, split.y)


def losses(dataset, sign, **changes):
    """The losses of each epoch, with the first kernel times `sign`."""
    row = ROWS[f"table2/{dataset.encoding}/invariant"]
    settings = {"epochs": EPOCHS, "batch_size": 10, "learning_rate": 0.05}
    recipe = dataclasses.replace(row.trained(True), **(settings | changes))
    row = dataclasses.replace(row, recipe=recipe)
    trainer = Trainer(Trial(row, 0, 0.03), dataset)
    model = trainer.model()
    kernel = model.get_layer("hidden_1").kernel
    kernel.assign(sign * kernel)
    logs = trainer.fit(
        trainer._calibrated(model),
        dataset.train,
        EPOCHS,
        {"val": dataset.validation},
    ).logs
    return np.array([logs["loss"], logs["val_loss"]])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"max_norm": 0.5}, marks=pytest.mark.thorough),
        {
            "max_norm": (None, 0.5, 0.5),
            "initial_stddev": (0.05, None, None),
            "beta_factor": 10.0,
            "warm_up": 0.2,
            "weight_decay": 1e-3,
            "ema_momentum": 0.9,
        },
    ],
)
def test_both_encodings_train_alike(blobs, changes):
    other = dataclasses.replace(
        blobs,
        encoding="inverted",
        train=inverted(blobs.train),
        validation=inverted(blobs.validation),
    )
    expected = losses(blobs, 1, **changes)
    # Thirty updates, each rounded to float32.
    np.testing.assert_allclose(
        losses(other, -1, **changes), expected, rtol=1e-5
    )
    # Without the mirrored weights the losses are another draw.
    assert np.abs(losses(other, 1, **changes) / expected - 1).max() > 0.01
    assert expected[0, -1] < 0.8 * expected[0, 0]


def test_a_decay_of_beta_breaks_the_mirror(blobs):
    other = dataclasses.replace(
        blobs,
        encoding="inverted",
        train=inverted(blobs.train),
        validation=inverted(blobs.validation),
    )
    one = losses(blobs, 1, beta_decay=0.1)
    mirrored = losses(other, -1, beta_decay=0.1)
    assert np.abs(mirrored / one - 1).max() > 0.01
