"""The plugin in the controller: forked workers for xdist's session.

Runs in the controller's main thread, but for what is marked: execnet's receiver threads.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import execnet
import pytest

from mpcluster import descriptors
from mpcluster.testing import capture, crashes, orders, sessionmark
from mpcluster.testing.events import Event, EventQueue
from mpcluster.testing.gateways import ForkingGroup
from mpcluster.testing.line import ControllerEnd
from mpcluster.testing.output import Lines
from mpcluster.testing.worker import Plan

__all__ = ["Controller"]

#: xdist's word for a worker whose stream has ended without a word.
LOST: Final = "Not properly terminated"

#: Our own event, which xdist never sees: a worker has written to the terminal (``-s``).
OUTPUT: Final = "mpcluster_output"

#: Seconds between SIGABRT, at which a worker shows its stack, and SIGKILL.
ABORT_PATIENCE: Final = 2.0


class Controller:
    """One run.

    Args:
        control: This side's end of the orders to the template.
        timeout: Seconds that a test may take, or None.
    """

    def __init__(self, plan: Plan, control: socket.socket, timeout: float | None) -> None:
        self._plan = plan
        self._config = plan.config
        self._control = control
        self._timeout = timeout
        self._live = capture.is_live(self._config)
        self._ends: dict[str, ControllerEnd] = {}
        self._running: dict[str, crashes.Running] = {}
        self._lines = Lines(self._config)
        self._queue = EventQueue(self._see, self._look)

    # -- taking part in xdist's session -------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Before xdist makes its workers: all that they say comes by here."""
        session = self._config.pluginmanager.getplugin("dsession")
        if session is not None:
            session.queue = self._queue

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_setupnodes(self) -> None:
        """Before xdist makes its workers: it shall make them by way of a group that forks."""
        manager = self._config.pluginmanager.getplugin("dsession").nodemanager
        manager.group = ForkingGroup(manager.group, self._launch)

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_getremotemodule(self) -> Any:
        """What a forked worker knows as the start of its session."""
        return sessionmark if self._newest_is_forked else None

    @pytest.hookimpl(trylast=True)
    def pytest_configure_node(self, node: Any) -> None:
        """All plugins have said what they want a worker to know: so shall the template."""
        self._newest_is_forked = node.gateway.id in self._ends
        if self._plan.mode == "collect" and self._newest_is_forked:
            order = orders.Input(node.gateway.id, execnet.dumps(node.workerinput))
            self._order(order)

    _newest_is_forked = False

    def _launch(self, spec: execnet.XSpec, execmodel: Any) -> ControllerEnd:
        name = str(spec.id)
        stream, their_stream = socket.socketpair()
        news, their_news = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors, their_errors = os.pipe2(os.O_CLOEXEC)
        outputs: dict[int, Callable[[bytes], None]] = {errors: partial(self._on_stderr, name)}
        if self._live:
            output, their_output = os.pipe2(os.O_CLOEXEC)
            outputs[output] = partial(self._on_output, name, 1)
        else:
            their_output = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        end = self._ends[name] = ControllerEnd(name, execmodel, stream, news, outputs)
        theirs = (their_stream.fileno(), their_news.fileno(), their_output, their_errors)
        order = orders.Launch(
            name, env={key: str(value) for key, value in spec.env.items()}, nice=int(spec.nice or 0)
        )
        try:
            self._order(order, theirs)
        finally:
            their_stream.close()
            their_news.close()
            os.close(their_output)
            os.close(their_errors)
        return end

    def _order(self, order: object, fds: tuple[int, ...] = ()) -> None:
        try:
            orders.send_order(self._control, order, fds)
        except OSError as error:
            raise RuntimeError(
                "the process that forks the workers of --mpcluster is gone: was it killed? "
                "Without it no worker can be made"
            ) from error

    # -- execnet's receiver threads -----------------------------------------------------------

    def _on_output(self, name: str, stream: int, data: bytes) -> None:
        self._queue.put((OUTPUT, {"name": name, "stream": stream, "data": data}))

    def _on_stderr(self, name: str, data: bytes) -> None:
        self._ends[name].keep_tail(data)
        if self._live:
            self._on_output(name, 2, data)
        else:
            _write_all(2, data)  # as if it were the worker's own, as with xdist

    # -- what comes to pass -------------------------------------------------------------------

    def _see(self, event: Event) -> Event | None:
        self._wait_for_terminal()
        name, arguments = event
        if name == OUTPUT:
            self._lines.write(**arguments)
            return None
        node = arguments.get("node")
        end = None if node is None else self._ends.get(node.gateway.id)
        if end is None:
            return event
        match name:
            case "logstart":
                self._running[end.name] = crashes.Running(arguments["nodeid"], time.monotonic())
            case "testreport" if end.name in self._running:
                self._running[end.name].sections = list(arguments["rep"].sections)
            case "logfinish":
                self._running.pop(end.name, None)
            case "errordown" if arguments["error"] == LOST:
                said = f"{LOST}: {crashes.describe_end(end)}"
                return name, {**arguments, "error": said}
        return event

    @pytest.hookimpl(tryfirst=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        """A worker died in a test: say how, and show what it had written."""
        end = self._ends.get(report.node.gateway.id)
        if end is not None:
            crashes.amend(report, end, self._running.get(end.name))

    def _wait_for_terminal(self) -> None:
        """Say and do nothing while somebody debugs; that time counts for no test."""
        waited = self._plan.terminal.wait_until_free()
        if waited:
            for running in self._running.values():
                running.since += waited

    def _look(self) -> float | None:
        """Kill who overruns; return the seconds until the next may."""
        if self._timeout is None or not self._running:
            return None
        self._wait_for_terminal()
        now = time.monotonic()
        waits = []
        for name, running in self._running.items():
            end = self._ends[name]
            if end.is_over:
                continue
            left = running.since + self._timeout - now
            if left <= 0 and running.overran is None:
                running.overran = self._timeout
                end.signal(signal.SIGABRT)  # faulthandler shows where it is
            if left <= 0:
                left += ABORT_PATIENCE
                if left <= 0:
                    end.kill()
                    continue
            waits.append(left)
        return min(waits, default=None)

    # -- the end ------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """All workers are gone: show what they have written last."""
        self._queue.drain()
        self._lines.finish()

    def close(self) -> None:
        """Let go of everything. When the template is gone."""
        for end in self._ends.values():
            end.close()
        descriptors.close(self._control)


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # nobody reads this program's stderr any more
