"""What leaves a site is the site's own decision: a policy, and the gate that keeps to it.

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

The gate stands before the spool: what is held back is never stored with what is sent. A run's
beginning and end, and the counts of what was lost, always leave, for trackers open and close a
run by them; without ``run`` among the ``types`` the beginning goes without its facts. A file is
one record, and held back whole. The reason for holding a record back is the policy's key that
says so; ``piece`` is a piece of a file whose beginning was given up.
"""

from __future__ import annotations

import collections
import difflib
import errno
import fcntl
import fnmatch
import json
import logging
import math
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from .records import RESERVED, VOCABULARY, RunKey, check_type

if TYPE_CHECKING:
    from .sender import Entry

__all__ = ["AUDIT_NAME", "Gate", "Policy"]

log = logging.getLogger("zmqtrack")

#: Name of the audit file, unless the policy has another.
AUDIT_NAME = "egress-audit.jsonl"
#: It is set aside at so many bytes, and so many of those that were are kept.
AUDIT_BYTES = 10 << 20
AUDIT_KEPT = 3
#: Bytes that are written to it at a time.
AUDIT_CHUNK = 1 << 20
#: How long another process may keep us from it, in seconds.
AUDIT_PATIENCE = 1.0

#: Keys whose verdict is remembered, and files that are under way.
KNOWN_KEYS = 100_000
OPEN_FILES = 1000

_KEYS = ("types", "allow", "deny", "sizes", "rates", "audit")

_WHY = {
    "types": "its data type is not among the policy's types",
    "allow": "its key matches no pattern of the policy's allow",
    "deny": "its key matches a pattern of the policy's deny",
    "sizes": "it is larger than the policy's sizes",
    "rates": "more of its data type come in a second than the policy's rates",
    "piece": "it is a piece of a file whose beginning was given up",
}

_clock = time.monotonic


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


class Gate:
    """A policy at work on one stream: which records pass, and what is said of the others.

    Used by the sender thread alone; others may read :attr:`held`.
    """

    def __init__(self, policy: Policy, run: RunKey, spool_dir: Path) -> None:
        #: Records that were held back, by reason.
        self.held: dict[str, int] = {}
        self._policy = policy
        self._run = run
        self._rules: dict[str, _Rule] = {}
        self._verdicts: dict[str, str | None] = {}
        self._files: dict[tuple[str, float], bool] = {}  # under way: whether they pass
        self._audit = _AuditFile(policy.audit or spool_dir / AUDIT_NAME)
        self._pending: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._time = 0.0  # when they were held back

    @property
    def audit_path(self) -> Path:
        return self._audit.path

    @property
    def pending(self) -> bool:
        """Something was held back and does not stand in the audit file yet."""
        return bool(self._pending)

    def sift(self, entries: Iterable[Entry]) -> list[Entry]:
        """The records that may leave, in order. The others are counted, and to be audited.

        Not to be called while :attr:`pending`: what waits would grow without a limit.
        """
        now, self._time = _clock(), time.time()
        for rule in self._rules.values():
            rule.refill(now)
        passed: list[Entry] = []
        for entry in entries:
            data_type = entry[4]
            if data_type == "lost":
                passed.append(entry)
                continue
            rule = self._rules.get(data_type) or self._new_rule(data_type, now)
            if data_type == "run":
                bare = not rule.leaves and entry[0] == "start"
                passed.append((entry[0], {}, *entry[2:]) if bare else entry)
            elif data_type == "artifact":
                if self._passes_piece(entry, rule):
                    passed.append(entry)
            elif reason := self._reason(entry[0], rule, entry[1]):
                self._hold(data_type, entry[0], reason)
            else:
                passed.append(entry)
        return passed

    def audit(self) -> None:
        """Write down what was held back; on return it is on disk.

        Raises:
            OSError: it is not. What was not written waits for the next call.
        """
        while self._pending:
            chunk, size, done = [], 0, []
            for what, records in self._pending.items():
                chunk.append(self._line(*what, records))
                done.append(what)
                size += len(chunk[-1])
                if size >= AUDIT_CHUNK:
                    break
            self._audit.append(b"".join(chunk))
            for what in done:
                del self._pending[what]

    def abandon(self) -> None:
        """In a forked child: let go of the parent's audit file."""
        self._audit.abandon()

    def _reason(self, key: str, rule: _Rule, value: Any, size: int | None = None) -> str | None:
        """Why a record is held back; one that is not takes its share of the rate."""
        if not rule.leaves:
            return "types"
        try:
            verdict = self._verdicts[key]
        except KeyError:
            verdict = self._policy.verdict(key)
            if len(self._verdicts) < KNOWN_KEYS:
                self._verdicts[key] = verdict
        if verdict is not None:
            return verdict
        if rule.size is not None and (_size(value) if size is None else size) > rule.size:
            return "sizes"
        return None if rule.take() else "rates"

    def _passes_piece(self, entry: Entry, rule: _Rule) -> bool:
        """What its first piece met with holds for the whole file."""
        key, (offset, size, piece), _, when, _ = entry
        file = key, when  # its pieces have one time: it tells this file from others of the key
        if offset == 0:
            reason = self._reason(key, rule, None, size)
            if reason:
                self._hold("artifact", key, reason)
            if len(self._files) >= OPEN_FILES:  # of some the last piece was given up
                del self._files[next(iter(self._files))]
            self._files[file] = not reason
        elif file not in self._files:
            self._hold("artifact", key, "piece")
            self._files[file] = False
        passes = self._files[file]
        if offset + len(piece) >= size:
            del self._files[file]
        return passes

    def _hold(self, data_type: str, key: str, reason: str) -> None:
        if reason not in self.held:
            log.warning(
                "zmqtrack: %s %r is held back: %s (%s). All that is held back for this reason is "
                "counted in Run.held and named in %s",
                data_type,
                key,
                _WHY[reason],
                self._policy.path,
                self._audit.path,
            )
        self.held[reason] = self.held.get(reason, 0) + 1
        self._pending[data_type, key, reason] += 1

    def _new_rule(self, data_type: str, now: float) -> _Rule:
        policy = self._policy

        def limit(by_type: dict[str, Any] | None) -> Any:
            return (by_type or {}).get(data_type, (by_type or {}).get("*"))

        rule = _Rule(
            policy.types is None or data_type in policy.types,
            limit(policy.sizes),
            limit(policy.rates),
            now,
        )
        self._rules[data_type] = rule
        return rule

    def _line(self, data_type: str, key: str, reason: str, records: int) -> bytes:
        line = {
            "time": self._time,
            **self._run._asdict(),
            "type": data_type,
            "key": key,
            "reason": reason,
            "records": records,
        }
        return json.dumps(line).encode() + b"\n"


