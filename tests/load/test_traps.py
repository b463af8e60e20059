"""What a supervised server meets in the night: stuck answers, broken code, clients of all sorts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.load.client import Connection, Fate, Load
from tests.load.supervised import Supervised, supervised

pytestmark = pytest.mark.slow

PATIENCE = 30.0


@contextlib.asynccontextmanager
async def stuck(port: int, pids: set[int]) -> AsyncIterator[None]:
    """Hold a request that is never answered to its end at each of these workers."""
    held: dict[int, Connection] = {}
    others: list[Connection] = []
    async with asyncio.timeout(PATIENCE):
        while set(held) != pids:
            connection = await Connection.open(port)
            connection.send("/stuck", keep=True)
            pid = int((await connection.first(b"\r\n\r\n", b" ")).split()[-1])
            if pid in held:
                others.append(connection)
            else:
                held[pid] = connection
    try:
        yield
    finally:
        for connection in [*held.values(), *others]:
            connection.close()


@pytest.mark.parametrize("app", ["threads", "streams", "uvicorn_uvloop", "aiohttp"])
def test_a_drain_that_does_not_end_is_cut_at_its_timeout_and_nobody_else_loses(app: str) -> None:
    async def main() -> None:
        with supervised(app, 2, drain_timeout=0.3) as program:
            old = set(await program.until_ready(2))
            load = Load(program.port)
            async with stuck(program.port, old), load.running(new=4, kept=2):
                program.order("reload")
                assert (await program.hear("reload"))["error"] is None
                deaths = [await program.hear("death") for _ in old]
                await load.more(20)
            assert load.lost == []
            assert {death["pid"] for death in deaths} == old
            assert all(death["asked"] and death["exitcode"] for death in deaths), deaths

    asyncio.run(main())


@pytest.mark.parametrize("app", ["threads", "streams"])
def test_a_worker_that_dies_while_it_drains_is_not_replaced_twice(app: str) -> None:
    async def main() -> None:
        with supervised(app, 2) as program:
            old = set(await program.until_ready(2))
            load = Load(program.port)
            async with stuck(program.port, old), load.running(new=4):
                program.order("reload")
                new = set(await program.until_ready(2))
                assert (await program.hear("reload"))["error"] is None
                for pid in old:  # they wait for the stuck ones
                    os.kill(pid, signal.SIGKILL)
                    death = await program.hear("death")
                    assert (death["pid"], death["exitcode"]) == (pid, -signal.SIGKILL)
                await load.more(20)
                program.order("status")
                slots = (await program.hear("status"))["slots"]
            assert {pid for _, pid in slots} == new
            assert [lost for lost in load.lost if lost.fate is Fate.REFUSED] == []
            program.order("stop")
            await program.hear("stopped")

    asyncio.run(main())


@pytest.mark.parametrize("policy", ["auto", "round_robin"])
def test_a_reload_that_is_asked_for_during_a_reload_follows_it(policy: str) -> None:
    async def main() -> None:
        with supervised("streams", 2, policy) as program:
            await program.until_ready(2)
            load = Load(program.port)
            async with load.running(new=4, kept=2, lazy=2):
                await load.more(20)
                for _ in range(3):  # the third joins the second, which waits
                    program.order("reload")
                for _ in range(2):
                    assert (await program.hear("reload"))["error"] is None
                await program.until_ready(4)
                deaths = [await program.hear("death") for _ in range(4)]
                await load.more(20)
            assert all(death["asked"] and not death["exitcode"] for death in deaths), deaths
            assert load.lost == []
            assert load.counts[Fate.STALE] == 0

    asyncio.run(main())


@pytest.mark.parametrize("mood", ["ends", "never listens"])
def test_a_reload_with_code_that_is_broken_leaves_the_old_workers(
    mood: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        moods = tmp_path / "mood"
        moods.write_text("fine")
        environ = {"FICKLE": str(moods)}
        with supervised("fickle", 2, environ=environ, ready_timeout=1) as program:
            old = set(await program.until_ready(2))
            load = Load(program.port)
            async with load.running(new=4, kept=2):
                await load.more(20)
                moods.write_text(mood)
                program.order("reload")
                error = (await program.hear("reload"))["error"]
                assert "serve on" in error
                assert ("exited with 1" if mood == "ends" else "not ready") in error
                await load.more(20)
                assert set(load.pids) <= old
                moods.write_text("fine")
                program.order("reload")
                assert (await program.hear("reload"))["error"] is None
                await load.more(20)
            assert load.lost == []

    asyncio.run(main())
    assert ("this code is broken" in capfd.readouterr().err) is (mood == "ends")


@contextlib.contextmanager
def many_descriptors(wanted: int) -> Iterator[int]:
    """Let this process and what it starts have so many, or as many as may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        yield max(soft, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("app", "policy"),
    [
        ("streams", "auto"),
        ("streams", "round_robin"),
        ("uvicorn_uvloop", "auto"),
        ("aiohttp", "auto"),
    ],
)
def test_ten_thousand_idle_connections_do_not_hold_up_a_reload(app: str, policy: str) -> None:
    async def main(count: int) -> None:
        with supervised(app, 2, policy) as program, contextlib.ExitStack() as idle:
            await program.until_ready(2)
            waiting = []
            for _ in range(count):
                client = idle.enter_context(socket.socket())
                client.connect(("127.0.0.1", program.port))
                waiting.append(client)
            load = Load(program.port)
            async with load.running(new=2, kept=2):
                await load.more(20)
                program.order("reload")
                assert (await program.hear("reload"))["error"] is None
                deaths = [await program.hear("death") for _ in range(2)]
                await load.more(20)
            assert all(death["asked"] and not death["exitcode"] for death in deaths), deaths
            assert load.lost == []
            assert load.counts[Fate.STALE] == 0
            poller = select.poll()
            for client in waiting:
                poller.register(client, select.POLLIN)
            assert len(poller.poll(0)) == count, "each was told that its connection is over"

    with many_descriptors(10_500) as most:
        asyncio.run(main(min(10_000, most - 500)))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def until_as_few(program: Supervised, before: dict[int, int]) -> None:
    """Wait until none of these processes has more descriptors than it had."""
    async with asyncio.timeout(PATIENCE):
        while any(descriptors(pid) > count for pid, count in before.items()):
            await Load(program.port).one()  # gives the servers time, and something to do


