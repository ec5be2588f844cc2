"""The documentation builds without a warning and is complete."""

import html
import inspect
import json
import re
import tomllib
from pathlib import Path

import keras_invdrop
from keras_invdrop import applications

ROOT = Path(__file__).parents[2]


def text_of(page):
    """The text that a reader of a page sees, in one line."""
    page = re.sub(r"<[^>]+>", "", page.read_text())
    return " ".join(html.unescape(page).split())


def test_every_docstring_is_in_the_reference(site):
    reference = " ".join(map(text_of, site.glob("docs/api/*/index.html")))
    docstrings = [
        inspect.getdoc(value)
        for module in (keras_invdrop, applications)
        for _, value in inspect.getmembers(module)
        if inspect.isclass(value) or inspect.isfunction(value)
    ]
    assert len(docstrings) > 20
    for docstring in docstrings:
        first, *_ = docstring.splitlines()
        assert first.replace("`", "") in reference
    # Sections are shown as sections, and examples as code.
    assert "Parameters: " in reference
    assert "Args: " not in reference


def test_the_reference_has_public_names_alone(site):
    """A module's private names and imports are not shown."""
    names = {
        page.parent.name: re.findall(
            r'<h\d id="(keras_invdrop\.[^"]+)"', page.read_text()
        )
        for page in site.glob("docs/api/*/index.html")
    }
    assert {"applications", "callbacks", "layers", "models"} < set(names)
    assert set(names["plots"]) == {
        f"keras_invdrop.plots.{name}" for name in dir(keras_invdrop.plots)
    }
    assert not [
        name for page in names.values() for name in page if "._" in name
    ]


def test_signatures_have_lines_that_fit(site):
    """Signatures need a formatter, which the extra of this site installs."""
    page = (site / "docs/api/layers/index.html").read_text()
    signatures = re.findall(r"<pre>.*?</pre>", page, re.S)
    lines = [
        html.unescape(line)
        for signature in signatures
        for line in re.sub(r"<[^>]+>", "", signature).splitlines()
    ]
    assert len(lines) > 100
    assert max(map(len, lines)) <= 80
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "ruff" in project["optional-dependencies"]["docs"]


def test_pages_link_each_other_as_the_files_do(site):
    """Pages of the repository, and their images, are in their places."""
    for path in (
        "index.html",
        "benchmarks/index.html",
        "benchmarks/growth.png",
        "docs/export/index.html",
        "results/report/index.html",
        "results/demo/figure1.png",
        "experiments/paper/tables.py",
    ):
        assert (site / path).exists()


def test_notebooks_are_pages(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        folder = site / "notebooks" / path.stem
        page = (folder / "index.html").read_text()
        assert (folder.parent / path.name).exists()
        pictures = re.findall(r'<img [^>]*src="([^"]+)"', page)
        assert len(pictures) == path.read_text().count('"image/png"')
        assert all((folder / picture).exists() for picture in pictures)
    # What links the file of a notebook leads to its page.
    page = (site / "docs/notebooks/index.html").read_text()
    assert 'href="../../notebooks/1_five_minutes/"' in page
    assert ".ipynb" not in page


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        found = re.findall(
            r'<(?:script|link|img)[^>]*"https?://', page.read_text()
        )
        assert found == []


def test_the_search_finds_what_people_call_things(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    texts = [each["text"].lower() for each in index["docs"]]
    for name in (
        "mc dropout",
        "mask token",
        "imputation",
        "specaugment",
        "fine-tuning",
        "uncertainty",
        "onnx",
    ):
        assert any(name in text for text in texts), name
