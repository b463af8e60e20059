"""How often a slot has lost its worker in a row, and what follows from it."""

from __future__ import annotations

from .rules import Rules

__all__ = ["Streak"]


class Streak:
    """The deaths of one slot's workers since the last one that was stable.

    Args:
        rules: The supervisor's.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.count = 0

    def __repr__(self) -> str:
        return f"<Streak {self.count} of {self._rules.max_crashes}>"

    def died(self, uptime: float | None) -> float | None:
        """Another one is gone; when shall the next start?

        Args:
            uptime: Seconds that it was ready; None if it never was.

        Returns:
            Seconds to wait, or None: it has been too often, give up.
        """
        if uptime is not None and uptime >= self._rules.min_uptime:
            self.count = 0
        self.count += 1
        if self.count >= self._rules.max_crashes:
            return None
        if self.count == 1:
            return 0.0
        # The exponent is bounded: a float overflows after a thousand doublings.
        doubled = self._rules.backoff * 2.0 ** min(self.count - 2, 64)
        return min(doubled, self._rules.max_backoff)

    def end(self) -> None:
        """Begin anew: somebody has changed something, and wants it tried again."""
        self.count = 0
