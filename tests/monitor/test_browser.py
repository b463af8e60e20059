"""The page in a real browser: what is to be seen is what is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="needs mpcluster[monitor]")

import mpcluster as cluster
from mpcluster import monitor
from mpcluster.monitor import sampler
from mpcluster.monitor.server import Monitor
from mpcluster.supervision import Supervisor
from tests.happenings import PATIENCE, Gate, relatives_fixture  # noqa: F401
from tests.monitor import browser
from tests.monitor.browser import Browser
from tests.monitor.fleets import serving, until_ready
from tests.supervision.supervising import supervise_fixture  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        bool(browser.MISSING), reason=f"there is no {', no '.join(browser.MISSING)}"
    ),
]

#: What a row of the table shows, as the page has it.
ROWS = """
    [...document.querySelectorAll("#workers tr[data-key]")].map(row =>
        Object.fromEntries(Object.entries(row.cells_).map(([name, cell]) => [name, cell.textContent])))
"""


@pytest.fixture(name="chromium")
def chromium_fixture() -> Iterator[Browser]:
    """One for each test, which then leaves nothing behind: a browser starts processes at will."""
    with browser.running() as window:
        yield window


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.2)


@pytest.fixture(name="open_page")
def open_page_fixture(
    supervise: Callable[..., Supervisor], chromium: Browser
) -> Iterator[Callable[..., tuple[Supervisor, Monitor]]]:
    """Start a fleet, and look at it; nothing may have been complained of at the end."""
    made: list[Monitor] = []

    def open_page(
        target: Callable[[], object] = serving, workers: int = 2, **rules: Any
    ) -> tuple[Supervisor, Monitor]:
        supervisor = supervise(target, workers, **rules)
        made.append(monitor.start(supervisor, "127.0.0.1:0"))
        chromium.complaints()
        chromium.appear("light", 1360, 760)
        chromium.open(made[0].url)
        return supervisor, made[0]

    yield open_page
    for one in made:
        one.stop()


def shown(chromium: Browser) -> list[dict[str, str]]:
    found: list[dict[str, str]] = chromium.run(f"return {ROWS.strip()}")
    return found


def size(count: int) -> str:
    """Bytes as the page writes them: three figures from 10 MB on."""
    return f"{count / 1e6:.{1 if count < 99_950_000 else 0}f} MB"


def test_the_figures_on_the_page_are_those_of_the_status(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    """Of one and the same look: the page keeps the one that it has drawn."""
    supervisor, _ = open_page(workers=3)
    until_ready(supervisor, 3)
    chromium.wait_for("shown && shown.serving === 3")
    status, rows, head = chromium.run(
        f"return [shown, {ROWS}, document.getElementById('health').textContent]"
    )
    assert head == "3 of 3 serving"
    assert {row["pid"] for row in rows} == {str(one.pid) for one in supervisor.workers()}
    for row, worker in zip(rows, status["workers"], strict=True):
        assert row["slot"] == str(worker["slot"])
        assert (row["id"], row["pid"]) == (str(worker["id"]), str(worker["pid"]))
        assert row["state"] == "serving"
        assert row["own"] == size(worker["own"])
        assert row["memory"] == size(worker["proportional"])
        assert row["shared"] == size(worker["resident"] - worker["own"])
        assert row["open"] == str(worker["connections"])
        assert (row["threads"], row["files"]) == (
            str(worker["threads"]),
            str(worker["descriptors"]),
        )
    assert chromium.complaints() == []


def test_a_dead_workers_place_is_taken_by_the_next_and_the_trouble_is_told(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    supervisor, _ = open_page()
    until_ready(supervisor, 2)
    chromium.wait_for("shown && shown.serving === 2")
    victim = supervisor.status()[1]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    chromium.wait_for(
        "shown.serving === 2 && !shown.workers.some(one => one.pid === args[0])", victim.pid
    )
    rows = shown(chromium)
    assert [row["restarts"] for row in rows] == ["0", "1"]
    assert rows[1]["pid"] == str(supervisor.status()[1].pid)
    trouble = chromium.run(
        "return [...document.querySelectorAll('tr.trouble:not([hidden])')].map(row => row.textContent)"
    )
    assert trouble == [
        f"last trouble: worker {victim.worker_id} (pid {victim.pid}, slot 1) was killed by SIGKILL"
    ]
    assert chromium.complaints() == []


def test_it_lives_through_a_reload_and_shows_it(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    with Gate() as gate:

        def boot() -> None:
            with cluster.listen(("127.0.0.1", 0)):
                gate.wait()
                cluster.ready()
                signal.pause()

        gate.open(2)
        supervisor, _ = open_page(boot, ready="explicit")
        chromium.wait_for("shown && shown.serving === 2")
        before = {row["id"] for row in shown(chromium)}
        done = supervisor.reload()
        chromium.wait_for(
            "[...document.querySelectorAll('td.state')].some(one => one.textContent === 'coming')"
        )
        assert (
            chromium.run("return document.getElementById('activity').textContent")
            == "reload under way"
        )
        gate.open(2)
        done.result(PATIENCE)
        chromium.wait_for("shown.serving === 2 && shown.workers.length === 2 && !shown.under_way")
        assert not before & {row["id"] for row in shown(chromium)}
        assert chromium.run("return document.getElementById('activity').hidden")
        assert chromium.complaints() == []


def test_a_name_that_is_markup_is_text(
    open_page: Callable[..., tuple[Supervisor, Monitor]],
    chromium: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "<img src=x onerror=document.title='run'><b>app"
    monkeypatch.setattr("sys.argv", [name])
    open_page()
    chromium.wait_for("shown && document.getElementById('program').textContent === args[0]", name)
    assert chromium.run("return document.querySelectorAll('header img, header b').length") == 0
    assert chromium.complaints() == []


def test_a_script_that_is_smuggled_in_does_not_run(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    open_page()
    ran = chromium.run(
        """
        const script = document.createElement("script");
        script.textContent = "window.smuggled = true";
        document.body.append(script);
        return Boolean(window.smuggled);
        """
    )
    assert ran is False
    assert "Content Security Policy" in " ".join(chromium.complaints())


def test_the_charts_are_drawn_from_the_history_and_go_on(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    _, watched = open_page()
    first = watched.sampler.last()[0].clock
    assert watched.sampler.wait_for(lambda seen, _: seen.clock > first + 1, PATIENCE)
    chromium.open(watched.url)
    chromium.wait_for("points.length > 3")
    chromium.wait_for(
        "document.querySelector('[data-key=memory] .line').getAttribute('d').includes('L')"
    )
    count = chromium.run("return points.length")
    chromium.wait_for("points.length > args[0]", count)
    assert chromium.complaints() == []


def test_a_master_that_answers_no_more_is_said_and_what_was_last_seen_stays(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser
) -> None:
    _, watched = open_page()
    chromium.wait_for("shown && shown.serving === 2")
    watched.stop()
    chromium.wait_for("!document.getElementById('banner').hidden")
    assert "does not answer" in chromium.run("return document.getElementById('banner').textContent")
    assert len(shown(chromium)) == 2


def test_it_fits_its_window_in_light_and_in_dark(
    open_page: Callable[..., tuple[Supervisor, Monitor]], chromium: Browser, tmp_path: Path
) -> None:
    open_page()
    chromium.wait_for("shown && shown.serving === 2")
    grounds = {"light": "rgb(246, 246, 243)", "dark": "rgb(18, 20, 22)"}
    for scheme, ground in grounds.items():
        for width in (420, 1360):
            chromium.appear(scheme, width, 760)
            assert chromium.run("return document.documentElement.scrollWidth") <= width
            colour = "return getComputedStyle(document.body).backgroundColor"
            assert chromium.run(colour) == ground
            picture = tmp_path / "page.png"
            chromium.screenshot(picture)
            assert picture.read_bytes().startswith(b"\x89PNG")
