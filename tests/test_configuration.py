"""The settings of a cluster."""

from __future__ import annotations

import math
import pickle

import pytest

from mpcluster.configuration import Settings, changed

SECONDS = ("kill_timeout", "send_timeout", "listener_grace")


def test_changes_are_cumulative_and_leave_the_record_before_as_it_was() -> None:
    before = Settings()
    after = changed(changed(before, {"kill_timeout": 2}), {"channel_limit": 10})
    assert (after.kill_timeout, after.channel_limit) == (2, 10)
    assert before == Settings()


def test_a_record_cannot_be_changed_in_place() -> None:
    settings = Settings()
    with pytest.raises(AttributeError, match=r"changed by setup\(kill_timeout=3\)"):
        settings.kill_timeout = 3
    with pytest.raises(AttributeError, match="kill_timeout is a setting"):
        del settings.kill_timeout
    assert settings == Settings()


def test_a_record_survives_pickling_and_shows_what_it_holds() -> None:
    settings = Settings(kill_timeout=2)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert {settings, Settings(kill_timeout=2), Settings()} == {settings, Settings()}
    assert repr(settings).startswith("Settings(scheduling='auto', kill_timeout=2, channel_limit=")


def test_an_unknown_setting_is_refused_with_the_list_of_those_there_are() -> None:
    with pytest.raises(TypeError, match="no setting 'kill_time'; there are: scheduling, kill_tim"):
        changed(Settings(), {"kill_time": 3})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, math.nan])
def test_seconds_are_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative, not .* seconds"):
        changed(Settings(), {name: value})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["5", None, True, [1]])
def test_seconds_are_a_number(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not "):
        changed(Settings(), {name: value})


@pytest.mark.parametrize("value", [0, 0.0, 3, math.inf])
def test_zero_and_for_ever_are_seconds(value: float) -> None:
    assert changed(Settings(), {"kill_timeout": value}).kill_timeout == value


@pytest.mark.parametrize("value", ["1", 1.5, None, True])
def test_a_limit_is_a_whole_number_of_bytes(value: object) -> None:
    with pytest.raises(TypeError, match="channel_limit must be a number of bytes, not "):
        changed(Settings(), {"channel_limit": value})


@pytest.mark.parametrize("value", [0, -5])
def test_a_limit_is_at_least_one_byte(value: int) -> None:
    with pytest.raises(ValueError, match="channel_limit must"):
        changed(Settings(), {"channel_limit": value})


def test_a_change_that_fails_changes_nothing() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="must not be negative"):
        changed(settings, {"kill_timeout": 1, "send_timeout": -1})
    assert settings == Settings()


@pytest.mark.parametrize("value", ["c", "Kernel", ""])
def test_what_is_shared_is_one_of_two(value: str) -> None:
    with pytest.raises(ValueError, match="share must be one of python, kernel, not "):
        changed(Settings(), {"share": value})


@pytest.mark.parametrize("value", [None, True, 1])
def test_what_is_shared_is_a_word(value: object) -> None:
    with pytest.raises(TypeError, match="share must be one of python, kernel, not "):
        changed(Settings(), {"share": value})
