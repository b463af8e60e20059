"""Where lines go, when that place is slow, full or gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcluster import watcher
from mpcluster.cli.sink import MOST, Sink
from tests.happenings import PATIENCE, Diary


@pytest.fixture(name="diary")
def diary_fixture() -> Diary:
    return Diary()


@pytest.fixture(name="pipe")
def pipe_fixture() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def sink_to(diary: Diary, fd: int = -1, path: str | None = None) -> Sink:
    return Sink(
        fd,
        path,
        on_room=diary.writer("room"),
        on_loss=lambda error, lost: diary.write("loss", error and error.strerror, lost),
    )


def in_watcher(call) -> None:
    watcher.current().ask(call)


def test_lines_go_through(diary: Diary, pipe: tuple[int, int]) -> None:
    sink = sink_to(diary, pipe[1])
    in_watcher(lambda: sink.write(b"hello\n"))
    assert os.read(pipe[0], 100) == b"hello\n"
    in_watcher(sink.finish)


def test_a_reader_that_stops_does_not_stop_the_writer_and_gets_all_later(
    diary: Diary, pipe: tuple[int, int]
) -> None:
    sink = sink_to(diary, pipe[1])
    line = b"x" * 999 + b"\n"
    written = 0
    while not sink.is_full:
        in_watcher(lambda: sink.write(line))
        written += len(line)
    assert written > MOST
    read = 0
    while read < written:
        read += len(os.read(pipe[0], 1 << 16))
    diary.until("room")
    assert not sink.is_full
    in_watcher(sink.finish)


def test_what_a_full_disk_does_not_take_is_lost_and_said_once(diary: Diary) -> None:
    sink = sink_to(diary, path="/dev/full")
    for _ in range(3):
        in_watcher(lambda: sink.write(b"hello\n"))
    assert diary.lines == [("loss", "No space left on device", 1)]
    in_watcher(sink.finish)


def test_when_there_is_room_again_it_says_how_many_were_lost(diary: Diary, tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.symlink_to("/dev/full")
    sink = sink_to(diary, path=str(place))
    for _ in range(3):
        in_watcher(lambda: sink.write(b"lost\n"))
    place.unlink()
    in_watcher(sink.reopen)
    in_watcher(lambda: sink.write(b"hello\n"))
    assert diary.lines == [("loss", "No space left on device", 1), ("loss", None, 3)]
    assert place.read_text() == "hello\n"
    in_watcher(sink.finish)


def test_a_file_that_was_moved_away_is_opened_anew(diary: Diary, tmp_path: Path) -> None:
    place = tmp_path / "log"
    sink = sink_to(diary, path=str(place))
    in_watcher(lambda: sink.write(b"old\n"))
    place.rename(tmp_path / "log.1")
    in_watcher(lambda: sink.write(b"still old\n"))
    in_watcher(sink.reopen)
    in_watcher(lambda: sink.write(b"new\n"))
    assert (tmp_path / "log.1").read_text() == "old\nstill old\n"
    assert place.read_text() == "new\n"
    in_watcher(sink.finish)


def test_a_reader_that_is_gone_harms_nobody(diary: Diary, pipe: tuple[int, int]) -> None:
    sink = sink_to(diary, pipe[1])
    os.close(pipe[0])
    in_watcher(lambda: sink.write(b"hello\n"))
    assert diary.lines == [("loss", "Broken pipe", 1)]
    in_watcher(sink.finish)


def test_at_the_end_a_slow_reader_gets_what_waits(diary: Diary, pipe: tuple[int, int]) -> None:
    sink = sink_to(diary, pipe[1])
    whole = b"x" * 200_000
    in_watcher(lambda: sink.write(whole))
    got = bytearray()

    def read() -> None:
        while len(got) < len(whole):
            got.extend(os.read(pipe[0], 4096))

    reader = threading.Thread(target=read)
    reader.start()
    in_watcher(sink.finish)
    reader.join(PATIENCE)
    assert bytes(got) == whole
