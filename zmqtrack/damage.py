"""What the spool and the journal need to find damage in their SQLite files, and to save the rest.

SQLite notices a damaged page, but neither a changed byte inside a value (so each batch has a
checksum) nor a damaged write-ahead log: what follows the damage there is dropped in silence.
"""

from __future__ import annotations

import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["checksum", "dropped_commits", "is_sound", "readable_rows", "set_aside"]


def checksum(header: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(header))


def is_sound(db: sqlite3.Connection) -> bool:
    """Whether SQLite finds its own structures whole; reads all of the file."""
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError:
        return False


def dropped_commits(db: sqlite3.Connection, path: Path) -> int:
    """How many commits stand in the write-ahead log of ``path`` that SQLite did not take.

    ::

        WAL file: header of 32 bytes, then frames
        frame:    ┌─────────┬──────────────┬───────────┬───────────┬──────┐
                  │ page no │ size of file │ two salts │ checksums │ page │
                  │ 4 bytes │ 4, 0 unless  │ 4 + 4     │ 4 + 4     │      │
                  │         │ a commit     │           │           │      │
                  └─────────┴──────────────┴───────────┴───────────┴──────┘

    Frames that belong to this log have the header's salts. SQLite takes them up to the first
    whose checksum is wrong. A process that was killed leaves frames without a commit behind the
    last; a commit behind it means that a frame before was damaged.
    """
    try:
        log = Path(f"{path}-wal").read_bytes()
    except FileNotFoundError:
        return 0
    if len(log) < 32:
        return 0
    taken = max(0, db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
    page = struct.unpack_from(">I", log, 8)[0]
    if page not in (1 << bits for bits in range(9, 17)):
        page = db.execute("PRAGMA page_size").fetchone()[0]
    salts = log[16:24]
    dropped = 0
    for number, at in enumerate(range(32, len(log) - 24 - page + 1, 24 + page)):
        size, frame_salts = struct.unpack_from(">I8s", log, at + 4)
        if number >= taken and size and (frame_salts == salts or not taken):
            dropped += 1
    return dropped


def readable_rows(db: sqlite3.Connection, table: str, key: str) -> Iterator[tuple[Any, ...]]:
    """All rows that can still be read: up from the first, then down from the last."""
    seen: set[Any] = set()
    for order in ("ASC", "DESC"):
        try:
            for found, *row in db.execute(f"SELECT {key}, * FROM {table} ORDER BY {key} {order}"):
                if found in seen:
                    break
                seen.add(found)
                yield tuple(row)
        except sqlite3.DatabaseError:
            continue  # the damage: what lies beyond it is reached from the other end


def set_aside(path: Path) -> Path:
    """Rename a damaged file, with its log, so that a person can look at it; returns where."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{number}")
    for end in ("-wal", ""):
        source = Path(f"{path}{end}")
        if source.exists():
            source.rename(f"{aside}{end}")
    Path(f"{path}-shm").unlink(missing_ok=True)
    return aside
