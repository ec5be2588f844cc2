"""Prints the results of benchmarks as tables in Markdown.

python benchmarks/table.py benchmarks/results.jsonl
"""

import json
import sys
from itertools import groupby
from pathlib import Path


def tables(lines):
    """The tables, one for each set of calls that took turns."""
    results = [json.loads(line) for line in lines]
    # The newest of each stays in the place of the first.
    newest = {(x["what"], x["name"]): x for x in results}.values()
    rows = {}
    for result in newest:
        rows.setdefault(result["what"], []).append(result)
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
                    for what, cells in row_list
                ),
            ]
        )


def cell(result):
    if result["name"] == result["against"]:
        number, unit = result["median"], result["unit"]
        return (
            f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
        )
    low, high = result["quartiles"]
    return f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    print("\n\n".join(tables(Path(sys.argv[1]).read_text().splitlines())))
