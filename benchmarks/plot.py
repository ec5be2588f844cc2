"""Draws the results of `growth.py`.

python benchmarks/plot.py benchmarks/results.jsonl benchmarks/growth.png
"""

import sys

import matplotlib.pyplot as plt
import pandas as pd

STYLES = {"invariant": "o-", "frozen": "s:"}


def main(source, target):
    results = pd.read_json(source, lines=True)
    grown = results[results.grows.notna()].drop_duplicates(
        ["what", "name"], keep="last"
    )
    panels = list(grown.groupby("grows", sort=False))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 3.6), sharey=True, layout="constrained"
    )
    modes = list(grown["mode"].unique())
    for axis, (grows, panel) in zip(axes, panels, strict=True):
        for (mode, name), line in panel.groupby(["mode", "name"], sort=False):
            if name in STYLES:
                axis.plot(
                    line["size"],
                    line.ratio,
                    STYLES[name],
                    color=f"C{modes.index(mode)}",
                    label=f"{mode}, {name}",
                )
        axis.axhline(1, color="black", linewidth=1)
        sizes = sorted(panel["size"].unique())
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set(xlabel=grows, ylim=(0, None))
    axes[0].set_ylabel("a step's time, in that with Dropout")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right")
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
