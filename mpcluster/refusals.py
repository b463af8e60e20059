"""Why a channel takes no message: the errors, with what whoever reads them needs to know."""

from __future__ import annotations

import errno

from mpcluster.errors import ChannelClosedError, ChannelFullError

__all__ = ["closed", "full", "gone"]


def closed(label: str) -> ChannelClosedError:
    """This side has closed it."""
    return ChannelClosedError(errno.EPIPE, f"the channel to {label} is closed")


def gone(label: str, error: OSError | None = None) -> ChannelClosedError:
    """The other side has; ``error`` is what the kernel said."""
    why = "" if error is None else f" ({error.strerror})"
    text = f"{label} has closed its end of the channel, or is dead{why}"
    return ChannelClosedError(errno.EPIPE, text)


def full(label: str, waiting: int, lent: int, how_long: str) -> ChannelFullError:
    """The other side reads nothing, and this much waits for it already (bytes)."""
    text = (
        f"{label} does not read: {waiting} bytes wait for it and {lent} bytes "
        f"of shared memory are not taken over, {how_long}"
    )
    return ChannelFullError(errno.EAGAIN, text)
