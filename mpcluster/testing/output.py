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
        self._pending: dict[str, str] = {}
        self._decoders: dict[str, Any] = {}

    def write(self, name: str, data: bytes) -> None:
        """Write the lines that ``data`` completes; keep the rest until its line is whole."""
        decoder = self._decoders.get(name)
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            self._decoders[name] = decoder
        text = self._pending.pop(name, "") + decoder.decode(data)
        *whole, rest = text.split("\n")
        if rest:
            self._pending[name] = rest
        self._show(name, whole)

    def finish(self) -> None:
        """Write what never came to the end of its line."""
        for name, rest in self._pending.items():
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
