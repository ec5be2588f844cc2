"""Importing without a backend says in one sentence what to install."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_invdrop._backend import BACKENDS
from keras_invdrop._backend import missing_backend

BACKEND = keras.backend.backend()
# A process that cannot import the packages in its arguments.
IMPORT = """
import sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        if name not in sys.argv[1:]:
            return self.finder.find_spec(name, *args)

sys.meta_path = [Finder(each) for each in sys.meta_path]
import keras_invdrop
"""


def test_says_what_to_install():
    assert missing_backend("tensorflow", []) == (
        "Keras is set to the backend 'tensorflow', which is not installed: "
        "run `pip install 'keras-invdrop[tensorflow] @ "
        "git+https://github.com/keras-invdrop/keras-invdrop'`, or take [jax] "
        "or [torch] in its place and set the environment variable "
        "KERAS_BACKEND to that name."
    )


def test_names_an_installed_backend():
    assert missing_backend("tensorflow", ["jax", "torch"]) == (
        "Keras is set to the backend 'tensorflow', which is not installed: "
        "set the environment variable KERAS_BACKEND=jax, which is installed, "
        "or run `pip install 'keras-invdrop[tensorflow] @ "
        "git+https://github.com/keras-invdrop/keras-invdrop'`."
    )


@pytest.mark.one_backend
def test_the_guide_shows_it():
    page = Path(__file__).parents[2] / "docs" / "guides" / "errors.md"
    said = missing_backend("tensorflow", ["jax"])
    assert f"ModuleNotFoundError: {said}" in " ".join(page.read_text().split())


@pytest.mark.parametrize(
    "absent",
    [(BACKEND,), pytest.param(BACKENDS, marks=pytest.mark.one_backend)],
)
def test_import_without_the_backend(absent):
    process = subprocess.run(
        [sys.executable, "-c", IMPORT, *absent], capture_output=True, text=True
    )
    there = [name for name in BACKENDS if name not in absent]
    assert process.returncode != 0
    *_, last = process.stderr.splitlines()
    assert last == f"ModuleNotFoundError: {missing_backend(BACKEND, there)}"
    # The traceback of importing Keras is not shown.
    assert "site-packages/keras" not in process.stderr


@pytest.mark.one_backend
def test_a_backend_that_does_not_exist():
    process = subprocess.run(
        [sys.executable, "-c", "import keras_invdrop_command as c; c.main()"],
        env={**os.environ, "KERAS_BACKEND": "jaxx"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr == (
        "keras-invdrop: Keras has no such backend (Unable to import backend : "
        "jaxx). Set the environment variable KERAS_BACKEND to one of jax, "
        "tensorflow, torch.\n"
    )


@pytest.mark.one_backend
def test_other_import_errors_pass_through():
    process = subprocess.run(
        [sys.executable, "-c", IMPORT, "absl"], capture_output=True, text=True
    )
    assert "absl" in process.stderr.splitlines()[-1]
    assert "KERAS_BACKEND" not in process.stderr
