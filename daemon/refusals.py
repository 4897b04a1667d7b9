"""What was refused since the start: each reason is counted always, and logged without a flood."""

from __future__ import annotations

import collections
import logging
import time

__all__ = ["Refusals"]

log = logging.getLogger("zmqtrack.daemon")

#: One reason is logged at once and then at most so often (seconds), with the count since.
LOG_INTERVAL = 10.0


class Refusals:
    """Counts frames, batches or requests by reason."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._logged: dict[str, float] = {}

    def note(self, reason: str, detail: str) -> None:
        self.counts[reason] += 1
        now = time.monotonic()
        if now - self._logged.get(reason, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged[reason] = now
            log.warning("refused (%s, %d so far): %s", reason, self.counts[reason], detail)
