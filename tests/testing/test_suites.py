"""pytest-xdist's own tests pass on forked workers, and real packages have the same outcomes.

Both download source distributions and take minutes, so they run where they are asked for:
``MPCLUSTER_SDISTS`` names the directory to keep the downloads in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing import packages, sdists

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "MPCLUSTER_SDISTS" not in os.environ,
        reason="MPCLUSTER_SDISTS names no directory for source distributions",
    ),
]


def run(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.testing.{module}", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    if done.returncode == sdists.UNAVAILABLE:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mode", ["fork", "collect"])
def test_xdists_own_tests_pass(mode: str) -> None:
    run("xdist_suite", "--mode", mode, "--", "-n", "2")


@pytest.mark.parametrize("package", [*packages.PACKAGES, *packages.INSTALLED])
def test_each_test_of_a_package_has_the_outcome_that_it_has_with_plain_pytest(package: str) -> None:
    run("packages", package)
