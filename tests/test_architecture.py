"""docs/architecture.md describes where things are, and the decisions have their index."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DAEMON = ROOT / "daemon" / "training_worker"
DECISIONS = ROOT / "docs" / "decisions"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
RULE = "The daemon's packages are imported downward"

# Packages are looked for where these are.
SOURCES = {
    "training_schemas": ROOT / "schemas",
    "training_presets": ROOT / "presets",
    "training_worker": ROOT / "daemon",
}

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def located(path: str) -> Path | None:
    """The file that the page means: below the daemon's package, else below the repository."""
    return next((base / path for base in (DAEMON, ROOT) if (base / path).exists()), None)


def contract() -> list[list[str]]:
    """The layers of the import rule in pyproject.toml, the highest first."""
    return layers_of((ROOT / "pyproject.toml").read_text())


def layers_of(toml: str) -> list[list[str]]:
    """The layers of the import rule in a text that has it."""
    contracts = tomllib.loads(toml)["tool"]["importlinter"]["contracts"]
    (rule,) = [one for one in contracts if one["name"] == RULE]
    assert rule["exhaustive"]
    return [layer.split(" | ") for layer in rule["layers"]]


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in one language."""
    return [block.partition("```")[0] for block in PAGE.split(f"```{language}\n")[1:]]


def names_in(module: Path) -> set[str]:
    """What a module defines: its functions and classes, and `Class.method`."""

    def defined(nodes: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from defined(node.body, f"{prefix}{node.name}.")

    return set(defined(ast.parse(module.read_text()).body))


def test_every_file_that_is_named_exists() -> None:
    """Of paths, and of modules by their name alone."""
    named = set(re.findall(r"`([\w./-]+\.py|[\w.-]+/[\w./-]+\.(?:toml|json|md|yml))`", PAGE))

    assert {name for name in named if located(name) is None} == set()
    assert len(named) > 50


def test_every_module_that_is_named_with_dots_exists() -> None:
    """In commands, too."""
    named = {match.group() for match in re.finditer(r"\btraining_(?:schemas|presets|worker)(?:\.\w+)+", PAGE)}
    paths = {name: SOURCES[name.partition(".")[0]] / name.replace(".", "/") for name in named}

    missing = {name for name, path in paths.items() if not (path.is_dir() or path.with_suffix(".py").is_file())}
    assert missing == set()


def test_every_function_that_is_named_behind_a_module_is_in_it() -> None:
    """A function that was renamed or moved is found here."""
    named = [
        (path, name)
        for path, names in re.findall(r"`([\w./-]+\.py)` \(((?:`[\w.]+`(?:, )?)+)\)", PAGE)
        for name in re.findall(r"`([\w.]+)`", names)
    ]

    assert [f"{path}: {name}" for path, name in named if name not in names_in(located(path) or ROOT)] == []
    assert len(named) > 30


def test_the_import_rule_is_quoted_as_it_is() -> None:
    """What a newcomer reads is what is checked."""
    (quoted,) = blocks("toml")

    assert layers_of(quoted) == contract()


def test_each_package_has_its_row_and_its_layer() -> None:
    """The lowest layer is the first."""
    table = PAGE.partition("| package | layer | what it is for |\n|---|---|---|\n")[2].partition("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    described = {name: int(layer) for names, layer, _ in cells for name in re.findall(r"`(\w+)`", names)}

    assert described == {name: layer for layer, names in enumerate(reversed(contract()), 1) for name in names}


def test_the_drawing_has_each_package_in_its_layer() -> None:
    """From the highest to the lowest."""
    drawn = re.findall(r"^ *\d+  │(.*)│", blocks("text")[0], re.MULTILINE)

    assert [re.findall(r"\w+", layer) for layer in drawn] == contract()


@pytest.mark.parametrize("folder", ["engines", "engines/diffusers"])
def test_each_package_of_the_engines_is_described(folder: str) -> None:
    """A trainer, or a package of the built-in one."""
    packages = [f"{folder}/{path.parent.name}" for path in (DAEMON / folder).glob("*/__init__.py")]

    assert [name for name in packages if f"`{name}`" not in PAGE] == []


def test_each_decision_is_in_the_index() -> None:
    """They are numbered without a gap, and each has the three parts."""
    records = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    index = re.findall(r"^- \[\d{4}\]\((.*?)\)", (DECISIONS / "README.md").read_text(), re.MULTILINE)

    assert index == [path.name for path in records]
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for path in records:
        assert re.findall(r"^## (.*)", path.read_text(), re.MULTILINE) == ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    """To a file, and to a heading where they name one."""
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)", document.read_text())
    broken = [
        f"{path}#{heading}"
        for path, heading in links
        if not (target := document.parent / path if path else document).exists()
        or (heading and heading not in headings(target))
    ]

    assert broken == []


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
