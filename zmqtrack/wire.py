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
    │ by prefix. The site   │   │ 6 count  uint, records   │   │ codec + 1: all of it is  │
    │ is percent-encoded.   │   │ 7 codec          uint    │   │   one zstd frame         │
    └───────────────────────┘   │ 8 step   int | nil, the  │   │ codec + 2: the values    │
                                │          records' highest│   │   are pieces of others,  │
                                │ 9 rows      uint, 0 to 3 │   │   [offset, size, bytes,  │
                                ├──────────────────────────┤   │   number]                │
                                │ daemon → subscriber adds │   └──────────────────────────┘
                                │ 10 offset uint, from 1   │
                                │ 11 epoch     16 bytes    │
                                └──────────────────────────┘

A value that is too large for one body travels in pieces of its msgpack encoding, which has ``size``
bytes in all. The pieces have the same key, step, time and ``number``, which no other value of the
stream has, and come in the order of their offsets. The daemon never puts them together.

``rows`` other than 0 says that the records of one time are one row (of a tool that logs in rows),
and how far the rows of this batch go: 1 all are whole; 2 some go on in the stream's next batch
that has ``rows``; 3 all are whole but the last one, to which the writer may still add.

A control message begins with a msgpack map that has at least ``op`` and ``v``, the version;
``page`` and ``commit`` are followed by two frames (header, body) for each batch in them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from mmap import mmap
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote

import msgpack

from .errors import FrameError
from .records import (
    MAX_CONTAINERS,
    MAX_INT,
    PIECES,
    UNCUT,
    Record,
    RunKey,
    check_carried,
    check_keys,
    check_name,
    check_type,
    check_values,
)

