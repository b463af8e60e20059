"""Run the suites of real packages in every way, and compare the outcome of each test.

    python -m tests.testing.packages                        # all of them
    python -m tests.testing.packages attrs click -n 4

Each package's source distribution is downloaded (pandas is taken as it is installed) and its
tests are run with plain pytest, with ``-n 2``, and with ``-n 2 --mpcluster`` in both modes; each
run writes a junitxml report, and those are compared test by test. The exit status is 0 when they
agree, and 77 where a package cannot be had.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.testing import sdists
from tests.testing.suites import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent

#: Package → where its tests are, and where it is importable from.
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "attrs": (("tests",), "src"),
    "click": (("tests",), "src"),
    "more-itertools": (("tests",), "."),
    "networkx": (("networkx/algorithms", "networkx/classes"), "."),
    "packaging": (("tests",), "src"),
}

#: Packages that bring their tests along when they are installed, and are not quickly built.
INSTALLED: dict[str, tuple[str, ...]] = {
    "pandas": ("pandas/tests/tools", "pandas/tests/config", "pandas/tests/reshape/concat"),
}

#: Options by the name of the way.
WAYS = {
    "plain": (),
    "xdist": ("-n{n}",),
    "fork": ("-n{n}", "--mpcluster"),
    "collect": ("-n{n}", "--mpcluster=collect"),
}

#: Of the package's own pytest settings: what another machine may not have.
NEUTRAL = (
    "-p",
    "no:asyncio",
    "-p",
    "no:django",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:timeout",
    "-q",
    "--tb=line",
)


def find(package: str) -> tuple[Path, tuple[str, ...], str]:
    """Return the directory that a suite is run in, its tests, and where it is imported from.

    Raises:
        ConnectionError: The package is not here and cannot be downloaded.
    """
    if package not in INSTALLED:
        return sdists.unpack(package), *PACKAGES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConnectionError(f"{package} is not installed: pip install {package}")
    return Path(spec.origin).parent.parent, INSTALLED[package], "."


def run(package: str, way: str, workers: int, directory: Path) -> tuple[Outcome, float]:
    """Run one suite in one way; return its outcome and the seconds that it took."""
    sources, tests, importable = find(package)
    junit = directory / f"{package}-{way}.xml"
    path = os.pathsep.join([str(sources / importable), str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = [option.format(n=workers) for option in WAYS[way]]
    began = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "pytest_mpcluster", *NEUTRAL, "-o", "addopts=",
            f"--junitxml={junit}", *options, *tests,
        ],
        check=False,
        cwd=sources,
        # hypothesis then measures no time and draws the same examples in each run.
        env={**os.environ, "PYTHONPATH": path, "CI": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, junit), time.perf_counter() - began


def compare(package: str, workers: int) -> bool:
    """Run one package in all ways; say what differs; return whether nothing does."""
    same = True
    with tempfile.TemporaryDirectory() as directory:
        plain: Outcome | None = None
        for way in WAYS:
            outcome, seconds = run(package, way, workers, Path(directory))
            summary = ", ".join(f"{count} {kind}" for kind, count in outcome.summary().items())
            print(f"{package:16} {way:8} {seconds:6.1f} s  {summary}", flush=True)
            if not outcome.cases:
                print(outcome.text[-4000:])
                return False
            if plain is None:
                plain = outcome
                continue
            differing = (outcome.cases - plain.cases) + (plain.cases - outcome.cases)
            for (name, kind), _ in sorted(differing.items())[:20]:
                print(f"    differs: {name} ({kind})")
            same = same and not differing
    return same


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("packages", nargs="*", default=[*PACKAGES, *INSTALLED])
    parser.add_argument("-n", dest="workers", type=int, default=2)
    options = parser.parse_args(argv)
    try:
        results = [compare(package, options.workers) for package in options.packages]
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return sdists.UNAVAILABLE
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
