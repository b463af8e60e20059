"""The promises about life, death and messages, one by one, from outside.

Those about a single part are tested with that part: 8 and 10 with the channel, 12 to 16 with the
sockets.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import mmap
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import Settings, messages, watcher
from mpcluster.family import Family
from mpcluster.upstream import Upstream
from tests.happenings import (  # noqa: F401  # one is a fixture
    PATIENCE,
    Diary,
    Gate,
    relatives_fixture,
    settle,
)
from tests.running import PROGRAMS, begin, finish, run

pytestmark = pytest.mark.usefixtures("relatives")


def nothing() -> None:
    pass


def for_ever() -> None:
    while True:
        signal.pause()


def name_of(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # the one by which the directory was read
        return ""


def follow(*names: str) -> Diary:
    diary = Diary()
    for name in names or ("message", "death"):
        cluster.on(name, lambda worker, *args, name=name: diary.write(name, worker.id, *args))
    return diary


# -- 1: every death, once ------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, 0, 7])
def test_1_every_death_is_reported_once_whatever_ended_it(end: int) -> None:
    def target() -> None:
        if isinstance(end, signal.Signals):
            faulthandler.disable()
            os.kill(os.getpid(), end)
            signal.pause()
        os._exit(end)

    diary = follow("death")
    workers = [cluster.fork(target) for _ in range(10)]
    assert cluster.join(PATIENCE)
    assert sorted(line[1] for line in diary.lines) == list(range(1, 11))  # type: ignore[type-var]
    expected = -end if isinstance(end, signal.Signals) else end
    assert {worker.exitcode for worker in workers} == {expected}


def test_1_a_death_is_reported_though_its_children_hold_every_descriptor() -> None:
    with Gate() as gate:

        def target() -> None:
            if os.fork() == 0:
                gate.wait()  # it holds all that its parent had
                os._exit(0)
            os._exit(5)

        diary = follow("death")
        worker = cluster.fork(target)
        diary.until("death", 1)
        assert worker.exitcode == 5
        gate.open()


def test_1_a_death_is_told_while_another_worker_talks_without_end() -> None:
    def talk() -> None:
        while True:
            cluster.send(b"x" * 10_000)

    diary = follow("death")
    cluster.on("message", lambda *_: None)
    talker = cluster.fork(talk)
    mortal = cluster.fork(for_ever)
    mortal.kill()
    diary.until("death", 2)
    assert talker.is_alive()


# -- 2: messages survive ---------------------------------------------------------------------------


def test_2_500_messages_of_100_kb_then_the_end() -> None:
    def target() -> None:
        for number in range(500):
            cluster.send((number, b"x" * 100_000))
        os._exit(3)

    diary = Diary()
    cluster.on("message", lambda _, message: diary.write(message[0], len(message[1])))
    cluster.on("death", lambda worker: diary.write("death", worker.exitcode))
    cluster.fork(target)
    diary.until("death", 3)
    assert diary.lines == [*((number, 100_000) for number in range(500)), ("death", 3)]


@pytest.mark.parametrize("size", [100, 10_000, 200_000, 3_000_000])
def test_2_what_was_sent_before_the_end_comes_before_death(size: int) -> None:
    def target() -> None:
        for _ in range(20):
            cluster.send(bytearray(size))
        os.kill(os.getpid(), signal.SIGKILL)

    diary = Diary()
    cluster.on("message", lambda _, message: diary.write(len(message)))
    cluster.on("death", diary.writer("death"))
    cluster.fork(target)
    diary.until_count(21)
    assert diary.events == [size] * 20 + ["death"]


@pytest.mark.parametrize("size", [10, 20_000])
def test_2_what_send_had_returned_for_arrives_whenever_the_worker_is_killed(size: int) -> None:
    """In the midst of sending, with all that the kernel and the queue hold under way."""
    with mmap.mmap(-1, mmap.PAGESIZE) as returned:

        def target() -> None:
            for number in itertools.count(1):
                cluster.send((number, b"x" * size))
                returned[:8] = number.to_bytes(8, sys.byteorder)

        came: list[int] = []
        death = threading.Event()

        def on_message(worker: cluster.ClusterProcess, message: tuple[int, bytes]) -> None:
            came.append(message[0])
            if message[0] == 1000:
                worker.kill()

        cluster.on("message", on_message)
        cluster.on("death", lambda _: death.set())
        cluster.fork(target)
        assert death.wait(PATIENCE)
        assert came == list(range(1, len(came) + 1))
        assert len(came) >= int.from_bytes(returned[:8], sys.byteorder) >= 999


def test_2_what_a_workers_callback_has_queued_is_written_before_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has no room for it yet, and a callback does not wait."""
    go_on = threading.Event()

    def target() -> None:
        queued = threading.Event()
        cluster.on(
            "message",
            lambda _: (
                [cluster.send((number, bytes(10_000))) for number in range(200)],
                queued.set(),
            ),
        )
        cluster.send((-1, b""))
        queued.wait()

    def flush_noted(upstream: Upstream) -> None:
        os.write(write_end, b".")
        flush(upstream)

    diary = Diary()
    cluster.on("message", lambda _, message: diary.write(message[0]))
    cluster.on("death", lambda _: diary.write("death"))
    flush = Upstream.flush
    monkeypatch.setattr(Upstream, "flush", flush_noted)
    read_end, write_end = os.pipe()
    worker = cluster.fork(target)
    diary.until(-1)
    watcher.current().call_soon(lambda: go_on.wait(PATIENCE))
    try:
        worker.send("queue")
        assert select.select([read_end], [], [], PATIENCE)[0]
    finally:
        go_on.set()
        os.close(read_end)
        os.close(write_end)
    diary.until("death")
    assert diary.events == [*range(-1, 200), "death"]


