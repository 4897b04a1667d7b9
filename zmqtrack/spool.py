"""The writer's durable outbox: one SQLite file for each stream.

A batch is committed here before it is pushed, and leaves when the daemon has acknowledged
it. The file's name is the stream's UUID; a lock file beside it keeps a second process out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import sqlite3
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import damage, wire
from .errors import FrameError, SpoolError
from .records import Record, RunKey

__all__ = ["Outgoing", "Spool", "default_directory", "orphans", "send_command"]

log = logging.getLogger("zmqtrack")

SUFFIX = ".spool"

#: Shed last, and only when nothing else is left: they are few, and metrics mean little
#: without them.
PRECIOUS = ("run", "param", "tag")

#: Most seqs that one batch of losses stands for.
LOSSES = 5000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
    seq INTEGER PRIMARY KEY, type TEXT NOT NULL, records INTEGER NOT NULL,
    header BLOB NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL);
"""


class Outgoing(NamedTuple):
    """A batch on its way out: the frames, and what is needed to account for it."""

    seq: int
    type: str
    records: int
    header: bytes
    body: bytes


def default_directory() -> Path:
    """``ZMQTRACK_SPOOL_DIR``, or a folder among the user's state files.

    Where the home is not writable (containers), a folder of the user's in the place for
    temporary files.
    """
    if named := os.environ.get("ZMQTRACK_SPOOL_DIR"):
        return Path(named).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    directory = Path(state) / "zmqtrack" / "spool"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass  # no home, or a read-only one: fall through to the temporary folder
    return Path(tempfile.gettempdir()) / f"zmqtrack-spool-{os.getuid()}"


