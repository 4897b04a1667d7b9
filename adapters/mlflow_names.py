"""How MLflow is told names and values that it, or a file system, does not take: reversibly.

What is forbidden in a key is written ``_xHEX_``, as XML names do, and so is what would make a path
leave its folder; what is too long is cut, with a hash of the whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath

from zmqtrack.records import Record

from .base import Refused, leads_elsewhere

__all__ = [
    "EXTENSION", "as_key", "as_path", "cut", "escape", "series", "shorten", "spelled",
    "where_it_is_alone",
]  # fmt: skip

#: Longest key, and longest path of an artifact, in bytes.
MAX_KEY, MAX_PATH = 250, 700

EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")
#: What a key that was cut looks like; one that is like it by itself is treated the same.
_WAS_CUT = re.compile(r".*-[0-9a-f]{32}(\.[A-Za-z][A-Za-z0-9]{0,4})?", re.DOTALL)


def spelled(character: str) -> str:
    """The character as it is written where it may not stand itself."""
    return f"_x{ord(character):04X}_"


def escape(text: str, forbidden: str) -> str:
    """``text`` without what is forbidden, and as a path that stays where it is; reversible."""
    return re.sub(
        forbidden
        + r"|_(?=x[0-9A-F]{4,6}_)"  # what would look escaped
        + r"|\A/|(?<=/)/|/\Z|(?:(?<=/)|\A)\.(?=\.?(?:/|\Z))",  # empty parts, "." and ".."
        lambda match: spelled(match[0]),
        text,
    )


def cut(text: str, limit: int) -> str:
    """``text``, or its beginning, a hash and the extension if it has more bytes."""
    if (size := len(text.encode())) <= limit and not (
        size > limit - 4 and _WAS_CUT.fullmatch(text)
    ):
        return text
    suffix = PurePosixPath(text).suffix
    suffix = suffix if EXTENSION.fullmatch(suffix) else ""
    end = f"-{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"
    return text.encode()[: limit - len(end)].decode(errors="ignore") + end


@lru_cache(maxsize=10_000)
def as_key(key: str) -> str:
    """``key`` as MLflow takes it for a metric, param or tag."""
    if not key:
        raise Refused("MLflow takes no empty key")
    return cut(escape(key, r"[^\w/.\- :]|\A\.(?=\.)"), MAX_KEY)


def as_path(path: str) -> str:
    """``path`` as one that MLflow and a file system take, and that stays in the run."""
    if not path:
        raise Refused("MLflow takes no empty key")
    safe = cut(escape(path, r"[^\w/.\-+=@,()~ ]|\A\.(?=\.[^/]*/)"), MAX_PATH)
    return "/".join(cut(part, 200) for part in safe.split("/"))


def where_it_is_alone(folder: Path | None, path: PurePosixPath) -> PurePosixPath:
    """``path``, its parts spelled out where the folder's file system takes them for others."""
    if folder is None:
        return path
    parts: list[str] = []
    for part in path.parts:
        whole = cut("".join(map(spelled, part)), 200)
        here = folder.joinpath(*parts)
        known = [os.path.lexists(here / name) for name in (part, whole)]
        alone = known != [False, True] and not leads_elsewhere(here, part)
        parts.append(part if alone else whole)
    return PurePosixPath(*parts)


def shorten(text: str, limit: int) -> str:
    text = text.replace("\0", "\u2400")  # NUL is not for databases
    if len(text) <= limit:
        return text
    note = f"… [{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}]"
    return text[: limit - len(note)] + note


def series(record: Record, ms: int, data: bytes) -> str:
    """A file name by which records of one key neither replace nor repeat each other."""
    return f"{record.step or 0}-{ms}-{hashlib.sha256(data).hexdigest()[:8]}"
