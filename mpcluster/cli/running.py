"""`mpcluster run`, in the main thread of the master: from the options to the exit status."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import mpcluster
from mpcluster import interpreter, watcher
from mpcluster.errors import ClusterError
from mpcluster.logs import logger

from . import handover, orphans, place, signals
from .errors import FAILED, INTERRUPTED, CommandError
from .files import INTERVAL, Files
from .lines import FORMS
from .notify import Notifier
from .options import RunOptions
from .output import Output
from .service import Service

__all__ = ["run"]


def run(options: RunOptions) -> int:
    """Run the program in workers until it is to end; return the exit status.

    Raises:
        CommandError: It could not begin.
    """
    options.program.check()
    try:
        mpcluster.setup(**options.setup)
    except (TypeError, ValueError, ClusterError) as error:
        raise CommandError(str(error)) from None
    path = _control_path(options)
    preload(options)
    notifier = Notifier()
    output = _output(options)
    watcher.current().ask(output.begin)
    status = FAILED
    try:
        status = _serve(Service(options, output, notifier, handover.predecessor()), path)
    finally:
        watcher.current().ask(output.finish)
    if status == INTERRUPTED and os.getpid() != 1:  # whom no signal ends
        interpreter.die_of_sigint()
    return status


def _serve(service: Service, path: Path | None) -> int:
    watcher.current().ask(lambda: service.begin(path))
    # Before this line a signal ends the master as it ends any program, and the workers with it.
    signals.hear(service.hear)
    if orphans.is_their_parent():
        orphans.Orphans().hear()
    files = _watched(service.options)
    try:
        if service.is_in_charge:
            service.page.open(service.supervisor)
        while (status := service.wait(INTERVAL)) is None:
            service.do_chores()
            if files is not None and (changed := files.changed()):
                _tell_of(changed)
                watcher.current().call_soon(lambda: service.hear(signal.SIGHUP))
        return status
    finally:
        service.page.close()
        watcher.current().ask(service.close)


def _watched(options: RunOptions) -> Files | None:
    if not options.watch:
        return None
    own = [] if options.program.is_module else [options.program.name]
    return Files([options.program.directory, *own, *options.watch_paths])


def _tell_of(changed: list[str]) -> None:
    more = "" if len(changed) == 1 else f" and {len(changed) - 1} more"
    logger().info("%s%s changed", os.path.relpath(changed[0]), more)


def _control_path(options: RunOptions) -> Path | None:
    if options.control == "none":
        return None
    path = place.default(options.program) if options.control is None else Path(options.control)
    place.prepare(path)
    return path


def _output(options: RunOptions) -> Output:
    try:
        # `raw` is the workers' affair; what the master says has a form all the same.
        return Output(FORMS.get(options.form, FORMS["text"]), options.log)
    except OSError as error:
        raise CommandError(f"the log cannot be opened: {error}") from None


def preload(options: RunOptions) -> None:
    """Import what all workers shall have from the beginning, where the program would find it.

    Raises:
        CommandError: It cannot be imported.
    """
    if not options.preload:
        return
    own = list(sys.path)
    if not sys.flags.safe_path:
        sys.path[0] = options.program.directory
    try:
        for name in options.preload:
            try:
                importlib.import_module(name)
            except Exception as error:
                raise CommandError(
                    f"--preload {name}: {type(error).__name__}: {error}", FAILED
                ) from error
    finally:
        sys.path[:] = own
    gc.collect()
    gc.freeze()  # the collector of a worker leaves these pages shared
