"""Servers that need only be made to say ``Connection: close`` while the worker drains.

tornado, waitress and gevent's pywsgi. The kernel's clocks say when their connections are
idle, and they end with the program.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported

from . import state

__all__ = ["install"]


def install() -> None:
    """Adapt each, if and when the program imports it."""
    when_imported("tornado.http1connection", _tornado)
    when_imported("waitress.task", _waitress)
    when_imported("gevent.pywsgi", _gevent)


def _tornado(module: ModuleType) -> None:
    connection_class: Any = module.HTTP1Connection
    write_headers = connection_class.write_headers

    def closing_write_headers(self: Any, start_line: Any, *args: Any, **kwargs: Any) -> Any:
        # 101 is a WebSocket's handshake; a client's start line has no code.
        if state.has_begun() and not self.is_client and start_line.code >= 200:
            self._disconnect_on_finish = True
        return write_headers(self, start_line, *args, **kwargs)

    connection_class.write_headers = closing_write_headers


def _waitress(module: ModuleType) -> None:
    task_class: Any = module.Task
    build_response_header = task_class.build_response_header

    def closing_build_response_header(self: Any) -> bytes:
        if state.has_begun():
            self.set_close_on_finish()
        header: bytes = build_response_header(self)
        return header

    task_class.build_response_header = closing_build_response_header


def _gevent(module: ModuleType) -> None:
    handler_class: Any = module.WSGIHandler
    finalize_headers = handler_class.finalize_headers

    def closing_finalize_headers(self: Any) -> None:
        if state.has_begun() and self.code >= 200:
            self.close_connection = True
            kept = [pair for pair in self.response_headers if pair[0].lower() != b"connection"]
            self.response_headers = [*kept, (b"Connection", b"close")]
        finalize_headers(self)

    handler_class.finalize_headers = closing_finalize_headers
