"""pytest's capturing across a fork.

What is captured goes to files that pytest opened while it loaded conftests, and a fork
shares them: two processes would write into one another's output. So each of them starts
its capturing anew, with what had been captured until then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mpcluster import interpreter

__all__ = ["is_live", "mute", "renew", "take"]


def is_live(config: pytest.Config) -> bool:
    """Shall what tests write be seen at once (``-s``)?"""
    return bool(config.getoption("capture") == "no")


def take(config: pytest.Config) -> tuple[str, str]:
    """Before the fork: take what was captured so far, of stdout and of stderr."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        return "", ""
    manager.suspend_global_capture(in_=True)  # the real stdin, too
    out, err = manager.read_global_capture()
    return out, err


def renew(
    config: pytest.Config,
    text: tuple[str, str] = ("", ""),
    *,
    between: Callable[[], object] = lambda: None,
    started: Callable[[], object] = lambda: None,
) -> None:
    """After the fork, in each process: capture to files of its own.

    Args:
        text: What is put into them to begin with.
        between: Called while nothing is captured: the time to change the standard streams.
        started: Called while all is captured: the descriptors 1 and 2 are those files.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        between()
        return
    manager.stop_global_capturing()
    between()
    manager.start_global_capturing()
    if manager.is_globally_capturing():
        for stream, written in zip((sys.stdout, sys.stderr), text, strict=True):
            stream.write(written)
            stream.flush()
    started()
    manager.suspend_global_capture()


def mute() -> None:
    """Let this process's stdout go nowhere; for ``between``."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    interpreter.open_std_streams()
