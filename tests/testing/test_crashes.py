"""A worker that dies: told with the signal's name, replaced, and every test has one outcome."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.running import finish


def outcomes_are_one_each(done, number: int) -> None:
    assert sum(done.cases.values()) == number, done.text
    assert len({name for name, _ in done.cases}) == number or number == sum(done.cases.values())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        pytest.param("faulthandler._sigsegv()", "killed by SIGSEGV", marks=pytest.mark.slow),
        pytest.param("os.abort()", "killed by SIGABRT", marks=pytest.mark.slow),
        ("os._exit(3)", "exited with status 3"),
    ],
)
def test_the_report_says_how_it_ended_and_what_it_had_written(suite, code, said) -> None:
    suite.tests(f"""
        import faulthandler, os, signal, sys
        def test_before(): pass
        def test_dies():
            print("my last words")
            print("my last error", file=sys.stderr)
            {code}
        def test_after(): pass
    """)
    done = suite.run(n=1)
    done.assert_outcomes(passed=2, failed=1)
    assert done.lines(rf"worker 'gw0' crashed while running 'test_it.py::test_dies': {said}")
    assert "my last words" in done.text
    assert "my last error" in done.text
    assert "replacing crashed worker gw0" in done.text


def test_a_fatal_error_shows_its_stack_in_the_report(suite) -> None:
    suite.tests("""
        import faulthandler
        def test_dies(): faulthandler._sigsegv()
    """)
    text = suite.run(n=1).text
    report = text[text.index("FAILURES") :]
    assert "Captured stderr of the worker" in report
    assert "in test_dies" in report


def test_what_the_setup_had_written_is_in_the_report(suite) -> None:
    suite.tests("""
        import os, pytest
        @pytest.fixture
        def made(): print("written in the setup")
        def test_dies(made): os._exit(3)
    """)
    assert "written in the setup" in suite.run(n=1).text


def test_a_worker_whose_child_lives_on_is_dead_all_the_same(forked) -> None:
    # The child holds the worker's end of the stream for as long as it lives.
    forked.tests("""
        import os, pathlib, time
        def test_dies():
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            pathlib.Path(__file__).with_name("child").write_text(str(child))
            os._exit(3)
        def test_after(): pass
    """)
    try:
        forked.run(n=1).assert_outcomes(passed=1, failed=1)
    finally:
        os.kill(int((forked.path / "child").read_text()), signal.SIGKILL)


def test_a_worker_that_closes_its_stream_is_replaced(suite) -> None:
    suite.tests("""
        import os
        def test_closes():
            os.closerange(3, 256)
        def test_after(): pass
    """)
    suite.run(n=1).assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize("where", ["def pytest_collection_modifyitems", "def pytest_configure"])
def test_death_before_any_test_ends_the_run(forked, where) -> None:
    forked.conftest(f"""
        import os
        {where}(config):
            if hasattr(config, "workerinput"):
                os._exit(4)
    """)
    forked.tests("def test_it(): pass")
    done = forked.run("--max-worker-restart=3")
    assert done.status != 0
    assert "exited with status 4" in done.text


def test_death_of_the_template_while_it_collects_ends_the_run(collected) -> None:
    collected.tests("import os; os._exit(4)")
    done = collected.run()
    assert done.status != 0
    assert "the process that forks the workers" in done.text


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("setup", marks=pytest.mark.slow),
        "call",
        pytest.param("teardown", marks=pytest.mark.slow),
    ],
)
def test_death_while_reporting_leaves_every_test_with_an_outcome(suite, when) -> None:
    suite.conftest(f"""
        import os, signal
        def pytest_runtest_logreport(report):
            if hasattr(report, "node"):
                return
            if report.when == "{when}" and report.nodeid.endswith("[3]"):
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    suite.tests("""
        import pytest
        @pytest.mark.parametrize("number", range(10))
        def test_it(number): pass
    """)
    done = suite.run()
    assert len({name for name, _ in done.cases}) == 10, done.text
    assert "killed by SIGKILL" in done.text


