"""A master as it is operated: watched, logged, asked, and managed by others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.masters import (  # noqa: F401
    SERVER,
    Master,
    answer,
    connection,
    start_fixture,
    write,
)
from tests.leaks import Process
from tests.running import PATIENCE

Start = Callable[..., Master]


# -- asking it -------------------------------------------------------------------------------


def test_status_shows_each_slot(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    master.serves(2)
    shown = master.command("status").stdout.splitlines()
    assert shown[0].startswith(f"app.py: running, workers: 2, master {master.pid}, for ")
    assert shown[1].split() == ["slot", "state", "worker", "pid", "uptime", "restarts", "trouble"]
    assert [line.split()[0:2] for line in shown[2:]] == [["0", "ready"], ["1", "ready"]]
    assert [int(line.split()[3]) for line in shown[2:]] == master.pids()
    assert master.status()["snapshot"]["master"]["program"] == "app.py"


def test_scale_and_stop(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "app.py")
    master.serves()
    assert master.command("scale", 3).returncode == 0
    master.serves(2)
    assert len(master.pids()) == 3
    refused = master.command("scale", 0)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "workers must be 1 or more, not 0" in refused.stderr
    stopped = master.command("stop", "app.py")
    assert stopped.returncode == 0
    assert Process.read(master.pid) is None or master.process.wait(PATIENCE) == 0
    assert master.end() == 0


def test_stop_now_lets_nobody_finish(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", "import signal\nsignal.signal(signal.SIGTERM, print)\n" + SERVER)
    master = start("-n", 1, "app.py")
    master.serves()
    assert master.command("stop", "--now").returncode == 0
    assert master.end() == 0
    assert "SIGKILL" in master.text


def test_what_a_killed_master_left_behind_is_taken_over(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    first = start("-n", 1, "app.py")
    first.serves()
    first.kill(signal.SIGKILL)
    first.end()
    assert list((tmp_path / "mpcluster").glob("app-*.sock"))
    assert first.command("status").returncode == 3
    second = start("-n", 1, "app.py")
    second.serves()
    assert second.status()["pid"] == second.pid
    assert second.stop() == 0
    assert list((tmp_path / "mpcluster").iterdir()) == []


def test_a_second_one_of_the_same_program_is_refused(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    first = start("-n", 1, "app.py")
    first.serves()
    second = start("-n", 1, "app.py")
    assert second.end() == 1
    assert "somebody answers at" in second.lines[-1]
    third = start("-n", 1, "--control", "other.sock", "app.py")
    third.serves()
    assert json.loads(third.command("status", "--json", "--control", "other.sock").stdout)["pid"]
    assert third.stop() == 0
    assert first.stop() == 0


# -- files -----------------------------------------------------------------------------------


def test_a_change_of_a_watched_file_reloads(start: Start, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "--watch", "app.py")
    master.serves()
    write(script, SERVER.replace('"1"', '"two"'))
    master.wait_for(r"app.py changed")
    master.wait_for(r"reload: done")
    assert master.get()[1] == "two"
    assert master.stop() == 0


def test_the_settings_file_is_obeyed(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    write(tmp_path / "pyproject.toml", '[tool.mpcluster]\nworkers = 2\nscript = "app.py"\n')
    master = start()
    master.serves(2)
    assert master.stop() == 0


def test_usr1_opens_the_log_anew(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "--log", "the.log", "app.py")
    os.mkfifo(tmp_path / "opened")  # not a file yet: who opens it is heard
    status = wait_until_ready(master)
    (tmp_path / "the.log").rename(tmp_path / "the.log.1")
    os.rename(tmp_path / "opened", tmp_path / "the.log")
    master.kill(signal.SIGUSR1)
    with open(tmp_path / "the.log", encoding="utf-8") as fresh:  # returns when it is opened
        os.kill(status["slots"][0]["pid"], signal.SIGKILL)
        assert "was killed by SIGKILL" in fresh.readline()
        assert master.process.poll() is None
        master.kill(signal.SIGTERM)
        assert "stop: the workers finish what they have" in fresh.read()
    assert master.end() == 0
    assert "serves" in (tmp_path / "the.log.1").read_text()
    assert master.lines == []


def wait_until_ready(master: Master) -> dict[str, object]:
    """Of one that writes nothing that could be waited for: ask until it is."""
    while True:
        done = master.command("status", "--json")
        if done.returncode == 0:
            status: dict[str, object] = json.loads(done.stdout)
            if all(one["state"] == "ready" for one in status["slots"]):  # type: ignore[attr-defined]
                return status
        assert master.process.poll() is None


def test_a_log_on_a_full_disk_is_said_once_and_the_workers_serve_on(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "app.py", "print('lost\\n' * 10_000)\n" + SERVER)
    master = start("-n", 1, "--log", "/dev/full", "app.py")
    master.wait_for(r"the log /dev/full cannot be written: No space left on device")
    wait_until_ready(master)
    assert master.stop() == 0
    assert len(master.lines) == 1


def test_a_log_that_cannot_be_opened_is_named(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("--log", "absent/the.log", "app.py")
    assert master.end() == 2
    assert "the log cannot be opened: [Errno 2] No such file or directory" in master.text


# -- service managers and containers ---------------------------------------------------------


ACTIVATOR = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize("policy", ["auto", "slots", "round_robin"])
def test_a_socket_that_is_handed_down_is_served(tmp_path: Path, policy: str) -> None:
    """As `systemd-socket-activate`: descriptor 3, LISTEN_FDS and LISTEN_PID."""
    write(tmp_path / "app.py", SERVER)
    with socket.create_server(("127.0.0.1", 0)) as handed:
        port = handed.getsockname()[1]
        with connection(port) as asking:  # who comes before it runs, waits
            asking.request("GET", "/")
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", ACTIVATOR, str(handed.fileno())),
                    *("-W", "error", "-m", "mpcluster", "run", "-n", "2"),
                    *("--scheduling", policy, "app.py", str(port)),
                ],
                cwd=tmp_path,
                env=Master.environment(tmp_path),
                pass_fds=[handed.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                assert process.stdout is not None
                assert answer(asking)[1] == "1"
            finally:
                process.terminate()
                process.communicate()
    assert process.returncode == 0


def test_a_service_manager_hears_of_ready_reloading_and_stopping(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "app.py", SERVER + "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)

        def heard() -> list[str]:
            return manager.recv(4096).decode().splitlines()

        master = start("-n", 2, "app.py", env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert heard() == ["READY=1", "STATUS=app.py, workers: 2"]
        master.kill(signal.SIGHUP)
        assert heard()[0] == "RELOADING=1"
        assert heard()[0] == "READY=1"
        master.kill(signal.SIGUSR2)
        words = heard()
        assert words[0].startswith("MAINPID=")
        successor = int(words[0].partition("=")[2])
        assert heard()[0] == "READY=1"
        os.kill(successor, signal.SIGTERM)
        assert heard() == ["STOPPING=1"]
        assert master.end() == 0


SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

ORPHANS = """
import os, subprocess, sys
subprocess.run(["sh", "-c", "sleep 0 & echo orphan $!"], check=True)
"""


def test_orphans_are_buried_where_they_become_the_masters(tmp_path: Path) -> None:
    """As PID 1 of a container; here as a subreaper, which is the same to the kernel."""
    write(tmp_path / "app.py", ORPHANS + SERVER)
    process = subprocess.Popen(
        [sys.executable, "-c", SUBREAPER, "-m", "mpcluster", "run", "-n", "1", "app.py"],
        cwd=tmp_path,
        env=Master.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        # What the worker says and what the master says of it come in either order.
        said = ""
        while not (("| orphan " in said) and ("has ended" in said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        orphan = re.search(r"\| orphan (\d+)$", said, re.MULTILINE)
        assert orphan is not None
        assert f"orphan {orphan[1]} has ended" in said
        assert Process.read(orphan[1]) is None
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make a PID namespace")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_pid_1_ends_by_signals_as_any_other(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path / "app.py", SERVER)
    process = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, "-m", "mpcluster", "run", "-n", "1", "app.py"),
        ],
        cwd=tmp_path,
        env=Master.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if "unshare" in first:
            pytest.skip(f"no PID namespace here: {first}")
        assert "master (1) |" in first
        next(line for line in iter(process.stdout.readline, "") if "serves" in line)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), number)
        process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    assert process.returncode == (130 if number is signal.SIGINT else 0)
