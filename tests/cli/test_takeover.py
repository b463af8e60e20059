"""USR2: a new master takes over, and nobody notices."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.load import Load
from tests.cli.masters import ASYNCIO, SERVER, Master, connection, start_fixture, write  # noqa: F401
from tests.leaks import Process
from tests.running import PATIENCE
from tests.sharers import free_address

Start = Callable[..., Master]


class Masters:
    """A master and those that come after it: all write into the first one's pipe."""

    def __init__(self, first: Master) -> None:
        self.first = first
        self.pid = first.pid

    def replace(self) -> None:
        """Put a new one in the place of the present one; return when that has gone."""
        old = os.pidfd_open(self.pid)
        os.kill(self.pid, signal.SIGUSR2)
        self.pid = int(self.first.wait_for(r"this master \((\d+)\) has taken over")[1])
        # As a child of the first one it is nobody's any more when that has ended.
        import select

        assert select.select([old], [], [], PATIENCE)[0]
        os.close(old)

    def stop(self) -> None:
        if Process.read(self.pid) is not None:
            os.kill(self.pid, signal.SIGTERM)
        self.first.end()


@pytest.fixture(name="masters")
def masters_fixture(start: Start):
    made: list[Masters] = []

    def masters(*arguments: object) -> Masters:
        made.append(Masters(start(*arguments)))
        return made[-1]

    yield masters
    for one in made:
        one.stop()


def test_the_new_master_serves_on_the_same_port_with_new_code(masters, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    write(tmp_path / "heavy.py", "VERSION = 'old'")
    present = masters("-n", 2, "--preload", "heavy", "app.py")
    port = present.first.serves(2)
    before = present.first.pids()
    write(script, SERVER.replace('"1"', '"2"'))
    present.first.is_ready()
    present.replace()
    assert present.first.get()[1] == "2"
    status = present.first.status()
    assert status["pid"] == present.pid != present.first.pid
    assert not set(before) & set(present.first.pids())
    assert present.first.port == port


def test_it_has_as_many_workers_as_the_old_one_was_told_to_have(masters, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    present = masters("-n", 1, "app.py")
    present.first.serves()
    present.first.is_ready()
    present.first.kill(signal.SIGTTIN)
    present.first.serves()
    present.replace()
    assert present.first.status()["workers"] == len(present.first.pids()) == 2


@pytest.mark.parametrize("is_named", [True, False])
def test_the_monitors_page_goes_over_with_its_port(masters, tmp_path: Path, is_named: bool) -> None:
    pytest.importorskip("prometheus_client")
    write(tmp_path / "app.py", SERVER)
    address = "{}:{}".format(*(free_address() if is_named else ("127.0.0.1", 0)))
    present = masters("-n", 1, "--monitor", address, "app.py")
    present.first.serves()
    first = present.first.said(r"the monitor is at (\S+)")[1]
    assert master_at(first) == {"pid": present.pid, "program": "app.py"}
    present.first.is_ready()
    present.replace()
    assert present.first.wait_for(r"the monitor is at (\S+)")[1] == first
    assert master_at(first) == {"pid": present.pid, "program": "app.py"}


def test_the_page_of_a_master_that_is_killed_is_the_next_ones_at_once(
    masters, tmp_path: Path
) -> None:
    """It is killed when the new one, whose worker is not ready yet, has its socket already."""
    pytest.importorskip("prometheus_client")
    script = write(tmp_path / "app.py", SERVER)
    present = masters("-n", 1, "--monitor", "127.0.0.1:0", "app.py")
    present.first.serves()
    page = present.first.said(r"the monitor is at (\S+)")[1]
    present.first.is_ready()
    write(script, MUTE)
    os.kill(present.pid, signal.SIGUSR2)
    present.first.wait_for(r"mute")
    os.kill(present.pid, signal.SIGKILL)
    present.pid = int(present.first.wait_for(r"this master \((\d+)\) has taken over")[1])
    assert master_at(page)["pid"] == present.pid
    present.first.said(rf"the monitor is at {re.escape(page)}")


@pytest.mark.parametrize("after", ["127.0.0.2:0", None])
def test_where_the_new_settings_want_another_page_or_none_the_old_one_is_gone(
    masters, tmp_path: Path, after: str | None
) -> None:
    pytest.importorskip("prometheus_client")
    write(tmp_path / "app.py", SERVER)
    settings = write(tmp_path / "mpcluster.toml", 'monitor = "127.0.0.1:0"')
    present = masters("-n", 1, "app.py")
    present.first.serves()
    first = present.first.said(r"the monitor is at (\S+)")[1]
    present.first.is_ready()
    write(settings, "" if after is None else f'monitor = "{after}"')
    present.replace()
    if after is not None:
        second = present.first.wait_for(r"the monitor is at (http://127.0.0.2:\S+)")[1]
        assert master_at(second)["pid"] == present.pid
    with pytest.raises(ConnectionRefusedError):
        master_at(first)


def master_at(url: str) -> dict[str, object]:
    """Who the page at ``url`` is of."""
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), PATIENCE)) as asking:
        asking.request("GET", "/status.json")
        master = json.loads(asking.getresponse().read())["master"]
    return {name: master[name] for name in ("pid", "program")}


