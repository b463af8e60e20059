"""The settings of a cluster: one frozen record, replaced as a whole.

A worker takes the record that is in force when it is forked, and keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypedDict

from mpcluster.arguments import check_number

__all__ = ["Changes", "Settings", "changed"]


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
        share: What a worker that shares its ports shares: ``"python"``, the sockets that
            Python binds; ``"kernel"``, those that C or Rust code binds, too
            (``docs/sockets.md``).
    """

    # No dataclass: the module behind those is a megabyte, of which each fork copies the tables.
    __slots__ = (
        "channel_limit",
        "kill_timeout",
        "listener_grace",
        "max_connections",
        "scheduling",
        "send_timeout",
        "share",
    )

    scheduling: object
    kill_timeout: float
    channel_limit: int
    send_timeout: float
    listener_grace: float
    max_connections: int | None
    share: str

    def __init__(
        self,
        *,
        scheduling: object = "auto",
        kill_timeout: float = 5.0,
        channel_limit: int = 64 * 1024 * 1024,
        send_timeout: float = 30.0,
        listener_grace: float = 30.0,
        max_connections: int | None = None,
        share: str = "python",
    ) -> None:
        check_number("kill_timeout", kill_timeout, "seconds")
        check_number("send_timeout", send_timeout, "seconds")
        check_number("listener_grace", listener_grace, "seconds")
        check_number("channel_limit", channel_limit, "bytes", (int,))
        if channel_limit < 1:
            raise ValueError(f"channel_limit must be at least 1 byte, not {channel_limit}")
        if max_connections is not None:
            check_number("max_connections", max_connections, "connections", (int,))
            if max_connections < 1:
                raise ValueError(
                    f"max_connections must be at least 1, not {max_connections}; None sets no limit"
                )
        if not isinstance(share, str):
            raise TypeError(f"share must be one of {', '.join(SHARES)}, not {share!r}")
        if share not in SHARES:
            raise ValueError(f"share must be one of {', '.join(SHARES)}, not {share!r}")
        put = super().__setattr__
        put("scheduling", scheduling)
        put("kill_timeout", kill_timeout)
        put("channel_limit", channel_limit)
        put("send_timeout", send_timeout)
        put("listener_grace", listener_grace)
        put("max_connections", max_connections)
        put("share", share)

    def _values(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in NAMES}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are changed by setup({name}={value!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} is a setting, and stays")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._values().items())
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __reduce__(self) -> tuple[object, ...]:
        return changed, (None, self._values())


#: What can be shared.
SHARES: Final = ("python", "kernel")

#: The settings that there are, in the order in which they are shown.
NAMES: Final = (
    "scheduling",
    "kill_timeout",
    "channel_limit",
    "send_timeout",
    "listener_grace",
    "max_connections",
    "share",
)


class Changes(TypedDict, total=False):
    """The settings to change; see :class:`Settings`."""

    scheduling: object
    kill_timeout: float
    channel_limit: int
    send_timeout: float
    listener_grace: float
    max_connections: int | None
    share: str


def changed(settings: Settings | None, changes: Mapping[str, object]) -> Settings:
    """Return ``settings`` (None: the defaults) with ``changes``.

    A wrong name is refused with the list of right ones.

    Raises:
        TypeError: There is no such setting, or a value is of a wrong type.
        ValueError: A value is out of range.
    """
    for name in changes:
        if name not in NAMES:
            raise TypeError(f"there is no setting {name!r}; there are: {', '.join(NAMES)}")
    present = {} if settings is None else settings._values()  # noqa: SLF001
    return Settings(**{**present, **changes})  # type: ignore[arg-type]
