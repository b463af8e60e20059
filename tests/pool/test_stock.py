"""Memory of large parcels: used again as soon as nobody has it, and never before."""

from __future__ import annotations

import gc
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mpcluster import ClusterPool, descriptors, memfd
from mpcluster.pool import stock
from mpcluster.pool.stock import SEGMENTS, Stock, give_back_at_the_end
from tests.running import PATIENCE

SIZE = 1 << 16
LIMIT = 4 * SIZE
FIRST = 3  # of the numbers that the receiver writes


class Ends:
    """A stock, and who receives what is laid there."""

    def __init__(self) -> None:
        self.cells = memoryview(bytearray(512)).cast("Q")
        self.stock = Stock(self.cells, FIRST, LIMIT)

    def send(self, content: bytes) -> tuple[memoryview, int]:
        """What has arrived, and the memory that it came in."""
        laid = self.stock.lay([[content]])
        assert laid is not None
        fd, ticket = laid
        memory = os.fstat(fd).st_ino
        (view,) = memfd.take_over(fd, [len(content)])
        descriptors.close(fd)
        if ticket:
            give_back_at_the_end(view.obj, self.cells, FIRST, ticket)
        assert view == content
        return view, memory


def maps() -> Iterator[tuple[int, int, int]]:
    """Begin, end and file of all that this process has mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, _, _, _, file = line.split()[:5]
        begin, end = (int(bound, 16) for bound in bounds.split("-"))
        yield begin, end, int(file)


def mapped() -> set[int]:
    return {file for _, _, file in maps()}


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.stock.close()


def test_memory_that_was_given_back_is_used_again(ends: Ends) -> None:
    used = {ends.send(os.urandom(size))[1] for size in (SIZE, SIZE, SIZE // 2, 1, SIZE)}
    assert len(used) == 1


def test_memory_that_somebody_has_is_not_touched(ends: Ends) -> None:
    first, memory = ends.send(b"a" * SIZE)
    part = first[10:20]
    del first
    other, elsewhere = ends.send(b"b" * SIZE)
    assert elsewhere != memory
    assert part == b"a" * 10
    del part
    assert ends.send(b"c" * SIZE)[1] == memory
    assert other == b"b" * SIZE


def test_what_a_receiver_writes_is_not_seen_by_the_next(ends: Ends) -> None:
    view, memory = ends.send(b"a" * SIZE)
    view[:] = b"x" * SIZE
    del view
    assert ends.send(b"c" * SIZE)[1] == memory


def test_what_is_larger_than_the_limit_is_sent_and_not_kept(ends: Ends) -> None:
    one = ends.send(b"a" * (LIMIT + 1))[1]
    assert ends.send(b"a" * (LIMIT + 1))[1] != one
    assert ends.stock.mapped == 0


def test_no_more_than_the_limit_is_kept(ends: Ends) -> None:
    held = [ends.send(b"a" * SIZE) for _ in range(LIMIT // SIZE)]
    _, fresh = ends.send(b"b" * SIZE)
    assert fresh not in [memory for _, memory in held]
    assert ends.send(b"b" * SIZE)[1] != held[0][1]
    memory = held.pop()[1]
    assert ends.send(b"b" * SIZE)[1] == memory


def test_small_ones_go_for_a_large_one(ends: Ends) -> None:
    small = [ends.send(bytes([number]) * SIZE)[0] for number in range(4)]
    del small
    gc.collect()
    large, memory = ends.send(b"z" * LIMIT)
    again, elsewhere = ends.send(b"y" * 10)
    assert elsewhere != memory
    assert (large, again) == (b"z" * LIMIT, b"y" * 10)


def test_a_number_of_the_one_before_gives_nothing_back_for_the_next(ends: Ends) -> None:
    ends.send(b"a" * SIZE)
    large, memory = ends.send(b"b" * LIMIT)  # in the same place
    assert ends.send(b"c" * SIZE)[1] != memory
    assert large == b"b" * LIMIT


def test_more_than_so_many_are_not_kept(ends: Ends) -> None:
    held = [ends.send(b"a") for _ in range(SEGMENTS + 1)]
    assert len({memory for _, memory in held}) == SEGMENTS + 1
    last = held.pop()[1]
    assert ends.send(b"b")[1] != last


def test_what_a_child_has_too_is_never_used_again(ends: Ends) -> None:
    view, memory = ends.send(b"a" * SIZE)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        select.select([ours], [], [], PATIENCE)
        os._exit(0 if view == b"a" * SIZE else 1)
    del view
    assert ends.send(b"b" * SIZE)[1] != memory
    os.write(theirs, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ours)
    os.close(theirs)


def test_its_place_is_free_after_that(ends: Ends) -> None:
    for _ in range(3 * SEGMENTS):
        view, _ = ends.send(b"a" * SIZE)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        del view
    assert ends.send(b"b")[1] == ends.send(b"b")[1]


def test_the_senders_mapping_is_not_a_childs(ends: Ends) -> None:
    memory = {ends.send(b"a" * SIZE)[1] for _ in range(2)}
    assert ends.stock.mapped == SIZE
    assert memory < mapped()
    pid = os.fork()
    if pid == 0:
        os._exit(bool(memory & mapped()))
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("call", ["mmap.mmap", "os.dup"])
def test_without_room_for_it_the_message_travels_as_it_can(
    ends: Ends, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends.send(b"a" * SIZE)
    tried = []

    def full(*_: object, **__: object) -> None:
        tried.append(call)
        raise OSError(12, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(f"mpcluster.pool.stock.{call}", full)
        laid = ends.stock.lay([[b"b" * SIZE]])
    assert tried
    if call == "os.dup":
        assert laid is None
    else:
        assert laid is not None
        fd, ticket = laid
        assert not ticket
        assert os.pread(fd, SIZE, 0) == b"b" * SIZE
        descriptors.close(fd)
    assert ends.send(b"c" * SIZE)[0] == b"c" * SIZE


def test_closed_in_the_midst_of_a_message_it_keeps_nothing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal's handler that ends the pool."""
    create = memfd.create

    def interrupted(parts: stock.Parts, *, kept: bool = False) -> int | None:
        ends.stock.close()
        return create(parts, kept=kept)

    monkeypatch.setattr(memfd, "create", interrupted)
    view, _ = ends.send(b"a" * SIZE)
    assert not ends.stock._segments
    monkeypatch.undo()
    laid = ends.stock.lay([[b"b"]])
    assert laid is not None
    fd, ticket = laid
    descriptors.close(fd)
    assert not ticket
    assert view == b"a" * SIZE


