"""Runs the code in README and documentation, and checks its names."""

import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import is_dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.io
import typer
from keras_invdrop.experiments.command_line import app
from keras_invdrop.experiments.data.own_images import load_images
from keras_invdrop.experiments.paper.tables import rows
from markdown_it import MarkdownIt
from typer.exceptions import TyperException

import keras_invdrop
from keras_invdrop import applications

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "results/README.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
)
# Values for the placeholders in the commands of results/README.md.
PLACEHOLDERS = {"E": "original", "D": "standard", "S": "0", "V": "0.1"}
MARKDOWN = MarkdownIt().enable("table")


def blocks(page):
    """The language and the text of each block of code, in order."""
    return [
        (token.info, token.content)
        for token in MARKDOWN.parse((ROOT / page).read_text())
        if token.type in ("fence", "code_block")
    ]


def commands(page):
    """The words of each command, in blocks of code and in the text."""
    texts = [text.replace("\\\n", " ") for _, text in blocks(page)]
    lines = [line for text in texts for line in text.splitlines()]
    for token in MARKDOWN.parse((ROOT / page).read_text()):
        for part in token.children or ():
            if part.type == "code_inline":
                lines.append(part.content)
    pattern = r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(keras-invdrop|make|pip)( .*|)"
    for line in lines:
        if found := re.fullmatch(pattern, line):
            yield shlex.split(found[1] + found[2], comments=True)


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    "page",
    [
        # The guide on your own images makes a file, for which it needs
        # TensorFlow.
        pytest.param(page, marks=pytest.mark.one_backend)
        if page.endswith("own_images.md")
        else page
        for page in PAGES
        if page != "docs/export.md"  # which test_export.py runs
    ],
)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    """Runs block after block and compares their output with the page."""
    monkeypatch.chdir(tmp_path)
    # Keras is already imported, so a backend that a page sets has no effect on
    # this process, and must not reach the processes that it starts later.
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    # The folder that the guide on your own images reads.
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            image = np.random.default_rng(number).random((20, 30, 3))
            path = tmp_path / "pictures" / name / f"{number}.png"
            keras.utils.save_img(path, image)
    if page == "results/README.md":  # a file like that of SVHN
        labels = (np.arange(10_002) % 10 + 1).astype("uint8")[:, None]
        images = np.zeros((4, 4, 3, 10_002), "uint8") + labels[:, 0]
        scipy.io.savemat("test_32x32.mat", {"X": images, "y": labels})
    names: dict = {}
    printed = None
    for language, text in blocks(page):
        # No test runs blocks in a language that is not listed here.
        assert language in ("", "python", "text")
        if language == "python":
            exec(text, names)
            printed = capsys.readouterr().out
        elif language == "text" and printed is not None:
            assert words(text) == words(printed)
            printed = None
    if page == "README.md":
        assert names["model"].compiled
    if page.endswith("own_images.md"):
        dataset = load_images("pictures.npz", "cifar10")
        assert dataset.train.x.shape[0] == 16 - 16 // 6
        assert len(dataset.test) == 4
    if page == "results/README.md":
        dataset = load_images("svhn_test_10000.npz", "mnist", validation=0)
        assert (len(dataset.train), len(dataset.test)) == (8_000, 2_000)
        # The image of the digit 0 has the label 10 in the file.
        wanted = np.where(dataset.test.y == 0, 10, dataset.test.y) / 255
        np.testing.assert_allclose(dataset.test.x.mean(axis=1), wanted, 1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("page", ["README.md", "docs/quick_start.md"])
def test_first_code_runs_where_no_backend_is_set(page, tmp_path):
    """It runs without TensorFlow, which is Keras' default."""
    first, *_ = [text for language, text in blocks(page) if language]
    without = "import sys\nsys.modules['tensorflow'] = None\n"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    process = subprocess.run(
        [sys.executable, "-c", without + first],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_report_of_the_guide(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    first, *_ = [
        text
        for language, text in blocks("docs/guides/would_it_help.md")
        if language == "python"
    ]
    names: dict = {}
    exec(first, names)
    # A line for each dropout layer.
    report = names["report"]
    assert len(report) == 2
    assert all("-> dense" in str(line) for line in report)
    # Nearly all the noise on the input comes from its mean.
    assert report[0].at_best < 0.1 * report[0].at_zero


@pytest.mark.one_backend
def test_readme_is_short_and_its_pictures_are_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).is_file()


@pytest.mark.one_backend
def test_pages_have_code():
    """The tests above and below find code and commands to check."""
    count = {
        page: sum(language == "python" for language, _ in blocks(page))
        for page in PAGES
    }
    assert count["README.md"] == 3
    assert count["docs/quick_start.md"] >= 5
    assert count["docs/guides/errors.md"] >= 4
    found = [command[0] for page in PAGES for command in commands(page)]
    assert found.count("keras-invdrop") > 20
    assert found.count("make") > 5
    assert found.count("pip") > 5


def arguments_of(command):
    """The arguments that the command line parses, without running it."""
    name, *given = [
        re.sub(r"\b[EDSV]\b", lambda found: PLACEHOLDERS[found[0]], word)
        for word in command
    ]
    called = typer.main.get_command(app).commands[name]
    if given in ([], ["--help"]):
        return {}
    return called.make_context(name, given).params


@pytest.mark.one_backend
@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name, *command in commands(page):
        try:
            if name == "keras-invdrop" and command:
                named = arguments_of(command).get("row", [])
                for row in [named] if isinstance(named, str) else named:
                    assert rows(row)
            elif name == "make":
                subprocess.run(["make", "--dry-run", *command], check=True)
            elif name == "pip":
                for several in re.findall(r"\[(.+?)\]", " ".join(command)):
                    assert set(several.split(",")) <= set(extras)
        except (KeyError, ValueError, TyperException) as error:
            pytest.fail(f"{page}: {name} {shlex.join(command)}: {error}")


@pytest.mark.one_backend
def test_every_public_name_is_in_the_reference():
    reference = {
        name
        for page in PAGES
        for name in re.findall(r"^::: (\S+)", (ROOT / page).read_text(), re.M)
    }
    public = {
        f"{module.__name__}.{name}"
        for module in (keras_invdrop, keras_invdrop.plots, applications)
        for name, value in inspect.getmembers(module)
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert len(public) > 20
    assert public <= reference


@pytest.mark.one_backend
def test_every_layer_function_and_callback_has_a_card():
    page = (ROOT / "docs" / "method_cards.md").read_text()
    headings = "".join(re.findall(r"^### (.*)", page, re.M))
    carded = set(re.findall(r"\[`([\w.]+)`\]", headings))
    public = {
        name
        for name, value in inspect.getmembers(keras_invdrop)
        if inspect.isclass(value) or inspect.isfunction(value)
        # A result is on the card of its function.
        if not is_dataclass(value) and value is not keras_invdrop.VarianceReport
    }
    assert carded == public | {"regularizers.Variance"}
    # All five lines, in each card.
    for line in ("Use it", "Not", "Set", "Costs", "Measured"):
        assert page.count(f"\n| {line} | ") == page.count("\n### ")
