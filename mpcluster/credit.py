"""How much memfd memory the other side of a channel still has to take over.

Such memory is the kernel's, and no buffer of a socket bounds it: each message says to the
sender, by an acknowledgement, when its memory has been taken over.
"""

from __future__ import annotations

import threading

__all__ = ["Credit"]


class Credit:
    """What one sender has lent. All but :meth:`wait` is done under the channel's lock.

    Args:
        limit: Bytes that may be lent at once; more only where nothing else is.
        lock: The channel's. :meth:`wait` gives it up meanwhile.
    """

    def __init__(self, limit: int, lock: threading.RLock) -> None:
        self.limit = limit
        #: Bytes that the other side has not yet taken over.
        self.lent = 0
        #: Bytes that it ever has: it only grows, so a sender sees whether anything moves.
        self.returned = 0
        self._changed = threading.Condition(lock)

    def covers(self, size: int) -> bool:
        """May so many bytes more be lent?"""
        return not self.lent or self.lent + size <= self.limit

    def give_back(self, size: int) -> None:
        """Take note that the other side has taken over ``size`` bytes, or never got them."""
        self.lent = max(0, self.lent - size)
        self.returned += size
        self.wake()

    def wait(self, seconds: float) -> None:
        """Wait, with the lock given up, until something changes, no longer than ``seconds``."""
        self._changed.wait(seconds)

    def wake(self) -> None:
        """Let those who wait look again: the channel has ended, or credit has come."""
        self._changed.notify_all()