def test_a_new_master_that_fails_changes_nothing(masters, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    present = masters("-n", 1, "--max-crashes", 1, "app.py")
    present.first.serves()
    present.first.is_ready()
    before = present.first.pids()
    write(script, "def broken(:")
    os.kill(present.pid, signal.SIGUSR2)
    present.first.wait_for(r"the new master exited with 1 before it was ready; this one serves on")
    assert present.first.pids() == before
    assert present.first.get()[0] == before[0]
    write(script, SERVER.replace('"1"', '"2"'))
    assert present.first.command("reload").returncode == 0  # as if nothing had been
    assert present.first.get()[1] == "2"


MUTE = "import signal; print('mute'); signal.pause()"


def test_until_then_the_old_one_takes_no_orders_but_to_stop(start: Start, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "app.py")
    master.serves()
    master.is_ready()
    write(script, MUTE)
    master.kill(signal.SIGUSR2)
    master.wait_for(r"mute")
    for order in (("scale", 3), ("reload",)):
        refused = master.command(*order)
        assert refused.returncode == 1
        assert "a new master is about to take over" in refused.stderr
    assert master.stop() == 0  # which is when both are gone: they write into one pipe
    assert "has taken over" not in master.text


def test_one_that_does_not_get_ready_is_ended(start: Start, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "--ready-timeout", "1s", "app.py")
    master.serves()
    master.is_ready()
    write(script, MUTE)
    master.kill(signal.SIGUSR2)
    master.wait_for(r"the new master .* before it was ready; this one serves on")
    assert master.command("scale", 2).returncode == 0
    assert master.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "policy"),
    [(SERVER, "auto"), (ASYNCIO, "auto"), (ASYNCIO, "round_robin"), (SERVER, "round_robin")],
    ids=["shared", "slots", "asyncio-round_robin", "threads-round_robin"],
)
def test_no_request_fails_while_masters_and_workers_change(
    masters, tmp_path: Path, program: str, policy: str
) -> None:
    write(tmp_path / "app.py", program)
    present = masters("-n", 2, "--scheduling", policy, "app.py")
    present.first.serves(2)
    present.first.is_ready()
    with Load(present.first) as load:
        load.until_answered_by(present.first.pids(), PATIENCE)
        for _ in range(2):
            present.replace()
            load.until_answered_by(present.first.pids(), PATIENCE)
            assert present.first.command("reload").returncode == 0
            assert present.first.command("scale", 3).returncode == 0
            assert present.first.command("scale", 2).returncode == 0
        load.until_answered_by(present.first.pids(), PATIENCE)
    assert load.failed == []
