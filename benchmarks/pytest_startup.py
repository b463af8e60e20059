"""What do forked test workers save, beside pytest-xdist's own?

    python benchmarks/pytest_startup.py                      # every question, three rounds
    python benchmarks/pytest_startup.py heavy -n 8 --rounds 5

Questions:

``heavy``    400 tiny tests behind 1.5 s of imports: wall time and CPU
``collect``  20,000 parametrized tests, collected once: wall time, CPU, and memory (PSS)
``nothing``  a suite with nothing to gain: 40 tiny tests and no imports
``replace``  how long after a worker's death is another one ready

Both sides run the same suite with the same Python in turn, and the median of the ratios of
the pairs is what counts. Wall time is that of the command, CPU that of all its processes.
Memory is the sum of the proportional set sizes of controller, template and workers at the
end of the session, in a run of its own. Byte code is kept between the runs, as of installed
packages, whatever the environment says; other plugins that are installed here are left out,
for what they do at the end of each process would count for both sides.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: Counts work and not time: the same for both sides, however busy the machine is.
BURN = """
    import time
    end = time.process_time() + {seconds}
    while time.process_time() < end:
        pass
"""

TINY = """
    import pytest
    @pytest.mark.parametrize("number", range({number}))
    def test_it(number): pass
"""

MEMORY = """
    import os, pathlib, pytest

    def _family():
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    stat = pathlib.Path("/proc", name, "stat").read_text()
                except OSError:
                    continue
                parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
        found = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(session):
        if hasattr(session.config, "workerinput") or "MEASURE_MEMORY" not in os.environ:
            return
        total = 0
        for pid in _family():
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        pathlib.Path(os.environ["MEASURE_MEMORY"]).write_text(str(total))
"""

REPLACE = """
    import time
    died = {}
    def pytest_testnodedown(node, error):
        died["at"] = time.perf_counter()
    def pytest_testnodeready(node):
        if "at" in died:
            print(f"REPLACED {1000 * (time.perf_counter() - died.pop('at')):.1f} ms")
"""

CRASHES = """
    import os, pytest
    @pytest.mark.parametrize("number", range(10))
    def test_it(number): os._exit(1)
"""


class Cost(NamedTuple):
    wall: float
    cpu: float


class Side:
    """One of the two that are compared."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments

    def run(self, suite: Path, workers: int, **env: str) -> tuple[Cost, str]:
        command = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-p", "pytest_mpcluster"]
        command += ["-p", "no:cacheprovider", "-q", f"-n{workers}", *self.arguments]
        env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            "PYTHONPYCACHEPREFIX": str(suite / ".bytecode"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **env,
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.perf_counter()
        program = subprocess.Popen(
            command,
            cwd=suite,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        assert program.stdout is not None
        text = program.stdout.read()
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        if not re.search(r"\d+ (passed|failed)", text):
            raise SystemExit(f"{' '.join(command)} came to nothing:\n{text}")
        return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime), text


XDIST = Side("xdist")
FORK = Side("fork", "--mpcluster")
COLLECT = Side("collect", "--mpcluster=collect")


def compare(suite: Path, ours: Side, workers: int, rounds: int) -> None:
    for side in (XDIST, ours):
        side.run(suite, workers)  # byte code and page cache are there
    pairs = []
    for number in range(rounds):
        order = (XDIST, ours) if number % 2 else (ours, XDIST)
        costs = {side: side.run(suite, workers)[0] for side in order}
        pairs.append((costs[XDIST], costs[ours]))
    for which in ("wall", "cpu"):
        theirs = statistics.median(getattr(pair[0], which) for pair in pairs)
        mine = statistics.median(getattr(pair[1], which) for pair in pairs)
        ratio = statistics.median(getattr(b, which) / getattr(a, which) for a, b in pairs)
        print(
            f"  -n {workers} {which:4}  xdist {theirs:6.2f} s   {ours.name} {mine:6.2f} s   "
            f"ratio {ratio:.2f} ({1 / ratio:.1f} times)",
            flush=True,
        )


def memory(suite: Path, side: Side, workers: int) -> int:
    with tempfile.NamedTemporaryFile("r") as file:
        side.run(suite, workers, MEASURE_MEMORY=file.name)
        return int(file.read())


def heavy(suite: Path, workers: list[int], rounds: int, tests: int) -> None:
    (suite / "heavy.py").write_text(textwrap.dedent(BURN).format(seconds=1.5))
    (suite / "conftest.py").write_text("import heavy\n")
    (suite / "test_it.py").write_text(textwrap.dedent(TINY).format(number=tests or 400))
    for number in workers or [2, 8]:
        compare(suite, FORK, number, rounds)


def collect(suite: Path, workers: list[int], rounds: int, tests: int) -> None:
    (suite / "conftest.py").write_text(textwrap.dedent(MEMORY))
    (suite / "test_it.py").write_text(textwrap.dedent(TINY).format(number=tests or 20_000))
    for number in workers or [8]:
        compare(suite, COLLECT, number, rounds)
        theirs, ours = (memory(suite, side, number) for side in (XDIST, COLLECT))
        print(
            f"  -n {number} PSS   xdist {theirs >> 10} MB   collect {ours >> 10} MB   "
            f"ratio {ours / theirs:.2f}",
            flush=True,
        )


def nothing(suite: Path, workers: list[int], rounds: int, tests: int) -> None:
    (suite / "test_it.py").write_text(textwrap.dedent(TINY).format(number=tests or 40))
    for number in workers or [2]:
        for side in (FORK, COLLECT):
            compare(suite, side, number, rounds)


def replace(suite: Path, workers: list[int], rounds: int, _tests: int) -> None:
    (suite / "conftest.py").write_text(textwrap.dedent(REPLACE))
    (suite / "test_it.py").write_text(textwrap.dedent(CRASHES))
    for side in (XDIST, FORK, COLLECT):
        times: list[float] = []
        for _ in range(rounds):
            _, text = side.run(
                suite, (workers or [2])[0], PYTEST_ADDOPTS="-s --max-worker-restart=99"
            )
            times += map(float, re.findall(r"REPLACED ([\d.]+) ms", text))
        print(
            f"  {side.name:8} median {statistics.median(times):6.1f} ms of {len(times)}", flush=True
        )


QUESTIONS = {"heavy": heavy, "collect": collect, "nothing": nothing, "replace": replace}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="default: all")
    parser.add_argument("-n", dest="workers", type=int, action="append", help="workers, repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=0, help="another number of tests")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for question in options.questions or QUESTIONS:
        print(question, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            suite = Path(directory)
            (suite / "pytest.ini").write_text("[pytest]\n")
            QUESTIONS[question](suite, options.workers or [], options.rounds, options.tests)


if __name__ == "__main__":
    main()
