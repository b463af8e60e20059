"""The line between an accepting master and one worker: what travels over it, and how.

A pair of ``SOCK_SEQPACKET`` sockets. The worker's end stands in the listener's place there,
so that the program's own ``accept()`` takes a connection from it, with nobody between: no
thread of the worker's, no pickling, and for a nested worker no master on the way::

    master → worker    number, the client's address; the connection itself as a descriptor
    worker → master    words: LISTEN backlog, ACCEPTED number, COUNTED number,
                       ENDED how many, REFUSED number

The master keeps a copy of the worker's end, too. What the program has not yet taken lies in
that end's queue, and either side can take it from there, but only one of them will: so the
master takes a connection back without asking anybody.
"""

from __future__ import annotations

import _socket
import array
import contextlib
import os
import pickle
import socket
import struct
from typing import Final, NamedTuple

from mpcluster import descriptors

__all__ = [
    "ACCEPTED",
    "COUNTED",
    "ENDED",
    "LISTEN",
    "REFUSED",
    "WORD",
    "Line",
    "Passed",
    "close",
    "hand_over",
    "hear",
    "open_pair",
    "recall",
    "say",
    "take",
]

#: A word: what, and a number.
WORD: Final = struct.Struct("=cQ")

LISTEN: Final = b"L"  #: the program has called ``listen(number)``: it takes connections now
ACCEPTED: Final = b"A"  #: the program has accepted this connection; nothing more is told of it
COUNTED: Final = b"C"  #: likewise, and its end will be told
ENDED: Final = b"E"  #: so many of the counted connections are closed
REFUSED: Final = b"N"  #: no descriptor was left to accept this connection into

_NUMBER: Final = struct.Struct("=Q")
_MOST: Final = 512  # bytes of a number and an address; a unix path has 108
_FLAGS: Final = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_NO_SIGNAL: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_ONE: Final = socket.CMSG_SPACE(array.array("i").itemsize)


class Line(socket.socket):
    """The worker's end, as a policy gives it out; a class of its own to be known by."""

    __slots__ = ()


class Passed(NamedTuple):
    """A connection on the line; ``fd`` is -1 where no descriptor was left for it."""

    number: int
    peer: object
    fd: int


def open_pair() -> tuple[socket.socket, Line]:
    """The master's end and the worker's, both kept from its children.

    Raises:
        OSError: No descriptor is left.
    """
    with descriptors.opening():
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs = Line(other.family, other.type, other.proto, fileno=other.detach())
        for end in (ours, theirs):
            end.setblocking(False)  # noqa: FBT003
            descriptors.own(end)
    return ours, theirs


def hand_over(ours: socket.socket, number: int, peer: object, fd: int) -> None:
    """Put a connection into the line. Never blocks; the caller keeps his copy.

    Raises:
        OSError: The kernel has no room for it now.
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
    ours.sendmsg([_NUMBER.pack(number), pickle.dumps(peer)], [rights], _NO_SIGNAL)


def take(theirs: _socket.socket) -> Passed | None:
    """Take the next connection out of the worker's end; ``None``: the master's is closed.

    Raises:
        BlockingIOError: There is none.
    """
    data, rights, _, _ = theirs.recvmsg(_MOST, _ONE, _FLAGS)
    if not data:
        return None
    numbers = array.array("i")
    for _level, _kind, carried in rights:
        numbers.frombytes(carried)
    (number,) = _NUMBER.unpack_from(data)
    return Passed(number, pickle.loads(data[_NUMBER.size :]), numbers[0] if numbers else -1)


def say(theirs: _socket.socket, word: bytes, number: int) -> None:
    """Say a word to the master. Never blocks; a master that is gone hears nothing.

    Raises:
        BlockingIOError: The master has not listened for long; nothing was said.
    """
    with contextlib.suppress(ConnectionError):
        theirs.send(WORD.pack(word, number), _NO_SIGNAL)


def hear(ours: socket.socket) -> tuple[bytes, int]:
    """The next word of the worker, and its number; what is no word comes as it is, with 0.

    Raises:
        BlockingIOError: It has said nothing more.
    """
    said = ours.recv(WORD.size)
    try:
        word, number = WORD.unpack(said)
    except struct.error:
        return said, 0
    return word, number


def recall(theirs: Line) -> list[int]:
    """Take out of the worker's end what its program has not taken; the numbers, oldest first.

    What is not among them is the program's, which has said so, or is about to.
    """
    numbers = []
    with contextlib.suppress(BlockingIOError):
        while (passed := take(theirs)) is not None:
            close(passed.fd)  # a second copy
            numbers.append(passed.number)
    return numbers


def close(fd: int) -> None:
    """Close a copy of a connection that its owner does not need (any more)."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)
