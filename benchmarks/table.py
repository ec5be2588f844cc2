"""Prints the results of benchmarks as tables in Markdown.

`plot.py` shows the results of `growth.py`.

python benchmarks/table.py benchmarks/results.jsonl
"""

import json
import sys
from itertools import groupby
from pathlib import Path


def tables(lines):
    """The tables, one for each set of calls that took turns."""
    results = [json.loads(line) for line in lines]
    results = [result for result in results if "grows" not in result]
    # The newest result of each call replaces earlier ones.
    newest = {(x["what"], x["against"], x["name"]): x for x in results}
    rows = {}
    for (what, against, _), result in newest.items():
        rows.setdefault((what, against), []).append(result)
    for _, group in groupby(
        rows.items(), key=lambda row: [x["name"] for x in row[1]]
    ):
        row_list = list(group)
        first = row_list[0][1]
        yield "\n".join(
            [
                f"| against {first[0]['against']} | "
                + " | ".join(x["name"] for x in first)
                + " |",
                "|---" * (len(first) + 1) + "|",
                *(
                    f"| {what} | " + " | ".join(map(cell, cells)) + " |"
                    for (what, _), cells in row_list
                ),
            ]
        )


def cell(result):
    if result["name"] == result["against"]:
        number = result["median"]
        digits = ",.0f" if number >= 100 else ".3g"
        return f"{number:{digits}} {result['unit']}"
    low, high = result["quartiles"]
    digits = 2 if result["ratio"] >= 0.1 else 3
    return (
        f"{result['ratio']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    )


if __name__ == "__main__":
    print("\n\n".join(tables(Path(sys.argv[1]).read_text().splitlines())))
