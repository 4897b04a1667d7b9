"""What the daemon may look at in a body without decoding it: key names, and sizes of values.

msgpack is walked over, nothing of it becomes an object but what is asked for.
"""

from __future__ import annotations

import msgpack

from . import wire
from .errors import FrameError
from .records import MAX_KEY

__all__ = ["keys", "sizes"]

#: So many bytes of a body are looked at in search of the keys, which stand first; then more.
STEPS = (4 << 10, 64 << 10, wire.MAX_BODY)


def keys(codec: int, body: bytes) -> list[str]:
    """The distinct keys in a body.

    Raises:
        FrameError: ``bad_body``.
    """
    try:
        for size in STEPS:
            unpacker = _unpacker()
            unpacker.feed(_start(codec, body, size))
            try:
                _begin(unpacker)
                # One by one: of nested arrays, nothing is made.
                found = []
                for _ in range(unpacker.read_array_header()):
                    before = unpacker.tell()
                    key = unpacker.unpack()
                    if not isinstance(key, str) or unpacker.tell() - before > MAX_KEY + 8:
                        raise FrameError("bad_body", "a key is no string, or too long")
                    found.append(key)
            except msgpack.OutOfData:
                continue
            return found
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError("bad_body", f"not msgpack: {type(error).__name__}: {error}") from None
    raise FrameError("bad_body", "the keys are cut off")


def sizes(data_type: str, codec: int, body: bytes) -> list[int]:
    """Of each value the bytes that it takes; of a piece, those of the whole file or value.

    Raises:
        FrameError: ``bad_body``.
    """
    unpacker = _unpacker()
    found = []
    fields = 4 if codec & wire.CODEC_PIECES else 3 if data_type == "artifact" else 0
    try:
        unpacker.feed(_start(codec, body, wire.MAX_BODY))
        _begin(unpacker)
        for _ in range(4):
            unpacker.skip()
        for _ in range(unpacker.read_array_header()):
            before = unpacker.tell()
            if fields:
                if unpacker.read_array_header() != fields:
                    raise FrameError("bad_body", "a piece is not [offset, size, bytes]")
                unpacker.skip()
                size = unpacker.unpack()
                for _ in range(fields - 2):
                    unpacker.skip()
            else:
                unpacker.skip()
                size = unpacker.tell() - before
            if type(size) is not int:
                raise FrameError("bad_body", "a size is no number")
            found.append(size)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError("bad_body", f"not msgpack: {type(error).__name__}: {error}") from None
    return found


def _begin(unpacker: msgpack.Unpacker) -> None:
    if unpacker.read_array_header() != 5:
        raise FrameError("bad_body", "expected an array of 5 columns")


def _unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        max_buffer_size=wire.MAX_BODY + 1,
        max_array_len=wire.MAX_RECORDS,
        max_map_len=0,
    )


def _start(codec: int, body: bytes, size: int) -> bytes | memoryview:
    """The first ``size`` bytes of a body, expanded if it is compressed."""
    if not codec & wire.CODEC_ZSTD:
        return memoryview(body)[:size]
    try:
        import zstandard
    except ImportError:
        raise FrameError("missing_codec", "the body is zstd: pip install zstandard") from None
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=wire.MAX_BODY)
        return decompressor.stream_reader(body).read(size)
    except zstandard.ZstdError as error:
        raise FrameError("bad_body", f"not zstd: {error}") from None
