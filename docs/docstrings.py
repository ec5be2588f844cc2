"""Tells the API reference where the package is and how to read docstrings."""

import re
import textwrap
from typing import Any

from griffe import Extension
from griffe import GriffeLoader
from griffe import Module
from griffe import Object
from griffe import visit

EXAMPLE = re.compile(r"^Example:\n(.*?)(?=^Reference:$|\Z)", re.M | re.S)
SHAPE = re.compile(r"^(Input shape|Output shape):\n((?: +.*\n?|\n)+)", re.M)


def as_google(text: str) -> str:
    """Converts a docstring from Keras' format to Google's.

    Call arguments become a section of their own, an example is indented, and
    shapes and references become text.
    """
    text = re.sub(
        r"(?m)^Call arguments:$", "Other Parameters: Call arguments:", text
    )
    text = SHAPE.sub(
        lambda found: f"**{found[1]}:**\n\n{textwrap.dedent(found[2])}", text
    )
    text = EXAMPLE.sub(
        lambda found: (
            "Examples: Example:\n"
            + textwrap.indent(found[1].strip(), "    ")
            + "\n\n"
        ),
        text,
    )
    return re.sub(r"^Reference:$", "**Reference:**", text, flags=re.M)


class KerasDocstrings(Extension):
    """Adds modules mapped into the package; reads docstrings as Keras'."""

    def on_package(
        self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any
    ) -> None:
        # These folders are next to the package and mapped into it.
        root = pkg.filepath.parents[1]
        for path in sorted(
            path
            for folder in ("applications", "experiments")
            for path in (root / folder).rglob("*.py")
        ):
            *parents, name = path.relative_to(root).with_suffix("").parts
            if name == "__init__":
                *parents, name = parents
            parent = pkg[parents] if parents else pkg
            module = visit(
                name,
                path,
                path.read_text(),
                extensions=loader.extensions,
                parent=parent,
                docstring_parser=loader.docstring_parser,
                docstring_options=loader.docstring_options,
                lines_collection=loader.lines_collection,
                modules_collection=loader.modules_collection,
            )
            parent.set_member(name, module)
        # `models.fold` names both a module and a function: choose the function.
        for alias in (
            *pkg.members.values(),
            *pkg["applications"].members.values(),
        ):
            if (
                alias.is_alias
                and alias.target_path.startswith(pkg.name)
                and alias.name in alias.target.members
            ):
                alias.target = alias.target[alias.name]

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_google(obj.docstring.value)
