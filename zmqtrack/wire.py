"""Frames ↔ batches, and control messages. All byte rules stand here; no socket does.

A batch holds records of one data type and one run key. On the wire it is three frames::

      frame 0: topic                frame 1: header              frame 2: body
    ┌───────────────────────┐   ┌──────────────────────────┐   ┌──────────────────────────┐
    │ writer → daemon       │   │ msgpack array            │   │ msgpack array of columns │
    │   metric/             │   │ 0 version        uint    │   │ 0 keys   [str], distinct │
    │ daemon → subscriber   │   │ 1 stream     16 bytes    │   │ 1 index  [uint] into 0   │
    │   metric/site-1/      │   │ 2 seq     uint, from 1   │   │ 2 steps  [int | nil]     │
    │                       │   │ 3 experiment     str     │   │ 3 times  [float], s      │
    │ each part ends in "/":│   │ 4 run            str     │   │ 4 values [any]           │
    │ ZeroMQ matches topics │   │ 5 site           str     │   │                          │
    │ by prefix. The site   │   │ 6 count  uint, records   │   │ as it is (codec 0), or   │
    │ is percent-encoded.   │   │ 7 codec          uint    │   │ one zstd frame (codec 1) │
    └───────────────────────┘   ├──────────────────────────┤   │                          │
                                │ daemon → subscriber adds │   │ The daemon never looks   │
                                │ 8 offset  uint, from 1   │   │ inside.                  │
                                │ 9 epoch      16 bytes    │   └──────────────────────────┘
                                └──────────────────────────┘

A control message begins with a msgpack map that has at least ``op`` and ``v``, the version;
``page`` and ``commit`` are followed by two frames (header, body) for each batch in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote

import msgpack

from .errors import FrameError
from .records import Record, RunKey, check_name, check_type, check_values

__all__ = [
    "CODECS",
    "MAX_BODY",
    "MAX_HEADER",
    "MAX_RECORDS",
    "VERSION",
    "Batch",
    "Header",
    "decode_body",
    "decode_control",
    "decode_header",
    "decode_topic",
    "encode_body",
    "encode_control",
    "encode_header",
    "topic",
]

#: Version of the protocol; a daemon refuses what it does not know.
VERSION = 1

#: Most bytes in a body, as sent and as expanded.
MAX_BODY = 8 << 20
#: Most records in a batch.
MAX_RECORDS = 10_000
#: Most bytes in a topic or header.
MAX_HEADER = 4096
#: Most bytes in a control message (its first frame).
MAX_CONTROL = 1 << 20
CODEC_PLAIN = 0
CODEC_ZSTD = 1
#: Codec names as users write them.
CODECS = {"none": CODEC_PLAIN, "zstd": CODEC_ZSTD}


class Header(NamedTuple):
    """What the daemon reads of a batch. ``offset`` is 0 until it is journalled."""

    stream: bytes
    seq: int
    run: RunKey
    count: int  # type: ignore[assignment]  # the tuple method of that name is not used
    codec: int = CODEC_PLAIN
    offset: int = 0
    epoch: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one data type and one run key, as a subscriber gets them.

    ``header.stream``, ``header.seq`` and a record's place, counted from :attr:`first`, name
    each record uniquely and for ever.
    """

    type: str
    header: Header
    records: Sequence[Record]
    first: int = 0

    @property
    def run(self) -> RunKey:
        return self.header.run

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def part(self, start: int, end: int) -> Batch:
        """The same batch with its records from ``start`` to before ``end``."""
        return replace(self, records=self.records[start:end], first=self.first + start)


# --- topic -------------------------------------------------------------------------------


def topic(data_type: str, site: str | None = None) -> bytes:
    """``b"metric/"``, or with a site ``b"metric/site-1/"``."""
    return (f"{data_type}/" if site is None else f"{data_type}/{quote(site, safe='')}/").encode()


def decode_topic(frame: bytes) -> str:
    """The data type that a topic names.

    Raises:
        FrameError: ``bad_type``.
    """
    if len(frame) > MAX_HEADER:
        raise FrameError("bad_type", f"topic of {len(frame)} bytes")
    name, slash, _ = bytes(frame).partition(b"/")
    try:
        if not slash:
            raise ValueError(f"topic {bytes(frame)!r:.80} does not end in '/'")
        return check_type(name.decode())
    except ValueError as error:
        raise FrameError("bad_type", str(error)) from None


