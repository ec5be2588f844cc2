"""The pages of the site: Markdown files of the repository, at the same paths.

So a link between two files works both in the repository and on the site.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

# Pages, and the files that they show or link.
PATTERNS = (
    "*.md",
    "CITATION.cff",
    "applications/recipes.py",
    "benchmarks/*.md",
    "benchmarks/*.png",
    "docs/*.css",
    "docs/**/*.md",
    "docs/**/*.png",
    "experiments/paper/tables.py",
    "experiments/results/records.py",
    "notebooks/*.ipynb",
    "results/**/*.md",
    "results/**/*.png",
    "tests/experiments/train/test_mirror.py",
    "tests/packaging/test_rooms.py",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the version of the library in the footer of each page."""
    package = Path(config.config_file_path).parent / "keras_invdrop"
    source = (package / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', source)
    config.copyright = f"keras-invdrop {version[1]}. Licence: Apache 2.0."
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files in `docs` by those of the repository."""
    root = Path(config.config_file_path).parent
    found = sorted({path for each in PATTERNS for path in root.glob(each)})
    pages = []
    for path in found:
        source = path.relative_to(root).as_posix()
        page = File.generated(config, source, abs_src_path=str(path))
        page.edit_uri = source
        pages.append(page)
        if path.suffix == ".ipynb":
            folder = path.parent.relative_to(root).as_posix()
            pages += [
                File.generated(config, f"{folder}/{name}", content=content)
                for name, content in _rendered(path)
            ]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(pages + theme)


def _rendered(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """The names and contents of a notebook's page and of its images."""
    text, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": path.stem}
    )
    # The site loads no external image: the badge becomes a link.
    text = re.sub(r"\[!(\[Open in Colab\])\(.*?\)\]", r"\1", text)
    yield (
        f"{path.stem}.md",
        f"{text}\n\n[This page as a notebook]({path.name}), to run it.\n",
    )
    yield from resources["outputs"].items()


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Adapts links and remarks that are meant for readers of the files."""
    markdown = re.sub(
        r"<!-- not on the site: begin -->.*?<!-- not on the site: end -->\n*",
        "",
        markdown,
        flags=re.DOTALL,
    )
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
    return re.sub(r"(?<=notebooks/)(\w+)\.ipynb", r"\1.md", markdown)
