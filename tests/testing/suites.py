"""A suite of tests in a directory of its own, run by pytest in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from tests.running import environment, finish

#: What of the environment this very run has, and one of its own shall not.
OURS = re.compile(r"PYTEST_|COV_|COVERAGE_")


class Suite:
    """Files in a directory, and pytest over them."""

    def __init__(self, path: Path, mode: str = "fork") -> None:
        self.path = path
        self.mode = mode
        self.write("pytest.ini", "[pytest]\n")

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    def tests(self, text: str, name: str = "test_it.py") -> None:
        self.write(name, text)

    def conftest(self, text: str) -> None:
        self.write("conftest.py", text)

    def command(self, *arguments: object) -> list[str]:
        plugins = ("-p", "pytest_mpcluster", "-p", "no:randomly", "-p", "no:hypothesispytest")
        return ["-m", "pytest", *plugins, *map(str, arguments)]

    def begin(self, *arguments: object, **kwargs: Any) -> subprocess.Popen[str]:
        """Start pytest with exactly these arguments; stderr goes where stdout does."""
        env = {**environment(), "PYTHONWARNINGS": ""} | kwargs.pop("env", {}) | {"COLUMNS": "200"}
        for name in list(env):
            if OURS.match(name):
                del env[name]
        return subprocess.Popen(
            [sys.executable, *self.command(*arguments)],
            cwd=self.path,
            env=env,
            text=True,
            start_new_session=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.STDOUT,
                **kwargs,
            },
        )

    def plain(self, *arguments: object, **kwargs: Any) -> Outcome:
        """Run pytest with exactly these arguments."""
        junit = self.path / "junit.xml"
        junit.unlink(missing_ok=True)
        done = finish(self.begin(f"--junitxml={junit}", *arguments, **kwargs))
        return Outcome(done.returncode, done.stdout, junit)

    def run(self, *arguments: object, n: int = 2, **kwargs: Any) -> Outcome:
        """Run pytest on forked workers."""
        return self.plain(f"-n{n}", f"--mpcluster={self.mode}", *arguments, **kwargs)


class Outcome:
    """What came of a run."""

    def __init__(self, status: int, text: str, junit: Path) -> None:
        self.status = status
        self.text = text
        self.cases: Counter[tuple[str, str]] = Counter()
        if junit.exists():
            for case in ET.parse(junit).iter("testcase"):
                kinds = sorted({child.tag for child in case} - {"system-out", "system-err"})
                name = f"{case.get('classname')}::{case.get('name')}"
                self.cases[name, ",".join(kinds) or "passed"] += 1

    def summary(self) -> dict[str, int]:
        """The numbers in pytest's last line."""
        last = re.findall(r"(\d+) (passed|failed|errors?|skipped|warnings?|xfailed)", self.text)
        return {kind.removesuffix("s"): int(number) for number, kind in last}

    def assert_outcomes(self, **expected: int) -> None:
        found = {kind: count for kind, count in self.summary().items() if kind != "warning"}
        assert found == expected, self.text

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.text.splitlines() if re.search(pattern, line)]


__all__ = ["Outcome", "Suite"]
