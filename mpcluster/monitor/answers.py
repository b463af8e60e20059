"""What is answered to one request: read-only, and to nobody whom a stranger has sent here.

Each runs in a thread of :mod:`~.server`'s, and keeps to what is said there: it prints and logs
nothing, imports nothing, and takes no lock that a forked child could want.
"""

from __future__ import annotations

import http
import http.server
import json
import time
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from . import hosts
from .hosts import Place
from .metrics import Exposition
from .page import POLICY_FOR_DATA, page
from .sampler import Sampler

__all__ = ["Answering", "Known"]

#: Seconds without a byte after which a client is given up.
SILENCE: Final = 10.0
#: Seconds after which what was seen last says nothing of now.
STALE: Final = 30.0

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Known:
    """What answers are made of.

    Attributes:
        place: Where it is served.
        sampler: Looks at the workers.
        exposition: Writes what it sees for Prometheus.
    """

    place: Place
    sampler: Sampler
    exposition: Exposition


class Answering(http.server.BaseHTTPRequestHandler):
    """One request. Its server has what is known, as ``known``."""

    timeout = SILENCE
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    @property
    def _known(self) -> Known:
        known: Known = cast(Any, self.server).known
        return known

    # The names are the library's.
    def do_GET(self) -> None:
        """Answer."""
        if not self._is_for_us():
            return
        path = urlsplit(self.path).path
        answer = _PATHS.get(path)
        if answer is None:
            self._send(
                http.HTTPStatus.NOT_FOUND,
                f"there is no {path} here; there are {', '.join(_PATHS)}\n".encode(),
            )
        else:
            answer(self)

    do_HEAD = do_GET  # noqa: N815

    def _is_for_us(self) -> bool:
        named = self.headers.get_all("Host", [])
        if not named and self.request_version == "HTTP/1.0":
            return True  # a load balancer's look at /healthz; a browser names it always
        if len(named) == 1 and hosts.is_known(named[0].strip(), self._known.place):
            return True
        self._send(
            http.HTTPStatus.MISDIRECTED_REQUEST,
            b"this is no host of that name: ask by an address, or for localhost\n",
        )
        return False

    # -- what there is ---------------------------------------------------------------------

    def page(self) -> None:
        """For people."""
        text, policy = page()
        self._send(http.HTTPStatus.OK, text, "text/html; charset=utf-8", policy)

    def status(self) -> None:
        """For programs."""
        sampler = self._known.sampler
        snapshot, rates = sampler.last()
        told = {
            **snapshot.as_dict(),
            "age": time.monotonic() - snapshot.clock,
            "stalled": sampler.stalled,
            "rates": rates.as_dict(),
        }
        self._send_json(told)

    def history(self) -> None:
        """The last ten minutes, for the charts of a page that was opened just now."""
        self._send_json(self._known.sampler.history())

    def metrics(self) -> None:
        """For Prometheus."""
        text, kind = self._known.exposition.write(self.headers.get("Accept", ""))
        self._send(http.HTTPStatus.OK, text, kind)

    def health(self) -> None:
        """For load balancers."""
        serving, slots, age = self._known.sampler.health()
        known = age < STALE
        status = http.HTTPStatus.OK if serving and known else http.HTTPStatus.SERVICE_UNAVAILABLE
        text = f"{serving} of {slots} serve\n"
        if not known:
            text = f"not known: the master's watcher has not answered for {age:.0f} s\n"
        self._send(status, text.encode())

    # -- how it is sent --------------------------------------------------------------------

    def _send_json(self, value: object) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._send(http.HTTPStatus.OK, text, "application/json")

    def _send(
        self,
        status: http.HTTPStatus,
        body: bytes,
        kind: str = _TEXT,
        policy: str = POLICY_FOR_DATA,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """With those that every answer has, errors too."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As the library's; but a method that is none of ours is not allowed, by its own code."""
        if code == http.HTTPStatus.NOT_IMPLEMENTED:
            self._refuse_method()
        else:
            super().send_error(code, message, explain)

    def _refuse_method(self) -> None:
        body = b"only GET and HEAD: nothing can be changed here\n"
        self.send_response(http.HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", _TEXT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """What answers; of which version is nobody's business."""
        return "mpcluster"

    def log_message(self, *_: Any) -> None:
        """Nobody reads of each look; and a fork may come at any moment."""


_PATHS: Final = {
    "/": Answering.page,
    "/status.json": Answering.status,
    "/history.json": Answering.history,
    "/metrics": Answering.metrics,
    "/healthz": Answering.health,
}
