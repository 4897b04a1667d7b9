"""The vocabulary: run key, data types, records. It knows no tracker's name.

What ``value`` is, by data type:

=========== ==================================================================
run         key ``start``: dict of facts about the process, empty where a run
            that was taken for dead goes on; key ``end``: the status, one of
            :data:`ENDS`
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

A value that is too large for one message travels in pieces (see :mod:`zmqtrack.wire`); an adapter
is given it whole. An artifact always does.

The name ``lost`` is reserved: with it a writer tells the daemon how many records (value) it
had to give up, and why (key); one that begins with :data:`NOT_CARRIED` counts calls that have no
tracker-neutral form, which is no loss. So is ``probe``: a batch that is answered, and not kept. Any
other name that :func:`check_type` accepts is a data type of the user's own; its values are whatever
msgpack carries.

What msgpack carries is here: None, bool, int, float, str, bytes, and lists and dicts of those,
nested :data:`MAX_DEPTH` deep at most. The keys of a dict may be anything that is no list and no
dict. msgpack's extension types, its timestamp among them, are not carried.

Metrics that are lines of one chart, and metrics and params of one trial of several in a run, say
so in their keys: see :class:`PairKey`.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from itertools import pairwise
from types import NoneType
from typing import Any, ClassVar, NamedTuple

__all__ = [
    "CUT",
    "ENDS",
    "NOT_CARRIED",
    "PIECES",
    "RESERVED",
    "STATUSES",
    "UNCUT",
    "VOCABULARY",
    "Entry",
    "LineKey",
    "PairKey",
    "Record",
    "RunKey",
    "TrialKey",
    "as_key",
    "as_number",
    "check_carried",
    "check_keys",
    "check_name",
    "check_type",
    "check_values",
    "plain_key",
    "wire_key",
]

#: The built-in data types.
VOCABULARY: frozenset[str] = frozenset(
    {"run", "metric", "param", "tag", "text", "image", "histogram", "artifact", "log"}
)

#: Names that the protocol itself uses.
RESERVED: frozenset[str] = frozenset({"head", "lost", "probe", "pulse"})

#: With what the reason of a count begins that is no loss: what a syntax cannot carry.
NOT_CARRIED = "unsupported_"
#: What never travels in pieces: it is small, the daemon reads it, or it has pieces of its own.
UNCUT: frozenset[str] = RESERVED | {"run", "metric", "artifact"}

#: Behind a data type's name in an :data:`Entry`: the value is a piece of one.
CUT = "/pieces"
#: For :func:`check_values`: what the values of pieces are.
PIECES = "pieces/"

#: How a run ends, as its writer says.
STATUSES = ("finished", "failed", "killed")
#: And as the daemon says of one that went without a word: ``killed``, or ``left`` where nothing
#: waited at it when it was last heard of, so that it may as well have succeeded.
ENDS = (*STATUSES, "left")

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


class PairKey(str):
    """A key of two names: ``first/second``, for all that know no more of it.

    On the wire and in a writer's buffer a control character that its class gives it stands
    between the two, so that it stays apart from a plain key that reads the same.
    """

    __slots__ = ("first", "second")
    mark: ClassVar[str]
    first: str
    second: str

    def __new__(cls, first: str, second: str) -> PairKey:
        key = super().__new__(cls, f"{first}/{second}")
        key.first, key.second = first, second
        return key

    def __reduce__(self) -> tuple[type[PairKey], tuple[str, str]]:
        return type(self), (self.first, self.second)


class LineKey(PairKey):
    """The key of a metric that is one line of a chart with several: ``chart/line``."""

    __slots__ = ()
    mark = "\x1f"  # ASCII's unit separator


class TrialKey(PairKey):
    """The key of a metric or param of one trial of several in a run: ``trial/key``."""

    __slots__ = ()
    mark = "\x1e"  # ASCII's record separator


#: By data type the pairs that a key may be.
_PAIRS: dict[str, tuple[type[PairKey], ...]] = {
    "metric": (LineKey, TrialKey),
    "param": (TrialKey,),
}


#: A record and its data type, as a logging call appends it: (key, value, step, time, data type).
#: With :data:`CUT` behind the data type, the value is a piece: (offset, size, bytes, number).
Entry = tuple[str, Any, "int | None", float, str]


def check_name(what: str, name: object, limit: int = MAX_NAME) -> str:
    """Return ``name`` if it can name an experiment, run, site or key.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, longer than ``limit`` bytes or has control characters.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, not {type(name).__name__}: {reprlib.repr(name)}")
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
            f"{reprlib.repr(data_type)} cannot name a data type: "
            "lower-case letters, digits and _ only, beginning with a letter, 64 at most"
        )
    return data_type


