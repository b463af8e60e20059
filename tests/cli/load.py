"""Clients that ask without a pause while something happens to the server."""

from __future__ import annotations

import http.client
import threading

from tests.cli.masters import Master, answer, connection

CLIENTS = 4


class Load:
    """Threads that send requests, each on a new connection, for as long as the block runs.

    Attributes:
        answered: By worker's pid, how many.
        failed: What went wrong, in the clients' words.
    """

    def __init__(self, master: Master) -> None:
        self._master = master
        self._counted = threading.Condition()
        self._over = False
        self.answered: dict[int, int] = {}
        self.failed: list[str] = []
        self._clients = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for client in self._clients:
            client.join()

    def _ask(self) -> None:
        while not self._over:
            try:
                with connection(self._master.port) as asking:
                    asking.request("GET", "/", headers={"Connection": "close"})
                    pid, _ = answer(asking)
            except (OSError, ValueError, http.client.HTTPException) as error:
                with self._counted:
                    self.failed.append(repr(error))
            else:
                with self._counted:
                    self.answered[pid] = self.answered.get(pid, 0) + 1
                    self._counted.notify_all()

    def until_answered_by(self, pids: list[int], timeout: float) -> None:
        """Wait until each of these has answered some request."""
        with self._counted:
            assert self._counted.wait_for(lambda: self.answered.keys() >= set(pids), timeout), (
                pids,
                self.answered,
            )
