"""What the tests of the core share: a family of their own, and a diary of what happens.

Nothing here sleeps. A :class:`Diary` is written by callbacks and waited on; the deadlines
are failure limits only, generous enough for a machine that does much else.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from mpcluster import ending, family, perprocess, watcher
from mpcluster.events import KeptEvents
from mpcluster.family import Family
from mpcluster.process import ClusterProcess

PATIENCE = 30.0


@pytest.fixture(name="relatives")
def relatives_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """A family for this test alone: ids from 1, no callbacks, no settings, nothing kept."""
    mine = Family()
    monkeypatch.setitem(perprocess.mine(), family.__name__, mine)
    # The program that runs the tests is not this cluster's master.
    monkeypatch.setattr(ending, "prepare", lambda _release: None)
    yield mine
    mine.silence()
    for worker in list(mine.workers.values()):
        worker.kill()
    assert mine.wait_told(lambda: not mine.workers and mine.is_settled(), PATIENCE)
    settle()
    # The runner keeps the fixture's value a while; it is not to keep workers alive by it.
    mine.emitter.clear()
    mine._kept = KeptEvents()


def settle() -> None:
    """Wait until the watcher has done all that it had before itself."""
    passed = threading.Event()
    watcher.current().call_soon(passed.set)
    assert passed.wait(PATIENCE)


class Diary:
    """What has happened, in order; any thread writes and any thread waits."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []
        self._written = threading.Condition()

    def __repr__(self) -> str:
        return f"<Diary {self.lines}>"

    def write(self, *line: object) -> None:
        with self._written:
            self.lines.append(line)
            self._written.notify_all()

    def writer(self, *beginning: object) -> Callable[..., None]:
        """Return a callback that writes down ``beginning`` and its own arguments."""
        return lambda *args: self.write(*beginning, *args)

    def follow(self, worker: ClusterProcess) -> Diary:
        for event in family.WORKER_EVENTS:
            worker.on(event, self.writer(event))
        return self

    def until(self, *line: object) -> None:
        """Wait until this line is written."""
        with self._written:
            assert self._written.wait_for(lambda: line in self.lines, PATIENCE), self

    def until_count(self, count: int) -> None:
        with self._written:
            assert self._written.wait_for(lambda: len(self.lines) >= count, PATIENCE), self

    @property
    def events(self) -> list[object]:
        return [line[0] for line in self.lines]


class Gate:
    """A pipe that a child waits on until its parent opens it, whoever else is forked."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self) -> None:
        """In the child; several may wait, and each opening lets one through."""
        ready, _, _ = select.select([self._read_end], [], [], PATIENCE)
        assert ready
        os.read(self._read_end, 1)

    def open(self, times: int = 1) -> None:
        os.write(self._write_end, b"." * times)
