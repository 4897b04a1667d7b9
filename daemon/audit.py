"""Who came, who was refused and why: JSON lines in ``audit.jsonl``, rotated."""

from __future__ import annotations

import json
import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

__all__ = ["Audit"]

#: Size at which a file is put aside, and how many of those are kept.
BYTES = 10 << 20
KEPT = 5
#: The same from the same is written once and then at most so often (seconds), with a count.
INTERVAL = 10.0
#: Different events that are remembered for that.
REMEMBERED = 10_000


class _Handler(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk, or no file to be had: what was to be noted is not worth the daemon."""


class Audit:
    """The file in ``state_dir``; writing to it never raises."""

    def __init__(self, state_dir: Path) -> None:
        self._handler = _Handler(
            state_dir / "audit.jsonl", maxBytes=BYTES, backupCount=KEPT, encoding="utf-8",
            errors="backslashreplace",
        )  # fmt: skip
        (state_dir / "audit.jsonl").chmod(0o600)
        self._seen: dict[tuple[Any, ...], list[float]] = {}

    def write(self, event: str, name: str, reason: str, **facts: Any) -> None:
        """``name`` is whom it is about, as far as that is known."""
        now = time.monotonic()
        what = (event, name, reason, facts.get("address"), facts.get("socket"))
        when, unsaid = self._seen.get(what, (-INTERVAL, 0))
        if now - when < INTERVAL:
            self._seen[what] = [when, unsaid + 1]
            return
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[what] = [now, 0]
        line = {"time": time.time(), "event": event, "name": name, "reason": reason, **facts}
        if unsaid:
            line["repeated"] = unsaid
        text = json.dumps({k: v for k, v in line.items() if v not in (None, "")})
        self._handler.handle(logging.makeLogRecord({"msg": text, "name": "audit"}))

    def close(self) -> None:
        self._handler.close()
