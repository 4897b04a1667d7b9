"""Files that were flipped and truncated: found, named, and the rest saved."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from zmqtrack.daemon.journal import Cursor, Journal, JournalError

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack import damage, wire
from zmqtrack.cli import doctor
from zmqtrack.errors import SpoolError
from zmqtrack.records import Record, RunKey
from zmqtrack.spool import Outgoing, Spool

Make = Callable[..., Daemon]

CYCLES = int(os.environ.get("ZMQTRACK_FAULT_CYCLES", "0"))
#: Places at which a file is damaged: a few in CI, many in the long form.
PLACES = 12 if CYCLES < 100 else 150

RUN = RunKey("e", "r", "s")
BATCHES = 60


def _body(seq: int) -> bytes:
    """Differs in each byte range between batches, and is larger than a page now and then."""
    size = 5000 if seq % 10 == 0 else 200
    return wire.encode_body([Record("note", f"{seq}:" + chr(97 + seq % 26) * size, seq, 1.0)])


def _header(seq: int) -> wire.Header:
    return wire.Header(b"s" * 16, seq, RUN, 1)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(16)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in old))


def _crash_copy(folder: Path, target: Path) -> Path:
    """The files as a crash leaves them: not closed, the log not merged."""
    shutil.copytree(folder, target)
    for lock in (*target.glob("lock"), *target.glob("*.lock"), *target.glob("*-shm")):
        lock.unlink()
    return target


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A journal that was closed in order, and one with commits in its write-ahead log alone."""
    folder = tmp_path_factory.mktemp("journal") / "state"
    journal = Journal(folder)
    for seq in range(1, BATCHES + 1):
        journal.append("text", _header(seq), _body(seq), 1.0)
        journal.commit()
    journal.set_cursor("adapter", Cursor(BATCHES // 2, 1, b"note", {}, 1.0))
    journal.commit()
    crashed = _crash_copy(folder, folder.with_name("crashed"))
    journal.close()
    (folder / "lock").unlink()
    assert (crashed / "journal.db-wal").stat().st_size > 10_000
    return {"closed": folder, "crashed": crashed}


def _check_journal(state: Path, caplog: pytest.LogCaptureFixture) -> int:
    """Open it: what is read is right, what is missing is counted or named. Returns how many."""
    try:
        journal = Journal(state)
        try:
            entries, upto = journal.read(0, None, 1 << 30, max_batches=10_000)
        except JournalError as error:  # what no check at the start has found
            assert "start again to save" in str(error)
            journal.close()
            journal = Journal(state)
            entries, upto = journal.read(0, None, 1 << 30, max_batches=10_000)
    except JournalError as error:
        assert "nothing of it can be read" in str(error)
        return 0
    assert upto == journal.head
    for entry in entries:
        decoded = wire.decode_header(entry.header)
        assert decoded.seq == entry.offset and entry.body == _body(decoded.seq)
    known = journal.stream(b"s" * 16)
    found = {entry.offset for entry in entries}
    if len(found) < BATCHES:
        counted = sum(n for _, _, n in journal.counters())
        stream_behind = known is None or known.seq < BATCHES  # then `hello` will tell the writer
        assert counted or stream_behind, f"{BATCHES - len(found)} batches vanished in silence"
        assert counted == 0 or "damaged" in caplog.text
    # It goes on: beyond all that a cursor has passed.
    journal.append("text", wire.Header(b"t" * 16, 1, RUN, 1), _body(1), 2.0)
    (new,) = journal.commit()
    cursor = journal.cursor("adapter")
    assert new.offset > max([*found, cursor.offset if cursor else 0])
    journal.close()
    return len(found)


@pytest.mark.parametrize("kind", ["closed", "crashed"])
@pytest.mark.timeout(600)
def test_a_journal_with_flipped_bytes_keeps_what_is_intact(
    journals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    size = (journals[kind] / "journal.db").stat().st_size
    chance = random.Random(7)
    saved = []
    for number in range(PLACES):
        state = tmp_path / str(number)
        shutil.copytree(journals[kind], state)
        _flip(state / "journal.db", chance.randrange(100, size - 16))
        saved.append(_check_journal(state, caplog))
        shutil.rmtree(state)
    assert sum(saved) > 0.8 * PLACES * BATCHES
    assert max(saved) <= BATCHES


@pytest.mark.timeout(600)
def test_a_write_ahead_log_with_flipped_bytes_is_noticed(
    journals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = (journals["crashed"] / "journal.db-wal").stat().st_size
    chance = random.Random(7)
    for number in range(PLACES):
        state = tmp_path / str(number)
        shutil.copytree(journals["crashed"], state)
        _flip(state / "journal.db-wal", chance.randrange(0, size - 4096))
        caplog.clear()
        found = _check_journal(state, caplog)
        assert found == BATCHES or "damaged" in caplog.text
        shutil.rmtree(state)


@pytest.mark.parametrize("begun_anew", [False, True])
def test_what_a_killed_process_leaves_in_the_log_is_no_damage(
    journals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, begun_anew: bool
) -> None:
    """A frame whose page was not written any more; or a header with new salts and no frame yet."""
    state = tmp_path / "state"
    shutil.copytree(journals["crashed"], state)
    path = state / "journal.db-wal"
    log = path.read_bytes()
    if begun_anew:
        main = sqlite3.connect(state / "journal.db")  # all of the log is in the file already
        main.execute("PRAGMA wal_checkpoint(PASSIVE)")
        main.close()
        head = log[:16] + b"new salt"
        sums = damage._sums(head, (0, 0))
        path.write_bytes(head + struct.pack(">II", *sums) + log[32:])
    else:
        at = len(log) - 24 - 4096
        path.write_bytes(log + log[at : at + 24] + bytes(4096))  # the head of a commit, no page
    before = damage.WriteAheadLog(state / "journal.db")
    db = sqlite3.connect(state / "journal.db")
    db.execute("SELECT count(*) FROM batch").fetchone()
    assert before.dropped_commits(db) == 0
    db.close()
    assert _check_journal(state, caplog) == BATCHES
    assert "damaged" not in caplog.text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal"])
def test_a_truncated_journal_keeps_what_is_intact(
    journals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    kind = "closed" if name == "journal.db" else "crashed"
    size = (journals[kind] / name).stat().st_size
    saved = []
    for number in range(PLACES):
        state = tmp_path / str(number)
        shutil.copytree(journals[kind], state)
        os.truncate(state / name, size * number // PLACES)
        saved.append(_check_journal(state, caplog))
        shutil.rmtree(state)
    assert sum(saved) > 0.15 * PLACES * BATCHES  # pages of small tables stand before the batches


@pytest.fixture(scope="module")
def spools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("spool") / "spool"
    spool = Spool.create(folder, RUN, "tcp://127.0.0.1:1")
    for seq in range(1, BATCHES + 1):
        header = wire.encode_header(wire.Header(spool.stream, seq, RUN, 1))
        spool.append([Outgoing(seq, "text", 1, header, _body(seq))])
    crashed = _crash_copy(folder, folder.with_name("crashed"))
    spool.close()
    for lock in folder.glob("*.lock"):
        lock.unlink()
    return {"closed": folder, "crashed": crashed}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["flip", "flip the log", "truncate"])
def test_a_damaged_spool_sends_what_is_intact_and_accounts_for_the_rest(
    spools: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    kind = "crashed" if how == "flip the log" else "closed"
    chance = random.Random(7)
    opened = 0
    for number in range(PLACES):
        folder = tmp_path / str(number)
        shutil.copytree(spools[kind], folder)
        (path,) = folder.glob("*.spool")
        target = Path(f"{path}-wal") if how == "flip the log" else path
        at = chance.randrange(100, target.stat().st_size - 4096)
        if how == "truncate":
            os.truncate(target, at)
        else:
            _flip(target, at)
        caplog.clear()
        try:
            spool = Spool.open(path)
        except SpoolError as error:
            assert "damaged" in str(error)
            shutil.rmtree(folder)
            continue
        opened += 1
        covered = 0
        whole = True
        for batch in spool.after(0, 10_000):
            if batch.type == "lost":
                whole = False
                header = wire.decode_header(batch.header)
                steps = [record.step for record in wire.decode_body("lost", header, batch.body)]
                assert steps == list(range(covered + 1, batch.seq + 1))
            else:
                assert batch.seq == covered + 1 and batch.body == _body(batch.seq)
            covered = batch.seq
        assert (whole and covered == BATCHES) or "damaged" in caplog.text
        spool.acknowledge(spool.last)
        spool.close()
        shutil.rmtree(folder)
    assert opened > PLACES // 2


def test_a_spool_whose_schema_is_no_longer_text_is_damaged_like_any_other(
    spools: dict[str, Path], tmp_path: Path
) -> None:
    """Where SQLite's own message cannot be decoded."""
    folder = tmp_path / "spool"
    shutil.copytree(spools["closed"], folder)
    (path,) = folder.glob("*.spool")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"CREATE TABLE batch", b"CREATE TABLE b\xb3tch", 1))
    with pytest.raises(SpoolError, match="is damaged: nothing of it could be read"):
        Spool.open(path)
    assert len(list(folder.glob("*.damaged-*"))) == 1  # for a person to look at


def test_a_daemon_with_a_damaged_journal_says_so_and_serves_on(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    served = daemon()
    with served, zmqtrack.init("e", "r", "s", served.address) as run:
        for i in range(3000):
            run.log_text("note", f"{i}:" + "x" * 100, step=i)
            if i % 300 == 0:
                run.flush()
    path = served.state_dir / "journal.db"
    _flip(path, path.stat().st_size // 2)
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "after", served.address) as run:
            run.log_metric("a", 1)
        served.drain()
        losses = {loss["reason"]: loss["n"] for loss in served.status()["losses"]}
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "text"]
    assert steps == sorted(set(steps)) and 0 < len(steps) < 3000
    assert losses and all(reason.startswith("journal_damaged") for reason in losses)
    assert "damaged" in served.log
    assert len(read_jsonl(out, "e", "r", "after")) == 3


def test_a_daemon_that_lost_its_journal_is_noticed_by_writers_that_live_on(
    daemon: Make, tmp_path: Path, nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    served = daemon([jsonl(out)], control=nobody)
    served.start()
    run = zmqtrack.init("e", "r", "s", nobody)
    run.log_metric("a", 1, step=1)
    run.flush()
    while run._sender._spool.acked < 2:  # the start and the metric
        served.status()
    served.drain()
    served.kill()
    for left in served.state_dir.glob("journal.db*"):
        left.unlink()
    served.start()
    run.log_metric("a", 2, step=2)
    run.finish(timeout=60)
    served.drain()
    losses = served.status()["losses"]
    served.stop()
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert steps == [1, 2]  # the first had been delivered before
    assert [loss["reason"] for loss in losses] == ["journal_lost_batches"]
    assert "has a new journal" in caplog.text


def test_a_spool_that_was_copied_while_in_use_is_quarantined_and_named(
    daemon: Make, tmp_path: Path
) -> None:
    """Two writers under one stream: what comes second is neither lost nor mixed in."""
    folders = [tmp_path / "one", tmp_path / "two"]
    spool = Spool.create(folders[0], RUN, "tcp://127.0.0.1:1")
    header = wire.encode_header(wire.Header(spool.stream, 1, RUN, 1))
    spool.append([Outgoing(1, "text", 1, header, _body(1))])
    path = spool.path
    spool.close()
    shutil.copytree(folders[0], folders[1])
    for number, folder in enumerate(folders):  # each goes on with a content of its own
        own = Spool.open(folder / path.name)
        header = wire.encode_header(wire.Header(own.stream, 2, RUN, 1))
        own.append([Outgoing(2, "text", 1, header, _body(20 + number))])
        own.close()
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        for folder in folders:
            subprocess.run(
                [sys.executable, "-m", "zmqtrack.cli", "spool", "send",
                 "--dir", str(folder), "-a", served.address],
                check=True, timeout=60, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        served.drain()
        status = served.status()
        (letter,) = json.loads(_cli(served, "dlq", "list", "--json"))
        found = {each.code: each for each in doctor.examine(served.address, None, 5)}
        assert [line["step"] for line in read_jsonl(out, *RUN)] == [1, 20]
        # A person may want it after all: then every adapter gets it.
        _cli(served, "dlq", "retry", str(letter["id"]))
        served.drain()
        after = served.status()
    assert status["daemon"]["refused"] == {"stream_conflict": 1}
    assert (letter["adapter"], letter["reason"]) == ("(quarantine)", "stream_conflict")
    assert (status["quarantined"], after["quarantined"]) == (1, 0)
    assert "zmqtrack dlq retry" in found["stream_conflict"].advice
    assert [line["step"] for line in read_jsonl(out, *RUN)] == [1, 20, 21]


def _cli(served: Daemon, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", *arguments, "-a", served.address],
        check=True, timeout=60, capture_output=True, text=True,
    ).stdout  # fmt: skip
