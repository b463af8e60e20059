"""SIGKILL of one worker after the other: what fails is what that worker had accepted."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.load.client import Fate, Load
from tests.load.killing import kill_at_rest
from tests.load.supervised import each_app, supervised

pytestmark = pytest.mark.slow

KILLS = 10


async def kill_again_and_again(app: str, policy: str, workers: int) -> tuple[Load, set[int]]:
    """Each kill when the last replacement is ready; what was lost, and what was accepted."""
    held: set[int] = set()
    with supervised(app, workers, policy, min_uptime=0) as program:
        alive = await program.until_ready(workers)
        load = Load(program.port, forgiving=True)
        async with load.running(new=4, hesitant=4, kept=2, lazy=2):
            for _ in range(KILLS):
                await load.more(30)
                victim = random.choice(alive)
                held |= await kill_at_rest(victim, program.port)
                death = await program.hear("death")
                assert (death["pid"], death["asked"]) == (victim, False)
                alive.remove(victim)
                alive += await program.until_ready(1)
            await load.more(30)
    return load, held


def only_what_was_accepted_is_lost(load: Load, held: set[int]) -> None:
    assert load.counts[Fate.REFUSED] == 0, load
    assert [lost for lost in load.lost if lost.port not in held] == [], load


@each_app("auto", "slots", "round_robin")
def test_a_kill_loses_nothing_but_what_the_worker_had_accepted(app: str, policy: str) -> None:
    only_what_was_accepted_is_lost(*asyncio.run(kill_again_and_again(app, policy, 2)))


@each_app("auto", "round_robin")
def test_the_only_worker_is_killed_and_nobody_is_refused(app: str, policy: str) -> None:
    only_what_was_accepted_is_lost(*asyncio.run(kill_again_and_again(app, policy, 1)))
