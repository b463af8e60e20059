"""The names that a program imports: there, with these arguments, and with errors that say what to do."""

from __future__ import annotations

import concurrent.futures
import inspect
import pickle
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import ClusterProcess, Supervisor, Worker
from tests.happenings import Diary, relatives_fixture  # noqa: F401  # a fixture
from tests.running import python

pytestmark = pytest.mark.usefixtures("relatives")

#: As the documentation has them. ``...`` stands where the setting keeps what it was.
SIGNATURES: dict[str, tuple[Callable[..., object], str]] = {
    "fork": (
        cluster.fork,
        (
            "(target=None, args=(), kwargs=None, *, name=None, env=None, cwd=None, daemon=None, "
            "share_ports=True)"
        ),
    ),
    "on": (cluster.on, "(event, callback=None)"),
    "once": (cluster.once, "(event, callback=None)"),
    "off": (cluster.off, "(event, callback=None)"),
    "send": (cluster.send, "(message)"),
    "broadcast": (cluster.broadcast, "(message)"),
    "listen": (
        cluster.listen,
        (
            f"(address, *, type={socket.SOCK_STREAM!r}, family=None, backlog=None, exclusive=False, "
            "scheduling=None, mode=None, max_connections=None)"
        ),
    ),
    "setup": (cluster.setup, "(**changes)"),
    "supervise": (
        cluster.supervise,
        (
            "(target=None, workers=None, args=(), kwargs=None, *, name=None, env=None, cwd=None, "
            "share_ports=True, **rules)"
        ),
    ),
    "ready": (cluster.ready, "()"),
    "disconnect": (cluster.disconnect, "(callback=None, *, timeout=None)"),
    "join": (cluster.join, "(timeout=None)"),
    "get_context": (cluster.get_context, "()"),
    "ClusterProcess": (
        ClusterProcess,
        (
            "(group=None, target=None, name=None, args=(), kwargs={}, *, daemon=None, env=None, "
            "cwd=None, share_ports=False)"
        ),
    ),
    "ClusterProcess.send": (ClusterProcess.send, "(self, message)"),
    "ClusterProcess.on": (ClusterProcess.on, "(self, event, callback=None)"),
    "ClusterProcess.once": (ClusterProcess.once, "(self, event, callback=None)"),
    "ClusterProcess.off": (ClusterProcess.off, "(self, event, callback=None)"),
    "ClusterProcess.disconnect": (ClusterProcess.disconnect, "(self, timeout=None)"),
    "ClusterProcess.kill": (ClusterProcess.kill, f"(self, signal={signal.SIGKILL!r})"),
    "Worker.send": (Worker.send, "(self, message)"),
    "Worker.on": (Worker.on, "(self, event, callback=None)"),
    "Worker.once": (Worker.once, "(self, event, callback=None)"),
    "Worker.off": (Worker.off, "(self, event, callback=None)"),
    "Worker.disconnect": (Worker.disconnect, "(self)"),
    "Worker.ready": (Worker.ready, "(self)"),
    "Worker.count": (Worker.count, "(self, tasks=1)"),
    "Worker.kill": (Worker.kill, "(self)"),
    "Supervisor.status": (Supervisor.status, "(self)"),
    "Supervisor.scale": (Supervisor.scale, "(self, workers)"),
    "Supervisor.reload": (Supervisor.reload, "(self)"),
    "Supervisor.stop": (Supervisor.stop, "(self, timeout=None)"),
    "Supervisor.wait": (Supervisor.wait, "(self, timeout=None)"),
    "Supervisor.on": (Supervisor.on, "(self, event, callback=None)"),
    "Supervisor.off": (Supervisor.off, "(self, event, callback=None)"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_takes_these_arguments(name: str) -> None:
    function, expected = SIGNATURES[name]
    signature = inspect.signature(function)
    bare = [
        one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()
    ]
    plain = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    assert str(plain) == expected


def test_the_settings_are_these_with_these_defaults() -> None:
    fields = inspect.signature(cluster.Settings).parameters
    assert {name: field.default for name, field in fields.items()} == {
        "scheduling": "auto",
        "kill_timeout": 5.0,
        "channel_limit": 64 << 20,
        "send_timeout": 30.0,
        "listener_grace": 30.0,
        "max_connections": None,
        "share": "python",
    }


def test_the_rules_of_a_supervisor_are_these_with_these_defaults() -> None:
    fields = inspect.signature(cluster.Rules).parameters
    assert {name: field.default for name, field in fields.items()} == {
        "restart": "always",
        "backoff": 0.5,
        "max_backoff": 30.0,
        "min_uptime": 5.0,
        "max_crashes": 6,
        "ready": "auto",
        "ready_timeout": 60.0,
        "drain_timeout": 30.0,
        "heartbeat": None,
        "max_age": None,
        "max_tasks": None,
        "max_memory": None,
        "jitter": 0.1,
    }


@pytest.mark.parametrize(
    "name", ["id", "is_connected", "is_dead", "exited_after_disconnect", "state", "exit_signal"]
)
def test_what_is_known_of_a_worker_cannot_be_set(name: str) -> None:
    one = ClusterProcess()
    getattr(one, name)
    with pytest.raises(AttributeError):
        setattr(one, name, 1)


def test_every_public_name_is_listed_for_who_looks_around() -> None:
    """The live ones too, which a console completes from this list."""
    assert set(cluster.__all__) <= set(dir(cluster))


def test_the_workers_can_be_gone_through_while_they_come_and_go() -> None:
    """Deaths are told in another thread: a program's loop must not meet them half-way."""
    first = cluster.fork(signal.pause)
    second = cluster.fork(signal.pause)
    seen = []
    for number, worker in cluster.workers.items():
        seen.append((number, worker))
        if worker is first:
            diary = Diary()
            second.on("death", diary.writer("death"))
            second.kill()
            diary.until("death")
            assert list(cluster.workers) == [1]
    assert seen == [(1, first), (2, second)]
    first.kill()


def test_to_empty_the_workers_that_one_was_shown_ends_nobodys_watch() -> None:
    worker = cluster.fork(signal.pause)
    cluster.workers.clear()
    assert cluster.workers == {1: worker}
    worker.kill()


def test_a_plain_import_starts_no_thread_and_no_process() -> None:
    done = python(
        """
        import mpcluster, multiprocessing, threading
        print(threading.active_count(), multiprocessing.active_children(), mpcluster.is_master)
        """
    )
    assert (done.stdout, done.stderr) == ("1 [] True\n", "")


def test_where_there_is_no_linux_the_import_says_so_in_one_sentence() -> None:
    done = python("import sys; sys.platform = 'win32'; import mpcluster")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: mpcluster runs on Linux (5.4 or later), and this is win32"
    )


# -- wrong arguments -------------------------------------------------------------------------------


def waiting() -> ClusterProcess:
    return cluster.fork(signal.pause)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "fork a number": (lambda: cluster.fork(5), TypeError, "target must be callable, not 5"),  # type: ignore[arg-type]
    "one argument that is no tuple": (
        lambda: cluster.fork(print, 5),  # type: ignore[arg-type]
        TypeError,
        r"args must be a tuple of arguments, not 5; one alone: \(5,\)",
    ),
    "kwargs that are none": (
        lambda: cluster.fork(print, kwargs=5),  # type: ignore[arg-type]
        TypeError,
        "kwargs must map names of arguments to values, not 5",
    ),
    "kwargs without names": (
        lambda: cluster.fork(print, kwargs={1: 2}),  # type: ignore[dict-item]
        TypeError,
        "kwargs must map names of arguments to values, not {1: 2}",
    ),
    "an environment that is none": (
        lambda: cluster.fork(print, env=["A=b"]),  # type: ignore[arg-type]
        TypeError,
        r"env maps names to strings, and is not \['A=b'\]",
    ),
    "a directory that is no path": (
        lambda: cluster.fork(print, cwd=5),  # type: ignore[arg-type]
        TypeError,
        "cwd must be a path, not 5",
    ),
    "a directory that is not there": (
        lambda: cluster.fork(print, cwd="/no/such"),
        NotADirectoryError,
        "the working directory of a worker: '/no/such'",
    ),
    "an event that is none": (
        lambda: cluster.on("exit", print),
        ValueError,
        "no event 'exit'; there are: fork, online, listening, message, disconnect, death",
    ),
    "a message from the master to nobody": (
        lambda: cluster.send(1),
        cluster.ClusterError,
        r"use worker.send\(message\) of one worker, or broadcast\(message\)",
    ),
    "an address that is none": (
        lambda: cluster.listen(None),
        TypeError,
        r"cannot listen on None: give \(host, port\), a bare port, a path, or 'unix:/path'",
    ),
    "a setting that is none": (
        lambda: cluster.setup(kill_time=1),  # type: ignore[call-arg]
        TypeError,
        "no setting 'kill_time'; there are: scheduling, kill_timeout, channel_limit, ",
    ),
    "a callback of disconnect": (
        lambda: cluster.disconnect(5),  # type: ignore[arg-type]
        TypeError,
        "callback must be callable, not 5",
    ),
    "a timeout of disconnect, with nobody there": (
        lambda: cluster.disconnect(timeout=-1),
        ValueError,
        "timeout must not be negative, not -1 seconds",
    ),
    "a timeout of join": (
        lambda: cluster.join("soon"),  # type: ignore[arg-type]
        TypeError,
        "timeout must be a number of seconds, not 'soon'",
    ),
    "a timeout of join that is no number": (
        lambda: cluster.join(float("nan")),
        ValueError,
        "timeout .* nan seconds",
    ),
    "a signal by its name": (
        lambda: waiting().kill("SIGTERM"),  # type: ignore[arg-type]
        TypeError,
        "signal must be a number, as signal.SIGTERM, not 'SIGTERM'",
    ),
    "a signal that is none": (
        lambda: waiting().kill(4711),
        ValueError,
        "there is no signal 4711: the last is 64",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named_with_what_would_be_right(wrong: str) -> None:
    call, error, says = WRONG[wrong]
    with pytest.raises(error, match=says):
        call()


# -- errors ----------------------------------------------------------------------------------------

ALSO: dict[type[cluster.ClusterError], type[BaseException]] = {
    cluster.NotMasterError: cluster.ClusterError,
    cluster.ChannelClosedError: OSError,
    cluster.ChannelFullError: BlockingIOError,
    cluster.SerializationError: pickle.PicklingError,
    cluster.WorkerDiedError: concurrent.futures.BrokenExecutor,
    cluster.TaskTimeoutError: TimeoutError,
    cluster.SupervisionError: cluster.ClusterError,
    cluster.ReloadAbortedError: cluster.SupervisionError,
    cluster.TaskCancelledError: concurrent.futures.CancelledError,
    cluster.EngineUnavailableError: ImportError,
}


@pytest.mark.parametrize("error", ALSO)
def test_an_error_is_also_the_one_that_code_catches_already(
    error: type[cluster.ClusterError],
) -> None:
    assert issubclass(error, cluster.ClusterError)
    assert issubclass(error, ALSO[error])


@pytest.mark.parametrize("error", [cluster.ClusterError, *ALSO])
def test_an_error_survives_pickling(error: type[cluster.ClusterError]) -> None:
    copy = pickle.loads(pickle.dumps(error("what happened")))
    assert type(copy) is error
    assert str(copy) == "what happened"


@pytest.mark.parametrize(
    ("code", "named"), [(-9, signal.SIGKILL), (3, None), (None, None), (-40, None)]
)
def test_who_died_of_what_survives_pickling(code: int | None, named: Any) -> None:
    error = cluster.WorkerDiedError("gone", worker_id=3, pid=4711, exitcode=code)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.worker_id, copy.pid, copy.exitcode, copy.signal) == (3, 4711, code, named)