def test_os_exit_in_a_fixture_is_that_tests_failure(suite) -> None:
    suite.tests("""
        import os, pytest
        @pytest.fixture
        def deadly(): os._exit(0)
        def test_one(): pass
        def test_dies(deadly): pass
        def test_two(): pass
    """)
    suite.run().assert_outcomes(passed=2, failed=1)


@pytest.mark.slow
def test_two_hundred_crashes_are_two_hundred_failures(suite) -> None:
    suite.tests("""
        import os, pytest
        @pytest.mark.parametrize("number", range(220))
        def test_it(number):
            if number < 200:
                os.kill(os.getpid(), 9)
    """)
    done = suite.run("--max-worker-restart=1000", "-q")
    done.assert_outcomes(passed=20, failed=200)
    assert set(done.cases.values()) == {1}


def test_no_more_are_replaced_than_the_option_says(suite) -> None:
    suite.tests("""
        import os, pytest
        @pytest.mark.parametrize("number", range(10))
        def test_it(number): os._exit(1)
    """)
    done = suite.run("--max-worker-restart=2", n=1)
    assert "maximum crashed workers reached: 2" in done.text
    assert len(done.lines("^replacing crashed worker")) == 2


def test_a_test_that_hangs_is_killed_and_shows_where(suite) -> None:
    suite.tests("""
        import threading
        def test_before(): pass
        def test_hangs():
            print("about to hang")
            threading.Event().wait()
        def test_after(): pass
    """)
    done = suite.run("--mpcluster-timeout=0.5", n=1)
    done.assert_outcomes(passed=2, failed=1)
    assert done.lines("ran longer than --mpcluster-timeout=0.5 seconds, killed by SIGABRT")
    assert "about to hang" in done.text
    assert "in test_hangs" in done.text


@pytest.mark.slow
def test_one_that_minds_no_sigabrt_is_killed(forked) -> None:
    forked.tests("""
        import signal, threading
        def test_hangs():
            signal.signal(signal.SIGABRT, signal.SIG_IGN)
            threading.Event().wait()
    """)
    done = forked.run("--mpcluster-timeout=0.5", "-p", "no:faulthandler", n=1)
    assert done.lines("ran longer than --mpcluster-timeout=0.5 seconds, killed by SIGKILL")


RUNS_ON = """
    import os, pathlib, time
    def test_it():
        with open(os.environ["FIFO"], "w") as fifo:
            fifo.write(str(os.getpid()))
        while True:
            pass
"""


def _begin(suite, tmp_path) -> tuple[subprocess.Popen[str], int]:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = suite.begin("-n2", f"--mpcluster={suite.mode}", env={"FIFO": str(fifo)})
    with open(fifo) as read:
        return program, int(read.read())


def test_no_worker_outlives_a_controller_that_was_killed(suite, tmp_path) -> None:
    suite.tests(RUNS_ON)
    program, worker = _begin(suite, tmp_path)
    pidfd = os.pidfd_open(worker)
    try:
        program.kill()
        program.communicate()  # its pipe is let go of by all of them
        import select

        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)


def test_ctrl_c_ends_it_as_plain_pytest(suite, tmp_path) -> None:
    suite.tests(RUNS_ON)
    program, _ = _begin(suite, tmp_path)
    os.killpg(program.pid, signal.SIGINT)
    done = finish(program)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "KeyboardInterrupt" in done.stdout


def test_a_template_that_was_killed_is_named(forked) -> None:
    forked.tests("""
        import os
        def test_kills(): os.kill(os.getppid(), 9)
        def test_dies(): os._exit(3)
        def test_after(): pass
    """)
    done = forked.run(n=1)
    assert done.status != 0
    assert "the process that forks the workers of --mpcluster is gone" in done.text
