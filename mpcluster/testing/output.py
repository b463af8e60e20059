"""What workers write to the terminal (``-s``), line by line, with their names in front."""

from __future__ import annotations

import codecs
import sys
from typing import Any

import pytest

__all__ = ["Lines"]


class Lines:
    """Writes whole lines of many workers to one terminal. In the controller's main thread."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._pending: dict[tuple[str, int], str] = {}
        self._decoders: dict[tuple[str, int], Any] = {}

    def write(self, name: str, stream: int, data: bytes) -> None:
        """Write the lines that ``data`` completes; keep the rest until its line is whole.

        Args:
            name: The worker's id.
            stream: 1 or 2: stdout and stderr come by pipes of their own, and what one of them
                has begun is not for the other to complete.
        """
        source = (name, stream)
        decoder = self._decoders.get(source)
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            self._decoders[source] = decoder
        text = self._pending.pop(source, "") + decoder.decode(data)
        *whole, rest = text.split("\n")
        if rest:
            self._pending[source] = rest
        self._show(name, whole)

    def finish(self) -> None:
        """Write what never came to the end of its line."""
        for (name, _), rest in self._pending.items():
            self._show(name, [rest])
        self._pending.clear()

    def _show(self, name: str, lines: list[str]) -> None:
        if not lines:
            return
        text = "".join(f"[{name}] {line}\n" for line in lines)
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        # A progress dot may stand on this line.
        writer = self._config.get_terminal_writer()
        if writer.width_of_current_line:
            writer.line()
        writer.write(text, flush=True)
