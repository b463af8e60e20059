"""Slots that are kept filled: restarts, limits, a heartbeat, rolling reloads.

::

    slot, streak, rules, orders     what a slot goes through, when it is filled again,
                                    what is asked for, what is to be done: values
    fleet                           decides
    pulse, usage, checkup           looks at those that run
    supervisor                      hears, and does
"""

from __future__ import annotations

from .rules import Rules
from .slot import SlotState
from .supervisor import SlotStatus, Supervisor

__all__ = ["Rules", "SlotState", "SlotStatus", "Supervisor"]
