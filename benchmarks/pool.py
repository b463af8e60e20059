"""What does a pool cost, beside other pools on the same machine?

    pip install '.[bench]'
    python benchmarks/pool.py [--rounds 5] [-k apply] [--json FILE] [--plot FILE] [--quick]

Each row puts one question to ``ClusterPool`` and to a peer, in alternation, each time in a program
of its own, and shows the median of the ratios of their times: 6.0 is six times as fast as the peer.
Where it is not the time that is compared, the row says what: the processor time of parent and
workers together, or memory. Two workers, if the row says nothing else. The peers are those of
``pool_peers.py``; one that is not installed is left out, with a word.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pool_peers
from pool_peers import ITSELF, OURS, PEERS, Pool

#: Seconds that one program may take; a peer that needs more is left out of the row.
BOUND = 60.0

Measure = Callable[[Callable[[int], Pool], float], float]


# -- the questions: each returns seconds (or bytes, or a ratio) of one unit ------------------


def repeated(seconds: float, once: Callable[[], int]) -> float:
    """Return seconds a task: ``once`` says how many tasks it did, and is done again and again."""
    once()
    tasks, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        tasks += once()
    return spent / tasks


def spin(microseconds: int) -> int:
    """Compute for so long."""
    end = time.perf_counter_ns() + microseconds * 1000
    while time.perf_counter_ns() < end:
        pass
    return microseconds


def same(value: Any) -> Any:
    """Send back what came."""
    return value


def one_at_a_time(make: Callable[[int], Pool], seconds: float, workers: int = 2) -> float:
    """Call and wait, again and again."""
    with make(workers) as pool:
        return repeated(seconds, lambda: len([pool.apply(abs, -1) for _ in range(100)]))


def in_order(make: Callable[[int], Pool], seconds: float) -> float:
    """Results one by one, as they were asked for."""
    with make(2) as pool:
        return repeated(seconds, lambda: len(list(pool.imap(abs, range(5000)))))


def as_they_come(make: Callable[[int], Pool], seconds: float, workers: int = 2) -> float:
    """Results one by one, as they are ready."""
    with make(workers) as pool:
        return repeated(seconds, lambda: len(list(pool.imap_unordered(abs, range(5000)))))


def burst(make: Callable[[int], Pool], seconds: float) -> float:
    """Two thousand calls handed over, then waited for."""
    with make(2) as pool:
        return repeated(seconds, lambda: len(pool.burst(abs, range(2000))))


def mapping(make: Callable[[int], Pool], seconds: float) -> float:
    """A map of many small tasks, as it is by default."""
    with make(2) as pool:
        return repeated(seconds, lambda: len(pool.map(abs, range(50_000))))


def mapping_of_work(make: Callable[[int], Pool], seconds: float) -> float:
    """A map of tasks that take between 0 and 2 ms."""
    lengths = [number * 37 % 2000 for number in range(100)]
    with make(2) as pool:
        return repeated(seconds, lambda: len(pool.map(spin, lengths)))


def array(make: Callable[[int], Pool], seconds: float) -> float:
    """10 MB there and back, one at a time."""
    import numpy as np

    sent = np.random.default_rng(0).random(1_250_000)
    with make(2) as pool:
        assert (pool.apply(same, sent) == sent).all()
        return repeated(seconds, lambda: len([pool.apply(same, sent) for _ in range(5)]))


def life(make: Callable[[int], Pool], seconds: float) -> float:
    """Make a pool, have one map done, leave."""

    def once() -> int:
        with make(2) as pool:
            assert pool.map(abs, range(4)) == [0, 1, 2, 3]
        return 1

    return repeated(seconds, once)


def processor_time(make: Callable[[int], Pool], seconds: float) -> float:
    """Processor time of parent and workers for a task, of two thousand handed over at once."""
    with make(2) as pool:
        pool.burst(abs, range(2000))
        tasks, before = 0, processor_seconds()
        end = time.perf_counter() + 2 * seconds
        while time.perf_counter() < end:
            tasks += len(pool.burst(abs, range(2000)))
        return (processor_seconds() - before) / tasks


def processor_time_alone(make: Callable[[int], Pool], seconds: float) -> float:
    """The same for calls that are waited for one by one."""
    with make(2) as pool:
        pool.apply(abs, -1)
        tasks, before = 0, processor_seconds()
        end = time.perf_counter() + 2 * seconds
        while time.perf_counter() < end:
            tasks += len([pool.apply(abs, -1) for _ in range(100)])
        return (processor_seconds() - before) / tasks


def many_workers(make: Callable[[int], Pool], seconds: float) -> float:
    """The cost of a call with 64 workers, mostly idle, by that with 2."""
    return one_at_a_time(make, seconds, 64) / one_at_a_time(make, seconds, 2)


def many_workers_busy(make: Callable[[int], Pool], seconds: float) -> float:
    """The cost of a task of an imap_unordered with 64 workers, by that with 2."""
    return as_they_come(make, seconds, 64) / as_they_come(make, seconds, 2)


def memory(make: Callable[[int], Pool], tasks: float) -> float:
    """Megabytes by which parent and workers have grown over so many tasks of an endless imap.

    Counted from a fifth of the tasks on.
    """
    with make(2) as pool:
        results = iter(pool.imap(abs, itertools.count()))
        for _ in range(int(tasks) // 5):
            next(results)
        before = resident()
        for _ in range(int(tasks) * 4 // 5):
            next(results)
        return max(0.01, (resident() - before) / 1e6)


# -- what /proc knows ------------------------------------------------------------------------


def family() -> Iterator[int]:
    """This process and all below it."""
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        yield pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())


def processor_seconds() -> float:
    """What they have spent, to a hundredth of a second."""
    ticks = 0
    for pid in family():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident() -> int:
    """Bytes of memory that are this family's alone."""
    total = 0
    for pid in family():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


