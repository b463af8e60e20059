"""Servers as people write them, unmodified, in two workers."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.masters import PATIENCE, Load, ask_until_all, go_through_a_life, serving

#: Script, and what must be installed for it.
SERVERS = {
    "http_server": None,
    "http_single": None,
    "socket_server": None,
    "accept_loop": None,
    "wsgi_ref": None,
    "asyncio_streams": None,
    "uvicorn_asyncio": "uvicorn",
    "uvicorn_uvloop": "uvloop",
    "aiohttp_app": "aiohttp",
    "flask_app": "flask",
    "waitress_app": "waitress",
    "tornado_app": "tornado",
    "hypercorn_app": "hypercorn",
    "gevent_wsgi": "gevent",
    "gevent_patched": "gevent",
}

#: Those whose responses say ``Connection: close`` once the drain began.
POLITE = [
    "http_server",
    "uvicorn_asyncio",
    "uvicorn_uvloop",
    "aiohttp_app",
    "hypercorn_app",
    "tornado_app",
    "waitress_app",
    "gevent_wsgi",
    "gevent_patched",
]


def need(script: str) -> None:
    module = SERVERS[script]
    # Not importorskip: to import gevent or uvloop would be felt by the other tests.
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


#: One of each kind, as the policies tell them apart: threads, a loop of ``accept()``, asyncio, a
#: loop that accepts in C, gevent.
KINDS = ["http_server", "accept_loop", "asyncio_streams", "uvicorn_uvloop", "gevent_wsgi"]


def each(
    scripts: Iterable[str], policies: str, *, auto: Iterable[str], passed: Iterable[str]
) -> pytest.MarkDecorator:
    """Each script with each policy; in the quick round few.

    There the scripts of ``auto`` are as they are by default, which is ``shared`` for some and
    ``slots`` for others, and those of ``passed`` have ``round_robin``.
    """
    quick = [(one, "auto") for one in auto] + [(one, "round_robin") for one in passed]
    rest = [one for one in itertools.product(scripts, policies.split()) if one not in quick]
    slow = [pytest.param(*one, marks=pytest.mark.slow) for one in rest]
    return pytest.mark.parametrize(("script", "policy"), [*quick, *slow])


@each(SERVERS, "shared slots round_robin least_connections", auto=SERVERS, passed=KINDS)
def test_two_workers_serve_one_port_and_one_that_is_killed_is_replaced(
    script: str, policy: str
) -> None:
    need(script)
    with serving(script, "127.0.0.1", "0", MPCLUSTER_SCHEDULING=policy) as master:
        go_through_a_life(master)


def test_an_asyncio_server_shares_a_unix_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serving("asyncio_unix", path) as master:
        first, second = master.expect("listening"), master.expect("listening")
        assert first["path"] == second["path"] == path
        asyncio.run(ask_until_all({first["pid"], second["pid"]}, path=path))

        os.kill(first["pid"], signal.SIGKILL)
        third = master.expect("listening")
        asyncio.run(ask_until_all({second["pid"], third["pid"]}, path=path))

        master.order("disconnect")
        master.expect("end")
        assert master.stop() == 0
    assert not os.path.exists(path)


def test_an_asyncio_datagram_endpoint_shares_its_port() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving("asyncio_udp", "127.0.0.1", str(port)) as master:
        pids = {master.expect("listening")["pid"], master.expect("listening")["pid"]}
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", port))
            client.settimeout(PATIENCE)
            for number in range(20):
                client.send(b"%d" % number)
                echo, pid = client.recv(100).split()
                assert int(echo) == number
                assert int(pid) in pids
        master.order("disconnect")
        master.expect("end")
        assert master.stop() == 0


async def drain_under_load(script: str, policy: str, *, new: int, kept: int) -> Load:
    """Ask one worker of two to leave, twice, while clients go on."""
    with serving(script, "127.0.0.1", "0", MPCLUSTER_SCHEDULING=policy) as master:
        there = [
            await asyncio.to_thread(master.expect, "listening"),
            await asyncio.to_thread(master.expect, "listening"),
        ]
        load = Load(there[0]["port"])
        clients = asyncio.create_task(load.run(new=new, kept=kept))
        for leaving in there:
            await load.more(100)
            master.order(f"disconnect {leaving['pid']}")
            death = await asyncio.to_thread(master.expect, "death")
            assert (death["pid"], death["exitcode"], death["asked"]) == (leaving["pid"], 0, True)
            await asyncio.to_thread(master.expect, "listening")
        await load.more(100)
        load.stopping = True
        await clients
    return load


async def kill_under_load(script: str, policy: str, *, clients: int) -> Load:
    """SIGKILL one worker of two, and its replacement, while clients go on."""
    with serving(script, "127.0.0.1", "0", MPCLUSTER_SCHEDULING=policy) as master:
        there = [
            await asyncio.to_thread(master.expect, "listening"),
            await asyncio.to_thread(master.expect, "listening"),
        ]
        load = Load(there[0]["port"], forgiving=True)
        running = asyncio.create_task(load.run(new=clients, kept=0))
        killed = there[0]["pid"]
        for _ in range(2):
            await load.more(100)
            os.kill(killed, signal.SIGKILL)
            death = await asyncio.to_thread(master.expect, "death")
            assert (death["pid"], death["asked"]) == (killed, False)
            killed = (await asyncio.to_thread(master.expect, "listening"))["pid"]
        await load.more(100)
        load.stopping = True
        await running
    return load


@each(SERVERS, "shared slots round_robin", auto=KINDS, passed=["http_server", "asyncio_streams"])
def test_a_kill_under_load_loses_at_most_what_the_dead_worker_had_accepted(
    script: str, policy: str
) -> None:
    """One request a client each time; nobody is refused, and what had queued is answered."""
    need(script)
    load = asyncio.run(kill_under_load(script, policy, clients=6))
    assert not [error for error in load.lost if isinstance(error, ConnectionRefusedError)]
    assert len(load.lost) <= 2 * 6


# The polite ones have new connections below, too.
@each(
    SERVERS,
    "shared slots round_robin",
    auto=[one for one in SERVERS if one not in POLITE],
    passed=["asyncio_streams"],
)
def test_a_drain_under_load_loses_no_request(script: str, policy: str) -> None:
    need(script)
    load = asyncio.run(drain_under_load(script, policy, new=6, kept=0))
    assert load.lost == []


@each(POLITE, "shared slots round_robin", auto=POLITE, passed=["http_server"])
def test_a_drain_under_load_cuts_no_kept_connection(script: str, policy: str) -> None:
    need(script)
    load = asyncio.run(drain_under_load(script, policy, new=2, kept=4))
    assert load.lost == []
    assert load.repeated == 0
