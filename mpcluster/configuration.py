"""The settings of a cluster: one frozen record, replaced as a whole.

A worker takes the record that is in force when it is forked, and keeps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from mpcluster.arguments import check_number

__all__ = ["Changes", "Settings", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What :func:`mpcluster.setup` sets.

    Attributes:
        scheduling: How connections are spread: ``"auto"``, ``"shared"``, ``"slots"``,
            ``"round_robin"``, ``"least_connections"``, ``"ip_hash"``, or a policy object
            (:mod:`mpcluster.scheduling`).
        kill_timeout: Seconds between a SIGTERM that is not followed and the SIGKILL.
        channel_limit: Bytes that may wait for a worker that does not read.
        send_timeout: Seconds that a ``send()`` past that limit waits for a reader that
            takes nothing at all, before it raises.
        listener_grace: Seconds that a listener stays open after its last user crashed.
        max_connections: Connections of one listener that one worker may have open at once;
            more wait, for any worker that has room. None: as many as come.
    """

    scheduling: object = "auto"
    kill_timeout: float = 5.0
    channel_limit: int = 64 * 1024 * 1024
    send_timeout: float = 30.0
    listener_grace: float = 30.0
    max_connections: int | None = None

    def __post_init__(self) -> None:
        for name in ("kill_timeout", "send_timeout", "listener_grace"):
            check_number(name, getattr(self, name), "seconds", (int, float))
        check_number("channel_limit", self.channel_limit, "bytes", (int,))
        if self.channel_limit < 1:
            raise ValueError(f"channel_limit must be at least 1 byte, not {self.channel_limit}")
        if self.max_connections is not None:
            check_number("max_connections", self.max_connections, "connections", (int,))
            if self.max_connections < 1:
                raise ValueError(
                    f"max_connections must be at least 1, not {self.max_connections}; "
                    "None sets no limit"
                )


class Changes(TypedDict, total=False):
    """The settings to change; see :class:`Settings`."""

    scheduling: object
    kill_timeout: float
    channel_limit: int
    send_timeout: float
    listener_grace: float
    max_connections: int | None


def changed(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """Return ``settings`` with ``changes``; a wrong name is refused with the list of right ones.

    Raises:
        TypeError: There is no such setting, or a value is of a wrong type.
        ValueError: A value is out of range.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    for name in changes:
        if name not in names:
            raise TypeError(f"there is no setting {name!r}; there are: {', '.join(names)}")
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
