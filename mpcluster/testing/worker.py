"""A worker: from the fork to its session to its end.

What xdist's remote module does in an interpreter of its own is done here in a fork: the
configuration is the one that the template has parsed, all else is xdist's.
"""

from __future__ import annotations

import atexit
import faulthandler
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, NoReturn

import pytest
import xdist.remote
from execnet.gateway_base import (
    Channel,
    ExecModel,
    WorkerGateway,
    WorkerPool,
    get_execmodel,
    geterrortext,
    loads_internal,
)

from mpcluster import descriptors, interpreter, leash
from mpcluster.testing import capture, orders, sessionmark, terminal
from mpcluster.testing.line import WorkerEnd
from mpcluster.testing.packing import WorkerChannel

__all__ = ["Job", "Plan", "TestWorker", "WorkerSide"]

_SESSION: Final = inspect.getsourcefile(sessionmark)

#: Seconds that a session has to end when the controller has gone, as in execnet.
END_PATIENCE: Final = 5.0


@dataclass(slots=True)
class Plan:
    """What holds for the whole run; made in the controller, inherited by all.

    Attributes:
        mode: ``fork`` or ``collect``.
        usepdb: ``--pdb`` was given.
        conftest_output: What was captured while conftests were loaded: stdout, stderr.
        terminal: The terminal that the workers may borrow.
    """

    config: pytest.Config
    mode: str
    usepdb: bool
    conftest_output: tuple[str, str]
    terminal: terminal.Terminal
    sigint: Any = None


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker is given at its fork: descriptors, most of all."""

    id: str
    stream: int
    news: int
    stdout: int
    stderr: int
    env: dict[str, str] = field(default_factory=dict)
    nice: int = 0


@dataclass(frozen=True, slots=True)
class TestWorker:
    """What the hook ``pytest_mpcluster_after_fork`` is told.

    Attributes:
        id: As in xdist: ``gw0``, ``gw1`` …
        mode: ``fork`` or ``collect``.
        config: pytest's; in mode ``fork`` it is not configured yet.
    """

    __test__ = False

    id: str
    mode: str
    config: pytest.Config


class _Gateway(WorkerGateway):
    """execnet's worker side, which lets the main thread run tasks where it wants to."""

    def __init__(self, io: WorkerEnd, name: str) -> None:
        super().__init__(io=io, id=f"{name}-worker", _startcount=2)
        self.tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.session_over = threading.Event()
        self._execpool = WorkerPool(io.execmodel)  # never used; execnet asks how busy it is
        self._executetask_complete = None

    def start(self) -> None:
        """Start the thread that receives; it ends when the controller says so or is gone."""
        self._initreceive()

    def _local_schedulexec(self, channel: Channel, sourcetask: bytes) -> None:
        self.tasks.put((channel, loads_internal(sourcetask)))

    def _terminate_execution(self) -> None:
        # In the receiver thread, at its end. The session has been told to stop by the end of
        # its channel; if it does not, it is interrupted, and if it does not mind, ended.
        self.tasks.put(None)
        if not self.session_over.wait(END_PATIENCE):
            os.kill(os.getpid(), signal.SIGINT)
            if not self.session_over.wait(2 * END_PATIENCE):
                os._exit(1)


