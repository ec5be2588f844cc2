"""The package as a user installs it: a wheel, alone in a new environment."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    process = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "-o", out, ROOT, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_content(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {f for f in folders if not f.endswith(".dist-info")} == {
        "keras_invdrop"
    }
    in_tree = {
        str(path.relative_to(ROOT))
        for folder in ("keras_invdrop", "applications")
        for path in (ROOT / folder).rglob("*.py")
    }
    in_wheel = {
        name.replace("keras_invdrop/applications/", "applications/")
        for name in names
        if name.endswith(".py")
    }
    assert in_wheel == in_tree
    assert "keras_invdrop/py.typed" in names
    assert wheel.stat().st_size < 200_000


IMPORTS = """
import sys
import keras_invdrop
assert "keras_invdrop.applications" not in sys.modules
import keras_invdrop.applications as applications
names = [name for name in dir(keras_invdrop) if not name.startswith("_")]
print(keras_invdrop.__file__, *names, *sorted(dir(applications)))
try:
    import applications
except ImportError:
    pass
else:
    raise AssertionError("a top-level module `applications` was installed")
"""


def test_imports_are_those_of_the_source_tree(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "new", cwd=tmp_path)
    python = tmp_path / "new" / "bin" / "python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        f"{wheel}[jax]",
        cwd=tmp_path,
    )
    # Nothing but Keras, NumPy and a backend is needed for it.
    packages = run(python, "-m", "pip", "list", cwd=tmp_path)
    assert "keras-invdrop" in packages
    assert "matplotlib" not in packages
    assert "pandas" not in packages
    file, *installed = run(python, "-c", IMPORTS, cwd=tmp_path).split()
    assert Path(file).is_relative_to(tmp_path)
    file, *editable = run(sys.executable, "-c", IMPORTS, cwd=tmp_path).split()
    assert Path(file).is_relative_to(ROOT)
    assert installed == editable
    assert "InvariantDropout" in installed
    assert "mnist_mlp" in installed
