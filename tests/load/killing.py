"""Killing a worker so that it is known what it had in hand."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

__all__ = ["kill_at_rest"]


async def kill_at_rest(pid: int, port: int) -> set[int]:
    """Stop a process, look which connections to ``port`` it has accepted, and kill it.

    Returns:
        The clients' ports of those connections. One that waits in a listener's queue, or was
        passed and not taken, is none of its descriptors, and so not among them.
    """
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(30):
        while not _is_stopped(pid):  # noqa: ASYNC110  # nobody but its parent is told
            await asyncio.sleep(0)
    held = _accepted(pid, port)
    os.kill(pid, signal.SIGKILL)
    return held


def _is_stopped(pid: int) -> bool:
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return set(states) == {"T"}


def _accepted(pid: int, port: int) -> set[int]:
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(descriptor)
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote, inode = fields[1], fields[2], fields[9]
        if inode in inodes and int(local.rpartition(":")[2], 16) == port:
            found.add(int(remote.rpartition(":")[2], 16))
    return found
