"""Which worker is to be started, replaced or ended: decided here, done elsewhere.

A :class:`Fleet` knows the slots, who is in them, and what was asked for. Each method takes
what has happened and returns what is to be done about it, in order (:mod:`.orders`);
nothing is forked, sent or waited for in here, and the time is an argument. So every case
can be tried with a stand-in for a worker.

Rolls (a reload of all slots, the replacement of one worker that has reached a limit) wait
in one queue and go one slot at a time: the replacement is started, gets ready and takes
over, then the old one is asked to leave. A roll is over when no worker that was asked to leave
until then takes a connection any more; that the next one begins does not wait for that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .orders import Fail, Finish, Kill, Later, Order, Retire, Roll, Start, WorkerLike
from .rules import Rules
from .slot import SlotState, SlotStep, advance
from .streak import Streak

__all__ = ["Fleet", "Member", "Slot"]


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the fleet, from its fork to its death."""

    worker: WorkerLike
    slot: int
    started: float
    ready_since: float | None = None
    parked: bool = False  # it leaves, and takes no new connection any more
    was_ended: bool = False  # by this supervisor: its death is no crash
    fault: str | None = None  # for which it was ended

    @property
    def name(self) -> str:
        """As the log and errors call it."""
        return f"worker {self.worker.id} (pid {self.worker.pid}, slot {self.slot})"


class Slot:
    """One place for a worker; see :mod:`.slot` for its life."""

    def __init__(self, number: int, rules: Rules) -> None:
        self.number = number
        self.state = SlotState.EMPTY
        self.streak = Streak(rules)
        self.serving: Member | None = None
        self.incoming: Member | None = None
        self.restarts = 0
        self.trouble: str | None = None  # the last that went wrong

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.state.value}>"

    def step(self, step: SlotStep) -> None:
        """Advance its state."""
        self.state = advance(self.state, step)


