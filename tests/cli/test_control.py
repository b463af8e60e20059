"""The control socket, and who is answered there."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mpcluster
from mpcluster import ClusterProcess, watcher
from mpcluster.cli import asking, command, place
from mpcluster.cli.control import LONGEST, Answer, Control
from mpcluster.cli.errors import CommandError
from mpcluster.cli.program import Program
from tests.happenings import PATIENCE, Diary, relatives_fixture  # noqa: F401
from tests.test_listeners import dead_socket

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


def echo(request: dict[str, Any], answer: Answer) -> None:
    if request.get("do") == "fail":
        raise ValueError("no such thing")
    answer({"ok": True, "heard": request})


@pytest.fixture(name="path")
def path_fixture() -> Iterator[Path]:
    """Where other users come, too: not below a directory that is this one's alone."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory, "c.sock")


@pytest.fixture(name="control")
def control_fixture(path: Path) -> Iterator[Control]:
    control = watcher.current().ask(lambda: Control(path, echo))
    yield control
    watcher.current().ask(control.close)


def in_another_user(call: Callable[[], object]) -> int:
    """Do it as nobody, in a process of its own; its exit code."""

    def target() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        call()

    process = ClusterProcess(target=target)
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def test_its_mode_lets_only_this_user_in(control: Control, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_request_is_answered(control: Control, path: Path) -> None:
    assert asking.ask(path, "say", word="ä") == {"ok": True, "heard": {"do": "say", "word": "ä"}}


def test_several_requests_go_over_one_line(control: Control, path: Path) -> None:
    with asking.connected(path) as line:
        for number in range(3):
            assert line.ask("say", number=number)["heard"]["number"] == number


def test_what_goes_wrong_is_the_answer(control: Control, path: Path) -> None:
    with pytest.raises(CommandError, match="no such thing") as failed:
        asking.ask(path, "fail")
    assert failed.value.status == 1


@pytest.mark.parametrize("said", [b"nonsense\n", b"[1]\n", b"\xff\n", b"null\n"])
def test_nonsense_is_answered_and_the_line_stays(control: Control, path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        with sock.makefile("rb") as reader:
            sock.sendall(said)
            assert json.loads(reader.readline())["ok"] is False
            sock.sendall(b'{"do": "x"}\n')
            assert json.loads(reader.readline())["ok"] is True


def test_a_request_without_an_end_is_cut_off(control: Control, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                sock.sendall(b"x" * LONGEST)


def test_one_that_reads_nothing_holds_up_nobody(control: Control, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.settimeout(PATIENCE)
        deaf.connect(str(path))
        for _ in range(20):
            deaf.sendall(json.dumps({"do": "x" * (LONGEST // 2)}).encode() + b"\n")
        assert asking.ask(path, "say")["ok"]


@as_root
def test_another_user_cannot_connect(control: Control, path: Path) -> None:
    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(PermissionError):
            sock.connect(str(path))

    assert in_another_user(connect) == 0


@as_root
def test_another_user_is_refused_where_the_mode_would_let_him(control: Control, path: Path) -> None:
    path.chmod(0o666)

    def ask() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            try:
                sock.sendall(b'{"do": "say"}\n')
                answered = sock.recv(100)
            except (BrokenPipeError, ConnectionResetError):
                answered = b""
            assert answered == b""

    assert in_another_user(ask) == 0


@as_root
def test_who_asks_does_not_trust_a_master_of_another_user(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            path.chmod(0o666)
            listening.listen()
            mpcluster.send("there")
            listening.accept()

    pretender = ClusterProcess(target=pretend)
    diary = Diary()
    pretender.on("message", diary.writer())
    pretender.start()
    diary.until("there")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CommandError, match=f"is user {NOBODY}, not this one"):
        asking.ask(path, "status")
    pretender.join(PATIENCE)
    pretender.close()


def test_what_a_dead_master_left_is_taken_over(path: Path) -> None:
    dead_socket(str(path))
    control = watcher.current().ask(lambda: Control(path, echo))
    try:
        assert asking.ask(path, "say")["ok"]
    finally:
        watcher.current().ask(control.close)


def test_that_of_a_living_one_stays(control: Control, path: Path) -> None:
    with pytest.raises(CommandError, match="somebody answers at .* already"):
        watcher.current().ask(lambda: Control(path, echo))
    assert asking.ask(path, "say")["ok"]


def test_a_file_that_is_no_socket_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(CommandError):
        watcher.current().ask(lambda: Control(path, echo))
    assert path.read_text() == "precious"


def test_at_its_end_the_path_is_gone(path: Path) -> None:
    control = watcher.current().ask(lambda: Control(path, echo))
    watcher.current().ask(control.close)
    assert not path.exists()


# -- who asks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "reload", "stop", "top"])
def test_with_nobody_there_it_is_one_sentence_and_status_3(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert command.run([name]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"none answers in {tmp_path}/mpcluster" in said
    assert command.run([name, "--control", "absent.sock"]) == 3
    said = capsys.readouterr().err
    assert said == f"mpcluster {name}: no master answers at absent.sock: it does not run\n"


def test_a_master_is_found_by_its_program_or_as_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one, other = Program("one.py", is_module=False), Program("other", is_module=True)
    paths = [place.default(program) for program in (one, other)]
    assert place.find(None, one) == paths[0]
    assert [path.name.rpartition("-")[0] for path in paths] == ["one", "other"]
    place.prepare(paths[0])
    controls = []
    try:
        controls.append(watcher.current().ask(lambda: Control(paths[0], echo)))
        assert place.find(None, None) == paths[0]
        controls.append(watcher.current().ask(lambda: Control(paths[1], echo)))
        with pytest.raises(CommandError, match="several masters run") as several:
            place.find(None, None)
        assert all(str(path) in str(several.value) for path in paths)
    finally:
        for control in controls:
            watcher.current().ask(control.close)


def test_scripts_of_one_name_in_two_places_are_two(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "app.py", tmp_path / "b" / "app.py"
    paths = {place.default(Program(str(path), is_module=False)) for path in (first, second)}
    assert len(paths) == 2


def test_a_directory_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "mpcluster").mkdir()
    (tmp_path / "mpcluster").chmod(0o777)
    with pytest.raises(CommandError, match="not a directory of this user alone"):
        place.prepare(place.default(Program("app.py", is_module=False)))
