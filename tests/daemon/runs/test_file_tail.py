"""Reading a file that somebody else is writing: whole lines only, each once, and none left behind."""

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_worker.runs.file_tail import follow_lines, last_lines

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 30.0
CHUNK = 64 * 1024


class Reader:
    """Follows a file; what it has read can be waited for line by line."""

    def __init__(self, path: Path) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._follow(path))

    async def _follow(self, path: Path) -> None:
        offset = 0
        async for line, after in follow_lines(path, self._ended):
            offset += len(line) + 1
            assert after == offset
            self._lines.put_nowait(line)

    async def read(self, count: int) -> list[bytes]:
        """The next lines, once they are there."""
        async with asyncio.timeout(TIMEOUT):
            return [await self._lines.get() for _ in range(count)]

    async def end(self) -> list[bytes]:
        """The lines that are left once the writer has ended."""
        self._ended.set()
        await asyncio.wait_for(self._task, TIMEOUT)
        return [self._lines.get_nowait() for _ in range(self._lines.qsize())]

    async def cancel(self) -> None:
        """Stop reading in the middle."""
        self._task.cancel()
        await asyncio.wait({self._task})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty file."""
    file = tmp_path / "progress.jsonl"
    file.touch()
    return file


def append(path: Path, piece: bytes) -> None:
    """Write as a trainer does."""
    with path.open("ab", buffering=0) as file:
        file.write(piece)


async def test_lines_arrive_while_they_are_written(path: Path) -> None:
    """Each is read before the next one is there."""
    reader = Reader(path)

    for line in (b"one", b"two", b"three"):
        append(path, line + b"\n")
        assert await reader.read(1) == [line]
    assert await reader.end() == []


async def test_a_line_written_in_pieces_arrives_whole(path: Path) -> None:
    """Nobody is given half a record."""
    reader = Reader(path)

    append(path, b"first\nsec")
    assert await reader.read(1) == [b"first"]
    append(path, b"on")
    append(path, b"d\n")
    assert await reader.read(1) == [b"second"]
    assert await reader.end() == []


async def test_a_last_line_without_an_end_is_left_out(path: Path) -> None:
    """Its writer died in the middle of it."""
    append(path, b"whole\nhal")
    reader = Reader(path)

    assert await reader.read(1) == [b"whole"]
    append(path, b"f")
    assert await reader.end() == []


async def test_a_file_that_was_finished_before_anybody_followed_it_is_read_to_its_end(path: Path) -> None:
    """The daemon may come back to a trainer that has ended."""
    append(path, b"one\ntwo\n")

    assert await Reader(path).end() == [b"one", b"two"]


async def test_an_empty_file_that_is_finished_has_no_lines(path: Path) -> None:
    """A trainer that died at once wrote nothing, and nobody waits for it."""
    assert await Reader(path).end() == []


async def test_what_was_written_before_the_end_was_reported_is_not_lost(path: Path) -> None:
    """The last record and the trainer's end come at the same moment: the record counts."""
    reader = Reader(path)
    append(path, b"step\n")
    await reader.read(1)

    append(path, b"done\n")

    assert await reader.end() == [b"done"]


async def test_more_than_a_chunk_at_once_is_read_in_order(path: Path) -> None:
    """A flood of small lines, and one that is longer than what is read at a time."""
    lines = [str(number).encode() for number in range(20_000)] + [b"x" * (3 * CHUNK + 1), b"last"]
    append(path, b"".join(line + b"\n" for line in lines))

    assert await Reader(path).end() == lines


async def test_an_empty_line_is_a_line(path: Path) -> None:
    """The reader does not judge what it reads."""
    append(path, b"\n\na\r\n\xff\n")

    assert await Reader(path).end() == [b"", b"", b"a\r", b"\xff"]


async def test_two_readers_of_one_file_read_the_same(path: Path) -> None:
    """Reading removes nothing."""
    readers = [Reader(path), Reader(path)]
    append(path, b"one\n")

    assert [await reader.read(1) for reader in readers] == [[b"one"], [b"one"]]
    assert [await reader.end() for reader in readers] == [[], []]


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no folder of files


async def test_reading_leaves_no_descriptor_open_however_it_ends(path: Path) -> None:
    """At the file's end, or cancelled on the way."""
    append(path, b"one\n")
    before = descriptors()

    await Reader(path).end()
    cancelled = Reader(path)
    await cancelled.read(1)
    await cancelled.cancel()

    assert descriptors() == before


async def test_a_missing_file_is_an_error_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """The error names the file."""
    before = descriptors()

    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        await anext(follow_lines(tmp_path / "missing.jsonl", asyncio.Event()))

    assert descriptors() == before


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=8).map(lambda piece: piece.replace(b";", b"\n")) | st.just(b"\n"), max_size=12))
def test_any_way_of_cutting_the_writes_gives_the_same_lines(pieces: list[bytes]) -> None:
    """Lines are those of the whole; each is read as soon as its end is written."""

    async def write_and_read() -> list[bytes]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "progress.jsonl"
            path.touch()
            reader = Reader(path)
            read = []
            for piece in pieces:
                append(path, piece)
                read += await reader.read(piece.count(b"\n"))
            return read + await reader.end()

    assert asyncio.run(write_and_read()) == b"".join(pieces).split(b"\n")[:-1]


def test_the_last_lines_of_a_short_file_are_all_of_it(path: Path) -> None:
    """A last line without an end counts: it may be the trainer's last output."""
    path.write_text("one\ntwo")

    assert last_lines(path, 50) == ["one", "two"]


def test_the_last_lines_of_a_long_file_are_its_end(path: Path) -> None:
    """However large the file is, its end is all that is read."""
    path.write_text("".join(f"{number}\n" for number in range(200_000)))

    assert last_lines(path, 3) == ["199997", "199998", "199999"]


def test_the_last_lines_of_a_missing_or_empty_file_are_none(path: Path) -> None:
    """A trainer that never started has written nothing."""
    assert last_lines(path.with_name("missing"), 5) == []
    assert last_lines(path, 5) == []


def test_the_last_lines_of_no_text_can_be_read_all_the_same(path: Path) -> None:
    """Bytes that are no UTF-8 do not hide the ones that are."""
    path.write_bytes(b"\xff\xfe\nlast\n")

    assert last_lines(path, 5) == ["\ufffd\ufffd", "last"]
