"""Options of `keras-invdrop`.

The dataclasses that describe a training define its options: each field of
`Recipe`, `Trial` and `Resources` with a help text becomes an option of the
commands that take the class.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from typing import Any

import typer
from keras_invdrop.applications.recipes import Recipe

RowArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="ROW",
        help="Rows of the paper's tables, such as table3/relu/invariant, "
        "or the beginning that several rows share: table2, table5/1. "
        "`keras-invdrop tables` lists them.",
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Start each shift (beta) at minus the mean activity of the "
        "training examples. The paper starts it at 0.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(file_okay=False, help="Directory to write to."),
]

# Values of the options that `takes` has added, by name.
Given = dict[str, Any]

# Names of all options that `takes` has added.
_added: set[str] = set()


def takes(
    *described: type, without: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Decorator that gives a command the options of dataclasses.

    Args:
        *described: Dataclasses. Each field with a `help` becomes an option.
            The option's default is the field's; options of `Recipe` default
            to None, because each row has its own recipe.
        without: Names of fields to leave out.

    Returns:
        A decorator of a function with a parameter `given`. The options
        replace this parameter in the command's signature.
    """
    options = {
        field.name: _option(kind, field)
        for kind in described
        for field in dataclasses.fields(kind)
        if "help" in field.metadata and field.name not in without
    }

    _added.update(options)

    def decorate(command: Callable) -> Callable:
        own = inspect.signature(command).parameters
        parameters = [own[name] for name in own if name != "given"]
        parameters += options.values()

        @functools.wraps(command)
        def run(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in options}
            return command(**arguments, given=given)

        run.__annotations__ = {
            each.name: each.annotation for each in parameters
        }
        run.__signature__ = inspect.Signature(parameters)  # type: ignore
        return run

    return decorate


def with_options(message: str) -> str:
    """A message in which the options replace the arguments of functions."""
    return re.sub(
        r"argument `(\w+)`",
        lambda found: (
            f"argument `{_flag(found[1])}`" if found[1] in _added else found[0]
        ),
        message,
    )


def taken(kind: type, given: Given) -> Any:
    """Makes a `kind` from its options and removes them from `given`."""
    names = {field.name for field in dataclasses.fields(kind)} & set(given)
    return kind(**{name: given.pop(name) for name in names})


def _option(kind: type, field: dataclasses.Field) -> inspect.Parameter:
    shown = dict(field.metadata)
    hint, default = typing.get_type_hints(kind)[field.name], field.default
    if kind is Recipe:
        default = None
        shown.setdefault("show_default", "the recipe's")
        if hint not in (float, int, float | None):
            hint = str  # "none,4.5,4.5"
        hint |= None
    # An explicit flag keeps typer from adding `--no-data-parallel`.
    flags = [_flag(field.name)] * (hint is bool)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[hint, typer.Option(*flags, **shown)],
    )


def _flag(name: str) -> str:
    """The option of the command that sets an argument."""
    return f"--{name.replace('_', '-')}"
