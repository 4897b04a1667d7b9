"""The codec under Hypothesis: what may be logged comes back; all else raises FrameError."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zmqtrack import records, wire
from zmqtrack.errors import FrameError
from zmqtrack.records import MAX_DEPTH, MAX_INT, MAX_KEY, STATUSES, Record, RunKey

#: The same examples each time: what fails here fails everywhere.
fixed = settings(derandomize=True, max_examples=100, deadline=None, database=None)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    str.strip
)
integers = st.integers(-(2**63), MAX_INT)
times = st.floats(allow_nan=False)
numbers = st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1)
scalars = st.none() | st.booleans() | numbers | text | st.binary(max_size=20)
carried = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def histograms(draw: st.DrawFn) -> dict[str, Any]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    edges = sorted(draw(st.sets(finite, min_size=2, max_size=9)))
    counts = st.integers(0, 2**64 - 1) | st.floats(0, 1e300)
    facts = st.sampled_from(["min", "max", "num", "sum", "sum_squares", "nan", "inf", "-inf"])
    more = draw(st.dictionaries(facts, numbers, max_size=8))
    return {"counts": [draw(counts) for _ in edges[1:]], "edges": edges, **more}


@st.composite
def pieces(draw: st.DrawFn) -> list[Any]:
    piece = draw(st.binary(max_size=30))
    offset = draw(st.integers(0, MAX_INT - len(piece)))
    return [offset, draw(st.integers(offset + len(piece), MAX_INT)), piece]


def _record(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    return st.builds(Record, names, values, st.none() | integers, times)


#: What each data type's records may be.
VALID: dict[str, st.SearchStrategy[Record]] = {
    "run": st.builds(
        Record, st.just("start"), st.dictionaries(names, carried, max_size=4), st.none(), times
    )
    | st.builds(Record, st.just("end"), st.sampled_from(STATUSES), st.none(), times),
    "metric": _record(st.floats(allow_nan=False)),
    "param": _record(carried),
    "tag": _record(text),
    "text": _record(text),
    "image": _record(st.binary(max_size=50)),
    "histogram": _record(histograms()),
    "artifact": _record(pieces()),
    "log": _record(text),
    "lost": _record(st.integers(0, records.MAX_LOST)),
    "confusion_matrix": _record(carried),
}
codecs = st.sampled_from(sorted(wire.CODECS.values()))


def _header(count: int, codec: int = 0) -> wire.Header:
    return wire.Header(b"s" * 16, 1, RunKey("e", "r", "s"), count, codec)


def _decode(data_type: str, frame: bytes, count: int = 1, codec: int = 0) -> list[Record] | None:
    """The records, which must be what their type promises, or None if they were refused."""
    try:
        decoded = wire.decode_body(data_type, _header(count, codec), frame)
    except FrameError as error:
        assert error.reason == "bad_body" and 0 < len(error.detail) < 1000
        return None
    for record in decoded:
        records.check_name("key", record.key, MAX_KEY)
        assert record.step is None or type(record.step) is int
        assert type(record.time) is float
    # What was decoded may be sent on, and is the same then.
    again = wire.encode_body(decoded)
    assert wire.encode_body(wire.decode_body(data_type, _header(count), again)) == again
    return decoded


# --- what may be logged ------------------------------------------------------------------


@pytest.mark.parametrize("data_type", sorted(VALID))
def test_records_of_every_data_type_come_back_as_they_were(data_type: str) -> None:
    @settings(fixed, max_examples=40)
    @given(st.lists(VALID[data_type], min_size=1, max_size=8), codecs)
    def check(logged: list[Record], codec: int) -> None:
        body = wire.encode_body(logged, codec)
        decoded = wire.decode_body(data_type, _header(len(logged), codec), body)
        # 1, 1.0 and True are equal: so are dicts with such keys, but not what they are packed as.
        assert decoded == logged and wire.encode_body(decoded) == wire.encode_body(logged)
        assert all(type(record) is Record for record in decoded)

    check()


@fixed
@given(st.dictionaries(names, carried, max_size=6), names)
def test_a_control_message_comes_back_as_it_was(fields: dict[str, Any], op: str) -> None:
    fields = {k: v for k, v in fields.items() if k not in ("op", "v") and v is not None}
    frame = msgpack.packb({**fields, "op": op, "v": wire.VERSION})
    try:
        decoded = wire.decode_control(frame)
    except FrameError:  # msgpack's own rule for maps here: str and bytes; and 64 bits at most
        with pytest.raises((ValueError, TypeError)):
            records.check_carried([msgpack.unpackb(frame)], greatest=MAX_INT)
        return
    assert decoded == {"op": op, "v": wire.VERSION, **fields}


# --- anything else -----------------------------------------------------------------------

frames = st.one_of(
    [st.builds(wire.encode_body, st.lists(each, min_size=1, max_size=3)) for each in VALID.values()]
)


@st.composite
def mutated(draw: st.DrawFn, sources: st.SearchStrategy[bytes]) -> bytes:
    frame = bytearray(draw(sources))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"])):
            case "flip" if at < len(frame):
                frame[at] = draw(st.integers(0, 255))
            case "cut":
                del frame[at : at + draw(st.integers(1, 9))]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "repeat":
                frame[at:at] = frame[at : at + draw(st.integers(1, 20))]
            case "end":
                del frame[at:]
    return bytes(frame)


types = st.sampled_from(sorted(VALID))


@settings(fixed, max_examples=150)
@given(types, st.binary(max_size=200) | mutated(frames), st.integers(1, 3), codecs)
def test_a_body_of_any_bytes_is_decoded_or_refused(
    data_type: str, frame: bytes, count: int, codec: int
) -> None:
    _decode(data_type, frame, count, codec)


@settings(fixed, max_examples=120)
@given(types, mutated(frames), st.integers(1, 3))
def test_a_broken_body_is_refused_behind_compression_too(
    data_type: str, frame: bytes, count: int
) -> None:
    compressed = _decode(data_type, zstandard.compress(frame), count, wire.CODEC_ZSTD)
    assert repr(compressed) == repr(_decode(data_type, frame, count))  # NaN is not itself


@settings(fixed, max_examples=100)
@given(mutated(frames.map(zstandard.compress)))
def test_broken_compression_is_refused(frame: bytes) -> None:
    _decode("own", frame, 1, wire.CODEC_ZSTD)


@settings(fixed, max_examples=150)
@given(types, st.integers(0, 5), carried, st.data())
@example("run", 4, [{}], None)
def test_columns_of_any_structure_are_decoded_or_refused(
    data_type: str, place: int, content: Any, data: st.DataObject | None
) -> None:
    columns: list[Any] = [["start"], [0], [1], [2.0], [0.5]]
    if data is not None:
        columns[4] = [data.draw(VALID[data_type]).value]
    columns[place:place] = [content] if place == 5 else []
    if place < 5:
        columns[place] = content
    _decode(data_type, msgpack.packb(columns))


header_frames = st.builds(
    lambda seq, name, count: wire.encode_header(
        wire.Header(b"s" * 16, seq, RunKey(name, "r", "s"), count, 0, seq, b"e" * 16)
    ),
    st.integers(1, MAX_INT),
    names,
    st.integers(1, wire.MAX_RECORDS),
)


@settings(fixed, max_examples=150)
@given(
    st.binary(max_size=100)
    | mutated(header_frames)
    | carried.map(msgpack.packb)
    | st.lists(carried, min_size=8, max_size=10).map(lambda fields: msgpack.packb([1, *fields[1:]]))
)
def test_a_header_of_any_bytes_is_decoded_or_refused(frame: bytes) -> None:
    try:
        header = wire.decode_header(frame)
    except FrameError as error:
        assert error.reason in ("bad_header", "bad_version") and 0 < len(error.detail) < 1000
        return
    assert wire.decode_header(wire.encode_header(header))[:6] == header[:6]
    for name in header.run:
        records.check_name("name", name)


@settings(fixed, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=100)
    | carried.map(msgpack.packb)
    | mutated(st.builds(wire.encode_control, names, id=carried, stream=st.binary(max_size=20)))
)
def test_a_control_message_of_any_bytes_is_decoded_or_refused(frame: bytes) -> None:
    try:
        message = wire.decode_control(frame)
    except FrameError as error:
        assert error.reason in ("bad_control", "bad_version") and 0 < len(error.detail) < 1000
        return
    # The daemon puts what it was asked into its answer, and into its log.
    wire.encode_control("refused", id=message.get("id"), stream=message.get("stream"))
    assert repr(message)


@settings(fixed, max_examples=300)
@given(st.binary(max_size=100) | st.builds(wire.topic, text, text) | text.map(str.encode))
def test_a_topic_of_any_bytes_is_decoded_or_refused(frame: bytes) -> None:
    try:
        assert records.check_type(wire.decode_topic(frame))
    except FrameError as error:
        assert error.reason == "bad_type"


# --- each limit, by name -----------------------------------------------------------------


def _body(value: Any = 1.0, key: Any = "k", step: Any = 1, time: Any = 2.0) -> bytes:
    packed: bytes = msgpack.packb([[key], [0], [step], [time], [value]])
    return packed


def _nested(depth: int, kind: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = kind(value)
    return value


@pytest.mark.parametrize("data_type", ["param", "own", "run", "histogram"])
@pytest.mark.parametrize("kind", [lambda v: [v], lambda v: {"a": v}], ids=["lists", "dicts"])
def test_a_value_may_be_nested_so_deep_and_no_deeper(
    data_type: str, kind: Callable[[Any], Any]
) -> None:
    def body(depth: int) -> bytes:
        if data_type == "run":
            return _body({"a": _nested(depth - 1, kind)}, "start")
        if data_type == "histogram":
            return _body({"counts": [1], "edges": [0, 1], "more": _nested(depth - 1, kind)})
        return _body(_nested(depth, kind))

    assert _decode(data_type, body(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 200, 500):
        with pytest.raises(FrameError, match="nested deeper"):
            wire.decode_body(data_type, _header(1), body(depth))


@pytest.mark.parametrize("depth", [900, 990, 1000, 1010, 1020, 1024, 2000, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_nesting_that_python_cannot_print_is_refused(depth: int, opening: bytes) -> None:
    deep = opening * depth + b"\xc0"
    uuid = b"\xc4\x10" + b"s" * 16
    with pytest.raises(FrameError):
        wire.decode_header(deep)
    for at in range(8):  # each field of an otherwise good header
        fields = [b"\x01", uuid, b"\x01", b"\xa1e", b"\xa1r", b"\xa1s", b"\x01", b"\x00"]
        fields[at] = deep
        with pytest.raises(FrameError):
            wire.decode_header(b"\x98" + b"".join(fields))
    for field in (b"\xa1v", b"\xa2id", b"\xa2op"):
        with pytest.raises(FrameError):
            wire.decode_control(b"\x83\xa2op\xa1x\xa1v\x01" + field + deep)
    assert (
        _decode("own", b"\x95\x91\xa1k\x91\x00\x91\xc0\x91\xcb" + bytes(8) + b"\x91" + deep) is None
    )
    with pytest.raises(ValueError):
        records.check_type(_nested(min(depth, 5000), lambda v: [v]))
    with pytest.raises(TypeError):
        records.check_name("name", _nested(min(depth, 5000), lambda v: [v]))


@pytest.mark.parametrize(
    "key", ["", " ", "a\nb", "\x00", "\x7f", "k" * 1001, "é" * 501, 7, None, b"k", ["k"]]
)
def test_a_key_that_cannot_be_logged_is_refused(key: Any) -> None:
    assert _decode("metric", _body(key=key)) is None
    assert (
        _decode("metric", msgpack.packb([["k", key], [0, 0], [1, 1], [2.0, 2.0], [1.0, 1.0]]), 2)
        is None
    )


@pytest.mark.parametrize(
    "key", ["k" * 1000, "é" * 500, "k\u2028", " k", "\U0001f600" * 250, "../../x"]
)
def test_a_key_that_can_be_logged_is_not(key: str) -> None:
    assert records.check_name("key", key, MAX_KEY)
    assert _decode("metric", _body(key=key))


def test_a_table_of_keys_that_no_record_has_is_refused() -> None:
    assert _decode("metric", msgpack.packb([["a", "b"], [0], [1], [2.0], [1.0]])) is None


def test_text_that_is_not_unicode_is_refused() -> None:
    for data_type in ("tag", "text", "log", "param", "own"):
        for odd in (b"\xff", b"\xed\xa0\x80"):  # the second: a lone surrogate
            good = _body("x" * len(odd))
            assert _decode(data_type, good)
            assert _decode(data_type, good.replace(b"x" * len(odd), odd)) is None


EXTENSIONS = [
    msgpack.ExtType(5, b"x"), msgpack.ExtType(5, b""), msgpack.Timestamp(1), msgpack.Timestamp(1, 2)
]  # fmt: skip


@pytest.mark.parametrize("odd", EXTENSIONS)
def test_extension_types_are_refused_wherever_they_are(odd: Any) -> None:
    for value in (odd, [odd], {"a": odd}, {odd: 1}):
        for data_type in ("param", "own", "run", "histogram"):
            with pytest.raises(FrameError, match="bad_body: not msgpack"):
                wire.decode_body(data_type, _header(1), _body(value))
    with pytest.raises(FrameError, match="bad_control: not msgpack"):
        wire.decode_control(msgpack.packb({"op": "x", "v": 1, "a": odd}))
    with pytest.raises(FrameError, match="bad_header: not msgpack"):
        wire.decode_header(msgpack.packb([1, b"s" * 16, 1, "e", "r", "s", 1, 0, odd, odd]))
    for value in (odd, [odd], {"a": odd}, {odd: 1}):  # and at the call that would log it
        with pytest.raises(TypeError):
            records.check_values("", [value])


@pytest.mark.parametrize(
    ("data_type", "value"),
    [
        ("run", "finished"),  # under the key "k"
        ("lost", -1), ("lost", records.MAX_LOST + 1), ("lost", True), ("lost", 1.0),
        ("artifact", [0, 2**63, b""]), ("artifact", [0, 1.0, b"x"]), ("artifact", [False, 1, b"x"]),
        ("histogram", {"counts": [], "edges": [0]}),
        ("histogram", {"counts": [1], "edges": [0, 0]}),
        ("histogram", {"counts": [1], "edges": [1, 0]}),
        ("histogram", {"counts": [1], "edges": [0, math.nan]}),
        ("histogram", {"counts": [1], "edges": [0, math.inf]}),
        ("histogram", {"counts": [-1], "edges": [0, 1]}),
        ("histogram", {"counts": [math.nan], "edges": [0, 1]}),
        ("histogram", {"counts": [math.inf], "edges": [0, 1]}),
        ("histogram", {"counts": [True], "edges": [0, 1]}),
        ("histogram", {"counts": ["1"], "edges": [0, 1]}),
        ("histogram", {"counts": [1], "edges": [0, 1], "min": "0"}),
        ("histogram", {"counts": [1], "edges": [0, 1], "nan": [1]}),
        ("metric", 1), ("metric", True), ("image", "text"), ("tag", b"x"), ("text", None),
        ("own", {b"a": {(): 1}}),
    ],
)  # fmt: skip
def test_a_value_that_its_type_does_not_promise_is_refused(data_type: str, value: Any) -> None:
    assert _decode(data_type, _body(value)) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("start", "x"), ("end", {}), ("end", "over"), ("end", ["finished"]), ("middle", {})],
)
def test_a_run_starts_and_ends_as_it_can(key: str, value: Any) -> None:
    assert _decode("run", _body(value, key)) is None


def test_a_step_is_an_integer_of_64_bits_or_none() -> None:
    for step in (0, None, MAX_INT, -(2**63)):
        assert _decode("metric", _body(step=step))
    odd: list[Any] = [MAX_INT + 1, True, 1.0, math.nan, "1"]
    for step in odd:
        assert _decode("metric", _body(step=step)) is None
    for steps in ([None, 0], [0, 0], [None, None], [None, MAX_INT]):
        assert _decode("metric", msgpack.packb([["k"], [0, 0], steps, [2.0] * 2, [1.0] * 2]), 2)
    body = msgpack.packb([["k"], [0, 0], [None, MAX_INT + 1], [2.0] * 2, [1.0] * 2])
    assert _decode("metric", body, 2) is None


def test_an_integer_beyond_64_bits_has_no_place_in_a_control_message() -> None:
    for message in ({"a": 2**63}, {"a": [{"b": 2**64 - 1}]}):
        with pytest.raises(FrameError, match="an integer beyond"):
            wire.decode_control(wire.encode_control("x", **message))
    assert wire.decode_control(wire.encode_control("x", a=MAX_INT, b=-(2**63)))


def test_the_fields_of_a_control_message_have_names() -> None:
    for odd in (b"x", b"op"):
        with pytest.raises(FrameError, match="bad_control"):
            wire.decode_control(msgpack.packb({"op": "x", "v": 1, odd: 1}))


def test_the_version_is_an_integer_and_ours() -> None:
    for version in (True, 1.0, "1", None, [1], 2):
        with pytest.raises(FrameError, match="bad_version"):
            wire.decode_control(msgpack.packb({"op": "x", "v": version}))
        with pytest.raises(FrameError, match="bad_version"):
            wire.decode_header(msgpack.packb([version, b"s" * 16, 1, "e", "r", "s", 1, 0]))


def test_arrays_that_only_announce_their_items_take_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 1 << 20
    bomb = (b"\xdd" + struct.pack(">I", size - 6000)) * 1000
    bomb += bytes(size - len(bomb) - 100)

    def unpack(*args: Any, **options: Any) -> None:
        raise AssertionError("memory is taken for the arrays")

    monkeypatch.setattr(msgpack, "unpackb", unpack)
    with pytest.raises(FrameError, match="bad_body"):
        wire.decode_body("own", _header(1), bomb)
    with pytest.raises(FrameError, match="bad_control"):
        wire.decode_control(bomb)


def test_a_small_message_cannot_become_a_great_many_lists_and_dicts() -> None:
    for item in (b"\x80", b"\x90"):
        n = records.MAX_CONTAINERS + 1
        values = b"\x91\xdd" + struct.pack(">I", n) + item * n
        body = b"\x95\x91\xa1k\x91\x00\x91\xc0\x91\xcb" + bytes(8) + values
        compressed = zstandard.compress(body)
        assert len(compressed) < 1000
        with pytest.raises(FrameError, match="not msgpack: ValueError: more than 1048576 lists"):
            wire.decode_body("own", _header(1, wire.CODEC_ZSTD), compressed)
    with pytest.raises(TypeError, match="lists and dicts"):
        records.check_values("", [[[]] * (records.MAX_CONTAINERS + 1)])


def test_a_long_list_of_one_value_is_no_bomb() -> None:
    values = [[float(i)] * 3 for i in range(100_000)]
    decoded = _decode("own", _body(values))
    assert decoded and decoded[0].value == values


ONE = zstandard.compress(_body())
ODD_COMPRESSION = {
    "two frames": ONE + ONE,
    "a skippable frame before": b"\x50\x2a\x4d\x18\x01\0\0\0x" + ONE,
    "a skippable frame behind": ONE + b"\x50\x2a\x4d\x18\x01\0\0\0x",
    "a skippable frame alone": b"\x50\x2a\x4d\x18\x01\0\0\0x",
    "something behind": ONE + b"\0",
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress(_body()),
    "nothing in it": zstandard.compress(b""),
    "nothing": b"",
    "cut off": ONE[:-1],
    "a dictionary": zstandard.ZstdCompressor(
        dict_data=zstandard.train_dictionary(
            500, [_body(str(i) * 20, f"key {i}") for i in range(500)]
        )
    ).compress(_body()),
    # The header of a frame: a window of 128 MiB, a size of 100, then one empty last block.
    "a window of 128 MiB": b"\x28\xb5\x2f\xfd\xc0\x88" + struct.pack("<Q", 100) + b"\x01\0\0",
    "more than it says": ONE[:5] + bytes([ONE[5] - 1]) + ONE[6:],
    "less than it says": ONE[:5] + bytes([ONE[5] + 1]) + ONE[6:],
}


@pytest.mark.parametrize("name", sorted(ODD_COMPRESSION))
def test_odd_compression_is_refused(name: str) -> None:
    assert _decode("metric", ONE, 1, wire.CODEC_ZSTD)
    assert _decode("metric", ODD_COMPRESSION[name], 1, wire.CODEC_ZSTD) is None


def test_a_window_that_is_too_large_is_refused_before_any_is_made() -> None:
    with pytest.raises(FrameError, match="too large a window"):
        wire.decode_body("own", _header(1, 1), ODD_COMPRESSION["a window of 128 MiB"])
    with pytest.raises(FrameError, match="dictionary"):
        wire.decode_body("own", _header(1, 1), ODD_COMPRESSION["a dictionary"])


@pytest.mark.parametrize("level", [-5, 1, 3, 9, 19, 22])
def test_a_body_of_the_largest_size_may_be_compressed_at_any_level(level: int) -> None:
    body = _body(b"x" * (wire.MAX_BODY - 100))
    compressed = zstandard.ZstdCompressor(level=level).compress(body)
    assert wire.decode_body("image", _header(1, wire.CODEC_ZSTD), compressed)
