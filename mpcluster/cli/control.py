"""Where the master can be asked: a unix socket, an object in JSON a line, either way.

Only this user and root are answered: the socket's mode says so (0600), and so do the
credentials that the kernel has of whoever connects. What a dead master has left at the path
is taken over when nobody answers there.

::

    → {"do": "scale", "workers": 6}
    ← {"ok": true, "workers": 6}
    ← {"ok": false, "error": "there is no order 'jump'; there are: …"}

Everything here runs in the watcher's thread, without waiting for anybody.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from mpcluster import descriptors, watcher
from mpcluster.logs import logger
from mpcluster.unixpath import UnixPath, bind_path

from .errors import FAILED, CommandError

__all__ = ["Answer", "Control", "Obey", "peer"]

#: Bytes of one request, and connections at once; of one user's own tools.
LONGEST: Final = 64 * 1024
MOST: Final = 64

#: Called with what is said back; more than once, where there is more to say.
Answer: TypeAlias = Callable[[dict[str, Any]], None]
#: Called with a request and the way to answer.
Obey: TypeAlias = Callable[[dict[str, Any], Answer], None]


class Control:
    """The control socket of this master.

    Args:
        path: Where.
        obey: Called for each request; what it raises is the answer.

    Raises:
        CommandError: A living master answers there, or the path cannot be had.
    """

    def __init__(self, path: Path, obey: Obey) -> None:
        self.path = path
        self._obey = obey
        self._connections: dict[int, _Connection] = {}
        with descriptors.opening():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            descriptors.own(self._socket)
        try:
            self._held: UnixPath | None = bind_path(self._socket, str(path.absolute()), 0o600)
            self._socket.listen(16)
            self._socket.setblocking(False)  # noqa: FBT003
        except OSError as error:
            descriptors.close(self._socket)
            raise _refusal(path, error) from None
        watcher.current().add(self._socket.fileno(), lambda _: self._accept())

    def release(self) -> None:
        """Listen no more, and let somebody else have the path; who is connected stays so."""
        if self._socket.fileno() >= 0:
            watcher.current().remove(self._socket.fileno())
            descriptors.close(self._socket)
        if self._held is not None:
            self._held.remove()
            self._held = None

    def close(self) -> None:
        """Listen no more, and hang up."""
        self.release()
        for connection in list(self._connections.values()):
            connection.close()

    def _accept(self) -> None:
        try:
            with descriptors.opening():
                accepted, _ = self._socket.accept()
                descriptors.own(accepted)
        except OSError:
            return  # gone already, or no descriptor is left
        if len(self._connections) >= MOST or not _is_allowed(accepted):
            descriptors.close(accepted)
            return
        accepted.setblocking(False)  # noqa: FBT003
        fd = accepted.fileno()
        self._connections[fd] = _Connection(
            accepted, self._obey, lambda: self._connections.pop(fd, None)
        )


class _Connection:
    """Somebody who asks."""

    def __init__(self, sock: socket.socket, obey: Obey, on_end: Callable[[], object]) -> None:
        self._socket = sock
        self._obey = obey
        self._on_end = on_end
        self._heard = b""
        self._to_say = b""
        watcher.current().add(sock.fileno(), self._on_ready)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            watcher.current().remove(self._socket.fileno())
            descriptors.close(self._socket)
            self._on_end()

    def _on_ready(self, events: int) -> None:
        if events & watcher.WRITABLE:
            self._say()
        if events & watcher.READABLE:
            self._hear()

    def _hear(self) -> None:
        try:
            piece = self._socket.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        *requests, self._heard = (self._heard + piece).split(b"\n")
        for request in requests:
            self._deal_with(request)
        if not piece or len(self._heard) > LONGEST:
            self.close()

    def _deal_with(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError('a request is an object, as {"do": "status"}')  # noqa: TRY004
            self._obey(request, self._answer)
        except (ValueError, TypeError, CommandError) as error:
            self._answer({"ok": False, "error": str(error)})
        except Exception as error:  # noqa: BLE001  # ours to mend; the master goes on
            logger().exception("at the order %r", line)
            self._answer({"ok": False, "error": f"{type(error).__name__}: {error}"})

    def _answer(self, said: dict[str, Any]) -> None:
        self._to_say += json.dumps(said).encode() + b"\n"
        self._say()

    def _say(self) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._to_say = self._to_say[self._socket.send(self._to_say) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        more = watcher.WRITABLE if self._to_say else 0
        watcher.current().modify(self._socket.fileno(), watcher.READABLE | more)


def peer(connected: socket.socket) -> tuple[int, int]:
    """Who is at the other end, as the kernel has it: pid and uid."""
    size = struct.calcsize("3i")
    whose = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _gid = struct.unpack("3i", whose)
    return pid, uid


def _is_allowed(connected: socket.socket) -> bool:
    pid, uid = peer(connected)
    if uid in {0, os.geteuid()}:
        return True
    logger().warning("user %d (pid %d) has asked for control, and is refused", uid, pid)
    return False


def _refusal(path: Path, error: OSError) -> CommandError:
    if error.errno == errno.EADDRINUSE:
        return CommandError(
            f"somebody answers at {path} already: does this program run? (mpcluster status "
            f"--control {path}) Another one wants another path: --control PATH",
            FAILED,
        )
    return CommandError(f"no control socket at {path}: {error.strerror or error}; see --control")
