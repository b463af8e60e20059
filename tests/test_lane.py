"""The pipe beside the socket: order, and what happens when either of them ends."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpcluster
from mpcluster import wire
from mpcluster.channel import Channel, Kind
from mpcluster.errors import ChannelClosedError
from mpcluster.process import ClusterProcess

from .happenings import PATIENCE, Diary, Gate

LARGE = b"x" * 100_000
IN_MEMORY = b"y" * 3_000_000


class Pair:
    """Two ends; `here` has opened its lane, and `there` knows it."""

    def __init__(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        self.here = Channel(ours, label="there")
        self.there = Channel(theirs, label="here")
        self.here.opens_lane = True
        for number in itertools.count():
            self.here.send(number)
            assert [one.message for one in self.there.receive()] == [number]
            if self.there.lane_fileno() >= 0:
                break
            assert number < 1000, "no lane was opened"

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def messages(received: list[Any]) -> list[object]:
    assert not [one.error for one in received if one.error]
    return [one.message for one in received]


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def in_the_lane(pair: Pair) -> bool:
    return readable(pair.there.lane_fileno())


def in_the_socket(pair: Pair) -> bool:
    return readable(pair.there.fileno())


# -- which way, and in which order ---------------------------------------------------------------


def test_few_messages_need_no_lane() -> None:
    """Most workers say little: they have no two descriptors more for that."""
    ours, theirs = multiprocessing.Pipe()
    here, there = Channel(ours, label="there"), Channel(theirs, label="here")
    here.opens_lane = True
    for number in range(10):
        here.send(number)
    assert messages(there.receive()) == list(range(10))
    assert there.lane_fileno() == -1
    here.close()
    there.close()


def test_whoever_watches_only_the_socket_gets_all_by_it() -> None:
    """A channel opens no lane unless its owner knows that the other side watches it."""
    ours, theirs = multiprocessing.Pipe()
    here, there = Channel(ours, label="there"), Channel(theirs, label="here")
    for number in range(1000):
        here.send(number)
        assert messages(there.receive()) == [number]
    assert there.lane_fileno() == -1
    here.close()
    there.close()


def test_small_messages_go_by_the_lane_and_large_ones_do_not(pair: Pair) -> None:
    pair.here.send("small")
    assert in_the_lane(pair)
    assert not in_the_socket(pair)
    assert messages(pair.there.receive(by_lane=True)) == ["small"]
    pair.here.send(LARGE)
    assert in_the_socket(pair)
    assert not in_the_lane(pair)
    assert messages(pair.there.receive()) == [LARGE]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["small", "large", "in memory", "socket", "control", "lane", "both"]),
        max_size=60,
    )
)
def test_the_order_is_that_of_sending_however_it_is_read(steps: list[str]) -> None:
    """Small by the lane, others by the socket, a look into either or into both at any time."""
    pair = Pair()
    bare = socket.socket()
    sent: list[object] = []
    came: list[object] = []

    def take(*, by_lane: bool) -> None:
        pair.here.flush()
        for message in messages(pair.there.receive(by_lane=by_lane)):
            if isinstance(message, tuple):
                message[1].close()
                came.append(message[0])
            else:
                came.append(len(message) if isinstance(message, bytes) else message)

    try:
        for number, step in enumerate(steps):
            if step in {"lane", "both"}:
                take(by_lane=step == "lane")
            elif step == "socket":
                pair.here.send((number, bare), may_wait=False)
                sent.append(number)
            elif step in {"large", "in memory"}:
                pair.here.send(LARGE if step == "large" else IN_MEMORY, may_wait=False)
                sent.append(len(LARGE if step == "large" else IN_MEMORY))
            else:
                pair.here.send(number, Kind.CONTROL if step == "control" else Kind.USER)
                sent.append(number)
        while len(came) < len(sent):
            before = len(came)
            take(by_lane=False)
            pair.here.receive()  # acknowledgements
            assert len(came) > before or pair.here.wants_write
        assert came == sent
    finally:
        bare.close()
        pair.close()


@pytest.mark.parametrize("by_lane", [True, False])
def test_what_is_read_for_the_sake_of_the_other_stream_does_not_stay_behind(
    pair: Pair, by_lane: bool
) -> None:
    """One call reads more than what comes first; afterwards no descriptor is readable."""
    medium = b"m" * 5_000  # too large for the lane
    sent: list[object] = []
    for number in range(5):
        sent += [number, medium]
        pair.here.send(number)
        pair.here.send(medium)
    came = messages(pair.there.receive(by_lane=by_lane))
    while in_the_lane(pair) or in_the_socket(pair):
        came += messages(pair.there.receive(by_lane=in_the_lane(pair)))
    assert came == sent


def test_a_full_pipe_sends_by_the_socket_and_keeps_the_order(pair: Pair) -> None:
    """Nobody waits for a pipe."""
    sent = 0
    while not in_the_socket(pair):
        pair.here.send((sent, b"." * 1000))
        sent += 1
    pair.here.send((sent, "last"))
    came = messages(pair.there.receive())
    assert [number for number, _ in came] == list(range(sent + 1))  # type: ignore[misc]
    pair.here.send("by the lane again")
    assert in_the_lane(pair)
    assert messages(pair.there.receive()) == ["by the lane again"]


def test_what_waits_for_room_goes_before_a_small_one(pair: Pair) -> None:
    """As long as anything waits for the socket, nothing overtakes it by the lane."""
    for _ in range(100):
        pair.here.send(LARGE)
    assert pair.here.wants_write
    pair.here.send("after them")
    assert not in_the_lane(pair)
    came: list[object] = []
    while not came or came[-1] != "after them":
        pair.here.flush()
        came += messages(pair.there.receive())
    assert came == [LARGE] * 100 + ["after them"]


# -- ends -------------------------------------------------------------------------------------


def test_what_is_in_the_lane_is_received_after_the_end_of_the_other_side(pair: Pair) -> None:
    for number in range(1000):
        pair.here.send(number)
    pair.here.close()
    assert messages(pair.there.receive()) == list(range(1000))
    assert pair.there.receive() == []
    assert pair.there.eof
    assert pair.there.lane_fileno() == -1


def test_the_end_of_a_lane_wakes_nobody_twice(pair: Pair) -> None:
    """A pipe without a writer is readable for ever: after one look nobody watches it."""
    pair.here.close()
    assert in_the_lane(pair)
    assert pair.there.receive(by_lane=True) == []
    assert pair.there.lane_fileno() == -1


def test_a_sender_learns_that_nobody_reads_any_more(pair: Pair) -> None:
    """The pipe takes messages for a while; the socket says that it is over."""
    pair.there.close()
    with pytest.raises(ChannelClosedError):
        while True:
            pair.here.send(b"." * 1000)


SIGPIPE = """
import itertools, multiprocessing, signal
from mpcluster.channel import Channel
from mpcluster.errors import ChannelClosedError
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ours, theirs = multiprocessing.Pipe()
here, there = Channel(ours, label="there"), Channel(theirs, label="here")
here.opens_lane = True
while there.lane_fileno() < 0:
    here.send(0)
    there.receive()