def test_2_messages_before_the_master_has_a_handler_are_kept_in_order() -> None:
    def target() -> None:
        for number in range(100):
            cluster.send(number)

    cluster.fork(target).join()
    settle()
    diary = follow("message")
    diary.until_count(100)
    assert [line[2] for line in diary.lines] == list(range(100))


def test_2_messages_before_the_worker_has_a_handler_are_kept_in_order() -> None:
    def target() -> None:
        gate.wait()
        got: list[object] = []

        @cluster.on("message")
        def on_message(message: object) -> None:
            got.append(message)
            if len(got) == 100:
                cluster.send(got)

        assert callable(on_message)
        threading.Event().wait()

    with Gate() as gate:
        diary = follow("message")
        worker = cluster.fork(target)
        for number in range(100):
            worker.send(number)
        gate.open()
        diary.until("message", 1, list(range(100)))


# -- 3: no orphans -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGINT])
def test_3_no_worker_outlives_its_master(end: signal.Signals) -> None:
    """Serving, waiting, spinning in Python, in C with the interpreter's lock, and nested."""
    program = begin(PROGRAMS / "spinning_workers.py")
    assert program.stdout is not None
    pidfds = [os.pidfd_open(int(pid)) for pid in program.stdout.readline().split()]
    assert len(pidfds) == 6
    program.send_signal(end)
    died = program.wait(PATIENCE)
    limit = time.monotonic() + 1.0
    gone = []
    for pidfd in pidfds:
        left = max(0.0, limit - time.monotonic())
        gone.append(bool(select.select([pidfd], [], [], left)[0]))
        os.close(pidfd)
    finish(program)
    assert gone == [True] * 6
    assert died == -end


# -- 4: nothing leaks -----------------------------------------------------------------------------------