class Spool:
    """Made by :meth:`create` or :meth:`open`; used by one thread at a time."""

    #: Bytes of bodies at which it is full; then the ``newest`` or the ``oldest`` are kept.
    limit = 1 << 30
    keep = "newest"

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._db = damage.connect(path)
        try:
            # Exclusive: we are the only one, so SQLite needs no shared-memory file.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            self.bytes: int = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0) FROM batch"
            ).fetchone()[0]
        except sqlite3.Error as error:
            self._db.close()
            os.close(lock)
            raise SpoolError(f"{path}: cannot be used as a spool: {error}") from error
        self.stream = bytes.fromhex(path.stem)
        self.acked = int(meta.get("acked", 0))
        self.last: int = max(
            self.acked, self._db.execute("SELECT coalesce(max(seq), 0) FROM batch").fetchone()[0]
        )
        self.address = str(meta.get("address", ""))
        self.run = RunKey(*(str(meta.get(part, "?")) for part in RunKey._fields))

    @classmethod
    def create(cls, directory: Path, run: RunKey, address: str) -> Spool:
        """A new stream with an outbox of its own.

        Raises:
            SpoolError: the folder cannot be written.
        """
        path = directory / f"{uuid.uuid4().hex}{SUFFIX}"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(path)
        except OSError as error:
            raise SpoolError(
                f"{directory}: cannot hold the spool: {error.strerror}. Name a folder that can "
                "be written in ZMQTRACK_SPOOL_DIR"
            ) from error
        try:
            _make(path, {"address": address, **run._asdict()})
        except (sqlite3.Error, OSError) as error:
            os.close(lock)
            raise SpoolError(f"{path}: cannot be used as a spool: {error}") from error
        return cls(path, lock)

    @classmethod
    def open(cls, path: Path) -> Spool:
        """The outbox that an earlier process left at ``path``.

        Raises:
            SpoolError: it is in use (names the process), or damaged.
        """
        try:
            lock = _lock(path)
        except BlockingIOError:
            try:
                holder = _lock_path(path).read_text().strip() or "unknown"
            except FileNotFoundError:
                holder = "unknown"  # which has just delivered it, and is about to end
            raise SpoolError(f"{path} is in use by process {holder}") from None
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}") from error
        if not path.exists():  # its owner delivered it while we waited for the lock
            _lock_path(path).unlink(missing_ok=True)
            os.close(lock)
            raise SpoolError(f"{path} is gone: all of it has been delivered")
        log_before = damage.WriteAheadLog(path)
        for _ in range(2):
            try:
                spool = cls(path, os.dup(lock))
            except SpoolError:
                break
            dropped = log_before.dropped_commits(spool._db)
            if not dropped and damage.is_sound(spool._db, _SCHEMA):
                os.close(lock)
                return spool
            spool._db.close()
            os.close(spool._lock)
            if not dropped:
                break
            log.error("zmqtrack: the write-ahead log of %s was damaged", path)
            log_before.mend()
        return cls._rescue(path, lock)

    @classmethod
    def _rescue(cls, path: Path, lock: int) -> Spool:
        """Save from a damaged file what can be read, under the same stream; say what was lost.

        Raises:
            SpoolError: nothing can be read. The file is set aside.
        """
        aside = damage.set_aside(path)
        old = damage.connect(aside)
        meta = {k: v for k, v in damage.readable_rows(old, "meta", "key") if isinstance(k, str)}
        rows = {row[0]: row for row in damage.readable_rows(old, "batch", "seq") if _is_whole(row)}
        old.close()
        spool = cls(path, lock)
        if rows or meta:
            with spool._transaction():
                spool._restore(dict(meta), rows)
        if not rows and not meta:
            spool.close()
            raise SpoolError(f"{aside} is damaged: nothing of it could be read")
        log.error(
            "zmqtrack: %s was damaged: %d batches were saved, the file is kept as %s",
            path,
            len(rows),
            aside,
        )
        return spool

    def _restore(self, meta: dict[str, Any], rows: dict[int, tuple[Any, ...]]) -> None:
        """Fill a new file with what was read of a damaged one, and losses between."""
        for _, _, _, header, _, _ in rows.values():  # what meta no longer tells, headers do
            with contextlib.suppress(FrameError):
                known = wire.decode_header(header).run._asdict()
                meta = {**known, **meta}
                break
        # Not known: then all before the first row counts as lost, and the daemon, which knows
        # what it has, counts of that what it lacks.
        acked = meta.get("acked")
        self.acked = acked if isinstance(acked, int) else 0
        self.run = RunKey(*(str(meta.get(part, "unknown")) for part in RunKey._fields))
        self.address = str(meta.get("address", ""))
        meta |= {"acked": self.acked, "address": self.address, **self.run._asdict()}
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        rows = {seq: row for seq, row in rows.items() if seq > self.acked}
        self._db.executemany("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?)", rows.values())
        self.bytes = sum(len(row[4]) for row in rows.values())
        self.last = max([self.acked, *rows])
        covered = self.acked
        holes: list[int] = []
        for seq, (_, data_type, records, *_) in sorted(rows.items()):
            first = seq - records + 1 if data_type == "lost" else seq
            holes += range(covered + 1, first)
            covered = seq
        # How many records a batch had that is gone, nobody knows: it counts as one.
        self._replace_by_losses([(seq, 1) for seq in holes], "spool_damaged_batch")

    def append(self, batches: Iterable[Outgoing]) -> int:
        """Commit batches, whose seqs continue :attr:`last`; on return they are on disk.

        Where they would fill it beyond its limit, others, or they, are shed: a loss that is told
        to the daemon takes their place. Returns how many records were shed.

        Raises:
            sqlite3.Error: nothing was stored; the same batches may be tried again.
        """
        batches = list(batches)
        with self._transaction():
            self._insert(batches)
            self.bytes += sum(len(batch.body) for batch in batches)
            self.last = batches[-1].seq
            self._forget()
            return self._shed() if self.bytes > self.limit else 0

    def after(self, seq: int, limit: int) -> list[Outgoing]:
        """Up to ``limit`` batches that follow ``seq``, in order; a damaged one as a loss."""
        rows = self._db.execute(
            "SELECT seq, type, records, header, body, checksum FROM batch "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            (max(seq, self.acked), limit),
        ).fetchall()
        damaged = [row for row in rows if damage.checksum(row[1], row[3], row[4]) != row[5]]
        if damaged:
            log.error(
                "zmqtrack: %s: %d batches are damaged and count as lost", self.path, len(damaged)
            )
            with self._transaction():
                self._replace_by_losses([(row[0], row[2]) for row in damaged], "spool_damaged")
            return self.after(seq, limit)
        return [Outgoing(*row[:5]) for row in rows]

    def acknowledge(self, seq: int) -> None:
        """All up to ``seq`` is the daemon's now; the rows go with the next commit."""
        self.acked = max(self.acked, min(seq, self.last))

    def forget(self) -> None:
        """Remove acknowledged rows now rather than with the next append."""
        with self._transaction():
            self._forget()

    def check(self, seq: int) -> int | None:
        """Checksum of the body at ``seq``, to compare with the daemon's; None if it is gone."""
        row = self._db.execute(
            "SELECT body FROM batch WHERE seq = ? AND type != 'lost'", (seq,)
        ).fetchone()
        return None if row is None else zlib.crc32(row[0])

    def pending(self) -> int:
        """How many records wait for their acknowledgement."""
        count: int = self._db.execute(
            "SELECT coalesce(sum(records), 0) FROM batch WHERE seq > ?", (self.acked,)
        ).fetchone()[0]
        return count

    def _insert(self, batches: Iterable[Outgoing]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO batch VALUES (?, ?, ?, ?, ?, ?)",
            [(*batch, damage.checksum(batch.type, batch.header, batch.body)) for batch in batches],
        )

    def _forget(self) -> None:
        gone = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM batch WHERE seq <= ?",
            (self.acked,),
        ).fetchone()
        if gone[0]:
            self._db.execute("DELETE FROM batch WHERE seq <= ?", (self.acked,))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('acked', ?)", (self.acked,))
            self.bytes -= gone[1]

    # --- shedding -----------------------------------------------------------------------------

    def _shed(self) -> int:
        """Give up batches until a twentieth of the limit is free; returns records given up."""
        marks = ",".join("?" * len(PRECIOUS))
        order = "ASC" if self.keep == "newest" else "DESC"
        excess = self.bytes - self.limit + self.limit // 20
        victims: list[tuple[int, int]] = []
        for seq, records, size in self._db.execute(
            "SELECT seq, records, length(body) FROM batch WHERE type != 'lost' "
            f"ORDER BY type IN ({marks}), seq {order}",
            PRECIOUS,
        ):
            victims.append((seq, records))
            excess -= size
            if excess <= 0:
                break
        self._replace_by_losses(sorted(victims), "spool_full")
        return sum(records for _, records in victims)

    def _replace_by_losses(self, victims: list[tuple[int, int]], reason: str) -> None:
        """Put a batch of losses in the place of (seq, records): seqs must not have holes.

        Neighbours are merged, so that what is left of many batches is small.
        """
        run: list[Record] = []
        for seq, records in victims:
            if run and (run[-1].step != seq - 1 or len(run) >= LOSSES):
                self._write_losses(run)
                run = []
            if not run:
                run = self._losses_that_end_at(seq - 1)
            run.append(Record(reason, records, seq, time.time()))
        if run:
            self._write_losses(run)

    def _losses_that_end_at(self, seq: int) -> list[Record]:
        row = self._db.execute(
            "SELECT header, body FROM batch WHERE seq = ? AND type = 'lost'", (seq,)
        ).fetchone()
        if row is None:
            return []
        losses = wire.decode_body("lost", wire.decode_header(row[0]), row[1])
        return losses if len(losses) < LOSSES else []

    def _write_losses(self, losses: list[Record]) -> None:
        first, last = losses[0].step, losses[-1].step
        assert first is not None and last is not None
        size = self._db.execute(
            "SELECT coalesce(sum(length(body)), 0) FROM batch WHERE seq BETWEEN ? AND ?",
            (first, last),
        ).fetchone()[0]
        self._db.execute("DELETE FROM batch WHERE seq BETWEEN ? AND ?", (first, last))
        header = wire.encode_header(wire.Header(self.stream, last, self.run, len(losses)))
        body = wire.encode_body(losses)
        self._insert([Outgoing(last, "lost", len(losses), header, body)])
        self.bytes += len(body) - size

    # --- inside -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        before = self.bytes, self.last
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.bytes, self.last = before
            raise

    def close(self) -> None:
        """Release it; when all of it has been delivered the files go too."""
        if empty := self.pending() == 0:
            # First, so that SQLite need not bring to disk what nobody needs.
            for path in (self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-shm"))):
                path.unlink(missing_ok=True)
            self._db.execute("PRAGMA synchronous=OFF")
        self._db.close()
        if empty:
            _lock_path(self.path).unlink(missing_ok=True)
        lock, self._lock = self._lock, -1
        os.close(lock)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's outbox without touching it."""
        import ctypes

        # Closing the connection, even by garbage collection, could write to a file that is
        # the parent's. So it is never collected in this process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
        if self._lock >= 0:
            os.close(self._lock)


def orphans(directory: Path) -> list[Path]:
    """Outboxes in ``directory``, oldest first; whether one is in use shows on opening it."""
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # delivered and removed by its owner just now
    return [path for _, path in sorted(found)]


def send_command(directory: Path, address: str, key_file: Path | None = None) -> str:
    """What a person types to have sent what processes that have ended left in ``directory``."""
    words = ["zmqtrack", "spool", "send", "--dir", str(directory), "--address", address]
    if key_file is not None:
        words += ["--key", str(key_file)]
    return shlex.join(words)


def _make(path: Path, meta: Mapping[str, str]) -> None:
    """An outbox that holds nothing yet, brought to disk at once and not table by table."""
    with contextlib.closing(damage.connect(path)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("PRAGMA journal_mode=MEMORY")
        db.execute("BEGIN")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Whether a row of a damaged file still is what was written."""
    if [type(part) for part in row] != [int, str, int, bytes, bytes, int]:
        return False
    return bool(damage.checksum(row[1], row[3], row[4]) == row[5])


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock(path: Path) -> int:
    """Lock ``path`` for this process, or raise BlockingIOError."""
    lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
