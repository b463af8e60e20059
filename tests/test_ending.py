"""The end of a master: it falls off its end, raises, exits, is interrupted, is killed.

Every program here runs in an interpreter and a session of its own. :func:`finish` returns
when all who could write to its pipes are gone, so a worker left behind is a test that hangs.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.running import begin, finish, python, run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "program.py"


def write(script: Path, code: str) -> Path:
    script.write_text(textwrap.dedent(code))
    return script


def expect(program: subprocess.Popen[str], **times: int) -> None:
    """Read until each of these words has come so often, in whatever order.

    Words are counted, not lines: two threads that print may share one.
    """
    read = ""
    assert program.stdout is not None
    while any(read.count(word) < count for word, count in times.items()):
        line = program.stdout.readline()
        assert line, (read, program.stderr.read() if program.stderr else "")
        read += line


def let_go_when_asked(script: Path) -> subprocess.CompletedProcess[str]:
    """Run it; once a worker of it has said that it was asked, write into the pipe it was given."""
    read_end, write_end = os.pipe()
    program = begin(script, read_end, pass_fds=[read_end])
    os.close(read_end)
    expect(program, asked=1)
    os.write(write_end, b".")
    os.close(write_end)
    return finish(program)


class TestFallsOffItsEnd:
    def test_it_lives_until_its_workers_are_gone(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os
            if cluster.is_master:
                read_end, write_end = os.pipe()
                cluster.on("death", lambda worker: print("death", worker.exitcode, flush=True))
                def target():
                    os.read(read_end, 1)
                    raise SystemExit(3)
                for _ in range(2):
                    cluster.fork(target)
                import threading
                threading.Timer(0.2, os.write, (write_end, b"..")).start()
                print("the end of the script", flush=True)
            """,
        )
        done = run(script)
        assert done.stdout.splitlines() == ["the end of the script", "death 3", "death 3"]
        assert (done.returncode, done.stderr) == (0, "")

    def test_death_callbacks_go_on_forking_then(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os
            if cluster.is_master:
                cluster.fork()
                left = 5
                @cluster.on("death")
                def restart(worker):
                    global left
                    print("death", worker.id, worker.exitcode, flush=True)
                    left -= 1
                    if left:
                        cluster.fork()
            else:
                import threading
                thread = threading.Thread(target=print, args=("a thread can start",))
                thread.start()
                thread.join()
                os._exit(cluster.worker.id)
            """,
        )
        done = run(script)
        deaths = [line for line in done.stdout.splitlines() if line.startswith("death")]
        assert deaths == [f"death {number} {number}" for number in range(1, 6)]
        assert (done.returncode, done.stderr) == (0, "")

    def test_it_does_not_wait_for_daemons_but_ends_them(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, signal
            cluster.fork(signal.pause, daemon=True)
            cluster.ClusterProcess(target=signal.pause, daemon=True).start()
            print("over")
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("over\n", "", 0)

    def test_plain_processes_are_joined_as_in_multiprocessing(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster
            cluster.ClusterProcess(target=print, args=("joined",)).start()
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("joined\n", "", 0)

    def test_what_it_registered_to_run_at_exit_runs_after_the_last_death(
        self, script: Path
    ) -> None:
        write(
            script,
            """
            import atexit, mpcluster as cluster
            atexit.register(print, "at exit")
            cluster.on("death", lambda worker: print("death", flush=True))
            cluster.fork(print, ("worker",))
            """,
        )
        done = run(script)
        assert done.stdout.splitlines() == ["worker", "death", "at exit"]
        assert (done.stderr, done.returncode) == ("", 0)

    def test_messages_are_heard_while_it_waits(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster
            def target():
                for number in range(3):
                    cluster.send(number)
            cluster.fork(target)
            cluster.on("message", lambda worker, message: print(message, flush=True))
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("0\n1\n2\n", "", 0)

    def test_a_worker_that_listens_to_messages_lives_on_after_its_program(
        self, script: Path
    ) -> None:
        """As in Node, until it is disconnected."""
        write(
            script,
            """
            import mpcluster as cluster
            if cluster.is_master:
                def answer(worker, number):
                    if number < 500:
                        worker.send(number + 1)
                    else:
                        print(number, flush=True)
                        worker.disconnect()
                cluster.on("message", answer)
                cluster.on("death", lambda worker: print(worker.exitcode, flush=True))
                cluster.fork()
            else:
                cluster.on("message", cluster.send)
                cluster.send(0)
            """,
        )
        done = run(script)
        assert (done.stdout, done.returncode, done.stderr) == ("500\n0\n", 0, "")

    def test_a_worker_forked_in_a_thread_is_waited_for_too(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, threading, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            thread = threading.Thread(target=cluster.fork, args=(print, ("worker",)))
            thread.start()
            thread.join()
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("worker\n", "", 0)


class TestRaisesOrExits:
    @pytest.mark.parametrize(
        ("end", "code"),
        [
            ("sys.exit(7)", 7),
            ("sys.exit()", 0),
            ("raise SystemExit('text')", 1),
            ("raise ValueError('on purpose')", 1),
            ("os._exit(5)", 5),
        ],
    )
    def test_it_takes_its_workers_with_it_and_keeps_its_code(
        self, script: Path, end: str, code: int
    ) -> None:
        write(
            script,
            f"""
            import mpcluster as cluster, os, signal, sys
            if cluster.is_master:
                cluster.on("death", lambda worker: cluster.fork())
                for _ in range(3):
                    cluster.fork()
                {end}
            else:
                while True:
                    signal.pause()
            """,
        )
        done = run(script)
        assert done.returncode == code
        assert "mpcluster/" not in done.stderr

    def test_one_that_ignores_sigterm_goes_too(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal, sys
            cluster.setup(kill_timeout=0.1)
            read_end, write_end = os.pipe()
            def target():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.write(write_end, b".")
                while True:
                    signal.pause()
            cluster.fork(target)
            os.read(read_end, 1)
            sys.exit(4)
            """,
        )
        done = run(script)
        assert (done.returncode, done.stderr) == (4, "")

    def test_a_worker_has_kill_timeout_to_end_after_sigterm(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal, sys
            cluster.setup(kill_timeout=1000)
            read_end, write_end = os.pipe()
            def asked(*_):
                print("asked", flush=True)
                os.read(int(sys.argv[1]), 1)
                print("cleaned up", flush=True)
                os._exit(0)
            def target():
                signal.signal(signal.SIGTERM, asked)
                os.write(write_end, b".")
                while True:
                    signal.pause()
            cluster.fork(target)
            os.read(read_end, 1)
            sys.exit(4)
            """,
        )
        done = let_go_when_asked(script)
        assert (done.stdout, done.returncode, done.stderr) == ("cleaned up\n", 4, "")

    def test_plain_processes_are_joined_then_too(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal, sys
            read_end, write_end = os.pipe()
            def asked(*_):
                print("asked", flush=True)
                os._exit(0)
            def target():
                signal.signal(signal.SIGTERM, asked)
                os.write(write_end, b".")
                while True:
                    signal.pause()
            def plain():
                os.read(int(sys.argv[1]), 1)
                print("plain", flush=True)
            cluster.ClusterProcess(target=plain).start()
            cluster.fork(target)
            os.read(read_end, 1)
            sys.exit(4)
            """,
        )
        done = let_go_when_asked(script)
        assert (done.stdout, done.returncode, done.stderr) == ("plain\n", 4, "")

    def test_no_callback_is_called_any_more(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, signal, sys, threading
            online = threading.Event()
            for name in "message", "disconnect", "death":
                cluster.on(name, lambda worker, *_, name=name: print(name, flush=True))
            cluster.on("online", lambda worker: online.set())
            def target():
                try:
                    signal.pause()
                finally:
                    cluster.send("bye")
            cluster.fork(target)
            online.wait()
            sys.exit(4)
            """,
        )
        done = run(script)
        assert (done.stdout, done.returncode, done.stderr) == ("", 4, "")

    @pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "exit"])
    def test_its_unix_paths_are_removed(self, script: Path, tmp_path: Path, end: str) -> None:
        directory = tmp_path / "run"
        directory.mkdir()
        write(
            script,
            f"""
            import mpcluster as cluster, os, signal, sys, threading
            listening = threading.Event()
            cluster.on("listening", lambda *_: listening.set())
            def target():
                with cluster.listen({str(directory / "s")!r}):
                    while True:
                        signal.pause()
            cluster.fork(target)
            listening.wait()
            print(*os.listdir({str(directory)!r}), flush=True)
            if {end!r} == "exit":
                sys.exit(4)
            cluster.join()
            """,
        )
        program = begin(script)
        expect(program, held=1)
        if end != "exit":
            program.send_signal(signal.Signals[end])
        done = finish(program)
        assert done.returncode == (4 if end == "exit" else -signal.Signals[end])
        assert list(directory.iterdir()) == []

    def test_after_a_caught_exit_it_is_as_if_there_was_none(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, sys
            def target():
                print("worker", flush=True)
            try:
                cluster.fork(target)
                sys.exit(3)
            except SystemExit:
                pass
            print("end", flush=True)
            """,
        )
        done = run(script)
        assert sorted(done.stdout.split()) == ["end", "worker"]
        assert (done.returncode, done.stderr) == (0, "")


