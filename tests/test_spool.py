"""The writer's durable outbox."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from zmqtrack import wire
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
    assert (again.bytes, again.pending()) == (30, 9)
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
    with pytest.raises(SpoolError, match="damaged: nothing of it could be read"):
        Spool.open(path)


def test_a_failed_append_stores_nothing_and_can_be_tried_again(tmp_path: Path) -> None:

    spool = Spool.create(tmp_path, RUN, "a")
    spool.append([_batch(1)])
    with pytest.raises(sqlite3.IntegrityError):
        spool.append([_batch(2), _batch(3)._replace(records=None)])  # type: ignore[arg-type]
    assert (spool.last, spool.bytes) == (1, 10)
    spool.append([_batch(2)])
    assert [batch.seq for batch in spool.after(0, 10)] == [1, 2]
    spool.acknowledge(2)
    spool.close()


def _losses(spool: Spool) -> list[tuple[str, int, int | None]]:
    found = []
    for batch in spool.after(0, 10_000):
        if batch.type == "lost":
            header = wire.decode_header(batch.header)
            assert header.seq == batch.seq and header.stream == spool.stream
            records = wire.decode_body("lost", header, batch.body)
            found += [(record.key, record.value, record.step) for record in records]
    return found


def _covered(spool: Spool) -> list[int]:
    """All seqs that the spool accounts for, by a batch or by a loss."""
    seqs: list[int] = []
    for batch in spool.after(0, 10_000):
        if batch.type == "lost":
            header = wire.decode_header(batch.header)
            seqs += [r.step or 0 for r in wire.decode_body("lost", header, batch.body)]
        else:
            seqs.append(batch.seq)
    return seqs


@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_a_full_spool_sheds_metrics_keeps_the_precious_and_leaves_no_hole(
    tmp_path: Path, keep: str
) -> None:
    spool = Spool.create(tmp_path, RUN, "a")
    spool.limit, spool.keep = 20_000, keep
    shed = 0
    for seq in range(1, 101):
        data_type = "param" if seq in (1, 50, 100) else "metric"
        shed += spool.append([_batch(seq, data_type, size=1000)])
        assert spool.bytes <= spool.limit
    assert _covered(spool) == list(range(1, 101))
    kept = [batch for batch in spool.after(0, 1000) if batch.type != "lost"]
    assert [batch.seq for batch in kept if batch.type == "param"] == [1, 50, 100]
    metrics = [batch.seq for batch in kept if batch.type == "metric"]
    if keep == "newest":
        assert len(metrics) > 10 and metrics == list(range(100 - len(metrics), 100))
    else:
        assert len(metrics) > 10 and metrics[:10] == list(range(2, 12))
    losses = _losses(spool)
    assert {reason for reason, _, _ in losses} == {"spool_full"}
    assert sum(n for _, n, _ in losses) == shed == 3 * (100 - len(kept))
    assert len([b for b in spool.after(0, 1000) if b.type == "lost"]) <= 12
    assert spool.bytes == sum(len(batch.body) for batch in spool.after(0, 1000))
    spool.acknowledge(100)
    spool.close()


def test_the_precious_are_shed_when_there_is_nothing_else(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, RUN, "a")
    spool.limit = 5_000
    for seq in range(1, 21):
        spool.append([_batch(seq, "param", size=1000)])
    assert _covered(spool) == list(range(1, 21))
    assert spool.bytes <= spool.limit
    spool.acknowledge(20)
    spool.close()


def test_a_damaged_batch_counts_as_lost_and_its_neighbours_arrive(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, RUN, "a")
    spool.append([_batch(seq, size=100 + seq) for seq in range(1, 6)])
    spool.close()
    db = sqlite3.connect(spool.path)
    db.execute("UPDATE batch SET body = zeroblob(103) WHERE seq = 3")
    db.commit()
    db.close()
    again = Spool.open(spool.path)
    assert [(b.seq, b.type) for b in again.after(0, 10)] == [
        (1, "metric"), (2, "metric"), (3, "lost"), (4, "metric"), (5, "metric"),
    ]  # fmt: skip
    assert _losses(again) == [("spool_damaged", 3, 3)]
    again.acknowledge(5)
    again.close()