# -- the table -------------------------------------------------------------------------------


class Row(NamedTuple):
    """A question, the peers that it is put to, and the goals.

    A goal is the least ratio; beside the peer ITSELF it is the most that the number may be.
    """

    name: str
    measure: Measure
    unit: str
    goals: dict[str, float]
    peers: tuple[str, ...] = tuple(PEERS)


STANDARD = ("multiprocessing", "ProcessPoolExecutor")
ROWS = [
    Row("apply, one at a time", one_at_a_time, "s",
        {"multiprocessing": 6.0, "raw Connection": 1 / 1.3}, ("raw Connection", *PEERS)),
    Row("imap, chunksize 1", in_order, "s", {"multiprocessing": 10.0}),
    Row("imap_unordered, chunksize 1", as_they_come, "s", {"multiprocessing": 10.0}),
    Row("submit, a burst of 2000", burst, "s", {"ProcessPoolExecutor": 20.0, "loky": 20.0}),
    # The executors' map sends each task by itself: they have their row above.
    Row("map of 50,000 abs(), default", mapping, "s", {"multiprocessing": 1.0},
        ("multiprocessing", "mpire")),
    Row("map of 100 uneven ms, default", mapping_of_work, "s", {"multiprocessing": 1.0}),
    Row("10 MB array there and back", array, "s",
        {"multiprocessing": 5.0, "bare copies": 1 / 2.5}, ("bare copies", *PEERS)),
    Row("make a pool, one map, leave", life, "s", {"multiprocessing": 1.0}),
    Row("processor time, one at a time", processor_time_alone, "s", dict.fromkeys(PEERS, 1.0)),
    Row("processor time, a burst", processor_time, "s", dict.fromkeys(PEERS, 1.0)),
    Row("apply, 64 workers by 2", many_workers, "x", {ITSELF: 1.3}, (ITSELF, *STANDARD)),
    Row("imap_unordered, 64 workers by 2", many_workers_busy, "x", {ITSELF: 1.3},
        (ITSELF, *STANDARD)),
    Row("growth in an endless imap", memory, "MB", {ITSELF: 8.0}, (ITSELF,)),
]  # fmt: skip


class Result(NamedTuple):
    """One line of the table: medians, and the median of the ratios."""

    question: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    goal: float | None

    def line(self) -> str:
        kept = "" if self.goal is None else "yes" if self.ratio >= self.goal else "**no**"
        goal = "" if self.goal is None else f"≥ {self.goal:.2f}"
        return (
            f"| {self.question} | {self.peer} | {shown(self.ours, self.unit)} "
            f"| {shown(self.theirs, self.unit)} | {self.ratio:.2f} | {goal} | {kept} |"
        )


def shown(value: float, unit: str) -> str:
    """A time in µs or ms; everything else as it is."""
    if unit != "s":
        return f"{value:.2f} {unit}"
    return f"{value * 1e6:.1f} µs" if value < 1e-3 else f"{value * 1e3:.2f} ms"


def in_a_program(peer: str, row: Row, amount: float) -> float | None:
    """Measure in a fresh process; ``None`` when the peer takes too long or fails."""
    command = [sys.executable, __file__, "--measure", peer, row.name, str(amount)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BOUND, check=True
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{peer} takes more than {BOUND:.0f} s: {row.name}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"{peer} fails: {row.name}: {error.stderr[-500:]}", file=sys.stderr)
    else:
        return float(done.stdout.split()[-1])
    return None


def ask(row: Row, peers: list[str], rounds: int, amount: float) -> Iterator[Result]:
    """Put a question to us and to each peer in turn, in alternation."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {peer: [] for peer in row.peers if peer in peers}
    for number in range(rounds):
        sides = [OURS, *theirs]
        for side in sides if number % 2 else reversed(sides):
            if side == ITSELF or (side != OURS and side not in theirs):
                continue
            measured = in_a_program(side, row, amount)
            if measured is None:
                if side == OURS:  # it has been said why
                    return
                del theirs[side]
            elif side == OURS:
                ours.append(measured)
            else:
                theirs[side].append(measured)
    for peer, times in theirs.items():
        goal = row.goals.get(peer)
        if peer == ITSELF and goal is not None:
            times, goal = [goal] * rounds, 1.0  # noqa: PLW2901
        ratio = statistics.median(other / mine for mine, other in zip(ours, times, strict=True))
        yield Result(
            row.name, peer, row.unit, statistics.median(ours), statistics.median(times), ratio,
            goal,
        )  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of one measurement")
    parser.add_argument("--tasks", type=float, default=1_000_000, help="of the endless imap")
    parser.add_argument("-k", action="append", metavar="TEXT", help="only rows whose name has it")
    parser.add_argument("--peers", default="*", help="only peers whose name matches, as *glob*")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run?")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        peer, name, amount = options.measure
        (row,) = [row for row in ROWS if row.name == name]
        print(row.measure(pool_peers.maker(peer), float(amount)))
        return
    if options.quick:
        options.rounds, options.seconds, options.tasks = 1, 0.1, 50_000
    there = [name for name in pool_peers.installed() if fnmatch.fnmatch(name, options.peers)]
    print("| question | peer | mpcluster | peer's | ratio | goal | kept |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for row in ROWS:
        if options.k and not any(text in row.name for text in options.k):
            continue
        amount = options.tasks if row.unit == "MB" else options.seconds
        for result in ask(row, there, options.rounds, amount):
            results.append(result)
            print(result.line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([result._asdict() for result in results], indent=1))
    if options.plot:
        pool_peers.plot([result._asdict() for result in results], options.plot)


if __name__ == "__main__":
    main()
