"""No worker outlives its root master. (With masters that are killed: test_promises.py.)"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import sys

import pytest

from mpcluster import ClusterProcess, descriptors, leash
from tests.happenings import PATIENCE
from tests.running import python


def in_a_child(check: object) -> int:
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pulled_by(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETSIG)
    except OSError:  # not open, or nothing that gives signals
        return 0


def test_there_is_one_pipe_a_process_and_it_is_owned() -> None:
    read_end = leash.hold()
    assert leash.hold() == read_end
    assert read_end in descriptors.owned()


def test_a_child_of_a_plain_fork_has_neither_end_and_makes_its_own() -> None:
    read_end = leash.hold()
    before = os.readlink(f"/proc/self/fd/{read_end}")

    def check() -> bool:
        held = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                held.add(os.readlink(f"/proc/self/fd/{name}"))
            except FileNotFoundError:
                pass
        own = leash.hold()
        return before not in held and os.readlink(f"/proc/self/fd/{own}") != before

    assert in_a_child(check) == 0


def test_who_wears_it_has_asked_for_sigkill_for_itself_alone() -> None:
    read_end = leash.hold()

    def check() -> bool:
        leash.wear()
        (own,) = [fd for fd in descriptors.owned() if pulled_by(fd) == signal.SIGKILL]
        return (
            fcntl.fcntl(own, fcntl.F_GETOWN) == os.getpid()
            and bool(fcntl.fcntl(own, fcntl.F_GETFL) & os.O_ASYNC)
            and own in descriptors.owned()
            and not os.get_inheritable(own)
        )

    with descriptors.keep(read_end):
        assert in_a_child(check) == 0


def test_a_master_that_ended_before_the_leash_was_worn_is_noticed() -> None:
    """The write end is closed in the child before it registers for the signal."""
    done = python(
        """
        import os, signal
        from mpcluster import descriptors, leash
        read_end = leash.hold()
        master = os.fork()
        if master == 0:
            os._exit(0)
        os.waitpid(master, 0)
        with descriptors.keep(read_end):
            pid = os.fork()
        if pid == 0:
            # As if the only write end had just been closed by the master's death.
            reader, writer = os.pipe()
            os.close(writer)
            os.dup2(reader, read_end)
            leash.wear()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert (done.stdout, done.stderr) == (f"{-signal.SIGKILL}\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_program_does_not_begin_whose_master_ended_before_it_was_put_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leash that the master has cut: the signal for its end came to nobody."""

    def cut() -> int:
        with descriptors.opening():
            read_end, write_end = os.pipe()
            os.close(write_end)
            descriptors.own(read_end)
        return read_end

    monkeypatch.setattr(leash, "cut", cut)
    one = ClusterProcess(target=os._exit, args=(5,))
    one.start()
    one.join(PATIENCE)
    assert one.exitcode == -signal.SIGKILL
    one.close()


def test_without_proc_it_is_told_and_the_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    leash.hold()

    def no_proc(*_: object, **__: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    warnings: list[str] = []
    monkeypatch.setattr(os, "open", no_proc)
    logger = logging.getLogger("mpcluster")
    monkeypatch.setattr(logger, "warning", lambda text, *args: warnings.append(text % args))
    leash.wear()
    assert "this worker may outlive its master" in warnings[0]


def test_nothing_of_the_master_but_its_death_pulls_it() -> None:
    """Writing by a stranger cannot: nobody has the write end. The worker lives meanwhile."""
    read_end = leash.hold()
    gate_read, gate_write = os.pipe()
    with descriptors.keep(read_end):
        pid = os.fork()
    if pid == 0:
        leash.wear()
        ready, _, _ = select.select([gate_read], [], [], PATIENCE)
        os._exit(0 if ready else 1)
    os.write(gate_write, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(gate_read)
    os.close(gate_write)


def test_one_that_wears_a_leash_may_hold_another_for_its_own_workers() -> None:
    read_end = leash.hold()
    pipe = os.readlink(f"/proc/self/fd/{read_end}")

    def check() -> bool:
        leash.wear()
        leash.become_root()
        own = leash.hold()
        return os.readlink(f"/proc/self/fd/{own}") != pipe

    with descriptors.keep(read_end):
        assert in_a_child(check) == 0
