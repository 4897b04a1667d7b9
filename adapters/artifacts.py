"""Files and large values arrive in pieces, and are put together on disk for an adapter."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

from zmqtrack import wire
from zmqtrack.records import Record
from zmqtrack.wire import Batch

from .base import Context

__all__ = ["Assembler"]

#: What has had no piece for so long (seconds) is given up: a writer's spool may have shed one.
STALE = 30 * 86400.0
#: How often that is looked at.
LOOK = 3600.0


class Assembler:
    """Replaces pieces by what they are pieces of: a file by its path, a value by itself.

    Pieces are written at their offset, so that the same piece may come again; what is
    incomplete survives a restart in ``state_dir``. What was whole is removed once the cursor
    has passed it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.state_dir / "incoming"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._whole: list[Path] = []  # to be removed with the next commit
        self._look_due = 0.0

    def assemble(self, batch: Batch) -> Batch:
        """The batch with one record for each file or value that is complete now, with its path."""
        touched: set[Path] = set()
        whole = [done for record in batch if (done := self._add(batch, record, touched))]
        for path in touched:  # the cursor must not pass a piece that a power cut could take
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        return replace(batch, records=whole)

    def _add(self, batch: Batch, record: Record, touched: set[Path]) -> Record | None:
        offset, size, piece, *number = record.value
        path = self._folder / self._name(batch, record, size, number)
        last = offset + len(piece) >= size
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            missing = os.fstat(fd).st_size < offset
            if not missing:
                os.pwrite(fd, piece, offset)
        finally:
            os.close(fd)
        if missing:  # one before it was given up on the way
            if last:
                path.unlink()
                self._context.count("artifact_incomplete" if not number else "value_incomplete")
            return None
        touched.add(path)
        if not last:
            return None
        self._whole.append(path)
        return Record(record.key, path, record.step, record.time)

    def _name(self, batch: Batch, record: Record, size: int, number: list[int]) -> str:
        # All pieces of one call to log_artifact carry its time; those of a value, its number.
        ident = f"{record.key}\0{record.time!r}\0{size}"
        if number:
            ident += f"\0{batch.type}\0{number[0]}"
        return hashlib.sha256(batch.header.stream + ident.encode()).hexdigest()[:40]

    def committed(self) -> None:
        """The cursor has passed all that was whole: it is no longer needed here."""
        for path in self._whole:
            path.unlink(missing_ok=True)
        self._whole = []
        if time.monotonic() >= self._look_due:
            self._look_due = time.monotonic() + LOOK
            self._give_up_stale()

    def _give_up_stale(self) -> None:
        for path in self._folder.iterdir():
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
                self._context.count("value_incomplete")


def load(data_type: str, record: Record) -> Record:
    """A record with the value that stands, as it was packed, in the file that it names.

    Raises:
        FrameError: it is no such value.
    """
    with record.value.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
        return record._replace(value=wire.decode_value(data_type, record.key, m))
