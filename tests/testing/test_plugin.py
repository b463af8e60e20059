"""The door to it: what is asked for, what is refused, and what it costs when it is not."""

from __future__ import annotations

import sys

import pytest

import pytest_mpcluster
from mpcluster.testing import seams
from tests.running import python


def test_the_entry_point_imports_neither_mpcluster_nor_xdist() -> None:
    done = python("""
        import sys
        import pytest_mpcluster
        heavy = ("mpcluster", "xdist", "execnet", "multiprocessing", "cloudpickle")
        print([name for name in sys.modules if name.split(".")[0] in heavy])
    """)
    assert done.stdout == "[]\n", done.stderr


def test_an_ordinary_run_imports_nothing_of_mpcluster(forked) -> None:
    forked.tests("""
        import sys
        def test_it():
            assert not [name for name in sys.modules if name.split(".")[0] == "mpcluster"]
    """)
    forked.plain().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "arguments", [("--mpcluster",), ("--mpcluster", "-n0"), ("--mpcluster=collect",)]
)
def test_without_workers_nothing_happens(forked, arguments) -> None:
    forked.tests("""
        def test_it(worker_id):
            assert worker_id == "master"
    """)
    forked.plain(*arguments).assert_outcomes(passed=1)


def test_a_path_after_the_option_is_a_path(forked) -> None:
    forked.tests("def test_it(): pass", "one/test_one.py")
    forked.tests("def test_it(): pass", "two/test_two.py")
    done = forked.plain("-n2", "--mpcluster", "two")
    assert list(done.cases) == [("two.test_two::test_it", "passed")]


def test_the_ini_file_may_ask_for_it(forked) -> None:
    forked.write("pytest.ini", "[pytest]\nmpcluster = collect\n")
    forked.tests("""
        import sys
        def test_it():
            assert "mpcluster.testing.collecting" in sys.modules
    """)
    forked.plain("-n2").assert_outcomes(passed=1)


def test_collect_only_is_left_to_pytest(suite) -> None:
    suite.tests("def test_it(): pass")
    assert "test_it.py::test_it" in suite.run("--collect-only", "-q").text


@pytest.mark.parametrize(
    ("ini", "arguments", "said"),
    [
        ("mpcluster = spawn", ("-n2",), "say fork or collect"),
        ("", ("-n2", "--mpcluster", "--looponfail"), "leave one of them out"),
        ("", ("-n2", "--mpcluster", "-p", "no:xdist", "-p", "no:xdist.looponfail"), "-n2"),
        ("", ("--mpcluster", "-p", "no:xdist", "-p", "no:xdist.looponfail"), "turned off here"),
        ("", ("-n2", "--mpcluster", "--mpcluster-timeout=0"), "seconds above 0"),
        ("mpcluster_timeout = soon", ("-n2", "--mpcluster"), "a number of seconds"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(forked, ini, arguments, said) -> None:
    forked.write("pytest.ini", f"[pytest]\n{ini}\n")
    forked.tests("def test_it(): pass")
    done = forked.plain(*arguments)
    assert done.status == pytest.ExitCode.USAGE_ERROR, done.text
    assert said in done.text
    assert "Traceback" not in done.text


def test_an_xdist_whose_seams_moved_gives_one_clear_error(monkeypatch) -> None:
    import xdist.remote

    monkeypatch.delattr(xdist.remote, "setup_config")

    class Option:
        numprocesses = 2

    with pytest.raises(pytest.UsageError, match=r"xdist\.remote\.setup_config is not as it was"):
        seams.check(Option())


def test_a_missing_xdist_is_named_with_the_extra_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xdist", None)
    with pytest.raises(pytest.UsageError, match=r"pip install 'mpcluster\[pytest\]'"):
        seams.check(object())


def test_a_parameter_that_was_renamed_counts_as_moved(monkeypatch) -> None:
    import xdist.remote

    monkeypatch.setattr(xdist.remote, "setup_config", lambda configuration: None)

    class Option:
        numprocesses = 2

    with pytest.raises(pytest.UsageError, match="setup_config"):
        seams.check(Option())


@pytest.mark.parametrize("options", [{"scope": "module"}, {"params": [1, 2]}])
def test_a_shared_fixture_is_made_once_and_so_takes_no_other_scope_and_no_params(options) -> None:
    with pytest.raises(ValueError, match="made once"):
        pytest_mpcluster.shared_fixture(**options)