@pytest.mark.parametrize("policy", ["auto", "round_robin"])
@pytest.mark.parametrize("app", ["threads", "streams", "uvicorn_uvloop"])
def test_thousands_of_connections_that_are_reset_leave_no_descriptor(app: str, policy: str) -> None:
    """At once, after half a request, and after a whole one, whose answer nobody reads."""
    said = [b"", b"GET / HT", b"GET /whole/1 HTTP/1.1\r\nHost: test\r\n\r\n"]

    async def main() -> None:
        with supervised(app, 2, policy) as program:
            pids = [program.pid, *await program.until_ready(2)]
            load = Load(program.port)
            async with load.running(new=4):
                await load.more(20)
            before = {pid: descriptors(pid) for pid in pids}
            for number in range(3000):
                with socket.create_connection(("127.0.0.1", program.port), PATIENCE) as client:
                    client.sendall(said[number % 3])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until_as_few(program, before)
            load = Load(program.port)
            async with load.running(new=4):
                await load.more(20)
            assert load.lost == []

    asyncio.run(main())


def test_clients_that_say_half_a_word_do_not_hold_up_a_reload_for_others() -> None:
    async def main() -> None:
        with supervised("threads", 2, drain_timeout=1) as program, contextlib.ExitStack() as open_:
            old = set(await program.until_ready(2))
            for _ in range(50):
                client = open_.enter_context(socket.create_connection(("127.0.0.1", program.port)))
                client.sendall(b"GET /whole/1 HT")
            load = Load(program.port)
            async with load.running(new=4, kept=2):
                await load.more(20)
                program.order("reload")
                assert (await program.hear("reload"))["error"] is None
                deaths = {(await program.hear("death"))["pid"] for _ in old}
                await load.more(20)
            assert deaths == old
            assert load.lost == []

    asyncio.run(main())
