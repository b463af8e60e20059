from __future__ import annotations

from typing import Any

import pytest

from mpcluster.supervision import Rules


def test_the_defaults_keep_to_themselves() -> None:
    assert Rules().restart == "always"


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"restart": "sometimes"}, ValueError, "always, on-failure, never"),
        ({"ready": "soon"}, ValueError, "auto, online, listening, explicit"),
        ({"backoff": "1"}, TypeError, "backoff must be a number of seconds"),
        ({"backoff": -1}, ValueError, "0 or more seconds"),
        ({"backoff": float("nan")}, ValueError, "0 or more seconds"),
        ({"max_backoff": float("inf")}, ValueError, "0 or more seconds"),
        ({"ready_timeout": True}, TypeError, "ready_timeout"),
        ({"heartbeat": 0}, ValueError, "more than 0 seconds"),
        ({"max_age": 0.0}, ValueError, "more than 0 seconds"),
        ({"max_tasks": 1.5}, TypeError, "a whole number of tasks"),
        ({"max_memory": 0}, ValueError, "more than 0 bytes"),
        ({"max_crashes": 0}, ValueError, "more than 0 crashes"),
        ({"jitter": 1.0}, ValueError, "less than 1"),
    ],
)
def test_a_wrong_rule_is_named(wrong: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Rules(**wrong)
