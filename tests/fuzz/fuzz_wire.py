"""Coverage-guided fuzzing of all that reads bytes which a stranger may have written.

Two programs in one file, of which the tests replay the corpus without atheris:

``wire``     :data:`TARGETS`: the decoders of :mod:`zmqtrack.wire`, for every data type and both
             codecs. An input is: which target, how many records the header promises, the frame.
``control``  see ``fuzz_control.py``, which this file starts: the daemon's control handlers.

Every input is counted under what came of it: ``decoded``, or the reason of its ``FrameError``.
Anything else that is raised ends the run, and so does an input that takes long. Run it so::

    python tests/fuzz/fuzz_wire.py wire FOLDER tests/fuzz/corpus/wire -max_len=256 -runs=10000000
    python tests/fuzz/fuzz_wire.py wire -merge=1 tests/fuzz/corpus/wire FOLDER

FOLDER gets what is found; ``--seeds FOLDER`` fills one to begin with.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

if __name__ == "__main__":  # by hand, where atheris is installed: it is to see inside these
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    watched = ["zmqtrack.wire", "zmqtrack.records", "zmqtrack.peek", "zmqtrack.daemon"]
    instrumented: Any = atheris.instrument_imports(include=watched)
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    from zmqtrack import peek, wire
    from zmqtrack.errors import FrameError
    from zmqtrack.records import (
        MAX_INT,
        MAX_KEY,
        STATUSES,
        VOCABULARY,
        LineKey,
        Record,
        RunKey,
        TrialKey,
        wire_key,
    )

TYPES = [*sorted(VOCABULARY), "lost", "own"]
RUN = RunKey("e", "r", "s")

#: What came of the inputs until now.
outcomes: Counter[str] = Counter()


# --- targets: each decodes a frame, and looks at what it got ------------------------------


def _topic(frame: bytes, count: int) -> None:
    name = wire.decode_topic(frame)
    assert wire.decode_topic(wire.topic(name, "site")) == name


def _header(frame: bytes, count: int) -> None:
    header = wire.decode_header(frame)
    again = wire.encode_header(header if header.offset else header._replace(epoch=b""))
    assert wire.decode_header(again)._replace(epoch=header.epoch) == header


def _body(data_type: str, frame: bytes, codec: int, count: int) -> None:
    header = wire.Header(b"s" * 16, 1, RUN, count, codec)
    records = wire.decode_body(data_type, header, frame)
    assert len(records) == count
    for record in records:
        assert type(record) is Record
        assert isinstance(record.key, str) and 0 < len(record.key.encode()) <= MAX_KEY
        assert type(record.key) is str or data_type in ("metric", "param")
        assert record.step is None or abs(record.step) <= MAX_INT + 1
        assert type(record.time) is float
        _look_at(data_type, record)
    body = wire.encode_body(_as_logged(records))
    again = wire.decode_body(data_type, header._replace(codec=0), body)
    assert wire.encode_body(_as_logged(again)) == body


def _as_logged(records: list[Record]) -> list[Record]:
    return [record._replace(key=wire_key(record.key)) for record in records]


def _look_at(data_type: str, record: Record) -> None:
    """What an adapter does with a value, and must be able to do without looking first."""
    value = record.value
    match data_type:
        case "metric":
            assert type(value) is float
        case "run":
            assert value in STATUSES if record.key == "end" else type(value) is dict
        case "tag" | "text" | "log":
            value.encode()
        case "image":
            assert type(value) is bytes
        case "histogram":
            assert sum(value["counts"]) >= 0 and value["edges"][0] < value["edges"][-1]
            float(value.get("min", 0)) + float(value.get("sum", 0))
        case "artifact":
            assert value[0] + len(value[2]) <= value[1]
        case "lost":
            assert 0 <= value <= MAX_INT
    repr(value)  # deep nesting


def _plain(data_type: str) -> Callable[[bytes, int], None]:
    return lambda frame, count: _body(data_type, frame, wire.CODEC_PLAIN, count)


def _zstd(data_type: str) -> Callable[[bytes, int], None]:
    """The frame is what is compressed: a fuzzer does not get past zstd's checks by itself."""
    import zstandard

    compress = zstandard.ZstdCompressor(level=1).compress
    return lambda frame, count: _body(data_type, compress(frame), wire.CODEC_ZSTD, count)


def _expand(frame: bytes, count: int) -> None:
    _body("own", frame, wire.CODEC_ZSTD, count)


def _control(frame: bytes, count: int) -> None:
    message = wire.decode_control(frame)
    wire.encode_control("refused", id=message.get("id"), stream=message.get("stream"))
    repr(message)


def _peek(frame: bytes, count: int) -> None:
    codec = count % 4
    assert all(type(key) is str for key in peek.keys(codec, frame))
    assert all(type(size) is int for size in peek.sizes(TYPES[count % len(TYPES)], codec, frame))


def _pieces(frame: bytes, count: int) -> None:
    header = wire.Header(b"s" * 16, 1, RUN, count, wire.CODEC_PIECES)
    for record in wire.decode_body("own", header, frame):
        offset, size, piece, number = record.value
        assert 0 <= offset < offset + len(piece) <= size and type(number) is int


