"""What `import mpcluster` brings, at once and when it is asked for."""

from __future__ import annotations

import pytest

import mpcluster
from tests.running import python

#: What costs each fork of a program that only starts and joins processes, and is not for it.
HEAVY = (
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "dataclasses",
    "logging",
    "multiprocessing.connection",
    "mpcluster.channel",
    "mpcluster.cluster",
    "mpcluster.drain",
    "mpcluster.post",
    "mpcluster.sharing",
    "mpcluster.supervision",
)


def test_a_program_that_starts_and_joins_imports_nothing_more_on_either_side() -> None:
    done = python(f"""
        import sys
        from mpcluster import ClusterProcess

        def heavy():
            return [name for name in {HEAVY} if name in sys.modules]

        def target():
            print("child", heavy(), flush=True)

        process = ClusterProcess(target=target)
        process.start()
        process.join()
        process.close()
        print("parent", heavy())
    """)
    assert (done.stdout, done.stderr) == ("child []\nparent []\n", "")


def test_a_plain_process_sends_and_is_sent_to_though_nothing_for_it_was_imported() -> None:
    done = python("""
        import threading
        from mpcluster import ClusterProcess

        def target():
            import mpcluster
            heard = threading.Event()
            mpcluster.on("message", lambda message: (mpcluster.send(message * 2), heard.set()))
            mpcluster.send("hello")
            heard.wait()

        process = ClusterProcess(target=target)
        process.start()
        process.send(21)
        process.join()
        messages = []
        process.on("message", messages.append)
        dead = threading.Event()
        process.on("death", dead.set)
        dead.wait()
        print(sorted(messages, key=str), process.exitcode)
    """)
    assert (done.stdout, done.stderr) == ("[42, 'hello'] 0\n", "")


def test_a_plain_process_leaves_when_it_is_asked_to_though_nothing_for_it_was_imported() -> None:
    done = python("""
        import signal
        from mpcluster import ClusterProcess

        process = ClusterProcess(target=signal.pause)
        process.start()
        process.disconnect()
        process.join()
        print(process.exitcode, process.exited_after_disconnect)
    """)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_exit_functions_of_the_program_run_before_the_masters_though_that_is_loaded_later() -> None:
    done = python("""
        import atexit
        import mpcluster
        atexit.register(print, "the program's")
        from mpcluster import interpreter
        interpreter.at_the_very_end(lambda: print("the last"))
        interpreter.at_the_very_end(lambda: print("the last but one"))
    """)
    assert done.stdout.splitlines() == ["the program's", "the last but one", "the last"]


def test_every_public_name_is_there_and_listed() -> None:
    for name in mpcluster.__all__:
        assert hasattr(mpcluster, name), name
        assert name in dir(mpcluster)
    with pytest.raises(AttributeError, match="module 'mpcluster' has no attribute 'spoon'"):
        mpcluster.spoon  # noqa: B018
