"""The form of a frame: what stands on the wire between two ends of a channel.

::

    header   magic, kind, where, descriptors, buffers, length of the body      20 bytes
    body     inline:     sizes of the buffers (8 bytes each), pickle, buffers
             in memory:  size of the pickle, sizes of the buffers (8 bytes each); what they
                         measure lies in one memfd, the first of the frame's descriptors
             ACK:        8 bytes, how much memfd memory the receiver has taken over
             SYNC:       8 bytes, a position in the other stream (:mod:`mpcluster.lane`): what
                         stands there before it comes first
             LANE:       1 byte; its one descriptor is the lane's reading end

Descriptors travel beside the bytes (``SCM_RIGHTS``), at most :data:`DESCRIPTORS_A_CALL`
with one call: the first lot with the first byte of the frame, the next with the second.

Both ends are one program on one machine, so numbers are in its own byte order. Nothing in
a frame is believed: whatever does not add up raises :class:`MalformedFrame`, before
anything is allocated for it. (What is *inside* the pickle is trusted, as in every channel of
``multiprocessing``: the other end is our own child or parent.)
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from mpcluster.errors import SerializationError

__all__ = [
    "DESCRIPTORS_A_CALL",
    "HEADER",
    "MAX_DESCRIPTORS",
    "PLAIN_KINDS",
    "Kind",
    "MalformedFrame",
    "Received",
    "Shape",
    "acknowledgement",
    "amount",
    "header",
    "lane",
    "memory_frame",
    "parse",
    "plain",
    "read_plain",
    "sync",
    "table",
    "untable",
]


class Kind(enum.IntEnum):
    """Whom a frame is for. A user's message can never pass for one of the others."""

    USER = 1
    CONTROL = 2
    ACK = 3  #: the channel's own: memfd memory that the receiver has taken over
    SYNC = 4  #: the channel's own: how far the other stream goes before what follows here
    LANE = 5  #: the channel's own: here is the other stream


class MalformedFrame(ValueError):
    """These bytes are not what the other end of a channel writes."""


class Received(NamedTuple):
    """One message that came.

    Args:
        kind: :attr:`Kind.USER` or :attr:`Kind.CONTROL`.
        message: What was sent; ``None`` where there is an error.
        size: Its size on the way, in bytes, memfd memory included.
        error: Why it could not be unpickled here.
    """

    kind: Kind
    message: object
    size: int
    error: SerializationError | None = None


#: magic, kind, where the rest is, number of descriptors, number of buffers, bytes of body
HEADER: Final = struct.Struct("=4sBBHIQ")
_MAGIC: Final = b"mpc\x01"
_SIZE: Final = struct.Struct("=Q")
_INLINE: Final = 0
_IN_MEMORY: Final = 1

#: SCM_MAX_FD of Linux: more in one call is EINVAL.
DESCRIPTORS_A_CALL: Final = 253
#: Each lot needs one byte to travel with; the header is always there.
MAX_DESCRIPTORS: Final = DESCRIPTORS_A_CALL * HEADER.size


class Shape(NamedTuple):
    """What a frame consists of when it is more than a pickle."""

    in_memory: bool
    descriptors: int
    buffers: int

    @property
    def table(self) -> int:
        """Bytes of the table of sizes at the start of the body."""
        return _SIZE.size * (self.buffers + self.in_memory)


_LANE: Final = Shape(in_memory=False, descriptors=1, buffers=0)
_KINDS: Final = {int(kind): kind for kind in Kind}
#: Those whose body is a number.
_NUMBERS: Final = (Kind.ACK, Kind.SYNC)

# Nearly every frame is one small pickle: its header is a constant, and a length.
_PLAIN: Final = struct.Struct("=12sQ")
#: ``read_plain(data, at)``: how a header begins, and the bytes of its body.
read_plain: Final = _PLAIN.unpack_from
#: By its beginning, whose frame a header is whose body is one pickle.
PLAIN_KINDS: Final = {
    HEADER.pack(_MAGIC, kind, _INLINE, 0, 0, 0)[:12]: kind for kind in (Kind.USER, Kind.CONTROL)
}
_PLAIN_USER, _PLAIN_CONTROL = PLAIN_KINDS
_USER: Final = Kind.USER
_pack_plain: Final = _PLAIN.pack


