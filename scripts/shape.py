"""Measure the shape of the code: how long its files and functions are, and how full its folders.

python scripts/shape.py [CHECKOUT]  prints a Markdown table with a row for each package, and the fullest folders.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Where the packages are, each with the name that it has in the table.
SOURCES = {
    "schemas/training_schemas": "training_schemas",
    "presets/training_presets": "training_presets",
    "daemon/training_worker": "training_worker",
}

# Folders that hold no code of this project.
FOREIGN = {"__pycache__", "build", "dist", "node_modules"}

# How many of the fullest folders are listed.
LISTED = 5

COLUMNS = (
    "package",
    "modules",
    "lines",
    "functions: median / 90% / longest",
    "files: median / 90% / longest",
    "most arguments",
    "most attributes",
)


@dataclass(frozen=True, kw_only=True)
class Module:
    """What one file holds: its lines, the lines and the arguments of each function, the attributes of each class."""

    lines: int
    functions: tuple[int, ...]
    arguments: tuple[int, ...]
    attributes: tuple[int, ...]


def measure(source: str) -> Module:
    """Measure one file.

    A function that stands inside another one counts for itself, and its lines count for the outer one as well.
    """
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    methods = {id(child) for cls in classes for child in cls.body}
    return Module(
        lines=len(source.splitlines()),
        functions=tuple((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions),
        arguments=tuple(count_arguments(node, is_method=id(node) in methods) for node in functions),
        attributes=tuple(len(attributes_of(node)) for node in classes),
    )


def count_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool) -> int:
    """How many arguments a function takes, `self` and `cls` not counted; ``*args`` and ``**kwargs`` are one each."""
    taken = function.args
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in function.decorator_list)
    named = len(taken.posonlyargs) + len(taken.args) + len(taken.kwonlyargs)
    return named + (taken.vararg is not None) + (taken.kwarg is not None) - (is_method and not static)


def attributes_of(cls: ast.ClassDef) -> set[str]:
    """The names of a class's annotated fields, and of what its methods assign to `self`."""
    fields = {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assigned = {
        node.attr
        for node in walk_own(cls)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return fields | assigned


def walk_own(cls: ast.ClassDef) -> Iterator[ast.AST]:
    """All nodes of a class, but for those of the classes inside it."""
    waiting: list[ast.AST] = list(cls.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.ClassDef):
            yield node
            waiting += ast.iter_child_nodes(node)


def rank(values: Iterable[int], percent: int) -> int:
    """The value that so many percent of the values do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def packages(checkout: Path) -> dict[str, list[Module]]:
    """The modules of each folder below the sources, by the folder's name in the table."""
    found: dict[str, list[Module]] = {}
    for source, name in SOURCES.items():
        root = checkout / source
        for path in sorted(root.rglob("*.py"), key=lambda path: (path.parent, path.name)):
            package = "/".join((name, *path.parent.relative_to(root).parts))
            found.setdefault(package, []).append(measure(path.read_text("utf-8")))
    return found


def folders(checkout: Path) -> Counter[str]:
    """How many modules lie in each folder of a checkout, tests and tools included."""
    counts: Counter[str] = Counter()
    for path in sorted(checkout.rglob("*.py")):
        parents = path.parent.relative_to(checkout).parts
        if not any(part.startswith(".") or part in FOREIGN for part in parents):
            counts["/".join(parents) or "."] += 1
    return counts


def row(name: str, modules: list[Module]) -> str:
    """One line of the table."""
    functions = [lines for module in modules for lines in module.functions]
    cells = (
        f"`{name}`" if name != "all" else "**all**",
        str(len(modules)),
        f"{sum(module.lines for module in modules):,}",
        spread(functions),
        spread([module.lines for module in modules]),
        str(max((count for module in modules for count in module.arguments), default=0)),
        str(max((count for module in modules for count in module.attributes), default=0)),
    )
    return f"| {' | '.join(cells)} |"


def spread(values: list[int]) -> str:
    """The median, the value that nine tenths do not exceed, and the largest."""
    return f"{rank(values, 50)} / {rank(values, 90)} / {max(values)}" if values else "-"


def report(checkout: Path) -> str:
    """The table, and the fullest folders, as Markdown."""
    found = packages(checkout)
    rows = [row(name, modules) for name, modules in found.items()]
    total = row("all", [module for modules in found.values() for module in modules])
    fullest = ", ".join(f"`{name}` {count}" for name, count in folders(checkout).most_common(LISTED))
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *rows, total, "", f"Fullest folders, in modules: {fullest}."])


if __name__ == "__main__":
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    sys.stdout.write(f"{report(checkout)}\n")
