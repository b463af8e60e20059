"""What users of pytest-xdist rely on holds on forked workers, in both modes."""

from __future__ import annotations

import os
import re

import pytest

OUTCOMES = """
    import sys, warnings
    import pytest

    @pytest.fixture
    def broken():
        raise RuntimeError("in a fixture")

    def test_passes(): pass
    def test_fails():
        print("written to stdout")
        print("written to stderr", file=sys.stderr)
        left, right = [1, 2], [1, 3]
        assert left == right
    def test_errors(broken): pass
    @pytest.mark.skip(reason="not today")
    def test_skips(): pass
    @pytest.mark.xfail
    def test_xfails(): assert False
    def test_warns(): warnings.warn("mind this", UserWarning)
    @pytest.mark.parametrize("number", range(20))
    def test_many(number): pass
"""


def test_outcomes_are_those_of_plain_pytest(suite) -> None:
    suite.tests(OUTCOMES)
    plain, ours = suite.plain(), suite.run()
    assert ours.cases == plain.cases
    assert ours.status == plain.status
    assert len(ours.cases) == 26


@pytest.mark.parametrize(
    "dist",
    [
        "load",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("loadscope", "loadfile", "loadgroup", "worksteal")
        ),
    ],
)
def test_every_way_of_distribution_runs_each_test_once(suite, dist) -> None:
    for name in ("test_one.py", "test_two.py"):
        suite.tests(OUTCOMES, name)
    done = suite.run("--dist", dist)
    done.assert_outcomes(passed=44, failed=2, error=2, skipped=2, xfailed=2)


def test_each_runs_each_test_in_each_worker(suite) -> None:
    suite.tests("def test_it(): pass")
    suite.run("--dist", "each").assert_outcomes(passed=2)


@pytest.mark.slow
def test_a_group_stays_together(suite) -> None:
    suite.tests("""
        import os, pytest
        @pytest.mark.xdist_group("one")
        @pytest.mark.parametrize("number", range(10))
        def test_it(number):
            print("ran in", os.getpid())
            assert False
    """)
    theirs = suite.plain("-n2", "--dist", "loadgroup")
    done = suite.run("--dist", "loadgroup")
    assert sum(done.cases.values()) == 10
    if len(set(theirs.lines("^ran in"))) != 1:
        pytest.skip("this pytest-xdist keeps no group together with this pytest")
    assert len(set(done.lines("^ran in"))) == 1
    assert done.lines(r"FAILED .*test_it\[0\]@one")


def test_captured_output_and_the_explained_assertion_are_in_the_report(suite) -> None:
    suite.tests(OUTCOMES)
    text = suite.run().text
    assert "assert [1, 2] == [1, 3]" in text
    assert "At index 1 diff: 2 != 3" in text
    assert "written to stdout" in text
    assert "written to stderr" in text
    assert "UserWarning: mind this" in text


@pytest.mark.slow
def test_what_a_conftest_prints_is_in_the_first_report_as_with_xdist(suite) -> None:
    suite.conftest("print('said by the conftest')")
    suite.tests("import missing_module")
    assert "said by the conftest" in suite.run().text


def test_verbose_names_the_worker(suite) -> None:
    suite.tests("def test_it(): pass")
    assert suite.run("-v").lines(r"^\[gw[01]\] \[100%\] PASSED test_it.py::test_it")


def test_a_worker_knows_who_it_is(suite) -> None:
    suite.conftest("""
        import pytest

        def pytest_configure_node(node):
            node.workerinput["greeting"] = f"hello {node.gateway.id}"

        def pytest_sessionfinish(session):
            if hasattr(session.config, "workerinput"):
                session.config.workeroutput["answer"] = session.config.workerinput["workerid"]

        @pytest.hookimpl
        def pytest_testnodedown(node, error):
            print("ANSWER", node.gateway.id, node.workeroutput["answer"], error)
    """)
    suite.tests("""
        import os, sys, pytest, xdist
        @pytest.mark.parametrize("number", range(8))
        def test_it(request, worker_id, testrun_uid, tmp_path, number):
            given = request.config.workerinput
            assert worker_id in ("gw0", "gw1")
            assert given["workerid"] == worker_id == os.environ["PYTEST_XDIST_WORKER"]
            assert given["greeting"] == f"hello {worker_id}"
            assert given["testrunuid"] == testrun_uid == os.environ["PYTEST_XDIST_TESTRUNUID"] == "me"
            assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "2"
            assert f"popen-{worker_id}" in str(tmp_path)
            assert xdist.is_xdist_worker(request) and not xdist.is_xdist_controller(request)
            assert given["mainargv"] == sys.argv
            with pytest.raises(EOFError):
                os.read(0, 1) or (_ for _ in ()).throw(EOFError)
    """)
    done = suite.run("--testrunuid=me", "-s")
    done.assert_outcomes(passed=8)
    said = re.findall("ANSWER (.*)", done.text)
    assert sorted(said) == ["gw0 gw0 None", "gw1 gw1 None"]


def test_the_hooks_of_xdist_are_called(suite) -> None:
    suite.conftest("""
        def pytest_xdist_setupnodes(config, specs): print("HOOK setupnodes", len(specs))
        def pytest_xdist_newgateway(gateway): print("HOOK newgateway", gateway.id)
        def pytest_testnodeready(node): print("HOOK ready", node.gateway.id)
        def pytest_xdist_node_collection_finished(node, ids): print("HOOK collected", len(ids))
        def pytest_xdist_auto_num_workers(config): return 3
    """)
    suite.tests("def test_it(): pass")
    done = suite.plain("-nauto", f"--mpcluster={suite.mode}", "-s")
    said = sorted(line.split("HOOK ")[1] for line in done.lines("HOOK"))
    expected = ["newgateway gw0", "newgateway gw1", "newgateway gw2", "setupnodes 3"]
    assert said == ["collected 1"] * 3 + expected[:3] + [
        "ready gw0",
        "ready gw1",
        "ready gw2",
        expected[3],
    ]


