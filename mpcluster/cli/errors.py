"""What ends a command with one sentence, and with which exit status.

::

    0      done as asked; a master that was told to stop has stopped
    1      it failed: the workers do not stay alive, a reload was given up
    2      it was called wrongly, or what it is to run is not there
    3      nobody is there to be asked
    130    a Ctrl-C has ended it (by that very signal, where it can)
"""

from __future__ import annotations

from typing import Final

__all__ = ["FAILED", "INTERRUPTED", "NOBODY_THERE", "WRONG", "CommandError"]

FAILED: Final = 1
WRONG: Final = 2
NOBODY_THERE: Final = 3
INTERRUPTED: Final = 130


class CommandError(Exception):
    """One sentence for the user, who needs no traceback.

    Args:
        sentence: What is wrong, and what to do next.
        status: The exit status.
    """

    def __init__(self, sentence: str, status: int = WRONG) -> None:
        super().__init__(sentence)
        self.status = status
