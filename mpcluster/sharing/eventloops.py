"""Telling event loops from threads, and teaching asyncio not to be greedy."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported

from . import copies

__all__ = ["accept_few", "accepts_in_c", "is_running"]


def _running_loop() -> object | None:
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()  # noqa: SLF001


def is_running() -> bool:
    """Does an asyncio loop (of whatever make) run in this thread?"""
    return _running_loop() is not None


def accepts_in_c() -> bool:
    """Does a loop run here that binds through Python, but listens and accepts in C (uvloop)?"""
    loop = _running_loop()
    if loop is None:
        return False
    base = sys.modules.get("asyncio.base_events")
    return base is None or not isinstance(loop, base.BaseEventLoop)


#: Connections that asyncio accepts at one wake-up. Measured on a bare asyncio server with a
#: new connection a request, processor time a connection beside a server with sockets of its
#: own: 1 → 1.47, 4 → 1.02, 8 → 1.01, no limit → 1.10.
_AT_ONCE = 4


def accept_few() -> None:
    """Let asyncio accept few connections a wake-up from shared listeners.

    By itself it takes up to ``backlog`` at once: one worker then takes a whole burst, and
    a worker that is killed has more in hand.
    """
    when_imported("asyncio.selector_events", _patch)


def _patch(module: ModuleType) -> None:
    loop_class = module.BaseSelectorEventLoop
    accept_connection = loop_class._accept_connection  # noqa: SLF001

    # The signature of 3.11 to 3.14; what follows `backlog` differs and is passed on.
    def _accept_connection(  # noqa: PLR0917
        self: Any,
        protocol_factory: Any,
        sock: Any,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        *rest: Any,
        **named: Any,
    ) -> None:
        if sock.fileno() in copies.table:
            backlog = min(backlog, _AT_ONCE)
        accept_connection(self, protocol_factory, sock, sslcontext, server, backlog, *rest, **named)

    loop_class._accept_connection = _accept_connection  # noqa: SLF001