def test_all_workers_together_keep_no_more_than_four() -> None:
    assert stock.share(1) == stock.share(4) == stock.share(64) * 16


# -- in a pool -------------------------------------------------------------------------------


def filled(number: int) -> np.ndarray:
    return np.full(1 << 17, number)


def doubled(array: np.ndarray) -> np.ndarray:
    array *= 2
    return array


def memory_of(array: np.ndarray) -> int:
    """The number of the file in which it lies."""
    address = array.__array_interface__["data"][0]
    return next(file for begin, end, file in maps() if begin <= address < end)


@pytest.fixture
def pool() -> Iterator[ClusterPool]:
    with ClusterPool(1) as pool:
        yield pool


def test_results_that_are_held_keep_their_values(pool: ClusterPool) -> None:
    held = [pool.apply(filled, (number,)) for number in range(40)]
    assert [set(array.tolist()) for array in held] == [{number} for number in range(40)]


def test_arguments_that_a_worker_keeps_keep_their_values(pool: ClusterPool) -> None:
    kept: list[np.ndarray] = []

    def keep(array: np.ndarray) -> list[int]:
        kept.append(array)
        return [int(one[-1]) for one in kept]

    for number in range(20):
        told = pool.apply(keep, (filled(number),))
    assert told[-1] == 19


def test_the_callers_array_is_his_own(pool: ClusterPool) -> None:
    given = filled(1)
    for _ in range(5):
        assert pool.apply(doubled, (given,))[0] == 2
    assert given[0] == 1


@pytest.mark.parametrize("side", ["argument", "result"])
def test_one_after_the_other_come_in_the_same_memory(pool: ClusterPool, side: str) -> None:
    ask: Callable[[], int]
    if side == "argument":

        def ask() -> int:
            return int(pool.apply(memory_of, (filled(1),)))
    else:

        def ask() -> int:
            return memory_of(pool.apply(filled, (1,)))

    assert len({ask() for _ in range(20)}) <= 3  # the next may be sent before the last is let go


def test_a_worker_that_dies_takes_its_memory_with_it(pool: ClusterPool) -> None:
    held = pool.apply(filled, (7,))
    os.kill(pool._pool[0].pid, signal.SIGKILL)
    assert pool.apply(filled, (8,))[0] == 8
    assert set(held.tolist()) == {7}
