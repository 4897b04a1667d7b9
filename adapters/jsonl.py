"""JSON lines: ``DIR/EXPERIMENT/RUN/SITE.jsonl``, one strict JSON object for each record.

Each line has ``type``, ``key``, ``value``, ``step`` (null: none), ``time`` (the writer's,
in seconds), and ``stream`` and ``seq`` of the batch that brought it. What JSON cannot say is
written as :mod:`zmqtrack.plain` does, and :func:`restore` reads it.

An image or artifact becomes a file of its own, and its value ``{"file", "size", "sha256"}``.
``file`` is relative to the folder of the ``.jsonl``: ``SITE.files/DIGEST/KEY``. Named by
its content, a file that is delivered twice is there once, and none replaces another. (Of the
keys ``a`` and ``a/b`` with the same content, one gets a name with a hash: there is no folder
where there is a file.)
"""

from __future__ import annotations

import errno
import hashlib
import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
from pydantic import Field

from zmqtrack.plain import number, plain
from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch

from .base import Adapter, Context, Options, Refused, other_name, own_entry, safe_name
from .ledger import Ledger, disk, make_file, make_folder, replace_file
from .probe import folder_to_write

__all__ = ["JSONLAdapter", "restore"]

#: Longest key, in bytes, whose "/" become folders; a longer one is one name, shortened.
MAX_PATH = 512
#: Bytes of an artifact that are in memory at a time.
CHUNK = 1 << 20
#: Runs whose file is remembered; another is looked up again.
MAX_RUNS = 10_000
#: What a file system answers where the key's path cannot be.
_IMPOSSIBLE = frozenset(
    {errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}
)

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class JSONLOptions(Options):
    dir: Path = Field(description="The folder, in which it makes EXPERIMENT/RUN/SITE.jsonl.")


class JSONLAdapter(Adapter):
    types = None
    Options = JSONLOptions
    options: JSONLOptions

    def __init__(self, options: JSONLOptions, context: Context) -> None:
        super().__init__(options, context)
        self._root = options.dir.expanduser().absolute()
        self._ledger = Ledger(context.state_dir, context.log)
        self._files: dict[RunKey, Path] = {}

    def open(self, note: bytes) -> None:
        self._files.clear()
        self._ledger.open(note)

    def deliver(self, batches: Sequence[Batch]) -> None:
        pieces: dict[Path, bytearray] = {}
        for batch in batches:
            file = self._file(batch.run)
            lines = self._lines(batch, file.parent, f"{file.stem}.files")
            pieces.setdefault(file, bytearray()).extend(lines.encode())
        self._ledger.append(pieces)

    def probe(self, timeout: float) -> str:
        return folder_to_write(self._root, "dir")

    def note(self) -> bytes:
        return self._ledger.note()

    def close(self) -> None:
        self._ledger.close()

    def _file(self, run: RunKey) -> Path:
        """The file of a run, made if need be."""
        if run not in self._files:
            folder = self._root
            with disk(folder):
                make_folder(folder)
                for name in run[:2]:
                    folder /= own_entry(folder, name, make_folder)
                site = own_entry(folder, run.site, make_file, ".jsonl")
            if len(self._files) >= MAX_RUNS:
                del self._files[next(iter(self._files))]
            self._files[run] = folder / f"{site}.jsonl"
        return self._files[run]

    def _lines(self, batch: Batch, folder: Path, files: str) -> str:
        source = f'"stream":"{batch.header.stream.hex()}","seq":{batch.header.seq}}}\n'
        lines = []
        for record in batch:
            value: Any
            if batch.type == "metric":
                value = number(record.value)
            elif batch.type in ("image", "artifact"):
                value = _keep(record, folder, files)
            else:
                value = plain(record.value)
            line = _encode(
                {
                    "type": batch.type,
                    "key": record.key,
                    "value": value,
                    "step": record.step,
                    "time": number(record.time),
                }
            )
            lines.append(f"{line[:-1]},{source}")
        return "".join(lines)


def _keep(record: Record, folder: Path, files: str) -> dict[str, Any]:
    """Put an image or artifact beside the lines; what the line says of it."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(record.value):
        digest.update(chunk)
        size += len(chunk)
    suffix = ""
    if isinstance(record.value, bytes):
        head = (suffix for magic, suffix in _SUFFIXES.items() if record.value.startswith(magic))
        suffix = next(head, "")
    for name in (_inside(record.key), other_name(record.key)):
        file = f"{files}/{digest.hexdigest()[:32]}/{name.removesuffix(suffix)}{suffix}"
        with disk(folder / file):
            try:
                replace_file(folder / file, _chunks(record.value), part=folder / files / ".part")
                break
            except OSError as error:
                if error.errno not in _IMPOSSIBLE:
                    raise
    else:
        raise Refused(f"{record.key!r:.80}: no file can be made for it")
    return {"file": file, "size": size, "sha256": digest.hexdigest()}


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
    else:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _inside(key: str) -> str:
    """``key`` as a path that cannot leave the folder it is put in."""
    path = "/".join(safe_name(part) for part in key.split("/"))
    return path if len(path) <= MAX_PATH else safe_name(key)


# --- values: the way back ------------------------------------------------------------------


def restore(value: Any) -> Any:
    """A line's value as it was logged: the way back from :mod:`zmqtrack.plain`."""
    match value:
        case list():
            return [restore(part) for part in value]
        case {"$float": name}:
            return float(name)
        case {"$bytes": data}:
            return b64decode(data)
        case {"$map": pairs}:
            return {restore(key): restore(part) for key, part in pairs}
        case {"$ext": [-1, data]}:
            return msgpack.Timestamp.from_bytes(b64decode(data))
        case {"$ext": [code, data]}:
            return msgpack.ExtType(code, b64decode(data))
        case dict():
            return {key: restore(part) for key, part in value.items()}
    return value
