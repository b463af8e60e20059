"""`mpcluster run`: the program in its workers, and the master's signals."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.masters import (  # noqa: F401
    ASYNCIO,
    SERVER,
    Master,
    answer,
    connection,
    start_fixture,
    write,
)
from tests.running import PATIENCE

Start = Callable[..., Master]

TELL = """
import json, signal, sys
if __name__ == "__main__":
    handlers = [str(signal.getsignal(one)) for one in
                (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT)]
    print("told", json.dumps([sys.argv, sys.path[0], __package__, __file__, handlers]))
    print("to stderr", file=sys.stderr)
    signal.pause()
"""


def told(master: Master) -> list[object]:
    found: list[object] = json.loads(master.wait_for(r"told (.*)$")[1])
    return found


def test_a_script_runs_as_the_interpreter_would_run_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib" / "tell.py", TELL)
    argv, path, package, file, handlers = told(
        start("-n", 1, "lib/tell.py", "-n", "3", "--json", "x")
    )
    assert argv == ["lib/tell.py", "-n", "3", "--json", "x"]
    assert path == str(tmp_path / "lib")
    assert package is None
    assert file == str(tmp_path / "lib" / "tell.py")
    assert handlers == [str(signal.SIG_DFL)] * 4


def test_a_package_runs_as_python_m_would_run_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    write(tmp_path / "tool" / "__init__.py", "")
    main = write(tmp_path / "tool" / "__main__.py", TELL)
    argv, path, package, *_ = told(start("-n", 1, "-m", "tool", "--port", "80"))
    assert argv == [str(main), "--port", "80"]
    assert path == str(tmp_path)
    assert package == "tool"


def test_an_archive_with_a_main_program_runs(start: Start, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", TELL)
    argv, path, *_ = told(start("-n", 1, "app.pyz", "x"))
    assert argv == ["app.pyz", "x"]
    assert path == str(tmp_path / "app.pyz")


def test_the_master_does_not_import_the_program(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", "import os\nprint('as', os.getpid())\n" + SERVER)
    master = start("-n", 2, "app.py")
    master.serves(2)
    master.stop()
    importers = {line.split("as ")[1] for line in master.lines if "| as " in line}
    assert len(importers) == 2
    assert str(master.pid) not in importers


def test_each_line_says_whose_it_is(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "tell.py", TELL)
    master = start("-n", 1, "tell.py")
    master.wait_for(r"to stderr")
    assert master.stop() == 0
    pid = master.text.split("told")[0].rsplit("(", 1)[1].split(")")[0]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert any(line.endswith(f" slot 0 ({pid}) | to stderr") for line in master.lines)
    for line in master.lines:
        assert re.match(rf"{stamp} (master \({master.pid}\)|slot 0 \({pid}\)) \| ", line), line


def test_as_json_each_line_is_an_object(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "tell.py", TELL)
    master = start("-n", 1, "--json", "tell.py")
    master.wait_for(r"to stderr")
    assert master.stop() == 0
    lines = [json.loads(line) for line in master.lines]
    (its_own,) = [line for line in lines if line["text"] == "to stderr"]
    assert (its_own["from"], its_own["slot"], its_own["stream"]) == ("worker", 0, "stderr")
    assert {line["pid"] for line in lines if line["from"] == "master"} == {master.pid}


def test_raw_workers_write_for_themselves(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", "print('as it is', flush=True)\n" + SERVER.replace(
        'server_port)', 'server_port, flush=True)'))  # fmt: skip
    master = start("-n", 1, "--log-form", "raw", "app.py")
    master.serves()
    assert "as it is" in master.lines
    assert master.stop() == 0


# -- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_workers_finish_what_they_have(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    with connection(master.serves(2)) as asking:
        asking.post_half()
        master.wait_for(r"busy")
        os.killpg(master.pid, number)  # as a terminal does
        master.wait_for(r"stop: ")
        asking.send(b"x")
        answer(asking)
    assert master.end() == (0 if number is signal.SIGTERM else -signal.SIGINT)
    assert "Traceback" not in master.text


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_one_ends_them_at_once(
    start: Start, tmp_path: Path, second: signal.Signals
) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "app.py")
    with connection(master.serves()) as asking:
        asking.post_half()
        master.wait_for(r"busy")
        master.kill(signal.SIGTERM)
        master.wait_for(r"stop: ")
        master.kill(second)
        master.wait_for(r"stop at once")
        with pytest.raises((ConnectionError, OSError)):
            answer(asking)
    master.end()
    assert "SIGKILL" in master.text


def test_quit_ends_at_once(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    with connection(master.serves(2)) as asking:
        asking.post_half()
        master.wait_for(r"busy")
        master.kill(signal.SIGQUIT)
        assert master.end() == 0
    assert "SIGKILL" in master.text


@pytest.mark.parametrize(
    ("program", "policy"),
    [(SERVER, "auto"), (ASYNCIO, "auto"), (SERVER, "round_robin"), (ASYNCIO, "round_robin")],
    ids=["shared", "slots", "threads-round_robin", "asyncio-round_robin"],
)
def test_after_a_hup_nobody_meets_the_old_program_any_more(
    start: Start, tmp_path: Path, program: str, policy: str
) -> None:
    script = write(tmp_path / "app.py", program)
    master = start("-n", 2, "--scheduling", policy, "app.py")
    master.serves(2)
    assert master.get()[1] == "1"
    write(script, program.replace('"1"', '"2"'))
    master.kill(signal.SIGHUP)
    master.wait_for(r"reload: done")
    assert {master.get()[1] for _ in range(8)} == {"2"}
    assert master.stop() == 0


def test_ttin_and_ttou_scale_by_one(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "app.py")
    master.serves()
    master.kill(signal.SIGTTIN)
    master.serves()
    assert len(master.pids()) == 2
    master.kill(signal.SIGTTOU)
    master.wait_for(r"slot 1\) exited with 0")
    assert len(master.pids()) == 1
    master.kill(signal.SIGTTOU)  # the last one stays
    assert master.stop() == 0
    assert "workers: 0" not in master.text


def test_a_killed_worker_is_replaced_on_the_same_port(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 1, "app.py")
    port = master.serves()
    first, _ = master.get()
    os.kill(first, signal.SIGKILL)
    assert master.serves() == port
    assert master.get()[0] != first
    assert master.stop() == 0


def test_no_worker_outlives_a_killed_master(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    port = master.serves(2)
    workers = [os.pidfd_open(pid) for pid in master.pids()]
    master.kill(signal.SIGKILL)
    for worker in workers:
        assert select.select([worker], [], [], PATIENCE)[0]
        os.close(worker)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


# -- what goes wrong -------------------------------------------------------------------------


def test_a_script_that_is_not_there_is_named(start: Start) -> None:
    master = start("absent.py")
    assert master.end() == 2
    assert master.lines == [
        f"mpcluster run: there is no script absent.py (here is {master.directory})"
    ]


def test_a_module_that_is_not_there_is_named(start: Start) -> None:
    master = start("-m", "absent.module")
    assert master.end() == 2
    assert "there is no module 'absent'" in master.text
    assert len(master.lines) == 1


def test_a_script_that_ends_at_once_is_given_up_with_the_reason(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "app.py", "import sys\nsys.exit('the database is not there')")
    master = start("-n", 2, "--max-crashes", 2, "app.py")
    assert master.end() == 1
    assert "every worker ended 2 times in a row" in master.text
    behind = master.text.split("the last that it wrote to stderr:")[1]
    assert "the database is not there" in behind


def test_a_program_that_is_through_is_not_started_again_if_so_wished(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "app.py", "print('done')")
    master = start("-n", 2, "--restart", "on-failure", "app.py")
    assert master.end() == 0
    assert master.text.count("| done") == 2


def test_the_exit_status_tells_that_a_worker_failed(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", "import sys\nsys.exit(3)")
    assert start("-n", 1, "--restart", "never", "app.py").end() == 1


def test_a_port_that_is_taken_is_named(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        master = start("-n", 2, "--max-crashes", 1, "app.py", port)
        assert master.end() == 1
    behind = master.text.split("the last that it wrote to stderr:")[1]
    assert "Address already in use" in behind
    assert str(port) in behind


def test_a_syntax_error_before_a_reload_leaves_the_old_workers_serving(
    start: Start, tmp_path: Path
) -> None:
    script = write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    master.serves(2)
    before = master.pids()
    write(script, "def broken(:")
    done = master.command("reload")
    assert done.returncode == 1
    assert "the reload was given up, and the workers that were left serve on" in done.stderr
    assert "Traceback" not in done.stderr
    assert master.pids() == before
    assert master.get()[0] in before
    write(script, SERVER.replace('"1"', '"2"'))
    assert master.command("reload").returncode == 0
    assert master.get()[1] == "2"
    assert master.stop() == 0


def test_a_program_that_never_listens_cannot_be_reloaded_and_is_told_why(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "tell.py", TELL)
    master = start("-n", 1, "--ready-timeout", "0.5s", "tell.py")
    told(master)
    master.wait_for(r"is not ready after 0.5 s: .* wants ready='online'")
    done = master.command("reload")
    assert done.returncode == 1
    assert re.search(r"the reload was given up, .* was not ready after 0.5 s,", done.stderr)
    assert master.stop() == 0


def test_one_that_never_listens_is_reloaded_if_it_is_ready_when_it_runs(
    start: Start, tmp_path: Path
) -> None:
    write(tmp_path / "tell.py", TELL)
    master = start("-n", 1, "--ready", "online", "tell.py")
    told(master)
    before = master.pids()
    assert master.command("reload").returncode == 0
    assert master.pids() != before
    assert master.stop() == 0


def test_a_reload_during_a_reload_follows_it(start: Start, tmp_path: Path) -> None:
    script = write(tmp_path / "app.py", SERVER)
    master = start("-n", 2, "app.py")
    master.serves(2)
    master.kill(signal.SIGHUP)
    master.wait_for(r"reload: app.py")
    write(script, SERVER.replace('"1"', '"2"'))
    assert master.command("reload").returncode == 0
    assert {master.get()[1] for _ in range(10)} == {"2"}
    assert master.stop() == 0


def test_a_rule_that_is_none_is_named(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("--restart", "sometimes", "app.py")
    assert master.end() == 2
    assert master.lines == [
        "mpcluster run: restart must be one of always, on-failure, never, not 'sometimes'"
    ]


def test_a_scheduling_policy_that_is_none_is_named(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "app.py", SERVER)
    master = start("--scheduling", "lottery", "app.py")
    assert master.end() == 2
    assert "no scheduling policy is named 'lottery'" in master.text


# -- preload ---------------------------------------------------------------------------------


def test_what_is_preloaded_is_imported_once_in_the_master(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "heavy.py", "import os\nMADE_BY = os.getpid()")
    write(tmp_path / "app.py", "import heavy\nprint('made by', heavy.MADE_BY)\n" + SERVER)
    master = start("-n", 2, "--preload", "heavy", "app.py")
    master.serves(2)
    assert master.stop() == 0
    assert re.findall(r"made by (\d+)", master.text) == [str(master.pid)] * 2


def test_what_is_preloaded_is_left_alone_by_the_workers_garbage_collectors(
    start: Start, tmp_path: Path
) -> None:
    """They would write to each object's page, which is then a worker's own."""
    write(tmp_path / "heavy.py", "TABLE = [[]]")
    write(
        tmp_path / "app.py",
        "import gc, heavy\n"
        "print('looked after:', any(one is heavy.TABLE for one in gc.get_objects()))\n" + SERVER,
    )
    master = start("-n", 1, "--preload", "heavy", "app.py")
    assert master.wait_for(r"looked after: (\w+)")[1] == "False"
    assert master.stop() == 0


def test_what_cannot_be_preloaded_is_named(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "heavy.py", "1 / 0")
    write(tmp_path / "app.py", SERVER)
    master = start("--preload", "heavy", "app.py")
    assert master.end() == 1
    assert master.lines == ["mpcluster run: --preload heavy: ZeroDivisionError: division by zero"]
