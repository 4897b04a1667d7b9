"""What is no batch is counted by its reason and logged without flooding; the rest arrives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import zmq

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.control import connect
from zmqtrack.records import Record, RunKey

Make = Callable[..., Daemon]

RUN = RunKey("e", "r", "raw")
BODY = wire.encode_body([Record("a", 1.0, 1, 2.0)])


def _header(stream: bytes, seq: int = 1, count: int = 1) -> bytes:
    return wire.encode_header(wire.Header(stream, seq, RUN, count))


def _with(index: int, value: object) -> bytes:
    fields = msgpack.unpackb(_header(os.urandom(16)))
    fields[index] = value
    packed: bytes = msgpack.packb(fields)
    return packed


#: Frames that the daemon itself must refuse, and the reason under which it counts them.
REFUSED = {
    "one frame": ([b"metric/"], "bad_frames"),
    "four frames": ([b"metric/", _header(os.urandom(16)), BODY, b""], "bad_frames"),
    "wrong version": ([b"metric/", _with(0, 99), BODY], "bad_version"),
    "no data type": ([b"NOT-A-TYPE!/", _header(os.urandom(16)), BODY], "bad_type"),
    "no slash": ([b"metric", _header(os.urandom(16)), BODY], "bad_type"),
    "truncated header": ([b"metric/", _header(os.urandom(16))[:-3], BODY], "bad_header"),
    "stream of 5 bytes": ([b"metric/", _with(1, b"12345"), BODY], "bad_header"),
    "seq 0": ([b"metric/", _with(2, 0), BODY], "bad_header"),
    "seq as text": ([b"metric/", _with(2, "1"), BODY], "bad_header"),
    "empty site": ([b"metric/", _with(5, ""), BODY], "bad_header"),
    "control character in a name": ([b"metric/", _with(4, "a\nb"), BODY], "bad_header"),
    "count too large": ([b"metric/", _with(6, 10**9), BODY], "bad_header"),
    "header of maps": ([b"metric/", b"\x80" * 100, BODY], "bad_header"),
    "header nested": ([b"metric/", b"\x91" * 1000, BODY], "bad_header"),
    "header of 1 MB": ([b"metric/", b"\x80" * 10**6, BODY], "bad_header"),
}

#: Bodies that only an adapter, which decodes them, can find to be bad.
UNDECODABLE = {
    "truncated": BODY[:-4],
    "1 MB of empty maps": b"\x80" * 10**6,
    "an array of 1 MB of empty maps": b"\xdd" + (10**6).to_bytes(4, "big") + b"\x80" * 10**6,
    "nested 1,000 deep": b"\x91" * 1000 + b"\x90",
    "nested 100,000 deep": b"\x91" * 100_000 + b"\x90",
    "a value nested 100 deep": msgpack.packb([["a"], [0], [1], [2.0], [eval("[" * 50 + "]" * 50)]]),
    "columns of different length": msgpack.packb([["a"], [0], [1, 2], [2.0], [1.0]]),
    "an index beyond the keys": msgpack.packb([["a"], [7], [1], [2.0], [1.0]]),
    "text as a metric": msgpack.packb([["a"], [0], [1], [2.0], ["one"]]),
    "a step that is no integer": msgpack.packb([["a"], [0], ["x"], [2.0], [1.0]]),
    "an extension type": msgpack.packb([["a"], [0], [1], [2.0], [msgpack.ExtType(5, b"x")]]),
}


def test_bad_frames_are_counted_by_reason_and_everything_else_is_delivered(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        ingest = served.request("hello")["ingest"]
        socket = connect(zmq.PUSH, ingest)
        socket.sndtimeo = 10_000
        good = zmqtrack.init("e", "r", "good", served.address)
        for _ in range(20):  # repeated, so that flooding would show
            for frames, _reason in REFUSED.values():
                good.log_metric("a", 1)
                socket.send_multipart(frames)
        streams = []
        for body in UNDECODABLE.values():
            streams.append(os.urandom(16))
            socket.send_multipart([b"metric/", _header(streams[-1]), body])
        last = os.urandom(16)
        socket.send_multipart([b"metric/", _header(last), BODY])
        good.finish(timeout=30)
        while last.hex() not in {s["stream"] for s in served.status()["streams"]}:
            pass
        served.drain()
        status = served.status()
        socket.close()
    expected: dict[str, int] = {}
    for _, reason in REFUSED.values():
        expected[reason] = expected.get(reason, 0) + 20
    assert status["daemon"]["refused"] == expected
    assert status["adapters"]["jsonl"]["counters"]["dead_letters"] == len(UNDECODABLE)
    assert len(read_jsonl(out, "e", "r", "good")) == 20 * len(REFUSED) + 2
    assert [r["value"] for r in read_jsonl(out, "e", "r", "raw")] == [1.0]
    for reason in expected:
        assert len([line for line in served.lines if f"refused ({reason}" in line]) <= 2


def test_a_body_over_the_limit_is_refused_alone_and_its_writer_is_told(
    daemon: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)], max_body="100kB") as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("before", 1)
            run.log_text("large", "x" * 200_000)
            run.flush()
            run.log_metric("after", 1)
        served.drain()
        status = served.status()
    assert [line["key"] for line in read_jsonl(out, "e", "r", "s")] == [
        "start",
        "before",
        "after",
        "end",
    ]
    assert {"reason": "too_large", "site": "s", "n": 1} in status["losses"]
    assert "too_large" in caplog.text


def test_a_control_message_that_is_none_is_refused_with_its_reason(daemon: Make) -> None:
    with daemon() as served:
        for frames in (
            [b"\xc1"],
            [b"\x80"],
            [b"a", b"b"],
            [msgpack.packb({"op": "hello", "v": 7})],
        ):
            socket = connect(zmq.DEALER, served.address)
            socket.sndtimeo = socket.rcvtimeo = 10_000
            socket.send_multipart(frames)
            answer = msgpack.unpackb(socket.recv())
            assert answer["op"] == "refused"
            assert answer["reason"] in ("bad_control", "bad_version")
            socket.close()
        assert served.status()["daemon"]["refused"] == {"bad_control": 3, "bad_version": 1}
