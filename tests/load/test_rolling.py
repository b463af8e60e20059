"""Reloads and scaling under load: no request fails, whoever asks in whatever way."""

from __future__ import annotations

import asyncio

import pytest

from tests.load.client import Fate, Load
from tests.load.supervised import each_app, supervised

pytestmark = pytest.mark.slow

RELOADS = 20

#: Answers between two changes: the new workers' and those of the ones that leave.
SOME = 20


async def reload_again_and_again(app: str, policy: str) -> Load:
    """Each reload begins when some were answered by the last one's workers, and others drain."""
    with supervised(app, 2, policy) as program:
        await program.until_ready(2)
        load = Load(program.port)
        async with load.running(new=3, hesitant=2, kept=3, lazy=2):
            for _ in range(RELOADS):
                await load.more(SOME)
                program.order("reload")
                assert (await program.hear("reload"))["error"] is None
            await load.more(SOME)
            deaths = [await program.hear("death") for _ in range(2 * RELOADS)]
        assert all(death["asked"] and death["exitcode"] == 0 for death in deaths), deaths
        program.order("stop")
        await program.hear("stopped")
        assert await asyncio.to_thread(program.stop) == 0
    return load


async def scale(app: str, policy: str) -> Load:
    """Two workers, six, one, four."""
    with supervised(app, 2, policy) as program:
        await program.until_ready(2)
        load = Load(program.port)
        async with load.running(new=3, hesitant=2, kept=3, lazy=2):
            await load.more(SOME)
            program.order("scale 6")
            await program.until_ready(4)
            await load.more(SOME)
            program.order("scale 1")
            deaths = [await program.hear("death") for _ in range(5)]
            assert all(death["asked"] and death["exitcode"] == 0 for death in deaths), deaths
            await load.more(SOME)
            program.order("scale 4")
            await program.until_ready(3)
            await load.more(SOME)
    return load


@each_app("auto", "round_robin")
def test_no_request_is_lost_in_twenty_reloads(app: str, policy: str) -> None:
    load = asyncio.run(reload_again_and_again(app, policy))
    assert load.lost == []
    assert load.counts[Fate.STALE] == 0, load


@each_app("auto", "round_robin")
def test_no_request_is_lost_while_workers_come_and_go(app: str, policy: str) -> None:
    load = asyncio.run(scale(app, policy))
    assert load.lost == []
    assert load.counts[Fate.STALE] == 0, load
