"""The first thing that a worker says."""

from __future__ import annotations

import os
import pickle
import socket

from mpcluster import greeting, messages
from mpcluster.inbox import Inbox
from mpcluster.wire import HEADER, Kind, header


def test_it_is_a_frame_as_the_wire_has_them_and_means_online() -> None:
    head = header(Kind.CONTROL, len(greeting.ONLINE) - HEADER.size)
    assert greeting.ONLINE.startswith(head)
    assert pickle.loads(greeting.ONLINE[len(head) :]) == messages.Online()


def test_a_channel_that_is_there_already_reads_it_as_any_other_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        os.write(theirs.fileno(), greeting.ONLINE)
        (received,) = Inbox(ours, "the worker").take(1 << 20)
    assert (received.kind, received.message) == (Kind.CONTROL, messages.Online())
