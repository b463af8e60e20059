"""The strict client sees what a server does wrong; else the tests beside this one show nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.load.client import MEANWHILE, Fate, Load

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answer(path: str, *, head: str = "", pid: int = 1) -> bytes:
    body = f"{pid} {path}"
    return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def request(reader: asyncio.StreamReader) -> str:
    """The path; an empty one at the end of the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1]
    except asyncio.IncompleteReadError:
        return ""


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


def fates(handler: Handler, **sorts: int) -> Load:
    """What a load says of that server, at its first loss or after 30 answers."""

    async def main() -> Load:
        async with serving(handler) as port:
            load = Load(port)
            async with load.running(**sorts):
                await load.more(30)
            return load

    return asyncio.run(main())


async def keeping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while path := await request(reader):
        writer.write(answer(path))
    writer.close()


@pytest.mark.parametrize("sort", ["new", "hesitant", "kept", "lazy"])
def test_of_a_good_server_nothing_is_lost(sort: str) -> None:
    others = {"kept": 1} if sort != "kept" else {}
    load = fates(keeping, **{sort: 2}, **others)
    assert set(load.counts) == {Fate.ANSWERED}
    assert load.lost == []
    assert load.answered >= 30
    assert set(load.pids) == {1}


def test_kept_connections_are_kept_and_new_ones_are_new() -> None:
    assert fates(keeping, kept=2).connections == 2
    load = fates(keeping, new=2)
    assert load.connections >= load.answered


def test_a_port_where_nobody_listens_refuses() -> None:
    async def main() -> Load:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            load = Load(bound.getsockname()[1])
            async with load.running(new=1):
                await load.more(1)
            return load

    load = asyncio.run(main())
    assert load.counts == {Fate.REFUSED: 1}
    assert [lost.fate for lost in load.lost] == [Fate.REFUSED]


def test_a_connection_that_ends_before_the_request_is_sent_is_lost() -> None:
    answers = 0
    enough = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        asked = asyncio.ensure_future(request(reader))
        told = asyncio.ensure_future(enough.wait())
        await asyncio.wait([asked, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not asked.done():  # the hesitant one, which waits for more answers than were enough
            asked.cancel()
            reset(writer)
            return
        path = asked.result()
        while path:
            writer.write(answer(path))
            answers += 1
            if answers == MEANWHILE // 2:
                enough.set()
            path = await request(reader)
        writer.close()

    load = fates(handler, kept=1, hesitant=1)
    assert load.counts[Fate.UNSENT] == 1
    assert [lost.fate for lost in load.lost] == [Fate.UNSENT]


@pytest.mark.parametrize("how", [asyncio.StreamWriter.close, reset])
def test_a_new_connection_that_ends_unanswered_is_lost(
    how: Callable[[asyncio.StreamWriter], None],
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        how(writer)

    load = fates(handler, new=1)
    assert load.counts == {Fate.UNANSWERED: 1}
    assert load.lost[0].port


def test_a_kept_connection_that_ends_unanswered_is_stale() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await request(reader)))
        await request(reader)
        writer.close()

    load = fates(handler, kept=1)
    assert load.lost == []
    assert load.counts[Fate.STALE] >= 29


def test_a_kept_connection_that_was_told_to_close_is_not_used_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = await request(reader)
        writer.write(answer(path, head="Connection: close\r\n"))
        assert not await request(reader)
        writer.close()

    load = fates(handler, kept=1)
    assert set(load.counts) == {Fate.ANSWERED}
    assert load.connections >= 30


def test_an_answer_that_breaks_off_is_lost_on_a_kept_connection_too() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await request(reader)))
        writer.write(answer(await request(reader))[:-3])
        writer.close()

    load = fates(handler, kept=1)
    assert load.counts == {Fate.ANSWERED: 1, Fate.CUT: 1}
    assert [lost.fate for lost in load.lost] == [Fate.CUT]


@pytest.mark.parametrize(
    "wrong", [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"hello\r\n\r\n"]
)
def test_what_is_no_good_answer_is_wrong(wrong: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(wrong)
        writer.close()

    assert fates(handler, new=1).counts == {Fate.WRONG: 1}


def test_the_answer_to_another_request_is_wrong() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer("/other" + await request(reader)))
        writer.close()

    assert fates(handler, new=1).counts == {Fate.WRONG: 1}
