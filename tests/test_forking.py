"""The fork itself: as ``os.fork``, but for the warning about threads."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable

import pytest

from mpcluster import descriptors, forking
from tests.happenings import Diary
from tests.running import PROGRAMS, python, run


def child(check: Callable[[], object], keep: tuple[int, ...] = ()) -> int:
    """Fork; the exit code is 0 where ``check`` returns something true in the child."""
    pid = forking.fork(keep)
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_it_returns_zero_in_the_child_and_its_pid_in_the_parent() -> None:
    parent = os.getpid()
    assert child(lambda: os.getppid() == parent and os.getpid() != parent) == 0


def test_the_child_has_one_thread_which_is_the_main_one() -> None:
    assert child(lambda: threading.main_thread() is threading.current_thread()) == 0
    assert child(lambda: threading.active_count() == 1) == 0


def test_in_a_thread_the_child_has_that_thread_as_its_main_one() -> None:
    diary = Diary()

    def fork_here() -> None:
        me = threading.current_thread()
        diary.write(child(lambda: threading.main_thread() is threading.current_thread() is me))

    thread = threading.Thread(target=fork_here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        thread.start()
        thread.join()
    diary.until(0)


def test_a_handler_that_raises_where_signals_are_blocked_leaves_none_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call that blocks them runs the handlers of those that have come before."""
    mask = signal.pthread_sigmask

    def interrupted(how: int, signals: Iterable[int]) -> set[int]:
        before = {int(one) for one in mask(how, signals)}
        if how == signal.SIG_BLOCK and signals:
            raise KeyboardInterrupt
        return before

    monkeypatch.setattr(forking, "_masked", interrupted)
    blocked = mask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(KeyboardInterrupt):
            forking.fork()
        assert mask(signal.SIG_BLOCK, ()) == blocked
    finally:
        mask(signal.SIG_SETMASK, blocked)


def test_what_is_owned_is_closed_in_the_child_but_for_what_is_kept() -> None:
    kept, closed = os.pipe()
    descriptors.own(kept)
    descriptors.own(closed)

    def check() -> bool:
        os.fstat(kept)
        try:
            os.fstat(closed)
        except OSError:
            return True
        return False

    assert child(check, (kept,)) == 0
    descriptors.close(kept)
    descriptors.close(closed)


def test_hooks_of_the_interpreter_run_as_with_os_fork() -> None:
    parent, ran = os.getpid(), [0]

    def hook() -> None:
        if os.getppid() == parent:
            ran[0] = os.getpid()

    os.register_at_fork(after_in_child=hook)
    assert child(lambda: ran[0] == os.getpid()) == 0


def test_the_audit_event_is_that_of_os_fork() -> None:
    done = python(
        """
        import os, sys
        seen = []
        sys.addaudithook(lambda event, args: seen.append((event, args)))
        from mpcluster import forking
        if forking.fork() == 0:
            os._exit(0)
        os.wait()
        assert ("os.fork", ()) in seen
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_fork_that_the_system_refuses_raises_its_error_and_holds_no_lock() -> None:
    done = python(
        """
        import os, resource, sys
        from mpcluster import descriptors, forking
        # The limit does not bind root. Nobody may not look into root's directories either,
        # and the finder of an editable installation takes that for an error.
        os.setuid(65534) if os.getuid() == 0 else None
        del sys.meta_path[1:]
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            forking.fork()
        except BlockingIOError as error:
            assert error.errno == 11, error
        else:
            raise SystemExit("it forked")
        with descriptors.opening():
            pass
        import this_is_no_module
        """
    )
    assert "ModuleNotFoundError" in done.stderr, done.stderr


def test_a_child_that_is_forked_in_a_thread_hears_signals_while_it_computes() -> None:
    done = python(
        """
        import os, signal, threading, warnings
        from mpcluster import forking
        warnings.simplefilter("ignore")

        def compute():
            signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
            os.write(write_end, b".")
            while True:
                sum(range(1000))

        def fork():
            global pid
            pid = forking.fork()
            if pid == 0:
                compute()

        read_end, write_end = os.pipe()
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        os.read(read_end, 1)
        os.kill(pid, signal.SIGUSR1)
        assert os.waitpid(pid, 0)[1] == 0
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.version_info < (3, 12), reason="earlier ones do not warn")
class TestWarning:
    SCRIPT = """
        import os, threading, warnings
        warnings.simplefilter("error")
        from mpcluster import forking, watcher
        ready, done = threading.Event(), threading.Event()
        {before}
        pid = forking.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        done.set()
        """

    def test_there_is_none_for_the_watcher(self) -> None:
        done = python(self.SCRIPT.format(before="watcher.current().call_soon(ready.set)\n"))
        assert done.returncode == 0, done.stderr

    def test_there_is_one_for_a_thread_of_the_program(self) -> None:
        before = "threading.Thread(target=done.wait, daemon=True).start()"
        done = python(self.SCRIPT.format(before=before))
        assert "DeprecationWarning: This process" in done.stderr

    def test_where_it_is_an_error_nothing_is_forked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forking, "_raw_fork", lambda: pytest.fail("forked"))
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(DeprecationWarning):
                    forking.fork()
        finally:
            done.set()
            thread.join()

    def test_there_is_none_in_a_callback(self) -> None:
        done = python(
            """
            import os, threading, warnings
            warnings.simplefilter("error")
            from mpcluster import forking, watcher
            done = threading.Event()
            codes = []
            def fork_here():
                pid = forking.fork()
                if pid == 0:
                    os._exit(0)
                codes.append(os.waitpid(pid, 0)[1])
                done.set()
            watcher.current().call_soon(fork_here)
            assert done.wait(30)
            assert codes == [0]
            """
        )
        assert done.returncode == 0, done.stderr


def test_at_the_end_of_the_interpreter_it_says_why_not() -> None:
    done = python(
        """
        import atexit, os
        from mpcluster import forking
        def late():
            try:
                if forking.fork() == 0:
                    os._exit(0)
            except RuntimeError as error:
                print(error)
        import threading
        main = threading.main_thread()
        atexit.register(late)
        """
    )
    assert done.returncode == 0, done.stderr
    if sys.version_info >= (3, 12):
        assert "cannot fork at interpreter shutdown" in done.stdout
    assert done.stderr == ""


def test_a_ctrl_c_in_the_middle_of_a_fork_comes_when_that_is_whole() -> None:
    """It makes no second master of the child, and leaves no lock behind in the parent."""
    done = run(PROGRAMS / "fork_and_ctrl_c.py")
    # (The interpreter's own hooks, which run right after it, may swallow the exception.)
    assert done.stdout.endswith("children [0] locks free\n"), done.stderr


def test_a_signal_to_a_child_that_is_not_yet_itself_is_not_lost() -> None:
    """The master has a handler for SIGTERM; whoever sends it to the child means its end."""
    done = python(
        """
        import os, signal
        signal.signal(signal.SIGTERM, lambda *_: None)
        me = os.getpid()

        def at_once():  # runs first of all in the child: the handler is still the master's
            if os.getpid() != me:
                os.kill(os.getpid(), signal.SIGTERM)

        def take_back():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        os.register_at_fork(after_in_child=at_once)
        os.register_at_fork(after_in_child=take_back)
        from mpcluster import forking
        pid = forking.fork()
        if pid == 0:
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")
