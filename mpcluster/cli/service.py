"""The master of `run`: what it is asked by signals and over the control socket, it does.

A :class:`Service` lives in the watcher's thread; the main thread starts it and waits
(:func:`run`). How it ends::

    RUNNING ──stop()──► STOPPING ──stop(), or at once──► KILLING ──► over
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
from typing import Any, Final

import mpcluster
from mpcluster import family, recruiting, watcher
from mpcluster.errors import SupervisionError
from mpcluster.logs import logger
from mpcluster.process import ClusterProcess
from mpcluster.supervision import SlotState, Supervisor

from . import report
from .control import Answer, Control
from .errors import FAILED, INTERRUPTED, CommandError
from .notify import Notifier
from .options import RunOptions
from .output import Output
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
        output: Where the workers' lines go; None: they write for themselves.
        notifier: Tells the service manager.
    """

    def __init__(self, options: RunOptions, output: Output | None, notifier: Notifier) -> None:
        self.options = options
        self.output = output
        self.notifier = notifier
        self.stage = Stage.RUNNING
        self.began = time.time()
        self.workers = options.workers
        self.interrupted = False
        self._crashed = False
        self._has_begun = False  # every worker was ready once
        self._reloads = 0  # under way
        self._control: Control | None = None
        self._orders: Final[dict[str, Callable[[dict[str, Any], Answer], None]]] = {
            "status": self._on_status,
            "reload": self._on_reload,
            "scale": self._on_scale,
            "stop": self._on_stop,
        }
        self.supervisor: Supervisor

    def begin(self, path: Path | None) -> None:
        """Take orders there, and start the workers.

        Raises:
            CommandError: The control socket cannot be had; no worker was started.
        """
        if path is not None:
            self._control = Control(path, self._obey)
        logger().info(
            "mpcluster runs %s in %d workers; master %d",
            self.options.program,
            self.workers,
            os.getpid(),
        )
        self.notifier.begin()
        mpcluster.on("death", self._on_death)
        self.supervisor = Supervisor(self._make, self.workers, self.options.rules)
        self.supervisor.on("ready", self._on_ready)

    def _make(self) -> ClusterProcess:
        output = self.output
        kind = functools.partial(
            ProgramProcess,
            attend=None if output is None else output.attend,
            leave=_nothing if output is None else output.leave,
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

    def reload(self) -> Future[None]:
        """Replace every worker by one that has read the program anew."""
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
        """
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}; stop ends them all")
        if self.stage is Stage.RUNNING:
            logger().info("%d workers instead of %d", workers, self.workers)
            self.workers = workers
            self.supervisor.scale(workers)

    def stop(self) -> None:
        """Let the workers finish and leave; asked again, end them at once."""
        if self.stage is Stage.RUNNING:
            logger().info("stop: the workers finish what they have")
            self.stage = Stage.STOPPING
            self.notifier.stopping()
            self.supervisor.stop()
        else:
            self.kill()

    def kill(self) -> None:
        """End the workers at once."""
        if self.stage is Stage.KILLING:
            return
        logger().info("stop at once")
        if self.stage is Stage.RUNNING:
            self.notifier.stopping()
        self.stage = Stage.KILLING
        self.supervisor.stop()
        # Behind that: whoever was just being forked is there by then.
        watcher.current().call_soon(_kill_all)

    def reopen_log(self) -> None:
        """Open the log file anew."""
        if self.output is not None:
            try:
                self.output.reopen()
            except OSError as error:
                logger().warning("the log cannot be opened anew, the old one is used on: %s", error)

    def hear(self, number: signal.Signals) -> None:
        """A signal."""
        if number is signal.SIGHUP:
            self.reload()
        elif number is signal.SIGTTIN:
            self.scale(self.workers + 1)
        elif number is signal.SIGTTOU:
            if self.workers > 1:
                self.scale(self.workers - 1)
        elif number is signal.SIGUSR1:
            self.reopen_log()
        elif number is signal.SIGQUIT:
            self.kill()
        elif number in {signal.SIGTERM, signal.SIGINT}:
            self.interrupted = number is signal.SIGINT
            self.stop()

    # -- over the control socket -----------------------------------------------------------------

    def close(self) -> None:
        """At the end, when no worker is left."""
        self.notifier.end()
        if self._control is not None:
            self._control.close()

    def _obey(self, request: dict[str, Any], answer: Answer) -> None:
        do = request.get("do")
        order = self._orders.get(str(do))
        if order is None:
            raise ValueError(f"there is no order {do!r}; there are: {', '.join(self._orders)}")
        order(request, answer)

    def _on_status(self, _request: dict[str, Any], answer: Answer) -> None:
        answer({"ok": True, **self.status()})

    def _on_scale(self, request: dict[str, Any], answer: Answer) -> None:
        workers = request.get("workers")
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise ValueError(f"workers must be a whole number, not {workers!r}")  # noqa: TRY004
        if self.stage is not Stage.RUNNING:
            raise CommandError(f"it is {self.stage.value}")
        self.scale(workers)
        answer({"ok": True, "workers": workers})

    def _on_stop(self, request: dict[str, Any], answer: Answer) -> None:
        answer({"ok": True})
        if request.get("now"):
            self.kill()
        elif self.stage is Stage.RUNNING:
            self.stop()

    def _on_reload(self, _request: dict[str, Any], answer: Answer) -> None:
        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                answer({"ok": True})
            else:
                answer({"ok": False, "error": str(error)})

        self.reload().add_done_callback(done)

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
        }

    # -- what happens ----------------------------------------------------------------------------

    def _on_death(self, worker: ClusterProcess) -> None:
        crashed = worker.exitcode != 0 and not worker.exited_after_disconnect
        self._crashed = self._crashed or crashed
        if self.output is not None:
            self.output.died(worker.pid, crashed=not worker.exited_after_disconnect)

    def _on_ready(self, _worker: ClusterProcess) -> None:
        slots = self.supervisor.status()
        if self._has_begun or any(one.state is not SlotState.READY for one in slots):
            return
        self._has_begun = True
        logger().info("all %d workers are ready", len(slots))
        self.notifier.ready(self._in_short())

    def _reloaded(self, done: Future[None]) -> None:
        self._reloads -= 1
        if done.exception() is None:
            logger().info("reload: done")
        if not self._reloads and self.stage is Stage.RUNNING:
            self.notifier.ready(self._in_short())

    def _in_short(self) -> str:
        return f"{self.options.program}: {self.workers} workers"

    # -- the end, in the main thread ---------------------------------------------------------------

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
        words = [] if self.output is None else self.output.last_words
        if words:
            said = "\n".join(words)
            logger().error("given up; the last that it wrote to stderr:\n%s", said)
        else:
            logger().error("given up: %s", reason)
        return FAILED


def _kill_all() -> None:
    for worker in list(family.current().workers.values()):
        worker.kill()


def _nothing() -> None:
    """Nothing is to be let go of."""
