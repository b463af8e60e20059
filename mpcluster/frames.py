"""A pickled message in the form in which it leaves: one frame, inline or in a memfd.

Nothing here knows a channel, waits or counts: whether the other side may be lent so much memory
is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable

from mpcluster import memfd, wire
from mpcluster.errors import SerializationError
from mpcluster.outbox import Outgoing
from mpcluster.pickling import Pickled, Segment
from mpcluster.wire import MAX_DESCRIPTORS, Kind

__all__ = ["of"]


def _sizes(pickled: Pickled) -> list[int]:
    """Bytes of the pickle and of each buffer beside it.

    Raises:
        SerializationError: More descriptors than can travel with one frame.
    """
    segments, buffers, carried = pickled
    if len(carried) >= MAX_DESCRIPTORS:
        text = f"a message carries {len(carried)} descriptors; {MAX_DESCRIPTORS - 1} can travel"
        raise SerializationError(text)
    return [sum(map(len, segments)), *map(len, buffers)]


def of(
    pickled: Pickled,
    kind: Kind,
    borrow: Callable[[int], object],
    give_back: Callable[[int], object],
) -> Outgoing:
    """A message in its form: a memfd where that is cheaper, and there is room.

    Args:
        pickled: The message.
        kind: Whom it is for.
        borrow: Called before so many bytes of a memfd are taken.
        give_back: Called if they were not.

    Raises:
        SerializationError: More descriptors than can travel with one frame.
    """
    sizes = _sizes(pickled)
    if sum(sizes) >= memfd.THRESHOLD:
        memory = memfd.layout(sizes)[1]
        borrow(memory)
        frame = None
        try:
            frame = _in_memory(pickled, sizes, kind)
        finally:
            if frame is None:
                give_back(memory)
        if frame is not None:
            return frame
    return _inline(pickled, sizes, kind)


def _inline(pickled: Pickled, sizes: list[int], kind: Kind) -> Outgoing:
    """A frame that has everything in its body, as views of the message where it can."""
    segments, buffers, carried = pickled
    table = wire.table(sizes[1:])
    body = len(table) + sum(sizes)
    head = wire.header(kind, body, buffers=len(buffers), descriptors=len(carried))
    pieces: list[Segment] = [head + table, *segments, *buffers]
    return Outgoing(pieces, len(head) + body, carried)


def _in_memory(pickled: Pickled, sizes: list[int], kind: Kind) -> Outgoing | None:
    """A frame whose content is copied into a memfd; None where there is no room for one."""
    segments, buffers, carried = pickled
    fd = memfd.create([segments, *([buffer] for buffer in buffers)])
    if fd is None:
        return None
    head = wire.memory_frame(kind, sizes, 1 + len(carried))
    return Outgoing([head], len(head), carried, [fd], lent=memfd.layout(sizes)[1])
