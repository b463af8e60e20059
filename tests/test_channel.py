"""Objects both ways between two ends of a channel."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcluster import descriptors, memfd, wire
from mpcluster.channel import Channel, Kind, Received
from mpcluster.errors import ChannelClosedError, ChannelFullError, SerializationError
from mpcluster.inbox import Inbox
from mpcluster.messages import Request

MEBI = 1 << 20


@dataclass
class Pair:
    here: Channel
    there: Channel

    def arrive(self) -> list[Received]:
        """All that `here` has sent, whether or not the kernel took it at once."""
        return drain(self.here, self.there)

    def through(self, message: object) -> Any:
        self.here.send(message)
        (received,) = self.arrive()
        assert received.error is None
        return received.message


def drain(sender: Channel, receiver: Channel) -> list[Received]:
    received = []
    while True:
        done = sender.flush()
        batch = receiver.receive()
        received += batch
        if done and not batch:
            sender.receive()  # acknowledgements
            return received


def wait_readable(channel: Channel) -> None:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    assert poll.poll(60_000)


def make(send_timeout: float = 30.0, **options: Any) -> Pair:
    ours, theirs = multiprocessing.Pipe()
    return Pair(
        Channel(ours, label="there", send_timeout=send_timeout, **options),
        Channel(theirs, label="here", send_timeout=send_timeout, **options),
    )


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = make()
    yield made
    made.here.close()
    made.there.close()


@pytest.fixture
def impatient() -> Iterator[Pair]:
    """Waits for nobody, and lets 1 MiB wait."""
    made = make(send_timeout=0.0, limit=MEBI)
    yield made
    made.here.close()
    made.there.close()


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the other end as a bare socket."""
    ours, theirs = multiprocessing.Pipe()
    bare = socket.fromfd(theirs.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.close()
    bare.setblocking(True)
    channel = Channel(ours, label="bare")
    yield channel, bare
    channel.close()
    bare.close()


def in_child(end: Channel, other: Channel, work: Callable[[Channel], None]) -> int:
    """Fork a child that has one end of a pair; the parent drops that end."""
    with descriptors.keep(end.fileno()):
        pid = os.fork()
    if not pid:
        status = 1
        try:
            work(end)
            status = 0
        finally:
            os._exit(status)
    drop(end)
    assert other.fileno() >= 0
    return pid


def drop(end: Channel) -> None:
    """Close this process's copy; the child's stays open."""
    descriptors.close(end._socket)


# -- what travels --------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(PLAIN, max_size=5))
def test_plain_data_comes_back_in_order(messages: list[object]) -> None:
    """What is sent is what is received, one for one."""
    pair = make()
    try:
        for message in messages:
            pair.here.send(message)
        assert [received.message for received in pair.arrive()] == messages
    finally:
        pair.here.close()
        pair.there.close()


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3 * memfd.THRESHOLD // 2), max_size=3),
    st.binary(max_size=100),
)
def test_arrays_of_any_size_come_back_equal_and_writable(lengths: list[int], tail: bytes) -> None:
    """In the pickle, beside it, and in a memfd."""
    message = ([np.arange(length, dtype=np.uint8) for length in lengths], tail)
    pair = make()
    try:
        arrays, rest = pair.through(message)
    finally:
        pair.here.close()
        pair.there.close()
    assert rest == tail
    for sent, came in zip(message[0], arrays, strict=True):
        np.testing.assert_array_equal(sent, came)
        assert came.flags.writeable
        came[:] = 0


@pytest.mark.parametrize("size", [10, 5000, 70_000, 300_000, memfd.THRESHOLD, 5 * MEBI])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_size_come_back(pair: Pair, size: int, kind: type) -> None:
    """Beside other things, and as what they were."""
    message = {"a": kind(b"x" * size), "b": 1}
    came = pair.through(message)
    assert came == message
    assert type(came["a"]) is kind


@pytest.mark.parametrize("size", [10, 70_000, 2 * MEBI])
def test_text_of_any_size_comes_back(pair: Pair, size: int) -> None:
    """A long str reaches the pickler's file as a view of memory that is about to go."""
    assert pair.through(["é" * size, "x" * size]) == ["é" * size, "x" * size]


