"""The page of the package on an index: README, with whole links."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
# A link or picture with the address of a file beside README.
RELATIVE = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)]+)\)")


def absolute(link: re.Match) -> str:
    picture, text, path = link.groups()
    kind = "raw" if picture else "blob"
    return f"{picture}{text}({URLS['Repository']}/{kind}/main/{path})"


setup(
    long_description=RELATIVE.sub(absolute, (ROOT / "README.md").read_text()),
    long_description_content_type="text/markdown",
)
