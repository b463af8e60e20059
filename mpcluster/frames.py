"""A pickled message in the form in which it leaves: one frame, inline or in a memfd.

Nothing here knows a channel, waits or counts: who builds a frame in memory has made sure
before that the other side may be lent so much.
"""

from __future__ import annotations

from mpcluster import memfd, wire
from mpcluster.errors import SerializationError
from mpcluster.outbox import Outgoing
from mpcluster.pickling import Pickled, Segment
from mpcluster.wire import MAX_DESCRIPTORS, Kind

__all__ = ["in_memory", "inline", "sizes"]


def sizes(pickled: Pickled) -> list[int]:
    """Bytes of the pickle and of each buffer beside it.

    Raises:
        SerializationError: More descriptors than can travel with one frame.
    """
    segments, buffers, carried = pickled
    if len(carried) >= MAX_DESCRIPTORS:
        text = f"a message carries {len(carried)} descriptors; {MAX_DESCRIPTORS - 1} can travel"
        raise SerializationError(text)
    return [sum(map(len, segments)), *map(len, buffers)]


def inline(pickled: Pickled, sizes: list[int], kind: Kind) -> Outgoing:
    """A frame that has everything in its body, as views of the message where it can."""
    segments, buffers, carried = pickled
    table = wire.table(sizes[1:])
    body = len(table) + sum(sizes)
    head = wire.header(kind, body, buffers=len(buffers), descriptors=len(carried))
    pieces: list[Segment] = [head + table, *segments, *buffers]
    return Outgoing(pieces, len(head) + body, carried)


def in_memory(pickled: Pickled, sizes: list[int], kind: Kind) -> Outgoing | None:
    """A frame whose content is copied into a memfd; None where there is no room for one."""
    segments, buffers, carried = pickled
    fd = memfd.create([segments, *([buffer] for buffer in buffers)])
    if fd is None:
        return None
    head = wire.memory_frame(kind, sizes, 1 + len(carried))
    return Outgoing([head], len(head), carried, [fd], lent=memfd.layout(sizes)[1])
