"""`mpcluster top`: the workers on the terminal, once a second, until `q` or Ctrl-C.

Needs `rich` (``mpcluster[monitor]``). What it shows is what `status --json` tells.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import asking
from .errors import FAILED, CommandError
from .report import duration

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["screen", "show"]

#: Seconds between two looks.
INTERVAL: Final = 1.0


def show(path: Path) -> int:
    """Show the master at this path until it ends, or until the user has seen enough.

    Raises:
        CommandError: `rich` is missing; nobody answers there; this is no terminal.
    """
    with asking.connected(path) as line:
        try:
            from rich.live import Live
        except ImportError:
            raise CommandError(
                "top needs rich: pip install 'mpcluster[monitor]' (status shows the same once)",
                FAILED,
            ) from None
        before = line.ask("status")
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise CommandError("top wants a terminal; for a file or a pipe there is status")
        with _keys(), Live(screen(before, None), screen=True, auto_refresh=False) as live:
            while not _is_over():
                now = line.ask("status")
                live.update(screen(now, before), refresh=True)
                before = now
    return 0


def screen(status: dict[str, Any], before: dict[str, Any] | None) -> Table:
    """One look as a table; what is used of the processors is told by the look before it."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{status['program']}: {status['state']}, workers: {status['workers']}, master "
        f"{status['pid']}, for {duration(status['uptime'])}",
        box=box.SIMPLE_HEAD,
        expand=True,
        title_justify="left",
    )
    names = ("slot", "state", "worker", "pid", "uptime", "restarts", "CPU", "memory", "open")
    for name in names:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    table.add_column("trouble", ratio=1)
    seen, elapsed = _workers(status), _elapsed(status, before)
    last = {} if before is None else _workers(before)
    for slot in status["slots"]:
        worker = seen.get(slot["worker_id"], {})
        used = _cpu(worker, last.get(slot["worker_id"], {}), elapsed)
        table.add_row(
            str(slot["slot"]),
            slot["state"],
            _shown(slot["worker_id"]),
            _shown(slot["pid"]),
            "-" if slot["uptime"] is None else duration(slot["uptime"]),
            str(slot["restarts"]),
            "-" if used is None else f"{used:.0%}",
            _megabytes(worker.get("proportional")),
            _shown(worker.get("connections")),
            slot["trouble"] or "",
        )
    return table


def _workers(status: dict[str, Any]) -> dict[int, dict[str, Any]]:
    found = (status.get("snapshot") or {}).get("workers", ())
    return {worker["id"]: worker for worker in found}


def _elapsed(status: dict[str, Any], before: dict[str, Any] | None) -> float:
    now, then = ((one.get("snapshot") or {}).get("clock") for one in (status, before or {}))
    return 0.0 if now is None or then is None else float(now - then)


def _cpu(worker: dict[str, Any], before: dict[str, Any], elapsed: float) -> float | None:
    now, then = worker.get("cpu"), before.get("cpu")
    return None if now is None or then is None or elapsed <= 0 else (now - then) / elapsed


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Have single keys come through, unseen; Ctrl-C stays what it is."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _is_over() -> bool:
    """Wait for the next look; was it `q`, or Ctrl-C, instead?"""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], INTERVAL)
        return bool(ready) and os.read(sys.stdin.fileno(), 16)[:1] in {b"q", b"Q", b"\x04", b""}
    except KeyboardInterrupt:
        return True