def _value(frame: bytes, count: int) -> None:
    data_type = TYPES[count % len(TYPES)]
    key = "start" if data_type == "run" else "k"
    _look_at(data_type, Record(key, wire.decode_value(data_type, key, frame), None, 1.0))


#: By name; an input's first byte chooses one.
TARGETS: dict[str, Callable[[bytes, int], None]] = {
    "topic": _topic,
    "header": _header,
    "control": _control,
    "expand": _expand,
    "peek": _peek,
    **{f"body {data_type}": _plain(data_type) for data_type in TYPES},
    **{f"zstd {data_type}": _zstd(data_type) for data_type in TYPES},
    "pieces": _pieces,
    "value": _value,
}
NAMES = list(TARGETS)


def run(data: bytes) -> str:
    """One input; returns what came of it, and counts that."""
    outcome = "empty"
    if len(data) >= 2:
        outcome = "decoded"
        try:
            TARGETS[NAMES[data[0] % len(NAMES)]](data[2:], 1 + data[1] % 8)
        except FrameError as error:
            assert error.reason and error.detail and len(error.detail) < 1000
            outcome = error.reason
    outcomes[outcome] += 1
    return outcome


# --- what to begin with ------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Valid inputs, and the known kinds of bad ones."""
    import zstandard

    values: dict[str, Any] = {
        "run": {"host": "h", "pid": 1},
        "metric": 0.5,
        "param": [1, "a", None, True, {"b": [2.5, {1: b"x"}]}],
        "tag": "é",
        "text": "# two\nlines",
        "image": b"\x89PNG",
        "histogram": {"counts": [1, 2], "edges": [0.0, 0.5, 1.0], "min": 0.1, "num": 3},
        "artifact": [0, 3, b"abc"],
        "log": "a\nb\n",
        "lost": 3,
        "own": {"a": [1, [2, [3]]], "b": msgpack.ExtType(5, b"x"), "c": msgpack.Timestamp(1)},
    }
    for data_type, value in values.items():
        for count in (1, 3):
            key = "start" if data_type == "run" else "k"
            body = wire.encode_body([Record(key, value, i or None, 1.5e9) for i in range(count)])
            for name in (f"body {data_type}", f"zstd {data_type}", "peek"):
                yield bytes([NAMES.index(name), count - 1]) + body
        place = TYPES.index(data_type) if data_type in TYPES else 0
        packed = msgpack.packb(value)
        yield bytes([NAMES.index("value"), (place - 1) % len(TYPES)]) + packed
        cut = [Record("k", [at, len(packed), packed[at : at + 2], 7], 1, 2.0) for at in (0, 2)]
        yield bytes([NAMES.index("pieces"), 1]) + wire.encode_body(cut)
    pairs = [wire_key(LineKey("a", "b")), "a/b", wire_key(TrialKey("a", "b"))]
    body = wire.encode_body([Record(key, 0.5, 1, 1.5e9) for key in pairs])
    yield bytes([NAMES.index("body metric"), len(pairs) - 1]) + body
    for frame in (wire.topic("metric"), wire.topic("own", "a/b"), b"METRIC/", b"\xff/"):
        yield bytes([NAMES.index("topic"), 0]) + frame
    deep = b"\x91" * 1010 + b"\x90"
    full = wire.encode_header(wire.Header(b"s" * 16, 1, RUN, 1, 0, 7, b"e" * 16))
    for frame in (full, wire.encode_header(wire.Header(b"s" * 16, 1, RUN, 1)), deep):
        yield bytes([NAMES.index("header"), 0]) + frame
    for frame in (
        wire.encode_control("hello", stream=b"s" * 16, run=list(RUN), acked=0, last=3),
        wire.encode_control("replay", after=0, types=["metric"], id=1),
        msgpack.packb({"op": "x", "v": 1, "id": 2**64 - 1, "e": msgpack.ExtType(1, b"")}),
        b"\x82\xa2op\xa1x\xa1v" + deep,
    ):
        yield bytes([NAMES.index("control"), 0]) + frame
    one = zstandard.compress(wire.encode_body([Record("k", 1.0, None, 2.0)]))
    for frame in (one, one + one, b"\x50\x2a\x4d\x18\x01\0\0\0x", one[:-1]):
        yield bytes([NAMES.index("expand"), 0]) + frame


def _fill(folder: Path, inputs: Iterator[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def main() -> None:
    program, *arguments = sys.argv[1:]
    if program == "control":
        with instrumented:
            import fuzz_control as chosen
    else:
        chosen = sys.modules[__name__]
    if arguments[0] == "--seeds":
        _fill(Path(arguments[1]), chosen.seeds())
        return
    started = time.monotonic()

    def count(data: bytes) -> None:
        chosen.run(data)
        total = sum(chosen.outcomes.values())
        if total % 250_000 == 0:  # libFuzzer does not come back to Python at its end
            seconds = time.monotonic() - started
            print(f"{total} inputs in {seconds:.0f} s:", dict(chosen.outcomes), file=sys.stderr)

    # For -merge libFuzzer starts itself again, by a shell.
    atheris.Setup([f"{sys.executable} {sys.argv[0]} {program}", *arguments], count)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
