"""Is there room for what comes in: in the journal, and on the disk?"""

from __future__ import annotations

import logging
import math
import time

from .journal import Journal

__all__ = ["Room"]

log = logging.getLogger("zmqtrack.daemon")

#: Wait after the disk refused a commit, in seconds.
DISK_PAUSE = 1.0
#: It is shown as full for so long: meanwhile every writer has tried again.
DISK_SHOWN = 30.0


class Room:
    """While there is none, writers are told to wait, and keep their records."""

    def __init__(self, journal: Journal, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        #: The journal had reached its limit when it was last looked at.
        self.journal_full = False
        self._journal = journal
        self._paused_until = -math.inf

    @property
    def none(self) -> bool:
        return self.journal_full or self._is_over() or self.disk_refused

    @property
    def disk_refused(self) -> bool:
        """The disk was full a moment ago: nothing is tried until it may have changed."""
        return time.monotonic() < self._paused_until

    @property
    def disk_full(self) -> bool:
        """As it is shown to people."""
        return time.monotonic() < self._paused_until + DISK_SHOWN

    def look(self) -> None:
        """After a trim; that it is full is said once."""
        full = self._is_over()
        if full and not self.journal_full:
            log.warning(
                "the journal holds %d bytes that not every adapter has (max_bytes %d): writers "
                "keep their records until there is room",
                self._journal.bytes,
                self.max_bytes,
            )
        self.journal_full = full

    def note_disk_full(self) -> None:
        self._paused_until = time.monotonic() + DISK_PAUSE

    def _is_over(self) -> bool:
        return self._journal.bytes >= self.max_bytes
