"""The settings of a cluster: one frozen record, replaced as a whole.

A worker takes the record that is in force when it is forked, and keeps it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Settings", "changed"]


class Settings:
    """What :func:`mpcluster.setup` sets.

    Attributes:
        scheduling: How connections are spread: ``"auto"``, ``"shared"``, ``"slots"``, or
            a policy object (:mod:`mpcluster.scheduling`).
        kill_timeout: Seconds between a SIGTERM that is not followed and the SIGKILL.
        channel_limit: Bytes that may wait for a worker that does not read.
        send_timeout: Seconds that a ``send()`` past that limit waits for a reader that
            takes nothing at all, before it raises.
        listener_grace: Seconds that a listener stays open after its last user crashed.
    """

    # No dataclass: the module behind those is a megabyte, of which each fork copies the tables.
    __slots__ = ("channel_limit", "kill_timeout", "listener_grace", "scheduling", "send_timeout")

    scheduling: object
    kill_timeout: float
    channel_limit: int
    send_timeout: float
    listener_grace: float

    def __init__(
        self,
        *,
        scheduling: object = "auto",
        kill_timeout: float = 5.0,
        channel_limit: int = 64 * 1024 * 1024,
        send_timeout: float = 30.0,
        listener_grace: float = 30.0,
    ) -> None:
        _check_number("kill_timeout", kill_timeout, "seconds", (int, float))
        _check_number("send_timeout", send_timeout, "seconds", (int, float))
        _check_number("listener_grace", listener_grace, "seconds", (int, float))
        _check_number("channel_limit", channel_limit, "bytes", (int,))
        if channel_limit < 1:
            raise ValueError(f"channel_limit must be at least 1 byte, not {channel_limit}")
        put = super().__setattr__
        put("scheduling", scheduling)
        put("kill_timeout", kill_timeout)
        put("channel_limit", channel_limit)
        put("send_timeout", send_timeout)
        put("listener_grace", listener_grace)

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


#: The settings that there are, in the order in which they are shown.
NAMES: Final = ("scheduling", "kill_timeout", "channel_limit", "send_timeout", "listener_grace")


def _check_number(name: str, value: object, unit: str, types: tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name} must be a number of {unit}, not {value!r}")
    if not value >= 0:  # type: ignore[operator]  # NaN fails this one too
        raise ValueError(f"{name} must not be negative, not {value!r} {unit}")


def changed(settings: Settings | None, changes: dict[str, object]) -> Settings:
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
