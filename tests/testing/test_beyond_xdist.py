"""What forked workers can do and booted ones cannot."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.running import PATIENCE


def test_with_s_output_comes_line_by_line_with_the_workers_name(suite) -> None:
    suite.tests("""
        import os, sys
        def test_it():
            sys.stdout.write("first half, ")
            sys.stdout.flush()
            os.system("echo of a child")
            print("to stderr", file=sys.stderr)
            print("no end of line", end="")
    """)
    done = suite.run("-s", n=1)
    assert "[gw0] first half, of a child" in done.text.splitlines()
    assert "[gw0] to stderr" in done.text.splitlines()
    assert "[gw0] no end of line" in done.text.splitlines()
    assert "test session starts" not in "".join(done.lines(r"^\[gw0\]"))


def test_a_shared_fixture_is_made_and_ended_once_for_all_workers(collected) -> None:
    collected.conftest("""
        import os, pathlib
        from pytest_mpcluster import shared_fixture

        LOG = pathlib.Path(__file__).parent / "log"

        @shared_fixture
        def dear():
            with LOG.open("a") as log: log.write("made\\n")
            yield {"pid": os.getpid()}
            with LOG.open("a") as log: log.write("ended\\n")
    """)
    collected.tests("""
        import os, pytest
        @pytest.mark.parametrize("number", range(20))
        def test_it(dear, number):
            assert dear["pid"] == os.getppid()
    """)
    collected.run().assert_outcomes(passed=20)
    assert (collected.path / "log").read_text() == "made\nended\n"


def test_in_mode_fork_a_shared_fixture_is_an_ordinary_one(forked) -> None:
    forked.tests("""
        import os
        from pytest_mpcluster import shared_fixture
        @shared_fixture(name="other")
        def dear(): return os.getpid()
        def test_it(other): assert other == os.getpid()
    """)
    forked.run().assert_outcomes(passed=1)


def test_a_shared_fixture_that_fails_fails_the_tests_that_ask_for_it(collected) -> None:
    collected.tests("""
        from pytest_mpcluster import shared_fixture
        @shared_fixture
        def dear(): raise RuntimeError("cannot be made")
        def test_one(dear): pass
        def test_two(dear): pass
        def test_three(): pass
    """)
    done = collected.run()
    done.assert_outcomes(passed=1, error=2)
    assert "cannot be made" in done.text


def test_collect_collects_once_and_fork_in_each_worker(suite) -> None:
    suite.tests("""
        import os, pathlib
        with open(pathlib.Path(__file__).parent / "log", "a") as log: log.write("collected\\n")
        def test_one(): pass
    """)
    suite.run(n=3)
    times = 1 if suite.mode == "collect" else 3
    assert (suite.path / "log").read_text() == "collected\n" * times


def test_conftests_are_imported_once_for_all(suite) -> None:
    suite.conftest("""
        import pathlib
        with open(pathlib.Path(__file__).parent / "log", "a") as log: log.write("loaded\\n")
    """)
    suite.tests("""
        import os
        def test_one(): pass
        def test_two(): os._exit(3)
    """)
    suite.run(n=3)
    assert (suite.path / "log").read_text() == "loaded\n"


def test_what_is_collected_in_an_order_that_changes_is_collected_once(collected) -> None:
    collected.tests("""
        import os, pytest
        @pytest.mark.parametrize("number", [os.urandom(8).hex() for _ in range(5)])
        def test_it(number): pass
    """)
    collected.run(n=4).assert_outcomes(passed=5)


def test_the_hook_after_the_fork_is_called_in_each_worker(suite) -> None:
    suite.conftest("""
        import os
        LOADED_IN = os.getpid()
        OPENED = []
        def pytest_mpcluster_after_fork(worker):
            assert os.getpid() != LOADED_IN
            OPENED.append((worker.id, worker.mode, os.environ["PYTEST_XDIST_WORKER"]))
    """)
    suite.tests(f"""
        import pytest
        from conftest import OPENED
        @pytest.mark.parametrize("number", range(10))
        def test_it(worker_id, number):
            assert OPENED == [(worker_id, "{suite.mode}", worker_id)]
    """)
    suite.run().assert_outcomes(passed=10)


def test_a_hook_after_the_fork_that_fails_is_told(suite) -> None:
    suite.conftest("""
        def pytest_mpcluster_after_fork(worker): raise RuntimeError("cannot open")
    """)
    suite.tests("def test_it(): pass")
    done = suite.run("--max-worker-restart=0")
    assert done.status != 0
    assert "cannot open" in done.text


def test_random_numbers_differ_from_worker_to_worker(suite) -> None:
    pytest.importorskip("numpy")
    suite.conftest("import random, numpy; random.seed(1); numpy.random.seed(1)")
    suite.tests("""
        import random, numpy, pytest
        @pytest.mark.parametrize("number", range(2))
        def test_it(worker_id, number):
            print("DRAWN", worker_id, random.random(), numpy.random.random())
            assert False
    """)
    drawn = [line.split()[2:] for line in suite.run("--dist=each").lines("^DRAWN")]
    assert len(drawn) == 4
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 4


UNSAFE = {
    "a thread": (("import threading; threading.Thread(target=threading.Event().wait, "
                 "name='heartbeat', daemon=True).start()"), "the thread 'heartbeat'"),
    "a loop": ("import asyncio; LOOP = asyncio.new_event_loop()", "an event loop was open"),
    "a listener": ("import socket; S = socket.create_server(('127.0.0.1', 0))",
                   "a socket at 127.0.0.1:"),
    "a database": (("import sqlite3, tempfile; C = sqlite3.connect(tempfile.mktemp()); "
                   "C.execute('create table t (c)'); C.commit()"), "the SQLite database"),
}  # fmt: skip


@pytest.mark.parametrize(
    "thing", ["a thread", *(pytest.param(t, marks=pytest.mark.slow) for t in [*UNSAFE][1:])]
)
def test_what_a_fork_cannot_take_along_is_named(suite, thing) -> None:
    code, said = UNSAFE[thing]
    suite.conftest(code)
    suite.tests("def test_it(): pass")
    done = suite.run()
    done.assert_outcomes(passed=1)
    assert done.lines(rf"ForkSafetyWarning: before the workers were forked, {said}")
    assert len(done.lines("ForkSafetyWarning")) == 1


NATIVE = """
    import ctypes, mmap, pathlib
    LIBRARY = pathlib.Path(__file__).with_name("libcuda.so.1")
    LIBRARY.write_bytes(bytes(4096))
    with LIBRARY.open("r+b") as file:
        MAPPED = mmap.mmap(file.fileno(), 0) if {mapped} else None
    C = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    assert C.pthread_create(ctypes.byref(thread), None, C.pause, None) == 0
