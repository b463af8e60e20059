"""What does a worker have of its own, when the master has loaded much before?

``python benchmarks/preload.py``: `mpcluster run -n 4` with a program that has a large table and
many modules, which each worker imports by itself; which were preloaded, but not frozen; and which
were preloaded, as the command does it. Each worker has collected its garbage once, as any that
runs for long does by itself.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKERS = 4

HEAVY = """
import asyncio, decimal, email.mime.text, http.server, json, logging.config, sqlite3
import unittest.mock, xml.dom.minidom

TABLE = {str(number): [number, {"n": number}] for number in range(200_000)}
"""
THAWED = "import gc\ngc.freeze = lambda: None\n"
APP = """
import gc, signal
import heavy, mpcluster

gc.collect()
mpcluster.ready()
signal.pause()
"""


def own(directory: Path, *preloaded: str) -> float:
    """Return the memory (USS) that the middle worker alone has, in bytes."""
    control = ["--control", str(directory / "control")]
    command = [sys.executable, "-m", "mpcluster"]
    options = [word for name in preloaded for word in ("--preload", name)]
    with subprocess.Popen(
        [*command, "run", "-n", str(WORKERS), *control, *options, "app.py"],
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
    ) as master:
        assert master.stderr is not None
        try:
            if not any("all workers are ready" in line for line in master.stderr):
                raise SystemExit("the workers did not get ready")
            told = subprocess.check_output([*command, "status", "--json", *control])
        finally:
            master.terminate()
    return statistics.median(one["own"] for one in json.loads(told)["snapshot"]["workers"])


def main() -> None:
    ways = {
        "imported by each worker": (),
        "preloaded, not frozen": ("thawed", "heavy"),
        "preloaded (and frozen, as it is)": ("heavy",),
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, text in (("heavy", HEAVY), ("thawed", THAWED), ("app", APP)):
            (directory / f"{file}.py").write_text(text)
        found = {way: own(directory, *preloaded) for way, preloaded in ways.items()}
    first = next(iter(found.values()))
    print(f"own memory of one of {WORKERS} workers, CPython {sys.version.split()[0]}")
    for way, size in found.items():
        print(f"  {way:34} {size / 1e6:6.1f} MB   {size / first:5.2f}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
