"""The daemon's durable, ordered log of batches: SQLite, one thread, an fsync per commit.

An interface with one embedded implementation: append, commit, read, streams, cursors. What
was appended is seen by readers only after :meth:`Journal.commit`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import uuid
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from zmqtrack import damage, wire
from zmqtrack.records import NOT_CARRIED

from .database import LAYOUT, JournalError, open_database

__all__ = ["Cursor", "DeadLetter", "Entry", "Journal", "JournalError", "Run", "Stream"]

log = logging.getLogger("zmqtrack.daemon")

#: Counters of one site, of each kind; the rest is counted together.
MAX_REASONS = 64


class Entry(NamedTuple):
    """One journalled batch: the frames as they are published, and where it stands."""

    offset: int
    type: str
    site: str
    header: bytes
    body: bytes


class Stream(NamedTuple):
    """What is known of one writer's life; ``seq`` is the last that is journalled."""

    seq: int
    run: tuple[str, str, str]
    records: int
    first_seen: float
    last_seen: float


class Run(NamedTuple):
    """What is known of a run key: all of it is durable.

    ``step`` is the highest that its records have, as far as their headers say. ``writers`` tells
    of those that wrote at the same time and belong to different jobs; nearly always nothing.
    """

    state: str = ""  # open, ended, left, killed; empty: nothing was taken of it
    records: int = 0
    step: int | None = None
    streams: int = 0
    last_seen: float = 0.0
    writers: bytes = b""


class Cursor(NamedTuple):
    """How far one adapter has come, with what it asked to keep with that.

    ``ident`` names this cursor: when it is lost with its journal, the next has another.
    """

    offset: int
    session: int
    note: bytes
    counters: dict[str, int]
    time: float
    ident: bytes = b""


class DeadLetter(NamedTuple):
    """What a tracker refused for good, and why: frames as they were published.

    ``place`` is where the first of its records stood in its batch.
    """

    id: int
    adapter: str
    type: str
    header: bytes
    body: bytes
    place: int
    reason: str
    time: float
    retry: int


