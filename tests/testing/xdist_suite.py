"""Run pytest-xdist's own tests with every inner run of pytest on forked workers.

    python -m tests.testing.xdist_suite                       # mode fork
    python -m tests.testing.xdist_suite --mode collect
    python -m tests.testing.xdist_suite -- -k crash -x        # more for pytest

The tests are those of the source distribution of the version that is installed. They start
pytest again and again, in directories of their own; each of those runs gets ``--mpcluster``
by ``PYTEST_ADDOPTS``. The exit status is 0 when all passed but those in :data:`LEFT_OUT`,
1 when not, and 77 where the distribution cannot be downloaded. ``--mode xdist`` runs all of
them without forked workers: to see what this version of pytest breaks by itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.testing import sdists

ROOT = Path(__file__).resolve().parent.parent.parent

#: All but test_looponfail.py: that option is refused.
FILES = (
    "acceptance_test.py",
    "test_dsession.py",
    "test_newhooks.py",
    "test_plugin.py",
    "test_remote.py",
    "test_workermanage.py",
)

#: Test (a part of its id) → why it cannot hold, in both modes.
LEFT_OUT: dict[str, str] = {
    "test_dist_incompatibility_messages": "--pdb is refused there, and works on forked workers",
    "test_workqueue_ordered_by": "expects gw0 to be ready before gw1: interpreters start one "
    "after the other, forked workers at once",
    "test_remote_usage_prog": "asks pytest's parser for a method that pytest 9.2 has no more",
}

#: Likewise; these fail with pytest 9.2 and no forked workers, too.
BROKEN: dict[str, str] = {
    "test_handlecrashitem_one": "pytest 9.2 adds the reason to the line that is looked for",
    **dict.fromkeys(
        (
            "TestGroupScope::test_by_module",
            "TestGroupScope::test_by_class",
            "TestGroupScope::test_module_single_start",
            "TestGroupScope::test_multiple_group_marks",
            "TestGroupScope::test_multiple_group_order",
        ),
        "pytest 9.2 does not take the id that xdist gives to a test of a group",
    ),
}

#: Likewise, in mode ``collect`` alone.
LEFT_OUT_COLLECTED: dict[str, str] = {
    "test_issue_594_random_parametrize": "tests that differ from worker to worker are an error "
    "there; collected once, they do not differ",
}

#: Loaded into the outer run: gives the option to all inner ones.
PLUGIN = """
import pytest

# Inner runs in this very process take out again what they have imported: not this.
import mpcluster.testing.collecting
import mpcluster.testing.controller

LEFT_OUT = {left_out!r}

@pytest.fixture(autouse=True)
def _on_forked_workers(request, monkeypatch):
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # it clears the variable: be later
    monkeypatch.setenv("PYTEST_ADDOPTS", {options!r})
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_mpcluster")

def pytest_collection_modifyitems(items):
    for item in items:
        for part, reason in LEFT_OUT.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"left out: {{reason}}"))
"""


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mode", choices=("fork", "collect", "xdist"), default="fork")
    parser.add_argument("more", nargs="*", help="for pytest")
    options = parser.parse_args(argv)
    try:
        sources = sdists.unpack("pytest-xdist")
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return sdists.UNAVAILABLE
    left_out = LEFT_OUT | BROKEN
    if options.mode == "collect":
        left_out |= LEFT_OUT_COLLECTED
    elif options.mode == "xdist":
        left_out = {}
    inner = "-p no:randomly"  # some of the tests mind the order of the inner ones
    if options.mode != "xdist":
        inner += f" --mpcluster={options.mode}"
    plugin = sources / f"mpcluster_activation_{options.mode}.py"
    plugin.write_text(PLUGIN.format(left_out=left_out, options=inner))
    path = os.pathsep.join([str(ROOT), str(sources), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", plugin.stem, "-p", "no:randomly",
            "-p", "no:cacheprovider", "-rfE", "--tb=short",
            *[f"testing/{file}" for file in FILES], *options.more,
        ],
        check=False,
        cwd=sources,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
