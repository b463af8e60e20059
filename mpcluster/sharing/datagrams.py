"""Shared UDP and unix datagram sockets: waiting in Python for those that block.

To patch ``recv`` of every socket in a worker would tax every connection, so a shared
datagram socket changes its class instead. What cannot change (a subclass with a layout
of its own, gevent's) waits by its own means.
"""

from __future__ import annotations

import _socket
from typing import Any

from . import copies, real, waiting

__all__ = ["SharedDatagram", "adopt", "restore"]


def _waiting_call(name: str, *, writing: bool = False) -> Any:
    call = getattr(_socket.socket, name)

    def method(self: SharedDatagram, *args: Any, **kwargs: Any) -> Any:
        copy = copies.find(real.fileno(self))
        if copy is None:
            return call(self, *args, **kwargs)
        return waiting.attempt(copy, lambda: call(self, *args, **kwargs), writing=writing)

    method.__name__ = name
    method.__doc__ = call.__doc__
    return method


class SharedDatagram(real.Socket):
    """A datagram socket that other processes read as well."""

    __slots__ = ()

    recv = _waiting_call("recv")
    recv_into = _waiting_call("recv_into")
    recvfrom = _waiting_call("recvfrom")
    recvfrom_into = _waiting_call("recvfrom_into")
    recvmsg = _waiting_call("recvmsg")
    recvmsg_into = _waiting_call("recvmsg_into")
    send = _waiting_call("send", writing=True)
    sendall = _waiting_call("send", writing=True)  # a datagram goes whole or not at all
    sendto = _waiting_call("sendto", writing=True)
    sendmsg = _waiting_call("sendmsg", writing=True)


def adopt(sock: _socket.socket) -> bool:
    """Let a plain socket wait in Python from now on; ``False`` if its class forbids it."""
    if type(sock) is not real.Socket:
        return isinstance(sock, SharedDatagram)
    sock.__class__ = SharedDatagram
    return True


def restore(sock: _socket.socket) -> None:
    """Undo :func:`adopt`."""
    if type(sock) is SharedDatagram:
        sock.__class__ = real.Socket  # type: ignore[assignment]
