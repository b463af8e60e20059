"""What a benchmark starts ends with it, also when it is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE = 30.0

DRIVER = """
import subprocess, sys
from guarded import guarded
with guarded([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout):
    sys.stdin.read()
"""

#: A server with a worker; either would live for ever.
PROGRAM = """
import os, signal
worker = os.fork()
os.write(1, b"%d\\n" % os.getpid())
signal.pause()
"""


def test_a_driver_that_is_killed_leaves_no_server_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, PROGRAM],
        cwd=BENCHMARKS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as driver:
        assert driver.stdout is not None
        started = [os.pidfd_open(int(driver.stdout.readline())) for _ in range(2)]
        driver.send_signal(signal.SIGKILL)
        for process in started:
            ended, _, _ = select.select([process], [], [], PATIENCE)
            os.close(process)
            assert ended
