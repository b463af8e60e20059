"""What users hand over, looked at before anything is done: each error names the argument.

Any process; nothing is opened.
"""

from __future__ import annotations

import os
import signal as _signal
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "call",
    "check_count",
    "check_number",
    "check_signal",
    "check_timeout",
    "directory",
    "environment",
]


def check_number(
    name: str,
    value: object,
    unit: str,
    types: tuple[type, ...] = (int, float),
    *,
    least: float = 0,
) -> None:
    """Raise unless ``value`` is a number from ``least`` on.

    Raises:
        TypeError: It is no number.
        ValueError: It is less, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name} must be a number of {unit}, not {value!r}")
    if not value >= least:  # type: ignore[operator]  # NaN fails this one too
        raise ValueError(f"{name} must not be negative, not {value!r} {unit}")


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise unless ``value`` is a whole number from ``least`` on.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_timeout(timeout: object, *, least: float = 0) -> None:
    """Raise unless it is None, or seconds from ``least`` on; as :func:`check_number`."""
    if timeout is not None:
        check_number("timeout", timeout, "seconds", least=least)


def check_signal(signal: object) -> None:
    """Raise unless the system may have a signal of this number (0 only asks for the process).

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if isinstance(signal, bool) or not isinstance(signal, int):
        raise TypeError(f"signal must be a number, as signal.SIGTERM, not {signal!r}")
    if not 0 <= signal < _signal.NSIG:
        raise ValueError(f"there is no signal {signal}: the last is {_signal.NSIG - 1}")


def call(args: object, kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` of a call, as a tuple and a dict of their own.

    Raises:
        TypeError: They cannot be the arguments of a call.
    """
    if not isinstance(args, Iterable):
        raise TypeError(f"args must be a tuple of arguments, not {args!r}; one alone: ({args!r},)")
    if kwargs is None:
        return tuple(args), {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs must map names of arguments to values, not {kwargs!r}")
    return tuple(args), dict(kwargs)


def directory(cwd: object) -> str | None:
    """Return the path of a working directory, which need not be there yet.

    Raises:
        TypeError: It is no path.
    """
    if cwd is None:
        return None
    if not isinstance(cwd, (str, bytes, os.PathLike)):
        raise TypeError(f"cwd must be a path, not {cwd!r}")
    return os.fsdecode(cwd)


def environment(env: object) -> dict[str, str]:
    """Return a copy of what is to be set in a process's environment.

    Raises:
        TypeError: It does not map strings to strings.
        ValueError: No environment can have such a name or value.
    """
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"env maps names to strings, and is not {env!r}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env maps names to strings, not {name!r} to {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"{name!r}: {value!r} is no name and value of an environment")
    return dict(env)
