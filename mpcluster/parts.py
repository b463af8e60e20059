"""What comes beside a message's bytes: its descriptors, and the buffers of a large one."""

from __future__ import annotations

import array
import contextlib
import socket

from mpcluster import descriptors, memfd, wire
from mpcluster.wire import Shape

__all__ = ["close_all", "open_parts", "owned"]


def open_parts(
    shape: Shape, body: memoryview, carried: list[int], sizes: list[int] | None = None
) -> list[memoryview]:
    """The pickle and each buffer of a message of several parts.

    Args:
        carried: Its descriptors; the memfd among them is taken out and closed.
        sizes: What `wire.untable` says, where the caller has asked already.

    Raises:
        OSError, ValueError: There is no memory for it, or it is not of the size it says.
    """
    if sizes is None:
        sizes = wire.untable(shape, body)
    if not shape.in_memory:
        return _parts(body[shape.table :], sizes)
    parts = memfd.take_over(carried[0], sizes)
    close_all([carried.pop(0)])
    return parts


def _parts(content: memoryview, sizes: list[int]) -> list[memoryview]:
    """The pickle where it lies, and each buffer in memory of its own."""
    parts = [content[: sizes[0]]]
    begin = sizes[0]
    for size in sizes[1:]:
        parts.append(memoryview(bytearray(content[begin : begin + size])))
        begin += size
    return parts


def owned(rights: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of one call, owned from now on."""
    numbers = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    for fd in numbers:
        descriptors.own(fd)
    return list(numbers)


def close_all(numbers: list[int]) -> None:
    """Close owned descriptors; those that somebody has taken stand there as -1."""
    for fd in numbers:
        if fd >= 0:
            with contextlib.suppress(OSError):
                descriptors.close(fd)
