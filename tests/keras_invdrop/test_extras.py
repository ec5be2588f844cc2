"""Errors for missing packages have the same words everywhere."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from keras_invdrop import _extras
from keras_invdrop._extras import missing
from keras_invdrop._extras import require

ROOT = Path(__file__).parents[2]


def test_the_error():
    error = missing("Argument `log_dir`", "tensorboardX", "tensorboard", "jax")
    assert isinstance(error, ImportError)
    assert error.name == "tensorboardX"
    assert str(error) == (
        "Argument `log_dir` needs `tensorboardX`, which is not installed: "
        "run `pip install 'keras-invdrop[tensorboard,jax] @ "
        "git+https://github.com/keras-invdrop/keras-invdrop'`."
    )


def test_the_command_is_one_word_for_a_shell():
    (command,) = re.findall("`(.+)`", _extras.how_to_install("jax", "plots"))
    *pip, wanted = shlex.split(command)
    assert pip == ["pip", "install"]
    assert Requirement(wanted).extras == {"jax", "plots"}
    # zsh reads brackets as a pattern
    assert f"'{wanted}'" in command
    # As the README says it.
    readme = (ROOT / "README.md").read_text()
    assert wanted.replace("[jax,plots]", "[jax]") in readme


def test_require_names_the_first_that_is_missing():
    require("This test", ["pytest", "keras"], "dev")
    with pytest.raises(ModuleNotFoundError, match="test needs `no_such_a`"):
        require("This test", ["pytest", "no_such_a", "no_such_b"], "dev")


# A process that does not find matplotlib and scipy. JAX and Keras, which take
# them where they are, have been imported.
WITHOUT = """
import sys
import keras_invdrop

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        if name not in ("matplotlib", "scipy"):
            return self.finder.find_spec(name, *args)

sys.meta_path = [Finder(each) for each in sys.meta_path]
for name in list(sys.modules):
    if name.partition(".")[0] in ("matplotlib", "scipy"):
        del sys.modules[name]
"""


TRIED = {
    "from keras_invdrop import plots": ("keras_invdrop.plots", "matplotlib"),
    "import keras_invdrop.plots": ("keras_invdrop.plots", "matplotlib"),
    "from keras_invdrop._statistics import mean_and_interval\n"
    "mean_and_interval([1.0, 2.0])": (
        "The confidence interval of a mean",
        "scipy",
    ),
}
# Prints the traceback of each, on a line.
TRY = f"""
import traceback

for code in {list(TRIED)}:
    try:
        exec(code, {{}})
    except ModuleNotFoundError:
        print(repr(traceback.format_exc()))
"""


@pytest.mark.one_backend
def test_without_the_packages_of_plots():
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT + TRY], capture_output=True, text=True
    )
    tracebacks = map(ast.literal_eval, process.stdout.splitlines())
    for text, (what, package) in zip(tracebacks, TRIED.values(), strict=True):
        *_, last = text.splitlines()
        assert last == f"ModuleNotFoundError: {missing(what, package, 'plots')}"
        assert "another exception" not in text


@pytest.mark.one_backend
def test_what_is_named_exists():
    """Each extra named in an error exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        name
        for folder in ("keras_invdrop", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        for call in re.findall(
            r"(?:missing|require|imported)\((.*?)\)", path.read_text(), re.S
        )
        # The packages are in a list.
        for name in re.findall(r', "([a-z]+)"', re.sub(r"\[.*?\]", "", call))
    }
    assert {"export", "plots", "tensorboard"} <= named
    assert named <= set(project["optional-dependencies"])


@pytest.mark.one_backend
def test_no_index_is_named():
    """No command installs from an index, which does not have the package."""
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("notebooks/*.ipynb"),
        *(ROOT / "keras_invdrop").rglob("*.py"),
        *(ROOT / "applications").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.py"),
    ]
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in pages
        if path.name != "_extras.py"
        for line in path.read_text().splitlines()
        # From the repository, by its address, it can be installed.
        if re.search(r"pip install.*keras-invdrop(\[[^@]*$|$)", line)
    ]
    assert found == []
