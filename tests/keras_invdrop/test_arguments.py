"""Editors see the types of all public names."""

import inspect

import keras
import pytest

import keras_invdrop
from keras_invdrop import applications

PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (
        keras_invdrop,
        keras_invdrop.plots,
        keras_invdrop.regularizers,
        applications,
    )
    for name, value in inspect.getmembers(module)
    if (inspect.isclass(value) or inspect.isfunction(value))
    and value.__module__.startswith("keras_invdrop")
}


def untyped(function):
    """The parameters without an annotation."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation is parameter.empty and name != "self"
    ]


def methods(value):
    """The parameters of a class that do not come from Keras."""
    of_keras = {
        name
        for kind in (
            keras.Layer,
            keras.callbacks.Callback,
            keras.metrics.Metric,
            keras.optimizers.Optimizer,
            keras.optimizers.schedules.LearningRateSchedule,
        )
        for name in dir(kind)
    }
    for name in set(dir(value)) - of_keras:
        method = inspect.getattr_static(value, name)
        method = method.fget if isinstance(method, property) else method
        if (
            inspect.isfunction(method)
            and not name.startswith("_")
            and method.__module__.startswith("keras_invdrop")
        ):
            yield method


def test_something_is_public():
    assert {"keras_invdrop.InvariantDropout", "keras_invdrop.fold"} <= set(
        PUBLIC
    )
    assert len(PUBLIC) == 43


@pytest.mark.parametrize("name", PUBLIC)
def test_types_are_there(name):
    value = PUBLIC[name]
    assert untyped(value) == []
    if inspect.isfunction(value):
        assert inspect.signature(value).return_annotation is not (
            inspect.Signature.empty
        )
        return
    for method in methods(value):
        assert untyped(method) == [], method
        returned = inspect.signature(method).return_annotation
        assert returned is not inspect.Signature.empty, method