def test_maxprocesses_and_maxfail_hold(suite) -> None:
    suite.tests("""
        import pytest
        @pytest.mark.parametrize("number", range(200))
        def test_it(number, worker_id):
            assert worker_id == "nobody"
    """)
    done = suite.run("--maxprocesses=1", "--maxfail=3", n=4)
    assert done.status == pytest.ExitCode.INTERRUPTED
    assert "stopping after 3 failures" in done.text
    assert "created: 1/1 worker" in done.text


@pytest.mark.slow
def test_last_failed_runs_what_failed(suite) -> None:
    suite.tests(OUTCOMES)
    suite.run("-p", "cacheprovider")
    suite.run("--lf").assert_outcomes(failed=1, error=1)


def test_an_error_in_collection_is_reported_once(suite) -> None:
    suite.tests("import missing_module")
    done = suite.run()
    assert done.status in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED)
    done.assert_outcomes(error=1)


def test_an_error_in_configuration_ends_the_run(suite) -> None:
    suite.conftest("""
        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                raise RuntimeError("cannot be configured")
    """)
    suite.tests("def test_it(): pass")
    done = suite.run("--max-worker-restart=0")
    assert done.status != 0
    assert "cannot be configured" in done.text


def test_fixtures_of_the_session_are_torn_down_in_each_worker(suite) -> None:
    suite.tests("""
        import atexit, pathlib, tempfile, threading, pytest
        HERE = pathlib.Path(__file__).parent

        @pytest.fixture(scope="session", autouse=True)
        def made(worker_id):
            unflushed = open(HERE / f"file-{worker_id}", "w")
            unflushed.write("whole")
            made.kept = unflushed
            atexit.register(lambda: (HERE / f"exit-{worker_id}").touch())
            made.directory = tempfile.TemporaryDirectory(dir=HERE, prefix="temporary-")
            yield
            (HERE / f"down-{worker_id}").touch()

        @pytest.mark.parametrize("number", range(20))
        def test_it(number): pass
    """)
    suite.run("-s").assert_outcomes(passed=20)
    names = sorted(file.name for file in suite.path.iterdir() if "-gw" in file.name)
    assert names == [f"{kind}-gw{number}" for kind in ("down", "exit", "file") for number in (0, 1)]
    assert (suite.path / "file-gw0").read_text() == "whole"
    assert not list(suite.path.glob("temporary-*"))


@pytest.mark.slow
def test_a_worker_has_the_time_that_its_end_takes(suite) -> None:
    suite.conftest("""
        import atexit, pathlib, time
        def pytest_sessionfinish(session):
            if hasattr(session.config, "workerinput"):
                atexit.register(slowly)
        def slowly():
            time.sleep(1.5)
            pathlib.Path(__file__).with_name("ended").touch()
    """)
    suite.tests("def test_it(): pass")
    suite.run(n=1).assert_outcomes(passed=1)
    assert (suite.path / "ended").exists()


def test_a_program_under_test_finds_itself_in_a_main_process(suite) -> None:
    suite.tests("""
        import multiprocessing, threading
        import mpcluster

        def test_it():
            assert mpcluster.is_master and mpcluster.worker is None
            assert multiprocessing.parent_process() is None
            assert multiprocessing.current_process().name == "MainProcess"
            assert threading.current_thread() is threading.main_thread()

        def test_it_may_have_workers_of_its_own():
            worker = mpcluster.fork(lambda: mpcluster.send("hello"))
            heard = []
            worker.on("message", heard.append)
            assert mpcluster.join(30)
            assert heard == ["hello"]
    """)
    suite.run().assert_outcomes(passed=2)


def test_an_internal_error_of_a_worker_is_shown(suite) -> None:
    suite.conftest("""
        def pytest_runtest_protocol(item):
            raise RuntimeError("a plugin that breaks")
    """)
    suite.tests("def test_it(): pass")
    assert "a plugin that breaks" in suite.run("--max-worker-restart=0").text


def test_with_an_interpreter_of_another_spec_xdist_starts_it_itself(forked) -> None:
    import sys

    forked.tests("""
        import sys
        def test_it():
            print("forked", "mpcluster.testing" in sys.modules)
            assert 0
    """)
    done = forked.plain(
        "--dist=each", "--tx=popen", f"--tx=popen//python={sys.executable}", "--mpcluster"
    )
    done.assert_outcomes(failed=2)
    assert sorted(done.lines("^forked")) == ["forked False", "forked True"]


@pytest.mark.slow
def test_a_worker_behind_a_proxy_is_execnets(forked) -> None:
    forked.tests("def test_it(): pass")
    specs = ("--px=popen//id=proxy", "--tx=popen//via=proxy", "--tx=popen")
    forked.plain("--dist=each", *specs, "--mpcluster").assert_outcomes(passed=2)


def test_the_environment_of_a_spec_is_the_workers(forked) -> None:
    forked.tests(f"""
        import os
        def test_it():
            assert os.environ["GIVEN"] == "yes"
            assert os.nice(0) == {min(19, os.nice(0) + 3)}
    """)
    forked.plain("--dist=load", "--tx=popen//env:GIVEN=yes//nice=3", "--mpcluster").assert_outcomes(
        passed=1
    )
