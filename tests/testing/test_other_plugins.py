"""Other plugins go on working on forked workers."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

pytestmark = pytest.mark.slow  # each runs pytest twice, with one more plugin to import

CODE = """
    def used(flag):
        if flag:
            return "yes"
        return "no"

    def unused():
        return "never"
"""


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


@needs("pytest_cov")
def test_coverage_is_that_of_plain_pytest(suite) -> None:
    suite.write("code_under_test.py", CODE)
    suite.conftest("import sys; sys.path.insert(0, '.')")
    suite.tests("""
        import pytest
        from code_under_test import used
        @pytest.mark.parametrize("flag", [True, False])
        def test_it(flag): assert used(flag) in ("yes", "no")
    """)
    options = ("--cov=code_under_test", "--cov-branch", "--cov-report=json")
    found = []
    for run in (suite.plain, suite.run):
        run(*options).assert_outcomes(passed=2)
        report = json.loads((suite.path / "coverage.json").read_text())
        file = report["files"]["code_under_test.py"]
        found.append((file["executed_lines"], file["missing_lines"], file["missing_branches"]))
    assert found[0] == found[1]
    assert found[0][1] == [8]


@needs("pytest_randomly")
def test_randomly_seeds_and_shuffles_as_it_does_without_workers(suite) -> None:
    suite.tests("""
        import random, pytest
        @pytest.mark.parametrize("number", range(20))
        def test_it(number):
            print("DRAWN", random.random())
            assert number < 0
    """)
    options = ("-p", "randomly", "--randomly-seed=7")
    done = suite.plain(*options, "-n2", f"--mpcluster={suite.mode}", "-v")
    assert len(done.lines("^DRAWN")) == 20
    assert set(done.lines("^DRAWN")) == set(suite.plain(*options).lines("^DRAWN"))
    ran = [
        int(number)
        for number in re.findall(r"FAILED test_it.py::test_it\[(\d+)\] *$", done.text, re.MULTILINE)
    ]
    assert sorted(ran) == list(range(20))
    assert ran != sorted(ran)


@needs("pytest_timeout")
@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeout_ends_a_test(suite, method) -> None:
    suite.tests("""
        import threading
        def test_hangs(): threading.Event().wait()
        def test_after(): pass
    """)
    done = suite.run("--timeout=0.5", f"--timeout-method={method}", n=1)
    done.assert_outcomes(passed=1, failed=1)


@needs("hypothesis")
def test_hypothesis_finds_its_example(suite) -> None:
    suite.tests("""
        from hypothesis import given, settings, strategies as st
        @given(st.integers())
        def test_it(number): assert number < 100
    """)
    assert "number=100" in suite.run().text


@needs("pytest_asyncio")
def test_asyncio_tests_have_a_loop_each(suite) -> None:
    suite.write(
        "pytest.ini",
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n",
    )
    suite.tests("""
        import asyncio, pytest
        @pytest.mark.parametrize("number", range(4))
        async def test_it(number): await asyncio.sleep(0)
    """)
    done = suite.run()
    done.assert_outcomes(passed=4)
    assert "Warning" not in done.text


@needs("anyio")
def test_anyio_tests_run(suite) -> None:
    suite.tests("""
        import pytest, anyio
        @pytest.fixture
        def anyio_backend(): return "asyncio"
        @pytest.mark.anyio
        async def test_it(): await anyio.sleep(0)
    """)
    suite.run().assert_outcomes(passed=1)


@needs("pytest_django")
@needs("django")
def test_each_worker_has_a_django_database_of_its_own(suite) -> None:
    suite.write("site_settings.py", """
        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
        DATABASES = {"default": {
            "ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3",
            "TEST": {"NAME": "test.sqlite3"},
        }}
    """)  # fmt: skip
    suite.write("pytest.ini", "[pytest]\nDJANGO_SETTINGS_MODULE = site_settings\npythonpath = .\n")
    suite.tests("""
        import pytest
        from django.contrib.auth.models import User
        from django.db import connection
        @pytest.mark.django_db
        @pytest.mark.parametrize("number", range(6))
        def test_it(number, worker_id):
            User.objects.create(username="me")
            assert User.objects.count() == 1
            assert connection.settings_dict["NAME"].endswith(f"test.sqlite3_{worker_id}")
    """)
    done = suite.run("--create-db")
    done.assert_outcomes(passed=6)
    assert "ForkSafety" not in done.text
