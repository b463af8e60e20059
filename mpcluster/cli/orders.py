"""What can be asked over the control socket, and what is answered.

===========  ====================  =====================================================
``do``       beside it             answered
===========  ====================  =====================================================
``status``                         at once, with all that there is to be known
``reload``                         when the reload is over
``scale``    ``workers``: a number  at once
``stop``     ``now``: true or not   at once; the line is cut when the last worker is gone
===========  ====================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeAlias

from .control import Answer, Obey

__all__ = ["Orderable", "obeying"]


class Orderable(Protocol):
    """Who is told: :class:`~mpcluster.cli.service.Service`."""

    def status(self) -> dict[str, Any]:
        """What there is to be known."""

    def reload(self) -> Future[None]:
        """Replace every worker."""

    def scale(self, workers: int) -> None:
        """Have so many."""

    def stop(self) -> None:
        """Let them finish; asked again, end them."""

    def kill(self) -> None:
        """End them."""

    @property
    def is_running(self) -> bool:
        """It was not told to stop."""


def obeying(service: Orderable) -> Obey:
    """What obeys for this master; in the watcher's thread."""

    def obey(request: dict[str, Any], answer: Answer) -> None:
        do = request.get("do")
        order = _ORDERS.get(str(do))
        if order is None:
            raise ValueError(f"there is no order {do!r}; there are: {', '.join(_ORDERS)}")
        order(service, request, answer)

    return obey


def _status(service: Orderable, _request: dict[str, Any], answer: Answer) -> None:
    answer({"ok": True, **service.status()})


def _scale(service: Orderable, request: dict[str, Any], answer: Answer) -> None:
    workers = request.get("workers")
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise ValueError(f"workers must be a whole number, not {workers!r}")  # noqa: TRY004
    service.scale(workers)
    answer({"ok": True, "workers": workers})


def _stop(service: Orderable, request: dict[str, Any], answer: Answer) -> None:
    answer({"ok": True})
    if request.get("now"):
        service.kill()
    elif service.is_running:
        service.stop()


def _reload(service: Orderable, _request: dict[str, Any], answer: Answer) -> None:
    def done(future: Future[None]) -> None:
        error = future.exception()
        answer({"ok": True} if error is None else {"ok": False, "error": str(error)})

    service.reload().add_done_callback(done)


_Order: TypeAlias = Callable[[Orderable, dict[str, Any], Answer], None]
_ORDERS: Final[Mapping[str, _Order]] = {
    "status": _status,
    "reload": _reload,
    "scale": _scale,
    "stop": _stop,
}
