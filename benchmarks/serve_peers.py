"""What do reloads, kills, requests and workers cost, beside the masters that people use today?

    python benchmarks/serve_peers.py [--masters NAME ...] [--parts reload kill rate memory]
        [--reloads 5] [--kills 10] [--rounds 5] [--imports flask,aiohttp.web] [--plot FILE]

The same app, loop and parser under each (:mod:`serve_masters`; granian has a loop and a parser of
its own, and Node another app), two workers, and a strict client
(``tests/load/client.py``) that counts what became of every request:

* *reload*: SIGHUP, while 4 clients make a connection a request and 4 keep theirs. For each
  reload: requests lost (all but the next), and requests on a kept connection that was closed
  as they were sent, which HTTP/1.1 lets a client repeat.
* *kill*: SIGKILL of a random worker every 0.5 s. For each kill: requests lost, and how many of
  them were refused.
* *rate*: requests/s and latency by ``wrk``, 64 connections, kept and one a request; all
  masters are up and asked in turn. The medians of the rounds, and of their ratios.
* *memory*: of 8 workers and their master after some requests, in MB of PSS, beside 8
  processes that each run the server by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guarded import guarded
from serve_masters import HERE, HOST, MASTERS, OURS, Master

sys.path.insert(0, str(HERE.parent))

from tests.load.client import Fate, Load

WORKERS = 2
PATIENCE = 30.0


@contextmanager
def running(command: list[str], port: int, workers: int) -> Iterator[int]:
    """Run a master until so many workers have answered; gives its process id."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with guarded(command, env=environ, **quiet) as program:
        asyncio.run(until_answered_by(port, workers))
        yield program.pid


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def until_answered_by(port: int, workers: int) -> None:
    """Wait until so many processes have answered."""
    load = Load(port, forgiving=True)
    async with asyncio.timeout(PATIENCE):
        while len(load.pids) < workers:
            await asyncio.gather(*(load.one() for _ in range(4 * workers)))


# -- reload and kill -------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def reload(master: int, port: int, reloads: int) -> dict[str, float]:
    """Each begins when the last one is over: all that answer are new, the old ones are gone."""
    load = Load(port, forgiving=True)
    async with load.running(new=4, kept=2, lazy=2):
        for _ in range(reloads):
            load.pids.clear()
            await load.more(200)
            old = set(load.pids)
            os.kill(master, signal.SIGHUP)
            async with asyncio.timeout(PATIENCE):
                while any(is_alive(pid) for pid in old):
                    await load.more(20)
                load.pids.clear()
                while len(load.pids) < WORKERS:
                    await load.more(20)
    return {
        "lost a reload": len(load.lost) / reloads,
        "cut while idle a reload": load.counts[Fate.STALE] / reloads,
    }


async def kill(port: int, kills: int) -> dict[str, float]:
    load = Load(port, forgiving=True)
    async with load.running(new=6, kept=2):
        await load.more(200)
        for _ in range(kills):
            await asyncio.sleep(0.5)
            alive = [pid for pid in load.pids if is_alive(pid)]
            if alive:
                os.kill(random.choice(alive), signal.SIGKILL)
        await asyncio.sleep(0.5)
    refused = load.counts[Fate.REFUSED]
    return {"lost a kill": len(load.lost) / kills, "of them refused": refused / kills}


# -- rate ------------------------------------------------------------------------------------------


