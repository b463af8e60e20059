"""Which files have changed since the last look: `--watch`.

Looked at, not told of by the kernel: that works on every file system, in containers and on
network shares, and costs a stat a file, in the master's main thread, which has nothing else
to do. A change counts when two looks in a row see the same, so that a file is not read half
written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

__all__ = ["INTERVAL", "Files"]

#: Seconds between two looks.
INTERVAL: Final = 0.5

#: Directories that hold nobody's own source; and all whose name begins with a dot.
_OTHERS: Final = frozenset({"__pycache__", "node_modules", "site-packages"})

_State: TypeAlias = dict[str, tuple[int, int, int]]


class Files:
    """The Python files below some directories, and any file that is named itself.

    Args:
        paths: Where to look. What is not there yet may come.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = list(dict.fromkeys(map(os.path.abspath, paths)))
        self._settled = self._last = self._look()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._settled)} in {self._paths}>"

    def changed(self) -> list[str]:
        """Look; return what has changed, come or gone, once that has come to rest."""
        seen = self._look()
        if seen != self._last:
            self._last = seen
            return []
        before, self._settled = self._settled, seen
        if before is seen or before == seen:
            return []
        return sorted(
            path for path in before.keys() | seen.keys() if before.get(path) != seen.get(path)
        )

    def _look(self) -> _State:
        state: _State = {}
        for path in self._paths:
            for file in [path] if os.path.isfile(path) else _sources(path):
                try:
                    found = os.stat(file)
                except OSError:
                    continue  # gone in between
                state[file] = found.st_mtime_ns, found.st_size, found.st_ino
        return state


def _sources(directory: str) -> Iterator[str]:
    for where, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if _is_own(os.path.join(where, name), name)]
        for name in files:
            if name.endswith(".py"):
                yield os.path.join(where, name)


def _is_own(path: str, name: str) -> bool:
    is_environment = os.path.exists(os.path.join(path, "pyvenv.cfg"))
    return not (name.startswith(".") or name in _OTHERS or is_environment)
