"""Values as strict JSON carries them. What JSON lacks is written like this:

- a metric's value, and a time, that is not finite: ``"NaN"``, ``"Infinity"`` or
  ``"-Infinity"``, which ``float()`` reads;
- anywhere else: ``{"$float": "NaN"}``, ``{"$bytes": BASE64}``, ``{"$ext": [CODE, BASE64]}``
  (an extension of msgpack), and ``{"$map": [[KEY, VALUE], ...]}`` for a map that has keys
  which are no strings, or begin with ``$``.
"""

from __future__ import annotations

from base64 import b64encode
from math import isfinite
from typing import Any

import msgpack

__all__ = ["number", "plain"]


def number(value: float) -> float | str:
    """A metric's value, or a time."""
    return value if isfinite(value) else _name(value)


def _name(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def plain(value: Any) -> Any:
    """Anything else that msgpack carries."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else {"$float": _name(value)}
        case bytes():
            return {"$bytes": b64encode(value).decode()}
        case dict():
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: plain(part) for key, part in value.items()}
            return {"$map": [[plain(key), plain(part)] for key, part in value.items()]}
        case msgpack.ExtType(code=code, data=data):
            return {"$ext": [code, b64encode(data).decode()]}
        case msgpack.Timestamp():
            return {"$ext": [-1, b64encode(value.to_bytes()).decode()]}
    return [plain(part) for part in value]
