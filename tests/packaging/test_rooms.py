"""Which package imports which: a lower room never imports a higher one."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the ground up. Rooms on one floor do not import each other.
FLOORS = (
    ("keras_invdrop",),
    ("keras_invdrop.applications",),
    (
        "keras_invdrop.experiments.data",
        "keras_invdrop.experiments.paper",
    ),
    ("keras_invdrop.experiments.results",),
    ("keras_invdrop.experiments.train",),
    ("keras_invdrop.experiments.runners",),
    ("keras_invdrop.experiments",),  # the command line
    ("keras_invdrop_command",),  # the command, which imports the package late
    ("keras_invdrop.experiments.__main__",),
)


def floor_of(module):
    """The number of a module's floor, and its room there."""
    found = [
        (number, room)
        for number, floor in enumerate(FLOORS)
        for room in floor
        if f"{module}.".startswith(f"{room}.")
    ]
    return max(found, key=lambda each: len(each[1]), default=None)


def modules():
    """Each module of the packages and of the command, and its file."""
    yield "keras_invdrop_command", ROOT / "keras_invdrop_command.py"
    for folder in ("keras_invdrop", "applications", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if folder != "keras_invdrop":
                parts = ("keras_invdrop", *parts)
            yield ".".join(parts), path


def imports(name, path):
    """The full names of all imports in a module's file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level or None]
            base = package * bool(node.level) + [node.module] * bool(
                node.module
            )
            yield from (".".join([*base, a.name]) for a in node.names)


def test_a_room_imports_those_below_it():
    found = []
    for name, path in modules():
        number, room = floor_of(name)
        for imported in imports(name, path):
            if imported.startswith("keras_invdrop"):
                other, its_room = floor_of(imported)
                if other > number or (other == number and its_room != room):
                    found.append(f"{name} imports {imported}")
    # The package lists its own parts, which are imported on first use.
    shown = "keras_invdrop.__init__ imports keras_invdrop."
    assert [each for each in found if not each.startswith(shown)] == []


def test_the_page_on_the_design_names_each_private_module():
    page = (ROOT / "docs" / "design.md").read_text()
    named = re.findall(r"^      (_\w+) ", page, re.MULTILINE)
    files = (ROOT / "keras_invdrop").glob("_[a-z]*.py")
    assert named == sorted(path.stem for path in files)


def test_the_imports_are_seen():
    """The rule above applies to actual modules."""
    seen = {
        (floor_of(name)[1], floor_of(imported)[1])
        for name, path in modules()
        for imported in imports(name, path)
        if imported.startswith("keras_invdrop")
    }
    experiments = "keras_invdrop.experiments"
    assert {
        (f"{experiments}.__main__", "keras_invdrop_command"),
        ("keras_invdrop_command", experiments),
        (experiments, f"{experiments}.runners"),
        (f"{experiments}.runners", f"{experiments}.train"),
        (f"{experiments}.train", f"{experiments}.results"),
        (f"{experiments}.results", f"{experiments}.paper"),
        (f"{experiments}.paper", "keras_invdrop.applications"),
        ("keras_invdrop.applications", "keras_invdrop"),
    } <= seen


def test_the_networks_need_keras_and_numpy_only():
    allowed = {"keras", "numpy", "keras_invdrop", *sys.stdlib_module_names}
    found = {
        imported.partition(".")[0]
        for name, path in modules()
        if name.startswith("keras_invdrop.applications")
        for imported in imports(name, path)
    }
    assert {"keras", "keras_invdrop"} <= found <= allowed