def as_key(name: str, limit: int = MAX_KEY) -> str:
    """``name``, spelled so that it can be a record's key: itself, nearly always.

    Of a name that is empty, and of one that has control characters, these are spelled ``%XX``
    as in a URL (the empty name is ``%``); one longer than ``limit`` bytes is cut, with a hash of
    the whole behind it; a lone surrogate becomes ``?``.

    Raises:
        TypeError: it is no string.
    """
    try:
        return check_name("key", name, limit)
    except ValueError:
        pass
    spelled = name.encode(errors="replace").decode()
    if not spelled.strip():
        spelled = "".join(map(_percent, spelled)) or "%"
    spelled = _CONTROL.sub(lambda found: _percent(found[0]), spelled)
    if len(spelled.encode()) > limit:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
        spelled = spelled.encode()[: limit - 17].decode(errors="ignore") + f"~{digest}"
    return spelled


def _percent(characters: str) -> str:
    return "".join(f"%{byte:02X}" for byte in characters.encode())


def plain_key(key: str) -> str:
    """A key as people and patterns know it, from the one that a writer appends."""
    return key.replace(LineKey.mark, "/", 1).replace(TrialKey.mark, "/", 1)


def wire_key(key: str) -> str:
    """A key as a writer appends it, from a decoded one; see :class:`PairKey`."""
    return f"{key.first}{key.mark}{key.second}" if isinstance(key, PairKey) else key