WAITING = """
    import mpcluster as cluster, os, signal, sys, threading, time
    if cluster.is_master:
        cluster.on("online", lambda worker: print("online", worker.pid, flush=True))
        cluster.on("death", lambda worker: cluster.fork())
        for number in range(4):
            cluster.fork(env={{"KIND": str(number)}})
        {master}
    else:
        kind = os.environ["KIND"] if "KIND" in os.environ else "0"
        if kind == "0":
            signal.pause()
        elif kind == "1":
            threading.Event().wait()
        elif kind == "2":
            time.sleep(1000)
        else:
            while True:
                pass
    """


class TestSignals:
    @pytest.mark.parametrize("master", ["", "cluster.join()", "while True: time.sleep(0.05)"])
    def test_ctrl_c_ends_everything_and_the_master_by_that_signal(
        self, script: Path, master: str
    ) -> None:
        program = begin(write(script, WAITING.format(master=master)))
        expect(program, online=4)
        os.killpg(program.pid, signal.SIGINT)
        done = finish(program)
        assert done.returncode == -signal.SIGINT
        assert "Error" not in done.stderr
        # The program's own traceback may be shown: it may still be in its last fork().
        assert done.stderr.count("Traceback") <= 1, done.stderr

    @pytest.mark.parametrize("master", ["", "cluster.join()", "while True: time.sleep(0.05)"])
    def test_sigterm_to_the_master_alone_ends_everything_without_a_word(
        self, script: Path, master: str
    ) -> None:
        program = begin(write(script, WAITING.format(master=master)))
        expect(program, online=4)
        os.kill(program.pid, signal.SIGTERM)
        done = finish(program)
        assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")

    def test_a_shell_sees_128_and_the_number(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal
            cluster.fork(signal.pause).on(
                "online", lambda: os.kill(os.getpid(), signal.SIGTERM)
            )
            """,
        )
        shell = f"{sys.executable} {script}; echo $?"
        done = subprocess.run(
            ["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "143\n"

    @pytest.mark.parametrize("target", ["", "print, ('never',)"])
    def test_a_worker_dies_of_ctrl_c_without_a_traceback_before_its_program_begins(
        self, script: Path, target: str
    ) -> None:
        write(
            script,
            f"""
            import multiprocessing.process, os, signal
            import mpcluster as cluster

            if cluster.is_worker:
                print("never")
            else:
                multiprocessing.process.BaseProcess._after_fork = staticmethod(
                    lambda: os.kill(os.getpid(), signal.SIGINT)
                )
                cluster.on("death", lambda worker: print(worker.exit_signal, flush=True))
                cluster.fork({target})
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr) == (f"{signal.SIGINT}\n", "")

    def test_a_targets_worker_dies_of_ctrl_c_without_a_traceback_each(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, signal, time
            cluster.on("online", lambda worker: print("online", flush=True))
            for _ in range(3):
                cluster.fork(time.sleep, (1000,))
            print("forked", flush=True)
            """,
        )
        program = begin(script)
        expect(program, forked=1, online=3)
        os.killpg(program.pid, signal.SIGINT)
        done = finish(program)
        assert done.returncode == -signal.SIGINT
        # The master may still be in its last line, and say so; of the workers, not a word.
        assert done.stderr.count("Traceback") <= 1, done.stderr
        assert "ClusterProcess" not in done.stderr

    def test_sigterm_in_the_midst_of_a_write_to_its_output(self, script: Path) -> None:
        """A stream refuses to be flushed by a handler that has interrupted its own write."""
        write(
            script,
            """
            import io, os, signal, sys
            import mpcluster as cluster

            class Output(io.RawIOBase):
                def writable(self):
                    return True

                def write(self, data):
                    while signals:
                        os.kill(os.getpid(), signals.pop())
                    return len(data)

            signals = [signal.SIGTERM]
            cluster.fork(signal.pause)
            sys.stdout = io.TextIOWrapper(io.BufferedWriter(Output()))
            print("said", flush=True)
            """,
        )
        done = run(script)
        assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")

    def test_a_programs_own_sigterm_handler_stays(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal, sys
            signal.signal(signal.SIGTERM, lambda *_: cluster.disconnect(lambda: print("left")))
            cluster.fork(signal.pause).on("online", lambda: print("online", flush=True))
            """,
        )
        program = begin(script)
        expect(program, online=1)
        program.terminate()
        done = finish(program)
        assert (done.stdout.strip(), done.stderr, done.returncode) == ("left", "", 0)

    def test_the_masters_sigterm_handler_is_not_its_workers(self, script: Path) -> None:
        """A worker that sits in C would not get to it."""
        write(
            script,
            """
            import mpcluster as cluster, signal
            def target():
                print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
            if __name__ == "__main__":
                cluster.fork(target)
                assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            """,
        )
        done = run(script)
        assert (done.stdout, done.returncode, done.stderr) == ("True\n", 0, "")

    @pytest.mark.skipif(sys.version_info >= (3, 12), reason="there it is no exit function")
    def test_ctrl_c_just_before_the_end_is_waited_for(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, signal
            from mpcluster import ending
            def has_returned(frame):
                raise KeyboardInterrupt
            ending._has_returned = has_returned
            cluster.fork(signal.pause)
            """,
        )
        done = run(script)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")

    def test_a_second_sigterm_does_not_wait_for_deaf_workers(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal
            cluster.setup(kill_timeout=1000)
            def target():
                signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked\\n"))
                print("deaf", flush=True)
                while True:
                    signal.pause()
            cluster.fork(target)
            print("forked", flush=True)
            """,
        )
        program = begin(script)
        expect(program, deaf=1, forked=1)
        program.terminate()
        expect(program, asked=1)  # so the master is in its handler
        program.terminate()
        done = finish(program)
        assert (done.stdout, done.returncode, done.stderr) == ("", -signal.SIGTERM, "")

    def test_a_second_ctrl_c_does_not_wait_for_deaf_workers(self, script: Path) -> None:
        write(
            script,
            """
            import mpcluster as cluster, os, signal
            cluster.setup(kill_timeout=1000)
            def target():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                print("deaf", os.getpid(), flush=True)
                while True:
                    signal.pause()
            cluster.fork(target)
            print("forked", flush=True)
            """,
        )
        program = begin(script)
        expect(program, deaf=1, forked=1)
        os.kill(program.pid, signal.SIGINT)
        pidfd = os.pidfd_open(program.pid)
        try:
            while not select.select([pidfd], [], [], 0.05)[0]:
                program.send_signal(signal.SIGINT)
        finally:
            os.close(pidfd)
        done = finish(program)
        assert done.returncode == -signal.SIGINT
        assert "mpcluster" not in done.stderr


