"""An egress policy: a file in which a site says what may leave it.

``ZMQTRACK_EGRESS=FILE`` (or ``init(egress=FILE)``) names the policy, in JSON or, where PyYAML is
installed, in YAML. All keys may be left out:

====== =======================================================================================
types  list of data types that may leave; default: all
allow  list of patterns (as in :mod:`fnmatch`, ``*`` also matches ``/``); a key that matches
       none of them is held back; default: ``["*"]``
deny   list of patterns; a key that matches one is held back, whatever ``allow`` says
sizes  most bytes in one value, by data type; ``"*"`` stands for each that is not named
rates  most records in a second, by data type; ``"*"`` likewise, each counted for itself
audit  file that names what was held back, relative to the policy's folder; default:
       ``egress-audit.jsonl`` among the spools
====== =======================================================================================
"""

from __future__ import annotations

import collections
import difflib
import fnmatch
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import RESERVED, VOCABULARY, check_type

__all__ = ["Policy"]

_KEYS = ("types", "allow", "deny", "sizes", "rates", "audit")


@dataclass(frozen=True)
class Policy:
    """What a policy file says, checked. Made by :meth:`load`; never changes."""

    path: Path
    types: frozenset[str] | None = None  # None: all
    allow: tuple[re.Pattern[str], ...] = (re.compile(""),)
    deny: tuple[re.Pattern[str], ...] = ()
    sizes: dict[str, int] | None = None
    rates: dict[str, float] | None = None
    audit: Path | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy file.

        Raises:
            ValueError: it cannot be read or understood, and so nothing may leave; one line for
                each problem: file, key, and what would be right.
        """
        if not os.fspath(path):
            raise ValueError(
                "the egress policy (egress= or ZMQTRACK_EGRESS) is set and empty: name a file, "
                "or leave it unset"
            )
        file = Path(path).expanduser().absolute()
        data = _read(file)
        reader = _Reader(data)
        types = reader.types()
        own = types or frozenset()
        policy = cls(
            file,
            types,
            reader.patterns("allow", default=cls.allow),
            reader.patterns("deny", default=cls.deny),
            reader.by_type("sizes", own, _is_size, "a whole number of bytes, say 65536"),
            reader.by_type("rates", own, _is_rate, "a number of records above 0, say 100"),
            reader.audit(file.parent),
        )
        if reader.problems:
            raise ValueError("\n".join(f"{file}: {problem}" for problem in reader.problems))
        return policy

    def verdict(self, key: str) -> str | None:
        """Why a record of this key is held back, whatever else it is; None: it is not."""
        # One spelling of é for all: names of files come decomposed from some systems.
        key = unicodedata.normalize("NFC", key)
        if any(pattern.match(key) for pattern in self.deny):
            return "deny"
        return None if any(pattern.match(key) for pattern in self.allow) else "allow"


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"{file}: the egress policy cannot be read: {error.strerror}. Name a file that can be, "
            "or leave egress= and ZMQTRACK_EGRESS unset"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8: {error}") from None
    try:
        data = _parse(file, text)
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply") from None
    if data is None:
        raise ValueError(f"{file}: is empty; a policy that lets everything leave is {{}}")
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected a mapping with {', '.join(_KEYS)}, not {_shown(data)}")
    return data


def _parse(file: Path, text: str) -> Any:
    repeated: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(_repeated(key for key, _ in pairs))
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=mapping)
    except ValueError as error:
        if file.suffix == ".json":
            raise ValueError(f"{file}: is not JSON: {error}") from None
        try:
            import yaml  # optional, and only where it is needed
        except ImportError:
            raise ValueError(
                f"{file}: is not JSON ({error}), and to read YAML takes PyYAML, which is not "
                "installed: write it as JSON, or pip install pyyaml"
            ) from None
        try:
            nodes = [yaml.compose(text, yaml.SafeLoader)]
            data = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as fault:
            mark = getattr(fault, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            said = getattr(fault, "problem", None) or fault
            hint = '; put patterns in quotes: "*"' if "alias" in str(fault) else ""
            raise ValueError(f"{file}: is neither JSON nor YAML: {where}{said}{hint}") from None
        seen: set[int] = set()
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode) and id(node) not in seen:
                seen.add(id(node))
                repeated.extend(_repeated(str(key.value) for key, _ in node.value))
                nodes.extend(value for _, value in node.value)
    if repeated:
        raise ValueError(f"{file}: {repeated[0]} stands there twice: which of them is meant?")
    return data


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, n in collections.Counter(names).items() if n > 1]


class _Reader:
    """Takes a policy's parts out of what was parsed, and gathers what is wrong with them."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self.problems: list[str] = []
        for key in data:
            if key not in _KEYS:
                self._say(
                    f"{key}", f"unknown key{_close(key, _KEYS)} Known are: {', '.join(_KEYS)}"
                )

    def _say(self, where: str, problem: str) -> None:
        self.problems.append(f"{where}: {problem}")

    def _list(self, key: str, example: str) -> list[str] | None:
        if key not in self._data:
            return None
        value = self._data[key]
        if not isinstance(value, list):
            self._say(key, f"expected a list, say {example}, not {_shown(value)}")
            return None
        for part in value:
            if not isinstance(part, str) or not part:
                self._say(key, f"expected text in each place, say {example}, not {_shown(part)}")
        return [part for part in value if isinstance(part, str) and part]

    def types(self) -> frozenset[str] | None:
        names = self._list("types", '["metric", "param"]')
        for name in names or ():
            try:
                if check_type(name) in RESERVED:
                    self._say("types", f"{name!r} is the protocol's own; leave it out")
            except ValueError as error:
                self._say("types", f"{error}{_close(name, VOCABULARY)}")
        return None if names is None else frozenset(names)

    def patterns(
        self, key: str, default: tuple[re.Pattern[str], ...]
    ) -> tuple[re.Pattern[str], ...]:
        globs = self._list(key, '["train/*", "*loss*"]')
        if globs is None:
            return default
        patterns = []
        for glob in globs:
            try:
                patterns.append(re.compile(fnmatch.translate(unicodedata.normalize("NFC", glob))))
            except re.error as error:
                self._say(key, f"{glob!r} is no pattern: {error}")
        return tuple(patterns)

    def by_type(
        self, key: str, own: frozenset[str], is_right: Callable[[Any], bool], right: str
    ) -> dict[str, Any] | None:
        """A mapping from data types; one of the user's own must stand in ``types`` as well.

        A slip in a name would be a limit that never holds.
        """
        if key not in self._data:
            return None
        value = self._data[key]
        if not isinstance(value, dict):
            self._say(key, f'expected a mapping, say {{"*": …, "image": …}}, not {_shown(value)}')
            return None
        known = {"*", *VOCABULARY, *own} - {"run"}
        for name, limit in value.items():
            if name == "run":
                self._say(f"{key}.run", "a run's beginning and end always leave; leave it out")
            elif name not in known:
                hint = " One of your own must stand in types too"
                self._say(f"{key}.{name}", f"unknown data type{_close(name, known)}{hint}")
            elif not is_right(limit):
                self._say(f"{key}.{name}", f"expected {right}, not {_shown(limit)}")
        return value

    def audit(self, folder: Path) -> Path | None:
        if "audit" not in self._data:
            return None
        value = self._data["audit"]
        if not isinstance(value, str) or not value:
            self._say("audit", f"expected the path of a file, not {_shown(value)}")
            return None
        path = folder / Path(value).expanduser()
        try:
            if path.exists() and not path.is_file():
                self._say("audit", f"{path} is no regular file; name one, or a new one")
            elif not path.parent.is_dir():
                self._say("audit", f"the folder {path.parent} is not there; make it first")
        except OSError as error:
            self._say("audit", f"{path} cannot be reached: {error.strerror}")
        return path


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _close(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