def test_an_array_that_is_not_contiguous_comes_back(pair: Pair) -> None:
    """It has no buffer that could travel as it is."""
    array = np.arange(100_000).reshape(100, 1000)[::2, ::3]
    np.testing.assert_array_equal(pair.through(array), array)


def test_a_read_only_array_stays_read_only(pair: Pair) -> None:
    """As after an ordinary pickle round trip."""
    array = np.arange(100_000)
    array.flags.writeable = False
    assert not pair.through(array).flags.writeable


@pytest.mark.parametrize("late", ["small", b"x" * 1_000_000], ids=["small", "large"])
def test_a_signal_handler_may_send_in_the_midst_of_a_send(pair: Pair, late: object) -> None:
    """Its message goes out with the call that it has interrupted, after that one's."""
    sender, receiver = pair.here, pair.there
    write = sender._send_now

    def interrupted(*args: Any) -> int:
        sender._send_now = write
        signal.raise_signal(signal.SIGUSR1)
        return write(*args)

    sender._send_now = interrupted
    before = signal.signal(signal.SIGUSR1, lambda *_: sender.send(late))
    try:
        sender.send("first")
    finally:
        signal.signal(signal.SIGUSR1, before)
    sender.send("last")
    assert [received.message for received in drain(sender, receiver)] == ["first", late, "last"]


def test_lambdas_and_closures_travel(pair: Pair) -> None:
    """By value, with what they have captured."""
    base = 40
    assert pair.through(lambda x: base + x)(2) == 42


def test_functions_of_one_message_share_their_globals(pair: Pair) -> None:
    """And those of the next message have none of the last one's."""
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("count = 0\ndef up():\n global count\n count += 1\ndef get(): return count", namespace)
    for _ in range(2):
        up, get = pair.through((namespace["up"], namespace["get"]))
        up()
        assert get() == 1


def test_classes_of_main_travel_by_value() -> None:
    """A program that is not importable sends its own classes."""
    program = """
import multiprocessing, os, dataclasses
from mpcluster.channel import Channel
a, b = multiprocessing.Pipe()
here, there = Channel(a, label="there"), Channel(b, label="here")
@dataclasses.dataclass
class Point:
    x: int
    def double(self): return 2 * self.x
here.send(Point(21))
import pickle, sys
del Point
(received,) = there.receive()
print(received.message.double(), type(received.message).__module__)
here.close(); there.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "42 __main__\n"


def test_a_class_of_a_module_travels_by_name(pair: Pair) -> None:
    """So its instances are instances of the very class."""
    assert pair.through(Request(1, {"a": 2})) == Request(1, {"a": 2})


def test_modules_registered_by_value_travel_by_value(pair: Pair) -> None:
    """The quick answer for importable classes respects cloudpickle's registry."""
    from tests import leaks

    cloudpickle.register_pickle_by_value(leaks)
    try:
        came = pair.through(leaks.Snapshot)
    finally:
        cloudpickle.unregister_pickle_by_value(leaks)
    assert came.__name__ == "Snapshot"