MAIN = """
    import mpcluster as cluster, sys
    from {imports} import NAME
    if __name__ == "__main__" and cluster.is_master:
        cluster.fork().on("death", lambda: print("master", sys.argv[1:], flush=True))
    elif __name__ == "__main__":
        print("worker", NAME, sys.argv[1:], __name__, bool(__file__), flush=True)
    """


class TestMainPrograms:
    EXPECTED = "worker name ['a', 'b'] __main__ True\nmaster ['a', 'b']\n"

    def check(self, done: subprocess.CompletedProcess[str]) -> None:
        assert (done.stdout, done.stderr, done.returncode) == (self.EXPECTED, "", 0)

    def test_a_script(self, tmp_path: Path) -> None:
        (tmp_path / "other.py").write_text("NAME = 'name'\n")
        script = write(tmp_path / "script.py", MAIN.format(imports="other"))
        self.check(run(script, "a", "b"))

    def test_a_script_named_by_a_relative_path_that_changes_directory(self, tmp_path: Path) -> None:
        (tmp_path / "other.py").write_text("NAME = 'name'\n")
        code = "import os; os.chdir('/')\n" + textwrap.dedent(MAIN.format(imports="other"))
        (tmp_path / "script.py").write_text(code)
        self.check(run("script.py", "a", "b", cwd=tmp_path))

    def test_a_module(self, tmp_path: Path) -> None:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "other.py").write_text("NAME = 'name'\n")
        write(package / "program.py", MAIN.format(imports=".other"))
        self.check(run("-m", "package.program", "a", "b", cwd=tmp_path))

    def test_a_package(self, tmp_path: Path) -> None:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "other.py").write_text("NAME = 'name'\n")
        write(package / "__main__.py", MAIN.format(imports="package.other"))
        self.check(run("-m", "package", "a", "b", cwd=tmp_path))

    def test_a_directory_and_an_archive(self, tmp_path: Path) -> None:
        import zipapp

        source = tmp_path / "source"
        source.mkdir()
        (source / "other.py").write_text("NAME = 'name'\n")
        write(source / "__main__.py", MAIN.format(imports="other"))
        self.check(run(source, "a", "b"))
        zipapp.create_archive(source, tmp_path / "program.pyz")
        self.check(run(tmp_path / "program.pyz", "a", "b"))

    def test_a_script_that_another_program_runs(self, tmp_path: Path) -> None:
        (tmp_path / "other.py").write_text("NAME = 'name'\n")
        script = write(tmp_path / "script.py", MAIN.format(imports="other"))
        runner = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
        self.check(run("-c", runner, script, "a", "b", env={"PYTHONPATH": str(tmp_path)}))

    @pytest.mark.parametrize("how", ["-c", "standard input"])
    def test_one_that_is_no_file_is_told_what_to_do(self, how: str) -> None:
        code = "import mpcluster; mpcluster.fork()"
        if how == "-c":
            done = run("-c", code)
        else:
            program = begin(stdin=subprocess.PIPE)
            assert program.stdin is not None
            program.stdin.write(code + "\n")
            done = finish(program)
        assert done.returncode == 1
        assert "RuntimeError: fork() without a target runs the main program again" in done.stderr
        assert "give fork() a target function" in done.stderr

    def test_at_the_prompt_too(self) -> None:
        program = begin("-i", "-q", stdin=subprocess.PIPE)
        assert program.stdin is not None
        program.stdin.write("import mpcluster; mpcluster.fork()\nexit()\n")
        done = finish(program)
        assert "give fork() a target function" in done.stderr

    def test_at_the_prompt_a_target_is_forked(self) -> None:
        program = begin("-i", "-q", stdin=subprocess.PIPE)
        assert program.stdin is not None
        program.stdin.write(
            "import mpcluster\nw = mpcluster.fork(print, ('said',))\n"
            "_ = mpcluster.join(30)\nexit()\n"
        )
        done = finish(program)
        assert "said" in done.stdout, done.stderr
        assert done.returncode == 0

    def test_an_exception_in_a_workers_main_shows_the_program_and_ends_it_with_1(
        self, script: Path
    ) -> None:
        write(
            script,
            """
            import mpcluster as cluster
            if cluster.is_master:
                cluster.fork().on("death", lambda: None)
                cluster.on("death", lambda worker: print("death", worker.exitcode, flush=True))
            else:
                raise ValueError("on purpose")
            """,
        )
        done = run(script)
        assert done.stdout == "death 1\n"
        assert "ValueError: on purpose" in done.stderr
        assert str(script) in done.stderr

    def test_a_worker_that_exits_keeps_its_code_and_runs_what_it_registered(
        self, script: Path
    ) -> None:
        write(
            script,
            """
            import atexit, mpcluster as cluster, sys
            if cluster.is_master:
                atexit.register(print, "the master's")
                cluster.fork()
                cluster.on("death", lambda worker: print("death", worker.exitcode, flush=True))
            else:
                atexit.register(print, "the worker's")
                sys.exit(6)
            """,
        )
        done = run(script)
        assert done.stdout.splitlines() == ["the worker's", "death 6", "the master's"]
        assert (done.stderr, done.returncode) == ("", 0)

    def test_it_works_with_no_current_directory(self, tmp_path: Path, script: Path) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        write(
            script,
            "import os; os.rmdir(os.getcwd())\n"
            + textwrap.dedent("""
            import mpcluster as cluster
            print("master" if cluster.is_master else "worker", flush=True)
            if cluster.is_master:
                cluster.fork(print, ("target",))
            """),
        )
        done = run(script, cwd=gone)
        assert sorted(done.stdout.split()) == ["master", "target"], done.stderr
        assert done.returncode == 0


