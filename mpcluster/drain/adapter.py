"""What a drain asks of a kind of server that it knows.

An adapter is a module-like object, one for each library, installed in a worker when its
program imports that library. All methods are called in the drain's own thread.
"""

from __future__ import annotations

from typing import Protocol

from mpcluster.sharing.connections import Connection

__all__ = ["Adapter"]


class Adapter(Protocol):
    """A kind of server."""

    def is_serving(self) -> bool:
        """Does a server of this kind run in this process?"""

    def patience(self, connection: Connection) -> float | None:
        """After how many seconds of silence may it be closed?

        ``state.NEVER`` while a request is under way; ``None``: it is not mine, or I cannot
        tell.
        """

    def is_busy(self) -> bool:
        """Is there work that no connection shows?"""

    def end(self) -> bool:
        """Nothing is under way any more: stop the servers.

        Returns:
            Whether the program's main thread goes on from there, and ends by itself.
        """
