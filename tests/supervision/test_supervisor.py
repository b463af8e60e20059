"""A supervisor with real workers."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import watcher
from mpcluster.errors import ReloadAbortedError, SupervisionError
from mpcluster.family import Family
from mpcluster.supervision import SlotState, Supervisor, checkup
from tests.happenings import PATIENCE, Diary, relatives_fixture  # noqa: F401
from tests.running import begin, finish, python
from tests.supervision.supervising import supervise_fixture  # noqa: F401


def say_slot_and_stay() -> None:
    assert cluster.worker is not None
    cluster.send((cluster.worker.slot, os.getpid()))
    cluster.ready()
    while True:
        signal.pause()


def diary_of_messages() -> Diary:
    diary = Diary()
    cluster.on("message", lambda _worker, message: diary.write(*message))
    return diary


def pid_in(diary: Diary, slot: int, *, but: tuple[int, ...] = ()) -> int:
    """Wait until a worker in this slot has said its pid, other than these."""

    def found() -> list[Any]:
        return [line[1] for line in diary.lines if line[0] == slot and line[1] not in but]

    with diary._written:
        assert diary._written.wait_for(lambda: bool(found()), PATIENCE), diary
    return int(found()[-1])


def until_ready(supervisor: Supervisor, count: int) -> None:
    """Wait until so many workers are ready, those included that are so already."""
    told = Diary()
    supervisor.on("ready", lambda worker: told.write(worker.id))
    known = {one.worker_id for one in supervisor.status() if one.state is SlotState.READY}
    with told._written:
        assert told._written.wait_for(
            lambda: len(known | {line[0] for line in told.lines}) >= count, PATIENCE
        ), (known, told)


def test_a_killed_worker_is_replaced_and_the_new_one_has_its_slot(
    supervise: Callable[..., Supervisor],
) -> None:
    diary = diary_of_messages()
    supervisor = supervise(say_slot_and_stay, 2)
    first, other = pid_in(diary, 0), pid_in(diary, 1)
    os.kill(first, signal.SIGKILL)
    second = pid_in(diary, 0, but=(first,))
    assert [(one.slot, one.pid) for one in supervisor.status()] == [(0, second), (1, other)]
    assert supervisor.status()[0].trouble is not None
    assert "SIGKILL" in supervisor.status()[0].trouble


def test_a_worker_that_listens_is_ready(supervise: Callable[..., Supervisor]) -> None:
    def serve() -> None:
        with cluster.listen(("127.0.0.1", 0)):
            signal.pause()

    supervisor = supervise(serve, 2)
    until_ready(supervisor, 2)
    assert {one.state for one in supervisor.status()} == {SlotState.READY}


def test_where_ready_is_explicit_a_listener_does_not_count(
    supervise: Callable[..., Supervisor],
) -> None:
    def serve() -> None:
        with cluster.listen(("127.0.0.1", 0)):
            cluster.on("message", lambda _message: cluster.ready())
            signal.pause()

    listening, ready = Diary(), Diary()
    cluster.on("listening", lambda worker, _address: listening.write(worker))
    supervisor = supervise(serve, 1, ready="explicit")
    supervisor.on("ready", lambda worker: ready.write(worker.id))
    listening.until_count(1)
    assert supervisor.status()[0].state is SlotState.BOOTING
    cluster.broadcast("go")
    ready.until_count(1)
    assert supervisor.status()[0].state is SlotState.READY


def test_a_reload_replaces_every_worker_and_the_port_answers_all_the_time(
    supervise: Callable[..., Supervisor],
) -> None:
    def serve() -> None:
        with cluster.listen(("127.0.0.1", 0)) as listener:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"%d" % os.getpid())

    addresses, ended = Diary(), Diary()
    cluster.on("listening", lambda _worker, address: addresses.write(address))
    cluster.on("death", lambda worker: ended.write(worker.exitcode))
    supervisor = supervise(serve, 2)
    until_ready(supervisor, 2)
    addresses.until_count(1)
    address: Any = addresses.lines[0][0]

    def ask() -> int:
        with socket.create_connection((address.host, address.port), PATIENCE) as connection:
            return int(connection.recv(100))

    old = {one.pid for one in supervisor.status()}
    reloaded = supervisor.reload()
    while not reloaded.done():
        ask()
    assert reloaded.result(0) is None
    new = {one.pid for one in supervisor.status()}
    assert not old & new
    assert ask() in new
    ended.until_count(2)
    assert ended.lines == [(0,), (0,)]


class TestAnOldWorkerThatIsHeldUp:
    """It is stopped before it is asked to leave, and takes connections as soon as it goes on."""

    @pytest.fixture(params=["shared", "slots", "round_robin"])
    def policy(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def reload_with_one_stopped(
        self, supervise: Callable[..., Supervisor], policy: str, **rules: Any
    ) -> tuple[Supervisor, int, Future[None]]:
        """A reload whose new worker is ready, and whose old one has not heard of it."""

        def serve() -> None:
            assert cluster.worker is not None
            asked = threading.Event()
            cluster.on("disconnect", lambda: cluster.send("asked"))
            cluster.on("message", lambda _message: asked.set())
            listener = cluster.listen(("127.0.0.1", 0), scheduling=policy)
            threading.Thread(target=answer, args=(listener,), daemon=True).start()
            asked.wait()

        def answer(listener: socket.socket) -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"%d" % os.getpid())

        ready = Diary()
        supervisor = supervise(serve, 1, **rules)
        supervisor.on("ready", lambda worker: ready.write(worker.pid))
        until_ready(supervisor, 1)
        (old,) = (one.pid for one in supervisor.status())
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        reloaded = supervisor.reload()
        with ready._written:
            assert ready._written.wait_for(
                lambda: any(line != (old,) for line in ready.lines), PATIENCE
            )
        assert supervisor.under_way() == "reload"  # and what follows from `ready` was done
        return supervisor, old, reloaded

    def test_until_it_has_heard_the_reload_is_not_done_and_then_it_is_while_the_old_one_drains(
        self, supervise: Callable[..., Supervisor], relatives: Family, policy: str
    ) -> None:
        addresses, told = Diary(), Diary()
        cluster.on("listening", lambda _worker, address: addresses.write(address))
        cluster.on("message", lambda worker, message: told.write(worker.pid, message))
        supervisor, old, reloaded = self.reload_with_one_stopped(supervise, policy)
        assert not reloaded.done()
        os.kill(old, signal.SIGCONT)
        assert reloaded.result(PATIENCE) is None
        assert supervisor.under_way() is None
        told.until(old, "asked")
        address: Any = addresses.lines[0][0]
        (new,) = (one.pid for one in supervisor.status())
        for _ in range(10):
            with socket.create_connection((address.host, address.port), PATIENCE) as connection:
                assert int(connection.recv(100)) == new
        (leaving,) = (one for one in relatives.workers.values() if one.pid == old)
        assert not leaving.is_dead
        leaving.send("that will do")

    def test_its_death_ends_the_reload(
        self, supervise: Callable[..., Supervisor], policy: str
    ) -> None:
        _, old, reloaded = self.reload_with_one_stopped(supervise, policy)
        assert not reloaded.done()
        os.kill(old, signal.SIGKILL)
        assert reloaded.result(PATIENCE) is None

    def test_it_is_killed_where_it_never_goes_on_and_that_ends_the_reload(
        self, supervise: Callable[..., Supervisor]
    ) -> None:
        cluster.setup(kill_timeout=0.1)
        ended = Diary()
        cluster.on("death", lambda worker: ended.write(worker.pid, worker.exit_signal))
        _, old, reloaded = self.reload_with_one_stopped(supervise, "shared", drain_timeout=0.1)
        assert reloaded.result(PATIENCE) is None
        ended.until(old, signal.SIGKILL)


def test_a_reload_waits_for_an_old_worker_whose_own_workers_share_its_port(
    supervise: Callable[..., Supervisor], relatives: Family
) -> None:
    def serve() -> None:
        def stay() -> None:
            with cluster.listen(("127.0.0.1", 0), scheduling="shared"):
                signal.pause()

        below = cluster.ClusterProcess(target=stay, share_ports=True)
        below.on("listening", lambda _address: cluster.ready())
        below.start()
        cluster.on("disconnect", lambda: cluster.send(("asked", 0)))
        cluster.on("message", lambda _message: below.disconnect())
        below.join()

    told, ended = diary_of_messages(), Diary()
    cluster.on("death", lambda worker: ended.write(worker.pid))
    supervisor = supervise(serve, 1, ready="explicit")
    until_ready(supervisor, 1)
    (old,) = relatives.workers.values()
    reloaded = supervisor.reload()
    told.until("asked", 0)
    assert supervisor.under_way() == "reload"
    assert not reloaded.done()
    old.send("that will do")
    assert reloaded.result(PATIENCE) is None
    ended.until(old.pid)


def test_a_replacement_that_does_not_get_ready_aborts_the_reload(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"

    def program() -> None:
        if broken.exists():
            raise SystemExit(7)
        say_slot_and_stay()

    told = Diary()
    supervisor = supervise(program, 2)
    supervisor.on("reload", told.write)
    until_ready(supervisor, 2)
    pids = [one.pid for one in supervisor.status()]
    broken.touch()
    error = supervisor.reload().exception(PATIENCE)
    assert isinstance(error, ReloadAbortedError)
    assert "exited with 7" in str(error)
    assert "serve on" in str(error)
    assert [one.pid for one in supervisor.status()] == pids
    broken.unlink()
    assert supervisor.reload().result(PATIENCE) is None
    assert not set(pids) & {one.pid for one in supervisor.status()}
    told.until_count(2)
    assert told.lines == [(error,), (None,)]


def test_workers_that_end_at_once_make_it_give_up_with_the_reason(
    supervise: Callable[..., Supervisor],
) -> None:
    told = Diary()
    supervisor = supervise(os._exit, 2, (3,), backoff=0.01, max_crashes=3)
    supervisor.on("failed", told.write)
    with pytest.raises(SupervisionError, match="3 times in a row.*exited with 3"):
        supervisor.wait(PATIENCE)
    assert supervisor.failure is not None
    told.until(supervisor.failure)
    with pytest.raises(ReloadAbortedError):
        supervisor.reload().result(PATIENCE)


def test_stop_drains_and_wait_returns_after_the_last_death(
    supervise: Callable[..., Supervisor], relatives: Family
) -> None:
    diary = diary_of_messages()
    supervisor = supervise(say_slot_and_stay, 2)
    pid_in(diary, 0), pid_in(diary, 1)
    assert not supervisor.wait(0)
    supervisor.stop()
    assert supervisor.wait(PATIENCE)
    assert not relatives.workers
    assert cluster.join(PATIENCE)


def test_join_waits_while_the_only_worker_is_being_replaced(
    supervise: Callable[..., Supervisor], relatives: Family
) -> None:
    ended = Diary()
    cluster.on("death", ended.write)
    supervise(os._exit, 1, (1,), backoff=PATIENCE, max_crashes=9)
    ended.until_count(2)  # the third start is far away
    assert not relatives.workers
    assert not cluster.join(0)


def test_scale_up_and_down(supervise: Callable[..., Supervisor]) -> None:
    diary, ended = diary_of_messages(), Diary()
    cluster.on("death", lambda worker: ended.write(worker.pid, worker.exitcode))
    supervisor = supervise(say_slot_and_stay, 1)
    stays = pid_in(diary, 0)
    supervisor.scale(3)
    goes = pid_in(diary, 2)
    pid_in(diary, 1)
    supervisor.scale(1)
    ended.until(goes, 0)
    assert [one.pid for one in supervisor.status()] == [stays]
    with pytest.raises(ValueError, match="workers must be 0 or more, not -1"):
        supervisor.scale(-1)


def test_past_its_tasks_a_worker_is_replaced(supervise: Callable[..., Supervisor]) -> None:
    def work() -> None:
        say = cluster.worker
        assert say is not None
        cluster.on("message", say.count)
        say_slot_and_stay()

    diary = diary_of_messages()
    supervise(work, 1, max_tasks=10, jitter=0)
    first = pid_in(diary, 0)
    cluster.broadcast(9)
    cluster.broadcast(1)
    pid_in(diary, 0, but=(first,))


def test_one_that_has_done_its_tasks_before_it_is_ready_is_replaced_once_it_is(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "LOOK", 0.05)

    def work() -> None:
        assert cluster.worker is not None
        cluster.on("message", lambda _: cluster.ready())
        cluster.worker.count(10)
        cluster.send((cluster.worker.slot, os.getpid()))
        threading.Event().wait()

    diary = diary_of_messages()
    supervisor = supervise(work, 1, max_tasks=10, jitter=0)
    first = pid_in(diary, 0)
    assert supervisor.status()[0].state is SlotState.BOOTING
    cluster.broadcast("go")
    pid_in(diary, 0, but=(first,))


def test_a_replacement_for_tasks_that_failed_is_tried_again(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkup, "LOOK", 0.05)
    monkeypatch.setattr(checkup, "AGAIN", 0.05)
    broken = tmp_path / "broken"

    def work() -> None:
        if broken.exists():
            raise SystemExit(7)
        assert cluster.worker is not None
        cluster.on("message", cluster.worker.count)
        say_slot_and_stay()

    diary, ended = diary_of_messages(), Diary()
    cluster.on("death", lambda worker: ended.write(worker.exitcode))
    supervise(work, 1, max_tasks=10, jitter=0)
    first = pid_in(diary, 0)
    broken.touch()
    cluster.broadcast(10)
    ended.until(7)
    broken.unlink()
    pid_in(diary, 0, but=(first,))


def test_past_its_memory_a_worker_is_replaced(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkup, "LOOK", 0.05)
    eaten = tmp_path / "eaten"

    def eat() -> None:
        if not eaten.exists():
            eaten.touch()
            globals()["meal"] = b"x" * (400 << 20)
        say_slot_and_stay()

    diary = diary_of_messages()
    supervise(eat, 1, max_memory=300 << 20, jitter=0)
    pid_in(diary, 0, but=(pid_in(diary, 0),))


def test_past_its_age_a_worker_is_replaced(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "LOOK", 0.05)
    diary = diary_of_messages()
    supervise(say_slot_and_stay, 1, max_age=0.5)
    pid_in(diary, 0, but=(pid_in(diary, 0),))


class TestHeartbeat:
    def test_a_worker_whose_event_loop_is_blocked_is_ended_and_shows_where(self) -> None:
        done = python(
            """
            import asyncio, time
            import mpcluster as cluster

            async def block_the_loop():
                cluster.ready()
                await asyncio.sleep(0)
                time.sleep(1000)

            def ended(worker):
                print(worker.exit_signal.name)
                supervisor.stop()

            cluster.once("death", ended)
            supervisor = cluster.supervise(lambda: asyncio.run(block_the_loop()), 1, heartbeat=1.0)
            supervisor.wait()
            """
        )
        assert done.stdout == "SIGABRT\n"
        assert "block_the_loop" in done.stderr

    def test_a_worker_that_is_stopped_is_replaced(
        self, supervise: Callable[..., Supervisor]
    ) -> None:
        diary, ended = diary_of_messages(), Diary()
        cluster.on("death", lambda worker: ended.write(worker.pid, worker.exit_signal))
        ready = Diary()
        supervisor = supervise(say_slot_and_stay, 1, heartbeat=1.0)
        supervisor.on("ready", lambda worker: ready.write(worker.pid))
        stopped = pid_in(diary, 0)
        if supervisor.status()[0].state is not SlotState.READY:
            ready.until(stopped)
        os.kill(stopped, signal.SIGSTOP)
        ended.until(stopped, signal.SIGKILL)
        pid_in(diary, 0, but=(stopped,))

    def test_one_that_waits_or_computes_is_left_alone(
        self, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compute() -> None:
            cluster.ready()
            while cluster.worker.slot:  # type: ignore[union-attr]
                signal.pause()
            while True:
                sum(range(1000))

        answered, two = Diary(), {1, 2}
        seen = checkup.Checkup.answered

        def answer(self: checkup.Checkup, key: int) -> None:
            seen(self, key)
            answered.write(key)

        monkeypatch.setattr(checkup.Checkup, "answered", answer)
        supervisor = supervise(compute, 2, heartbeat=10.0)
        answered.until_count(4)
        assert {line[0] for line in answered.lines} == two
        assert [one.restarts for one in supervisor.status()] == [0, 0]

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
    def test_one_that_has_taken_sigurg_for_itself_answers(
        self, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch, handler: Any
    ) -> None:
        def take_it() -> None:
            signal.signal(signal.SIGURG, handler)
            cluster.ready()
            while True:
                signal.pause()

        answered = Diary()
        monkeypatch.setattr(checkup.Checkup, "answered", lambda _self, key: answered.write(key))
        supervise(take_it, 1, heartbeat=4.0)
        answered.until_count(2)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"workers": 0}, ValueError, "workers must be 1 or more, not 0"),
        ({"workers": "2"}, TypeError, "workers must be a whole number, not '2'"),
        ({"restarts": "always"}, TypeError, "no rule 'restarts'; there are: restart, backoff"),
        ({"restart": "now"}, ValueError, "restart must be one of"),
        ({"target": 3}, TypeError, "target must be callable, not 3"),
    ],
)
def test_a_wrong_argument_is_named(
    relatives: Family, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        cluster.supervise(**{"target": say_slot_and_stay, **arguments})


def test_ready_is_said_by_a_worker(relatives: Family) -> None:
    with pytest.raises(cluster.ClusterError, match="this is the master"):
        cluster.ready()


PROGRAM = """
    import os, signal, sys, threading
    import mpcluster as cluster

    def work():
        cluster.send("here")
        signal.pause()

    if cluster.is_master:
        came = threading.Semaphore(0)
        cluster.on("message", lambda *_: came.release())
        supervisor = cluster.supervise(work, 2, ready="online")
        came.acquire(); came.acquire()
        print("up", flush=True)
