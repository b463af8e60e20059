"""``/metrics``: a snapshot as Prometheus reads it.

The library writes the exposition, from a registry of its own: what the program itself
measures with it is elsewhere. Workers come and go, so nothing is labelled by their ids or
pids, which would make a new time series of each; slots stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from mpcluster.errors import EngineUnavailableError
from mpcluster.supervision import SlotState

from .views import Listener, Slot, Snapshot, Worker

if TYPE_CHECKING:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
    )

__all__ = ["Exposition"]

PLACES = ("serving", "incoming", "leaving")

Reader: TypeAlias = "Callable[[Worker], float | None]"

#: Of slots: name, what it is, how to read it.
_COUNTERS: tuple[tuple[str, str, Callable[[Slot], float | None]], ...] = (
    ("restarts", "Workers that the slot has lost.", lambda slot: slot.restarts),
    (
        "connections_accepted",
        "Connections that the slot's workers accepted, where they are counted.",
        lambda slot: slot.accepted,
    ),
    ("messages", "Messages that came from the slot's workers.", lambda slot: slot.messages),
)

#: Of workers: name, what it is, how to read it.
_GAUGES: tuple[tuple[str, str, Reader], ...] = (
    (
        "worker_memory_resident_bytes",
        "Memory in RAM, whoever else has it too.",
        lambda worker: worker.usage.resident,
    ),
    (
        "worker_memory_proportional_bytes",
        "Memory in RAM; what several processes have counts for each in part (PSS).",
        lambda worker: worker.usage.proportional,
    ),
    (
        "worker_memory_own_bytes",
        "Memory in RAM that no other process has (USS).",
        lambda worker: worker.usage.own,
    ),
    ("worker_threads", "Threads.", lambda worker: worker.usage.threads),
    ("worker_open_fds", "Open file descriptors.", lambda worker: worker.usage.descriptors),
    (
        "worker_connections",
        "Open connections of shared listeners.",
        lambda worker: worker.connections,
    ),
    (
        "worker_uptime_seconds",
        "Since the oldest was forked.",
        lambda worker: worker.uptime,
    ),
)


class Exposition:
    """Writes snapshots.

    Args:
        look: Returns the one to write.

    Raises:
        EngineUnavailableError: prometheus-client is not installed.
    """

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        try:
            import prometheus_client.exposition
            import prometheus_client.registry
        except ImportError as error:
            raise EngineUnavailableError(
                "the monitor needs prometheus-client, which is not installed: "
                "pip install 'mpcluster[monitor]'"
            ) from error
        self._look = look
        self._choose_encoder = prometheus_client.exposition.choose_encoder
        self._registry = prometheus_client.registry.CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._look!r}>"

    def write(self, accept: str) -> tuple[bytes, str]:
        """Return the text, and its content type; ``accept``: the header of that name."""
        encode, kind = self._choose_encoder(accept)
        return encode(self._registry), kind

    def collect(self) -> Iterator[Metric]:
        """What the library asks: the metrics, now."""
        snapshot = self._look()
        yield from _of_all(snapshot)
        yield from _of_slots(snapshot)
        yield from _of_workers(snapshot)
        yield from _of_listeners(snapshot)
        yield from _of_master(snapshot)


def _of_all(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    program = {"program": snapshot.master.program}
    yield InfoMetricFamily("mpcluster", "What the workers run.", value=program)
    family = GaugeMetricFamily("mpcluster_workers", "Living workers.", labels=["place"])
    for place in PLACES:
        count = sum(worker.place == place for worker in snapshot.workers)
        family.add_metric([place], count)
    yield family
    yield GaugeMetricFamily(
        "mpcluster_workers_ready", "Workers that are ready and go on.", value=snapshot.serving
    )
    yield GaugeMetricFamily(
        "mpcluster_failed", "1 if the supervisor has given up.", value=snapshot.failure is not None
    )
    yield GaugeMetricFamily(
        "mpcluster_rolling",
        "1 while workers are replaced (a reload, a limit).",
        value=snapshot.under_way is not None,
    )
    yield GaugeMetricFamily(
        "mpcluster_snapshot_timestamp_seconds",
        "When these figures were taken.",
        value=snapshot.time,
    )


def _of_slots(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    states = GaugeMetricFamily("mpcluster_slots", "Slots, by their state.", labels=["state"])
    for state in SlotState:
        count = sum(slot.state == state.value for slot in snapshot.slots)
        states.add_metric([state.value], count)
    yield states
    for name, text, read in _COUNTERS:
        counter = CounterMetricFamily(f"mpcluster_slot_{name}", text, labels=["slot"])
        for slot in snapshot.slots:
            value = read(slot)
            if value is not None:
                counter.add_metric([str(slot.number)], value)
        yield counter


def _of_workers(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    groups: dict[tuple[str, str], list[Worker]] = {}
    for worker in snapshot.workers:
        groups.setdefault((str(worker.slot), worker.place), []).append(worker)
    cpu = CounterMetricFamily(
        "mpcluster_worker_cpu_seconds",
        "Processor time; from 0 again with each worker.",
        labels=["slot", "place"],
    )
    families: list[tuple[CounterMetricFamily | GaugeMetricFamily, Reader]] = [
        (cpu, lambda worker: worker.usage.cpu)
    ]
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(f"mpcluster_{name}", text, labels=["slot", "place"])
        families.append((gauge, read))
    for family, read in families:
        for labels, workers in groups.items():
            values = [value for worker in workers if (value := read(worker)) is not None]
            if values:
                oldest = family.name.endswith("uptime_seconds")
                family.add_metric(list(labels), max(values) if oldest else sum(values))
        yield family


def _of_listeners(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    labels = ["protocol", "address", "policy"]
    users = GaugeMetricFamily(
        "mpcluster_listener_workers", "Workers that use the listener.", labels=labels
    )
    waiting = GaugeMetricFamily(
        "mpcluster_listener_waiting_connections",
        "Connections that wait to be accepted.",
        labels=labels,
    )
    # Several sockets may have one address (SO_REUSEPORT), and a series may come once only.
    groups: dict[tuple[str, ...], list[Listener]] = {}
    for one in snapshot.listeners:
        groups.setdefault((one.protocol, one.address, one.policy), []).append(one)
    for where, several in groups.items():
        users.add_metric(where, len({user for one in several for user in one.workers}))
        counts = [one.waiting for one in several if one.waiting is not None]
        if counts:
            waiting.add_metric(where, max(counts))  # each has been told that of the address
    yield users
    yield waiting


def _of_master(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    usage = snapshot.master.usage
    if usage.cpu is not None:
        yield CounterMetricFamily(
            "mpcluster_master_cpu_seconds", "Processor time of the master.", value=usage.cpu
        )
    for name, text, value in (
        ("memory_proportional_bytes", "Memory of the master (PSS).", usage.proportional),
        ("memory_own_bytes", "Memory that the master alone has (USS).", usage.own),
        ("threads", "Threads of the master.", usage.threads),
        ("open_fds", "Open file descriptors of the master.", usage.descriptors),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"mpcluster_master_{name}", text, value=value)
