# ruff: noqa: SLF001  # what a process object keeps to itself, its descent knows
"""How a child becomes the process that it is to be, from the fork to the end of its program.

Whatever a child writes to, if only to count a reference, is memory to copy. Dearest is a function
of Python's that it is the first to run (some seven pages of it, and of what it looks up), then a
look-up in a module. Next to nothing costs a function of C's that `partial` has made ready. So
there is one function here that runs in every child, its parent makes before the fork what can be
made there, and it calls by names of this module, or by `partial`. With this, a child of an empty
program copies some 70 pages more than that of ``multiprocessing``; it had been 180.
"""

from __future__ import annotations

import operator
import os
import select
import signal
import sys
from _thread import get_ident  # the threads' own: gevent's names greenlets
from collections.abc import Callable, Mapping
from fcntl import fcntl
from functools import partial
from os import _exit as leave
from os import getpid, write
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from mpcluster import interpreter, leash, workerside
from mpcluster.greeting import ONLINE
from mpcluster.interpreter import (
    RENEWING_EXIT_FUNCTIONS,
    count_exit_functions,
    empty_stdin,
    environ,
    environ_data,
    flush_std_streams,
    get_handler,
    run_exit_functions,
    set_handler,
)
from mpcluster.leash import PUT_ON
from mpcluster.leaving import run
from mpcluster.perprocess import AT_END
from mpcluster.workerside import on_sigurg

if TYPE_CHECKING:
    from mpcluster.configuration import Settings
    from mpcluster.post import Post

__all__ = ["WORKER_ID_VARIABLE", "Heritage", "Newborn", "be_child", "bequeath"]

#: Set in a worker's environment, for logs. Which process is a worker is never read from it.
WORKER_ID_VARIABLE: Final = "MPCLUSTER_WORKER_ID"

_LEASH: Final = leash.__name__
_WORKERSIDE: Final = workerside.__name__
_STDIN: Final = f"{__name__}.stdin"

# Made together, they lie together.
_WORKER_ID: Final = os.fsencode(WORKER_ID_VARIABLE)
_NUMBERING: Final[tuple[Callable[[bytes], object], ...]] = (
    partial(os.putenv, _WORKER_ID),
    partial(operator.setitem, environ_data, _WORKER_ID),
)
#: As CPython's own Popen of that version does.
_RENEWS_EXIT_FUNCTIONS: Final = sys.version_info >= (3, 13)
_STEPS: Final[tuple[Callable[[], object], ...]] = (
    tuple(map(partial, RENEWING_EXIT_FUNCTIONS)) if _RENEWS_EXIT_FUNCTIONS else ()
)
# Not with `siginterrupt(SIGURG, False)`: the kernel would go on with a wait for a lock as if
# nothing had come, and the main thread never run the handler.
_SIGURG: Final = int(signal.SIGURG)
_STEPS_AND_SIGURG: Final[tuple[Callable[[], object], ...]] = (
    *_STEPS,
    partial(set_handler, _SIGURG, on_sigurg),
)
_WITHOUT_STDIN: Final[tuple[Callable[[], object], ...]] = (
    partial(setattr, sys, "stdin", None),
    partial(setattr, sys, "__stdin__", None),
)
#: A program that has none of these for SIGURG has a use of its own for it.
_NOT_THE_PROGRAMS: Final = (int(signal.SIG_DFL), None, on_sigurg)

#: What a child begins with.
Heritage: TypeAlias = tuple[
    dict[str, Any],  # what is its own, by name: :mod:`perprocess`
    tuple[Callable[[], object], ...],  # steps, to be called one after the other
    bytes,  # its number
    Callable[[], object],  # what it shall ``run()``
    int,  # its end of the channel
    int,  # its end of the leash; -1 where it has to open that itself
    bool,  # it is as most are: :func:`_settle` has nothing to do
]


class Newborn(Protocol):
    """What is asked of the process object."""

    _settings: Settings
    _env: Mapping[str, str] | None
    _cwd: str | None
    _share_ports: bool
    _inherits: bool
    is_forked: bool
    post: Post | None

    @property
    def id(self) -> int | None: ...  # noqa: D102

    def run(self) -> object: ...  # noqa: D102

    def _inherit(self) -> None: ...

    def _bootstrap(self, parent_sentinel: int | None = None) -> int: ...


