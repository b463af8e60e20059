"""What a service manager hears."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcluster import watcher
from mpcluster.cli.notify import Notifier
from tests.happenings import PATIENCE


@pytest.fixture(name="manager")
def manager_fixture(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        yield manager


def heard(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_each_word_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 workers")
    notifier.reloading()
    notifier.stopping()
    assert heard(manager) == {"READY": "1", "STATUS": "2 workers"}
    reloading = heard(manager)
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert heard(manager) == {"STOPPING": "1"}


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses an abstract one
        manager.settimeout(PATIENCE)
        name = manager.getsockname()[1:].decode()
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert heard(manager) == {"STOPPING": "1"}


def test_without_a_manager_nothing_is_said() -> None:
    Notifier({}).ready("x")


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")}).ready("x")


def test_the_variables_are_taken_out_and_kept() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10", "HOME": "/"}
    assert Notifier(environ).variables == {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10"}
    assert environ == {"HOME": "/"}


def test_the_watchdog_hears_a_sign_of_life_again_and_again(manager: socket.socket) -> None:
    notifier = Notifier(
        {
            "NOTIFY_SOCKET": manager.getsockname(),
            "WATCHDOG_USEC": "20000",
            "WATCHDOG_PID": str(os.getpid()),
        }
    )
    watcher.current().call_soon(notifier.begin)
    for _ in range(3):
        assert heard(manager) == {"WATCHDOG": "1"}
    ended = threading.Event()
    watcher.current().call_soon(lambda: (notifier.end(), ended.set()))
    assert ended.wait(PATIENCE)


def test_one_that_has_handed_over_says_nothing_more(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.hand_over(4711)
    notifier.stopping()
    assert heard(manager) == {"MAINPID": "4711"}
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_a_watchdog_that_waits_for_another_process_hears_nothing() -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"})
    assert notifier.interval is None
