"""Runs notebooks from top to bottom and saves their outputs in them.

python notebooks/execute.py notebooks/*.ipynb

If a cell has the tag `FILE.png`, its picture is also written to that file of
the repository, for the documentation.
"""

import base64
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from keras_invdrop._files import replacing

ROOT = Path(__file__).parents[1]


def execute(path: Path) -> None:
    """Runs a notebook and rewrites it with its outputs.

    If a cell fails, nothing is written. Output on standard error, where
    libraries log details of the machine, is dropped.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=1800,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]
        for tag in cell.metadata.get("tags", ()):
            if tag.endswith(".png"):
                with replacing(ROOT / tag) as temporary:
                    temporary.write_bytes(picture(cell))
    # Without the version of Python.
    notebook.metadata.language_info = {"name": "python"}
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


def picture(cell: nbformat.NotebookNode) -> bytes:
    """The only picture that a cell shows."""
    (shown,) = (
        output.data["image/png"]
        for output in cell.outputs
        if "image/png" in output.get("data", ())
    )
    return base64.b64decode(shown)


for argument in sys.argv[1:]:
    started = time.perf_counter()
    execute(Path(argument).absolute())
    print(f"{argument}: {time.perf_counter() - started:.0f} s")
