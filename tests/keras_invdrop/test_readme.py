"""The Python code of the README is run, one block after the other."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    # The report has a line for each dropout layer of the first block.
    report = capsys.readouterr().out.splitlines()
    assert len(report) == 2
    assert all("-> dense" in line for line in report)
    assert names["model"].compiled