"""


def test_a_master_that_fell_off_its_end_goes_on_until_sigterm_and_takes_all_with_it(
    tmp_path: Path,
) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    program = begin(script)
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    program.send_signal(signal.SIGTERM)
    done = finish(program)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_who_does_not_supervise_does_not_wait_for_its_import() -> None:
    done = python("import mpcluster, sys; assert 'mpcluster.supervision' not in sys.modules")
    assert done.returncode == 0, done.stderr


# -- cluster.disconnect() ----------------------------------------------------------------------


def test_disconnect_stops_the_supervisor_and_calls_back_after_the_last_death(
    supervise: Callable[..., Supervisor], relatives: Family
) -> None:
    diary = diary_of_messages()
    supervisor = supervise(say_slot_and_stay, 2)
    pid_in(diary, 0)
    pid_in(diary, 1)
    gone = threading.Event()
    left: list[int] = []

    def called() -> None:
        left.extend(relatives.workers)
        gone.set()

    cluster.disconnect(called)
    assert gone.wait(PATIENCE)
    assert left == []
    assert supervisor.wait(PATIENCE)
    assert [one.state for one in supervisor.status()] == [SlotState.CLOSED] * 2


def test_disconnect_gives_the_supervisors_workers_its_own_time(
    supervise: Callable[..., Supervisor],
) -> None:
    def stay() -> None:
        cluster.on("disconnect", lambda: cluster.send(("deaf", 0)))
        cluster.send(("there", 0))
        while True:
            signal.pause()

    diary = diary_of_messages()
    supervisor = supervise(stay, 1, drain_timeout=10 * PATIENCE)
    diary.until("there", 0)
    cluster.disconnect(timeout=0.0)
    assert supervisor.wait(PATIENCE)  # by SIGTERM: it would have stayed for the drain_timeout


def test_stop_wants_a_time_that_can_be(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(say_slot_and_stay, 1)
    with pytest.raises(ValueError, match="timeout must not be negative"):
        supervisor.stop(-1)


def test_while_it_is_to_keep_all_it_looks_at_no_limit(
    supervise: Callable[..., Supervisor],
) -> None:
    diary = diary_of_messages()
    supervisor = supervise(say_slot_and_stay, 1, max_age=1000)
    pid_in(diary, 0)
    supervisor.keep_all()
    assert watcher.current().ask(lambda: dict(supervisor._checkup._timers)) == {}
    supervisor.replace_again()
    assert len(watcher.current().ask(lambda: dict(supervisor._checkup._timers))) == 1
