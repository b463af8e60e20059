"""The ``mpcluster`` command: an unmodified program on all cores, kept running and looked after.

::

    command                       what was typed, and which of the below it means
    options, units, settings      what can be said, on the command line and in a file
    program, worker               what the workers run, and its output
    running, service              the master, from its beginning to its end
    signals, control, orders,     what it hears, and who hears of it
    output, lines, sink, notify,
    files, orphans, page
    succession, handover          one master after the other
    place, asking, report, top    the other commands: find a master, ask it, show it
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run the command of ``sys.argv``; return its exit status."""
    from .command import run

    return run()