def test_a_reduction_registered_late_is_used(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """`copyreg` is asked each time."""
    import copyreg

    class Odd:
        pass

    monkeypatch.setitem(copyreg.dispatch_table, Odd, lambda _: (int, ("7",)))
    assert pair.through([Odd()]) == [7]


def test_user_and_control_messages_cannot_be_mistaken(pair: Pair) -> None:
    """The kind is in the frame, whatever the message looks like."""
    pair.here.send(Request(1, 2), Kind.USER)
    pair.here.send(Request(1, 2), Kind.CONTROL)
    assert [received.kind for received in pair.arrive()] == [Kind.USER, Kind.CONTROL]


def test_the_size_of_a_message_is_told(pair: Pair) -> None:
    """What lies in a memfd counts."""
    pair.here.send(b"x" * MEBI)
    (received,) = pair.arrive()
    assert received.size >= MEBI


# -- descriptors ---------------------------------------------------------------------------


def test_a_socket_travels_and_the_sender_may_close_his(pair: Pair) -> None:
    """It is the same open socket at the other end."""
    mine, peer = socket.socketpair()
    with peer:
        pair.here.send({"conn": mine})
        mine.close()
        (received,) = pair.arrive()
        with received.message["conn"] as came:  # type: ignore[index]
            came.sendall(b"hello")
            assert peer.recv(5) == b"hello"


@pytest.mark.parametrize("kind", [Kind.USER, Kind.CONTROL])
def test_a_fork_takes_along_a_users_socket_that_came_and_no_listener(
    pair: Pair, kind: Kind
) -> None:
    """What the registry is asked for or answers; from its first moment here."""
    mine, peer = socket.socketpair()
    with mine, peer:
        pair.here.send(mine, kind)
        (received,) = pair.arrive()
        came: Any = received.message
        assert (came.fileno() in descriptors.owned()) is (kind is Kind.CONTROL)
        descriptors.close(came)


def test_a_socket_that_waits_in_the_queue_may_be_closed_too(pair: Pair) -> None:
    """It is duplicated when the kernel has no room for its frame."""
    while not pair.here.wants_write:
        pair.here.send(b"x" * 10_000)
    mine, peer = socket.socketpair()
    with peer:
        pair.here.send(mine)
        mine.close()
        *_, received = pair.arrive()
        with received.message as came:  # type: ignore[attr-defined]
            came.sendall(b"hello")
        assert peer.recv(5) == b"hello"


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_a_socket_keeps_its_timeout(pair: Pair, timeout: float | None) -> None:
    """O_NONBLOCK belongs to the open file, so both ends have to mean the same by it."""
    mine, peer = socket.socketpair()
    with mine, peer:
        mine.settimeout(timeout)
        with pair.through(mine) as came:
            assert came.gettimeout() == timeout
            assert mine.gettimeout() == timeout
            assert os.get_blocking(came.fileno()) == (timeout is None)


def test_a_connection_travels(pair: Pair) -> None:
    """With its direction."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    came: Connection[Any, Any] = pair.through([writer])[0]
    writer.close()
    with came, reader:
        assert (came.readable, came.writable) == (False, True)
        came.send("hello")
        assert reader.recv() == "hello"


def test_a_socket_is_the_standard_librarys_whatever_bears_its_name(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library like gevent puts its own class there, in one of the two processes."""
    kind = socket.socket
    with kind() as sock:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", type("Impostor", (), {}))
            arrived = pair.through(sock)
        with arrived:
            assert type(arrived) is kind


def test_one_socket_twice_in_a_message_is_one_socket(pair: Pair) -> None:
    """As any other object."""
    mine, peer = socket.socketpair()
    with mine, peer:
        one, two = pair.through([mine, mine])
        assert one is two
        one.close()


def test_more_sockets_than_one_call_takes_travel_together(pair: Pair) -> None:
    """The kernel takes 253 a call; lots follow one another."""
    ends = [socket.socketpair() for _ in range(wire.DESCRIPTORS_A_CALL + 10)]
    came = pair.through([mine for mine, _ in ends])
    for arrived, (mine, peer) in zip(came, ends, strict=True):
        mine.close()
        arrived.send(b"x")
        assert peer.recv(1) == b"x"
        arrived.close()
        peer.close()


def test_a_socket_travels_beside_a_large_array(pair: Pair) -> None:
    """The memfd is one of the frame's descriptors, and not mistaken for another."""
    mine, peer = socket.socketpair()
    array = np.arange(MEBI)
    with mine, peer:
        came, values = pair.through((mine, array))
        np.testing.assert_array_equal(values, array)
        with came:
            came.send(b"x")
            assert peer.recv(1) == b"x"


def test_sockets_of_queued_messages_are_closed_with_the_channel(pair: Pair) -> None:
    """The peer of such a socket sees the end."""
    while not pair.here.wants_write:
        pair.here.send(b"x" * 10_000)
    mine, peer = socket.socketpair()
    with peer:
        pair.here.send(mine)
        mine.close()
        pair.here.close()
        assert peer.recv(1) == b""


def test_sockets_of_unread_messages_are_closed_with_the_channel(pair: Pair) -> None:
    """Also at the receiving end."""
    mine, peer = socket.socketpair()
    with peer:
        pair.here.send(mine)
        mine.close()
        pair.there.close()
        assert peer.recv(1) == b""


def test_a_frame_whose_descriptors_were_lost_is_an_error_and_no_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with no free descriptor loses that message and stays in step."""
    recvmsg_into = socket.socket.recvmsg_into

    def truncated(sock: socket.socket, *args: Any) -> Any:
        count, rights, flags, address = recvmsg_into(sock, *args)
        for _, _, data in rights:
            for begin in range(0, len(data), 4):
                os.close(int.from_bytes(data[begin : begin + 4], sys.byteorder))
        return count, [], flags | socket.MSG_CTRUNC, address

    mine, peer = socket.socketpair()
    with mine, peer:
        pair.here.send(mine)
        with monkeypatch.context() as patch:
            patch.setattr(pair.there._inbox, "_sock", Truncated(pair.there._socket, truncated))
            (received,) = pair.there.receive()
        assert received.error is not None
        pair.here.send("next")
        (received,) = pair.arrive()
        assert received.message == "next"


class Truncated:
    """A socket whose `recvmsg_into` is another."""

    def __init__(self, sock: socket.socket, recvmsg_into: Callable[..., Any]) -> None:
        self._sock = sock
        self._recvmsg_into = recvmsg_into

    def recvmsg_into(self, *args: Any) -> Any:
        return self._recvmsg_into(self._sock, *args)


# -- what cannot travel --------------------------------------------------------------------


@dataclass
class Job:
    name: str
    extra: dict[str, object] = field(default_factory=dict)


class Stubborn:
    def __reduce__(self) -> Any:
        raise RuntimeError("will not travel")

    def __repr__(self) -> str:
        raise RuntimeError("nor be shown")


def fail_to_load() -> None:
    raise LookupError("not here")


class Unloadable:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


LOCK = threading.Lock()


def closure() -> Callable[[], object]:
    captured = threading.Lock()
    return lambda: captured


@pytest.mark.parametrize(
    ("message", "where"),
    [
        pytest.param(LOCK, "send message:", id="itself"),
        pytest.param({"job": [0, (LOCK,)]}, "message['job'][1][0]:", id="containers"),
        pytest.param(Job("a", {"lock": LOCK}), "message.extra['lock']:", id="attributes"),
        pytest.param(Request(1, [LOCK]), "message.body[0]:", id="slots"),
        pytest.param([closure()], "message[0].<closure captured>:", id="closure"),
        pytest.param([Stubborn()], "message[0]: <Stubborn", id="a failing __reduce__"),
        pytest.param([socket.socket.__new__(socket.socket)], "message[0]", id="closed socket"),
    ],
)
def test_what_cannot_be_pickled_is_named(pair: Pair, message: object, where: str) -> None:
    """The error says where in the message it is, and the channel lives on."""
    with pytest.raises(SerializationError) as caught:
        pair.here.send(message)
    assert where in str(caught.value)
    assert caught.value.__cause__ is not None
    assert pair.through("next") == "next"


def test_a_message_that_contains_itself_and_a_lock_is_named(pair: Pair) -> None:
    """The search for the culprit ends."""
    message: list[object] = [LOCK]
    message.insert(0, message)
    with pytest.raises(SerializationError, match=r"message\[1\]"):
        pair.here.send(message)


def test_what_cannot_be_unpickled_is_an_error_in_its_place(pair: Pair) -> None:
    """The messages around it are delivered, in order."""
    for message in ("before", Unloadable(), "after"):
        pair.here.send(message)
    before, received, after = pair.arrive()
    assert (before.message, after.message) == ("before", "after")
    assert isinstance(received.error, SerializationError)
    assert isinstance(received.error.__cause__, LookupError)


def test_what_cannot_be_unpickled_leaves_no_descriptor(pair: Pair) -> None:
    """The socket that came along is closed."""
    mine, peer = socket.socketpair()
    with peer:
        pair.here.send([Unloadable(), mine])
        mine.close()
        (received,) = pair.arrive()
        assert received.error is not None
        assert peer.recv(1) == b""


def test_a_message_that_cannot_be_unpickled_gives_its_memory_back(impatient: Pair) -> None:
    """Its credit too: the next large one can go."""
    for _ in range(3):
        impatient.here.send([Unloadable(), bytes(MEBI)])
        (received,) = impatient.arrive()
        assert received.error is not None


# -- memory --------------------------------------------------------------------------------


def test_large_buffers_are_not_copied_into_the_pickle(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the very object, or a view of the very array."""
    array, data = np.arange(MEBI), bytes(MEBI)
    seen: list[Any] = []
    create = memfd.create

    def record(parts: Any) -> int | None:
        seen.extend(piece for pieces in parts for piece in pieces)
        return create(parts)

    monkeypatch.setattr(memfd, "create", record)
    pair.through([array, data])
    assert any(piece is data for piece in seen)
    views = [piece for piece in seen if isinstance(piece, memoryview)]
    assert any(np.shares_memory(np.frombuffer(view, np.uint8), array) for view in views)
    assert sum(len(p) for p in seen if p is not data and p not in views) < 10_000


def test_a_message_may_be_changed_when_send_has_returned(pair: Pair) -> None:
    """What waits in the queue is a copy where it could change."""
    array = np.ones(50_000, np.uint8)
    while not pair.here.wants_write:
        pair.here.send(array)
    pair.here.send(array)
    array[:] = 2
    for received in pair.arrive():
        assert (received.message == 1).all()  # type: ignore[attr-defined]


def test_a_large_message_may_be_changed_when_send_has_returned(pair: Pair) -> None:
    """What is in a memfd is a copy."""
    array = np.ones(MEBI, np.uint8)
    pair.here.send(array)
    array[:] = 2
    (received,) = pair.arrive()
    assert (received.message == 1).all()  # type: ignore[attr-defined]


def test_a_large_message_goes_inline_where_there_is_no_memory_for_a_memfd(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slower, and arrives."""
    monkeypatch.setattr(memfd, "create", lambda _: None)
    array = np.arange(MEBI)
    np.testing.assert_array_equal(pair.through([array, "end"])[0], array)
    assert pair.here._credit.lent == 0


def test_nothing_is_left_of_a_sender_killed_with_a_large_message_under_way(pair: Pair) -> None:
    """The message is there whole, as it was sent; the memory is the kernel's."""

    def work(end: Channel) -> None:
        end.send(np.ones(MEBI, np.uint8), handed_over=True)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = in_child(pair.there, pair.here, work)
    os.waitpid(pid, 0)
    (received,) = pair.here.receive()
    assert (received.message == 1).all()  # type: ignore[attr-defined]
    assert pair.here.receive() == []
    assert pair.here.eof


def test_a_peer_killed_in_the_middle_of_a_message_is_the_end(
    raw: tuple[Channel, socket.socket],
) -> None:
    """300 MB are announced, a little comes: no stall, and no memory for the rest."""
    channel, bare = raw
    bare.sendall(wire.header(Kind.USER, 300 * MEBI) + b"x" * 100_000)
    assert channel.receive() == []
    assert len(channel._inbox._buffer) < MEBI
    bare.close()
    assert channel.receive() == []
    assert (channel.eof, channel.broken) == (True, False)


# -- the other side does not read -----------------------------------------------------------


def fill(channel: Channel) -> int:
    """Send until it is refused; how many messages went in."""
    sent = 0
    with contextlib.suppress(ChannelFullError):
        for sent in itertools.count():  # noqa: B007
            channel.send(b"x" * 10_000, may_wait=False)
    return sent


def test_what_waits_is_bounded_and_none_of_it_is_lost(impatient: Pair) -> None:
    """Past the limit the message is refused whole; those before it arrive."""
    sent = fill(impatient.here)
    assert impatient.here._outbox.size <= MEBI
    assert [len(r.message) for r in impatient.arrive()] == [10_000] * sent  # type: ignore[arg-type]


def test_a_sender_gives_up_when_nothing_moves(impatient: Pair) -> None:
    """After `send_timeout`, with an error that says so."""
    fill(impatient.here)
    with pytest.raises(ChannelFullError, match="there does not read"):
        impatient.here.send(b"x" * 10_000)


def test_a_message_larger_than_the_limit_is_let_in_alone(impatient: Pair) -> None:
    """Or it could never be sent."""
    big = bytes(range(256)) * (2 * MEBI // 256)
    assert impatient.through(big) == big
    assert impatient.through([big]) == [big]


def test_memory_that_is_not_taken_over_is_bounded(impatient: Pair) -> None:
    """The socket's buffer does not bound it, so credit does."""
    impatient.here.send(bytes(MEBI))
    with pytest.raises(ChannelFullError):
        impatient.here.send(bytes(MEBI))
    assert len(impatient.arrive()) == 1
    impatient.here.send(bytes(MEBI))
    assert len(impatient.arrive()) == 1


def test_a_refused_message_leaves_no_memory_behind(impatient: Pair) -> None:
    """Neither its descriptor nor its credit."""
    fill(impatient.here)
    owned = descriptors.owned()
    impatient.here.limit = 0
    with pytest.raises(ChannelFullError):
        impatient.here.send(bytes(MEBI), may_wait=False)
    assert descriptors.owned() == owned
    assert impatient.here._credit.lent == 0


def test_a_thread_that_must_not_wait_gets_the_error_and_what_it_sent_before_arrives() -> None:
    pair = make(limit=MEBI)
    pair.here.must_not_wait = lambda: True
    sent = 0
    with pytest.raises(ChannelFullError, match="must not wait"):
        while True:
            pair.here.send((sent, b"x" * 10_000), handed_over=True)
            sent += 1
    assert [received.message[0] for received in pair.arrive()] == list(range(sent))  # type: ignore[index]
    pair.here.close()
    pair.there.close()


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
def test_a_kernel_short_of_memory_is_a_full_one_and_not_the_end(pair: Pair, number: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    pair.here._send_now = refuse  # type: ignore[assignment]
    assert pair.through("a word") == "a word"


def test_nobody_is_asked_whether_he_may_wait_while_there_is_room(pair: Pair) -> None:
    pair.here.must_not_wait = lambda: pytest.fail("there is room")
    pair.here.send("a word", handed_over=True)
    assert [received.message for received in pair.arrive()] == ["a word"]


def test_handed_over_returns_when_the_kernel_has_it_all(pair: Pair) -> None:
    """500 messages of 100 kB, then the end of the process: all of them arrive."""

    def work(end: Channel) -> None:
        for number in range(500):
            end.send((number, b"x" * 100_000), handed_over=True)

    pid = in_child(pair.there, pair.here, work)
    numbers = []
    while not pair.here.eof:
        wait_readable(pair.here)
        numbers += [received.message[0] for received in pair.here.receive()]  # type: ignore[index]
    assert os.waitpid(pid, 0)[1] == 0
    assert numbers == list(range(500))


def test_a_message_that_was_not_handed_over_is_withdrawn(impatient: Pair) -> None:
    """ChannelFullError means: not sent, not even in part."""
    while not impatient.here.wants_write:
        impatient.here.send(b"x" * 10_000)
    with pytest.raises(ChannelFullError):
        impatient.here.send("never", handed_over=True)
    assert "never" not in [received.message for received in impatient.arrive()]


def test_two_sides_that_both_only_send_complete(pair: Pair) -> None:
    """Each takes in what comes while it waits."""
    total = 100 * MEBI
    chunk = b"x" * (total // 1000)

    def exchange(end: Channel) -> None:
        got: list[Received] = []
        end.limit = MEBI
        end.on_readable = lambda channel: got.extend(channel.receive())
        for _ in range(1000):
            end.send(chunk, handed_over=True)
        while len(got) < 1000:
            wait_readable(end)
            got.extend(end.receive())
        assert all(received.message == chunk for received in got)

    pid = in_child(pair.there, pair.here, exchange)
    exchange(pair.here)
    assert os.waitpid(pid, 0)[1] == 0


def test_two_large_messages_at_once_complete_with_nobody_reading(pair: Pair) -> None:
    """100 MB each way: both sends return."""
    data = b"x" * 100_000_000
    pair.here.send(data)
    pair.there.send(data)
    assert pair.here.receive()[0].message == data
    assert pair.there.receive()[0].message == data


def test_several_threads_send_whole_messages(pair: Pair) -> None:
    """What they write does not mix, and each one's own order holds."""
    pair.here.limit = 100_000

    def work(end: Channel) -> None:
        def send(me: int) -> None:
            for number in range(200):
                end.send((me, number, b"x" * 5000))

        threads = [threading.Thread(target=send, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        end.send("done", handed_over=True)

    pid = in_child(pair.here, pair.there, work)
    came: list[Any] = []
    while not pair.there.eof:
        wait_readable(pair.there)
        came += [received.message for received in pair.there.receive()]
    assert os.waitpid(pid, 0)[1] == 0
    assert came.pop() == "done"
    for me in range(4):
        assert [n for who, n, _ in came if who == me] == list(range(200))


def test_a_backlog_is_told_once_until_it_is_gone(pair: Pair) -> None:
    """The watcher learns that there is something to flush, and not with every message."""
    told: list[bool] = []
    pair.here.on_backlog = lambda channel: told.append(channel.wants_write)
    for _ in range(2):
        while not pair.here.wants_write:
            pair.here.send(b"x" * 10_000)
        for _ in range(10):
            pair.here.send(b"x" * 10_000)
        assert told == [True]
        told.clear()
        pair.arrive()


def test_a_sender_wakes_on_credit_that_another_thread_receives(pair: Pair) -> None:
    """The watcher reads; who waits for credit alone waits for the watcher."""
    pair.here._credit.limit = MEBI
    pair.here.read_elsewhere = True
    pair.here.on_readable = lambda _: pytest.fail("the watcher reads")
    pair.here.send(bytes(MEBI))
    waiting = threading.Event()
    wait = pair.here._credit.wait

    def told_wait(seconds: float) -> None:
        waiting.set()
        wait(seconds)

    pair.here._credit.wait = told_wait  # type: ignore[method-assign]
    sender = threading.Thread(target=pair.here.send, args=(bytes(MEBI),))
    sender.start()
    assert waiting.wait(60)
    assert len(pair.there.receive()) == 1
    wait_readable(pair.here)
    pair.here.receive()
    sender.join()
    assert len(pair.there.receive()) == 1


# -- bytes that are no messages ------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=2000), st.booleans())
def test_random_bytes_end_as_broken_or_as_nothing(data: bytes, framed: bool) -> None:
    """Never as an exception, never as a message for a user."""
    here, there = socket.socketpair()
    with here, there:
        there.setblocking(False)
        inbox = Inbox(there, "random")
        here.sendall(wire.header(Kind.USER, len(data)) + data if framed else data)
        for received in inbox.take(MEBI):
            assert framed
            if received.error is None:
                assert received.message == pickle.loads(data)
        assert inbox.broken or framed or len(data) < wire.HEADER.size


def test_what_follows_no_message_is_not_read(
    raw: tuple[Channel, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counts as the end; what came before it is delivered."""
    channel, bare = raw
    good = pickle.dumps("good")
    frame = wire.header(Kind.USER, len(good)) + good
    bare.sendall(frame + b"GET / HTTP/1.1\r\n\r\n....." + frame)
    assert [received.message for received in channel.receive()] == ["good"]
    assert channel.broken
    assert channel.receive() == []
    assert "bare sends what is no message" in caplog.text
    with pytest.raises(ChannelClosedError):
        channel.send(1)


def test_announced_descriptors_that_do_not_come_are_the_end(
    raw: tuple[Channel, socket.socket],
) -> None:
    """A frame cannot take the next one's."""
    channel, bare = raw
    bare.sendall(wire.header(Kind.USER, 5, descriptors=2) + b"12345")
    assert channel.receive() == []
    assert channel.broken


def test_descriptors_that_belong_to_no_frame_are_the_end(
    raw: tuple[Channel, socket.socket],
) -> None:
    """And they are closed."""
    channel, bare = raw
    good = pickle.dumps("good")
    with socket.socket() as stray:
        frame = wire.header(Kind.USER, len(good)) + good
        socket.send_fds(bare, [frame], [stray.fileno()])
    assert [received.message for received in channel.receive()] == ["good"]
    assert channel.broken


def test_a_message_that_comes_byte_by_byte_is_a_message(
    raw: tuple[Channel, socket.socket],
) -> None:
    """Whatever the cuts."""
    channel, bare = raw
    data = pickle.dumps({"a": 1})
    for byte in wire.header(Kind.USER, len(data)) + data:
        assert channel.receive() == []
        bare.sendall(bytes([byte]))
    assert [received.message for received in channel.receive()] == [{"a": 1}]


def test_reading_stops_at_the_limit_and_goes_on(pair: Pair) -> None:
    """One worker cannot keep the watcher for itself; nothing readable is forgotten."""
    for _ in range(100):
        pair.here.send(b"x" * 5000)
    pair.here.flush()
    batches = []
    while batch := pair.there.receive(limit_bytes=1):
        batches.append(len(batch))
        pair.here.flush()
    assert sum(batches) == 100
    assert len(batches) > 1


# -- the end ---------------------------------------------------------------------------------


def test_what_was_sent_before_the_close_is_received_before_the_end(pair: Pair) -> None:
    """The end of the file comes last."""
    pair.here.send("last words")
    pair.here.close()
    assert [received.message for received in pair.there.receive()] == ["last words"]
    pair.there.receive()
    assert pair.there.eof


@pytest.mark.parametrize("unread", [False, True])
def test_sending_to_a_side_that_has_closed_is_an_error(pair: Pair, unread: bool) -> None:
    """Whether or not it had read everything; and what it sent can still be received."""
    pair.there.send("last words")
    if unread:
        pair.here.send("unread")
    pair.there.close()
    with pytest.raises(ChannelClosedError):
        pair.here.send("too late")
    assert [received.message for received in pair.here.receive()] == ["last words"]


def test_close_is_idempotent_and_the_channel_says_so(pair: Pair) -> None:
    """Nothing works any more, nothing raises that need not."""
    pair.here.close()
    pair.here.close()
    assert pair.here.closed
    assert pair.here.fileno() == -1
    assert pair.here.receive() == []
    assert pair.here.flush()
    with pytest.raises(ChannelClosedError):
        pair.here.send(1)


def test_close_wakes_a_sender_that_waits(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error that says it is closed; the descriptor goes with the last one inside."""
    pair.here.limit = MEBI
    fill(pair.here)
    polling = threading.Event()

    class Poll:
        def __init__(self) -> None:
            self._poll = real()

        def register(self, *args: Any) -> None:
            self._poll.register(*args)

        def poll(self, milliseconds: float) -> Any:
            polling.set()
            return self._poll.poll(milliseconds)

    real = select.poll
    monkeypatch.setattr(select, "poll", Poll)
    raised: list[BaseException] = []

    def send() -> None:
        try:
            pair.here.send(b"x" * 100_000)
        except BaseException as error:
            raised.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    assert polling.wait(60)
    pair.here.close()
    sender.join()
    assert [type(error) for error in raised] == [ChannelClosedError]
    assert pair.here.fileno() == -1


def test_an_interrupted_receive_loses_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of unpickling: the messages before it come with the next call."""
    for number in range(3):
        pair.here.send(number)
    load = pickle.loads

    def interrupted(data: Any, *args: Any, **options: Any) -> object:
        message = load(data, *args, **options)
        if message == 1:
            raise KeyboardInterrupt
        return message

    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pair.there.receive()
    assert [received.message for received in pair.there.receive()] == [0, 2]


def test_a_forked_child_has_no_copy_of_either_end(pair: Pair) -> None:
    """A sibling would keep the end of the file from coming."""
    numbers = {pair.here.fileno(), pair.there.fileno()}
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        kept = [fd for fd in numbers if Path(f"/proc/self/fd/{fd}").exists()]
        os.write(writer, str(kept).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"[]"
    os.close(reader)


def test_a_channel_shows_its_state(pair: Pair) -> None:
    """And whom it leads to."""
    assert repr(pair.here) == "<Channel to there: open, 0 bytes wait>"
    pair.here.label = "worker 3"
    pair.here.close()
    assert repr(pair.here) == "<Channel to worker 3: closed, 0 bytes wait>"
