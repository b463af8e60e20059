"""The page: nothing foreign in it, and figures as people read them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from mpcluster.monitor.page import page
from tests.monitor.looks import slot, snapshot, worker

NONE = "\N{EN DASH}"  # what is not known

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")


def part(kind: str) -> str:
    found = re.findall(f"<{kind}>(.*?)</{kind}>", page()[0].decode(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_it_loads_nothing_from_elsewhere() -> None:
    text = page()[0].decode().replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"//.*", "", text))
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"'](?!data:)", text)
    assert "@import" not in text


def test_its_script_and_style_are_allowed_by_their_hashes_and_nothing_else_is() -> None:
    policy = dict(rule.strip().split(" ", 1) for rule in page()[1].split(";"))
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(part(kind).encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["form-action"] == "'none'"
    assert "unsafe" not in page()[1]


def test_text_never_goes_in_as_markup() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(",
        part("script"),
    )
    assert not re.search(r"<[^>]+\s(on\w+|style)=", page()[0].decode())


def node(expression: str) -> Any:
    """The value of an expression, with the script's own names, where there is no document."""
    program = f"{part('script')}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-"], input=program, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_figures_are_written_as_people_read_them() -> None:
    assert node(
        """[
            [null, 0, 12, 1234567].map(value => number(value)),
            [undefined, 0, 0.04, 9.94, 9.96, 1234.5].map(rate),
            [null, 0, 0.005, 1, 3.25].map(percent),
            [null, 0, 99.9e6, 99.96e6, 2.5e9].map(size),
            [null, 0, 59.9, 60, 3599, 3600, 172799, 172800].map(duration),
        ]"""
    ) == [
        [NONE, "0", "12", "1,234,567"],
        [NONE, "0", "<0.1", "9.9", "10", "1,235"],
        [NONE, "0 %", "1 %", "100 %", "325 %"],
        [NONE, "0.0 MB", "99.9 MB", "100 MB", "2.5 GB"],
        [NONE, "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "47 h 59 min", "2 d 0 h"],
    ]


@needs_node
def test_a_line_has_a_gap_where_nothing_is_known() -> None:
    drawn = node("paths([[0, 5], [1, 6], [2, null], [3, 7]], 10)")
    assert drawn["line"] == "M0.0 5.0L1.0 6.0M3.0 7.0"
    assert drawn["area"] == "M0.0 5.0L1.0 6.0L1.0 10L0.0 10ZM3.0 7.0L3.0 10L3.0 10Z"


@needs_node
def test_a_chart_is_filled_from_the_first_minute_on() -> None:
    assert node("[0, 59, 90, 600, 4000].map(spanOf)") == [60, 60, 90, 600, 600]


@needs_node
def test_a_scale_ends_at_a_round_number() -> None:
    assert node("[0, NaN, 0.3, 1, 1.1, 4, 5, 6, 70, 1000].map(ceiling)") == [
        1, 1, 0.5, 1, 2, 5, 5, 10, 100, 1000
    ]  # fmt: skip


@needs_node
def test_the_page_draws_of_a_look_what_the_history_has_of_it() -> None:
    from mpcluster.monitor.rates import between
    from mpcluster.monitor.sampler import _figures

    before = snapshot(worker(1, cpu=1.0), worker(2, slot=1), clock=1)
    now = snapshot(worker(1, cpu=1.5), worker(2, slot=1, connections=None), clock=2)
    rates = between(before, now)
    status = {**now.as_dict(), "rates": rates.as_dict()}
    kept = json.loads(json.dumps(_figures(now, rates)))
    assert node(f"figures({json.dumps(status)})") == kept


@needs_node
def test_there_is_a_row_for_each_worker_and_for_each_slot_that_has_none() -> None:
    seen = snapshot(
        worker(1, place="leaving", serves=False, state="draining"),
        worker(5),
        worker(3, slot=7, place="leaving", serves=False, state="draining"),
        slots=(slot(0, state="ready"), slot(1, state="given up", trouble="it crashed")),
    )
    status = json.dumps(seen.as_dict())
    keys = node(f"rows({status}).map(row => row.key)")
    assert keys == ["w1", "w5", "s1", "w3"]
    labels = node(
        f"rows({status}).map(row => row.worker ? standing(row.worker) : vacancy(row.slot))"
    )
    assert labels == [
        ["draining", "wait"],
        ["serving", "good"],
        ["given up", "bad"],
        ["draining", "wait"],
    ]


@needs_node
@pytest.mark.parametrize(
    ("states", "failure", "verdict"),
    [
        (["ready", "ready"], None, ["2 of 2 serving", "good"]),
        (["ready", "closed"], None, ["1 of 1 serving", "good"]),
        (["ready", "waiting"], None, ["1 of 2 serving", "wait"]),
        (["waiting", "waiting"], None, ["0 of 2 serving", "bad"]),
        (["given up", "given up"], "it crashes", ["given up", "bad"]),
    ],
)
def test_the_verdict_says_how_many_serve_of_those_that_are_to(
    states: list[str], failure: str | None, verdict: list[str]
) -> None:
    seen = snapshot(
        *(worker(number, slot=number) for number, state in enumerate(states) if state == "ready"),
        slots=tuple(slot(number, state=state) for number, state in enumerate(states)),
        failure=failure,
    )
    assert node(f"verdict({json.dumps(seen.as_dict())})") == verdict