"""


@pytest.mark.parametrize(
    ("mapped", "said"), [(True, "perhaps of CUDA"), (False, "of a library unknown")]
)
def test_threads_of_a_library_are_named_by_what_is_loaded(forked, mapped, said) -> None:
    forked.conftest(NATIVE.format(mapped=mapped))
    forked.tests("def test_it(): pass")
    done = forked.run()
    done.assert_outcomes(passed=1)
    assert done.lines(f"1 threads were running outside Python, {said}")


def test_what_collection_opens_is_named_too(collected) -> None:
    collected.tests(UNSAFE["a thread"][0] + "\ndef test_it(): pass")
    assert len(collected.run().lines("ForkSafetyWarning: .*'heartbeat'")) == 1


def test_a_program_with_nothing_of_it_gets_no_warning(suite) -> None:
    suite.conftest("import asyncio, sqlite3, socket, threading, logging, multiprocessing")
    suite.tests("def test_it(): pass")
    done = suite.run()
    assert "Warning" not in done.text


def test_where_warnings_are_errors_it_is_refused_in_a_sentence(forked) -> None:
    forked.conftest(UNSAFE["a thread"][0])
    forked.tests("def test_it(): pass")
    done = forked.run("-W", "error")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "'heartbeat'" in done.text


class Keyboard:
    """Somebody at a terminal, in front of a pytest."""

    def __init__(self, suite, *arguments: str) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(suite.path)
            os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
            for name in [name for name in os.environ if name.startswith("PYTEST_")]:
                del os.environ[name]
            os.execv(sys.executable, [sys.executable, *suite.command("--color=no", *arguments)])

    def interrupt_until(self, text: str, count: int) -> None:
        """Press Ctrl-C until it is heard.

        One that comes in the instant before readline waits for a key is noticed only with
        the next: so a person, too, presses it again.
        """
        for _ in range(10):
            self.type("\x03")
            try:
                return self.wait_for(text, count, PATIENCE / 10)
            except AssertionError:
                continue
        raise AssertionError(f"Ctrl-C was not heard:\n{self.seen}")

    def wait_for(self, text: str, count: int = 1, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while self.seen.count(text) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come:\n{self.seen}"
            self._read(left)

    def _read(self, patience: float) -> bool:
        if not select.select([self.fd], [], [], patience)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # its end: the terminal is nobody's any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        while self._read(PATIENCE):
            pass
        os.close(self.fd)
        self.fd = -1
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def leave(self) -> None:
        """The test is over, whatever came of it."""
        if self.fd >= 0:
            os.killpg(self.pid, signal.SIGKILL)
            self.end()


@pytest.fixture
def sit_down() -> Iterator[Callable[..., Keyboard]]:
    with contextlib.ExitStack() as stack:

        def sit(*arguments) -> Keyboard:
            keyboard = Keyboard(*arguments)
            stack.callback(keyboard.leave)
            return keyboard

        yield sit


BREAKPOINTS = """
    import pytest
    @pytest.mark.parametrize("number", [1, 2])
    def test_it(number, worker_id):
        value = f"value {number}"
        breakpoint()
        assert value == "changed"
