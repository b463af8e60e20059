"""A strict HTTP client: every request and every connection is counted, and has one fate.

Four sorts of clients ask without a pause:

* ``new``: a connection a request
* ``hesitant``: likewise, but they send only when somebody else was answered meanwhile, so
  that their connection lies open without a byte
* ``kept``: one connection for as long as the server keeps it
* ``lazy``: likewise, with a silence between two requests, until others were answered

All honour ``Connection: close``. Every third request is for an answer whose halves are
some time apart (:mod:`.apps`), so that there always is one under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

__all__ = ["PATIENCE", "Connection", "Fate", "Load", "Lost"]

PATIENCE = 30.0  # seconds until a request counts as never answered

#: Others' answers for which the hesitant and the lazy wait.
MEANWHILE = 20


class Fate(enum.Enum):
    """What became of a request."""

    ANSWERED = "answered, as it should be"
    REFUSED = "the connection was refused"
    UNSENT = "the connection ended before the request was sent"
    UNANSWERED = "sent over a new connection, which ended without a byte of an answer"
    CUT = "the connection ended in the midst of the answer"
    WRONG = "what came was no answer to it"
    SILENT = "nothing came for a long time"
    #: HTTP/1.1 lets a client ask again: the server closed an idle connection meanwhile.
    STALE = "sent over a connection that had served before, and ended without a byte"


@dataclass(frozen=True)
class Lost:
    """A request that was not answered.

    Args:
        fate: How.
        port: The client's, by which the server's side of the connection is known; 0 where it
            had none.
        path: What was asked for.
        detail: What else is known.
    """

    fate: Fate
    port: int
    path: str
    detail: str


class Ended(Exception):
    """The connection is at its end."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.port = 0
        self.served = 0  # answers that it has brought
        self.ended: str | None = None  # how, if it has
        self.goes_on = True  # the server has not said otherwise
        self._received = bytearray()
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> Connection:
        """Connect.

        Raises:
            OSError: Of the kernel.
        """
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = "closed" if exc is None else repr(exc)
        self._news.set()

    @property
    def has_received(self) -> bool:
        """Is there anything of an answer?"""
        return bool(self._received)

    def send(self, path: str, *, keep: bool) -> None:
        """Send a request."""
        assert self._transport is not None
        how = "keep-alive" if keep else "close"
        self._transport.write(
            f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {how}\r\n\r\n".encode()
        )

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the answer; says whether the connection goes on.

        Raises:
            Ended: It has ended before that.
            ValueError: What came is no HTTP.
        """
        head = (await self._until(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        version, status, *_ = first.split(" ")
        if version not in {"HTTP/1.0", "HTTP/1.1"}:
            raise ValueError(f"no HTTP: {first!r}")
        fields = {
            name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }
        wishes = fields.get("connection", "").lower()
        self.goes_on = wishes != "close" and (version == "HTTP/1.1" or wishes == "keep-alive")
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._until(b"\r\n"), 16):
                body += (await self._take(size + 2))[:-2]
            await self._take(2)
        elif "content-length" in fields:
            body = await self._take(int(fields["content-length"]))
        else:
            self.goes_on = False
            body = await self._rest()
        self.served += 1
        return int(status), body

    async def first(self, *marks: bytes) -> bytes:
        """What comes up to these marks, one after the other."""
        return b"".join([await self._until(mark) for mark in marks])

    async def _until(self, mark: bytes) -> bytes:
        while (place := self._received.find(mark)) < 0:
            await self._more()
        return await self._take(place + len(mark))

    async def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._more()
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def _rest(self) -> bytes:
        with contextlib.suppress(Ended):
            while True:
                await self._more()
        if self.ended != "closed":
            raise Ended(self.ended)
        return await self._take(len(self._received))

    async def _more(self) -> None:
        if self.ended is not None:
            raise Ended(self.ended)
        self._news.clear()
        await self._news.wait()

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


class Load:
    """Clients that ask one port, and what became of all that they asked.

    Args:
        port: Whom they ask.
        forgiving: A loss does not end the waiting for more answers.

    Attributes:
        counts: How many requests had which fate.
        lost: Those that were not answered, apart from ``STALE`` ones.
        connections: How many were opened.
        found_closed: Kept connections that were closed when they were to be used again:
            no request was on them.
        pids: Who has answered, and how often.
    """

    def __init__(self, port: int, *, forgiving: bool = False) -> None:
        self.port = port
        self.counts: Counter[Fate] = Counter()
        self.lost: list[Lost] = []
        self.connections = 0
        self.found_closed = 0
        self.pids: Counter[int] = Counter()
        self.latencies: list[float] = []  # seconds, of the answered ones, with their connect
        self._forgiving = forgiving
        self._stopping = False
        self._numbers = itertools.count()
        self._goals: list[tuple[int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        counts = {fate.name.lower(): count for fate, count in self.counts.items()}
        return (
            f"<Load {counts} on {self.connections} connections, {self.found_closed} found closed>"
        )

    @property
    def answered(self) -> int:
        """How many were."""
        return self.counts[Fate.ANSWERED]

    @contextlib.asynccontextmanager
    async def running(
        self, *, new: int = 0, hesitant: int = 0, kept: int = 0, lazy: int = 0
    ) -> AsyncIterator[Load]:
        """Let so many clients of each sort ask, until the block is left."""
        sorts = [(False, False)] * new + [(False, True)] * hesitant
        sorts += [(True, False)] * kept + [(True, True)] * lazy
        async with asyncio.TaskGroup() as group:
            for keep, pause in sorts:
                group.create_task(self._client(keep=keep, pause=pause))
            try:
                yield self
            finally:
                self._stopping = True
                self._told()

    async def more(self, count: int) -> None:
        """Wait for so many more answers, or for a loss."""
        async with asyncio.timeout(PATIENCE):
            await self._reached(self.answered + count)

    async def one(self) -> None:
        """Ask once, over a connection of its own."""
        await self._request(next(self._numbers), None, keep=False, pause=False)

    async def _reached(self, goal: int) -> None:
        if self._is_reached(goal):
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._goals.append((goal, told))
        await told

    def _is_reached(self, goal: int) -> bool:
        given_up = bool(self.lost) and not self._forgiving
        return self.answered >= goal or self._stopping or given_up

    def _told(self) -> None:
        due = [pair for pair in self._goals if self._is_reached(pair[0])]
        for pair in due:
            self._goals.remove(pair)
            if not pair[1].done():
                pair[1].set_result(None)

    async def _client(self, *, keep: bool, pause: bool) -> None:
        connection: Connection | None = None
        for number in self._numbers:
            if self._stopping or (self.lost and not self._forgiving):
                break
            connection = await self._request(number, connection, keep=keep, pause=pause)
        if connection is not None:
            connection.close()

    async def _request(
        self, number: int, connection: Connection | None, *, keep: bool, pause: bool
    ) -> Connection | None:
        path = f"/halves/{number}" if number % 3 == 0 else f"/whole/{number}"
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PATIENCE):
                if connection is None:
                    self.connections += 1
                    connection = await Connection.open(self.port)
                if pause:
                    await self._reached(self.answered + MEANWHILE)
                    begin = asyncio.get_running_loop().time()
                if connection.ended is not None and connection.served:
                    self.found_closed += 1
                    return None
                fate, detail = await _ask(connection, path, keep=keep, pids=self.pids)
        except TimeoutError:
            fate, detail = Fate.SILENT, ""
        except ConnectionRefusedError as error:
            fate, detail = Fate.REFUSED, repr(error)
        except OSError as error:
            fate, detail = Fate.UNSENT, repr(error)
        self.counts[fate] += 1
        if fate is Fate.ANSWERED:
            self.latencies.append(asyncio.get_running_loop().time() - begin)
        elif fate is not Fate.STALE:
            self.lost.append(Lost(fate, connection.port if connection else 0, path, detail))
        self._told()
        if connection is not None and not (fate is Fate.ANSWERED and keep and connection.goes_on):
            connection.close()
            connection = None
        return connection


async def _ask(
    connection: Connection, path: str, *, keep: bool, pids: Counter[int]
) -> tuple[Fate, str]:
    if connection.ended is not None:
        return Fate.UNSENT, connection.ended
    connection.send(path, keep=keep)
    try:
        status, body = await connection.answer()
    except Ended as error:
        if connection.has_received:
            return Fate.CUT, str(error)
        return (Fate.STALE if connection.served else Fate.UNANSWERED), str(error)
    except (ValueError, IndexError) as error:
        return Fate.WRONG, repr(error)
    pid, _, rest = body.partition(b" ")
    if status != 200 or not pid.isdigit() or rest.strip() != path.encode():
        return Fate.WRONG, f"{status} {body!r}"
    pids[int(pid)] += 1
    return Fate.ANSWERED, ""