there.close()
try:
    while True:
        here.send(b"." * 1000)
except ChannelClosedError:
    print("told so")
"""


def test_a_lane_that_nobody_reads_is_no_reason_to_die_by_sigpipe() -> None:
    done = subprocess.run([sys.executable, "-c", SIGPIPE], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"told so\n"


def test_without_descriptors_there_is_no_lane_and_all_goes_on() -> None:
    """Making one fails: the socket does as well."""
    ours, theirs = multiprocessing.Pipe()
    here, there = Channel(ours, label="there"), Channel(theirs, label="here")
    here.opens_lane = True
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        for number in range(200):
            here.send(number)
            assert messages(there.receive()) == [number]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert there.lane_fileno() == -1
    here.close()
    there.close()


def test_a_sender_that_waits_takes_in_what_comes_by_the_lane(pair: Pair) -> None:
    """Two sides that only send do not wait for each other, whichever way it comes."""
    came: list[object] = []
    taken_in = threading.Event()

    def take_in(channel: Channel) -> None:
        came.extend(messages(channel.receive()))
        taken_in.set()

    def send() -> None:
        for _ in range(100):  # more than the kernel has room for
            pair.there.send(LARGE, handed_over=True)

    pair.there.on_readable = take_in
    pair.here.send("by the lane")
    sender = threading.Thread(target=send)
    sender.start()
    assert taken_in.wait(PATIENCE)
    assert came == ["by the lane"]
    left = 100
    while left:
        select.select([pair.here.fileno()], [], [], PATIENCE)
        left -= len(pair.here.receive())
    sender.join()


# -- bytes that are no messages --------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(wire.sync(10), id="SYNC without a lane"),
        pytest.param(wire.lane(), id="LANE without its descriptor"),
    ],
)
def test_a_lane_that_is_none_is_the_end(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = multiprocessing.Pipe()
    channel = Channel(ours, label="liar")
    os.write(theirs.fileno(), data)
    assert channel.receive() == []
    assert channel.broken
    assert "liar sends what is no message" in caplog.text
    channel.close()
    theirs.close()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(wire.sync(1 << 40), id="a position that never comes"),
        pytest.param(wire.acknowledgement(10), id="ACK"),
        pytest.param(wire.lane(), id="a lane by a lane"),
        pytest.param(b"x" * 100, id="no frame"),
    ],
)
def test_nonsense_in_a_lane_is_the_end(
    pair: Pair, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, what came before is delivered, and nothing more is read."""
    pair.here.send("before")
    assert pair.here._lane is not None
    os.write(pair.here._lane._fd, data)
    assert messages(pair.there.receive(by_lane=True)) == ["before"]
    assert pair.there.broken
    assert "sends what is no message" in caplog.text


