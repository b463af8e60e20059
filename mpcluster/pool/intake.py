"""Answers, as they come in from the workers: by the ring, or the socket if they are large."""

from __future__ import annotations

import pickle
import select
import time
from collections.abc import Callable
from typing import Any

from mpcluster.pool import records
from mpcluster.pool.calls import Call
from mpcluster.pool.failures import remote_error, unreadable
from mpcluster.pool.functions import Function
from mpcluster.pool.link import Link
from mpcluster.pool.roster import Roster
from mpcluster.pool.runs import Run
from mpcluster.pool.turn import Turn

__all__ = ["Intake"]


class Intake:
    """Takes answers in, and finishes their calls. By the thread that has the turn.

    Args:
        on_unfit: Called by the attendant with a worker whose initializer has raised, and the
            error.
        on_full: Called by the attendant with a worker that has grown past its memory.
    """

    def __init__(
        self,
        roster: Roster,
        turn: Turn,
        on_unfit: Callable[[Link, BaseException], object],
        on_full: Callable[[Link], object],
    ) -> None:
        self._roster = roster
        self._turn = turn
        self._on_unfit = on_unfit
        self._on_full = on_full

    def collect(self, link: Link) -> None:
        """Take in what is in a worker's ring. With the turn."""
        loads, under_way = pickle.loads, link.under_way
        last: Function | None = None
        count = spent = 0
        for kind, took, number, payload in link.ring.take():
            if kind == records.VALUES:
                values, told = payload
                self._take_values(link, number, values, told, took)
                continue
            if kind != records.VALUE:
                self._take_odd(link, kind, number, payload)
                continue
            call = under_way.get(number)  # as Link.claim_single, without a call for each answer
            if call is None or type(call) is Run:
                call = self._claim(link, number)
            else:
                call = under_way.pop(number, None)
            if call is None:
                continue  # it was cancelled
            known = call.known_as
            if known is not last:
                if last is not None:
                    last.ran(count, spent * 1e-7)
                last, count, spent = known, 0, 0
            count += 1
            spent += took
            try:
                value = loads(payload)
            except BaseException as error:  # noqa: BLE001  # a user's __setstate__
                self._fail_unreadable(call, error)
                continue
            call.finish(value)
        call = value = payload = None
        if last is not None:
            last.ran(count, spent * 1e-7)
        with self._roster.lock:
            self._roster.settle(link)

    def _take_values(
        self, link: Link, number: int, values: list[Any], told: int, took: int
    ) -> None:
        """Values of a run; ``told`` of them, and of those before, took so long."""
        begin, end = 0, len(values)
        while begin < end:
            call = link.claim_single(number + begin)
            if call is not None:
                call.finish(values[begin])
                begin += 1
                link.run_of = call.known_as
                continue
            with self._roster.lock:
                run = link.claim(number + begin, end - begin)
            if run is None:  # it was cancelled
                begin += 1
                continue
            assert type(run) is Run
            all_of_it = run.count == end
            run.owner.put(run.index, values if all_of_it else values[begin : begin + run.count])
            begin += run.count
            link.run_of = run.known_as
        if told and link.run_of is not None:
            link.run_of.ran(told, took * 1e-7)

    def _claim(self, link: Link, number: int) -> Call | None:
        call = link.claim_single(number)
        if call is None:
            with self._roster.lock:
                call = link.claim(number)
        return call

    @staticmethod
    def _fail_unreadable(call: Call, error: BaseException) -> None:
        call.fail(unreadable(error))
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _take_odd(self, link: Link, kind: int, number: int, payload: Any) -> None:
        """An answer that is no value."""
        if kind == records.UNFIT:
            link.usable = False
            error = remote_error(records.as_bytes(payload))
            self._turn.attendant.add(lambda: self._on_unfit(link, error))
            return
        if kind == records.FULL:
            self._turn.attendant.add(lambda: self._on_full(link))
            return
        call = self._claim(link, number)
        if call is None:
            return
        if kind == records.ERROR:
            call.fail(remote_error(records.as_bytes(payload)))
        else:  # both had seen each other: taken back, and not known to be
            call.link = None
            with self._roster.lock:
                self._roster.requeue([call])

    def on_socket(self, link: Link, events: int) -> None:
        """Answers that were too large for the ring, or room for what waits. With the turn."""
        if events & select.EPOLLOUT:
            link.flush()
            self._turn.change(link.socket.fileno(), link.events)
        if events & ~select.EPOLLOUT and self.read(link):
            with self._roster.lock:
                self._roster.settle(link)

    def read(self, link: Link) -> bool:
        """Take in what is there on the socket; was there anything?"""
        found = link.stream.next_records()
        for kind, _, number, payload in found:
            if kind != records.VALUE:
                self._take_odd(link, kind, number, payload)
                continue
            call = self._claim(link, number)
            if call is None:
                records.drop(payload)
                continue
            call.known_as.ran(1, time.monotonic() - link.began_at)
            try:
                value = records.load(payload)
            except BaseException as error:  # noqa: BLE001  # a user's __setstate__
                self._fail_unreadable(call, error)
            else:
                call.finish(value)
            call = value = None
        if link.stream.over:
            # Its death follows, or has been told of already.
            self._turn.unwatch(link.socket.fileno())
        return bool(found)
