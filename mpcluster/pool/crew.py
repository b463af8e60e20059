"""The workers of a pool: there are always so many.

Decides who is hired and replaced; the dispatcher gives them work. A worker that ends, whatever
ended it, is replaced by the attendant. An initializer that raises is not tried again and
again: the pool is *broken* then, and says why to everybody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from mpcluster import descriptors, leash, watcher
from mpcluster.errors import WorkerDiedError
from mpcluster.events import Emitter, call
from mpcluster.forking import EndingError
from mpcluster.pool.dispatch import Dispatcher
from mpcluster.pool.failures import died
from mpcluster.pool.link import Line, Link
from mpcluster.pool.template import (
    Template,
    TemplateGoneError,
    as_it_is,
    can_have_template,
)
from mpcluster.pool.worker import Berth, Plan
from mpcluster.process import ClusterProcess

__all__ = ["Crew"]

logger = logging.getLogger("mpcluster")

#: Seconds between the SIGTERM of ``terminate()`` and the SIGKILL for those who ignore it.
GRACE: Final = 1.0
#: Workers in a row that may die before they are ready; then the pool is broken.
_MOST_STILLBORN: Final = 5
#: Seconds until a fork that failed for want of room is tried again.
_TRY_AGAIN: Final = 0.25


class Crew:
    """The workers, and who takes the place of those that end.

    Args:
        make: Makes an unstarted process that works at a berth.
        plan: What each worker does first.
        size: How many there shall be.
        quota: How many calls each may run; None for any number.
    """

    def __init__(
        self,
        make: Callable[[Berth, Plan], Any],
        plan: Plan,
        size: int,
        quota: int | None,
    ) -> None:
        self.processes: list[Any] = []
        self.size = size
        self.emitter = Emitter(("death",))
        self.error: BaseException | None = None
        self.replaced = 0
        self.deaths = 0
        self.dispatcher = Dispatcher(on_death=self._bury, on_unfit=self._unfit)
        self._make = make
        self._plan = plan
        self._quota = quota
        self._links: dict[int, Link] = {}
        self._stillborn = 0
        self._template: Template | None = None
        self._prototype: ClusterProcess | None = None  # what the template is to be made by
        self._has_prototype = False  # or had one
        self._is_filled = False
        self._is_over = False
        self._is_leaving = False
        # Guards how many are being hired, `processes` and `_links`: taken by the attendant
        # and by whoever resizes. Nothing is forked under it.
        self._lock = threading.RLock()
        self._hiring = 0

    @property
    def is_over(self) -> bool:
        """Have all workers been ended?"""
        return self._is_over

    # -- hiring ------------------------------------------------------------------------------

    def fill(self) -> None:
        """Hire until there are enough. Any thread.

        Raises:
            OSError: The system has no room for one more process.
        """
        while True:
            with self._lock:
                present = sum(1 for link in self._links.values() if link.usable)
                missing = self.size - present - self._hiring
                if self._is_over or self._is_leaving or self.error is not None or missing <= 0:
                    self._is_filled = True
                    return
                self._hiring += missing
            try:
                self._hire(missing)
            finally:
                with self._lock:
                    self._hiring -= missing

    def _hire(self, count: int) -> None:
        """Fork first: what is to be done here for each is done while they come to life."""
        started: list[_Recruit] = []
        try:
            for _ in range(count):
                started.append(self._recruit())  # noqa: PERF401  # those before one that fails
            self._make_template()
        finally:
            with contextlib.ExitStack() as each:  # whatever becomes of the others
                for recruit in reversed(started):
                    each.callback(self._enlist, recruit)

    def _keep_prototype(self, process: ClusterProcess) -> None:
        """The first that is hired shows what the template is to make; just once."""
        with self._lock:
            if not self._has_prototype:
                self._has_prototype = True
                self._prototype = as_it_is(process)

    def _make_template(self) -> None:
        """Make it, if that is not done: by one thread, for a death may be attended already."""
        with self._lock:
            prototype, self._prototype = self._prototype, None
        if prototype is None:
            return
        template = Template(prototype, self._plan)
        with self._lock:
            is_late = self._is_over  # the pool was ended meanwhile, and nobody closes it
            if not is_late:
                self._template = template
        if is_late:
            template.close()

    def _recruit(self) -> _Recruit:
        line = Line()
        try:
            process = self._make(line.berth, self._plan)
            recruit = _Recruit(line, process, weakref.ref(self.dispatcher))
            self._start(process, line)
        except BaseException:
            line.abandon()
            raise
        return recruit

    def _enlist(self, recruit: _Recruit) -> None:
        process = recruit.process
        try:
            link = Link(recruit.line, process, self._quota, self._plan.kept)
        except BaseException:  # no more memory: one that nobody talks to must not live
            process.kill()
            process.join()
            recruit.line.abandon()
            raise
        with self._lock:
            is_late = self._is_over  # the pool was ended meanwhile, and nobody waits for it
            if not is_late:
                self.processes.append(process)
                self._links[link.pid] = link
        if is_late:
            process.kill()
            process.join()
            link.close()
            return
        try:
            self.dispatcher.add(link)
        except ValueError:  # likewise; whoever ends the pool ends this one with the others
            link.close()
            return
        recruit.become(link)

    def _start(self, process: Any, line: Line) -> None:
        """The first ones are forked by this process, replacements by the template."""
        if self._template is not None and self._is_filled:
            process._Popen = self._template.popen  # noqa: SLF001
            try:
                process.start()
            except TemplateGoneError:
                if self._is_over:
                    raise EndingError("the pool is ended, and nobody is hired any more") from None
                self._template.close()
                self._template = None
                del process._Popen  # noqa: SLF001
            else:
                del process._Popen  # noqa: SLF001
                return
        elif not self._is_filled and can_have_template(process):
            self._keep_prototype(process)
        with descriptors.keep(*line.inherited, leash.hold()):
            process.start()

    # -- deaths ------------------------------------------------------------------------------

    def _bury(self, link: Link) -> None:
        """A worker is dead. In the attendant's thread."""
        process = link.process
        with self._lock:
            self._links.pop(link.pid, None)
            if process in self.processes:
                self.processes.remove(process)
        self.deaths += 1
        self._stillborn = 0 if link.was_ready else self._stillborn + 1
        if self._stillborn >= _MOST_STILLBORN:
            self._break(died(link, f"before it was ready, as {_MOST_STILLBORN - 1} before it"))
        for callback in self.emitter.take("death"):
            call(callback, process)
        self._replace()

    def _replace(self) -> None:
        try:
            self.fill()
        except EndingError:
            pass
        except OSError as error:
            logger.warning("no worker can be forked now, it is tried again: %s", error)
            again = weakref.WeakMethod(self._try_again)
            watcher.current().call_later(_TRY_AGAIN, lambda: (m := again()) and m())

    def _try_again(self) -> None:
        self.dispatcher.call_later(self._replace)

    def _unfit(self, link: Link, cause: BaseException) -> None:
        """An initializer has raised. In the attendant's thread."""
        error = WorkerDiedError(
            f"the initializer of worker {link.process.name} (pid {link.pid}) raised "
            f"{cause!r}; the pool cannot be used",
            worker_id=getattr(link.process, "id", None),
            pid=link.pid,
            exitcode=1,
        )
        error.__cause__ = cause
        self._break(error)

    def _break(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self.dispatcher.fail_all(error)

    # -- the size ----------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """Have so many workers from now on; those that are too many leave when they are idle."""
        with self._lock:
            self.size = size
            usable = [link for link in self._links.values() if link.usable]
        surplus = sorted(usable, key=lambda link: len(link.under_way))[: len(usable) - size]
        for link in surplus if len(usable) > size else ():
            self.dispatcher.retire(link)
        self.fill()

    # -- the end -----------------------------------------------------------------------------

    def dismiss(self) -> None:
        """Let everybody leave who has nothing to do any more. Nobody is replaced."""
        self._is_leaving = True
        for link in list(self._links.values()):
            self.dispatcher.retire(link)

    def end(self, error: BaseException) -> None:
        """End all workers at once; what is not finished gets ``error``. Idempotent.

        Those that ignore SIGTERM are killed a second later.
        """
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            processes = list(self.processes)
        self.dispatcher.is_ending = True
        self.dispatcher.fail_all(error)
        if self._template is not None:
            self._template.kill()  # it ends beside the others
        for process in processes:
            _signal(process, signal.SIGTERM)
        _await([process.sentinel for process in processes if process.is_alive()], GRACE)
        for process in processes:
            if process.is_alive():
                _signal(process, signal.SIGKILL)
        for process in processes:
            process.join()
        self.dispatcher.stop(error)
        if self._template is not None:
            self._template.close()
        self.emitter.discard("death")
        with self._lock:  # the dispatcher closes the links, when nobody drives any more
            self._links.clear()
            self.processes.clear()

    def join(self) -> None:
        """Wait for the end of every worker that was dismissed or ended."""
        for process in list(self.processes):
            process.join()


class _Recruit:
    """A worker that was just forked, and is not yet known to the dispatcher.

    It may die before. Its death is heard in the watcher's thread: one of the two, that or
    :meth:`become`, sees the other.
    """

    def __init__(self, line: Line, process: Any, dispatcher: weakref.ref[Dispatcher]) -> None:
        self.line = line
        self.process = process
        self._dispatcher = dispatcher
        self._link: Link | None = None
        self._is_dead = False
        if isinstance(process, ClusterProcess):
            # Before its start: later, it would wake the watcher and have it listen to a
            # channel on which nothing is said.
            process.once("death", self._on_death)

    def become(self, link: Link) -> None:
        """The dispatcher knows it."""
        self._link = link
        if self._is_dead:
            self._tell(link)
        elif not isinstance(self.process, ClusterProcess):
            self._watch(link.pid)
        del self.process, self.line  # no circle of process and link is left

    def _on_death(self, *_: object) -> None:
        self._is_dead = True
        if self._link is not None:
            self._tell(self._link)

    def _tell(self, link: Link) -> None:
        told = self._dispatcher()
        if told is not None:
            told.note_death(link)

    def _watch(self, pid: int) -> None:
        """For a process of ``multiprocessing``, which tells nobody of its death."""
        process = self.process
        with descriptors.opening():
            pidfd = os.pidfd_open(pid)
            descriptors.own(pidfd)

        def ended(_events: int) -> None:
            watcher.current().remove(pidfd)
            descriptors.close(pidfd)
            process.join()
            self._on_death()

        watcher.current().add(pidfd, ended)


def _signal(process: Any, number: int) -> None:
    try:
        if isinstance(process, ClusterProcess):
            process.kill(number)
        elif number == signal.SIGTERM:
            process.terminate()
        else:
            process.kill()
    except ValueError:
        pass  # closed


def _await(sentinels: list[int], seconds: float) -> None:
    """Wait for the ends of all, or for so long."""
    deadline = time.monotonic() + seconds
    left = set(sentinels)
    poll = select.poll()
    for sentinel in left:
        poll.register(sentinel, select.POLLIN)
    while left and (rest := deadline - time.monotonic()) > 0:
        for sentinel, _ in poll.poll(rest * 1000):
            poll.unregister(sentinel)
            left.discard(sentinel)
