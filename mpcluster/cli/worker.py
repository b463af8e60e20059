"""A worker of the command: a process of its own group, whose output goes to the master."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from mpcluster import descriptors
from mpcluster.process import ClusterProcess

__all__ = ["Pipes", "ProgramProcess"]


class Pipes:
    """Two pipes, for what one worker writes to its stdout and its stderr.

    All four ends are owned: of all processes only the one that is forked under
    :meth:`given` has the write ends.
    """

    def __init__(self) -> None:
        with descriptors.opening():
            first = os.pipe()
            try:
                second = os.pipe()
            except OSError:
                os.close(first[0])
                os.close(first[1])
                raise
            self.read_ends = [first[0], second[0]]
            self.write_ends = [first[1], second[1]]
            for end in (*self.read_ends, *self.write_ends):
                descriptors.own(end)

    def close(self, ends: list[int]) -> None:
        """Close these; in the process that has them."""
        for end in ends:
            descriptors.close(end)

    def take(self) -> None:
        """In the worker: write there from now on, line by line."""
        for stream, end in zip((sys.stdout, sys.stderr), self.write_ends, strict=True):
            number = 1 if stream is sys.stdout else 2
            if stream is not None:
                stream.flush()
            os.dup2(end, number)
            descriptors.close(end)
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(line_buffering=True)  # else nobody would see a print() for long


class ProgramProcess(ClusterProcess):
    """A worker that runs the program.

    It is the leader of a process group of its own: Ctrl-C at the terminal is the master's to
    hear, who lets the workers finish.

    Args:
        attend: Called with it and its pipes as soon as it was forked; None: it writes where
            the master does.
        leave: Called in the child before anything else of it: to let go of what the
            master alone does.
    """

    _inherits = True

    def __init__(
        self,
        *args: Any,
        attend: Callable[[ProgramProcess, list[int]], object] | None,
        leave: Callable[[], object],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._attend = attend
        self._leave = leave
        self._pipes: Pipes | None = None

    def start(self) -> None:
        """As :meth:`ClusterProcess.start`."""
        if self._attend is None:
            super().start()
            return
        pipes = self._pipes = Pipes()
        try:
            with descriptors.keep(*pipes.write_ends):
                super().start()
        except BaseException:
            pipes.close(pipes.read_ends)
            raise
        finally:
            pipes.close(pipes.write_ends)
        self._attend(self, pipes.read_ends)

    def _inherit(self) -> None:
        os.setpgid(0, 0)
        self._leave()
        if self._pipes is not None:
            self._pipes.take()