class TestAsyncio:
    def test_fork_while_a_loop_runs_here(self, script: Path) -> None:
        write(
            script,
            """
            import asyncio, mpcluster as cluster
            async def work():
                await asyncio.sleep(0)
                return "worker"
            def target():
                print(asyncio.run(work()), flush=True)
            async def main():
                loop = asyncio.get_running_loop()
                died = loop.create_future()
                worker = cluster.fork(target)
                worker.on(
                    "death", lambda: loop.call_soon_threadsafe(died.set_result, worker.exitcode)
                )
                print("death", await died, flush=True)
            if cluster.is_master:
                asyncio.run(main())
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("worker\ndeath 0\n", "", 0)

    def test_the_main_program_again_while_a_loop_runs_here(self, script: Path) -> None:
        write(
            script,
            """
            import asyncio, mpcluster as cluster
            async def main():
                print("master" if cluster.is_master else "worker", flush=True)
                if cluster.is_master:
                    cluster.fork()
                await asyncio.sleep(0)
            asyncio.run(main())
            """,
        )
        done = run(script)
        assert (done.stdout, done.stderr, done.returncode) == ("master\nworker\n", "", 0)


def test_without_workers_nothing_changes() -> None:
    done = python("import mpcluster; mpcluster.disconnect(); print(mpcluster.join())")
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_closed_standard_streams_are_no_obstacle(script: Path, tmp_path: Path) -> None:
    write(
        script,
        f"""
        import mpcluster as cluster, os
        for number in range(3):
            os.close(number)
        def target():
            open({str(tmp_path / "done")!r}, "w").close()
        cluster.fork(target)
        """,
    )
    done = run(script)
    assert (tmp_path / "done").exists()
    assert done.returncode == 0
