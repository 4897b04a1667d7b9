"""How a writer works, as its arguments say or else the environment: no names, no addresses."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

from . import wire
from .spool import Spool

__all__ = ["Settings"]


class Settings(NamedTuple):
    """What :func:`zmqtrack.init` says of them."""

    flush_interval: float = 0.05
    exit_timeout: float = 5.0
    codec: str = "none"
    spool_bytes: int = Spool.limit
    keep: str = Spool.keep

    @classmethod
    def of(cls, **arguments: Any) -> Settings:
        """Those arguments that are not None, then ``ZMQTRACK_NAME`` of each, then the defaults.

        Raises:
            TypeError, ValueError: one of them cannot be used; names it, or its variable.
        """
        found: dict[str, Any] = {}
        for name, value in arguments.items():
            variable = f"ZMQTRACK_{name.upper()}"
            if value is not None:
                found[name] = _READ[name](name, value)
            elif text := os.environ.get(variable):
                found[name] = _READ[name](variable, text)
        return cls(**found)


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is {value!r}; it is a number of seconds, 0 or more")
    return seconds


def _bytes(name: str, value: Any) -> int:
    try:
        size = int(value)
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(f"{name} is {value!r}; it is a number of bytes, 0 or more")
    return size


def _codec(name: str, value: Any) -> str:
    return _one_of(name, value, tuple(wire.CODECS))


def _keep(name: str, value: Any) -> str:
    return _one_of(name, value, ("newest", "oldest"))


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; known are {', '.join(known)}")
    return str(value)


_READ = {
    "flush_interval": _seconds,
    "exit_timeout": _seconds,
    "codec": _codec,
    "spool_bytes": _bytes,
    "keep": _keep,
}
