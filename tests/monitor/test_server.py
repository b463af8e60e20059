"""The page over HTTP: what it answers, whom it answers, and what a fork does to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("prometheus_client", reason="needs mpcluster[monitor]")

import mpcluster as cluster
from mpcluster import monitor, watcher
from mpcluster.monitor import answers, sampler, server
from mpcluster.monitor.server import Monitor
from mpcluster.supervision import Supervisor
from tests.happenings import PATIENCE, Diary, Gate, relatives_fixture  # noqa: F401
from tests.monitor.fleets import serving, until_ready
from tests.running import python
from tests.supervision.supervising import supervise_fixture  # noqa: F401


@pytest.fixture(name="watch")
def watch_fixture() -> Iterator[Callable[..., Monitor]]:
    """``monitor.start()`` whose monitors are stopped at the end."""
    made: list[Monitor] = []

    def watch(supervisor: Supervisor, address: str = "127.0.0.1:0", **options: Any) -> Monitor:
        made.append(monitor.start(supervisor, address, **options))
        return made[-1]

    yield watch
    for one in made:
        one.stop()


@pytest.fixture(name="watched")
def watched_fixture(supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]) -> Monitor:
    """A monitor of two workers that serve."""
    supervisor = supervise(serving, 2)
    until_ready(supervisor, 2)
    return watch(supervisor)


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def place_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def ask(watched: Monitor, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(*place_of(watched.url), timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        with connection.getresponse() as response:
            return Answer(response)
    finally:
        connection.close()


def say(watched: Monitor, request: bytes) -> bytes:
    """All that is answered to these bytes."""
    with socket.create_connection(place_of(watched.url), timeout=PATIENCE) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


# -- what it answers -------------------------------------------------------------------------------


def test_the_status_is_the_last_look_with_its_rates(watched: Monitor) -> None:
    answer = ask(watched, "/status.json")
    assert answer.headers["Content-Type"] == "application/json"
    status = answer.json
    assert status["serving"] == 2
    assert status["master"]["pid"] == os.getpid()
    assert {one["pid"] for one in status["workers"]} == {
        one.pid for one in cluster.workers.values()
    }
    assert set(status["rates"]["workers"]) == {str(one["id"]) for one in status["workers"]}
    assert status["age"] < PATIENCE


def test_it_has_the_name_that_it_was_given(
    supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]
) -> None:
    watched = watch(supervise(serving, 1), program="app.py")
    assert ask(watched, "/status.json").json["master"]["program"] == "app.py"


def test_figures_for_prometheus_are_those_of_the_same_look(watched: Monitor) -> None:
    answer = ask(watched, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"mpcluster_workers_ready 2.0\n" in answer.body


def test_the_page_comes_with_a_policy_that_lets_in_nothing_else(watched: Monitor) -> None:
    answer = ask(watched, "/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<!doctype html>")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_the_history_is_there_for_a_page_that_is_opened_late(
    supervise: Callable[..., Supervisor],
    watch: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.01)
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    watched = watch(supervisor)
    first = watched.sampler.last()[0].clock
    assert watched.sampler.wait_for(lambda seen, _: seen.clock > first, PATIENCE)
    history = ask(watched, "/history.json").json
    assert history
    assert history[-1]["serving"] == 1
    assert history[-1]["memory"] > 0


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/healthz", "/no/such"])
def test_every_answer_is_sniffed_cached_and_embedded_by_nobody(watched: Monitor, path: str) -> None:
    headers = ask(watched, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Server"] == "mpcluster"


def test_where_there_is_nothing_it_says_what_there_is(watched: Monitor) -> None:
    answer = ask(watched, "/favicon.ico?x=1")
    assert answer.status == 404
    assert b"/status.json, /history.json, /metrics, /healthz" in answer.body


def test_a_query_changes_nothing(watched: Monitor) -> None:
    assert ask(watched, "/healthz?probe=1").status == 200


def test_head_is_get_without_the_body(watched: Monitor) -> None:
    answer, whole = ask(watched, "/", "HEAD"), ask(watched, "/")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"])
def test_nothing_can_be_changed(watched: Monitor, method: str) -> None:
    answer = ask(watched, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"x" * 70000])  # fmt: skip
def test_what_is_no_request_ends_with_its_connection(watched: Monitor, request_: bytes) -> None:
    assert b" 200 " not in say(watched, request_)[:20]
    assert ask(watched, "/healthz").status == 200


# -- health ----------------------------------------------------------------------------------------


def test_it_is_healthy_from_the_first_worker_that_serves_to_the_last(
    supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]
) -> None:
    with Gate() as gate:

        def boot() -> None:
            gate.wait()
            cluster.ready()
            signal.pause()

        supervisor = supervise(boot, 1, ready="explicit")
        watched = watch(supervisor)
        answer = ask(watched, "/healthz")
        assert (answer.status, answer.body) == (503, b"0 of 1 serve\n")
        gate.open()
        until_ready(supervisor, 1)
        answer = ask(watched, "/healthz")  # asked anew, whenever the last look was
        assert (answer.status, answer.body) == (200, b"1 of 1 serve\n")
        supervisor.stop()
        assert supervisor.wait(PATIENCE)
        assert ask(watched, "/healthz").status == 503


def test_while_the_watcher_is_in_a_callback_the_last_look_counts_for_a_time(
    watched: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "HURRY", 0.01)
    go_on, busy = threading.Event(), threading.Event()

    def callback() -> None:
        busy.set()
        go_on.wait()

    watcher.current().call_soon(callback)
    assert busy.wait(PATIENCE)
    try:
        assert ask(watched, "/healthz").status == 200
        assert ask(watched, "/status.json").json["serving"] == 2
        monkeypatch.setattr(answers, "STALE", 0)
        answer = ask(watched, "/healthz")
        assert answer.status == 503
        assert answer.body.startswith(b"not known: the master's watcher")
    finally:
        go_on.set()


# -- whom it answers -------------------------------------------------------------------------------


def test_a_name_that_was_made_to_point_here_is_refused(watched: Monitor) -> None:
    """DNS rebinding: a stranger's page asks its own host, whose address is now this machine's."""
    for path in ("/", "/status.json", "/healthz", "/no/such"):
        answer = ask(watched, path, Host="evil.example")
        assert answer.status == 421
        assert b"pid" not in answer.body


def test_localhost_and_a_forwarded_port_are_answered(watched: Monitor) -> None:
    assert ask(watched, "/status.json", Host="localhost:12345").status == 200


def test_without_a_host_only_a_plain_old_probe_is_answered(watched: Monitor) -> None:
    assert b"200 OK" in say(watched, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b"421 " in say(watched, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert b"421 " in say(
        watched, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    )


def test_an_address_that_others_can_reach_is_refused(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(serving, 1)
    with pytest.raises(ValueError, match="public=True"):
        monitor.start(supervisor, "0.0.0.0:0")


def test_one_that_others_can_reach_is_served_where_that_is_said(
    supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]
) -> None:
    watched = watch(supervise(serving, 1), "0.0.0.0:0", public=True)
    _, port = place_of(watched.url)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/status.json")
    assert connection.getresponse().status == 200
    connection.close()


def test_it_serves_on_ipv6(
    supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]
) -> None:
    watched = watch(supervise(serving, 1), "[::1]:0")
    assert watched.url.startswith("http://[::1]:")
    assert ask(watched, "/status.json").status == 200


def test_a_port_that_is_taken_is_named(
    supervise: Callable[..., Supervisor], watched: Monitor
) -> None:
    host, port = place_of(watched.url)
    supervisor = supervise(serving, 1)
    with pytest.raises(OSError, match=f"in use: {host}:{port}") as caught:
        monitor.start(supervisor, f"{host}:{port}")
    assert str(caught.value.address) == f"{host}:{port}"  # type: ignore[attr-defined]


def test_who_sends_half_a_request_keeps_nobody_out(watched: Monitor) -> None:
    with ExitStack() as idle:
        for _ in range(3 * server.MOST):
            client = idle.enter_context(socket.create_connection(place_of(watched.url)))
            client.sendall(b"GET / HT")
        assert ask(watched, "/healthz").status == 200


def test_a_client_that_is_silent_is_given_up(
    watched: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers.Answering, "timeout", 0.01)
    assert say(watched, b"GET / HT") == b""


class TestASocketThatWasHandedDown:
    def test_is_served_with_who_waits_there_already(
        self, supervise: Callable[..., Supervisor]
    ) -> None:
        supervisor = supervise(serving, 1)
        handed_down = socket.create_server(("127.0.0.1", 0))
        place = handed_down.getsockname()
        with contextlib.closing(http.client.HTTPConnection(*place, timeout=PATIENCE)) as early:
            early.request("GET", "/healthz")
            watched = Monitor(supervisor, "127.0.0.1:0", handed_down=handed_down)
            assert place_of(watched.url) == place
            assert early.getresponse().status in {200, 503}
        watched.stop()
        assert handed_down.fileno() == watched.fileno() == -1

    @pytest.mark.parametrize("address", ["127.0.0.2:0", "[::1]:0"])
    def test_at_another_place_is_closed(
        self, supervise: Callable[..., Supervisor], address: str
    ) -> None:
        handed_down = socket.create_server(("127.0.0.1", 0))
        watched = Monitor(supervise(serving, 1), address, handed_down=handed_down)
        assert ask(watched, "/healthz").status in {200, 503}
        watched.stop()
        assert handed_down.fileno() == -1

    def test_is_closed_where_no_page_can_be_served(
        self, supervise: Callable[..., Supervisor]
    ) -> None:
        handed_down = socket.create_server(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="public=True"):
            Monitor(supervise(serving, 1), "0.0.0.0:0", handed_down=handed_down)
        assert handed_down.fileno() == -1


# -- its end, and forks ----------------------------------------------------------------------------


def test_after_stop_the_port_is_free(watched: Monitor) -> None:
    place = place_of(watched.url)
    watched.stop()
    watched.stop()
    with socket.create_server(place):
        pass


def test_a_worker_that_is_forked_meanwhile_keeps_neither_the_port_nor_a_connection(
    supervise: Callable[..., Supervisor], watch: Callable[..., Monitor]
) -> None:
    """One is forked while a client is being answered.

    With a copy of the connection in it the client would wait for the end for ever, and with one
    of the listener the port would stay taken.
    """
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    watched = watch(supervisor)
    place = place_of(watched.url)
    with socket.create_connection(place, timeout=PATIENCE) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n")
        ask(watched, "/healthz")  # the one before it is accepted by now
        ready = Diary()
        supervisor.on("ready", lambda worker: ready.write(worker.id))
        supervisor.scale(2)
        ready.until_count(1)
        client.sendall(b"\r\n")
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
        assert b"200 OK" in b"".join(parts)
    watched.stop()
    with socket.create_server(place):
        assert len(supervisor.workers()) == 2


def test_in_a_child_its_end_is_not_the_masters(watched: Monitor) -> None:
    child = cluster.ClusterProcess(target=watched.stop)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert ask(watched, "/healthz").status == 200
    child.close()


def test_in_a_worker_there_is_none(supervise: Callable[..., Supervisor]) -> None:
    told = Diary()
    cluster.on("message", lambda _worker, message: told.write(message))
    first = supervise(serving, 1)

    def start() -> None:
        try:
            monitor.start(first)
        except cluster.NotMasterError:
            cluster.send("not here")
        signal.pause()

    supervise(start, 1)
    told.until("not here")


def test_no_fork_is_warned_of_for_the_sake_of_its_threads() -> None:
    """Where warnings are errors; and the main thread's forks are made beside them, too."""
    done = python(
        """
        import os, signal, threading
        import mpcluster as cluster
        from mpcluster import monitor

        def work():
            cluster.ready()
            signal.pause()

        supervisor = cluster.supervise(work, 1)
        again = threading.Semaphore(0)
        supervisor.on("ready", lambda worker: again.release())
        watched = monitor.start(supervisor)
        assert again.acquire(timeout=30)
        os.kill(supervisor.status()[0].pid, signal.SIGKILL)
        assert again.acquire(timeout=30)
        child = cluster.ClusterProcess(target=print, args=("a child",))
        child.start()
        child.join()
        watched.stop()
        supervisor.stop()
        supervisor.wait()
        """
    )
    assert (done.returncode, done.stdout) == (0, "a child\n"), done
    assert "DeprecationWarning" not in done.stderr


