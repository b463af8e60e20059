"""A worker's line to its parent, seen from its two ends."""

from __future__ import annotations

import multiprocessing
import select
import socket
import threading
from concurrent.futures import Future

from mpcluster import messages
from mpcluster.channel import Channel
from mpcluster.configuration import Settings
from mpcluster.upstream import Upstream
from mpcluster.wire import Kind

KEY: messages.Key = (int(socket.AF_INET), int(socket.SOCK_STREAM), 0, ("127.0.0.1", 1), None)


def hear(channel: Channel) -> object:
    """Return the next control message at this end."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        assert poll.poll(60_000)
        for received in channel.receive():
            return received.message


def test_a_listener_is_given_back_when_nobody_waits_for_it_any_more() -> None:
    """A bind that Ctrl-C interrupts does not keep the address."""
    ours, theirs = multiprocessing.Pipe()
    ended = threading.Event()
    upstream = Upstream(ours, Settings(), lambda received: received is None and ended.set())
    parent = Channel(theirs, label="the worker")
    answer: Future[object] = Future()
    upstream.request_then("a bind", (), answer)
    request = hear(parent)
    assert isinstance(request, messages.Request)
    assert answer.cancel()
    with socket.socket() as listener:
        parent.send(messages.Reply(request.number, messages.Bound(KEY, listener)), Kind.CONTROL)
    assert hear(parent) == messages.Release(KEY)
    parent.close()
    assert ended.wait(60)


def test_a_question_is_answered_by_an_error_when_the_parent_is_gone() -> None:
    ours, theirs = multiprocessing.Pipe()
    ended = threading.Event()
    upstream = Upstream(ours, Settings(), lambda received: received is None and ended.set())
    parent = Channel(theirs, label="the worker")
    answer: Future[object] = Future()
    upstream.request_then("a bind", (), answer)
    parent.close()
    error = answer.exception(60)
    assert "the master is gone" in str(error)
    assert ended.wait(60)