def wrk(port: int, *, keep_alive: bool) -> dict[str, float]:
    """A short round: requests/s, and milliseconds that half and 99 % of them took at most."""
    command = ["wrk", "-t1", "-c64", "-d1s", "--latency", f"http://{HOST}:{port}/"]
    if not keep_alive:
        command += ["-H", "Connection: close"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s*([\d.]+)", said)
    latencies = {
        part: float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
        for part, value, unit in re.findall(
            r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", said, re.MULTILINE
        )
    }
    assert rate is not None, said
    return {"rate": float(rate[1]), "p50": latencies["50"], "p99": latencies["99"]}


def rates(masters: list[Master], rounds: int, *, keep_alive: bool) -> dict[str, dict[str, Any]]:
    measured: dict[str, dict[str, list[float]]] = {one.name: defaultdict(list) for one in masters}
    with contextlib.ExitStack() as stack:
        ports = {}
        for one in masters:
            ports[one.name] = free_port()
            stack.enter_context(
                running(one.command(ports[one.name], WORKERS), ports[one.name], WORKERS)
            )
        for number in range(rounds + 1):
            for one in masters if number % 2 else reversed(masters):
                for name, value in wrk(ports[one.name], keep_alive=keep_alive).items():
                    if number:  # the first does not count
                        measured[one.name][name].append(value)
    kind = "kept" if keep_alive else "one a request"
    found = {}
    for one in masters:
        values = measured[one.name]
        found[one.name] = {
            f"requests/s, {kind}": statistics.median(values["rate"]),
            f"p50 / p99 ms, {kind}": "{:.1f} / {:.1f}".format(
                *(statistics.median(values[part]) for part in ("p50", "p99"))
            ),
        }
        if OURS in measured:
            ratios = [
                mine / other
                for mine, other in zip(measured[OURS]["rate"], values["rate"], strict=True)
            ]
            found[one.name][f"ours to it, {kind}"] = statistics.median(ratios)
    return found


# -- memory ----------------------------------------------------------------------------------------


def memory(group: int) -> float:
    """MB of PSS of all processes of a group; what the guard has does not count."""
    size = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
            of_group = int(stat.read_text().rpartition(")")[2].split()[2]) == group
            if of_group and stat.parent.name != str(group):
                rollup = (stat.parent / "smaps_rollup").read_text()
                size += int(re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[0]) / 1024
    return size


def memory_of(master: Master, workers: int = 8) -> float:
    port = free_port()
    with running(master.command(port, workers), port, workers) as pid:
        return memory(os.getpgid(pid))


def memory_alone(workers: int = 8) -> float:
    with contextlib.ExitStack() as stack:
        groups = []
        for _ in range(workers):
            port = free_port()
            me = str(HERE / "serve_masters.py")
            command = [sys.executable, me, "alone", "-", "uvloop", str(port), "1"]
            groups.append(os.getpgid(stack.enter_context(running(command, port, 1))))
        return sum(memory(group) for group in groups)


# -- the table -------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("reload", "kill", "rate", "memory")
    parser.add_argument("--masters", nargs="+", default=[one.name for one in MASTERS])
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", default="", help="modules that the app imports, by commas")
    parser.add_argument("--plot", type=Path, help="a picture of the losses (matplotlib)")
    arguments = parser.parse_args()
    os.environ["SERVE_IMPORTS"] = arguments.imports
    if "rate" in arguments.parts and shutil.which("wrk") is None:
        parser.error("requests/s are measured with wrk, which is not installed")
    masters = [
        one for one in MASTERS if one.is_there and one.name.startswith(tuple(arguments.masters))
    ]
    table: dict[str, dict[str, Any]] = {one.name: {} for one in masters}
    for one in masters:
        port = free_port()
        if "reload" in arguments.parts:
            with running(one.command(port, WORKERS), port, WORKERS) as pid:
                table[one.name] |= measured(reload(pid, port, arguments.reloads))
        if "kill" in arguments.parts:
            with running(one.command(port, WORKERS), port, WORKERS):
                table[one.name] |= measured(kill(port, arguments.kills))
        if "memory" in arguments.parts:
            table[one.name]["MB, 8 workers"] = memory_of(one)
    if "rate" in arguments.parts:
        for keep_alive in (True, False):
            for name, found in rates(masters, arguments.rounds, keep_alive=keep_alive).items():
                table[name] |= found
    show(table)
    if "memory" in arguments.parts:
        print(f"\n8 processes by themselves: {memory_alone():.0f} MB")
    if arguments.plot is not None:
        plot(table, arguments.plot)


def measured(question: Any) -> dict[str, float]:
    """What it comes to; nothing where a master does not get there."""
    try:
        return dict(asyncio.run(question))
    except TimeoutError:
        return {"lost a reload": float("nan")}


def show(table: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    print("| master |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    for name, row in table.items():
        print(f"| {name} |", " | ".join(written(row.get(column, "")) for column in columns), "|")


def written(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 3 else f"{value:.1f}"


def plot(table: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw what each master loses."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    wanted = ("lost a reload", "cut while idle a reload", "lost a kill", "of them refused")
    shown = [name for name in wanted if any(name in row for row in table.values())]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3), sharey=True)
    for axis, name in zip([axes] if len(shown) == 1 else axes, shown, strict=True):
        values = [float(row.get(name, 0.0)) for row in table.values()]
        bars = axis.barh(
            list(table), values, color=["C1" if "mpc" in one else "C0" for one in table]
        )
        axis.bar_label(bars, fmt="%.1f", padding=2)
        axis.set_title(name, fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.2)
    figure.savefig(file, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    begin = time.monotonic()
    main()
    print(f"\n{time.monotonic() - begin:.0f} s", file=sys.stderr)
