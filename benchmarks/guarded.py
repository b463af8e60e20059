"""Programs that a benchmark starts, which end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["guarded"]

# Reads what only the driver's end could bring: the end of its input. A driver that is killed can
# do nothing any more, and a program's own children would outlive a signal at its parent's death.
_GUARD = "import os, signal; os.read(0, 1); os.killpg(0, signal.SIGKILL)"


@contextmanager
def guarded(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own, and kill that group at the end.

    Args:
        command: The program.
        options: Of ``subprocess.Popen``.
    """
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0
    ) as guard:
        try:
            with subprocess.Popen(
                command, text=True, process_group=guard.pid, **options
            ) as program:
                try:
                    yield program
                finally:
                    os.killpg(guard.pid, signal.SIGKILL)
        finally:
            guard.kill()