# --- header ------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """Frame 1 of a batch; offset and epoch only when there is an offset."""
    fields = [VERSION, header.stream, header.seq, *header.run, header.count, header.codec]
    if header.offset:
        fields += [header.offset, header.epoch]
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_header(frame: bytes) -> Header:
    """The header in frame 1 of a batch.

    Raises:
        FrameError: ``bad_version`` or ``bad_header``.
    """
    if len(frame) > MAX_HEADER:
        raise FrameError("bad_header", f"header of {len(frame)} bytes; at most {MAX_HEADER}")
    try:
        # Bounded by MAX_HEADER, so msgpack's own limits have nothing left to bound but depth.
        fields = msgpack.unpackb(frame, use_list=False, max_array_len=16, max_map_len=0)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError("bad_header", f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(fields, tuple) or not fields:
        raise FrameError("bad_header", f"expected an array, got {type(fields).__name__}")
    if fields[0] != VERSION:
        raise FrameError("bad_version", f"{fields[0]!r:.40}; this side speaks {VERSION}")
    if len(fields) not in (8, 10):
        raise FrameError("bad_header", f"expected 8 or 10 fields, got {len(fields)}")
    _, stream, seq, experiment, run, site, count, codec, *rest = fields
    offset, epoch = rest or (0, b"")
    if not isinstance(stream, bytes) or len(stream) != 16:
        raise FrameError("bad_header", "the stream is no UUID of 16 bytes")
    for name, number, low, high in (
        ("seq", seq, 1, 2**63 - 1),
        ("count", count, 1, MAX_RECORDS),
        ("codec", codec, 0, max(CODECS.values())),
        ("offset", offset, 0, 2**63 - 1),
    ):
        if type(number) is not int or not low <= number <= high:
            raise FrameError("bad_header", f"{name} is {number!r:.40}, not {low} to {high}")
    if not isinstance(epoch, bytes) or len(epoch) not in (0, 16):
        raise FrameError("bad_header", "the epoch is no UUID of 16 bytes")
    try:
        for name, part in (("experiment", experiment), ("run", run), ("site", site)):
            check_name(name, part)
    except (TypeError, ValueError) as error:
        raise FrameError("bad_header", str(error)) from None
    return Header(stream, seq, RunKey(experiment, run, site), count, codec, offset, epoch)


# --- body --------------------------------------------------------------------------------


def encode_body(records: Sequence[tuple[Any, ...]], codec: int = CODEC_PLAIN) -> bytes:
    """Frame 2 of a batch: the records (or longer tuples that begin so), column by column.

    Raises:
        TypeError, ValueError, OverflowError: a value that msgpack cannot carry.
    """
    keys, values, steps, times, *_ = zip(*records)  # noqa: B905 -- records are of one length
    table = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    index = [0] * len(keys) if len(table) == 1 else [table[key] for key in keys]
    columns = (list(table), index, steps, times, values)
    packed: bytes = msgpack.packb(columns)
    if codec == CODEC_ZSTD:
        import zstandard  # optional, and only where it was asked for

        packed = zstandard.compress(packed)
    return packed


def decode_body(data_type: str, header: Header, frame: bytes) -> list[Record]:
    """The records in frame 2 of a batch; each value is of the shape that its type promises.

    Raises:
        FrameError: ``bad_body``; or ``missing_codec`` where zstandard is not installed.
    """
    if len(frame) > MAX_BODY:
        raise FrameError("bad_body", f"{len(frame)} bytes; at most {MAX_BODY}")
    if header.codec == CODEC_ZSTD:
        frame = _expand(frame)
    try:
        columns = msgpack.unpackb(frame, use_list=True, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError("bad_body", f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(columns, list) or len(columns) != 5:
        raise FrameError("bad_body", "expected an array of 5 columns")
    if not all(isinstance(column, list) for column in columns):
        raise FrameError("bad_body", "a column is no array")
    keys, index, steps, times, values = columns
    if not len(index) == len(steps) == len(times) == len(values) == header.count:
        raise FrameError("bad_body", f"the columns are not {header.count} long, as the header says")
    # Whole columns at a time: this is on the way of every record to every adapter.
    try:
        if not set(map(type, keys)) <= {str}:
            raise TypeError("a key is no string")
        if not set(map(type, steps)) <= {int, NoneType}:
            raise TypeError("a step is no integer")
        if not set(map(type, times)) <= {float}:
            raise TypeError("a time is no float")
        if set(map(type, index)) != {int} or min(index) < 0:
            raise IndexError("a key index is no unsigned integer")
        check_values(data_type, values)
        named = [keys[i] for i in index]
    except (TypeError, IndexError) as error:
        raise FrameError("bad_body", str(error)) from None
    return list(map(Record._make, zip(named, values, steps, times, strict=True)))


def _expand(frame: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise FrameError("missing_codec", "the body is zstd: pip install zstandard") from None
    try:
        # The size is announced in the zstd frame: an honest one is refused before it is
        # expanded, and a false one does not get past max_output_size.
        if not 0 <= zstandard.frame_content_size(frame) <= MAX_BODY:
            raise FrameError("bad_body", f"expands to more than {MAX_BODY} bytes, or does not say")
        expanded: bytes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=MAX_BODY)
    except zstandard.ZstdError as error:
        raise FrameError("bad_body", f"not zstd: {error}") from None
    return expanded


# --- control -----------------------------------------------------------------------------


def encode_control(op: str, **fields: Any) -> bytes:
    """One control message; ``None`` fields are left out."""
    packed: bytes = msgpack.packb(
        {"op": op, "v": VERSION, **{k: v for k, v in fields.items() if v is not None}}
    )
    return packed


def decode_control(frame: bytes) -> dict[str, Any]:
    """The map in a control message.

    Raises:
        FrameError: ``bad_control``, ``bad_version``.
    """
    if len(frame) > MAX_CONTROL:
        raise FrameError("bad_control", f"{len(frame)} bytes; at most {MAX_CONTROL}")
    try:
        message = msgpack.unpackb(frame)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError("bad_control", f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise FrameError("bad_control", "expected a map with the string 'op'")
    if message.get("v") != VERSION:
        raise FrameError("bad_version", f"{message.get('v')!r:.40}; this side speaks {VERSION}")
    return message
