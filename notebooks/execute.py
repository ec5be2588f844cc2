"""Runs notebooks from top to bottom, and keeps in them what they show.

python notebooks/execute.py notebooks/*.ipynb
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from keras_invdrop._files import replacing


def execute(path: Path) -> None:
    """Runs a notebook, and writes it anew with its outputs.

    Nothing is written if a cell fails. What libraries log, about the machine
    that they are on, is for the terminal.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
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
    # Not which Python it was.
    notebook.metadata.language_info = {"name": "python"}
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


for argument in sys.argv[1:]:
    started = time.perf_counter()
    execute(Path(argument).absolute())
    print(f"{argument}: {time.perf_counter() - started:.0f} s")