class WorkerSide:
    """This process, as a worker of the run. In the forked child, from its first line on."""

    def __init__(self, plan: Plan, job: Job) -> None:
        self.plan = plan
        self.job = job
        self._gateway: _Gateway | None = None
        self.channel: WorkerChannel | None = None

    # -- right after the fork ----------------------------------------------------------------

    def begin(self) -> None:
        """Become a process like any other, with streams, seeds and an end of its own."""
        leash.wear()
        leash.become_root()
        signal.signal(signal.SIGINT, self.plan.sigint or signal.default_int_handler)
        interpreter.renew_exit_functions()
        interpreter.leave_finalizers()
        atexit.register(logging.shutdown)
        capture.renew(
            self.plan.config,
            self.plan.conftest_output,
            between=self._take_streams,
            started=self._tell_of_capture,
        )
        descriptors.close(self.job.news)
        os.environ.update(self.job.env)
        if self.job.nice:
            os.nice(self.job.nice)
        _reseed()

    def call_hook(self) -> None:
        """Let conftests and plugins open anew what was not theirs to inherit."""
        told = TestWorker(self.job.id, self.plan.mode, self.plan.config)
        self.plan.config.hook.pytest_mpcluster_after_fork(worker=told)

    def _take_streams(self) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (self.job.stdout, 1), (self.job.stderr, 2)):
            os.dup2(source, target)
            descriptors.close(source)
        #: Where a fatal error writes its traceback, whatever is captured at the time.
        self._crash_fd = os.dup(2)
        if faulthandler.is_enabled():
            faulthandler.enable(self._crash_fd)
        interpreter.open_std_streams()

    def _tell_of_capture(self) -> None:
        """Let the controller have the files that output is captured in.

        Should this worker be killed, they hold what its test had written up to then.
        """
        with socket.socket(fileno=os.dup(self.job.news)) as news:
            if self.plan.config.getoption("capture") == "fd":
                orders.send_news(news, orders.Captured(), (1, 2))

    # -- the session -------------------------------------------------------------------------

    def connect(self) -> None:
        """Wait until the controller has started xdist's session here; run what comes before."""
        execmodel: ExecModel = get_execmodel("main_thread_only")
        stream = socket.socket(fileno=self.job.stream)
        descriptors.disown(self.job.stream)
        descriptors.own(stream)
        self._gateway = gateway = _Gateway(WorkerEnd(stream, execmodel), self.job.id)
        gateway.start()
        while (task := gateway.tasks.get()) is not None:
            channel, (_, file_name, _, _) = task
            if file_name == _SESSION:
                self.channel = WorkerChannel(channel)
                return
            gateway.executetask(task)
        self.end()

    def take_input(self) -> tuple[dict[str, Any], str | None]:
        """Receive what the controller has to say to this worker: ``workerinput``, basetemp."""
        assert self.channel is not None
        workerinput, _args, option_dict, _sys_path = self.channel.receive()
        os.environ["PYTEST_XDIST_TESTRUNUID"] = workerinput["testrunuid"]
        os.environ["PYTEST_XDIST_WORKER"] = workerinput["workerid"]
        os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(workerinput["workercount"])
        return workerinput, option_dict.get("basetemp")

    def run_session(self) -> None:
        """Configure, collect, run tests: what xdist's remote module does."""
        assert self.channel is not None
        error: BaseException | None = None
        try:
            workerinput, basetemp = self.take_input()
            self.call_hook()
            become_xdist_worker(self.plan, workerinput, basetemp, self.channel)
            self.plan.config.hook.pytest_cmdline_main(config=self.plan.config)
        except BaseException as caught:  # noqa: BLE001  # the controller reports it
            error = caught
        self.conclude(error)

    def conclude(self, error: BaseException | None) -> None:
        """The session is over: tell the controller so, and why if it could not go on."""
        assert self.channel is not None
        said = None
        if isinstance(error, KeyboardInterrupt):
            said = "keyboard-interrupted"
        elif error is not None:
            said = geterrortext(error)
        try:
            self.channel.close(said)
        except OSError:
            # A test has closed the stream. The thread that receives from it may still wait
            # there, and nobody can be told any more but by the end of this process.
            os._exit(1)

    def end(self) -> NoReturn:
        """End as an interpreter ends; when the controller has said that it is over."""
        assert self._gateway is not None
        self._gateway.session_over.set()
        try:
            self._gateway.join()
        except KeyboardInterrupt:
            pass  # the controller has got one too, and ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            interpreter.end_threads()
            interpreter.run_exit_functions()
            interpreter.flush_open_files()
            interpreter.flush_std_streams()
        finally:
            os._exit(0)


def become_xdist_worker(
    plan: Plan, workerinput: dict[str, Any], basetemp: str | None, channel: Any
) -> xdist.remote.WorkerInteractor:
    """Make the parsed configuration that of a worker of xdist, as its remote module does."""
    config: Any = plan.config
    xdist.remote.setup_config(config, basetemp)
    config.option.usepdb = plan.usepdb
    config.workerinput = workerinput
    config.workeroutput = {}
    interactor = xdist.remote.WorkerInteractor(config, channel)
    if isinstance(channel, WorkerChannel):
        channel.watch(interactor.torun)
    xdist.remote.interactor = interactor  # it sends an internal error through this
    if capture.is_live(config):
        terminal.Quiet(plan.terminal).register(config.pluginmanager)
    if plan.terminal.is_lent:
        config.pluginmanager.register(terminal.Borrower(plan.terminal, workerinput["workerid"]))
    return interactor


def _reseed() -> None:
    """Give this worker random numbers of its own; ``random`` has done so at the fork."""
    numpy: ModuleType | None = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