def resident() -> int:
    """Kilobytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


def zombies() -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                state, parent = (
                    Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
                )
            except FileNotFoundError:
                continue
            count += state == "Z" and int(parent) == os.getpid()
    return count


@pytest.mark.slow
@pytest.mark.parametrize("subscribed", [True, False])
def test_4_a_thousand_forks_and_deaths_leave_nothing(subscribed: bool, relatives: Family) -> None:
    if subscribed:
        cluster.on("death", lambda _: None)
        cluster.on("message", lambda *_: None)

    def rounds(count: int) -> None:
        for _ in range(count):
            workers = [cluster.fork(cluster.send, (b"x" * 1000,)) for _ in range(4)]
            for worker in workers:
                worker.join()
        del workers, worker
        assert cluster.join(PATIENCE)
        settle()
        gc.collect()

    rounds(60)
    before = (len(os.listdir("/proc/self/fd")), threading.active_count(), zombies())
    memory = resident()
    rounds(250)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count(), zombies()) == before
    assert resident() - memory < 8_000
    assert not relatives.workers


# -- 5: again, and too late ----------------------------------------------------------------------------


def test_5_leaving_twice_killing_the_dead_and_nobody_to_leave() -> None:
    cluster.disconnect()
    worker = cluster.fork(for_ever)
    assert worker.disconnect() is worker.disconnect() is worker
    assert cluster.join(PATIENCE)
    for _ in range(2):
        worker.kill()
        worker.terminate()
        worker.disconnect()
        cluster.disconnect()
    assert worker.exitcode == 0
    assert worker.exited_after_disconnect


# -- 6: forking beside threads ----------------------------------------------------------------------------


@pytest.mark.slow
def test_6_a_thousand_restarts_beside_a_busy_main_thread_hang_nothing() -> None:
    done = finish(begin(PROGRAMS / "restarts.py", 1000), 3 * PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "999 messages\n"


def test_6_some_restarts_beside_a_busy_main_thread_hang_nothing() -> None:
    done = run(PROGRAMS / "restarts.py", 60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "59 messages\n"


# -- 9: sending never deadlocks -----------------------------------------------------------------------------

MEGABYTE = 1 << 20


@pytest.mark.parametrize("piece", [MEGABYTE // 16, 4 * MEGABYTE])
@pytest.mark.parametrize("listens", [True, False])
def test_9_both_sides_send_100_mb_at_once(piece: int, listens: bool) -> None:
    # What comes to a worker that does not listen yet is kept up to 64 MB.
    count = (100 if listens else 50) * MEGABYTE // piece

    def target() -> None:
        received = 0
        complete = threading.Event()

        def on_message(message: bytes) -> None:
            nonlocal received
            received += len(message)
            if received == count * piece:
                complete.set()

        if listens:
            cluster.on("message", on_message)
        for _ in range(count):
            cluster.send(bytes(piece))
        if not listens:
            cluster.on("message", on_message)
        assert complete.wait(PATIENCE)
        cluster.send("all of it")

    received: list[int] = []
    diary = Diary()
    cluster.setup(channel_limit=8 * MEGABYTE)
    worker = cluster.fork(target, share_ports=False)
    worker.on(
        "message",
        lambda message: (
            diary.write(message) if isinstance(message, str) else received.append(len(message))
        ),
    )
    for _ in range(count):
        worker.send(bytes(piece))
    diary.until("all of it")
    assert sum(received) == count * piece
    assert len(received) == count


def test_9_a_reader_that_never_reads_meets_a_clear_error_and_stalls_nobody() -> None:
    cluster.setup(channel_limit=MEGABYTE, send_timeout=0.1)
    diary = follow("message")

    def deaf_target() -> None:
        cluster.send("here")
        for_ever()

    deaf = cluster.fork(deaf_target, share_ports=False)
    diary.until("message", 1, "here")
    other = cluster.fork(lambda: (cluster.on("message", cluster.send), threading.Event().wait()))
    with pytest.raises(cluster.ChannelFullError, match="worker 1 .* does not read"):
        for _ in range(1000):
            deaf.send(bytes(MEGABYTE // 10))
    other.send("to the other")
    diary.until("message", 2, "to the other")
    assert deaf.is_alive()


def test_9_nobody_reading_in_the_worker_and_the_master_a_callback_that_sits() -> None:
    """The worker's send waits for the master; when that goes on, all arrives."""
    sitting, go_on = threading.Event(), threading.Event()

    def target() -> None:
        for number in range(50):
            cluster.send((number, bytes(100_000)))

    diary = Diary()

    def on_message(_worker: cluster.ClusterProcess, message: tuple[int, bytes]) -> None:
        diary.write(message[0])
        sitting.set()
        go_on.wait(PATIENCE)

    cluster.on("message", on_message)
    cluster.fork(target)
    assert sitting.wait(PATIENCE)
    go_on.set()
    diary.until(49)
    assert diary.events == list(range(50))


