"""Rows: what a tool that logs in rows says in one call stays together on the way.

The records of a row have one time. The sender groups records by data type, so the metrics and
the images of a row travel in batches of their own; the header of each says whether its rows go
on in a later one (``rows`` in :mod:`zmqtrack.wire`). Nothing waits for a row to be whole: only
an adapter whose tracker has rows puts them together.

**Axes.** A metric's step may be the value of another metric of its row, its axis
(:class:`Axes`). An adapter is told by the tag ``define/PATTERN``: JSON with ``step_metric`` and
what else a tool defines of a metric.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence

from .records import Entry
from .wire import ROWS_GO_ON, ROWS_LAST_OPEN, ROWS_WHOLE

__all__ = ["DEFINE", "IN_ROWS", "Axes", "Rows"]

#: Data types whose records may stand in a row.
IN_ROWS = frozenset({"metric", "text", "image", "histogram"})
#: What the tags begin with that define metrics.
DEFINE = "define/"


class Rows:
    """A run's rows, as its writer tells them to its sender; a row is named by its time.

    ``together``: records of one time are a row. A row that is appended at once needs no more. Of
    another the writer appends to ``begun`` before its first record, and sets ``ended`` after its
    last.
    """

    def __init__(self) -> None:
        self.together = False
        self.begun: collections.deque[float] = collections.deque()
        self.ended: float | None = None
        self._whole: float | None = None  # the row that had ended when the sender began to take

    def before_taking(self) -> None:
        """By the sender: a row that has ended by now will be taken whole."""
        self._whole = self.ended

    def cut(self, records: list[Entry], limit: int) -> Iterator[list[Entry]]:
        """Parts of ``limit`` records; up to twice as many where a row would be cut."""
        start = 0
        while start < len(records):
            end = start + limit
            if self.together:
                while (
                    end < min(len(records), start + 2 * limit)
                    and records[end][3] == records[end - 1][3]
                ):
                    end += 1
            yield records[start:end]
            start = end

    def ends(self, parts: Sequence[tuple[str, Sequence[Entry]]]) -> list[int]:
        """How the rows of each batch end (:attr:`wire.Header.rows`), of all that go at a time."""
        marks = [0] * len(parts)
        if not self.together:
            return marks
        begun = [self.begun.popleft() for _ in range(len(self.begun))]
        if self._whole in begun:
            del begun[: begun.index(self._whole) + 1]
        self.begun.extendleft(reversed(begun))
        places = [place for place, (data_type, _) in enumerate(parts) if data_type in IN_ROWS]
        # The last batch with a row that is no later than one before it: rows are in order.
        reach, latest = -1, -math.inf
        for place in places if len(places) > 1 else ():
            times = [entry[3] for entry in parts[place][1]]
            if min(times) <= latest:
                reach = place
            latest = max(latest, *times)
        for place in places:
            marks[place] = ROWS_GO_ON if place < reach else ROWS_WHOLE
        if begun and places and max(parts[place][1][-1][3] for place in places) in begun:
            marks[places[-1]] = ROWS_LAST_OPEN
        return marks


class Axes:
    """Which metric is the axis of which, by name or by a pattern that ends in ``*``."""

    def __init__(self) -> None:
        self._defined: dict[str, str | None] = {}
        self._known: dict[str, str | None] = {}

    def define(self, pattern: str, step_metric: str | None) -> None:
        if step_metric is not None or pattern not in self._defined:
            self._defined[pattern] = step_metric
        self._known.clear()

    def __bool__(self) -> bool:
        return any(self._defined.values())

    def of(self, key: str) -> str | None:
        """The axis of ``key``; None: its row's own step."""
        try:
            return self._known[key]
        except KeyError:
            pass
        if len(self._known) > 100_000:
            self._known.clear()
        axis = self._known[key] = self._find(key)
        return axis

    def _find(self, key: str) -> str | None:
        if key in self._defined:
            return self._defined[key]
        globs = [p for p in self._defined if p.endswith("*") and key.startswith(p[:-1])]
        axis = self._defined[max(globs, key=len)] if globs else None
        return axis if axis != key else None