__all__ = [
    "CODECS",
    "CODEC_PIECES",
    "MAX_BODY",
    "MAX_HEADER",
    "MAX_RECORDS",
    "ROWS_GO_ON",
    "ROWS_LAST_OPEN",
    "ROWS_WHOLE",
    "VERSION",
    "Batch",
    "Header",
    "decode_body",
    "decode_control",
    "decode_header",
    "decode_topic",
    "decode_value",
    "encode_body",
    "encode_control",
    "encode_header",
    "encode_value",
    "length",
    "pack",
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
#: Most items in one array or map of a control message.
MAX_ITEMS = 1 << 16
CODEC_PLAIN = 0
CODEC_ZSTD = 1
#: Added to either: the values are pieces.
CODEC_PIECES = 2
#: How the rows of a batch end (:attr:`Header.rows`); 0: its records are not rows.
ROWS_WHOLE, ROWS_GO_ON, ROWS_LAST_OPEN = 1, 2, 3
#: Codec names as users write them.
CODECS = {"none": CODEC_PLAIN, "zstd": CODEC_ZSTD}


class Header(NamedTuple):
    """What the daemon reads of a batch. ``offset`` is 0 until it is journalled.

    ``step`` is the highest of its records; None: none has one, or the writer does not say.
    """

    stream: bytes
    seq: int
    run: RunKey
    count: int  # type: ignore[assignment]  # the tuple method of that name is not used
    codec: int = CODEC_PLAIN
    offset: int = 0
    epoch: bytes = b""
    step: int | None = None
    rows: int = 0

    @property
    def in_pieces(self) -> bool:
        return bool(self.codec & CODEC_PIECES)


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
            raise ValueError(f"topic {bytes(frame[:80])!r:.80} does not end in '/'")
        return check_type(name.decode())
    except ValueError as error:
        raise FrameError("bad_type", str(error)) from None


# --- header ------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """Frame 1 of a batch; offset and epoch only when there is an offset."""
    fields = [
        VERSION, header.stream, header.seq, *header.run, header.count, header.codec,
        header.step, header.rows,
    ]  # fmt: skip
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
        fields = msgpack.unpackb(
            frame,
            use_list=False,
            max_str_len=MAX_HEADER,
            max_bin_len=16,
            max_array_len=16,
            max_map_len=0,
            max_ext_len=0,
            ext_hook=_no_extension,
        )
    except _NOT_MSGPACK as error:
        raise FrameError("bad_header", f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(fields, tuple) or not fields:
        raise FrameError("bad_header", f"expected an array, got {type(fields).__name__}")
    _check_version(fields[0])
    if len(fields) not in (10, 12):
        raise FrameError("bad_header", f"expected 10 or 12 fields, got {len(fields)}")
    _, stream, seq, experiment, run, site, count, codec, *rest = fields
    step, rows, *rest = rest
    offset, epoch = rest or (0, b"")
    if not isinstance(stream, bytes) or len(stream) != 16:
        raise FrameError("bad_header", "the stream is no UUID of 16 bytes")
    for name, number, low, high in (
        ("seq", seq, 1, 2**63 - 1),
        ("count", count, 1, MAX_RECORDS),
        ("codec", codec, 0, CODEC_ZSTD | CODEC_PIECES),
        ("offset", offset, 0, 2**63 - 1),
        ("rows", rows, 0, ROWS_LAST_OPEN),
    ):
        if type(number) is not int or not low <= number <= high:
            raise FrameError("bad_header", f"{name} is {reprlib.repr(number)}, not {low} to {high}")
    if not isinstance(epoch, bytes) or len(epoch) not in (0, 16):
        raise FrameError("bad_header", "the epoch is no UUID of 16 bytes")
    if step is not None and (type(step) is not int or step > MAX_INT):
        raise FrameError("bad_header", f"step is {reprlib.repr(step)}, no integer of 64 bits")
    try:
        for name, part in (("experiment", experiment), ("run", run), ("site", site)):
            check_name(name, part)
    except (TypeError, ValueError) as error:
        raise FrameError("bad_header", str(error)) from None
    key = RunKey(experiment, run, site)
    return Header(stream, seq, key, count, codec, offset, epoch, step, rows)


# --- body --------------------------------------------------------------------------------


def encode_body(records: Sequence[tuple[Any, ...]], codec: int = CODEC_PLAIN) -> bytes:
    """Frame 2 of a batch: the records (or longer tuples that begin so), column by column.

    Their keys are those that a writer appends; of decoded records ``wire_key`` gives them back.

    Raises:
        TypeError, ValueError, OverflowError: a value that msgpack cannot carry.
    """
    return pack(records, codec)[0]


def pack(records: Sequence[tuple[Any, ...]], codec: int = CODEC_PLAIN) -> tuple[bytes, int | None]:
    """As :func:`encode_body`, and the highest step of the records, which the header tells."""
    keys, values, steps, times, *_ = zip(*records)  # noqa: B905 -- records are of one length
    table = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    index = [0] * len(keys) if len(table) == 1 else [table[key] for key in keys]
    columns = (list(table), index, steps, times, values)
    packed: bytes = msgpack.packb(columns)
    if codec & CODEC_ZSTD:
        import zstandard  # optional, and only where it was asked for

        packed = zstandard.compress(packed)
    return packed, _highest(steps)


def _highest(steps: tuple[int | None, ...]) -> int | None:
    try:
        return max(steps)  # type: ignore[type-var]  # the usual case: all have one
    except TypeError:
        return max((step for step in steps if step is not None), default=None)


def decode_body(data_type: str, header: Header, frame: bytes) -> list[Record]:
    """The records in frame 2 of a batch; each value is of the shape that its type promises.

    Raises:
        FrameError: ``bad_body``; or ``missing_codec`` where zstandard is not installed.
    """
    if len(frame) > MAX_BODY:
        raise FrameError("bad_body", f"{len(frame)} bytes; at most {MAX_BODY}")
    if header.in_pieces and data_type in UNCUT:
        raise FrameError("bad_body", f"a {data_type} in pieces")
    if header.codec & CODEC_ZSTD:
        frame = _expand(frame)
    try:
        columns = _unpack(frame)
    except _NOT_MSGPACK as error:
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
        if not set(map(type, keys)) <= {str} or len(keys) > header.count:
            raise TypeError("a key is no string, or is never used")
        keys = check_keys(keys, data_type)
        found = set(map(type, steps))
        if not found <= {int, NoneType}:
            raise TypeError("a step is no integer")
        whole = filter(None, steps) if NoneType in found else steps
        if max(whole, default=0) > MAX_INT:
            raise TypeError("a step is beyond 64 bits")
        if not set(map(type, times)) <= {float}:
            raise TypeError("a time is no float")
        if set(map(type, index)) != {int} or min(index) < 0:
            raise IndexError("a key index is no unsigned integer")
        named = list(map(keys.__getitem__, index))
        check_values(PIECES if header.in_pieces else data_type, values, named)
    except (TypeError, ValueError, IndexError) as error:
        raise FrameError("bad_body", str(error)) from None
    # Record._make does the same, with a call in Python for each.
    rows = zip(named, values, steps, times, strict=True)
    records: list[Record] = list(map(tuple.__new__, repeat(Record), rows))
    return records


def encode_value(value: Any) -> bytes:
    """A value as it is cut into pieces.

    Raises:
        TypeError, ValueError, OverflowError: one that msgpack cannot carry.
    """
    packed: bytes = msgpack.packb(value)
    return packed


def length(piece: Sequence[Any]) -> int:
    """Bytes of the value that a first piece belongs to: of text or bytes, without msgpack's own."""
    size: int = piece[1]
    return size - 5 if bytes(piece[2][:1]) in (_STR32, _BIN32) else size


def decode_value(data_type: str, key: str, packed: bytes | mmap) -> Any:
    """The value whose pieces have been put together; it is of the shape that its type promises.

    Raises:
        FrameError: ``bad_body``.
    """
    try:
        value = _unpack(packed)
        check_values(data_type, [value], [key])
    except _NOT_MSGPACK as error:
        detail = f"a value from pieces: {type(error).__name__}: {error}"
        raise FrameError("bad_body", detail) from None
    return value


def _expand(frame: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise FrameError("missing_codec", "the body is zstd: pip install zstandard") from None
    try:
        # The size is announced in the zstd frame: an honest one is refused before it is
        # expanded, and a false one does not get past what it announced.
        announced = zstandard.get_frame_parameters(frame)
        if announced.content_size > MAX_BODY:  # as which "unknown" is told too
            raise FrameError("bad_body", f"expands to more than {MAX_BODY} bytes, or does not say")
        if announced.window_size > MAX_BODY or announced.dict_id:
            raise FrameError("bad_body", "zstd with a dictionary, or with too large a window")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BODY)
        expanded: bytes = decompressor.decompress(
            frame, max_output_size=MAX_BODY, allow_extra_data=False
        )
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
        _check_whole(frame)
        message = msgpack.unpackb(
            frame,
            max_str_len=MAX_CONTROL,
            max_bin_len=MAX_CONTROL,
            max_array_len=min(MAX_ITEMS, len(frame)),
            max_map_len=min(MAX_ITEMS, len(frame)),
            max_ext_len=0,
            ext_hook=_no_extension,
        )
    except _NOT_MSGPACK as error:
        raise FrameError("bad_control", f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise FrameError("bad_control", "expected a map with the string 'op'")
    _check_version(message.get("v"))
    try:
        if not set(map(type, message)) <= {str}:
            raise TypeError("a field's name is no string")
        check_carried(list(message.values()), greatest=MAX_INT)
    except TypeError as error:
        raise FrameError("bad_control", str(error)) from None
    return message


# --- msgpack -----------------------------------------------------------------------------

#: What unpacking raises.
_NOT_MSGPACK = (ValueError, TypeError, RecursionError, msgpack.UnpackException)
#: A frame up to so many bytes cannot ask for much memory, whatever it says.
_SMALL = 4096
#: First byte of a long string, and of long bytes: four bytes of length follow.
_STR32, _BIN32 = b"\xdb", b"\xc6"


def _check_version(version: object) -> None:
    if type(version) is not int or version != VERSION:
        raise FrameError("bad_version", f"{reprlib.repr(version)}; this side speaks {VERSION}")


def _unpack(frame: bytes | mmap) -> Any:
    """What is packed in a body.

    Raises:
        one of ``_NOT_MSGPACK``.
    """
    if frame[:1] not in (_STR32, _BIN32):  # else there is nothing but a string
        _check_whole(frame)
    return msgpack.unpackb(
        frame,
        strict_map_key=False,
        max_str_len=len(frame),
        max_bin_len=len(frame),
        max_array_len=len(frame),
        max_map_len=len(frame),
        max_ext_len=0,
        ext_hook=_no_extension,
        **_count_containers(frame),
    )


def _check_whole(frame: bytes | mmap) -> None:
    """Walk over what is packed, so that arrays are as long as they say before there are any.

    The memory for an array is taken at its beginning: 8 bytes for each item that is announced,
    of which there may be none. A thousand such arrays, one in another, need not be long.

    Raises:
        one of ``_NOT_MSGPACK``.
    """
    if len(frame) > _SMALL:
        unpacker = msgpack.Unpacker(
            max_buffer_size=len(frame),
            strict_map_key=False,
            max_array_len=len(frame),
            max_map_len=len(frame),
        )
        unpacker.feed(frame)
        unpacker.skip()


def _count_containers(frame: bytes | mmap) -> dict[str, Callable[[Any], Any]]:
    """Hooks that refuse too many lists and dicts; none where the frame has no room for them."""
    if len(frame) <= MAX_CONTAINERS:
        return {}
    left = MAX_CONTAINERS + 6  # the array of columns, and they

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and dicts")
        return container

    return {"list_hook": count, "object_hook": count}


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension type ({code}); none is carried")