def test_a_second_lane_is_the_end(pair: Pair) -> None:
    """Its descriptor is closed again."""
    read_end, write_end = os.pipe()
    with socket.socket(fileno=os.dup(pair.here.fileno())) as bare:
        socket.send_fds(bare, [wire.lane()], [read_end])
    os.close(read_end)
    assert pair.there.receive() == []
    assert pair.there.broken
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b".")
    os.close(write_end)


# -- between processes ----------------------------------------------------------------------------


def test_messages_sent_before_an_abrupt_end_are_delivered_before_the_death() -> None:
    """20,000 small ones, then `os._exit`: all, in order, and then the end."""

    def work() -> None:
        for number in range(20_000):
            mpcluster.send(number)
        os._exit(3)

    one = ClusterProcess(target=work)
    diary = Diary().follow(one)
    one.start()
    diary.until("death")
    numbers = [line[1] for line in diary.lines if line[0] == "message"]
    assert numbers == list(range(20_000))
    assert diary.lines[-1] == ("death",)
    assert one.exitcode == 3


def test_a_worker_killed_in_the_middle_of_its_messages_leaves_no_half_of_one() -> None:
    """SIGKILL while it sends without a pause: what came is a beginning of what it sent."""

    def work() -> None:
        for number in itertools.count():
            mpcluster.send(number)

    many = threading.Event()
    numbers: list[int] = []

    def hear(number: int) -> None:
        numbers.append(number)
        if number == 5_000:
            many.set()

    one = ClusterProcess(target=work)
    one.on("message", hear)
    diary = Diary().follow(one)
    one.start()
    assert many.wait(PATIENCE)
    one.kill()
    diary.until("death")
    assert numbers == list(range(len(numbers)))
    assert one.exit_signal is signal.SIGKILL


def test_both_ways_at_once_each_in_its_order() -> None:
    """A worker that answers each of 5,000 messages, small and large ones mixed."""

    def work() -> None:
        worker = mpcluster.worker
        assert worker is not None
        worker.on("message", mpcluster.send)
        threading.Event().wait()

    one = ClusterProcess(target=work)
    answers: list[int] = []
    over = threading.Event()

    def hear(message: tuple[int, bytes]) -> None:
        answers.append(message[0])
        if message[0] == 4_999:
            over.set()

    one.on("message", hear)
    diary = Diary().follow(one)
    one.start()
    for number in range(5_000):
        one.send((number, LARGE if number % 500 == 499 else b""))
    assert over.wait(PATIENCE)
    assert answers == list(range(5_000))
    one.kill()
    diary.until("death")


def test_a_worker_that_reads_late_finds_all_in_order() -> None:
    """Pipe, socket and queue are full before it subscribes."""

    def work() -> None:
        worker = mpcluster.worker
        assert worker is not None
        mpcluster.send("up")
        filled.wait()
        expected = itertools.count()

        def hear(message: tuple[int, bytes]) -> None:
            assert message[0] == next(expected)
            if message[0] == 3_999:
                mpcluster.send("in order")

        worker.on("message", hear)
        threading.Event().wait()

    with Gate() as filled:
        one = ClusterProcess(target=work)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "up")
        for number in range(4_000):
            one.send((number, b"." * 1000))
        filled.open()
        diary.until("message", "in order")
        one.kill()
        diary.until("death")


def test_a_child_forked_beside_it_has_no_end_of_it(pair: Pair) -> None:
    """Neither end is left open in a process that has no use for it."""
    lane = pair.here._lane
    assert lane is not None
    ends = [lane._fd, lane._reading_end, pair.there.lane_fileno()]
    pid = os.fork()
    if not pid:
        os._exit(sum(map(is_open, ends)))
    assert os.waitpid(pid, 0)[1] == 0
    assert all(map(is_open, ends))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
