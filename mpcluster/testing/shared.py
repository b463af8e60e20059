"""Session fixtures that are made once for all workers (``@shared_fixture``).

In the template, after collection: each of them that some test asks for is set up there,
with the fixtures that it depends on. Workers inherit the value. Its teardown is the
template's, when the last worker is gone.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

__all__ = ["SharedFixtures"]


class SharedFixtures:
    """Those of one session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session: Any = session
        self._state = self._session._setupstate  # noqa: SLF001
        self._made = False

    def set_up(self) -> None:
        """Make them. In the template."""
        for name, item in self._wanted().items():
            if not self._made:
                self._state.setup(self._session)
                self._made = True
            # An error is kept as its result, and met by each test that asks for it.
            with contextlib.suppress(Exception):
                item._request.getfixturevalue(name)  # noqa: SLF001

    def _wanted(self) -> dict[str, Any]:
        wanted: dict[str, Any] = {}
        for item in self._session.items:
            definitions: Any = getattr(item, "_fixtureinfo", None)
            for name in definitions.names_closure if definitions is not None else ():
                if name in wanted:
                    continue
                found = definitions.name2fixturedefs.get(name) or ()
                if found and _is_shared(found[-1].func):
                    wanted[name] = item
        return wanted

    def belong_to_another(self) -> None:
        """In a worker: leave the teardown to the template."""
        if self._made:
            self._state.stack[self._session] = ([self._session.teardown], None)

    def tear_down(self) -> None:
        """In the template, when no worker is left."""
        if self._made:
            self._state.teardown_exact(None)


def _is_shared(function: Any) -> bool:
    return bool(getattr(function, "mpcluster_shared", False))
