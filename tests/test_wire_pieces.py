"""Pieces of a large value on the wire, and the value that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqtrack import peek, wire
from zmqtrack.errors import FrameError
from zmqtrack.records import UNCUT, Record, RunKey


def _header(codec: int = wire.CODEC_PIECES, count: int = 1) -> wire.Header:
    return wire.Header(b"s" * 16, 1, RunKey("e", "r", "s"), count, codec)


def _body(value: Any, codec: int = 0) -> bytes:
    return wire.encode_body([Record("k", value, 1, 2.0)], codec)


@pytest.mark.parametrize("codec", [wire.CODEC_PIECES, wire.CODEC_PIECES | wire.CODEC_ZSTD])
def test_a_piece_comes_back_as_it_was_and_shows_the_size_of_the_whole(codec: int) -> None:
    if codec & wire.CODEC_ZSTD:
        pytest.importorskip("zstandard")
    header = wire.decode_header(wire.encode_header(_header(codec)))
    assert header.in_pieces
    body = _body((3, 1 << 40, memoryview(b"abc"), 7), codec)
    (record,) = wire.decode_body("image", header, body)
    assert record.value == [3, 1 << 40, b"abc", 7]
    assert peek.sizes("image", codec, body) == [1 << 40]
    assert peek.keys(codec, body) == ["k"]


@pytest.mark.parametrize(
    "value",
    [
        [0, 3, b"abc"],
        [0, 3, b"", 1],
        [1, 3, b"abc", 1],
        [-1, 3, b"a", 1],
        [0, 3, "abc", 1],
        [0, 3, b"abc", None],
        [0, 2**63, b"abc", 1],
        b"abc",
    ],
)
def test_what_is_no_piece_is_refused(value: Any) -> None:
    with pytest.raises(FrameError, match="piece"):
        wire.decode_body("image", _header(), _body(value))


@pytest.mark.parametrize("data_type", sorted(UNCUT))
def test_some_data_types_never_come_in_pieces(data_type: str) -> None:
    with pytest.raises(FrameError, match="in pieces"):
        wire.decode_body(data_type, _header(), _body([0, 3, b"abc", 1]))


def test_a_codec_that_is_unknown_is_refused() -> None:
    with pytest.raises(FrameError, match="codec"):
        wire.decode_header(wire.encode_header(_header(4)))


@given(st.binary(max_size=200), st.sampled_from(["text", "image", "histogram", "own", "tag"]))
def test_any_bytes_become_a_value_of_their_type_or_are_refused(packed: bytes, kind: str) -> None:
    try:
        value = wire.decode_value(kind, "k", packed)
    except FrameError as error:
        assert error.reason == "bad_body"
    else:
        types = {"text": str, "tag": str, "image": bytes, "histogram": dict}
        assert isinstance(value, types.get(kind, object))


@given(st.text() | st.binary() | st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_a_value_comes_back_from_its_encoding(value: Any) -> None:
    packed = wire.encode_value(value)
    assert wire.decode_value("own", "k", packed) == value


def test_the_length_of_text_and_bytes_is_theirs_and_not_that_of_msgpack() -> None:
    for value, length in (("ä" * 70_000, 140_000), (b"x" * 70_000, 70_000), ([1] * 9, 10)):
        packed = wire.encode_value(value)
        assert wire.length((0, len(packed), memoryview(packed)[:10], 1)) == length


def test_a_value_is_read_from_its_file(tmp_path: Path) -> None:
    from zmqtrack.adapters.artifacts import load

    path = tmp_path / "file"
    path.write_bytes(wire.encode_value("text"))
    assert load("text", Record("k", path, 1, 2.0)) == Record("k", "text", 1, 2.0)
    path.write_bytes(wire.encode_value("text") + b"more")
    with pytest.raises(FrameError, match="from pieces"):
        load("text", Record("k", path, 1, 2.0))
