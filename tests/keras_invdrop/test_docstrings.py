"""Runs the examples in the docstrings."""

import doctest
import importlib
import inspect
from dataclasses import is_dataclass

import keras
import numpy as np
import pytest
from keras import ops

import keras_invdrop
from keras_invdrop import applications

EXAMPLES = {
    name: value
    for module in (keras_invdrop, applications)
    for name, value in inspect.getmembers(module)
    if inspect.isclass(value) or inspect.isfunction(value)
    # A result's function has the example.
    if not is_dataclass(value) and value is not keras_invdrop.VarianceReport
} | {"Variance": keras_invdrop.regularizers.Variance}


def test_all_public_names_are_here():
    # Eleven layers, five functions on models, Monte-Carlo dropout, a
    # regularizer, four callbacks, five networks, a part of one network,
    # a metric, an optimizer and a schedule.
    assert len(EXAMPLES) == 11 + 5 + 1 + 1 + 4 + 5 + 1 + 1 + 1 + 1
    layers = {name for name in vars(keras_invdrop.layers) if name[0].isupper()}
    assert layers <= set(EXAMPLES)
    assert {"variance_report", "Variance", "relu_cnn"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    value = EXAMPLES[name]
    module = importlib.import_module(value.__module__)
    names = {
        "keras": keras,
        "keras_invdrop": keras_invdrop,
        "np": np,
        "ops": ops,
        name: value,
    }
    tests = doctest.DocTestFinder(recurse=False).find(
        value, name, module, extraglobs=names
    )
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
