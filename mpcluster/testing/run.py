"""Around the whole run: the template is forked before it, and gone after it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import traceback
import uuid
import warnings
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import pytest

from mpcluster import descriptors, forking, interpreter, leash
from mpcluster.testing import capture, safety, seams
from mpcluster.testing.terminal import Terminal

__all__ = ["on_forked_workers"]

#: Seconds that the template has to end; the teardown of shared fixtures is a part of it.
TEMPLATE_PATIENCE: Final = 60.0


@contextlib.contextmanager
def on_forked_workers(config: pytest.Config, mode: str) -> Iterator[None]:
    """Fork the template, and have xdist's session use it. Nothing without ``-n`` or ``--dist``.

    Raises:
        pytest.UsageError: pytest-xdist is not installed, or what else is asked for cannot be
            had together with this.
    """
    if getattr(config.option, "looponfail", False):
        raise pytest.UsageError(
            "--looponfail starts a new interpreter for each round, so --mpcluster has nothing "
            "to fork from: leave one of them out"
        )
    seams.check(config.option)
    _count_workers(config)
    if not _is_distributing(config.option):
        yield
        return
    timeout = _timeout(config)
    safety.warn(config)
    # The tests' own debugger is a matter of the workers; xdist refuses it.
    usepdb, config.option.usepdb = config.option.usepdb, False
    if config.option.testrunuid is None:
        config.option.testrunuid = uuid.uuid4().hex
    control, pid, plan = _fork_template(config, mode, usepdb=usepdb)

    from mpcluster.testing.controller import Controller

    controller = Controller(plan, control, timeout)
    config.pluginmanager.register(controller, "mpcluster-controller")
    try:
        yield
    finally:
        control.shutdown(socket.SHUT_RDWR)
        _wait_for_template(pid)
        controller.close()
        plan.terminal.close()


def _count_workers(config: pytest.Config) -> None:
    """Resolve ``-n auto`` as xdist does; it may come to no workers at all."""
    if config.option.numprocesses in ("auto", "logical"):
        number = config.hook.pytest_xdist_auto_num_workers(config=config)
        config.option.numprocesses = number


def _is_distributing(option: Any) -> bool:
    """Will xdist run tests in workers? As it decides itself, a little later."""
    if option.collectonly:
        return False
    if option.numprocesses is not None:
        return bool(option.numprocesses != 0)
    return bool(option.tx) and (option.distload or option.dist != "no")


def _timeout(config: pytest.Config) -> float | None:
    given = config.getoption("mpcluster_timeout")
    if given is None:
        text = config.getini("mpcluster_timeout")
        try:
            given = float(text) if text else None
        except ValueError:
            raise pytest.UsageError(
                f"mpcluster_timeout = {text!r} in the ini file: say a number of seconds"
            ) from None
    if given is not None and not given > 0:
        raise pytest.UsageError(f"--mpcluster-timeout is seconds above 0, not {given:g}")
    return None if given is None else float(given)


def _fork_template(
    config: pytest.Config, mode: str, *, usepdb: bool
) -> tuple[socket.socket, int, Any]:
    # Before the fork, so that it is not imported by each process.
    from mpcluster.testing.worker import Plan

    output = capture.take(config)
    terminal = Terminal(wanted=usepdb or config.option.trace)
    plan = Plan(config, mode, usepdb, output, terminal, signal.getsignal(signal.SIGINT))
    with descriptors.opening():
        ours, theirs = socket.socketpair()
        descriptors.own(ours)
        descriptors.own(theirs)
    interpreter.flush_std_streams()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # `safety` has named the threads
        pid = forking.fork((theirs.fileno(), leash.hold(), *terminal.streams))
    if pid == 0:
        _be_template(plan, theirs)
    descriptors.close(theirs)
    capture.renew(config, output)
    return ours, pid, plan


def _be_template(plan: Any, control: socket.socket) -> NoReturn:
    """In the child: never come back to the controller's program."""
    try:
        leash.wear()
        from mpcluster.testing import collecting
        from mpcluster.testing.template import Template

        template = Template(plan, control)
        if plan.mode == "collect":
            worker = collecting.run(template)
        else:
            worker = template.serve()
            worker.begin()
            worker.connect()
            worker.run_session()
        worker.end()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(1)


def _wait_for_template(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], TEMPLATE_PATIENCE)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
