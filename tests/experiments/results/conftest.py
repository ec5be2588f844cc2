"""Results of two rows, which several test files read."""

import dataclasses

import pandas as pd
import pytest
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results import report
from keras_invdrop.experiments.results.records import read_result
from keras_invdrop.experiments.results.records import write_result


@pytest.fixture
def stored(result, tmp_path):
    """Results of two rows with two seeds, and their histories."""
    for method, test in (("standard", 5.0), ("invariant", 4.0)):
        row = ROWS[f"table2/inverted/{method}"]
        for seed in (0, 1):
            each = dataclasses.replace(
                result,
                row=row.id,
                dropout=method,
                encoding="inverted",
                seed=seed,
                test=test + seed * (1.1 if method == "invariant" else 1),
                validation=3.0,
                recipe=dataclasses.asdict(row.recipe),
            )
            path = tmp_path / f"{method}-{seed}.json"
            write_result(path, each)
            history = pd.DataFrame(
                {
                    "training_error": [9.0, 8.0, 7.0],
                    "validation_error": [6.0, 5.0, 3.0],
                },
                index=pd.RangeIndex(1, 4, name="epoch"),
            )
            history.to_csv(path.with_suffix(".csv"))
    return tmp_path


@pytest.fixture
def on_digits(stored):
    """The same results, of a data set that the figures can load."""
    for path in stored.glob("*.json"):
        found = read_result(path)
        write_result(path, dataclasses.replace(found, dataset="digits"))
    return stored


@pytest.fixture
def lines_with_figures():
    """A function that writes a report and returns its lines."""

    def lines(directory):
        path = report.write_report(directory)
        assert path == directory / "report.md"
        return path.read_text().splitlines()

    return lines
