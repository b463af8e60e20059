"""What does a worker cost beside multiprocessing.Process?

    python benchmarks/processes.py [--rounds 9]

Each row does the same thing with mpcluster and with ``multiprocessing``, in alternation,
each time in a program of its own, and shows the medians of the times and of their ratios:
1.10 is ten per cent slower than the peer. The peer's program does not import
mpcluster. In an empty program, as in most rows, the fork itself is as cheap as it can be, so
what is added to it shows at its worst; the rows with memory show larger ones.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess

SIDES = ("mpcluster", "multiprocessing")

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


def measure(side: str, row: str) -> float:
    """Return milliseconds of one go, in this program."""
    name, times, megabytes = ROWS[row]
    once: Callable[[], None] = globals()[name](side)
    ballast = b"x" * (megabytes << 20)
    for _ in range(5):
        once()
    begin = time.perf_counter()
    for _ in range(times):
        once()
    seconds = time.perf_counter() - begin
    assert len(ballast) == megabytes << 20  # it was there all the time
    return seconds / times * 1000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(*arguments.measure))
        return
    print("| a worker | mpcluster, ms | multiprocessing, ms | ratio |")
    print("|---|---|---|---|")
    for row in ROWS:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(arguments.rounds):
            for side in SIDES if number % 2 else reversed(SIDES):
                command = [sys.executable, __file__, "--measure", side, row]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                times[side].append(float(done.stdout))
        ours, theirs = (times[side] for side in SIDES)
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        print(
            f"| {row} | {statistics.median(ours):.2f} | {statistics.median(theirs):.2f} "
            f"| {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
