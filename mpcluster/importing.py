"""Do something when a module is imported, and import nothing for its sake.

Servers that a worker's program may use (uvicorn, aiohttp, gevent ...) are adapted only
where the program itself imports them: an adapter costs nothing elsewhere, and mpcluster
depends on none of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["when_imported"]

_log = logging.getLogger("mpcluster")

_waiting: dict[str, list[Callable[[ModuleType], None]]] = {}


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call ``callback(module)`` once: now if the module is there, else after its import.

    A callback that fails is logged and fails no import.
    """
    module = sys.modules.get(name)
    if module is not None and not _being_imported(module):
        _call(callback, module)
        return
    _waiting.setdefault(name, []).append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _call(callback: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        callback(module)
    except Exception:  # noqa: BLE001 -- an adapter that fails must not fail the import
        _log.exception("mpcluster could not adapt %s; it runs as it is", module.__name__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: lets the others find and adds the callbacks to the loader."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                _run_callbacks_after(spec)
                return spec
        return None


def _run_callbacks_after(spec: importlib.machinery.ModuleSpec) -> None:
    loader = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):
        return
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        for callback in _waiting.pop(spec.name, []):
            _call(callback, module)

    try:
        loader.exec_module = exec_module  # type: ignore[method-assign]
    except AttributeError:  # a loader that takes no attributes (frozen, built in)
        _log.debug("mpcluster cannot watch the import of %s", spec.name)


_finder = _Finder()
