"""One line at the bottom of a terminal on which others print."""

from __future__ import annotations

import os
import sys

__all__ = ["LastLine"]


class LastLine:
    """The terminal scrolls only the lines above it, so nothing that others print is disturbed.

    Draws on stderr, and only while this process is in the terminal's foreground.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._terminal = sys.stderr.fileno() if sys.stderr else -1
        self._wanted = (
            wanted and os.isatty(self._terminal) and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._rows = 0  # of the terminal when the line was reserved; 0: it is not

    @property
    def wanted(self) -> bool:
        """Whether somebody can see it."""
        return self._wanted and self._in_foreground()

    def show(self, text: str) -> None:
        """Replace what it says; nothing else moves. ``text`` is ASCII."""
        if not self.wanted:
            self.clear()  # sent to the background: the terminal is the shell's
            return
        columns, rows = os.get_terminal_size(self._terminal)
        if rows < 5:
            return
        reserve = ""
        if rows != self._rows:
            # Room below the cursor (ESC D, then one up), and the scrolling ends above the last
            # row. Setting that moves the cursor: it is kept (ESC 7) and put back (ESC 8).
            reserve = f"\x1bD\x1b7\x1b[1;{rows - 1}r\x1b8\x1b[A"
            self._rows = rows
        shown = text[: columns - 1]
        self._write(f"{reserve}\x1b7\x1b[{rows};1H\x1b[2K\x1b[2m{shown}\x1b[m\x1b8")

    def clear(self) -> None:
        """Give the row back."""
        if self._rows:
            self._write(f"\x1b7\x1b[r\x1b[{self._rows};1H\x1b[2K\x1b8")
            self._rows = 0

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError:  # not our terminal, or it has gone
            return False

    def _write(self, text: str) -> None:
        try:
            os.write(self._terminal, text.encode("ascii", "replace"))  # at once, or not at all
        except OSError:
            self._wanted = False  # the terminal has gone
