"""History rows as W&B's adapter puts them together, and the names of the records in them.

The records of a row come in several batches, one for each data type, perhaps in several
deliveries; a batch's header says whether its rows go on (``rows`` in :mod:`zmqtrack.wire`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from zmqtrack.wire import ROWS_GO_ON, ROWS_LAST_OPEN, Batch

__all__ = ["Row", "Rows", "names_in"]


@dataclass
class Row:
    """A history row; ``step`` is None where no record of it has a step of the row's own."""

    stream: str
    time: float
    offset: int = 0
    step: int | None = None
    stepped: bool = False  # a record without an axis has told the step
    whole: bool = False  # of a tool that logs in rows
    columns: dict[str, Any] = field(default_factory=dict)
    places: list[list[int]] = field(default_factory=list)  # seq, first place, records

    def takes(self, column: str, step: int | None, on_axis: bool) -> bool:
        return column not in self.columns and (on_axis or not self.stepped or self.step == step)

    def add(self, column: str, value: Any, step: int | None, on_axis: bool) -> None:
        self.columns[column] = value
        if not on_axis:
            self.step, self.stepped = step, True

    def note(self, batch: Batch, place: int) -> None:
        """Remember that the record at ``place`` of ``batch`` is in this row."""
        seq, last = batch.header.seq, self.places[-1] if self.places else [0, 0, 0]
        if last[0] == seq and last[1] + last[2] == place:
            last[2] += 1
        else:
            self.places.append([seq, place, 1])
        self.offset = max(self.offset, batch.header.offset)

    def id(self) -> str:
        """``STREAM/SEQ/PLACE+COUNT,…@OFFSET``."""
        places = ",".join(f"{seq}/{place}+{count}" for seq, place, count in self.places)
        return f"{self.stream}/{places}@{self.offset}"

    def names(self) -> Iterator[str]:
        for seq, place, count in self.places:
            for number in range(place, place + count):
                yield f"{self.stream}/{seq}/{number}"


def names_in(ident: str, columns: int) -> tuple[list[str], int]:
    """The names of the records in a row with this id, and its offset.

    An id without counts is of an earlier version, where a row's ``columns`` were its records.
    """
    places, _, offset = ident.rpartition("@")
    stream, _, places = places.partition("/")
    names: list[str] = []
    for part in places.split(","):
        seq, _, place = part.partition("/")
        first, plus, count = place.partition("+")
        span = range(int(first), int(first) + (int(count) if plus else columns))
        names += [f"{stream}/{seq}/{number}" for number in span]
    return names, int(offset)


class Rows:
    """The rows of one run that may still go on, in order."""

    def __init__(self, held: list[dict[str, Any]]) -> None:
        self._rows = [Row(**row) for row in held]
        self._latest = {(row.stream, row.time): row for row in self._rows}
        self._parted = bool(held)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def find(self, batch: Batch, time: float, column: str, step: int | None, on_axis: bool) -> Row:
        """The row of that time that takes ``column``, else a new one.

        Of a tool that does not log in rows, only records that follow on each other make one.
        """
        stream = batch.header.stream.hex()
        row = self._latest.get((stream, time))
        if not batch.header.rows and (batch.type != "metric" or row is not self._last()):
            row = None
        if row is None or not row.takes(column, step, on_axis):
            row = Row(stream, time, whole=batch.header.rows > 0)
            self._rows.insert(self._place(time), row)
            self._latest[stream, time] = row
        return row

    def _place(self, time: float) -> int:
        """Where a new row belongs: last, but in a later batch behind those of its time."""
        place = len(self._rows)
        while self._parted and place and self._rows[place - 1].time > time:
            place -= 1
        return place

    def _last(self) -> Row | None:
        return self._rows[-1] if self._rows else None

    def take(self, batch: Batch | None = None) -> list[Row]:
        """The rows that go no further than ``batch``; without one: all."""
        ends = batch.header.rows if batch is not None else 0
        if batch is not None and self._last_seq(batch.header.stream) > batch.header.seq:
            return []  # it came again, and says nothing of later ones
        if ends == ROWS_GO_ON:
            self._parted = True
            return []
        rows = self._rows
        left = rows[-1:] if ends == ROWS_LAST_OPEN else []
        self._parted = bool(left)
        rows = rows[: len(rows) - len(left)]
        self._rows, self._latest = left, {(row.stream, row.time): row for row in left}
        return rows

    def _last_seq(self, stream: bytes) -> int:
        places = (row.places[-1][0] for row in self._rows if row.stream == stream.hex())
        return max(places, default=0)

    def held(self) -> list[dict[str, Any]]:
        """What :class:`Rows` is made from again."""
        return [asdict(row) for row in self._rows]

    def names(self) -> Iterator[str]:
        for row in self._rows:
            yield from row.names()
