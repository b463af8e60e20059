"""The other side of the control socket: how ``status`` and its like ask a master."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from .control import peer
from .errors import FAILED, NOBODY_THERE, CommandError

__all__ = ["Line", "ask", "connected"]

#: Seconds in which a master accepts and answers what needs no waiting.
PATIENCE: Final = 10.0


class Line:
    """A connection to a master."""

    def __init__(self, sock: socket.socket, reader: BinaryIO, path: Path) -> None:
        self._socket = sock
        self._reader = reader
        self._path = path

    def ask(self, do: str, *, patient: bool = False, **more: object) -> dict[str, Any]:
        """Ask, and return the answer.

        Args:
            do: What.
            patient: It may take as long as it takes.
            more: What belongs to it.

        Raises:
            CommandError: The master refuses, does not answer, or has gone.
        """
        self._socket.settimeout(None if patient else PATIENCE)
        try:
            self._socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            line = self._reader.readline()
        except TimeoutError:
            raise CommandError(
                f"the master at {self._path} does not answer for {PATIENCE:g} s", FAILED
            ) from None
        except OSError:
            line = b""
        if not line:
            raise CommandError(
                f"the master at {self._path} has hung up without an answer: it has ended, or "
                "this user may not ask it",
                FAILED,
            )
        answer: dict[str, Any] = json.loads(line)
        if not answer.get("ok"):
            raise CommandError(str(answer.get("error")), FAILED)
        return answer

    def wait_for_end(self) -> None:
        """Return when the master has hung up."""
        self._socket.settimeout(None)
        try:
            while self._reader.readline():
                pass
        except OSError:
            pass  # reset: it has ended


@contextmanager
def connected(path: Path) -> Iterator[Line]:
    """Connect to the master at this path.

    Raises:
        CommandError: Nobody answers there, or this user may not ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, sock.makefile("rb") as reader:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise CommandError(
                f"no master answers at {path}: it does not run", NOBODY_THERE
            ) from None
        except OSError as error:
            raise CommandError(f"the master at {path} cannot be asked: {error}", FAILED) from None
        owner = peer(sock)[1]
        if os.getuid() != 0 and owner not in {0, os.getuid()}:
            raise CommandError(f"who answers at {path} is user {owner}, not this one", FAILED)
        yield Line(sock, reader, path)


def ask(path: Path, do: str, *, patient: bool = False, **more: object) -> dict[str, Any]:
    """Ask the master at this path one thing; as :meth:`Line.ask`."""
    with connected(path) as line:
        return line.ask(do, patient=patient, **more)
