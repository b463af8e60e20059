"""What does a worker cost beside multiprocessing.Process?

    python benchmarks/processes.py [--rounds 9]

Each row does the same thing with mpcluster and with ``multiprocessing``, in alternation,
each time in a program of its own, and shows the medians of the times and of their ratios:
1.10 is ten per cent slower than the peer. The peer's program does not import
mpcluster. In an empty program, as in most rows, the fork itself is as cheap as it can be, so
what is added to it shows at its worst; the rows with memory show larger ones.

Beside each time stand the page faults of one go, in the parent and in its children. A fork shares
every page, and whoever writes to one first pays for it: that, and not the instructions, is
what a start costs. They are counted, and so are the same on any machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess

SIDES = ("mpcluster", "multiprocessing")

#: What one go takes: milliseconds, page faults in the parent, page faults in its children.
Measured = tuple[float, float, float]

#: What each row does, how often in one round, and with how many MB in memory.
ROWS: dict[str, tuple[str, int, int]] = {
    "start, join": ("start_join", 300, 0),
    "start, join, with 100 MB in memory": ("start_join", 100, 100),
    "start, join, with 500 MB in memory": ("start_join", 40, 500),
    "start 8, join 8": ("start_eight", 40, 0),
    "start, the worker says that it runs, its end is known": ("life", 300, 0),
}


def nothing() -> None:
    """What every worker does."""


def process_class(side: str) -> type[BaseProcess]:
    """Import what is measured, and nothing else."""
    if side == "multiprocessing":
        return ForkProcess
    from mpcluster import ClusterProcess

    return ClusterProcess


def start_join(side: str) -> Callable[[], None]:
    """Start a process and join it."""
    make = process_class(side)

    def once() -> None:
        process = make(target=nothing)
        process.start()
        process.join()
        process.close()

    return once


def start_eight(side: str) -> Callable[[], None]:
    """Start eight at once, then join them."""
    make = process_class(side)

    def once() -> None:
        processes = [make(target=nothing) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            process.close()

    return once


def life(side: str) -> Callable[[], None]:
    """Hear that the worker runs, and of its end: by events, or by a pipe and the sentinel."""
    if side == "mpcluster":
        import mpcluster as cluster

        heard: list[str] = []
        cluster.on("online", lambda _: heard.append("online"))
        cluster.on("death", lambda _: heard.append("death"))

        def once() -> None:
            heard.clear()
            worker = cluster.fork(nothing)
            cluster.join()
            assert heard == ["online", "death"]
            worker.close()

        return once

    context = ForkContext()

    def by_hand() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=theirs.send, args=("online",))
        process.start()
        theirs.close()
        assert ours.recv() == "online"
        process.join()
        process.close()
        ours.close()

    return by_hand


def faults(who: int) -> int:
    """Page faults so far, those that a file had to be read for left out."""
    return resource.getrusage(who).ru_minflt


def measure(side: str, row: str) -> Measured:
    """Measure one row of one side, in this program."""
    name, times, megabytes = ROWS[row]
    once: Callable[[], None] = globals()[name](side)
    ballast = b"x" * (megabytes << 20)
    for _ in range(5):
        once()
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = [faults(who) for who in whose]
    begin = time.perf_counter()
    for _ in range(times):
        once()
    seconds = time.perf_counter() - begin
    parent, children = (faults(who) - old for who, old in zip(whose, before, strict=True))
    assert len(ballast) == megabytes << 20  # it was there all the time
    return seconds / times * 1000, parent / times, children / times


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(*measure(*arguments.measure))
        return
    print("| a worker | mpcluster, ms (faults) | multiprocessing, ms (faults) | ratio |")
    print("|---|---|---|---|")
    for row in ROWS:
        measured: dict[str, list[Measured]] = {side: [] for side in SIDES}
        for number in range(arguments.rounds):
            for side in SIDES if number % 2 else reversed(SIDES):
                command = [sys.executable, __file__, "--measure", side, row]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                milliseconds, parent, children = map(float, done.stdout.split())
                measured[side].append((milliseconds, parent, children))
        pairs = zip(*(measured[side] for side in SIDES), strict=True)
        ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
        sides = " | ".join(shown(measured[side]) for side in SIDES)
        print(f"| {row} | {sides} | {ratio:.2f} |", flush=True)


def shown(several: list[Measured]) -> str:
    """The medians: "2.41 (124 + 336)"."""
    milliseconds, parent, children = map(statistics.median, zip(*several, strict=True))
    return f"{milliseconds:.2f} ({parent:.0f} + {children:.0f})"


if __name__ == "__main__":
    main()
