"""The vocabulary: run key, data types, records. It knows no tracker's name.

What ``value`` is, by data type:

=========== ==================================================================
run         key ``start``: dict of facts about the process; key ``end``: the
            status, one of :data:`STATUSES`
metric      float
param       anything that msgpack carries: str, number, bool, None, list, dict
tag         str
text        str (HTML where the key ends in ``.html``, Markdown where ``.md`` …)
image       bytes: an encoded image (PNG unless the user handed in another)
histogram   dict as :func:`zmqtrack.histogram.summarise` makes it
artifact    on the wire ``[offset, size, bytes]``, a piece of a file of ``size``
            bytes; an adapter is given the whole file as :class:`pathlib.Path`
log         str, one or more lines of output; the key names the stream
=========== ==================================================================

The name ``lost`` is reserved: with it a writer tells the daemon how many records (value) it
had to give up, and why (key). Any other name that :func:`check_type` accepts is a data type
of the user's own; its values are whatever msgpack carries.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

__all__ = [
    "RESERVED",
    "STATUSES",
    "VOCABULARY",
    "Record",
    "RunKey",
    "as_number",
    "check_name",
    "check_type",
    "check_values",
]

#: The built-in data types.
VOCABULARY: frozenset[str] = frozenset(
    {"run", "metric", "param", "tag", "text", "image", "histogram", "artifact", "log"}
)

#: Names that the protocol itself uses.
RESERVED: frozenset[str] = frozenset({"head", "lost"})

#: How a run ends.
STATUSES = ("finished", "failed", "killed")

#: Longest name of an experiment, run, site or key, in UTF-8 bytes.
MAX_NAME = 250
MAX_KEY = 1000

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RunKey(NamedTuple):
    """One training job (experiment, run) and who logs in it (site)."""

    experiment: str
    run: str
    site: str


class Record(NamedTuple):
    """One logged fact. ``time`` is the writer's, in seconds since the epoch."""

    key: str
    value: Any
    step: int | None
    time: float


def check_name(what: str, name: object, limit: int = MAX_NAME) -> str:
    """Return ``name`` if it can name an experiment, run, site or key.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, longer than ``limit`` bytes or has control characters.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, not {type(name).__name__}: {name!r:.80}")
    if not name.strip():
        raise ValueError(f"{what} must not be empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} {name!r:.80} is not valid Unicode") from None
    if size > limit:
        raise ValueError(f"{what} {name[:40]!r}… has {size} bytes; at most {limit} are allowed")
    if _CONTROL.search(name):
        raise ValueError(f"{what} {name!r:.80} has control characters")
    return name


def check_type(data_type: object) -> str:
    """Return ``data_type`` if it can name a data type: ``[a-z][a-z0-9_]*``, 64 at most.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(data_type, str) or not _TYPE.fullmatch(data_type):
        raise ValueError(
            f"{data_type!r:.80} cannot name a data type: "
            "lower-case letters, digits and _ only, beginning with a letter, 64 at most"
        )
    return data_type


def as_number(key: str, value: Any) -> float:
    """Return ``value`` as a float; NaN and ±inf stay what they are.

    Takes int, float, bool, NumPy scalars, and arrays or tensors (of any library) with
    exactly one element; none of those libraries is imported to find out.

    Raises:
        TypeError: anything else; names key and type.
    """
    if not isinstance(value, (int, float)):
        item = getattr(value, "item", None)
        if callable(item):
            try:
                value = item()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"metric {key!r}: expected one number, got {_describe(value)} ({error})"
                ) from None
        if not isinstance(value, (int, float)):
            raise TypeError(f"metric {key!r}: expected a number, got {_describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise TypeError(f"metric {key!r}: the integer is too large for a float") from None


#: The Python types that a value of each data type may have once decoded.
_SHAPES: dict[str, tuple[type, ...]] = {
    "metric": (float,),
    "tag": (str,),
    "text": (str,),
    "image": (bytes,),
    "histogram": (dict,),
    "artifact": (list,),
    "log": (str,),
    "lost": (int,),
}

#: Deepest nesting of a value.
MAX_DEPTH = 32


def check_values(data_type: str, values: list[Any]) -> None:
    """Check a decoded column of values against what its data type promises.

    Raises:
        TypeError: one of them is something else, or is nested deeper than ``MAX_DEPTH``.
    """
    found = set(map(type, values))
    if strange := found - set(_SHAPES.get(data_type, found)):
        raise TypeError(f"a {data_type} with a value of type {strange.pop().__name__}")
    if found & {list, dict}:
        for value in values:
            _check_depth(value, MAX_DEPTH)
    if data_type == "artifact":
        for value in values:
            if [type(part) for part in value] != [int, int, bytes]:
                raise TypeError("an artifact piece is not [offset, size, bytes]")
            offset, size, piece = value
            if not 0 <= offset <= offset + len(piece) <= size:
                raise TypeError(f"an artifact piece at {offset} does not lie within {size} bytes")
    elif data_type == "histogram":
        for value in values:
            counts, edges = value.get("counts"), value.get("edges")
            if not (
                isinstance(counts, list)
                and isinstance(edges, list)
                and len(edges) == len(counts) + 1
                and all(isinstance(number, (int, float)) for number in (*counts, *edges))
            ):
                raise TypeError("a histogram whose counts and edges do not belong together")


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, (list, dict)):
        if not left:
            raise TypeError(f"a value nested deeper than {MAX_DEPTH}")
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, left - 1)


def _describe(value: Any) -> str:
    cls = type(value)
    name = cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    shape = getattr(value, "shape", None)
    return f"{name} of shape {tuple(shape)}" if shape is not None else f"{name} {value!r:.60}"
