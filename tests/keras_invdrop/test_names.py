"""What completion shows, and what `import *` brings: the public names."""

import inspect
import subprocess
import sys

import keras
import pytest

import keras_invdrop

MODULES = (
    "applications",
    "callbacks",
    "experiments",
    "layers",
    "models",
    "plots",
    "regularizers",
)
CALLBACKS = ("BestEpoch", "BetaMonitor", "ExactResume", "Reseed")
FUNCTIONS = ("calibrate", "export", "fold", "invariantize", "variance_report")
PLOTS = (
    "plot_beta",
    "plot_errors",
    "plot_image",
    "plot_mask",
    "plot_mean_against_shift",
    "plot_variance_report",
)


def process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )


def test_completion_shows_public_names_alone():
    layers = dir(keras_invdrop.layers)
    assert len(layers) == 11
    assert all(
        issubclass(getattr(keras_invdrop, name), keras.Layer) for name in layers
    )
    shown = {name for name in dir(keras_invdrop) if name[0] != "_"}
    assert shown == {
        *layers,
        *CALLBACKS,
        *FUNCTIONS,
        *MODULES,
        "MonteCarlo",
    }
    assert set(dir(keras_invdrop.models)) == {*FUNCTIONS, "MonteCarlo"}
    assert dir(keras_invdrop.callbacks) == list(CALLBACKS)
    assert dir(keras_invdrop.regularizers) == ["Variance"]
    assert dir(keras_invdrop.plots) == list(PLOTS)


def test_what_is_shown_is_there():
    for name in MODULES:
        assert inspect.ismodule(getattr(keras_invdrop, name))
    for module in (keras_invdrop, *map(vars(keras_invdrop).get, MODULES)):
        for name in dir(module):
            assert hasattr(module, name)


def test_import_of_all_brings_no_module():
    """Keras has `layers` and `models`, too, which it would hide."""
    names: dict = {}
    exec("from keras_invdrop import *", names)
    del names["__builtins__"]
    shown = {name for name in dir(keras_invdrop) if name[0] != "_"}
    assert set(names) == shown - set(MODULES)


@pytest.mark.parametrize("name", ["applications", "plots"])
def test_what_needs_an_extra_is_imported_when_it_is_used(name):
    code = f"""
import sys
import keras_invdrop
module = "keras_invdrop.{name}"
assert module not in sys.modules
assert keras_invdrop.{name} is sys.modules[module]
"""
    assert process(code).returncode == 0


def test_what_needs_an_extra_is_left_out_where_it_is_missing():
    code = """
import inspect
import sys
import keras_invdrop
from keras_invdrop import *
sys.modules["matplotlib"] = None
assert not hasattr(keras_invdrop, "plots")
assert "InvariantDropout" in dict(inspect.getmembers(keras_invdrop))
keras_invdrop.plots
"""
    *_, last = process(code).stderr.splitlines()
    assert last.startswith("AttributeError: keras_invdrop.plots needs `matplot")


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="'keras_invdrop' has no.*'plot'"):
        keras_invdrop.plot  # noqa: B018
