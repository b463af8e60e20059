"""Slots that are kept filled: restarts, limits, a heartbeat, rolling reloads.

::

    slot, streak, rules, orders     what a slot goes through, when it is filled again,
                                    what is asked for, what is to be done: values
    fleet                           decides
    pulse, usage, checkup           looks at those that run
    ledger, status                  what they did, what is to be seen of all that
    supervisor                      hears, and does
"""

from __future__ import annotations

from .rules import Rules
from .slot import SlotState
from .status import SlotStatus, WorkerStatus
from .supervisor import Supervisor

__all__ = ["Rules", "SlotState", "SlotStatus", "Supervisor", "WorkerStatus"]