def as_number(key: str, value: Any) -> float:
    """Return ``value`` as a float; NaN and ±inf stay what they are.

    Takes what ``float`` takes (int, bool, Decimal, Fraction, the text of a number), NumPy
    scalars, and arrays or tensors (of any library) with exactly one element; none of those
    libraries is imported to find out.

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
    try:
        return float(value)
    except OverflowError:
        raise TypeError(f"metric {key!r}: the integer is too large for a float") from None
    except (TypeError, ValueError):
        raise TypeError(f"metric {key!r}: expected a number, got {_describe(value)}") from None


def check_keys(keys: list[str], data_type: str = "") -> list[str]:
    """Check decoded keys (strings, and valid Unicode) as :func:`check_name` does, all at a time.

    Returns:
        the keys, and a :class:`PairKey` for each that is one.

    Raises:
        ValueError: one of them is empty, longer than ``MAX_KEY`` bytes or has control characters.
    """
    # Nearly always so, and each of these is one pass without a call for each key. What is blank
    # and printable is made of spaces, before which no other printable character sorts.
    if (
        "".join(keys).isprintable()
        and min(keys, default=".").strip()
        and max(map(len, keys), default=0) <= MAX_KEY // 4  # in UTF-8 a character has 4 bytes
    ):
        return keys
    for pair in _PAIRS.get(data_type, ()):
        keys = [
            pair(*key.split(pair.mark, 1)) if type(key) is str and pair.mark in key else key
            for key in keys
        ]
    for key in keys:
        check_name("key", key, MAX_KEY)
    return keys


#: The Python types that a value of each data type may have once decoded.
_SHAPES: dict[str, frozenset[type]] = {
    "run": frozenset({dict, str}),
    "metric": frozenset({float}),
    "tag": frozenset({str}),
    "text": frozenset({str}),
    "image": frozenset({bytes}),
    "histogram": frozenset({dict}),
    "artifact": frozenset({list}),
    PIECES: frozenset({list}),
    "log": frozenset({str}),
    "lost": frozenset({int}),
}
_SCALARS = frozenset({NoneType, bool, int, float, str, bytes})
_CARRIED = _SCALARS | {list, dict}
_NUMBERS = frozenset({int, float})
#: What a histogram says beside its counts and edges.
_FACTS = ("min", "max", "num", "sum", "sum_squares", "nan", "inf", "-inf")

#: Deepest nesting of a value.
MAX_DEPTH = 32
#: Most lists and dicts in one value: each takes some hundred bytes here, of one on the wire.
MAX_CONTAINERS = 1 << 20
#: Greatest count of lost records that one record may tell: sums of such fit into 64 bits.
MAX_LOST = 1 << 48
#: Greatest size of a file, and greatest step.
MAX_INT = 2**63 - 1


def check_values(data_type: str, values: list[Any], keys: list[str] | None = None) -> None:
    """Check a decoded column of values, and ``keys`` beside it, against what the type promises.

    Raises:
        TypeError: one of them is something else, or is nested deeper than ``MAX_DEPTH``.
    """
    found = set(map(type, values))
    if strange := found - _SHAPES.get(data_type, _CARRIED):
        raise TypeError(f"a {data_type} with a value of type {strange.pop().__name__}")
    if not found <= _SCALARS:
        check_carried(values)
    if data_type == "artifact":
        for value in values:
            _check_piece(value, [int, int, bytes])
    elif data_type == PIECES:
        for value in values:
            _check_piece(value, [int, int, bytes, int])
            if not value[2]:
                raise TypeError("a piece without a byte")
    elif data_type == "histogram":
        for value in values:
            _check_summary(value)
    elif data_type == "lost":
        if not 0 <= min(values) <= max(values) <= MAX_LOST:
            raise TypeError("a count of lost records that is negative or too great")
    elif data_type == "run":
        for key, value in zip(keys or (), values, strict=False):
            if not (type(value) is dict if key == "start" else key == "end" and value in ENDS):
                raise TypeError(f"a run record {key!r:.40} that is no start and no end")


def check_carried(values: list[Any], greatest: int | None = None) -> None:
    """Check that values are of the types that are carried, level by level of their nesting.

    Raises:
        TypeError: one of them is not, is a dict with such a key, is nested too deep, or is an
            integer beyond ``greatest``.
    """
    containers = 0
    for _ in range(MAX_DEPTH + 1):
        found = set(map(type, values))
        if strange := found - _CARRIED:
            raise TypeError(f"a value of type {strange.pop().__name__} inside another")
        if greatest is not None and any(type(n) is int and n > greatest for n in values):
            raise TypeError(f"an integer beyond {greatest}")
        if found <= _SCALARS:
            return
        below: list[Any] = []
        for value in values:
            if type(value) is list:
                below += value
            elif type(value) is dict:
                if strange := set(map(type, value)) - _SCALARS:
                    raise TypeError(f"a dict with a key of type {strange.pop().__name__}")
                below += value.values()
            else:
                continue
            containers += 1
        if containers > MAX_CONTAINERS:
            raise TypeError(f"a value of more than {MAX_CONTAINERS} lists and dicts")
        values = below
    raise TypeError(f"a value nested deeper than {MAX_DEPTH}")


def _check_piece(value: list[Any], shape: list[type]) -> None:
    if list(map(type, value)) != shape:
        raise TypeError("a piece is not [offset, size, bytes], with a number where it is no file's")
    offset, size, piece, *_ = value
    if not 0 <= offset <= offset + len(piece) <= size <= MAX_INT:
        raise TypeError(f"a piece at {offset} does not lie within {size} bytes")


def _check_summary(value: dict[str, Any]) -> None:
    """As :func:`zmqtrack.histogram.check_summary` makes it."""
    counts, edges = value.get("counts"), value.get("edges")
    if not (isinstance(counts, list) and isinstance(edges, list)):
        raise TypeError("a histogram without a list of counts and a list of edges")
    if not 1 <= len(counts) == len(edges) - 1:
        raise TypeError("a histogram whose counts and edges do not belong together")
    others = [value.get(name, 0) for name in _FACTS]
    if not set(map(type, (*counts, *edges, *others))) <= _NUMBERS:
        raise TypeError("a histogram with something else than numbers")
    if not all(0 <= count < math.inf for count in counts):
        raise TypeError("a histogram with a count that is negative or not finite")
    ends = abs(edges[0]), abs(edges[-1])
    if math.inf in ends or not all(left < right for left, right in pairwise(edges)):
        raise TypeError("a histogram whose edges do not increase, or are not finite")


def _describe(value: Any) -> str:
    cls = type(value)
    name = cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    shape = getattr(value, "shape", None)
    return f"{name} of shape {tuple(shape)}" if shape is not None else f"{name} {value!r:.60}"
