"""What one site may do: how fast, and how much (G8). Nothing of another's is touched by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import peek, wire
from zmqtrack.control import ControlClient, connect
from zmqtrack.errors import ControlError, FrameError
from zmqtrack.records import RunKey

Make = Callable[..., Daemon]
LONG = int(os.environ.get("ZMQTRACK_FAULT_CYCLES", "0")) >= 70


def losses(served: Daemon) -> dict[str, int]:
    return {loss["reason"]: loss["n"] for loss in served.status()["losses"]}


def frames(data_type: str, seq: int, records: list[tuple[Any, ...]], codec: int = 0) -> list[bytes]:
    header = wire.Header(b"x" * 16, seq, RunKey("e", "r", "s"), len(records), codec)
    return [
        wire.topic(data_type),
        wire.encode_header(header),
        wire.encode_body(records, codec),
    ]


def push(served: Daemon, batches: list[list[bytes]]) -> list[dict[str, Any]]:
    """Greet, send all, and return what the daemon says until it has dealt with the last one."""
    status = served.status()
    control = connect(zmq.DEALER, status["control"])
    socket = connect(zmq.PUSH, status["ingest"])
    for each in (control, socket):
        each.sndtimeo = each.rcvtimeo = int(1000 * PATIENCE)
    control.send(
        wire.encode_control(
            "hello", role="writer", stream=b"x" * 16, run=["e", "r", "s"], acked=0, last=0
        )
    )
    assert wire.decode_control(control.recv())["op"] == "welcome"
    for batch in batches:
        socket.send_multipart(batch)
    said: list[dict[str, Any]] = []
    last = wire.decode_header(batches[-1][1]).seq
    while not said or said[-1].get("seq", 0) < last or said[-1]["op"] != "ack":
        said.append(wire.decode_control(control.recv()))
    socket.close()
    control.close()
    return said


def test_an_oversized_frame_is_lost_alone_and_its_neighbours_arrive(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        batches = [frames("metric", seq, [("a", float(seq), seq, 1.0)]) for seq in range(1, 151)]
        for seq, size in ((75, 9 << 20), (100, 20 << 20)):
            batches[seq - 1][2] = bytes(size)
        said = push(served, batches)
        served.drain()
        assert losses(served) == {"too_large": 2}
    rejected = [(each["seq"], each["reason"]) for each in said if each["op"] == "reject"]
    assert rejected == [(75, "too_large"), (100, "too_large")]
    steps = [line["step"] for line in read_jsonl(out, "e", "r", "s")]
    assert steps == [seq for seq in range(1, 151) if seq not in (75, 100)]


def test_the_largest_numbers_that_a_configuration_may_have_hold_up_nobody(
    daemon: Make, tmp_path: Path
) -> None:
    most = 2**63 - 1
    counts = dict.fromkeys(("batches_per_second", "streams", "runs"), most)
    sizes = dict.fromkeys(("bytes_per_second", "key_bytes", "text", "image", "artifact"), most)
    ages = dict.fromkeys(("retain_time", "stop_timeout", "stale_after", "lease"), "36500d")
    held = dict.fromkeys(("retain_bytes", "max_bytes", "dead_letter_bytes", "memory"), most)
    adapter = jsonl(tmp_path / "out", retry_max="36500d")
    with daemon([adapter], limits=counts | sizes, **ages, **held) as served:
        run = zmqtrack.init("e", "r", "s", served.address)
        run.log_metric("a", 1.0)
        assert run.finish(timeout=PATIENCE) is None
        served.drain()
        assert served.status()["daemon"]["refused"] == {}
    assert read_jsonl(tmp_path / "out", "e", "r", "s")


def test_a_commit_with_too_many_retried_letters_is_refused_and_changes_nothing(
    daemon: Make,
) -> None:
    """As many as SQLite takes in one statement depends on how it was built: 32,766, or fewer."""
    with daemon() as served:
        name = {"name": "mine:all"}
        session = served.request("subscribe", start="now", **name)["session"]
        commit = {**name, "session": session, "offset": 0, "frames": [b"note"], "dead": []}
        with pytest.raises(ControlError, match="at most 1000 dead letters at a time"):
            served.request("commit", counters={"a": 1}, retried=list(range(1001)), **commit)
        assert served.status()["adapters"]["mine:all"]["counters"] == {}
        served.request("commit", counters={"a": 1}, retried=list(range(1000)), **commit)
        assert served.status()["adapters"]["mine:all"]["counters"] == {"a": 1}


def test_counters_of_a_subscriber_are_refused_beyond_so_many_bytes(daemon: Make) -> None:
    with daemon() as served:
        name = {"name": "mine:all"}
        session = served.request("subscribe", start="now", **name)["session"]
        commit = {**name, "session": session, "offset": 0, "frames": [b""], "dead": []}
        fitting = {f"{n:0>200}": 1 for n in range(20)}
        served.request("commit", counters=fitting, **commit)
        with pytest.raises(ControlError, match="counters' names of 4200 bytes; at most 4096"):
            served.request("commit", counters={f"{n:0>200}": 1 for n in range(21)}, **commit)
        assert served.status()["adapters"]["mine:all"]["counters"] == fitting


@pytest.mark.parametrize("codec", [wire.CODEC_PLAIN, wire.CODEC_ZSTD])
@pytest.mark.parametrize(
    ("data_type", "good", "bad", "reason"),
    [
        ("text", "x" * 1000, "x" * 2000, "text_too_large"),
        ("image", b"x" * 1000, b"x" * 2000, "image_too_large"),
        ("artifact", [0, 1000, b"x"], [0, 2000, b"x"], "artifact_too_large"),
    ],
)
def test_a_value_beyond_its_limit_is_refused_with_its_reason(
    daemon: Make, data_type: str, good: Any, bad: Any, reason: str, codec: int
) -> None:
    limits = {"text": 1000, "image": 1000, "artifact": 1000}
    with daemon(limits=limits) as served:
        batches = [
            frames(data_type, 1, [("a", good, 1, 1.0)], codec),
            frames(data_type, 2, [("a", good, 1, 1.0), ("b", bad, 1, 1.0)], codec),
            frames(data_type, 3, [("a", good, 1, 1.0)], codec),
        ]
        said = push(served, batches)
        assert losses(served) == {reason: 2}
    (rejected,) = [each for each in said if each["op"] == "reject"]
    assert rejected["seq"] == 2 and f"limits.{data_type} is 1000" in rejected["detail"]


def test_a_writer_puts_what_is_too_large_by_itself(daemon: Make, tmp_path: Path) -> None:
    """So that its neighbours are not refused with it."""
    out = tmp_path / "out"
    with daemon([jsonl(out)], limits={"text": 1000}) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            while not run._sender._links or not run._sender._links[0].sizes:
                time.sleep(0.01)
            for i in range(30):
                run.log_text("note", "x" * (2000 if i % 10 == 5 else 100), step=i)
        served.drain()
        assert losses(served) == {"text_too_large": 3}
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "text"]
    assert sorted(steps) == [i for i in range(30) if i % 10 != 5]


def test_too_many_keys_of_metrics_are_refused(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    many = 1_000_000 if LONG else 50_000
    with daemon([jsonl(out)], limits={"key_bytes": 50_000}) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            for i in range(many):
                run.log_metric(f"key-{i}", i)
        with zmqtrack.init("e", "r", "other", served.address) as run:
            run.log_metric("a", 1)
        served.drain()
        counted = losses(served)
    lines = [r for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert 0 < sum(map(len, {line["key"] for line in lines})) <= 50_000
    assert counted == {"too_many_keys": many - len(lines)}
    assert len(read_jsonl(out, "e", "r", "other")) == 3


def test_who_does_not_greet_has_no_more_runs_and_writers_either(daemon: Make) -> None:
    """Nor after a restart: what was refused has left nothing that would count."""
    with daemon(limits={"streams": 3, "runs": 2}) as served:
        socket = connect(zmq.PUSH, served.status()["ingest"])
        socket.sndtimeo = int(1000 * PATIENCE)
        for number in range(20):
            stream, run = bytes([number]) * 16, RunKey("e", f"r{number}", "s")
            header = wire.encode_header(wire.Header(stream, 1, run, 1))
            body = wire.encode_body([("reason", 1, None, 1.0)])
            socket.send_multipart([wire.topic("lost" if number % 2 else "text"), header, body])
        while served.status()["daemon"]["received_batches"] < 20:
            pass
        while served.status()["streams_total"] < 2:  # its commit may be under way
            pass
        assert served.status()["streams_total"] == 2
        assert served.status()["daemon"]["refused"] == {"too_many_runs": 18}
        socket.close()


def test_one_writer_too_many_is_told(daemon: Make) -> None:
    with daemon(limits={"streams": 3}) as served:
        client = ControlClient(served.address)
        for number in range(4):
            hello = {
                "role": "writer", "stream": bytes([number]) * 16, "run": ["e", "r", "s"],
                "acked": 0, "last": 0,
            }  # fmt: skip
            if number < 3:
                client.request("hello", timeout=PATIENCE, **hello)
        with pytest.raises(ControlError, match="3 open writers already"):
            client.request("hello", timeout=PATIENCE, **hello)
        client.close()


def test_a_site_over_its_rate_is_slowed_down_and_loses_nothing(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)], limits={"bytes_per_second": 20_000}) as served:
        run = zmqtrack.init("e", "r", "s", served.address)
        began = time.monotonic()
        for i in range(10):
            run.log_text("note", f"{i}" * 8_000, step=i)
            run.flush()
        run.finish(timeout=PATIENCE)
        took = time.monotonic() - began
        served.drain()
        status = served.status()
        assert losses(served) == {}
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "text"]
    assert steps == list(range(10))
    # 80 kB; the first 20 kB, and what goes beyond once, are free.
    assert took > 1.0
    assert status["daemon"]["refused"]["over_rate"] >= 1


def test_a_site_has_at_most_so_many_loss_counters(daemon: Make) -> None:
    with daemon() as served:
        batches = [
            frames("lost", seq, [(f"reason-{seq}-{i}", 1, None, 1.0) for i in range(50)])
            for seq in range(1, 11)
        ]
        push(served, batches)
        counted = losses(served)
    assert len(counted) == 65
    assert sum(counted.values()) == 500 and counted["other"] == 500 - 64


@pytest.mark.parametrize("codec", [wire.CODEC_PLAIN, wire.CODEC_ZSTD])
def test_keys_and_sizes_are_seen_without_decoding(codec: int) -> None:
    long = [(f"{'k' * 900}-{i}", float(i), i, 1.0) for i in range(2000)]
    assert peek.keys(codec, wire.encode_body(long, codec)) == [each[0] for each in long]
    texts = [("a", "x" * n, n, 1.0) for n in (1, 100, 70_000)]
    assert [size - n for size, n in zip(
        peek.sizes("text", codec, wire.encode_body(texts, codec)), (1, 100, 70_000), strict=True
    )] == [1, 2, 5]  # fmt: skip
    pieces = [("a", [0, 123, b"xyz"], None, 1.0), ("b", [5, 1 << 40, b"x"], None, 1.0)]
    assert peek.sizes("artifact", codec, wire.encode_body(pieces, codec)) == [123, 1 << 40]


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x95", b"\x95\x91\x01", b"\xff", b"\x95\xdd\xff\xff\xff\xff"]
)
def test_what_is_no_body_is_refused_by_the_look_too(body: bytes) -> None:
    with pytest.raises(FrameError):
        peek.keys(0, body)
    with pytest.raises(FrameError):
        peek.sizes("text", 0, body + b"\x90" * 3 + b"\x05")
