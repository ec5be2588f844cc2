"""Completion and `import *` show only the public names."""

import importlib
import inspect
import pkgutil
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
RESULTS = (
    "Conversion",
    "Exported",
    "Folded",
    "InjectedVariance",
    "MonteCarloPrediction",
    "VarianceReport",
)
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
        *RESULTS,
        "MonteCarlo",
    }
    assert set(dir(keras_invdrop.models)) == {
        *FUNCTIONS,
        *RESULTS,
        "MonteCarlo",
    }
    assert dir(keras_invdrop.callbacks) == list(CALLBACKS)
    assert dir(keras_invdrop.regularizers) == ["Variance"]
    assert dir(keras_invdrop.plots) == list(PLOTS)


def test_what_is_shown_is_there():
    for name in MODULES:
        assert inspect.ismodule(getattr(keras_invdrop, name))
    for module in (keras_invdrop, *map(vars(keras_invdrop).get, MODULES)):
        for name in dir(module):
            assert hasattr(module, name)


def test_a_name_is_a_function_or_a_module_and_never_both():
    """A module of the same name would hide the function, or be hidden."""
    for name in FUNCTIONS:
        assert inspect.isfunction(getattr(keras_invdrop.models, name))
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"keras_invdrop.models.{name}")


def test_private_modules_have_an_underscore():
    """The public modules are the shown ones and the file of each class."""
    for module in pkgutil.iter_modules(keras_invdrop.__path__):
        # `arguments` has types alone, for annotations.
        assert module.name[0] == "_" or module.name in (*MODULES, "arguments")
    public = {name.lower() for name in dir(keras_invdrop)}
    for folder in (
        keras_invdrop.callbacks,
        keras_invdrop.layers,
        keras_invdrop.models,
    ):
        for module in pkgutil.iter_modules(folder.__path__):
            is_of_a_class = module.name.replace("_", "") in public
            assert module.name[0] == "_" or is_of_a_class


def test_import_of_all_brings_no_module():
    """`import *` must not hide Keras' own `layers` and `models`."""
    names: dict = {}
    exec("from keras_invdrop import *", names)
    del names["__builtins__"]
    shown = {name for name in dir(keras_invdrop) if name[0] != "_"}
    assert set(names) == shown - set(MODULES)


def test_import_of_all_applications_brings_only_the_recipes():
    """`metrics` and `optimizers` must not hide those of Keras."""
    names: dict = {}
    exec("from keras_invdrop.applications import *", names)
    modules = [name for name, x in names.items() if inspect.ismodule(x)]
    assert modules == ["recipes"]
    assert {"mnist_mlp", "relu_cnn", "RampedSGD", "METHODS"} < set(names)


@pytest.mark.one_backend
def test_modules_with_extras_are_imported_on_use():
    code = """
import sys
import keras_invdrop
for name in ("applications", "plots", "experiments"):
    module = "keras_invdrop." + name
    assert module not in sys.modules
    assert getattr(keras_invdrop, name) is sys.modules[module]
"""
    assert process(code).returncode == 0


@pytest.mark.one_backend
def test_modules_without_their_extra_are_absent():
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


@pytest.mark.parametrize(
    ("ours", "of_keras"),
    [
        (keras_invdrop.InvariantDropout, keras.layers.Dropout),
        (keras_invdrop.RunningAverageDropout, keras.layers.Dropout),
        (keras_invdrop.SharedInvariantDropout, keras.layers.SpatialDropout2D),
        (keras_invdrop.SpatialInvariantDropout, keras.layers.SpatialDropout2D),
    ],
)
def test_arguments_without_a_keyword_are_those_of_keras(ours, of_keras):
    """Every call of `Dropout` is valid for the layer that replaces it."""

    def by_position(layer):
        return [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(layer).parameters.values()
            if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
        ]

    assert by_position(ours) == by_position(of_keras)[:3]
    with pytest.raises(TypeError, match="positional"):
        ours(0.5, None, 1, [1])