class Fleet:
    """The slots of one supervisor and who is in them.

    Args:
        rules: What to keep to.
        size: How many slots there are to be.
    """

    def __init__(self, rules: Rules, size: int) -> None:
        self._rules = rules
        self.slots: dict[int, Slot] = {number: Slot(number, rules) for number in range(size)}
        self.members: dict[int, Member] = {}
        self._rolls: deque[Roll] = deque()
        # Rolls that are through all their slots, and which old workers each waits for.
        self._settling: dict[Roll, frozenset[int]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Fleet {list(self.slots.values())} {len(self.members)} workers>"

    @property
    def roll(self) -> Roll | None:
        """The roll that is under way."""
        return self._rolls[0] if self._rolls else None

    @property
    def at_work(self) -> str | None:
        """Why workers are just replaced, or the old ones are waited for; None: they are not."""
        return next((roll.reason for roll in (*self._rolls, *self._settling)), None)

    @property
    def is_over(self) -> bool:
        """Is no worker left, and none to come? (With no slots it waits for more.)"""
        states = {slot.state for slot in self.slots.values()}
        return (self._closed or states == {SlotState.CLOSED}) and not self.members

    # -- what is asked for -------------------------------------------------------------------

    def fill(self) -> list[Order]:
        """Start a worker for each empty slot."""
        empty = [slot for slot in self.slots.values() if slot.state is SlotState.EMPTY]
        return [self._start(slot) for slot in empty]

    def scale(self, size: int) -> list[Order]:
        """Have ``size`` slots: fill new ones, retire those with the highest numbers."""
        if self._closed:
            return []
        orders: list[Order] = []
        for number in [number for number in self.slots if number >= size]:
            orders += self._close(self.slots[number])
            del self.slots[number]
        for number in range(size):
            if number not in self.slots:
                slot = self.slots[number] = Slot(number, self._rules)
                orders.append(self._start(slot))
        return orders + self._go_on()

    def close(self) -> list[Order]:
        """Retire everybody, and start nobody any more."""
        self._closed = True
        orders: list[Order] = []
        for slot in self.slots.values():
            orders += self._close(slot)
        rolls, self._rolls = self._rolls, deque()
        return orders + [Finish(roll, "the supervisor was stopped") for roll in rolls]

    def reload(self, reason: str = "reload") -> tuple[Roll, list[Order]]:
        """Replace every worker, slot by slot.

        One that waits already is joined; one that is under way has begun with code that may
        be old by now, so another follows it.
        """
        for waiting in list(self._rolls)[1:]:
            if waiting.reason == reason:
                return waiting, []
        roll = Roll(sorted(self.slots), reason)
        return roll, self._enqueue(roll)

    def recycle(self, worker_id: int, reason: str) -> tuple[Roll, list[Order]] | None:
        """Replace one worker that has reached a limit; None if that is under way, or no use."""
        member = self.members.get(worker_id)
        if member is None:
            return None
        slot = self.slots.get(member.slot)
        if slot is None or slot.serving is not member or slot.state is not SlotState.READY:
            return None
        if any(slot.number in (*roll.left, roll.under_way) for roll in self._rolls):
            return None
        roll = Roll([slot.number], reason)
        return roll, self._enqueue(roll)

    # -- what has happened -------------------------------------------------------------------

    def started(self, number: int, worker: WorkerLike, now: float) -> list[Order]:
        """A worker was forked for a slot."""
        assert worker.id is not None
        member = Member(worker, number, now)
        self.members[worker.id] = member
        slot = self.slots.get(number)
        if slot is None or slot.state is SlotState.CLOSED:
            return self._retire(member)
        if slot.state is SlotState.ROLLING:
            slot.incoming = member
        else:
            slot.serving = member
        return []

    def could_not_start(self, number: int, trouble: str) -> list[Order]:
        """No worker could be forked for a slot."""
        slot = self.slots.get(number)
        if slot is None or slot.state is SlotState.CLOSED:
            return []
        slot.trouble = trouble
        orders = self._fail_roll(slot, trouble)
        if slot.state is SlotState.ROLLING:
            slot.step(SlotStep.FAIL_TO_ROLL)
        else:
            slot.step(SlotStep.DIE)
            orders += self._start_again(slot, None)
        return orders + self._go_on()

    def got_ready(self, worker_id: int, now: float) -> list[Order]:
        """A worker is ready."""
        member = self.members.get(worker_id)
        slot = None if member is None else self.slots.get(member.slot)
        if member is None or slot is None or member.ready_since is not None:
            return []
        if member not in (slot.serving, slot.incoming) or slot.state is SlotState.CLOSED:
            return []
        member.ready_since = now
        orders: list[Order] = []
        if member is slot.incoming:
            slot.step(SlotStep.TAKE_OVER)
            old, slot.serving, slot.incoming = slot.serving, member, None
            assert old is not None
            orders += self._retire(old)
        else:
            slot.step(SlotStep.GET_READY)
        roll = self.roll
        if roll is not None and roll.under_way == slot.number:
            roll.under_way = None
            slot.streak.end()
            slot.trouble = None
        return orders + self._go_on()

    def ready_overdue(self, worker_id: int) -> list[Order]:
        """A worker has taken longer than it may to get ready: end it, if it is a replacement."""
        member = self.members.get(worker_id)
        slot = None if member is None else self.slots.get(member.slot)
        if member is None or slot is None or member.ready_since is not None:
            return []
        roll = self.roll
        rolled = roll is not None and roll.under_way == slot.number
        if member is slot.incoming or (rolled and member is slot.serving):
            member.fault = f"was not ready after {self._rules.ready_timeout:g} s"
            return [Kill(member.worker, member.fault)]
        return []

    def parked(self, worker_id: int) -> list[Order]:
        """A worker leaves, and takes no new connection any more."""
        member = self.members.get(worker_id)
        if member is not None:
            member.parked = True
        return self._settle()

    def died(self, worker_id: int, ending: str, *, crashed: bool, now: float) -> list[Order]:
        """A worker is gone.

        Args:
            worker_id: Whose id.
            ending: How, for the log: ``"was killed by SIGSEGV"``.
            crashed: Not with exit code 0.
            now: Monotonic seconds.
        """
        member = self.members.pop(worker_id, None)
        if member is None:
            return []
        return self._lose(member, ending, crashed=crashed, now=now) + self._settle()

    def _lose(self, member: Member, ending: str, *, crashed: bool, now: float) -> list[Order]:
        slot = self.slots.get(member.slot)
        if slot is None:
            return []
        if member.fault is not None:
            ending = f"{member.fault}, and {ending}"
        if member is slot.incoming:
            slot.incoming = None
            if slot.state is SlotState.ROLLING:
                slot.step(SlotStep.FAIL_TO_ROLL)
                return self._fail_roll(slot, f"the new {member.name} {ending}") + self._go_on()
            return []
        if member is not slot.serving:
            return []  # it had left its place before
        slot.serving = None
        if slot.state is SlotState.CLOSED:
            return []
        slot.step(SlotStep.DIE)
        slot.restarts += 1
        if slot.state is SlotState.BOOTING:  # the one that was to take its place does so now
            slot.serving, slot.incoming = slot.incoming, None
            return []
        if member.was_ended:
            return [self._start(slot)]
        slot.trouble = f"{member.name} {ending}"
        orders: list[Order] = []
        if member.ready_since is None:
            orders += self._fail_roll(slot, slot.trouble)
        if self._rules.restart == "never" or (self._rules.restart == "on-failure" and not crashed):
            slot.step(SlotStep.CLOSE)
        else:
            uptime = None if member.ready_since is None else now - member.ready_since
            orders += self._start_again(slot, uptime)
        return orders + self._go_on()

    def due(self, number: int) -> list[Order]:
        """The time that a slot had to wait is over."""
        slot = self.slots.get(number)
        if slot is None or slot.state is not SlotState.WAITING:
            return []
        return [self._start(slot)]

    # -- what follows ------------------------------------------------------------------------

    def _close(self, slot: Slot) -> list[Order]:
        slot.step(SlotStep.CLOSE)
        orders: list[Order] = []
        for member in (slot.incoming, slot.serving):
            if member is not None:
                orders += self._retire(member)
        return orders

    def _retire(self, member: Member) -> list[Order]:
        member.was_ended = True
        return [Retire(member.worker)]

    def _start(self, slot: Slot) -> Start:
        slot.step(SlotStep.ROLL if slot.state is SlotState.READY else SlotStep.START)
        return Start(slot.number)

    def _start_again(self, slot: Slot, uptime: float | None) -> list[Order]:
        wait = slot.streak.died(uptime)
        if wait is None:
            slot.step(SlotStep.GIVE_UP)
            return self._look_for_hope()
        if not wait:
            return [self._start(slot)]
        slot.step(SlotStep.WAIT)
        return [Later(wait, slot.number)]

    def _look_for_hope(self) -> list[Order]:
        open_slots = [one for one in self.slots.values() if one.state is not SlotState.CLOSED]
        if any(slot.state is not SlotState.GIVEN_UP for slot in open_slots):
            return []
        last = next(slot for slot in reversed(open_slots))
        return [
            Fail(
                f"every worker ended {self._rules.max_crashes} times in a row without being "
                f"ready for {self._rules.min_uptime:g} s; the last: {last.trouble}"
            )
        ]

    def _enqueue(self, roll: Roll) -> list[Order]:
        self._rolls.append(roll)
        return self._go_on()

    def _fail_roll(self, slot: Slot, why: str) -> list[Order]:
        """The replacement of this slot is not to be had: leave the others as they are."""
        roll = self.roll
        if roll is None or roll.under_way != slot.number:
            return []
        self._rolls.popleft()
        return [Finish(roll, why)]

    def _go_on(self) -> list[Order]:
        """Go on with the roll: the next slot, or the next roll."""
        orders: list[Order] = []
        while (roll := self.roll) is not None:
            under_way = roll.under_way
            if under_way is not None:
                slot = self.slots.get(under_way)
                if slot is not None and slot.state not in {SlotState.CLOSED, SlotState.GIVEN_UP}:
                    break
                roll.under_way = None  # the slot went away meanwhile
            if roll.left:
                slot = self.slots.get(roll.left.popleft())
                if slot is not None:
                    orders += self._begin_slot(roll, slot)
            else:
                self._rolls.popleft()
                leaving = (key for key, member in self.members.items() if member.was_ended)
                self._settling[roll] = frozenset(leaving)
                orders += self._settle()
        return orders

    def _settle(self) -> list[Order]:
        """Finish the rolls whose old workers take no connection any more."""
        taking = {key for key, member in self.members.items() if not member.parked}
        over = [roll for roll, old in self._settling.items() if not old & taking]
        for roll in over:
            del self._settling[roll]
        return [Finish(roll, None) for roll in over]

    def _begin_slot(self, roll: Roll, slot: Slot) -> list[Order]:
        if slot.state is SlotState.CLOSED:
            return []
        roll.under_way = slot.number
        slot.streak.end()
        if slot.state is SlotState.BOOTING:
            if slot.serving is None:
                return []  # its start is the order before this one
            # It serves nobody yet, and has begun with what was there before.
            slot.serving.was_ended = True
            return [Kill(slot.serving.worker, "is replaced before it was ready")]
        return [self._start(slot)]