class Journal:
    """Opened in ``state_dir``, which it locks against a second daemon.

    Raises:
        JournalError: it is in use (names the holder's PID), damaged, not ours, or no folder that
            can be written.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "journal.db"
        self._suspect = state_dir / "journal.suspect"  # damage was met: look closely at the start
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(state_dir / "lock")
        except OSError as error:
            why = "is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise JournalError(
                f"daemon.state_dir: {state_dir} cannot be used: {error.filename or 'it'}: {why}. "
                "Name a folder that this user can make, or write"
            ) from None
        try:
            self._db = open_database(self.path, self._suspect)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            if "epoch" not in meta:
                meta = {"epoch": uuid.uuid4().bytes, "layout": LAYOUT}
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            if meta.get("layout", LAYOUT) != LAYOUT:
                raise JournalError(
                    f"{self.path} has layout {meta['layout']}; this version reads {LAYOUT}"
                )
            #: Names this journal; a lost or restored one has another.
            self.epoch: bytes = meta["epoch"]
            #: Offset of the last committed batch; 0 if there never was one.
            self.head: int = max(
                self._db.execute("SELECT coalesce(max(offset), 0) FROM batch").fetchone()[0],
                meta.get("trimmed", 0),
                meta.get("floor", 0),
            )
            #: Batches that are held, and bytes of their bodies.
            self.batches: int
            self.bytes: int
            self.batches, self.bytes = self._db.execute(
                "SELECT count(*), coalesce(sum(length(body)), 0) FROM batch"
            ).fetchone()
        except sqlite3.Error as error:
            os.close(self._lock)
            raise JournalError(f"{self.path} cannot be used as the journal: {error}") from error
        except JournalError:
            os.close(self._lock)
            raise
        self._before = self.batches, self.bytes  # as of the last commit
        self._appended: list[Entry] = []
        self._streams: dict[bytes, Stream] = {}  # a cache of the table
        self._changed: dict[bytes, Stream] = {}  # what the commit writes to it
        #: What the commit adds to a run: records, step, streams, when.
        self._growth: dict[tuple[str, str, str], tuple[int, int | None, int, float]] = {}

    # --- batches ------------------------------------------------------------------------------

    def stream(self, stream: bytes) -> Stream | None:
        """What is known of a stream, appended and uncommitted batches included."""
        if known := self._changed.get(stream) or self._streams.get(stream):
            return known
        row = self._db.execute(
            "SELECT seq, experiment, run, site, records, first_seen, last_seen "
            "FROM stream WHERE id = ?",
            (stream,),
        ).fetchone()
        if row is None:
            return None
        found = Stream(row[0], (row[1], row[2], row[3]), *row[4:])
        self._remember(stream, found)
        return found

    def append(
        self, data_type: str, header: wire.Header, body: bytes, now: float, *, own: bool = False
    ) -> None:
        """Add a batch behind the last one. It counts after :meth:`commit`.

        One of the daemon's ``own`` is no record of its run, and no sign of life.
        """
        offset = self.head + len(self._appended) + 1
        header = header._replace(offset=offset, epoch=self.epoch)
        packed = wire.encode_header(header)
        self._advance(header, header.seq, header.count, now, own=own)
        self._db.execute(
            "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                offset,
                data_type,
                header.run.site,
                now,
                header.stream,
                header.seq,
                header.count,
                damage.checksum(data_type, packed, body),
                packed,
                body,
            ),
        )
        self.batches += 1
        self.bytes += len(body)
        self._appended.append(Entry(offset, data_type, header.run.site, packed, body))

    def check(self, stream: bytes, seq: int) -> int | None:
        """Checksum of the body that is held under a stream and seq; None if none is (any more)."""
        row = self._db.execute(
            "SELECT body FROM batch WHERE stream = ? AND seq = ?", (stream, seq)
        ).fetchone()
        return None if row is None else zlib.crc32(row[0])

    def skip(self, header: wire.Header, now: float) -> None:
        """Count ``header.seq`` as dealt with, without keeping a batch."""
        self._advance(header, header.seq, 0, now)

    def adopt(self, stream: bytes, seq: int, run: tuple[str, str, str], now: float) -> None:
        """Take a writer's word that another journal acknowledged its batches up to ``seq``."""
        self._begin()
        self._changed[stream] = Stream(seq, run, 0, now, now)
        self._grow(run, 0, None, 1, now)

    def commit(self) -> list[Entry]:
        """Make all that was appended durable, and return it.

        Raises:
            sqlite3.Error: nothing was committed, and nothing of it may be acknowledged.
        """
        if self._db.in_transaction:
            self._db.executemany(
                "INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(stream, new.seq, *new.run, *new[2:]) for stream, new in self._changed.items()],
            )
            self._db.executemany(
                "INSERT INTO run (experiment, run, site, records, step, streams, last_seen) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (experiment, run, site) DO UPDATE SET "
                "records = records + excluded.records, streams = streams + excluded.streams, "
                "step = max(coalesce(step, excluded.step), coalesce(excluded.step, step)), "
                "last_seen = max(last_seen, excluded.last_seen)",
                [(*run, *growth) for run, growth in self._growth.items()],
            )
            self._db.execute("COMMIT")
            for stream, new in self._changed.items():
                self._remember(stream, new)
            self._changed.clear()
            self._growth.clear()
        appended, self._appended = self._appended, []
        self.head += len(appended)
        self._before = self.batches, self.bytes
        return appended

    def rollback(self) -> None:
        """Drop what was appended since the last commit."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
            self.batches, self.bytes = self._before
        self._appended.clear()
        self._changed.clear()
        self._growth.clear()

    @property
    def dirty(self) -> bool:
        return self._db.in_transaction

    @property
    def pending(self) -> int:
        """Batches that were appended since the last commit."""
        return len(self._appended)

    def read(
        self,
        after: int,
        types: Collection[str] | None,
        max_bytes: int,
        sites: Collection[str] | None = None,
        max_batches: int = 500,
    ) -> tuple[list[Entry], int]:
        """Committed batches that follow ``after``, of the named data types and sites (None: all).

        Returns them with the offset up to which the journal has been looked through: at
        least the last batch's, at most :attr:`head`.

        Raises:
            JournalError: the file is damaged. The next start saves what can be read.
        """
        try:
            return self._read(after, types, max_bytes, sites, max_batches)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._suspect.touch()
            raise JournalError(
                f"{self.path} is damaged ({error}); start again to save what can be read of it"
            ) from error

    def _read(
        self,
        after: int,
        types: Collection[str] | None,
        max_bytes: int,
        sites: Collection[str] | None,
        max_batches: int,
    ) -> tuple[list[Entry], int]:
        wanted = "" if types is None else f" AND type IN ({','.join('?' * len(types))})"
        wanted += "" if sites is None else f" AND site IN ({','.join('?' * len(sites))})"
        rows = self._db.execute(
            "SELECT offset, type, site, header, body, checksum, records FROM batch "
            f"WHERE offset > ? AND offset <= ?{wanted} ORDER BY offset",
            (after, self.head, *(types or ()), *(sites or ())),
        )
        page: list[Entry] = []
        damaged: list[tuple[int, str, int]] = []
        size, upto = 0, self.head
        for *fields, checksum, records in rows:
            entry = Entry(*fields)
            if page and (len(page) >= max_batches or size + len(entry.body) > max_bytes):
                upto = entry.offset - 1
                break
            if damage.checksum(entry.type, entry.header, entry.body) != checksum:
                damaged.append((entry.offset, entry.site, records))
                continue
            page.append(entry)
            size += len(entry.body)
        rows.close()
        for offset, site, records in damaged:
            self._give_up(offset, site, records)
        return page, upto

    def _give_up(self, offset: int, site: str, records: int) -> None:
        """A batch that the disk no longer holds as it was written: count it, once."""
        log.error(
            "%s: the batch at offset %d is damaged; %d records of site %s are lost",
            self.path,
            offset,
            records,
            site,
        )
        self.count("journal_damaged", site, records)
        self._db.execute("DELETE FROM batch WHERE offset = ?", (offset,))

    def trim(self, delivered: int, before: float, retain: int, limit: int = 500) -> int:
        """Remove batches that every adapter has: older than ``before``, or beyond ``retain`` bytes.

        Oldest first, at most ``limit`` at a time; returns how many. It counts after
        :meth:`commit`.
        """
        rows = self._db.execute(
            "SELECT offset, time, length(body) FROM batch WHERE offset <= ? "
            "ORDER BY offset LIMIT ?",
            (min(delivered, self.head), limit),
        ).fetchall()
        gone, size, upto = 0, 0, 0
        for offset, when, length in rows:
            if when >= before and self.bytes - size <= retain:
                break
            gone, size, upto = gone + 1, size + length, offset
        if gone:
            self._begin()
            self._db.execute("DELETE FROM batch WHERE offset <= ?", (upto,))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('trimmed', ?)", (upto,))
            self.batches -= gone
            self.bytes -= size
        return gone

    # --- cursors ------------------------------------------------------------------------------

    def cursor(self, name: str) -> Cursor | None:
        row = self._db.execute(
            "SELECT offset, session, note, counters, time, ident FROM cursor WHERE name = ?",
            (name,),
        ).fetchone()
        return row and Cursor(row[0], row[1], row[2], msgpack.unpackb(row[3]), row[4], row[5])

    def set_cursor(self, name: str, cursor: Cursor) -> None:
        """Move a cursor; it counts after :meth:`commit`."""
        self._begin()
        self._db.execute(
            "INSERT OR REPLACE INTO cursor VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, *cursor[:3], msgpack.packb(cursor.counters), *cursor[4:]),
        )

    def drop_cursor(self, name: str) -> None:
        """Forget how far somebody has come; it counts after :meth:`commit`."""
        self._begin()
        self._db.execute("DELETE FROM cursor WHERE name = ?", (name,))

    def cursors(self) -> list[tuple[str, Cursor]]:
        names = [row[0] for row in self._db.execute("SELECT name FROM cursor ORDER BY name")]
        return [(name, cursor) for name in names if (cursor := self.cursor(name))]

    def bury(
        self,
        adapter: str,
        data_type: str,
        header: bytes,
        body: bytes,
        reason: str,
        now: float,
        place: int = 0,
    ) -> None:
        """Keep what a tracker refused for good, once; it counts after :meth:`commit`."""
        self._begin()
        self._db.execute(
            "INSERT INTO dead_letter (adapter, type, header, body, place, reason, time) "
            "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM dead_letter "
            "WHERE adapter = ?1 AND header = ?3 AND place = ?5 AND body = ?4)",
            (adapter, data_type, header, body, place, reason, now),
        )

    def dead_letters(
        self,
        adapter: str | None = None,
        ids: Collection[int] | None = None,
        *,
        brief: bool = False,
    ) -> list[DeadLetter]:
        """Those of one adapter or of all, or those with the given ids; oldest first.

        Brief: 1000 at most, without their bodies, and of the reason what fits a screen.
        """
        columns, most = "header, body, place, reason", -1
        if brief:
            columns, most = "header, x'', place, substr(reason, 1, 300)", 1000
        sql = f"SELECT id, adapter, type, {columns}, time, retry FROM dead_letter"
        values: tuple[Any, ...] = ()
        if ids is not None:
            sql, values = f"{sql} WHERE id IN ({','.join('?' * len(ids))})", tuple(ids)
        elif adapter is not None:
            sql, values = f"{sql} WHERE adapter = ?", (adapter,)
        return [
            DeadLetter(*row)
            for row in self._db.execute(f"{sql} ORDER BY id LIMIT ?", (*values, most))
        ]

    def count_dead_letters(self) -> dict[str, int]:
        """How many each adapter has."""
        return dict(self._db.execute("SELECT adapter, count(*) FROM dead_letter GROUP BY adapter"))

    def dead_letter_bytes(self) -> int:
        """Bytes of all dead letters, their reasons included."""
        size = "length(body) + length(header) + length(reason)"
        found = self._db.execute(f"SELECT coalesce(sum({size}), 0) FROM dead_letter").fetchone()
        return int(found[0])

    def retry(self, ids: Collection[int]) -> int:
        """Mark dead letters for their adapters to try again; returns how many there are."""
        self._begin()
        marks = ",".join("?" * len(ids))
        return self._db.execute(
            f"UPDATE dead_letter SET retry = 1 WHERE id IN ({marks})", tuple(ids)
        ).rowcount

    def to_retry(self, adapter: str, limit: int = 100) -> list[int]:
        return [
            row[0]
            for row in self._db.execute(
                "SELECT id FROM dead_letter WHERE adapter = ? AND retry = 1 ORDER BY id LIMIT ?",
                (adapter, limit),
            )
        ]

    def unbury(self, ids: Collection[int], adapter: str | None = None) -> int:
        """Remove dead letters, of one adapter or of any; returns how many there were."""
        self._begin()
        marks = ",".join("?" * len(ids))
        return self._db.execute(
            f"DELETE FROM dead_letter WHERE id IN ({marks}) AND adapter = coalesce(?, adapter)",
            (*ids, adapter),
        ).rowcount

    # --- what is shown ------------------------------------------------------------------------

    def count(self, reason: str, site: str, n: int) -> None:
        """Add to a durable counter; it counts after :meth:`commit`.

        A reason may be a writer's own word: so many of a site have counters of their own, as
        losses and as what is not carried.
        """
        self._begin()
        kind = NOT_CARRIED if reason.startswith(NOT_CARRIED) else ""
        reasons = self._db.execute(
            "SELECT count(*), coalesce(sum(reason = ?1), 0) FROM counter "
            "WHERE site = ?2 AND (substr(reason, 1, length(?3)) = ?3) = ?4",
            (reason, site, NOT_CARRIED, bool(kind)),
        ).fetchone()
        if reasons[0] >= MAX_REASONS and not reasons[1]:
            reason = f"{kind}other"
        self._db.execute(
            "INSERT INTO counter VALUES (?, ?, ?) "
            "ON CONFLICT (reason, site) DO UPDATE SET n = n + excluded.n",
            (reason, site, n),
        )

    def counters(self) -> list[tuple[str, str, int]]:
        """(reason, site, n): losses, and what is not carried (:data:`NOT_CARRIED`)."""
        return self._db.execute("SELECT reason, site, n FROM counter ORDER BY 1, 2").fetchall()

    def streams(self, limit: int) -> tuple[list[tuple[bytes, Stream]], int]:
        """The ``limit`` that were seen last, oldest first, and how many there are in all."""
        rows = self._db.execute(
            "SELECT * FROM (SELECT id, seq, experiment, run, site, records, first_seen, last_seen "
            "FROM stream ORDER BY last_seen DESC LIMIT ?) ORDER BY first_seen",
            (limit,),
        ).fetchall()
        total: int = self._db.execute("SELECT count(*) FROM stream").fetchone()[0]
        found = [(row[0], Stream(row[1], (row[2], row[3], row[4]), *row[5:])) for row in rows]
        return found, total

    def set_run(self, run: tuple[str, str, str], state: str) -> None:
        """As :class:`Run` has it; it counts after :meth:`commit`."""
        self._set_of_run(run, "state", state)

    def set_writers(self, run: tuple[str, str, str], writers: bytes) -> None:
        """Keep who writes to a run at the same time; it counts after :meth:`commit`."""
        self._set_of_run(run, "writers", writers)

    def _set_of_run(self, run: tuple[str, str, str], column: str, value: str | bytes) -> None:
        self._begin()
        self._db.execute(
            f"INSERT INTO run (experiment, run, site, {column}) VALUES (?1, ?2, ?3, ?4) "
            f"ON CONFLICT (experiment, run, site) DO UPDATE SET {column} = ?4",
            (*run, value),
        )

    def run_state(self, run: tuple[str, str, str]) -> str | None:
        row = self._db.execute(
            "SELECT state FROM run WHERE experiment = ? AND run = ? AND site = ?", run
        ).fetchone()
        return (row and str(row[0])) or None

    def open_runs(self) -> list[tuple[str, str, str]]:
        return self._db.execute(
            "SELECT experiment, run, site FROM run WHERE state = 'open'"
        ).fetchall()

    def runs(self, limit: int) -> tuple[list[tuple[tuple[str, str, str], Run]], int]:
        """The ``limit`` that were seen last, the latest first, and how many there are in all."""
        rows = self._db.execute(
            "SELECT experiment, run, site, state, records, step, streams, last_seen, writers "
            "FROM run ORDER BY last_seen DESC LIMIT ?",
            (limit,),
        ).fetchall()
        total: int = self._db.execute("SELECT count(*) FROM run").fetchone()[0]
        return [(row[:3], Run(*row[3:])) for row in rows], total

    def file_size(self) -> int:
        """Bytes of the database file; what was trimmed is used again, not given back."""
        pages, page = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return int(pages * page)

    def close(self) -> None:
        self.rollback()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('clean', 1)")
        self._db.close()
        os.close(self._lock)

    # --- inside -------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._before = self.batches, self.bytes
            self._db.execute("BEGIN IMMEDIATE")

    def _advance(
        self, header: wire.Header, seq: int, records: int, now: float, *, own: bool = False
    ) -> None:
        self._begin()
        known = self.stream(header.stream)
        first_seen = known.first_seen if known else now
        total = records + (known.records if known else 0)
        # The run key is that of the first batch, for ever.
        run = known.run if known else header.run
        self._changed[header.stream] = Stream(seq, run, total, first_seen, now)
        if own:
            return
        self._grow(run, records, header.step if records else None, known is None, now)

    def _grow(
        self, run: tuple[str, str, str], records: int, step: int | None, streams: int, now: float
    ) -> None:
        more, highest, others, _ = self._growth.get(run, (0, None, 0, 0.0))
        if highest is not None and (step is None or step < highest):
            step = highest
        self._growth[run] = more + records, step, others + streams, now

    def _remember(self, stream: bytes, known: Stream) -> None:
        if len(self._streams) >= 10_000:  # a cache only: the table has them all
            self._streams.clear()
        self._streams[stream] = known


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise JournalError(
            f"{path.parent} is in use by another zmqtrackd, process {holder}. "
            "Stop that one, or give this one a state_dir of its own"
        ) from None
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