"""


@pytest.mark.parametrize("more", [(), pytest.param(("-s",), marks=pytest.mark.slow)])
def test_one_worker_after_the_other_has_the_terminal_at_a_breakpoint(suite, more, sit_down) -> None:
    suite.tests(BREAKPOINTS)
    keyboard = sit_down(suite, "-n2", f"--mpcluster={suite.mode}", *more)
    for turn in (1, 2):
        keyboard.wait_for("(Pdb)", 2 * turn - 1)
        assert keyboard.seen.count("has the terminal, in test_it.py::test_it") == turn
        keyboard.type("value = 'changed'\n")
        keyboard.wait_for("(Pdb)", 2 * turn)
        keyboard.type("continue\n")
    assert keyboard.end() == 0, keyboard.seen
    assert "2 passed" in keyboard.seen


def test_pdb_shows_the_traceback_of_the_test_that_failed(suite, sit_down) -> None:
    suite.tests("""
        def test_it():
            culprit = "it was me"
            assert culprit == "innocent"
    """)
    keyboard = sit_down(suite, "-n2", f"--mpcluster={suite.mode}", "--pdb")
    keyboard.wait_for("(Pdb)")
    # xdist gives its first test to the worker that was ready first.
    assert re.search("gw[01] has the terminal, in test_it.py::test_it", keyboard.seen)
    assert "AssertionError" in keyboard.seen
    keyboard.type("p culprit.upper()\n")
    keyboard.wait_for("IT WAS ME")
    keyboard.type("continue\n")
    assert keyboard.end() == pytest.ExitCode.TESTS_FAILED, keyboard.seen
    assert "1 failed" in keyboard.seen


def test_ctrl_c_in_a_debugger_is_the_debuggers(forked, sit_down) -> None:
    forked.tests(BREAKPOINTS)
    keyboard = sit_down(forked, "-n1", "--mpcluster", "-k", "1")
    keyboard.wait_for("(Pdb)")
    keyboard.interrupt_until("(Pdb)", 2)
    keyboard.type("value = 'changed'\n")
    keyboard.wait_for("(Pdb)", 3)
    keyboard.type("continue\n")
    assert keyboard.end() == 0, keyboard.seen


def test_a_worker_killed_in_its_debugger_gives_the_terminal_back(forked, sit_down) -> None:
    forked.tests("""
        import os
        def test_it():
            breakpoint()
        def test_other(): pass
    """)
    keyboard = sit_down(forked, "-n1", "--mpcluster")
    keyboard.wait_for("(Pdb)")
    keyboard.type("os._exit(3)\n")
    assert keyboard.end() == pytest.ExitCode.TESTS_FAILED, keyboard.seen
    assert "1 failed, 1 passed" in keyboard.seen


def test_without_a_terminal_a_breakpoint_fails_the_test_as_with_xdist(forked) -> None:
    forked.tests("def test_it(): breakpoint()")
    done = forked.run()
    assert done.status != 0
