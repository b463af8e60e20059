"""Messages to bytes and back: cloudpickle's reach at close to the C pickler's price.

Three things are added to cloudpickle:

- large buffers (protocol 5) and large ``bytes`` are handed on as they are, not copied into
  the pickle;
- sockets and ``multiprocessing`` Connections are *carried*: the pickle holds a number, the
  descriptor travels beside it;
- picklers are used again: making one costs three times what pickling a small dict does
  (2.0 µs and 0.5 µs on CPython 3.11).
"""

from __future__ import annotations

import copyreg
import io
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias

import cloudpickle

from mpcluster import culprit, descriptors
from mpcluster.errors import SerializationError

__all__ = ["Carried", "Pickled", "Segment", "dump", "dump_plain", "load"]

#: A piece of a pickle, or a buffer. Only ``bytes`` is sure not to change.
Segment: TypeAlias = "bytes | bytearray | memoryview"
#: What travels as a descriptor.
Carried: TypeAlias = "socket.socket | Connection[Any, Any]"
#: The pickle in pieces, the buffers that are not in it, and what is carried beside it.
Pickled: TypeAlias = tuple[list[Segment], list[memoryview], list[Carried]]

#: The standard library's class, also where gevent replaces the module's name for it. It
#: travels as ``None``: by its name it would be gevent's on one side only.
_Socket: Final = socket.socket

#: Bytes. Below, a buffer is cheaper inside the pickle than as a part of its own.
_SMALL_BUFFER: Final = 4096
#: How many idle picklers are kept: one a thread that pickles at the same moment.
_MOST_IDLE: Final = 8


def dump(message: object) -> Pickled:
    """Pickle a message. Nothing of it is kept; it may be called from any thread.

    The pieces may be views of the message's own memory: they hold until it changes.

    Raises:
        SerializationError: It cannot travel; the text names the part that cannot.
    """
    pickled = dump_plain(message)
    return pickled if isinstance(pickled, tuple) else ([pickled], _NOTHING, _NOTHING)


def dump_plain(message: object) -> bytes | Pickled:
    """As :func:`dump`; just the bytes of a message that is one piece and nothing else."""
    try:
        # `pop` is atomic, and takes the pickler away from other threads, from a
        # `__reduce__` that sends on a channel, and from a child forked meanwhile.
        pickler = _idle.pop()
    except IndexError:
        pickler = _Pickler()
    try:
        pickler.dump(message)
    except Exception as error:  # whatever a user's __reduce__ raises
        raise SerializationError(culprit.describe(message, error, _attempt)) from error
    segments = pickler.segments
    pickled: bytes | Pickled
    piece = segments[0]
    if len(segments) == 1 and pickler.is_plain and type(piece) is bytes:  # as nearly all are
        pickled = piece
        segments.clear()
        pickler.clear_memo()
    else:
        pickled = pickler.take()
    if len(_idle) < _MOST_IDLE:
        _idle.append(pickler)
    return pickled


def load(
    data: bytes | bytearray | memoryview,
    buffers: Sequence[memoryview] = (),
    carried: list[int] | None = None,
    *,
    own: bool = False,
) -> object:
    """Unpickle a message.

    Args:
        data: The pickle, whole.
        buffers: Those that travelled beside it; the message keeps views of them.
        carried: Owned descriptors that travelled with it. Each that becomes a socket or a
            Connection is disowned and replaced by -1; the others stay the caller's.
        own: Sockets that arrive stay owned, as those objects: a fork at any later moment
            does not copy them.

    Raises:
        Exception: Whatever unpickling raises.
    """
    if not carried:
        return pickle.loads(data, buffers=buffers)
    return _Unpickler(data, buffers, carried, own=own).load()


