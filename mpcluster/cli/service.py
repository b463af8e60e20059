"""The master of `run`: what it is asked by signals and over the control socket, it does.

A :class:`Service` lives in the watcher's thread; the main thread starts it and waits
(:func:`run`). How it ends::

    RUNNING ──stop()──► STOPPING ──stop(), or at once──► KILLING ──► over

By USR2 a new master takes over (:mod:`.succession`), and this one stops.
"""

from __future__ import annotations

import enum
import functools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import mpcluster
from mpcluster import family, recruiting, watcher
from mpcluster.errors import SupervisionError
from mpcluster.logs import logger
from mpcluster.process import ClusterProcess
from mpcluster.supervision import SlotState, Supervisor

from . import orders, report
from .control import Control
from .errors import FAILED, INTERRUPTED, CommandError
from .handover import Predecessor
from .notify import Notifier
from .options import RAW, RunOptions
from .output import Output
from .page import Page
from .succession import Succession
from .worker import ProgramProcess

__all__ = ["Service"]


class Stage(enum.Enum):
    """Where it stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    KILLING = "ending at once"


class Service:
    """A supervised program, and who may tell it what.

    Args:
        options: Of `run`.
        output: Where lines go: the master's, and the workers', unless they write for themselves.
        notifier: Tells the service manager.
        predecessor: The master whose place this one is to take.
    """

    def __init__(
        self,
        options: RunOptions,
        output: Output,
        notifier: Notifier,
        predecessor: Predecessor | None = None,
    ) -> None:
        self.options = options
        self.output = output
        self.notifier = notifier
        self.stage = Stage.RUNNING
        self.began = time.time()
        self.workers = (predecessor and predecessor.workers) or options.workers
        self.interrupted = False
        self._crashed = False
        self._has_begun = False  # every worker was ready once
        self._reloads = 0  # under way
        self._succession = Succession(
            predecessor, self._hand_over, self._lay_down, self._leave, self._serve_on
        )
        self.page = Page(
            options.monitor, str(options.program), None if predecessor is None else predecessor.page
        )
        self._chores: SimpleQueue[Callable[[], object]] = SimpleQueue()  # for the main thread
        self._control: Control | None = None
        self.supervisor: Supervisor

    def begin(self, path: Path | None) -> None:
        """Take orders there, and start the workers.

        Raises:
            CommandError: The control socket cannot be had; no worker was started.
        """
        if self._succession.is_in_charge:
            self._take_orders(path)
        else:
            self._succession.begin(lambda: self._take_charge(path))
        logger().info("mpcluster runs %s, workers: %d", self.options.program, self.workers)
        mpcluster.on("death", self._on_death)
        self.supervisor = Supervisor(self._make, self.workers, self.options.rules)
        self.supervisor.on("ready", self._on_ready)

    def _take_orders(self, path: Path | None) -> None:
        if path is not None:
            self._control = Control(path, orders.obeying(self))
        self.notifier.begin()

    def _take_charge(self, path: Path | None) -> None:
        """The old master has let go, or has died."""
        try:
            self._take_orders(path)
        except CommandError as error:
            logger().error("%s", error)
        self._chores.put(self._open_page)
        logger().info("this master (%d) has taken over", os.getpid())
        if self._has_begun:
            self.notifier.ready(self._in_short())

    def _make(self) -> ClusterProcess:
        output = self.output
        kind = functools.partial(
            ProgramProcess,
            attend=None if self.options.form == RAW else output.attend,
            leave=output.leave,
        )
        return recruiting.recruit(
            self.options.program.run,
            (),
            None,
            name=None,
            env=None,
            cwd=None,
            daemon=None,
            share_ports=True,
            kind=kind,
        )

    # -- what can be asked of it -----------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """It was not told to stop."""
        return self.stage is Stage.RUNNING

    @property
    def is_in_charge(self) -> bool:
        """Is there no master before this one (any more)?"""
        return self._succession.is_in_charge

    def reload(self) -> Future[None]:
        """Replace every worker by one that has read the program anew.

        Raises:
            CommandError: That cannot be now.
        """
        self._check_can_change()
        logger().info("reload: %s", self.options.program)
        self._reloads += 1
        self.notifier.reloading()
        done = self.supervisor.reload()
        done.add_done_callback(lambda _: watcher.current().call_soon(lambda: self._reloaded(done)))
        return done

    def scale(self, workers: int) -> None:
        """Have so many workers.

        Raises:
            ValueError: It is none that can be.
            CommandError: That cannot be now.
        """
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}; stop ends them all")
        self._check_can_change()
        logger().info("workers: %d instead of %d", workers, self.workers)
        self.workers = workers
        self.supervisor.scale(workers)

    def stop(self) -> None:
        """Let the workers finish and leave; asked again, end them at once."""
        if self.stage is Stage.RUNNING:
            logger().info("stop: the workers finish what they have")
            self.stage = Stage.STOPPING
            self._begin_to_end()
        else:
            self.kill()

    def kill(self) -> None:
        """End the workers at once."""
        if self.stage is Stage.KILLING:
            return
        logger().info("stop at once")
        self.stage = Stage.KILLING
        self._begin_to_end()
        # Behind that: whoever was just being forked is there by then.
        watcher.current().call_soon(_kill_all)

    def _begin_to_end(self) -> None:
        self.notifier.stopping()
        self._succession.abandon()
        self.supervisor.stop()

    def reopen_log(self) -> None:
        """Open the log file anew."""
        try:
            self.output.reopen()
        except OSError as error:
            logger().warning("the log cannot be opened anew, the old one is used on: %s", error)

    def replace_master(self) -> None:
        """Start a new master, and let it take over when its workers are ready.

        Raises:
            CommandError: That cannot be now.
        """
        self._check_can_change()
        if os.getpid() == 1:
            raise CommandError("PID 1 cannot be replaced, for its end would be everybody's")
        rolls = any(one.state is SlotState.ROLLING for one in self.supervisor.status())
        if self._reloads or rolls or not self._has_begun:
            raise CommandError("the master is replaced when all workers are ready: later")
        was_scaled = self.workers != self.options.workers
        try:
            self._succession.start(
                self.notifier.variables,
                self.workers if was_scaled else None,
                self.page.fileno(),
                self.options.rules.ready_timeout,
            )
        except OSError as error:
            raise CommandError(f"no new master could be started: {error}", FAILED) from None
        self.supervisor.keep_all()  # the listeners are to stay as they were handed down

    def _hand_over(self, pid: int) -> bool:
        """The new master is ready: let it have what is one master's alone, and end."""
        if self.stage is not Stage.RUNNING:
            return False
        logger().info("the new master (%d) takes over; the workers here finish", pid)
        self.stage = Stage.STOPPING
        if self._control is not None:
            self._control.release()
        self.notifier.hand_over(pid)
        return True

    def _lay_down(self, proceed: Callable[[], object]) -> None:
        """What is left to be let go of; then ``proceed()``."""
        if self.page.address is None:
            proceed()
            return

        def close() -> None:
            self.page.close()
            watcher.current().call_soon(proceed)

        self._chores.put(close)

    def _leave(self) -> None:
        """It is in charge."""
        self.supervisor.stop()

    def _serve_on(self) -> None:
        """There is no new master after all."""
        if self.stage is Stage.RUNNING:
            self.supervisor.replace_again()

    def _check_can_change(self) -> None:
        if self.stage is not Stage.RUNNING:
            raise CommandError(f"the master is {self.stage.value}", FAILED)
        if self._succession.has_successor:
            raise CommandError("a new master is about to take over; ask that one", FAILED)

    def hear(self, number: signal.Signals) -> None:
        """A signal."""
        try:
            self._follow(number)
        except CommandError as error:
            logger().warning("%s: %s", number.name, error)

    def _follow(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            self.reload()
        elif number is signal.SIGTTIN:
            self.scale(self.workers + 1)
        elif number is signal.SIGTTOU:
            if self.workers > 1:
                self.scale(self.workers - 1)
        elif number is signal.SIGUSR1:
            self.reopen_log()
        elif number is signal.SIGUSR2:
            self.replace_master()
        elif number is signal.SIGQUIT:
            self.kill()
        elif number in {signal.SIGTERM, signal.SIGINT}:
            self.interrupted = number is signal.SIGINT
            self.stop()

    def close(self) -> None:
        """At the end, when no worker is left."""
        self.notifier.end()
        if self._control is not None:
            self._control.close()

    def status(self) -> dict[str, Any]:
        """What there is to be known of it."""
        stage = "reloading" if self._reloads and self.stage is Stage.RUNNING else self.stage.value
        return {
            "pid": os.getpid(),
            "program": str(self.options.program),
            "state": stage,
            "workers": self.workers,
            "uptime": time.time() - self.began,
            "slots": report.slots(self.supervisor),
            "snapshot": report.snapshot(self.supervisor, str(self.options.program)),
        }

    # -- what happens ----------------------------------------------------------------------------

    def _on_death(self, worker: ClusterProcess) -> None:
        crashed = worker.exitcode != 0 and not worker.exited_after_disconnect
        self._crashed = self._crashed or crashed
        self.output.died(worker.pid, crashed=not worker.exited_after_disconnect)

    def _on_ready(self, _worker: ClusterProcess) -> None:
        slots = self.supervisor.status()
        if self._has_begun or any(one.state is not SlotState.READY for one in slots):
            return
        self._has_begun = True
        logger().info("all workers are ready: %d", len(slots))
        if self._succession.is_in_charge:
            self.notifier.ready(self._in_short())
        else:
            self._succession.tell_ready()

    def _reloaded(self, done: Future[None]) -> None:
        self._reloads -= 1
        if done.exception() is None:
            logger().info("reload: done")
        if not self._reloads and self.stage is Stage.RUNNING:
            self.notifier.ready(self._in_short())

    def _in_short(self) -> str:
        return f"{self.options.program}, workers: {self.workers}"

    # -- the main thread -----------------------------------------------------------------------

    def do_chores(self) -> None:
        """Do what the watcher's thread has left to this one."""
        while not self._chores.empty():
            self._chores.get()()

    def _open_page(self) -> None:
        try:
            self.page.open(self.supervisor)
        except CommandError as error:
            logger().error("%s", error)

    # -- the end, in the main thread -----------------------------------------------------------

    def wait(self, timeout: float | None) -> int | None:
        """Wait for the end, for so many seconds; return the exit status, or None before it."""
        try:
            if not self.supervisor.wait(timeout):
                return None
        except SupervisionError as given_up:
            reason = str(given_up)
            return watcher.current().ask(lambda: self._explain(reason))
        if self.interrupted:
            return INTERRUPTED
        asked = self.stage is not Stage.RUNNING
        return FAILED if self._crashed and not asked else 0

    def _explain(self, reason: str) -> int:
        words = self.output.last_words
        if words:
            said = "\n".join(words)
            logger().error("given up; the last that it wrote to stderr:\n%s", said)
        else:
            logger().error("given up: %s", reason)
        return FAILED


def _kill_all() -> None:
    for worker in list(family.current().workers.values()):
        worker.kill()