def plain(kind: Kind, pickled: bytes) -> bytes:
    """A whole frame whose body is one pickle."""
    # Not by a dict: an enum's hash is a call in Python.
    return _pack_plain(_PLAIN_USER if kind is _USER else _PLAIN_CONTROL, len(pickled)) + pickled


def header(kind: int, body: int, *, buffers: int = 0, descriptors: int = 0) -> bytes:
    """The header of an inline frame whose body is ``body`` bytes, its table included."""
    return HEADER.pack(_MAGIC, kind, _INLINE, descriptors, buffers, body)


def memory_frame(kind: int, sizes: list[int], descriptors: int) -> bytes:
    """A whole frame that tells what lies in the memfd that travels with it."""
    body = table(sizes)
    return HEADER.pack(_MAGIC, kind, _IN_MEMORY, descriptors, len(sizes) - 1, len(body)) + body


def acknowledgement(size: int) -> bytes:
    """A whole frame that says: ``size`` bytes of memfd memory are taken over."""
    return HEADER.pack(_MAGIC, Kind.ACK, _INLINE, 0, 0, _SIZE.size) + _SIZE.pack(size)


def sync(position: int) -> bytes:
    """A whole frame that says: what follows comes after so many bytes of the other stream."""
    return HEADER.pack(_MAGIC, Kind.SYNC, _INLINE, 0, 0, _SIZE.size) + _SIZE.pack(position)


def lane() -> bytes:
    """A whole frame that brings the lane's reading end, its only descriptor."""
    return HEADER.pack(_MAGIC, Kind.LANE, _INLINE, 1, 0, 1) + b"\0"


def parse(data: bytearray, at: int) -> tuple[Kind, int, Shape | None]:
    """Whose frame stands at ``at``, how many bytes its body has, and its shape.

    At least the 20 bytes of the header have to be there. The shape is ``None`` for a body
    that is one pickle, or a number.

    Raises:
        MalformedFrame: A peer of ours does not write such a thing.
    """
    beginning, body = read_plain(data, at)
    plain = PLAIN_KINDS.get(beginning)
    if plain is not None and body:
        return plain, body, None
    magic, number, where, descriptors, buffers, body = HEADER.unpack_from(data, at)
    kind = _KINDS.get(number)
    if magic != _MAGIC or kind is None or where > _IN_MEMORY:
        raise MalformedFrame(f"no frame begins with {bytes(data[at : at + HEADER.size])!r}")
    if not (where or descriptors or buffers):
        if not body or kind is Kind.LANE or (kind in _NUMBERS and body != _SIZE.size):
            raise MalformedFrame(f"no {kind.name} has a body of {body} bytes")
        return kind, body, None
    shape = Shape(where == _IN_MEMORY, descriptors, buffers)
    fits = (body == shape.table and descriptors) if shape.in_memory else body > shape.table
    if kind is Kind.LANE:
        fits = (shape, body) == (_LANE, 1)
    if not fits or descriptors > MAX_DESCRIPTORS or kind in _NUMBERS:
        raise MalformedFrame(f"{shape} does not fit a body of {body} bytes")
    return kind, body, shape


def table(sizes: list[int]) -> bytes:
    """Sizes in bytes, as they stand at the start of a body."""
    return struct.pack(f"={len(sizes)}Q", *sizes)


def untable(shape: Shape, body: memoryview) -> list[int]:
    """Sizes of the pickle and of each buffer, from a body that has come whole.

    Raises:
        MalformedFrame: They do not add up to the body.
    """
    sizes = list(struct.unpack(f"={shape.table // _SIZE.size}Q", body[: shape.table]))
    if not shape.in_memory:
        sizes.insert(0, len(body) - shape.table - sum(sizes))
    if sizes[0] <= 0:
        raise MalformedFrame(f"the sizes {sizes} do not add up to {len(body)} bytes")
    return sizes


def amount(body: memoryview) -> int:
    """The number that an ACK's or a SYNC's body is, in bytes."""
    return int(_SIZE.unpack(body)[0])
