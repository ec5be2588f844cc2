"""The pages of the site: Markdown files of the repository, in their places.

So what is written in one place stays there, and a link from one file to
another is right in both, in the repository and on the site.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File
from mkdocs.structure.files import Files

# Pages, and what they show or link.
PATTERNS = (
    "*.md",
    "CITATION.cff",
    "applications/recipes.py",
    "benchmarks/*.md",
    "benchmarks/*.png",
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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Puts the files of the repository in the place of those in `docs`."""
    root = Path(config.config_file_path).parent
    found = sorted({path for each in PATTERNS for path in root.glob(each)})
    pages = [
        File.generated(
            config, path.relative_to(root).as_posix(), abs_src_path=str(path)
        )
        for path in found
    ]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(pages + theme)
