"""The worker's side of a pool: take orders, run them one by one, answer.

Runs in the worker, in its main thread, and is all that runs there beside the tasks. Orders
come by the socket, many at once when they are small; answers are laid into the ring, and
the pool is told so by the *doorbell*, an eventfd: when there is nothing more to do, or a
millisecond after the last time. An answer too large for the ring goes by the socket.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from typing import Any, Final

from mpcluster import descriptors, memfd, pickling
from mpcluster.errors import SerializationError
from mpcluster.pool import records, ring
from mpcluster.pool.records import HEADER, PLAIN
from mpcluster.pool.ring import BEGUN, FROM, READY, SINCE, TO, Ring
from mpcluster.pool.stock import Stock

__all__ = ["Berth", "Plan", "work"]

#: Nanoseconds that a finished answer may wait for the next ones, before the pool is told.
_PATIENCE: Final = 1_000_000
#: Nanoseconds between two looks at how much memory this process has.
_LOOK_AT_MEMORY: Final = 20_000_000
_LONGEST: Final = 0xFFFFFFFF
#: Calls of a run of which it is worth a microsecond to know their processor time.
_MEASURED: Final = 8
_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL
_PROTO: Final = pickle.dumps(None, 3)[:2]


@dataclass(frozen=True, slots=True)
class Berth:
    """The descriptors by which a worker is joined to its pool, as they are in the worker."""

    orders: int  #: a stream socket
    doorbell: int  #: an eventfd
    memory: int  #: the ring's memfd


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker of a pool is made by. Inherited by the fork, never pickled."""

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_memory: int | None  #: bytes
    kept: int  #: bytes of memory for large answers, and of the pool's for large orders


def work(berth: Berth, plan: Plan) -> None:
    """Serve a pool until it closes the line. The target of a worker's process."""
    # Ctrl-C is the master's affair, who gets it too. A handler, not SIG_IGN: programs that
    # a task executes would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _ignore)
    desk = _Desk(berth, plan)
    if plan.initializer is not None:
        try:
            plan.initializer(*plan.initargs)
        except BaseException as error:  # noqa: BLE001
            desk.answer(records.UNFIT, 0, 0, _failure(error))
            desk.ring_doorbell()
            desk.leave()
            sys.exit(1)
    try:
        desk.serve()
    finally:
        desk.leave()


def _ignore(_signum: int, _frame: object) -> None:
    pass


class ResultEncodingError(MaybeEncodingError, SerializationError):  # type: ignore[misc]
    """A result cannot be pickled: what a pool raises then, and what an executor does, in one."""


