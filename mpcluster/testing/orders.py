"""What controller, template and workers say to each other beside execnet's stream.

Two connections. *Control*, a stream between controller and template: the orders. *News*, a
pair of datagram-like sockets for each worker: the controller has one end; the other is the
template's and, for its first message, the worker's. Both carry descriptors.

All of them are pickles, for all of these processes are forks of one program.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "Begun",
    "Captured",
    "Ended",
    "Input",
    "Launch",
    "NotForked",
    "receive_news",
    "receive_order",
    "send_news",
    "send_order",
]


@dataclass(frozen=True, slots=True)
class Launch:
    """Order: fork a worker. With it come its stream, its news, its stdout and its stderr."""

    id: str
    env: dict[str, str] = field(default_factory=dict)
    nice: int = 0


@dataclass(frozen=True, slots=True)
class Input:
    """Order: this worker's ``workerinput`` (execnet's serialization), for mode ``collect``."""

    id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """News of the template: the worker is forked. With it comes its pidfd."""

    pid: int


@dataclass(frozen=True, slots=True)
class NotForked:
    """News of the template: the system would not fork, and why."""

    error: str


@dataclass(frozen=True, slots=True)
class Captured:
    """News of the worker: the files that its output is captured in come with this."""


@dataclass(frozen=True, slots=True)
class Ended:
    """News of the template: the worker is gone.

    Attributes:
        exitcode: As ``multiprocessing.Process.exitcode``: negative for a signal.
    """

    exitcode: int


_LENGTH: Final = struct.Struct("!I")

#: Descriptors that one message may bring.
_MOST_DESCRIPTORS: Final = 8

#: Bytes of one piece of news: a few numbers, or an error's text.
_NEWS_SIZE: Final = 65536


def send_order(control: socket.socket, order: object, descriptors: Sequence[int] = ()) -> None:
    """Send an order and copies of ``descriptors``; the sender may close its own then.

    Raises:
        OSError: The template is gone.
    """
    data = pickle.dumps(order)
    socket.send_fds(control, [_LENGTH.pack(len(data))], descriptors)
    control.sendall(data)


def receive_order(control: socket.socket) -> tuple[Any, list[int]] | None:
    """Wait for an order; None when the controller has closed the connection or is gone."""
    head, descriptors = _receive(control, _LENGTH.size)
    head += _receive_exactly(control, _LENGTH.size - len(head)) if head else b""
    if len(head) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(head)[0]
    data = _receive_exactly(control, size)
    return None if len(data) < size else (pickle.loads(data), descriptors)


def send_news(news: socket.socket, message: object, descriptors: Sequence[int] = ()) -> None:
    """Send a piece of news, whole or not at all; nobody may be there to hear it."""
    try:
        socket.send_fds(news, [pickle.dumps(message)], descriptors, socket.MSG_NOSIGNAL)
    except OSError:
        pass  # the controller has closed its end: it wants to hear no more of this worker


def receive_news(news: socket.socket) -> tuple[Any, list[int]] | None:
    """Take the next piece of news, waiting for it; None when nobody can send any more."""
    try:
        data, descriptors = _receive(news, _NEWS_SIZE)
    except ConnectionResetError:
        return None
    return (pickle.loads(data), descriptors) if data else None


def _receive(source: socket.socket, size: int) -> tuple[bytes, list[int]]:
    flags = socket.MSG_CMSG_CLOEXEC
    data, descriptors, _, _ = socket.recv_fds(source, size, _MOST_DESCRIPTORS, flags)
    return data, descriptors


def _receive_exactly(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = source.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)
