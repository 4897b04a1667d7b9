"""Frames ↔ batches: what goes in comes out, and bad bytes raise FrameError and nothing else."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqtrack import wire
from zmqtrack.errors import FrameError
from zmqtrack.records import MAX_KEY, Record, RunKey

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60).filter(
    str.strip
)
integers = st.integers(-(2**63), 2**63 - 1)
times = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text(
        st.characters(exclude_categories=["Cs"])
    ) | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


def _records(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Record]]:
    return st.lists(
        st.builds(Record, names, values, st.none() | integers, times), min_size=1, max_size=30
    )


def _header(count: int, codec: int = 0) -> wire.Header:
    return wire.Header(b"s" * 16, 1, RunKey("e", "r", "s"), count, codec)


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(1, 2**63 - 1),
    names, names, names,
    st.integers(1, wire.MAX_RECORDS),
    st.sampled_from([0, 1]),
    st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_a_header_comes_back_as_it_was(
    stream: bytes, seq: int, e: str, r: str, s: str, count: int, codec: int, offset: int
) -> None:
    header = wire.Header(
        stream, seq, RunKey(e, r, s), count, codec, offset, b"e" * 16 if offset else b""
    )
    assert wire.decode_header(wire.encode_header(header)) == header


@given(_records(plain), st.sampled_from(list(wire.CODECS.values())))
def test_records_come_back_as_they_were(records: list[Record], codec: int) -> None:
    body = wire.encode_body(records, codec)
    assert wire.decode_body("own", _header(len(records), codec), body) == records


@given(_records(st.floats()))
def test_every_float_comes_back_bit_for_bit(records: list[Record]) -> None:
    decoded = wire.decode_body("metric", _header(len(records)), wire.encode_body(records))
    for before, after in zip(records, decoded, strict=True):
        assert (math.isnan(before.value) and math.isnan(after.value)) or (
            before.value == after.value
            and math.copysign(1, before.value) == math.copysign(1, after.value)
        )
        assert before[0] == after[0] and before[2:] == after[2:]


@given(names)
def test_a_topic_names_its_data_type_whatever_the_site_is_called(site: str) -> None:
    topic = wire.topic("metric", site)
    assert wire.decode_topic(topic) == "metric"
    assert topic.count(b"/") == 2 and topic.endswith(b"/")


def test_no_site_is_a_prefix_of_another_on_the_publish_socket() -> None:
    assert not wire.topic("metric", "w10").startswith(wire.topic("metric", "w1"))
    assert not wire.topic("metric", "a/b").startswith(wire.topic("metric", "a"))


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused_with_a_frame_error(frame: bytes) -> None:
    for decode in (
        wire.decode_topic,
        wire.decode_header,
        wire.decode_control,
        lambda frame: wire.decode_body("metric", _header(3), frame),
        lambda frame: wire.decode_body("own", _header(3, wire.CODEC_ZSTD), frame),
    ):
        try:
            decode(frame)
        except FrameError as error:
            assert error.reason and error.detail


@settings(max_examples=300)
@given(
    st.sampled_from(["metric", "tag", "text", "image", "histogram", "artifact", "log", "own"]),
    st.lists(plain, min_size=1, max_size=8),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_columns_of_any_content_are_decoded_or_refused(
    data_type: str, content: list[Any], place: int, random: Any
) -> None:
    columns: list[Any] = [["a"], [0], [1], [2.0], [3.0]]
    columns[place] = random.choice([content, content[0]])
    try:
        records = wire.decode_body(data_type, _header(1), msgpack.packb(columns))
    except FrameError:
        return
    (record,) = records
    assert isinstance(record.key, str) and type(record.time) is float


@pytest.mark.parametrize(
    "pieces", [[0, 10, b"12345"], [5, 10, b"12345"], [0, 0, b""]], ids=["first", "last", "empty"]
)
def test_a_piece_of_an_artifact_lies_within_its_file(pieces: list[Any]) -> None:
    body = wire.encode_body([Record("a", pieces, None, 1.0)])
    assert wire.decode_body("artifact", _header(1), body)
    for bad in ([6, 10, b"12345"], [-1, 10, b"1"], [0, 10], ["0", 10, b"1"], [0, 10, "text"]):
        body = wire.encode_body([Record("a", bad, None, 1.0)])
        with pytest.raises(FrameError, match="piece"):
            wire.decode_body("artifact", _header(1), body)


def test_a_zstd_bomb_is_refused_before_it_is_expanded() -> None:
    import zstandard

    bomb = zstandard.compress(b"\0" * (wire.MAX_BODY + 1))
    assert len(bomb) < 2000
    with pytest.raises(FrameError, match="expands to more"):
        wire.decode_body("own", _header(1, wire.CODEC_ZSTD), bomb)


def test_a_control_message_keeps_its_fields_and_leaves_none_out() -> None:
    frame = wire.encode_control("hello", stream=b"x", seq=None, run=["e", "r", "s"])
    assert wire.decode_control(frame) == {
        "op": "hello",
        "v": wire.VERSION,
        "stream": b"x",
        "run": ["e", "r", "s"],
    }


def test_a_name_is_bounded_in_bytes_not_letters() -> None:
    long = wire.encode_header(wire.Header(b"s" * 16, 1, RunKey("e", "r", "é" * 126), 1))
    with pytest.raises(FrameError, match="252 bytes; at most 250"):
        wire.decode_header(long)
    assert MAX_KEY == 1000