def bequeath(process: Newborn, connection: int, end: int) -> Heritage:
    """In the parent, by the thread that forks: make ready what the child begins with.

    Args:
        process: The process to be.
        connection: The child's end of the channel.
        end: The leash that was cut for it; -1 if none was.
    """
    number = process.id
    assert number is not None
    # The thread that forks is the child's main thread.
    papers: workerside.Papers = number, connection, process._settings, process.post, get_ident()
    mine: dict[str, Any] = {_WORKERSIDE: papers}
    if end >= 0:
        mine[_LEASH] = end
    steps = _STEPS_AND_SIGURG if get_handler(_SIGURG) in _NOT_THE_PROGRAMS else _STEPS
    if process.is_forked:
        from mpcluster import mainprogram  # whoever forks such a one has it

        steps += (mainprogram.end_at_ctrl_c,)
    stdin = sys.stdin
    if stdin is not None:
        # As `_bootstrap` would do it. That makes an object for each child, and closes the old
        # one, whose lock a thread may hold that does not come along: so it is kept.
        mine[_STDIN] = stdin
        stdin = empty_stdin()
        steps += _WITHOUT_STDIN
    is_usual = os.environ is environ and not (
        process._env or process._cwd or process._share_ports or process._inherits or process.post
    )
    # What `_bootstrap` will call, a subclass's too.
    program = partial(run, mine, stdin, process.run)
    return mine, steps, b"%d" % number, program, connection, end, is_usual


def be_child(  # noqa: C901, PLR0912  # one function: each would be pages to copy
    process: Newborn, heritage: Heritage, sentinel: int, poll: select.poll, *, threaded: bool
) -> None:
    """In the child: be that process, to its end. Does not return.

    Args:
        process: The process to be.
        heritage: What it begins with.
        sentinel: What becomes readable when the parent ends.
        poll: Finds the channel ready, or the leash, where that needs to be looked after.
        threaded: A thread that did not come along may have been in the middle of something.
    """
    code = 1
    try:
        mine, steps, number, program, connection, end, is_usual = heritage
        if end >= 0:
            fcntl(end, PUT_ON, getpid())
        else:
            leash.wear()
        for step in steps:
            step()
        for name in _NUMBERING:
            name(number)
        if threaded:
            interpreter.become_main_thread()
            interpreter.forget_imports_of_other_threads()
            interpreter.renew_std_streams()
        process.run = program  # type: ignore[method-assign]
        try:
            write(connection, ONLINE)
        except OSError:
            pass  # the parent is gone already
        if not is_usual:
            _settle(process)
        for ready, _ in poll.poll(0):
            if ready == end:
                os.kill(os.getpid(), signal.SIGKILL)  # the master ended before it was put on
            # The signal that goes with it came, maybe, before there was a handler.
            _attend()
        code = process._bootstrap(parent_sentinel=sentinel)
        at_end = mine.get(AT_END)
        if at_end is not None:
            at_end()
    except KeyboardInterrupt:
        interpreter.die_of_sigint()  # before its program began
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()  # the base class prints those of the program
    finally:
        if _RENEWS_EXIT_FUNCTIONS:
            more_than_its_own = count_exit_functions() > 1
            run_exit_functions()
            if more_than_its_own:  # which may have printed something
                flush_std_streams()
        leave(code)


def _attend() -> None:
    """Let the watcher read what the parent says from now on."""
    myself = workerside.current()
    assert myself is not None
    myself.attend()


def _settle(process: Newborn) -> None:
    """In the child: all that is not usual."""
    process._inherit()
    if process.post is not None:
        process.post.take_up()
    if os.environ is not environ:  # the program has put something else in its place
        os.environ[WORKER_ID_VARIABLE] = str(process.id)
    if process._env:
        os.environ.update(process._env)
    if process._cwd is not None:
        os.chdir(process._cwd)
    if process._share_ports:
        from mpcluster import drain, sharing

        myself = workerside.current()
        assert myself is not None
        sharing.install(myself.request, myself.tell)
        if process._settings.share == "kernel" and not workerside.is_nested():
            sharing.install_beneath(myself.request)
        drain.install()
    if process._share_ports or process.post is not None:
        _attend()
