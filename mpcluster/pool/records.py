"""The form of what goes between a pool and one of its workers.

Both ways it is a stream of records: a header of 24 bytes, then a payload, mostly one pickle.
As many as are due are written in one piece, and cut apart where they have come. An order
(to the worker) has a number; its answer bears the same, so that the answers may come by two
ways, the ring and the socket, in any order.

A payload with large buffers or descriptors is a *parcel*: a table of its parts stands in
front, and past a measured size the parts lie in a memfd (:mod:`mpcluster.memfd`) that
travels with it. Parcels go by the socket alone.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, TypeAlias

from mpcluster import inbox, memfd, parts, pickling, wire
from mpcluster.outbox import Outgoing
from mpcluster.pickling import Pickled, Segment
from mpcluster.pool.stock import Stock, give_back_at_the_end, lay_once

__all__ = [
    "CALL",
    "CALL_WITH_NAMES",
    "DEFINE",
    "ERROR",
    "FORGET",
    "FULL",
    "HEADER",
    "MAP",
    "ONE",
    "OPEN",
    "PLAIN",
    "RUN",
    "SKIPPED",
    "STARMAP",
    "STARRUN",
    "UNFIT",
    "VALUE",
    "VALUES",
    "Parcel",
    "Record",
    "Stream",
    "body",
    "load",
    "parcel",
    "values",
]

#: kind, a number that depends on it, number of the order, bytes of the payload
HEADER: Final = Struct("=IIQQ")

# Orders. The second number is that of the function.
DEFINE: Final = 1  #: payload: the function
FORGET: Final = 2  #: no payload
CALL: Final = 3  #: payload: args
CALL_WITH_NAMES: Final = 4  #: payload: (args, kwargs)
ONE: Final = 5  #: payload: the one argument
MAP: Final = 6  #: payload: a chunk of arguments; answered by the list of the results
STARMAP: Final = 7  #: payload: a chunk of tuples of arguments
# A run: so many orders, numbered from the header's on; each is begun and answered by itself.
RUN: Final = 8  #: payload: a list of arguments, for a call with one each
STARRUN: Final = 9  #: payload: a list of tuples of arguments

# Answers. The second number is how long it took, in units of 100 ns.
VALUE: Final = 1
ERROR: Final = 2  #: payload: (text of the traceback, pickle of the exception)
SKIPPED: Final = 3  #: it was taken back before it began
UNFIT: Final = 4  #: the initializer raised; payload as ERROR's
FULL: Final = 5  #: the worker has more memory than it may, and wants to be replaced
VALUES: Final = 6  #: those of a run, as far as they are there; payload: bodies of pickles

#: The size of a run of values to which more may be added.
OPEN: Final = (1 << 64) - 1

_PARCEL: Final = 0x100  # added to the kind
_SHAPE: Final = Struct("=IIIQ")  # in memory?, descriptors, buffers, the stock's ticket

#: Whose pickle is the same by the C pickler alone: nothing for cloudpickle to do. And nobody
#: can tell whether two of them were one: so many of them may be in one pickle.
PLAIN: Final = frozenset({int, float, str, bool, type(None), complex})

# The last protocol whose pickles can be put one behind the other: it names the entries of its
# memo, and each body enters what it uses.
_PROTOCOL: Final = 3
_LIST: Final = pickle.dumps([1, 2], _PROTOCOL).partition(b"K\x01K\x02")
_BEGIN: Final = len(pickle.dumps(None, _PROTOCOL)) - 2


class Parcel:
    """A payload in several parts, as it came."""

    __slots__ = ("_buffers", "_carried", "_data", "_error")

    def __init__(
        self,
        data: memoryview | None,
        buffers: list[memoryview],
        carried: list[int],
        error: BaseException | None = None,
    ) -> None:
        self._data = data
        self._buffers = buffers
        self._carried = carried
        self._error = error

    def load(self) -> object:
        """Unpickle it, once.

        Raises:
            OSError: The kernel had no room for its descriptors here.
            Exception: Whatever unpickling raises.
        """
        try:
            if self._data is None:
                assert self._error is not None
                raise self._error
            return pickling.load(self._data, self._buffers, self._carried)
        finally:
            self.drop()

    def drop(self) -> None:
        """Close the descriptors that nobody has taken, and let go of the memory."""
        parts.close_all(self._carried)
        self._carried = []
        self._buffers = []
        self._data = None


#: One record, as it came: kind, the second number, number of the order, payload.
Record: TypeAlias = "tuple[int, int, int, memoryview | Parcel]"


def load(payload: memoryview | Parcel) -> object:
    """Unpickle a payload."""
    if type(payload) is Parcel:
        return payload.load()
    return pickle.loads(payload)  # type: ignore[arg-type]


def body(value: object, _dumps: Callable[..., bytes] = pickle.dumps) -> bytes:
    """What a run of values has of a plain one."""
    return _dumps(value, _PROTOCOL)[_BEGIN:-1]


def values(bodies: memoryview) -> list[object]:
    """The values of so many bodies."""
    return pickle.loads(b"".join((_LIST[0], bodies, _LIST[2])))  # type: ignore[no-any-return]


def parcel(
    kind: int, extra: int, number: int, pickled: Pickled, stock: Stock | None = None
) -> Outgoing:
    """A record whose payload is in several parts, on its way.

    Args:
        kind: As :data:`HEADER` has it, and so are ``extra`` and ``number``.
        pickled: The parts.
        stock: Whose memory to use again; None for what the receiver keeps.
    """
    segments, buffers, carried = pickled
    sizes = [sum(map(len, segments)), *map(len, buffers)]
    size = sum(sizes)
    if size >= memfd.THRESHOLD:
        content: list[Sequence[Segment]] = [segments, *([buffer] for buffer in buffers)]
        laid = lay_once(content) if stock is None else stock.lay(content)
        if laid is not None:
            fd, ticket = laid
            table = _SHAPE.pack(1, 1 + len(carried), len(buffers), ticket) + wire.table(sizes)
            head = HEADER.pack(kind | _PARCEL, extra, number, len(table)) + table
            return Outgoing([head], len(head), carried, [fd])
    table = _SHAPE.pack(0, len(carried), len(buffers), 0) + wire.table(sizes[1:])
    head = HEADER.pack(kind | _PARCEL, extra, number, len(table) + size) + table
    pieces: list[Segment] = [head, *segments, *buffers]
    return Outgoing(pieces, len(head) + size, carried)


class Stream(inbox.Inbox):
    """The records that have come by a socket. One thread at a time.

    The payloads lie in its buffer: they hold until the next :meth:`next_records`.

    Args:
        sock: As of :class:`Inbox`, and so is ``label``.
        cells: The numbers of the ring.
        first: The first of those by which memory is given back (:mod:`mpcluster.pool.stock`).
    """

    def __init__(self, sock: socket.socket, label: str, cells: memoryview, first: int) -> None:
        super().__init__(sock, label)
        self._records: list[Record] = []
        self._cells = cells
        self._first = first

    def next_records(self) -> list[Record]:
        """Read once, or until a record is whole; of a socket that blocks, wait for it.

        An empty list means that there was none, or that it is :attr:`over`.
        """
        more = True
        while more and not self._records:
            more = self._read()
            self._cut()
        if self.over:
            self.close()
        records, self._records = self._records, []
        return records

    def _cut(self) -> int:
        buffer = memoryview(self._buffer)
        unpack, size_of_header = HEADER.unpack_from, HEADER.size
        begin, end = self._begin, self._end
        self._needed = size_of_header
        while end - begin >= size_of_header:
            kind, extra, number, size = unpack(buffer, begin)
            stop = begin + size_of_header + size
            if stop > end:
                self._needed = stop - begin
                break
            payload: memoryview | Parcel = buffer[begin + size_of_header : stop]
            if kind & _PARCEL:
                kind &= ~_PARCEL
                payload = self._open(payload)  # type: ignore[arg-type]
            self._records.append((kind, extra, number, payload))
            begin = stop
        self._begin = begin
        return 0

    def _open(self, body: memoryview) -> Parcel:
        in_memory, descriptors, buffers, ticket = _SHAPE.unpack_from(body)
        body = body[_SHAPE.size :]
        shape = wire.Shape(bool(in_memory), descriptors, buffers)
        carried = self._carried(descriptors)
        try:
            if len(carried) < descriptors:
                raise OSError("descriptors were lost on their way in: this process has too many")
            data, *views = parts.open_parts(shape, body, carried)
            if ticket:
                give_back_at_the_end(data.obj, self._cells, self._first, ticket)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            return Parcel(None, [], carried, error)
        return Parcel(data, views, carried)


def as_bytes(payload: memoryview | Parcel) -> bytes:
    """A payload's bytes; those of an error, which is never a parcel."""
    return bytes(payload) if isinstance(payload, memoryview) else b""


def drop(payload: memoryview | Parcel) -> None:
    """Nobody wants it any more."""
    if isinstance(payload, Parcel):
        payload.drop()
