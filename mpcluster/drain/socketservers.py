"""Draining ``socketserver`` and ``http.server``, and what stands on them: wsgiref, werkzeug.

A request is under way from ``finish_request`` to its end, in whatever thread. On an HTTP
connection that is kept alive it ends earlier: while the handler waits for the next request
line nothing is under way, and the connection may be let go. Every response that starts
after the drain began says ``Connection: close``, so its client knows.
"""

from __future__ import annotations

import threading
import weakref
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing import connections
from mpcluster.sharing.connections import Connection

from . import state

__all__ = ["SocketServers", "install"]


class SocketServers:
    """The running servers and their handlers.

    Without a lock: each change is one operation on a dict or set, by the thread that
    serves; the drain's thread takes copies.
    """

    def __init__(self) -> None:
        self.serving: weakref.WeakSet[Any] = weakref.WeakSet()
        self.in_main_thread = False
        self.handling: dict[int, Any] = {}
        self.datagrams: set[object] = set()
        self.awaiting: set[int] = set()  # descriptors on which the next request may come

    def is_serving(self) -> bool:
        """Does any ``serve_forever()`` run?"""
        return len(self.serving) > 0

    def patience(self, connection: Connection) -> float | None:
        """As :class:`~.adapter.Adapter` has it."""
        if connection.fd in self.awaiting:
            return state.IDLE
        server = self.handling.get(connection.fd)
        if server is None:
            return None
        # A handler that reads its first request in a way of its own (wsgiref).
        return state.patience(between_requests=not connection.received and _is_http(server))

    def is_busy(self) -> bool:
        """Datagrams that are being answered, and forked children."""
        children = [getattr(server, "active_children", None) for server in list(self.serving)]
        return bool(self.datagrams) or any(children)

    def end(self) -> bool:
        """Let the silent connections go, then end every ``serve_forever()``."""
        waiting = set(self.awaiting) | set(self.handling)
        for connection in connections.in_hand():
            if connection.fd in waiting:
                connections.stop_reading(connection)
        for server in list(self.serving):
            server.shutdown()
        return self.in_main_thread


def _is_http(server: Any) -> bool:
    handler = getattr(server, "RequestHandlerClass", None)
    return any(
        base.__name__ == "BaseHTTPRequestHandler" for base in getattr(handler, "__mro__", ())
    )


def install(servers: SocketServers) -> None:
    """Have the servers of this process counted, from when their modules are imported."""
    when_imported("socketserver", lambda module: _watch_servers(module, servers))
    when_imported("http.server", lambda module: _watch_http(module, servers))


def _watch_servers(module: ModuleType, servers: SocketServers) -> None:
    base: Any = module.BaseServer
    serve_forever, finish_request = base.serve_forever, base.finish_request

    def counted_serve_forever(self: Any, poll_interval: float = 0.5) -> None:
        servers.serving.add(self)
        if threading.current_thread() is threading.main_thread():
            servers.in_main_thread = True
        try:
            serve_forever(self, poll_interval)
        finally:
            servers.serving.discard(self)

    def counted_finish_request(self: Any, request: Any, client_address: Any) -> None:
        if isinstance(request, tuple):  # a datagram and the socket to answer on
            token = object()
            servers.datagrams.add(token)
            try:
                finish_request(self, request, client_address)
            finally:
                servers.datagrams.discard(token)
            return
        fd = request.fileno()
        servers.handling[fd] = self
        try:
            finish_request(self, request, client_address)
        finally:
            servers.handling.pop(fd, None)

    base.serve_forever = counted_serve_forever
    base.finish_request = counted_finish_request


def _watch_http(module: ModuleType, servers: SocketServers) -> None:
    handler: Any = module.BaseHTTPRequestHandler
    handle_one_request, parse_request = handler.handle_one_request, handler.parse_request
    end_headers = handler.end_headers

    def watched_handle_one_request(self: Any) -> None:
        fd = self.connection.fileno()
        servers.awaiting.add(fd)
        try:
            handle_one_request(self)
        finally:
            servers.awaiting.discard(fd)

    def watched_parse_request(self: Any) -> bool:
        servers.awaiting.discard(self.connection.fileno())
        parsed: bool = parse_request(self)
        return parsed

    def closing_end_headers(self: Any) -> None:
        if state.has_begun():
            _say_close(self)
        end_headers(self)

    handler.handle_one_request = watched_handle_one_request
    handler.parse_request = watched_parse_request
    handler.end_headers = closing_end_headers


def _say_close(handler: Any) -> None:
    lines = getattr(handler, "_headers_buffer", None)
    if not lines or handler.request_version == "HTTP/0.9":
        return
    status = lines[0].split(None, 2)
    if len(status) > 1 and status[1].startswith(b"1"):
        return  # 100 Continue: the response is yet to come
    lines[1:] = [line for line in lines[1:] if not line.lower().startswith(b"connection:")]
    handler.send_header("Connection", "close")
