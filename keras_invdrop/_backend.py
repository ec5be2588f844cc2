"""Imports Keras, or says what to do if its backend is missing or unknown."""

from collections.abc import Sequence
from importlib.util import find_spec

from ._extras import how_to_install

BACKENDS = ("jax", "tensorflow", "torch")


def missing_backend(name: str, installed: Sequence[str]) -> str:
    """The message if Keras' backend `name` is not installed."""
    said = f"Keras is set to the backend '{name}', which is not installed: "
    if installed:
        return (
            f"{said}set the environment variable KERAS_BACKEND="
            f"{installed[0]}, which is installed, or {how_to_install(name)}."
        )
    others = " or ".join(f"[{each}]" for each in BACKENDS if each != name)
    return (
        f"{said}{how_to_install(name)}, or take {others} in its place and set "
        "the environment variable KERAS_BACKEND to that name."
    )


try:
    import keras as keras
except ModuleNotFoundError as error:
    if error.name not in BACKENDS:
        raise
    installed = [name for name in BACKENDS if find_spec(name) is not None]
    # `from None` hides the traceback of Keras' own imports.
    raise ModuleNotFoundError(
        missing_backend(error.name, installed), name=error.name
    ) from None
except ValueError as error:  # a name that is not that of a backend
    if "backend" not in str(error):
        raise
    raise ImportError(
        f"Keras has no such backend ({error}). Set the environment variable "
        f"KERAS_BACKEND to one of {', '.join(BACKENDS)}."
    ) from None
