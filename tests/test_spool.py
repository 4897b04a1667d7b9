"""The writer's durable outbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zmqtrack.errors import SpoolError
from zmqtrack.records import RunKey
from zmqtrack.spool import Outgoing, Spool, orphans

RUN = RunKey("e", "r", "s")


def _batch(seq: int, data_type: str = "metric", size: int = 10) -> Outgoing:
    return Outgoing(seq, data_type, 3, b"header", b"x" * size)


def test_batches_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, RUN, "tcp://127.0.0.1:1")
    spool.append([_batch(1), _batch(2)])
    spool.append([_batch(3)])
    spool.close()
    (path,) = orphans(tmp_path)
    again = Spool.open(path)
    assert (again.run, again.address, again.last) == (RUN, "tcp://127.0.0.1:1", 3)
    assert again.stream == spool.stream
    assert [batch.seq for batch in again.after(0, 10)] == [1, 2, 3]
    assert (again.bytes, again.records, again.pending()) == (30, 9, 9)
    again.close()


def test_acknowledged_batches_are_gone_and_the_seq_goes_on(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, RUN, "a")
    spool.append([_batch(1), _batch(2), _batch(3)])
    spool.acknowledge(2)
    spool.forget()
    assert [batch.seq for batch in spool.after(0, 10)] == [3]
    assert (spool.bytes, spool.pending()) == (10, 3)
    spool.close()
    again = Spool.open(orphans(tmp_path)[0])
    assert (again.acked, again.last) == (2, 3)
    again.acknowledge(99)  # never beyond what there is
    assert again.acked == 3
    again.close()


def test_a_spool_that_is_empty_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, RUN, "a")
    spool.append([_batch(1)])
    spool.acknowledge(1)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_one_spool_has_one_owner_and_the_second_is_told_who(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from zmqtrack.spool import *\n"
        "from zmqtrack.records import RunKey\n"
        "spool = Spool.create(Path(sys.argv[1]), RunKey('e', 'r', 's'), 'a')\n"
        "spool.append([Outgoing(1, 'metric', 1, b'h', b'b')])\n"
        "print(spool.path, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None and owner.stdin is not None
    path = Path(owner.stdout.readline().strip())
    with pytest.raises(SpoolError, match=f"in use by process {owner.pid}"):
        Spool.open(path)
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    left = Spool.open(path)
    assert left.last == 1
    left.close()


def test_a_file_that_is_no_spool_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"{'0' * 32}.spool"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(SpoolError, match="cannot be used as a spool: file is not a database"):
        Spool.open(path)


def test_a_failed_append_stores_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    import sqlite3

    spool = Spool.create(tmp_path, RUN, "a")
    spool.append([_batch(1)])
    with pytest.raises(sqlite3.IntegrityError):
        spool.append([_batch(2), _batch(1)])
    assert (spool.last, spool.bytes, spool.records) == (1, 10, 3)
    spool.append([_batch(2)])
    assert [batch.seq for batch in spool.after(0, 10)] == [1, 2]
    spool.acknowledge(2)
    spool.close()
