"""What Prometheus reads."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("prometheus_client", reason="needs mpcluster[monitor]")

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families as plain

from mpcluster.monitor.metrics import Exposition
from mpcluster.monitor.snapshot import Listener, Snapshot
from tests.monitor.looks import slot, snapshot, worker
from tests.running import python


def read(seen: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, kind = Exposition(lambda: seen).write("")
    assert kind.startswith("text/plain")
    found = [
        ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
        for family in plain(text.decode())
        for sample in family.samples
    ]
    twice = [
        series for series, count in Counter(series for series, _ in found).items() if count > 1
    ]
    assert not twice
    return dict(found)


def test_the_figures_are_those_of_the_snapshot() -> None:
    seen = read(
        snapshot(
            worker(1, connections=4, cpu=1.5),
            slots=(slot(0, restarts=3, accepted=10, messages=20),),
        )
    )
    of_slot = (("slot", "0"),)
    of_worker = (("place", "serving"), ("slot", "0"))
    assert seen["mpcluster_slot_restarts_total", of_slot] == 3
    assert seen["mpcluster_slot_connections_accepted_total", of_slot] == 10
    assert seen["mpcluster_slot_messages_total", of_slot] == 20
    assert seen["mpcluster_worker_connections", of_worker] == 4
    assert seen["mpcluster_worker_cpu_seconds_total", of_worker] == 1.5
    assert seen["mpcluster_worker_memory_proportional_bytes", of_worker] == 2000
    assert seen["mpcluster_worker_memory_own_bytes", of_worker] == 1000
    assert seen["mpcluster_workers", (("place", "serving"),)] == 1
    assert seen["mpcluster_workers_ready", ()] == 1
    assert seen["mpcluster_master_cpu_seconds_total", ()] == 3
    assert seen["mpcluster_failed", ()] == 0
    assert seen["mpcluster_info", (("program", snapshot().master.program),)] == 1


def test_the_two_workers_of_a_slot_that_is_rolled_are_two_series_and_those_that_leave_are_one() -> (
    None
):
    seen = read(
        snapshot(
            worker(1, place="leaving", serves=False, connections=1, uptime=90.0),
            worker(2, place="leaving", serves=False, connections=2, uptime=50.0),
            worker(3, connections=4),
            worker(4, place="incoming", serves=False, connections=0),
            under_way="reload",
        )
    )
    found = {
        dict(labels)["place"]: value
        for (name, labels), value in seen.items()
        if name == "mpcluster_worker_connections"
    }
    assert found == {"leaving": 3, "serving": 4, "incoming": 0}
    assert seen["mpcluster_worker_uptime_seconds", (("place", "leaving"), ("slot", "0"))] == 90
    assert seen["mpcluster_rolling", ()] == 1


def test_what_is_not_known_is_left_out() -> None:
    seen = read(
        snapshot(
            worker(1, connections=None, cpu=None),
            slots=(slot(0, accepted=None),),
            listeners=(Listener("/run/app.sock", "unix", "shared", (1,), None),),
        )
    )
    names = {name for name, _ in seen}
    assert "mpcluster_worker_memory_own_bytes" in names
    assert "mpcluster_listener_workers" in names
    assert not names & {
        "mpcluster_slot_connections_accepted_total",
        "mpcluster_worker_connections",
        "mpcluster_worker_cpu_seconds_total",
        "mpcluster_listener_waiting_connections",
        "mpcluster_master_threads",
    }


def test_several_sockets_at_one_address_are_one_series() -> None:
    one = Listener("127.0.0.1:8000", "tcp", "slots", (1, 2), 5)
    other = Listener("127.0.0.1:8000", "tcp", "slots", (2, 3), 5)
    seen = read(snapshot(worker(1), listeners=(one, other)))
    where = (("address", "127.0.0.1:8000"), ("policy", "slots"), ("protocol", "tcp"))
    assert seen["mpcluster_listener_workers", where] == 3
    assert seen["mpcluster_listener_waiting_connections", where] == 5


def test_a_path_with_quotes_and_line_ends_is_escaped() -> None:
    path = '/tmp/a "path"\\\n'
    seen = read(snapshot(worker(1), listeners=(Listener(path, "unix", "shared", (1,), None),)))
    assert [
        dict(labels)["address"] for name, labels in seen if name == "mpcluster_listener_workers"
    ] == [path]


def test_open_metrics_are_written_for_who_asks_for_them() -> None:
    exposition = Exposition(lambda: snapshot(worker(1)))
    text, kind = exposition.write("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = open_metrics(text.decode())  # type: ignore[no-untyped-call]
    assert "mpcluster_slot_messages" in {family.name for family in families}


def test_the_programs_own_metrics_are_elsewhere() -> None:
    import prometheus_client

    Exposition(lambda: snapshot(worker(1)))
    assert b"mpcluster" not in prometheus_client.generate_latest()


def test_without_the_library_the_error_names_the_extra() -> None:
    done = python(
        """
        import sys
        sys.modules["prometheus_client"] = None
        import mpcluster
        from mpcluster.monitor.metrics import Exposition
        try:
            Exposition(lambda: None)
        except mpcluster.EngineUnavailableError as error:
            print(error)
        """
    )
    assert "pip install 'mpcluster[monitor]'" in done.stdout, done
