"""`mpcluster top`: what is on the screen, and how it ends."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcluster import watcher
from mpcluster.cli import command
from mpcluster.cli.control import Answer, Control
from tests.cli.masters import Master
from tests.running import PATIENCE

rich = pytest.importorskip("rich.console")

from mpcluster.cli import top  # noqa: E402  # behind the question whether rich is there


def status(cpu: float = 1.0, clock: float = 10.0) -> dict[str, Any]:
    slot = {"slot": 0, "state": "ready", "worker_id": 3, "pid": 4711, "uptime": 75.0}
    worker = {"id": 3, "cpu": cpu, "proportional": 12_300_000, "connections": 5}
    return {
        "program": "app.py",
        "state": "running",
        "workers": 2,
        "pid": 4700,
        "uptime": 3700.0,
        "slots": [
            {**slot, "restarts": 2, "trouble": None},
            {**slot, "slot": 1, "state": "waiting", "worker_id": None, "pid": None}
            | {"uptime": None, "restarts": 0, "trouble": "worker 4 exited with 1"},
        ],
        "snapshot": {"clock": clock, "workers": [worker]},
    }


def shown(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    console = rich.Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(top.screen(now, before))
    return str(console.export_text())


def test_each_slot_has_a_row_with_what_its_worker_uses() -> None:
    text = shown(status(cpu=1.5, clock=12.0), status(cpu=1.0, clock=10.0))
    assert "app.py: running, workers: 2, master 4700, for 1h01m" in text
    (row,) = [line.split() for line in text.splitlines() if "4711" in line]
    assert row == ["0", "ready", "3", "4711", "1m15s", "2", "25%", "12.3", "MB", "5"]
    assert "worker 4 exited with 1" in text


def test_without_the_monitor_it_shows_what_there_is() -> None:
    now = {**status(), "snapshot": None}
    (row,) = [line.split() for line in shown(now, now).splitlines() if "4711" in line]
    assert row == ["0", "ready", "3", "4711", "1m15s", "2", "-", "-", "-"]


@pytest.fixture(name="control")
def control_fixture(tmp_path: Path) -> Iterator[Path]:
    def obey(_request: dict[str, Any], answer: Answer) -> None:
        answer({"ok": True, **status()})

    path = tmp_path / "c.sock"
    control = watcher.current().ask(lambda: Control(path, obey))
    yield path
    watcher.current().ask(control.close)


def test_on_a_terminal_it_shows_the_workers_until_q(control: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mpcluster", "top", "--control", str(control)],
        env={**Master.environment(tmp_path), "TERM": "xterm", "COLUMNS": "140", "LINES": "20"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        seen = b""
        while b"4711" not in seen:
            assert select.select([ours], [], [], PATIENCE)[0], seen
            seen += os.read(ours, 4096)
        os.write(ours, b"q")
        assert process.wait(PATIENCE) == 0  # what it writes on leaving has room in the terminal
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_it_says_what_there_is_instead(
    control: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(["top", "--control", str(control)]) == 2
    said = "mpcluster top: top wants a terminal; for a file or a pipe there is status\n"
    assert capsys.readouterr().err == said


def test_without_rich_the_extra_is_named(
    control: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    assert command.run(["top", "--control", str(control)]) == 1
    assert "pip install 'mpcluster[monitor]'" in capsys.readouterr().err
