"""A forked child as its parent holds it."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import util
from typing import Any

import pytest

from mpcluster import descriptors, popen
from mpcluster.configuration import Settings
from mpcluster.popen import UNKNOWN_EXITCODE, Popen


class Child:
    """The least that a Popen asks of a process object."""

    id = 1
    post: Any = None
    _settings = Settings()
    _env = _cwd = None
    _share_ports = _inherits = is_forked = False

    def __init__(self, code: int = 0, *, wait: bool = False) -> None:
        self.code = code
        self.wait = wait

    def run(self) -> None:
        raise AssertionError("`_bootstrap` is not that of a process")

    def _inherit(self) -> None:
        """It has nothing to do before all else."""

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        assert parent_sentinel is not None
        while self.wait:
            signal.pause()
        return self.code


@pytest.fixture
def living() -> Iterator[Popen]:
    one = Popen(Child(wait=True))
    yield one
    one.send_signal(signal.SIGKILL)
    one.wait()
    finish(one)


def finish(one: Popen) -> None:
    descriptors.close(one.connection)
    one.close()


def test_its_sentinel_is_a_pidfd(living: Popen) -> None:
    assert "pidfd" in os.readlink(f"/proc/self/fd/{living.sentinel}")


def test_a_process_that_ends_while_another_thread_forks_closes_no_sentinel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exit functions of `weakref` and `multiprocessing` come just when it is opened."""

    class AtExit(weakref.finalize):  # type: ignore[type-arg]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if self.atexit:
                self()

    class AtExitToo(util.Finalize):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self()

    monkeypatch.setattr(weakref, "finalize", AtExit)
    monkeypatch.setattr(util, "Finalize", AtExitToo)
    one = Popen(Child())
    assert "pidfd" in os.readlink(f"/proc/self/fd/{one.sentinel}")
    assert one.wait() == 0
    finish(one)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one.sentinel)


def test_poll_tells_nothing_while_it_lives_and_the_code_for_ever_after() -> None:
    one = Popen(Child(code=7))
    assert one.wait() == 7
    assert one.poll() == one.wait(0) == 7
    finish(one)


def test_poll_does_not_wait(living: Popen) -> None:
    assert living.poll() is None
    assert living.wait(0) is None


def test_poll_without_nohang_waits_as_in_multiprocessing() -> None:
    one = Popen(Child(code=3))
    assert one.poll(0) == 3
    finish(one)


def test_a_child_that_another_has_reaped_is_dead_with_a_code_of_its_own() -> None:
    one = Popen(Child(code=3))
    os.waitpid(one.pid, 0)
    assert one.wait() in {UNKNOWN_EXITCODE, 3}
    finish(one)


def test_a_child_that_another_reaps_while_it_lives_is_not_taken_for_dead(
    living: Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ECHILD alone says only that there is nothing to reap."""

    def none_of_mine(*_: object) -> tuple[int, int]:
        raise ChildProcessError(errno.ECHILD, "No child processes")

    with monkeypatch.context() as patch:
        patch.setattr(os, "waitpid", none_of_mine)
        assert living.poll() is None


def test_with_sigchld_ignored_its_end_is_seen() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        one = Popen(Child(code=3))
        assert one.wait() in {UNKNOWN_EXITCODE, 3}
        finish(one)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_one_that_is_gone_before_its_pidfd_is_open_counts_as_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGCHLD is ignored, and the child was quick."""
    popen.own_pidfd()
    pidfd_open = os.pidfd_open
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def too_late(pid: int) -> int:
        number = pidfd_open(pid)
        select.select([number], [], [])
        os.close(number)
        raise ProcessLookupError(errno.ESRCH, "No such process")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", too_late)
            one = Popen(Child())
        assert select.select([one.sentinel], [], [], 0)[0]
        one.send_signal(signal.SIGKILL)
        assert one.wait() == UNKNOWN_EXITCODE
        finish(one)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_many_threads_get_the_same_code() -> None:
    one = Popen(Child(code=5))
    codes: list[int | None] = []
    threads = [threading.Thread(target=lambda: codes.append(one.wait())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [5] * 16
    finish(one)


def test_a_forked_process_cannot_reap_for_its_parent(living: Popen) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if living.poll() is None and living.returncode is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_signals_to_the_dead_go_nowhere() -> None:
    one = Popen(Child())
    assert one.wait() == 0
    one.send_signal(signal.SIGKILL)
    one.terminate()
    one.kill()
    finish(one)


def test_it_stays_open_while_it_is_watched_and_is_closed_then() -> None:
    one = Popen(Child())
    one.watch()
    assert one.wait() == 0
    one.close()
    os.fstat(one.sentinel)
    one.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one.sentinel)
    descriptors.close(one.connection)


def test_what_fails_before_the_program_begins_is_printed(capfd: Any) -> None:
    class Failing(Child):
        class post:  # noqa: N801
            @staticmethod
            def take_up() -> None:
                raise RuntimeError("on its way in")

    one = Popen(Failing())
    assert one.wait() == 1
    assert "RuntimeError: on its way in" in capfd.readouterr().err
    finish(one)


def test_whatever_number_of_descriptors_is_left_it_forks_or_leaves_nothing() -> None:
    """The limit is lowered step by step; each step either works or fails whole."""
    popen.own_pidfd()
    warm = Popen(Child())
    warm.wait()
    finish(warm)
    before = set(os.listdir("/proc/self/fd"))
    owned = descriptors.owned()
    highest = max(map(int, before)) + 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    outcomes = []
    try:
        while len(taken) < highest - len(before) + 1:  # no gaps below
            taken.append(os.open("/dev/null", os.O_RDONLY))
        for spare in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + spare, limits[1]))
            try:
                one = Popen(Child())
            except OSError as error:
                outcomes.append(errno.errorcode[error.errno or 0])
            else:
                outcomes.append("forked")
                one.wait()
                finish(one)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in taken:
            os.close(number)
    assert outcomes[0] == "EMFILE"
    assert outcomes[-1] == "forked"
    assert set(outcomes) == {"EMFILE", "forked"}
    assert set(os.listdir("/proc/self/fd")) == before
    assert descriptors.owned() == owned
