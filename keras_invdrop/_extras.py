"""Errors for missing packages, with the command that installs them."""

import importlib
from importlib.util import find_spec
from typing import Any

# No package index has keras-invdrop yet. Delete this once one does.
REPOSITORY = "git+https://github.com/keras-invdrop/keras-invdrop"


def how_to_install(*extras: str) -> str:
    """What to do to get extras of this package, as part of a sentence."""
    names = ",".join(extras)
    # The quotes keep zsh from reading the brackets as a file pattern.
    return f"run `pip install 'keras-invdrop[{names}] @ {REPOSITORY}'`"


def missing(
    what: str, package: str | None, *extras: str
) -> ModuleNotFoundError:
    """The error for a package of an extra that is not installed.

    Args:
        what: Subject of the sentence "... needs the package", such as "The
            format 'onnx'".
        package: Import name of the package, such as the `name` of an
            `ImportError`.
        extras: The extras to install.

    Returns:
        The error, for the caller to raise.
    """
    return ModuleNotFoundError(
        f"{what} needs `{package}`, which is not installed: "
        f"{how_to_install(*extras)}.",
        name=package,
    )


def require(what: str, packages: list[str], *extras: str) -> None:
    """Raises the error of `missing` for the first package not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise missing(what, package, *extras)


def imported(what: str, modules: list[str], *extras: str) -> list[Any]:
    """Imports modules, or raises the error of `missing` for their package."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ModuleNotFoundError as error:
        raise missing(what, error.name, *extras) from None
