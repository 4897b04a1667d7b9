"""The daemon's durable, ordered log of batches."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from zmqtrack.daemon.journal import Cursor, Journal, JournalError

from zmqtrack import wire
from zmqtrack.records import Record, RunKey

BODY = wire.encode_body([Record("a", 1.0, 1, 2.0)])


def _header(seq: int, stream: bytes = b"s" * 16, site: str = "s") -> wire.Header:
    return wire.Header(stream, seq, RunKey("e", "r", site), 1)


def test_offsets_are_dense_and_headers_carry_them_with_the_epoch(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for seq in (1, 2, 3):
        journal.append("metric", _header(seq), BODY, 1.0)
    entries = journal.commit()
    assert [entry.offset for entry in entries] == [1, 2, 3]
    header = wire.decode_header(entries[2].header)
    assert (header.offset, header.epoch, header.seq) == (3, journal.epoch, 3)
    journal.close()


def test_what_is_not_committed_is_not_read_and_is_gone_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("metric", _header(1), BODY, 1.0)
    journal.commit()
    journal.append("metric", _header(2), BODY, 1.0)
    assert journal.head == 1
    assert [entry.offset for entry in journal.read(0, None, 1 << 20)[0]] == [1]
    journal.close()
    again = Journal(tmp_path)
    known = again.stream(b"s" * 16)
    assert known is not None and (again.head, known.seq) == (1, 1)
    again.append("metric", _header(2), BODY, 1.0)
    assert [entry.offset for entry in again.commit()] == [2]
    again.close()


def test_batch_and_last_seq_are_committed_in_one_transaction(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("metric", _header(1), BODY, 1.0)
    other = sqlite3.connect(f"file:{tmp_path}/journal.db?mode=ro", uri=True)
    count = "SELECT (SELECT count(*) FROM batch), (SELECT count(*) FROM stream)"
    assert other.execute(count).fetchone() == (0, 0)
    journal.commit()
    assert other.execute(count).fetchone() == (1, 1)
    other.close()
    journal.close()


def test_a_rollback_forgets_the_seqs_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("metric", _header(1), BODY, 1.0)
    journal.commit()
    journal.append("metric", _header(2), BODY, 1.0)
    journal.rollback()
    known = journal.stream(b"s" * 16)
    assert known is not None and known.seq == 1
    journal.append("metric", _header(2), BODY, 1.0)
    assert [entry.offset for entry in journal.commit()] == [2]
    journal.close()


def test_a_page_is_filtered_by_data_type_and_says_how_far_it_looked(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for seq in range(1, 7):
        journal.append("metric" if seq % 2 else "param", _header(seq), BODY, 1.0)
    journal.commit()
    page, upto = journal.read(0, ["param"], 1 << 20)
    assert ([entry.offset for entry in page], upto) == ([2, 4, 6], 6)
    page, upto = journal.read(0, ["metric"], 1 << 20)
    assert ([entry.offset for entry in page], upto) == ([1, 3, 5], 6)
    page, upto = journal.read(0, ["metric"], max_bytes=2 * len(BODY))
    assert ([entry.offset for entry in page], upto) == (
        [1, 3],
        4,
    )  # 4 was looked at, and is not wanted
    page, upto = journal.read(0, None, 1 << 20, max_batches=4)
    assert ([entry.offset for entry in page], upto) == ([1, 2, 3, 4], 4)
    assert journal.read(0, ["image"], 1 << 20) == ([], 6)
    journal.close()


def test_a_batch_larger_than_a_page_still_comes(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("metric", _header(1), BODY, 1.0)
    journal.commit()
    page, upto = journal.read(0, None, max_bytes=1)
    assert (len(page), upto) == (1, 1)
    journal.close()


def test_cursors_keep_offset_note_and_counters_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.cursor("a") is None
    journal.set_cursor("a", Cursor(7, 1, b"note", {"delivered": 3}, 2.0))
    journal.commit()
    journal.set_cursor("a", Cursor(9, 1, b"newer", {}, 3.0))
    journal.close()  # not committed
    again = Journal(tmp_path)
    assert again.cursor("a") == Cursor(7, 1, b"note", {"delivered": 3}, 2.0)
    again.close()


def test_a_second_daemon_on_one_state_dir_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match=f"another zmqtrackd, process {os.getpid()}"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_file_that_is_no_journal_is_named_and_not_recreated(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(JournalError, match=r"journal\.db is damaged, or no journal"):
        Journal(tmp_path)
    assert path.read_bytes().startswith(b"no database")


def test_more_streams_than_the_cache_holds_keep_their_seqs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    streams = [index.to_bytes(16, "big") for index in range(10_050)]
    for stream in streams:
        journal.append("metric", _header(1, stream), BODY, 1.0)
    assert all((known := journal.stream(stream)) and known.seq == 1 for stream in streams)
    journal.commit()
    journal.close()