def what_a_worker_meets(flood: Callable[[], None], *, in_callback: bool) -> str:
    """While its master sits in a callback, and reads nothing."""

    def meet(_message: object) -> None:
        try:
            flood()
        except cluster.ChannelFullError as error:
            os.write(write_end, str(error).encode())

    def target() -> None:
        if in_callback:
            cluster.on("message", meet)
        cluster.send("here")
        gate.wait()
        if not in_callback:
            meet(None)
        for_ever()

    read_end, write_end = os.pipe()
    go_on = threading.Event()
    try:
        with Gate() as gate:
            diary = follow("message")
            worker = cluster.fork(target)
            diary.until("message", 1, "here")
            cluster.off("message")
            watcher.current().call_soon(lambda: go_on.wait(PATIENCE))
            worker.send("flood")
            gate.open()
            assert select.select([read_end], [], [], PATIENCE)[0]
            return os.read(read_end, 1000).decode()
    finally:
        go_on.set()
        os.close(read_end)
        os.close(write_end)


def flood() -> None:
    while True:
        cluster.send(bytes(5000))


def test_9_a_callback_in_a_worker_never_waits_and_what_it_queues_is_bounded() -> None:
    cluster.setup(channel_limit=20_000, send_timeout=3600)
    text = what_a_worker_meets(flood, in_callback=True)
    waiting = re.search(r"the master does not read: (\d+) bytes wait for it", text)
    assert waiting is not None, text
    assert 10_000 < int(waiting[1]) <= 20_000


def test_9_a_worker_waits_for_its_master_as_long_as_the_settings_say() -> None:
    cluster.setup(send_timeout=0.05)
    text = what_a_worker_meets(flood, in_callback=False)
    assert "the master does not read: " in text
    assert text.endswith("for 0.05 s")


def test_9_a_worker_killed_in_the_middle_of_a_huge_message_is_a_death_like_any_other() -> None:
    def huge() -> None:
        blob = [bytes(MEGABYTE) for _ in range(300)]  # inside the pickle, not a buffer of its own
        cluster.send("begins")
        cluster.send(blob)

    diary = follow("message", "death")
    victim = cluster.fork(huge)
    diary.until("message", 1, "begins")
    victim.kill()
    other = cluster.fork(cluster.send, ("still here",))
    diary.until("message", 2, "still here")
    diary.until("death", 1)
    diary.until("death", 2)
    assert victim.exitcode == -signal.SIGKILL
    assert other.exitcode == 0


# -- 10: large buffers ----------------------------------------------------------------------------


def test_10_the_memory_under_way_to_a_worker_is_gone_when_that_is_killed() -> None:
    def target() -> None:
        cluster.send("here")
        for_ever()

    diary = follow("message", "death")
    deaf = cluster.fork(target, share_ports=False)
    diary.until("message", 1, "here")
    for _ in range(3):
        deaf.send(bytearray(3 * MEGABYTE))
    deaf.kill()
    diary.until("death", 1)
    assert not [link for fd in Path("/proc/self/fd").iterdir() if "memfd" in (link := name_of(fd))]


# -- 11: control and user messages --------------------------------------------------------------------------


def raw(data: bytes) -> None:
    """Write bytes past the channel, as a worker gone mad would."""
    worker = cluster.worker
    assert worker is not None
    upstream: Any = worker._line()
    os.write(upstream._channel().fileno(), data)


