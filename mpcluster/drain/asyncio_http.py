"""Servers that speak HTTP by themselves on asyncio: their answers say ``Connection: close``.

What stands on streams or on a plain protocol has no place where it could be told. Its client
would use the connection on and on, and it would be cut when the drain's time is over. So
from the begin of a drain, what such a server writes is looked at: where it begins an HTTP
answer, the header is put in. An answer begins with its status line, and after something has
come; a part of an answer that merely looks so is left alone.

Put into asyncio's classes when the drain begins, so before it costs nothing. uvloop's
transports are out of reach (written in C), the streams upon them are not. Over a unix socket the
kernel does not tell what has come, and nothing is done.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from mpcluster.sharing import connections

__all__ = ["begin", "closing"]

_CLOSE = b"Connection: close\r\n"

#: Bytes that had come over a connection at the last write, by who wrote.
_came: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def begin() -> None:
    """From now on such answers say it. In any thread, once, in a worker that leaves."""
    modules = sys.modules
    if "asyncio.selector_events" in modules:
        transport: Any = modules["asyncio.selector_events"]
        _watch(transport._SelectorSocketTransport, _of_transport)  # noqa: SLF001
    if "asyncio.sslproto" in modules:
        sslproto: Any = modules["asyncio.sslproto"]
        _watch(sslproto._SSLProtocolTransport, _of_tls)  # noqa: SLF001
    if "asyncio.streams" in modules:
        streams: Any = modules["asyncio.streams"]
        _watch(streams.StreamWriter, _of_foreign_stream)


def closing(data: bytes) -> bytes:
    """The begin of an answer, with ``Connection: close`` in its head.

    Args:
        data: At least its status line; else it comes back as it is.
    """
    first, end, rest = data.partition(b"\r\n")
    status = first.split(b" ", 2)[1:2]
    if not end or not status or len(status[0]) != 3 or status[0].startswith(b"1"):
        return data  # an interim answer, or a WebSocket's handshake
    if rest.startswith(b"\r\n"):  # no further line in its head
        return first + end + _CLOSE + rest
    size = rest.find(b"\r\n\r\n") + 2
    head, body = (rest[:size], rest[size:]) if size > 1 else (rest, b"")
    lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return first + end + _CLOSE + b"\r\n".join(kept) + body


def _watch(owner: Any, descriptor_of: Callable[[Any], int | None]) -> None:
    """Look at what ``owner``'s objects write, where there is a server's connection beneath."""
    write, writelines = owner.write, owner.writelines

    def closing_write(self: Any, data: Any) -> None:
        write(self, _looked_at(self, data, descriptor_of))

    def closing_writelines(self: Any, parts: Any) -> None:
        first, *rest = list(parts) or [b""]
        writelines(self, [_looked_at(self, first, descriptor_of), *rest])

    owner.write = closing_write
    owner.writelines = closing_writelines


def _looked_at(writer: Any, data: Any, descriptor_of: Callable[[Any], int | None]) -> Any:
    fd = descriptor_of(writer)
    if fd is None or not _begins_answer(writer, fd) or bytes(data[:7]) != b"HTTP/1.":
        return data
    return closing(bytes(data))


def _begins_answer(writer: Any, fd: int) -> bool:
    """Has anything come since the last write? Unknown is no: the next answer will show it."""
    seen = connections.look(fd)
    if seen is None or seen.received is None:
        return False
    before = _came.get(writer)
    _came[writer] = seen.received
    return bool(seen.unanswered) if before is None else seen.received != before


# -- whose connection, if a server's; by private names, as they are from 3.11 to 3.14 ---------


def _of_transport(transport: Any) -> int | None:
    return None if transport._server is None else int(transport._sock_fd)  # noqa: SLF001


def _of_tls(transport: Any) -> int | None:
    beneath = transport._ssl_protocol._transport  # noqa: SLF001
    if getattr(beneath, "_server", None) is None:
        return None
    return _of_transport(beneath)


def _of_foreign_stream(writer: Any) -> int | None:
    """A stream on a loop that is not asyncio's own, whose transport sees nothing of this."""
    base: Any = sys.modules["asyncio.base_events"]
    if isinstance(writer._loop, base.BaseEventLoop):  # noqa: SLF001
        return None
    if writer._protocol._client_connected_cb is None:  # noqa: SLF001  # a client's
        return None
    sock = writer.get_extra_info("socket")
    return None if sock is None else int(sock.fileno())
