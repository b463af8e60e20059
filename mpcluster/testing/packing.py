"""What is sent between xdist's session and its worker, packed by pickle.

execnet serializes in Python, item by item: a fifth of the CPU of a worker whose tests are
tiny, and two fifths of the controller's. Both ends are forks of one program here, so what
they say goes as bytes, which execnet passes on as they are.

Only what execnet itself would take is packed. Anything else is handed to execnet, which
refuses it in its own words.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

from execnet.gateway_base import NO_ENDMARKER_WANTED, Channel

__all__ = ["ControllerChannel", "LostChannel", "WorkerChannel", "pack"]


class _NotPlainError(Exception):
    """There is something in it that is none of the built-in types."""


class _Packer(pickle.Pickler):
    """Takes what is plain and nothing else."""

    def reducer_override(self, thing: object) -> Any:
        """Called for all but the built-in types themselves."""
        raise _NotPlainError(type(thing))


def pack(items: tuple[object, ...]) -> bytes | None:
    """Return the items as bytes, or None where one of them is not plain."""
    buffer = io.BytesIO()
    try:
        _Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(items)
    except _NotPlainError:
        return None
    return buffer.getvalue()


class _Packed:
    """Stands for an execnet channel; what it does not pack itself is the channel's."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._channel!r}>"

    def _send(self, items: tuple[object, ...]) -> None:
        data = pack(items)
        if data is not None:
            self._channel.send(data)
            return
        for item in items:
            self._channel.send(item)


class WorkerChannel(_Packed):
    """The worker's end of it.

    A test is six events. Those that another one follows at once wait for that one: the end of
    a test goes with the beginning of the next, a setup that had nothing to say with the test
    itself. Each is out before anything more of a test runs that could end this process, but
    for the plain word that its setup has passed.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._held: tuple[object, ...] = ()
        self._tests: Any = None
        # The session's thread sends, and execnet's receiver thread, which answers to a
        # "steal". Held while a message goes out, as the stream's own lock is; a child that
        # a test forks has no use for it.
        self._sending = threading.Lock()

    def watch(self, tests: Any) -> None:
        """Know the queue of the tests that this worker will run: does it end with this one?"""
        self._tests = tests

    def send(self, item: object) -> None:
        """Send it, or keep it for a moment, until the next one goes.

        Raises:
            execnet.DumpError: It is not made of built-in types.
            OSError: The controller is gone.
        """
        with self._sending:
            items, self._held = (*self._held, item), ()
            if self._is_followed(item):
                self._held = items
            else:
                self._send(items)

    def _is_followed(self, item: object) -> bool:
        match item:
            case ("testreport", {"data": {"when": "teardown"}}):
                return True
            case ("testreport", {"data": {"when": "setup", "outcome": "passed", "sections": []}}):
                return True
            case ("runtest_protocol_complete", _) if self._tests is not None:
                # With another test in the queue, the next one begins without waiting for it.
                # Should it be stolen meanwhile, that is an event, which this one goes with.
                with self._tests.lock() as waiting:
                    return bool(waiting)
            case ("logfinish", _):
                return True
        return False

    def send_packed(self, data: bytes) -> None:
        """Send what :func:`pack` has made, perhaps in a process that this one was forked from."""
        with self._sending:
            self._channel.send(data)

    def receive(self) -> Any:
        """Wait for the first thing that the controller has to say."""
        (item,) = pickle.loads(self._channel.receive())
        return item

    def setcallback(self, callback: Callable[[Any], object], endmarker: object) -> None:
        """Call ``callback`` with each later thing, in execnet's receiver thread."""
        self._channel.setcallback(_unpacking(callback, endmarker), endmarker)

    def close(self, error: str | None = None) -> None:
        """Say that this is all, and why if there is a reason."""
        with self._sending:
            items, self._held = self._held, ()
            if items:
                self._send(items)
        self._channel.close(error)


class ControllerChannel(_Packed):
    """The controller's end of it.

    Args:
        known: The ids of tests that any worker has sent: each is kept once for all workers.
    """

    def __init__(self, channel: Channel, known: dict[str, str]) -> None:
        super().__init__(channel)
        self._known = known
        self._ended = False
        # Whoever is first tells of the end. Never held while something is called.
        self._ending = threading.Lock()

    def send(self, item: object) -> None:
        """Send it. A worker that is gone is no error here.

        Its end comes by way of the callback, and its tests then go to others. xdist may well
        give it more meanwhile, while it deals with the death of another.
        """
        try:
            self._send((item,))
        except OSError:
            if not self._channel.isclosed():
                raise

    def setcallback(
        self, callback: Callable[[Any], object], endmarker: object = NO_ENDMARKER_WANTED
    ) -> None:
        """Call ``callback`` with each thing that the worker says, and once with its end.

        execnet's own loses the end that comes just now: its receiver thread finds neither
        a queue any more nor a callback yet.
        """

        def call(item: Any) -> None:
            if item is not endmarker:
                callback(self._with_known_ids(item))
            elif self._is_first_to_end():
                callback(endmarker)

        self._channel.setcallback(_unpacking(call, endmarker), endmarker)
        if self._channel._receiveclosed.is_set() and self._is_first_to_end():  # noqa: SLF001
            callback(endmarker)

    def _is_first_to_end(self) -> bool:
        with self._ending:
            is_first, self._ended = not self._ended, True
        return is_first

    def _with_known_ids(self, item: Any) -> Any:
        name, arguments = item
        if name == "collectionfinish":
            know = self._known.setdefault
            arguments["ids"] = [know(nodeid, nodeid) for nodeid in arguments["ids"]]
        return item


class LostChannel:
    """Stands for the channel to a worker that was gone before it was told anything."""

    def send(self, item: object) -> None:
        """Nobody is there to hear it."""

    def isclosed(self) -> bool:
        """It was never open."""
        return True

    def setcallback(self, callback: Callable[[Any], object], endmarker: object) -> None:
        """Tell of its end."""
        callback(endmarker)

    def _getremoteerror(self) -> None:
        return None


def _unpacking(callback: Callable[[Any], object], endmarker: object) -> Callable[[Any], None]:
    def unpack(data: Any) -> None:
        if data is endmarker or not isinstance(data, bytes):
            callback(data)
            return
        for item in pickle.loads(data):
            callback(item)

    return unpack
