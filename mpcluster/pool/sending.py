"""Calls on their way to a worker: pickled here, in the thread that sends them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Final

from mpcluster import pickling
from mpcluster.outbox import Outgoing
from mpcluster.pool import records
from mpcluster.pool.functions import Function
from mpcluster.pool.link import Link
from mpcluster.pool.records import HEADER, PLAIN
from mpcluster.pool.results import Call

__all__ = ["write"]

_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL


def write(
    link: Link, calls: list[Call], fail: Callable[[Link, Call, BaseException], object]
) -> None:
    """Pickle and write; a call that cannot be pickled fails. By the one who fills."""
    known, pack, dumps = link.known, HEADER.pack, pickle.dumps
    pieces: list[bytes | Outgoing] = []
    for call in calls:
        entry = call.known_as
        try:
            if entry.number not in known and not _define(link, call, entry, pieces):
                continue
            given, kind = call.given, call.kind
            if (
                type(given) in PLAIN
                if kind == records.ONE
                else kind == records.CALL and PLAIN.issuperset(map(type, given))
            ):
                data = dumps(given, _PROTOCOL)
            else:
                pickled = pickling.dump(given)
                segments, buffers, carried = pickled
                if len(segments) != 1 or buffers or carried:
                    pieces.append(records.parcel(kind, entry.number, call.number, pickled))
                    continue
                data = segments[0]  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001  # a user's __reduce__
            fail(link, call, error)
            continue
        pieces.append(pack(kind, entry.number, call.number, len(data)) + data)
    if pieces:
        link.write(pieces)


def _define(link: Link, call: Call, entry: Function, pieces: list[bytes | Outgoing]) -> bool:
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
    link.known.add(entry.number)
    return True
