"""What to install where a package is missing, in the same words everywhere."""

from importlib.util import find_spec


def install(*extras: str) -> str:
    """The command that installs extras of this package.

    No index has the package yet. When one has it, the command is
    `pip install 'keras-invdrop[...]'`, and this is the place to say so.
    """
    names = ",".join(extras)
    # In quotes, for zsh takes brackets for a pattern of file names.
    return f"run `pip install '.[{names}]'` in a clone of keras-invdrop"


def missing(
    what: str, package: str | None, *extras: str
) -> ModuleNotFoundError:
    """The error where a package of an extra is not installed.

    Args:
        what: What needs the package, to begin a sentence with: "The format
            'onnx'".
        package: The package, by the name that is imported, or that an error
            of the import has.
        extras: The extras to install.

    Returns:
        The error, to be raised.
    """
    return ModuleNotFoundError(
        f"{what} needs `{package}`, which is not installed: "
        f"{install(*extras)}.",
        name=package,
    )


def require(what: str, packages: list[str], *extras: str) -> None:
    """Raises that error for the first of `packages` that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise missing(what, package, *extras)
