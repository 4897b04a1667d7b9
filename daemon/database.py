"""The journal's database: its tables; opened, mended where it is damaged, or saved from."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import uuid
from pathlib import Path

from zmqtrack import damage, wire
from zmqtrack.errors import ZMQTrackError

__all__ = ["LAYOUT", "JournalError", "open_database"]

log = logging.getLogger("zmqtrack.daemon")

#: Version of the tables below.
LAYOUT = 2

#: A journal that was closed in order is looked through at the start up to this size, in bytes.
CHECKED_AT_START = 256 << 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
    offset INTEGER PRIMARY KEY, type TEXT NOT NULL, site TEXT NOT NULL, time REAL NOT NULL,
    stream BLOB NOT NULL, seq INTEGER NOT NULL, records INTEGER NOT NULL,
    checksum INTEGER NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batch_of_stream ON batch (stream, seq);
CREATE TABLE IF NOT EXISTS stream (
    id BLOB PRIMARY KEY, seq INTEGER NOT NULL, experiment TEXT NOT NULL, run TEXT NOT NULL,
    site TEXT NOT NULL, records INTEGER NOT NULL, first_seen REAL NOT NULL,
    last_seen REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (
    name TEXT PRIMARY KEY, offset INTEGER NOT NULL, session INTEGER NOT NULL,
    note BLOB NOT NULL, counters BLOB NOT NULL, time REAL NOT NULL,
    ident BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, adapter TEXT NOT NULL, type TEXT NOT NULL,
    header BLOB NOT NULL, body BLOB NOT NULL, place INTEGER NOT NULL, reason TEXT NOT NULL,
    time REAL NOT NULL, retry INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS dead_letter_of ON dead_letter (adapter, header, place);
CREATE TABLE IF NOT EXISTS run (
    experiment TEXT NOT NULL, run TEXT NOT NULL, site TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT '', records INTEGER NOT NULL DEFAULT 0, step INTEGER,
    streams INTEGER NOT NULL DEFAULT 0, last_seen REAL NOT NULL DEFAULT 0,
    writers BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (experiment, run, site)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS run_by_last_seen ON run (last_seen);
CREATE INDEX IF NOT EXISTS run_by_state ON run (state);
CREATE TABLE IF NOT EXISTS counter (
    reason TEXT NOT NULL, site TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (reason, site)) WITHOUT ROWID;
"""


#: Tables beside that of the batches, and what names a row of each.
TABLES = (
    ("stream", "id"),
    ("cursor", "name"),
    ("dead_letter", "id"),
    ("counter", "reason || char(0) || site"),
    ("run", "experiment || char(0) || run || char(0) || site"),
)


class JournalError(ZMQTrackError):
    """A journal that cannot be used: locked by another daemon, damaged, or of another version."""


def open_database(path: Path, suspect: Path) -> sqlite3.Connection:
    """The database; where it is damaged, a new one with all that could be read of it.

    While the file ``suspect`` exists, damage was met: it is looked through whatever its size.

    Raises:
        sqlite3.Error: it cannot be opened at all (permissions, a full disk).
        JournalError: nothing of it can be read.
    """
    existed = path.exists()
    log_before = damage.WriteAheadLog(path)
    db = damage.connect(path)
    try:
        _prepare(db)
        path.chmod(0o600)  # as its folder may be open to others
        if not existed:
            return db
        dropped = log_before.dropped_commits(db)
        if dropped:
            log.error(
                "the write-ahead log of %s was damaged; %d commits behind the damage are taken",
                path,
                dropped,
            )
            db.close()
            log_before.mend()
            db = damage.connect(path)
            _prepare(db)
        clean = db.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone() == (1,)
        size = path.stat().st_size
        if not suspect.exists() and (
            (clean and size > CHECKED_AT_START) or damage.is_sound(db, _SCHEMA)
        ):
            db.execute("INSERT OR REPLACE INTO meta VALUES ('clean', 0)")
            return db
    except sqlite3.OperationalError as error:
        db.close()
        if "disk I/O error" not in str(error):  # which is how a file cut short shows
            raise
    except sqlite3.DatabaseError as error:
        log.error("%s: %s", path, error)
    db.close()
    db = _salvage(path)
    suspect.unlink(missing_ok=True)
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(_SCHEMA)


def _salvage(path: Path) -> sqlite3.Connection:
    """Set a damaged journal aside, and begin a new one with what can be read of it.

    Offsets and cursors stay what they are. The epoch is another, so that writers and subscribers
    learn of it; what is missing is counted in batches, for nobody knows of how many records.
    """
    aside = damage.set_aside(path)
    old = damage.connect(aside)
    meta = dict(damage.readable_rows(old, "meta", "key"))
    if not meta and next(damage.readable_rows(old, "batch", "offset"), None) is None:
        old.close()
        aside.rename(path)
        raise JournalError(
            f"{path} is damaged, or no journal: nothing of it can be read. "
            "Move it away to begin with an empty one"
        )
    new = damage.connect(path)
    _prepare(new)
    new.execute("BEGIN")
    seqs: dict[bytes, tuple[int, wire.Header]] = {}
    saved = last = 0
    for row in damage.readable_rows(old, "batch", "offset"):
        kinds = [type(part) for part in row]
        if kinds != [int, str, str, float, bytes, int, int, int, bytes, bytes]:
            continue
        offset, *_, checksum, header, body = row
        if damage.checksum(row[1], header, body) != checksum:
            continue
        decoded = wire.decode_header(header)
        if decoded.seq > seqs.get(decoded.stream, (0, decoded))[0]:
            seqs[decoded.stream] = decoded.seq, decoded
        new.execute(f"INSERT INTO batch VALUES ({', '.join('?' * len(row))})", row)
        saved, last = saved + 1, max(last, offset)
    for table, key in TABLES:
        for row in damage.readable_rows(old, table, key):
            marks = ", ".join("?" * len(row))
            with contextlib.suppress(sqlite3.Error):  # not what was written: damaged too
                new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
    old.close()
    for stream, (seq, decoded) in seqs.items():  # a stream must not fall behind its batches
        new.execute(
            "INSERT INTO stream VALUES (?, ?, ?, ?, ?, 0, 0, 0) "
            "ON CONFLICT (id) DO UPDATE SET seq = max(seq, excluded.seq)",
            (stream, seq, *decoded.run),
        )
    # New offsets must lie beyond all that any cursor has passed.
    cursors = new.execute("SELECT coalesce(max(offset), 0) FROM cursor").fetchone()[0]
    trimmed = meta.get("trimmed", 0)
    trimmed = trimmed if isinstance(trimmed, int) else 0
    # At least one: where everything seems to be there, what was damaged is not known.
    seqs_told = new.execute("SELECT coalesce(sum(seq), 0) FROM stream").fetchone()[0]
    lost = max(1, max(last, cursors, seqs_told) - trimmed - saved)
    new.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [
            ("epoch", uuid.uuid4().bytes),
            ("layout", LAYOUT),
            ("trimmed", trimmed),
            ("floor", max(trimmed, last, cursors)),
            ("clean", 0),
        ],
    )
    new.execute(
        "INSERT INTO counter VALUES ('journal_damaged_batches', '', ?) "
        "ON CONFLICT (reason, site) DO UPDATE SET n = n + excluded.n",
        (lost,),
    )
    new.execute("COMMIT")
    log.error(
        "%s was damaged: %d batches were saved, %d are missing; the file is kept as %s",
        path, saved, lost, aside,
    )  # fmt: skip
    return new
