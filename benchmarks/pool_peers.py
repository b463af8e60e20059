"""The pools that ``pool.py`` compares, each behind the same few verbs."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

OURS = "mpcluster"
#: The peer of a number that has a goal of its own.
ITSELF = "its goal"
fork = multiprocessing.get_context("fork")


class Pool(Protocol):
    """What a question may ask of a pool. Leaving ``with`` ends it, with all its workers."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def apply(self, function: Callable[[Any], Any], argument: Any) -> Any: ...
    def imap(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterable[Any]: ...
    def imap_unordered(
        self, function: Callable[[Any], Any], arguments: Iterable[Any]
    ) -> Iterable[Any]: ...
    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]: ...
    def burst(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]: ...


class Adapter:
    """A pool that is called in another way than ours."""

    def __init__(self, workers: int) -> None:
        self._pool = self.make(workers)

    def make(self, workers: int) -> Any:
        """Return the peer's own object."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave no worker behind."""
        self._pool.shutdown(wait=True)


class OfPool(Adapter):
    """multiprocessing.Pool, and what is like it."""

    def make(self, workers: int) -> Any:
        return fork.Pool(workers)

    def end(self) -> None:
        self._pool.terminate()
        self._pool.join()

    def apply(self, function: Any, argument: Any) -> Any:
        return self._pool.apply(function, (argument,))

    def imap(self, function: Any, arguments: Any) -> Any:
        return self._pool.imap(function, arguments, 1)

    def imap_unordered(self, function: Any, arguments: Any) -> Any:
        return self._pool.imap_unordered(function, arguments, 1)

    def map(self, function: Any, arguments: Any) -> list[Any]:
        return list(self._pool.map(function, arguments))

    def burst(self, function: Any, arguments: Any) -> list[Any]:
        pending = [self._pool.apply_async(function, (argument,)) for argument in arguments]
        return [result.get() for result in pending]


class Ours(OfPool):
    """ClusterPool."""

    def make(self, workers: int) -> Any:
        from mpcluster import ClusterPool

        return ClusterPool(workers)

    def burst(self, function: Any, arguments: Any) -> list[Any]:
        futures = [self._pool.submit(function, argument) for argument in arguments]
        return [future.result() for future in futures]


class OfExecutor(Adapter):
    """ProcessPoolExecutor."""

    def make(self, workers: int) -> Any:
        return ProcessPoolExecutor(workers, mp_context=fork)

    def apply(self, function: Any, argument: Any) -> Any:
        return self._pool.submit(function, argument).result()

    def imap(self, function: Any, arguments: Any) -> Any:
        return self._pool.map(function, arguments)

    imap_unordered = imap  # it has none

    def map(self, function: Any, arguments: Any) -> list[Any]:
        return list(self._pool.map(function, arguments))

    def burst(self, function: Any, arguments: Any) -> list[Any]:
        futures = [self._pool.submit(function, argument) for argument in arguments]
        return [future.result() for future in futures]


class OfLoky(OfExecutor):
    """loky's executor."""

    def make(self, workers: int) -> Any:
        import loky

        return loky.ProcessPoolExecutor(workers)


class OfPebble(Adapter):
    """pebble.ProcessPool."""

    def make(self, workers: int) -> Any:
        import pebble

        return pebble.ProcessPool(max_workers=workers, context=fork)

    def end(self) -> None:
        self._pool.stop()
        self._pool.join()

    def apply(self, function: Any, argument: Any) -> Any:
        return self._pool.schedule(function, args=(argument,)).result()

    def imap(self, function: Any, arguments: Any) -> Any:
        return self._pool.map(function, arguments, chunksize=1).result()

    imap_unordered = imap  # it has none

    def map(self, function: Any, arguments: Any) -> list[Any]:
        return list(self._pool.map(function, arguments).result())

    def burst(self, function: Any, arguments: Any) -> list[Any]:
        futures = [self._pool.schedule(function, args=(argument,)) for argument in arguments]
        return [future.result() for future in futures]


