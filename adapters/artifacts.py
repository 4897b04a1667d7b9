"""Files that arrive in pieces, put together on disk before an adapter sees them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zmqtrack.records import Record
from zmqtrack.wire import Batch

from .base import Context

__all__ = ["Assembler"]


class Assembler:
    """Replaces pieces of artifacts by whole files.

    Pieces are written at their offset, so that the same piece may come again; what is
    incomplete survives a restart in ``state_dir``. Finished files are removed once the cursor
    has passed them.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.state_dir / "incoming"
        self._folder.mkdir(parents=True, exist_ok=True)

    def assemble(self, batch: Batch) -> Batch:
        """The batch with one record for each file that is complete now."""
        touched: set[Path] = set()
        whole = [done for record in batch if (done := self._add(batch, record, touched))]
        for path in touched:  # the cursor must not pass a piece that a power cut could take
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        return replace(batch, records=whole)

    def _add(self, batch: Batch, record: Record, touched: set[Path]) -> Record | None:
        offset, size, piece = record.value
        # All pieces of one call to log_artifact carry its time.
        ident = f"{record.key}\0{record.time!r}\0{size}".encode()
        path = self._folder / hashlib.sha256(batch.header.stream + ident).hexdigest()[:40]
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < offset:
                self._context.count("artifact_incomplete")
                return None
            os.pwrite(fd, piece, offset)
        finally:
            os.close(fd)
        touched.add(path)
        if offset + len(piece) < size:
            return None
        return Record(record.key, path, record.step, record.time)

    def committed(self, batches: Sequence[Batch]) -> None:
        """The cursor has passed these batches: their files are no longer needed."""
        for batch in batches:
            if batch.type == "artifact":
                for record in batch:
                    record.value.unlink(missing_ok=True)