class _Reductions(dict[type, Callable[[Any], Any]]):
    """cloudpickle's reducers, then those of `copyreg`.

    As a dict: cloudpickle's ChainMap answers in Python, which costs an ordinary instance
    1.5 µs.
    """

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        return copyreg.dispatch_table[kind]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no type hints
    dispatch_table = _Reductions(cloudpickle.Pickler.dispatch_table)
    globals_ref: dict[int, dict[str, Any]]

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        #: Nothing was met but what the C pickler knows by itself.
        self.is_plain = True
        self._buffers: list[memoryview] = []
        self._carried: list[Carried] = []
        # The C pickler hands large bytes objects to `write` as they are.
        super().__init__(_File(self.segments), pickle.HIGHEST_PROTOCOL, self._set_aside)

    # The C pickler's own, without cloudpickle's Python frame around it.
    dump = pickle.Pickler.dump

    def take(self) -> Pickled:
        """What was pickled; the pickler is as new."""
        segments, buffers, carried = self.segments[:], self._buffers, self._carried
        self.segments.clear()
        if len(segments) > 1:
            # A large str comes as a view of its own memory, which ends with the memo.
            segments = [bytes(s) if type(s) is memoryview else s for s in segments]
        self._buffers, self._carried = [], []
        self.globals_ref = {}  # keyed by id(): those ids may mean something else soon
        self.is_plain = True
        self.clear_memo()
        return segments, buffers, carried

    def reducer_override(self, obj: Any) -> Any:
        self.is_plain = False
        kind = type(obj)
        if kind is type or kind is FunctionType:
            if _is_global(obj):
                return NotImplemented
        elif kind is MethodType:
            # As pickle itself does it. cloudpickle takes the function out and, where that is
            # a class method's, sends it by value.
            name = getattr(obj.__func__, "__name__", "")
            if getattr(obj.__self__, name, None) == obj:
                return getattr, (obj.__self__, name)
        elif isinstance(obj, (_Socket, socket.socket)):
            return self._carry_socket(obj)
        elif isinstance(obj, Connection):
            descriptor = self._carry(obj)
            return _arrived, (Connection, descriptor, obj.readable, obj.writable)
        return super().reducer_override(obj)

    def _carry_socket(self, sock: socket.socket) -> Any:
        ssl = sys.modules.get("ssl")  # not imported for this question
        if ssl is not None and isinstance(sock, ssl.SSLSocket):
            raise TypeError("an SSL socket has a state in this process and cannot travel")
        state = (int(sock.family), int(sock.type), sock.proto, sock.gettimeout())
        kind = None if type(sock) is _Socket else type(sock)
        return _arrived, (kind, self._carry(sock), *state)

    def _carry(self, thing: Carried) -> int:
        if thing.fileno() < 0:
            raise ValueError("it is closed")
        self._carried.append(thing)
        return len(self._carried) - 1

    def _set_aside(self, buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer out of the pickle? (False means yes.)"""
        self.is_plain = False
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: let the pickler say so
            return True
        if view.nbytes < _SMALL_BUFFER:
            return True
        self._buffers.append(view)
        return False


class _File:
    """What the C pickler writes to."""

    def __init__(self, segments: list[Segment]) -> None:
        self.write = segments.append


_idle: list[_Pickler] = []
_NOTHING: Final[list[Any]] = []  # shared by all plain messages, and never changed


def _is_global(obj: Any) -> bool:
    """Is it surely found by its name in an importable module?

    A quick yes for the usual case, where cloudpickle takes 3 µs to say the same. A no
    leaves the question to cloudpickle.
    """
    name = obj.__module__
    if name == "__main__" or cloudpickle.list_registry_pickle_by_value():
        return False
    module = sys.modules.get(name)
    return module is not None and getattr(module, obj.__qualname__, None) is obj


def _attempt(thing: object) -> None:
    """Pickle it for the sake of the error alone."""
    _Pickler().dump(thing)


def _arrived(kind: type | None, descriptor: int, *_: object) -> object:
    """Stands in the pickle for something carried; :class:`_Unpickler` puts its own here."""
    raise pickle.UnpicklingError(f"{kind} number {descriptor} came without its descriptor")


class _Unpickler(pickle.Unpickler):
    """Unpickles a message that came with descriptors."""

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        buffers: Sequence[memoryview],
        carried: list[int],
        *,
        own: bool,
    ) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._carried = carried
        self._own = own

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == __name__ and global_name == _arrived.__name__:
            return self._arrived
        return super().find_class(module_name, global_name)

    def _arrived(self, kind: Any, number: int, *state: Any) -> object:
        fd = self._carried[number]
        if fd < 0:
            raise pickle.UnpicklingError(f"descriptor {number} is taken already")
        kind = _Socket if kind is None else kind
        if issubclass(kind, (_Socket, socket.socket)):
            family, type_, proto, timeout = state
            arrived = kind(family, type_, proto, fileno=fd)
            # O_NONBLOCK belongs to the open file, which the sender has too: the same
            # timeout leaves it as it is.
            arrived.settimeout(timeout)
        else:
            arrived = kind(fd, *state)
        self._carried[number] = -1
        if self._own:
            descriptors.own(arrived)
        else:
            descriptors.disown(fd)
        return arrived
