"""Programs run as a user runs them: an interpreter of their own, in a session of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parent.parent

#: Seconds after which a program counts as hanging.
PATIENCE = 60.0


def command(*arguments: object) -> list[str]:
    """The running interpreter, with every warning an error."""
    return [sys.executable, "-W", "error", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's own, but unbuffered output: there a line of ``print`` is two writes."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**inherited, "PYTHONPATH": path, **more}


def begin(
    *arguments: object, env: dict[str, str] | None = None, **kwargs: Any
) -> subprocess.Popen[str]:
    """Start a program in a session of its own, its output in pipes."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(**(env or {})),
        text=True,
        start_new_session=True,
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **kwargs,
        },
    )


def finish(
    program: subprocess.Popen[str], patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Wait for its end, and for that of everybody who writes to its pipes."""
    try:
        out, err = program.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        out, err = program.communicate()
        raise AssertionError(f"it hangs; it had written:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


def run(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return finish(begin(*arguments, **kwargs))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run some lines, as ``-c``."""
    return run("-c", textwrap.dedent(code))
