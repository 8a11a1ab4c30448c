"""The cache on disk."""

import errno
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from tests.engines.cache.test_locked_folders import make_older
from tests.engines.cache_user import VALUES, key, value
from tests.engines.test_program import start

from training_schemas.progress import FailureReason
from training_worker.engines.common.protocol.failures import TrainingFailure, failure_of
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache, Tensors, evict
from training_worker.storage.cache_entries import Caches

pytestmark = pytest.mark.trainer

PLENTY = 10**9
# Of the files of `value`, each a little over 1 KiB with its header.
ENTRY_BYTES = 1300
FOREVER = 10**6
PROGRAM = "tests.engines.cache_user"


def same(first: Tensors | None, second: Tensors | None) -> bool:
    """Whether both are there and agree to the last bit, their types included."""
    if first is None or second is None:
        return False
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def not_again() -> NoReturn:
    """Make a value that is there already."""
    pytest.fail("made again")


def entry_path(folder: Path, number: int) -> Path:
    """The file of an entry."""
    return folder / "entries" / key(number)[:2] / f"{key(number)}.safetensors"


def entries(folder: Path) -> set[int]:
    """The numbers of the values that others can get."""
    return {number for number in range(VALUES) if entry_path(folder, number).exists()}


def files(folder: Path) -> list[Path]:
    """All files that are not in a run's folder."""
    return [path for path in (folder / "entries").rglob("*") if path.is_file()]


def age(folder: Path, *numbers: int) -> None:
    """Make entries older, the first most."""
    for place, number in enumerate(numbers):
        make_older(entry_path(folder, number), 100.0 - place)