def test_it_keeps_no_program_alive() -> None:
    done = python(
        """
        import mpcluster as cluster
        from mpcluster import monitor

        supervisor = cluster.supervise(print, 1, args=("done",), restart="never")
        monitor.start(supervisor)
        supervisor.wait()
        """
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_thousand_forks_beside_a_page_that_is_asked_all_the_time_hang_nothing() -> None:
    done = python(
        """
        import signal, threading, urllib.request, warnings
        import mpcluster as cluster
        from mpcluster import monitor

        def work():
            import json, socket, threading, urllib.request
            json.dumps({})
            thread = threading.Thread(target=socket.getaddrinfo, args=("127.0.0.1", 1))
            thread.start()
            thread.join()

        supervisor = cluster.supervise(signal.pause, 1, ready="online")
        watched = monitor.start(supervisor)
        ends = threading.Event()

        def ask():
            while not ends.is_set():
                for path in ("", "status.json", "metrics", "healthz"):
                    with urllib.request.urlopen(watched.url + path) as answer:
                        answer.read()

        asking = threading.Thread(target=ask)
        asking.start()
        warnings.simplefilter("ignore")  # of the thread that asks, which is this program's own
        for _ in range(50):
            children = [cluster.ClusterProcess(target=work) for _ in range(20)]
            for child in children: child.start()
            for child in children:
                child.join(30)
                assert child.exitcode == 0, child
                child.close()
        ends.set()
        asking.join()
        watched.stop()
        supervisor.stop()
        supervisor.wait()
        print("all")
        """
    )
    assert (done.returncode, done.stdout) == (0, "all\n"), done
