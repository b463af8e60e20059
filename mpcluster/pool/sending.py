"""Calls on their way to a worker: pickled here, in the thread that sends them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any, Final

from mpcluster import pickling
from mpcluster.outbox import Outgoing
from mpcluster.pool import records
from mpcluster.pool.calls import Call
from mpcluster.pool.functions import Function
from mpcluster.pool.link import Link
from mpcluster.pool.records import HEADER, PLAIN
from mpcluster.pool.runs import Run

__all__ = ["write"]

_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL


#: What a run of such calls is.
_RUNS: Final = {records.ONE: records.RUN, records.CALL: records.STARRUN}


def write(
    link: Link, calls: list[Call], fail: Callable[[Link, int, BaseException], object]
) -> None:
    """Pickle and write; a call that cannot be pickled fails. By the one who fills.

    Calls of the same function that stand next to each other go in one pickle, if their
    arguments are plain. Others do not: two of them could have an object in common, and a task
    that changes it would change it for the next.
    """
    pieces: list[bytes | Outgoing] = []
    last = len(calls)
    begin = 0
    while begin < last:
        call = calls[begin]
        entry, kind = call.known_as, call.kind
        end = begin + 1
        if entry.number in link.known or _define(link, call, entry, pieces, fail):
            given: list[Any]
            if type(call) is Run:
                given = call.all_given()
            else:
                given = [call.given]
                while (
                    end < last
                    and (next_one := calls[end]).known_as is entry
                    and next_one.kind == kind
                    and type(next_one) is not Run
                ):
                    given.append(next_one.given)
                    end += 1
            _write(link, entry.number, kind, call.number, given, pieces, fail)
        begin = end
    if pieces:
        link.write(pieces)


def _write(  # noqa: PLR0917
    link: Link,
    function: int,
    kind: int,
    number: int,
    given: list[Any],
    pieces: list[bytes | Outgoing],
    fail: Callable[[Link, int, BaseException], object],
) -> None:
    """The orders from ``number`` on, each with what it is given."""
    pack, dumps = HEADER.pack, pickle.dumps
    if len(given) > 1 and kind in _RUNS:
        each = itertools.chain.from_iterable(given) if kind == records.CALL else given
        if PLAIN.issuperset(map(type, each)):
            data = dumps(given, _PROTOCOL)
            pieces.append(pack(_RUNS[kind], function, number, len(data)) + data)
            return
    for one in given:
        try:
            if (
                type(one) in PLAIN
                if kind == records.ONE
                else kind == records.CALL and PLAIN.issuperset(map(type, one))
            ):
                data = dumps(one, _PROTOCOL)
            else:
                pickled = pickling.dump(one)
                segments, buffers, carried = pickled
                if len(segments) != 1 or buffers or carried:
                    pieces.append(records.parcel(kind, function, number, pickled, link.stock))
                    number += 1
                    continue
                data = segments[0]  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001  # a user's __reduce__
            fail(link, number, error)
        else:
            pieces.append(pack(kind, function, number, len(data)) + data)
        number += 1


def _define(
    link: Link,
    call: Call,
    entry: Function,
    pieces: list[bytes | Outgoing],
    fail: Callable[[Link, int, BaseException], object],
) -> bool:
    """Send the function before its first call; False where that is not to be."""
    try:
        function = call.function
        if function is None:  # it was cancelled in the meantime
            link.under_way.pop(call.number, None)
            return False
        pickled = entry.pickled(function)
        segments, buffers, carried = pickled
        if buffers or carried:
            pieces.append(records.parcel(records.DEFINE, entry.number, 0, pickled))
        else:
            data = bytes(segments[0])
            pieces.append(HEADER.pack(records.DEFINE, entry.number, 0, len(data)) + data)
    except Exception as error:  # noqa: BLE001  # a user's __reduce__
        for number in range(call.number, call.number + call.count):
            fail(link, number, error)
        return False
    link.known.add(entry.number)
    return True
