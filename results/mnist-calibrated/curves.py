"""Compares the curves of the two encodings, from the histories beside it.

python results/mnist-calibrated/curves.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from keras_invdrop.plots import plot_errors

FOLDER = Path(__file__).parent

# (seeds, epochs), in percent
original, inverted = (
    np.array(
        [
            pd.read_csv(path)["validation_error"]
            for path in sorted(FOLDER.glob(f"table2-{encoding}-*.csv"))
        ]
    )
    for encoding in ("original", "inverted")
)
difference = inverted - original  # paired: the same seed
seeds, epochs = difference.shape
mean = difference.mean(axis=0)
interval = stats.t.ppf(0.975, seeds - 1) * stats.sem(difference)
overlap = (inverted.min(0) <= original.max(0)) & (
    original.min(0) <= inverted.max(0)
)
print(
    f"validation error, inverted - original, {seeds} seeds, {epochs} epochs: "
    f"mean over all {mean.mean():.3f} points, "
    f"largest mean of an epoch {abs(mean).max():.2f} "
    f"(epoch {abs(mean).argmax() + 1}); 0 lies within the 95 % interval in "
    f"{(abs(mean) <= interval).sum()} epochs; the ranges over seeds overlap "
    f"in {overlap.sum()}"
)
ax = plot_errors(
    {"original": original, "inverted": inverted},
    title=f"Validation error, beta calibrated, {seeds} seeds and their range",
)
ax.figure.savefig(FOLDER / "curves.png", dpi=110)
plt.close()
