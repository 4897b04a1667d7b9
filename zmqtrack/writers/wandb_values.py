"""What W&B's rows take beyond numbers and text, as that is carried."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ..arrays import is_array
from ..records import MAX_KEY
from ..run import Run as ZMQRun
from ._common import lose, note

__all__ = ["carried_key", "friendly", "is_number"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_number(value: Any) -> bool:
    """Whether it is a number, a NumPy scalar of one, or an array or tensor of one."""
    if isinstance(value, int):
        return -(2**1023) < value < 2**1023  # a greater one is no float
    if isinstance(value, float):
        return True
    if not is_array(value) or _kind(value) not in "biuf":
        return False
    size = 1
    for length in value.shape:
        size *= int(length)
    return size == 1


def _kind(value: Any) -> str:
    """The kind of an array's items in NumPy's letters: a number unless NumPy says otherwise."""
    return str(getattr(getattr(value, "dtype", None), "kind", "f"))


def friendly(value: Any, names: bool = False) -> Any:
    """``value`` as what it is written as by W&B; what needs no change is returned as it is.

    ``names``: an enum's member becomes its name, as in W&B's config, instead of its value.

    Raises:
        UnicodeDecodeError: bytes that are no UTF-8 text.
    """
    match value:
        case enum.Enum():
            return value.name if names else friendly(value.value)
        case None | bool() | int() | float() | str():
            return value
        case Decimal() | Fraction():
            return float(value)
        case set() | frozenset():
            return [friendly(part, names) for part in value]
        case bytes():
            return value.decode()
        case complex():
            return str(value).strip("()")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta() | os.PathLike():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return friendly(dataclasses.asdict(value), names)
    if isinstance(value, Mapping):
        return {key: friendly(part, names) for key, part in value.items()}
    if is_array(value) and _kind(value) in "cmMOSU":
        return friendly(str(value) if not value.shape else value.tolist(), names)
    if isinstance(value, (list, tuple)):
        return [friendly(part, names) for part in value]
    if (callable(value) and hasattr(value, "__qualname__")) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def carried_key(run: ZMQRun, key: str) -> str:
    """``key`` as one that can be carried; "" if it is empty, which W&B drops too."""
    if not key.strip():
        lose(run, "empty_key", "a value under an empty key")
        return ""
    plain = _CONTROL.sub(" ", key).encode(errors="replace")
    if len(plain) > MAX_KEY:
        digest = hashlib.sha256(plain).hexdigest()[:16]
        plain = plain[: MAX_KEY - 20].decode(errors="ignore").encode() + b"~" + digest.encode()
    name = plain.decode()
    if name != key:
        note("keys", f"too long, or with control characters: {key!r:.80} is logged as {name!r:.80}")
    return name