@contextmanager
def program(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Start a user of the cache; it is dead in the end."""
    with start("-m", PROGRAM, *map(str, arguments)) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache is to be."""
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Iterator[TensorCache]:
    """A cache with room for all that a test puts into it."""
    with TensorCache(folder, PLENTY) as cache:
        yield cache


def test_what_was_put_can_be_got_by_other_runs(folder: Path, cache: TensorCache) -> None:
    """To the last bit, and under its own key alone."""
    tensors = {"mean": torch.randn(4, 3, 2), "tokens": torch.randn(5).bfloat16(), "length": torch.tensor(5)}
    cache.put(key(0), tensors)

    with TensorCache(folder, PLENTY) as other:
        assert same(tensors, other.get(key(0)))
        assert other.get(key(1)) is None
    assert same(tensors, cache.get(key(0)))


def test_a_value_is_made_once(folder: Path, cache: TensorCache) -> None:
    """By the first run that asks for it."""
    assert same(value(0), cache.get_or_make(key(0), lambda: value(0)))
    assert same(value(0), cache.get_or_make(key(0), not_again))

    with TensorCache(folder, PLENTY) as other:
        assert same(value(0), other.get_or_make(key(0), not_again))


def test_tensors_may_be_views_of_others_and_have_gradients(cache: TensorCache) -> None:
    """As parts of an encoder's output are; what is kept of them is plain."""
    whole = torch.randn(4, 6, requires_grad=True)
    views = {"rows": whole[:2], "same": whole[:2], "turned": whole.T}

    made = cache.get_or_make(key(0), lambda: views)

    assert same(views, made)
    assert same(made, cache.get(key(0)))
    assert not any(tensor.requires_grad for tensor in made.values())


def test_changing_what_was_got_changes_nothing_in_the_cache(cache: TensorCache) -> None:
    """Each reader has tensors of its own."""
    cache.put(key(0), value(0))
    for _ in range(2):
        got = cache.get_or_make(key(0), not_again)
        assert same(value(0), got)
        got["a"].fill_(-1)


def test_a_second_put_replaces_the_first(folder: Path, cache: TensorCache) -> None:
    """For this run and for others."""
    cache.put(key(0), value(0))
    cache.put(key(0), value(1))

    assert same(value(1), cache.get(key(0)))
    with TensorCache(folder, PLENTY) as other:
        assert same(value(1), other.get(key(0)))


def cut_header(content: bytes) -> bytes:
    """Keep less than the header."""
    return content[:20]


def cut_tensors(content: bytes) -> bytes:
    """Lose the last byte."""
    return content[:-1]


def lengthen(content: bytes) -> bytes:
    """Put a byte at the end."""
    return content + b"\0"


def clear(content: bytes) -> bytes:
    """Keep the length alone, as a loss of power may."""
    return bytes(len(content))


def empty(_: bytes) -> bytes:
    """Keep nothing."""
    return b""


@pytest.mark.parametrize("damage", [cut_header, cut_tensors, lengthen, clear, empty])
def test_a_damaged_entry_is_made_again(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """It is as good as none, and gone once it was seen."""
    with TensorCache(folder, PLENTY) as cache:
        cache.put(key(0), value(0))
    path = entry_path(folder, 0)
    path.write_bytes(damage(path.read_bytes()))

    with TensorCache(folder, PLENTY) as cache:
        assert cache.get(key(0)) is None
        assert not path.exists()
        with TensorCache(folder, PLENTY) as other:
            other.get_or_make(key(0), lambda: value(0))
        assert same(value(0), cache.get_or_make(key(0), not_again))


def test_entries_that_were_used_longest_ago_go_first(folder: Path) -> None:
    """Until the others are within the limit; a get is a use."""
    with TensorCache(folder, PLENTY) as cache:
        for number in range(4):
            cache.put(key(number), value(number))
    age(folder, 0, 1, 2, 3)
    with TensorCache(folder, PLENTY) as cache:
        cache.get(key(0))

    with TensorCache(folder, 2 * ENTRY_BYTES):
        assert {0, 3} == entries(folder)


def test_a_limit_is_reached_and_not_passed(folder: Path) -> None:
    """To the byte."""
    with TensorCache(folder, PLENTY) as cache:
        for number in range(3):
            cache.put(key(number), value(number))
    age(folder, 0, 1, 2)
    size = sum(path.stat().st_size for path in files(folder))

    with TensorCache(folder, size):
        assert {0, 1, 2} == entries(folder)
    with TensorCache(folder, size - 1):
        assert {1, 2} == entries(folder)


def test_a_run_keeps_within_the_limit_as_it_writes(folder: Path) -> None:
    """But for a sixteenth of it; what it has used it still has."""
    limit = 4 * ENTRY_BYTES
    with TensorCache(folder, limit) as cache:
        for number in range(VALUES):
            cache.put(key(number), value(number))
            assert sum(path.stat().st_size for path in files(folder)) <= limit
        assert len(entries(folder)) < VALUES

        assert all(same(value(number), cache.get(key(number))) for number in range(VALUES))


def test_entries_are_counted_when_a_run_ends(folder: Path) -> None:
    """What it wrote may have been too little to count them before."""
    limit = 40 * ENTRY_BYTES
    with TensorCache(folder, limit) as cache:
        cache.put(key(0), value(0))
        age(folder, 0)
        # Another run's.
        entry_path(folder, 0).with_name("large.safetensors").write_bytes(bytes(limit))
        assert {0} == entries(folder)

    assert set() == entries(folder)


def test_a_run_keeps_what_it_got_when_others_evict(folder: Path) -> None:
    """Also what another run wrote; runs that come later do not have it."""
    with TensorCache(folder, PLENTY) as cache:
        cache.put(key(0), value(0))
    with TensorCache(folder, PLENTY) as cache:
        cache.get(key(0))
        with TensorCache(folder, 0) as other:
            assert set() == entries(folder)
            assert other.get(key(0)) is None

        assert same(value(0), cache.get(key(0)))


def test_a_run_keeps_what_is_evicted_as_soon_as_it_is_there(
    folder: Path, cache: TensorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may evict at any time."""
    rename = Path.rename

    def rename_and_evict(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        evict(folder / "entries", 0)
        return renamed

    monkeypatch.setattr(Path, "rename", rename_and_evict)
    cache.put(key(0), value(0))

    assert set() == entries(folder)
    assert same(value(0), cache.get(key(0)))


def test_a_run_leaves_no_folder(folder: Path) -> None:
    """What it wrote stays."""
    with TensorCache(folder, PLENTY) as cache:
        cache.put(key(0), value(0))
        assert 1 == len(list((folder / "runs").iterdir()))

    assert [] == list((folder / "runs").iterdir())
    assert {0} == entries(folder)


def test_the_daemon_knows_what_a_run_has_in_use(folder: Path) -> None:
    """Written or read by it; nothing once it is closed."""
    with TensorCache(folder, PLENTY) as cache:
        for number in (0, 1):
            cache.put(key(number), value(number))
    unused = Caches(folder).unused
    with TensorCache(folder, PLENTY) as cache:
        cache.get(key(0))
        cache.put(key(2), value(2))

        assert [entry_path(folder, 1)] == [entry.path for entry in unused()]
        assert same(value(0), cache.get(key(0)))
    assert {entry_path(folder, number) for number in range(3)} == {entry.path for entry in unused()}


def test_the_daemon_lets_go_of_what_a_dead_run_had_in_use(folder: Path) -> None:
    """Until then the entries' room would stay taken, whoever removed them."""
    with program("hold", folder, PLENTY) as holder:
        assert holder.stdout is not None
        assert "held\n" == holder.stdout.readline()
        assert [] == Caches(folder).unused()
        holder.kill()
        holder.communicate(timeout=60)

    assert [entry_path(folder, 0)] == [entry.path for entry in Caches(folder).unused()]
    assert [] == list((folder / "runs").iterdir())


def test_what_was_never_written_to_its_end_goes_after_an_hour(folder: Path) -> None:
    """Before that, somebody may still be writing."""
    with TensorCache(folder, PLENTY) as cache:
        cache.put(key(0), value(0))
    unfinished = entry_path(folder, 0).with_name(f".{key(0)}.run")
    unfinished.touch()

    with TensorCache(folder, 0):
        assert unfinished.exists()
    make_older(unfinished)
    with TensorCache(folder, PLENTY):
        assert not unfinished.exists()


def test_a_full_disk_is_reported_and_nothing_is_left(folder: Path, small_disk: Callable[[Path, int], Path]) -> None:
    """There is room again for others; what was kept before is still there."""
    small_disk(folder, 400_000)
    with TensorCache(folder, PLENTY) as cache:
        cache.put(key(0), value(0))
        before = files(folder)

        with pytest.raises(OSError, match="No space left") as raised:
            cache.put(key(1), {"a": torch.zeros(200_000)})

        assert errno.ENOSPC == raised.value.errno
        assert FailureReason.DISK_FULL == failure_of(raised.value).reason
        assert before == files(folder)
        cache.put(key(1), value(1))
        assert same(value(0), cache.get(key(0)))


@pytest.mark.parametrize("place", ["", "entries", "runs"])
def test_a_place_that_cannot_be_used_is_named(folder: Path, place: str) -> None:
    """Another host may have a better one."""
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.touch()

    with (
        pytest.raises(TrainingFailure, match=f"^cannot use cache {folder}: {path}") as raised,
        TensorCache(folder, PLENTY),
    ):
        pass

    assert FailureReason.HOST_UNFIT == raised.value.reason


@pytest.mark.parametrize("limit", [0, 3 * ENTRY_BYTES])
def test_processes_that_read_write_and_evict_at_once_read_what_was_written(folder: Path, limit: int) -> None:
    """Each checks every value that it reads, and that what it has used is still there."""
    with ExitStack() as stack:
        users = [stack.enter_context(program("work", folder, limit, seed, 8)) for seed in range(3)]
        for user in users:
            _, errors = user.communicate(timeout=120)
            assert (0, "") == (user.returncode, errors)

    assert [] == list((folder / "runs").iterdir())
    assert not [path for path in files(folder) if path.name.startswith(".")]
    assert sum(path.stat().st_size for path in files(folder)) <= limit


def test_a_process_keeps_what_it_uses_while_others_evict(folder: Path) -> None:
    """Its folder is not taken for that of a dead one."""
    with program("hold", folder, PLENTY) as holder:
        assert holder.stdout is not None
        assert "held\n" == holder.stdout.readline()
        for _ in range(2):
            with TensorCache(folder, 0):
                assert set() == entries(folder)

        _, errors = holder.communicate("\n", timeout=60)
        assert (0, "") == (holder.returncode, errors)


def test_a_process_that_is_killed_leaves_nothing_in_the_way(folder: Path) -> None:
    """Its folder goes when the next run opens the cache; what it wrote is whole."""
    limit = 4 * ENTRY_BYTES
    for uses in (1, 30, 77):
        with program("work", folder, limit, uses, FOREVER) as user:
            assert user.stdout is not None
            for _ in range(uses):
                assert user.stdout.readline()
            user.send_signal(signal.SIGKILL)
            user.communicate(timeout=60)
            assert -signal.SIGKILL == user.returncode

    left = list((folder / "runs").iterdir())
    with TensorCache(folder, limit) as cache:
        assert not any(path.exists() for path in left if not path.name.startswith("."))
        whole = entries(folder)
        assert whole
        assert all(same(value(number), cache.get(key(number))) for number in whole)