class _Desk:
    """Where orders come in and answers go out."""

    def __init__(self, berth: Berth, plan: Plan) -> None:
        self._socket = socket.socket(fileno=berth.orders)
        self._socket.setblocking(True)  # noqa: FBT003
        self._ring = Ring(berth.memory)
        cells = self._ring.cells
        self._stream = records.Stream(self._socket, "the pool", cells, ring.ORDERS_BACK)
        self._stock = Stock(cells, ring.ANSWERS_BACK, plan.kept)
        descriptors.close(berth.memory)
        self._doorbell = berth.doorbell
        self._functions: dict[int, Any] = {}
        self._definitions: dict[int, bytes | records.Parcel] = {}
        self._max_memory = plan.max_memory
        self._looked = 0
        self._begin = self._told = 0  # of the order; when the pool was told last
        #: Half an answer may be on the socket, because a signal handler of a task's has raised
        #: while it was written. Nothing that is sent after it could be read: the worker ends.
        self._is_cut = False

    def ring_doorbell(self) -> None:
        """Tell the pool that there are answers."""
        os.eventfd_write(self._doorbell, 1)

    def leave(self) -> None:
        """Let go of the socket without closing it: the end of the process does.

        So the pool sees the end of the line and of the process together, and a program that
        looks for unclosed sockets sees none.
        """
        self._socket.detach()

    def serve(self) -> None:
        """Run what comes, until the pool closes its side."""
        next_records, stream = self._stream.next_records, self._stream
        self._ring.cells[READY] = 1
        while not stream.over:
            batch = next_records()
            self._begin = self._told = time.monotonic_ns()
            for kind, extra, number, payload in batch:
                if kind >= records.RUN:
                    self._do_run(kind, extra, number, payload)
                elif kind >= records.CALL:
                    self._do(kind, extra, number, payload)
                else:
                    self._learn(kind, extra, payload)
            batch.clear()
            if self._max_memory is not None:
                self._look_at_memory()
            self.ring_doorbell()

    def _do(self, kind: int, extra: int, number: int, payload: Any) -> None:
        """Do one order."""
        cells = self._ring.cells
        cells[SINCE] = begin = self._begin
        cells[BEGUN] = number
        self._ring.fence()
        if cells[TO] > number >= cells[FROM]:
            self.answer(records.SKIPPED, 0, number, b"")
            return
        # From here to the answer, this order is what a death of the process costs.
        answer = records.VALUE
        try:
            known = self._functions
            function = known[extra] if extra in known else self._define(extra)
            given: Any = (
                pickle.loads(payload) if type(payload) is memoryview else records.load(payload)
            )
            if kind == records.ONE:
                value = function(given)
            elif kind == records.CALL:
                value = function(*given)
            elif kind == records.MAP:
                value = list(map(function, given))
            elif kind == records.STARMAP:
                value = list(starmap(function, given))
            else:
                value = function(*given[0], **given[1])
            if type(value) in PLAIN:
                data: bytes | None = pickle.dumps(value, _PROTOCOL)
            else:
                data = self._pickle(value, number)
        except BaseException as error:
            if self._is_cut:
                raise
            answer, data = records.ERROR, _failure(error)
        value = given = payload = function = None
        self._begin = now = time.monotonic_ns()
        if data is not None:
            took = min((now - begin) // 100, _LONGEST)
            if not self._ring.put(answer, took, number, data):
                self.answer(answer, took, number, data)
        if now - self._told > _PATIENCE:
            self.ring_doorbell()
            self._told = now

    # One long loop, for it is what a small task costs here.
    def _do_run(self, kind: int, extra: int, first: int, payload: Any) -> None:
        """Do one order after the other of a run."""
        cells, add = self._ring.cells, self._ring.add
        clock, dumps = time.monotonic_ns, records.body
        release, acquire = ring.new_fence()
        has_one = kind == records.RUN
        function: Any = None
        begin, told = self._begin, self._told
        cells[SINCE] = begin
        cells[BEGUN] = first
        # Nothing but out of memory fails here, and that ends the process: the first is lost.
        run = pickle.loads(payload)
        measured = len(run) >= _MEASURED and _processor_time()
        for number, given in enumerate(run, first):
            cells[SINCE] = begin
            cells[BEGUN] = number
            release()
            acquire()
            if cells[TO] > number >= cells[FROM]:
                self.answer(records.SKIPPED, 0, number, b"")
                continue
            # From here to the answer, this order is what a death of the process costs.
            answer = records.VALUE
            try:
                if function is None:
                    known = self._functions
                    function = known[extra] if extra in known else self._define(extra)
                value = function(given) if has_one else function(*given)
                is_plain = type(value) in PLAIN
                data: bytes | None = dumps(value) if is_plain else self._pickle(value, number)
            except BaseException as error:
                if self._is_cut:
                    raise
                answer, data, is_plain = records.ERROR, _failure(error), False
            value = given = None  # noqa: PLW2901
            now = clock()
            if data is not None and not (is_plain and add(number, now - begin, data)):
                if is_plain:  # there is no room in the ring
                    data = b"".join((_PROTO, data, b"."))
                self.answer(answer, min((now - begin) // 100, _LONGEST), number, data)
            begin = now
            if now - told > _PATIENCE:
                self.ring_doorbell()
                told = now
        most = 1 << 62
        if measured:
            spent, waits = _processor_time()
            if waits == measured[1]:
                most = spent - measured[0]
        self._ring.end_run(most)
        self._begin, self._told = begin, told

    def answer(self, kind: int, extra: int, number: int, payload: bytes) -> None:
        """Answer by the ring, or, where it has no room, by the socket."""
        if not self._ring.put(kind, extra, number, payload):
            self.ring_doorbell()
            self._is_cut = True
            self._socket.sendall(HEADER.pack(kind, extra, number, len(payload)) + payload)
            self._is_cut = False

    # -- functions -------------------------------------------------------------------------

    def _learn(self, kind: int, number: int, payload: memoryview | records.Parcel) -> None:
        if kind == records.DEFINE:
            # Unpickled by the first order that needs it: should that go wrong, it is its error.
            self._definitions[number] = (
                payload if type(payload) is records.Parcel else bytes(payload)  # type: ignore[arg-type]
            )
        else:
            self._functions.pop(number, None)
            self._definitions.pop(number, None)

    def _define(self, number: int) -> Any:
        definition = self._definitions[number]
        if isinstance(definition, bytes):
            function: Any = pickle.loads(definition)
        else:
            function = definition.load()
        self._functions[number] = function
        del self._definitions[number]
        return function

    # -- values ----------------------------------------------------------------------------

    def _pickle(self, value: object, number: int) -> bytes | None:
        """Its pickle, or None where it has been sent in several parts."""
        try:
            pickled = pickling.dump(value)
        except Exception as error:  # noqa: BLE001
            raise ResultEncodingError(error, value) from None
        segments, buffers, carried = pickled
        size = sum(map(len, segments))
        if size < memfd.THRESHOLD and not (buffers or carried):
            return bytes(segments[0]) if len(segments) == 1 else b"".join(segments)
        outgoing = records.parcel(records.VALUE, 0, number, pickled, self._stock)
        try:
            self.ring_doorbell()
            self._is_cut = True
            while outgoing.sent < outgoing.size:
                outgoing.write(self._socket)
            self._is_cut = False
        finally:
            outgoing.drop()
        return None

    # -- memory ----------------------------------------------------------------------------

    def _look_at_memory(self) -> None:
        now = time.monotonic_ns()
        if now - self._looked < _LOOK_AT_MEMORY:
            return
        self._looked = now
        assert self._max_memory is not None
        with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
            resident = pages * os.sysconf("SC_PAGESIZE") - self._stock.mapped
            if resident > self._max_memory:
                self._max_memory = None  # told once
                self.answer(records.FULL, 0, 0, b"")


def _processor_time() -> tuple[int, int]:
    """Nanoseconds of it that this thread has had, and how often it has waited for something.

    One that has not waited was held up by other processes alone: that is no reason to give the
    next of its short calls to one more worker, which would be one more to hold it up.
    """
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return int((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_nvcsw


def _failure(error: BaseException) -> bytes:
    """What the pool needs to raise this error there; whatever it is, something arrives."""
    text = _traceback_of(error)
    try:
        if isinstance(error, MaybeEncodingError):
            data = pickle.dumps(error)
        else:
            segments, buffers, carried = pickling.dump(error)
            if buffers or carried:  # rare, and not worth parts
                segments = [pickle.dumps(error, _PROTOCOL)]
            data = b"".join(segments)
    except BaseException as why:  # noqa: BLE001  # a user's __reduce__ may raise anything
        data = pickle.dumps(_unsendable(why, error))
    return pickle.dumps((text, data), _PROTOCOL)


def _unsendable(why: BaseException, error: BaseException) -> MaybeEncodingError:
    try:
        return MaybeEncodingError(why, error)
    except BaseException:  # noqa: BLE001  # a user's __repr__
        return MaybeEncodingError(type(why), type(error))


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001
        return f"{type(error).__qualname__}, whose traceback cannot be shown\n"