@pytest.mark.parametrize(
    "data",
    [b"\0" * 100, b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"mpc\x01" + b"\xff" * 60, b"mpc"],
    ids=["zeros", "ones", "http", "almost a header", "cut short"],
)
def test_11_random_bytes_on_the_wire_end_that_channel_and_nothing_else(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def target() -> None:
        cluster.send("before")
        raw(data)

    diary = follow("message", "disconnect", "death")
    mad = cluster.fork(target, share_ports=False)
    diary.until("death", 1)
    assert ("message", 1, "before") in diary.lines
    assert mad.exitcode == 0
    cluster.fork(cluster.send, ("sane",))
    diary.until("message", 2, "sane")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    for record in caplog.records:
        record.args = ()  # the error's frames hold the worker


def test_11_a_users_message_is_never_taken_for_control_nor_the_other_way() -> None:
    lookalikes = [
        messages.Leaving(), messages.Online(), messages.Disconnect(), {"cmd": "NODE_x"},
        messages.Gone((1,), crashed=True), messages.Reply(1),
    ]  # fmt: skip

    def target() -> None:
        got: list[object] = []

        @cluster.on("message")
        def on_message(message: object) -> None:
            got.append(message)
            cluster.send(message)
            if len(got) == len(lookalikes):
                os._exit(4)

        assert callable(on_message)
        threading.Event().wait()

    diary = follow("message", "death")
    worker = cluster.fork(target)
    for lookalike in lookalikes:
        worker.send(lookalike)
    diary.until("death", 1)
    assert [line[2] for line in diary.lines[:-1]] == lookalikes
    assert worker.exitcode == 4
    assert not worker.exited_after_disconnect


# -- attacks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", range(9))
def test_out_of_descriptors_a_fork_works_or_raises_and_leaves_nothing(spare: int) -> None:
    done = run(PROGRAMS / "few_descriptors.py", spare)
    assert (done.stdout, done.stderr) == ("nothing left\n", "")


def test_a_thread_that_sends_while_its_worker_dies_gets_the_error_for_a_closed_channel() -> None:
    worker = cluster.fork(for_ever)
    errors: list[BaseException] = []

    def send() -> None:
        try:
            while True:
                worker.send(b"x" * 1000)
        except BaseException as error:
            errors.append(error)

    cluster.setup(channel_limit=1000)
    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    worker.kill()
    for thread in threads:
        thread.join(PATIENCE)
    assert [type(error) for error in errors] == [cluster.ChannelClosedError] * 4
    for error in errors:
        error.__traceback__ = None


def test_an_exception_in_reduce_leaves_the_channel_as_it_was() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            raise KeyError("in reduce")

    def target() -> None:
        try:
            cluster.send([1, Bad()])
        except cluster.SerializationError as error:
            cluster.send(str(error))

    diary = follow("message")
    cluster.fork(target)
    diary.until_count(1)
    assert "in reduce" in str(diary.lines[0][2])


def test_two_threads_of_a_worker_that_send_first_at_the_same_moment() -> None:
    def target() -> None:
        barrier = threading.Barrier(8)

        def send(number: int) -> None:
            barrier.wait()
            cluster.send(number)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    diary = follow("message", "death")
    for _ in range(5):
        cluster.fork(target, share_ports=False)
    assert cluster.join(PATIENCE)
    got = sorted(line[2] for line in diary.lines if line[0] == "message")  # type: ignore[type-var]
    assert got == sorted(list(range(8)) * 5)


def test_a_worker_that_is_asked_to_leave_while_it_sends_a_lot_leaves_with_all_said() -> None:
    """SIGURG comes in the midst of a send that waits: two would read the channel at once."""

    def target() -> None:
        cluster.send("begins")
        number = 0
        try:
            while True:
                cluster.send((number, bytes(50_000)))
                number += 1
        except SystemExit:
            cluster.send(("said", number))
            raise

    got: list[Any] = []
    diary = Diary()
    worker = cluster.fork(target, share_ports=False)
    worker.on("message", lambda message: (got.append(message), diary.write(message == "begins")))
    worker.on("death", diary.writer("death"))
    diary.until(True)
    for _ in range(50):
        worker.send(bytes(20_000))
    worker.disconnect()
    diary.until("death")
    assert worker.exitcode == 0
    numbers = [message[0] for message in got[1:] if message[0] != "said"]
    assert numbers == list(range(len(numbers)))
    assert got[-1][1] in {len(numbers), len(numbers) - 1}


def test_settings_are_those_of_the_moment_of_the_fork() -> None:
    assert cluster.settings == Settings()
    assert sys.getrecursionlimit()
    assert socket.AF_UNIX