class _Rule:
    """What the policy says of one data type, and what is left of its rate."""

    def __init__(self, leaves: bool, size: int | None, rate: float | None, now: float) -> None:
        self.leaves = leaves
        self.size = size
        self._rate = rate
        # A second's worth; at less than one record a second that is still one record.
        self._burst = max(1.0, rate or 0.0)
        self._left = self._burst
        self._filled = now

    def refill(self, now: float) -> None:
        if self._rate is not None:
            self._left = min(self._burst, self._left + self._rate * (now - self._filled))
            self._filled = now

    def take(self) -> bool:
        if self._rate is None:
            return True
        if self._left < 1 - 1e-6:  # sums of small parts of a second fall short by a hair
            return False
        self._left -= 1
        return True


def _size(value: Any) -> float:
    """Bytes of a value: of text in UTF-8, of what is neither text nor bytes as it is sent."""
    if value.__class__ is float:
        return 9  # the usual case
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    try:
        return len(msgpack.packb(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return math.inf  # what cannot be measured does not pass


# --- the audit file ----------------------------------------------------------------------


class _AuditFile:
    """Whole lines at the end of a file that several processes share and set aside in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def append(self, lines: bytes) -> None:
        """On return they are on disk.

        Raises:
            OSError: none of them is there.
        """
        deadline = time.monotonic() + AUDIT_PATIENCE
        while not self._append_once(lines):
            if time.monotonic() >= deadline:
                raise BlockingIOError(errno.EAGAIN, "another process keeps it locked")
            time.sleep(0.005)

    def _append_once(self, lines: bytes) -> bool:
        """False if another process has it, or has just set it aside."""
        self._fd = os.open(
            self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            try:
                if not self._is_current():
                    return False
                size = os.fstat(self._fd).st_size
                if size and size + len(lines) > AUDIT_BYTES:
                    self._set_aside()
                    return False
                self._write(lines, size)
            finally:
                # Not left to `close`: a child that was forked just now holds the lock too.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            return True
        finally:
            self.abandon()

    def _is_current(self) -> bool:
        """Whether what we locked still has the name."""
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _set_aside(self) -> None:
        """FILE → FILE.1 → FILE.2 …; the last is overwritten. Others wait for our lock."""
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, AUDIT_KEPT + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            try:
                newer.replace(older)
            except FileNotFoundError:
                pass  # so many have not come together yet

    def _write(self, lines: bytes, size: int) -> None:
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a process was killed while it wrote
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)  # they will be written again, and must not be there twice
            raise

    def abandon(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# --- reading a policy, with messages that name file and key ------------------------------


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
