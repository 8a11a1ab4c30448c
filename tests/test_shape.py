"""The script that measures the shape of the code counts what it reports."""

from pathlib import Path

import pytest
from scripts.shape import COLUMNS, folders, measure, packages, rank, report

SHORT = "def short() -> int:\n    return 1\n"

CLASSES = '''"""Two classes, one inside the other."""


class Outer:
    field: int
    plain = 0

    def __init__(self, first: int, *rest: int, named: str = "", **others: str) -> None:
        self.first, self.second = first, rest
        self.first += 1
        local = named
        other.third = local

    @staticmethod
    def free(one: int, two: int, three: int, four: int, five: int) -> None:
        pass

    @classmethod
    def made(cls, one: int) -> None:
        pass

    class Inner:
        def __init__(self) -> None:
            self.mine = 1
            for self.also in range(3):
                pass
'''

NESTED = """async def outer(one, two):
    def inner(three):
        return three

    return inner
"""


def write(path: Path, text: str = "") -> None:
    """Make a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package of two folders, tests, and what is none of its code."""
    daemon = tmp_path / "daemon" / "training_worker"
    write(daemon / "__init__.py")
    write(daemon / "queue" / "__init__.py", '"""Before a claim."""\n')
    write(daemon / "queue" / "classes.py", CLASSES)
    write(daemon / "queue" / "nested.py", NESTED)
    for number in range(5):
        write(tmp_path / "tests" / "daemon" / f"test_{number}.py", SHORT)
    write(tmp_path / "setup.py")
    for foreign in (".venv/lib", "tests/__pycache__", "dist"):
        for number in range(9):
            write(tmp_path / foreign / f"file_{number}.py", SHORT)
    return tmp_path


def test_a_file_is_measured() -> None:
    """Lines of the file and of each function; `self` and `cls` are no arguments; a nested class counts by itself."""
    module = measure(CLASSES)

    assert module.lines == 26
    assert sorted(module.functions) == [2, 2, 4, 5]
    assert sorted(module.arguments) == [0, 1, 4, 5]
    assert sorted(module.attributes) == [2, 3]


def test_a_nested_function_counts_for_itself_and_for_the_outer_one() -> None:
    """Moving code into a closure makes no function shorter."""
    module = measure(NESTED)

    assert sorted(module.functions) == [2, 5]
    assert sorted(module.arguments) == [1, 2]


@pytest.mark.parametrize(
    ("values", "percent", "ranked"),
    [
        ([], 50, 0),
        ([7], 90, 7),
        ([3, 1, 2], 50, 2),
        ([4, 3, 2, 1], 50, 2),
        (range(1, 11), 90, 9),
        (range(1, 12), 90, 10),
    ],
)
def test_a_rank_is_one_of_the_values(values: list[int], percent: int, ranked: int) -> None:
    """By the nearest rank: nothing is interpolated."""
    assert rank(values, percent) == ranked


def test_each_folder_of_a_source_is_a_package(checkout: Path) -> None:
    """Each is named by its way from the source's root."""
    counts = {name: len(modules) for name, modules in packages(checkout).items()}

    assert counts == {"training_worker": 1, "training_worker/queue": 3}


def test_folders_are_counted_with_their_tests_and_without_what_is_not_ours(checkout: Path) -> None:
    """Virtual environments, caches and builds are left out."""
    counts = {"daemon/training_worker": 1, "daemon/training_worker/queue": 3, "tests/daemon": 5, ".": 1}

    assert folders(checkout) == counts


def test_the_report_is_a_table(checkout: Path) -> None:
    """One row a package, the sum of all, and the fullest folders."""
    head, rule, *lines = report(checkout).splitlines()

    assert head == f"| {' | '.join(COLUMNS)} |"
    assert rule.count("---") == len(COLUMNS)
    assert lines == [
        "| `training_worker` | 1 | 0 | - | 0 / 0 / 0 | 0 | 0 |",
        "| `training_worker/queue` | 3 | 32 | 2 / 5 / 5 | 5 / 26 / 26 | 5 | 3 |",
        "| **all** | 4 | 32 | 2 / 5 / 5 | 1 / 26 / 26 | 5 | 3 |",
        "",
        (
            "Fullest folders, in modules: `tests/daemon` 5, `daemon/training_worker/queue` 3, "
            "`daemon/training_worker` 1, `.` 1."
        ),
    ]
