"""Values as people write them: ``30``, ``"1.5m"``, ``"500M"``, ``"auto"``.

Each takes a text from the command line, or a value from a settings file, and raises
ValueError with the form that it wants.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

__all__ = ["count", "flag", "seconds", "size", "text", "texts", "workers"]

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def seconds(value: object) -> float:
    """A length of time: seconds, or with one of s, m, h, d behind the number."""
    found = _amount(value, lambda unit: _SECONDS.get(unit.lower()))
    if found is None:
        raise ValueError(f"a time is a number of seconds, or as 90s, 5m, 1.5h, 2d; not {value!r}")
    return found


def size(value: object) -> int:
    """An amount of memory: bytes, or with one of K, M, G, T behind the number (1024 each)."""
    found = _amount(value, lambda unit: _BYTES.get(unit.upper().removesuffix("IB").rstrip("B")))
    if found is None:
        raise ValueError(f"a size is a number of bytes, or as 500M, 1.5G; not {value!r}")
    return int(found)


def count(value: object) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    raise ValueError(f"a whole number is wanted, not {value!r}")


def workers(value: object) -> int:
    """How many workers: 1 or more, or ``auto``: one for each processor that there is for us."""
    if value == "auto":
        return len(os.sched_getaffinity(0))
    try:
        number = count(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"the number of workers is 1 or more, or auto; not {value!r}")
    return number


def text(value: object) -> str:
    """Some text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"a text is wanted, not {value!r}")


def texts(value: object) -> list[str]:
    """One text or several."""
    return [text(one) for one in (value if isinstance(value, list) else [value])]


def flag(value: object) -> bool:
    """Yes or no; of a settings file alone."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"true or false is wanted, not {value!r}")


def _amount(value: object, factor_of: Callable[[str], int | None]) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if value >= 0 else None
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    factor = None if match is None else factor_of(match[2])
    return None if match is None or factor is None else float(match[1]) * factor