class OfMpire(Adapter):
    """mpire.WorkerPool. It spreads tuples and arrays, so each argument comes in a tuple."""

    def make(self, workers: int) -> Any:
        import mpire

        return mpire.WorkerPool(workers, start_method="fork")

    def end(self) -> None:
        self._pool.terminate()

    def apply(self, function: Any, argument: Any) -> Any:
        return self._pool.apply(function, (argument,))

    def imap(self, function: Any, arguments: Any) -> Any:
        return self._pool.imap(function, arguments, chunk_size=1)

    def imap_unordered(self, function: Any, arguments: Any) -> Any:
        return self._pool.imap_unordered(function, arguments, chunk_size=1)

    def map(self, function: Any, arguments: Any) -> list[Any]:
        return list(self._pool.map(function, arguments))

    def burst(self, function: Any, arguments: Any) -> list[Any]:
        pending = [self._pool.apply_async(function, (argument,)) for argument in arguments]
        return [result.get() for result in pending]


class Raw:
    """Two Connections and one worker: the floor under a call that is waited for."""

    def __init__(self, _: int) -> None:
        self._ours, theirs = fork.Pipe()
        self._process = fork.Process(target=self._serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _serve(self, theirs: Any) -> None:
        self._ours.close()
        while True:
            try:
                function, argument = pickle.loads(theirs.recv_bytes())
            except EOFError:
                return
            theirs.send_bytes(pickle.dumps(function(argument), 5))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join()

    def apply(self, function: Any, argument: Any) -> Any:
        self._ours.send_bytes(pickle.dumps((function, argument), 5))
        return pickle.loads(self._ours.recv_bytes())


class Copies:
    """No process at all: an array is copied to fresh memory, and from there to fresh memory."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def apply(self, function: Any, argument: Any) -> Any:
        return function(argument.copy()).copy()


PEERS: dict[str, Callable[[int], Any]] = {
    "multiprocessing": OfPool,
    "ProcessPoolExecutor": OfExecutor,
    "loky": OfLoky,
    "pebble": OfPebble,
    "mpire": OfMpire,
}
FLOORS: dict[str, Callable[[int], Any]] = {"raw Connection": Raw, "bare copies": Copies}


def maker(name: str) -> Callable[[int], Any]:
    """Return what makes a pool of that name."""
    return Ours if name == OURS else {**PEERS, **FLOORS}[name]


def installed() -> Iterator[str]:
    """Name what there is to compare with; say what is missing."""
    yield from (*FLOORS, ITSELF)
    for name in PEERS:
        module = {"multiprocessing": "multiprocessing", "ProcessPoolExecutor": "concurrent"}
        if importlib.util.find_spec(module.get(name, name)) is None:
            print(f"{name} is not installed, and left out: see the extra `bench`", file=sys.stderr)
        else:
            yield name


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw the ratios, one group of bars a question; a line shows the goal."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(result["peer"] for result in results))
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    questions = list(dict.fromkeys(result["question"] for result in results))
    figure, axes = plt.subplots(figsize=(9, 0.25 * len(results) + 0.3 * len(questions) + 1.5))
    place, ticks = 0.0, []
    for question in questions:
        group = [result for result in results if result["question"] == question]
        ticks.append(place + (len(group) - 1) / 2)
        for result in group:
            # Bars that begin at 1: to the right is faster than the peer, to the left slower.
            colour = colours[result["peer"]]
            axes.barh(place, result["ratio"] - 1, left=1, color=colour, height=0.85)
            axes.annotate(f" {result['ratio']:.2f} ", (result["ratio"], place), fontsize=7,
                          va="center", ha="left" if result["ratio"] >= 1 else "right")  # fmt: skip
            if result["goal"] is not None:
                axes.plot([result["goal"]] * 2, [place - 0.42, place + 0.42], "k", linewidth=2)
            place += 1
        place += 1
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    handles.append(plt.Line2D([], [], color="k", linewidth=2))
    axes.legend(handles, [*names, "goal"], fontsize=8, loc="upper center",
                bbox_to_anchor=(0.4, -0.02 - 1.5 / len(results)), ncols=5)  # fmt: skip
    axes.set_yticks(ticks, questions, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.margins(x=0.12, y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast (or as thrifty) as the peer")
    figure.savefig(file, dpi=120, bbox_inches="tight")
