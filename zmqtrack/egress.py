"""What leaves a site is the site's own decision: the gate that keeps to its policy.

The gate stands before the spool: what is held back is never stored with what is sent. A run's
beginning and end, and the counts of what was lost, always leave, for trackers open and close a
run by them; without ``run`` among the ``types`` the beginning goes without its facts. A file is
one record, and held back whole; so is a value that travels in pieces. The reason for holding a
record back is the policy's key that says so; ``piece`` is a piece of a file, or of such a value,
whose beginning was given up.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from . import wire
from .auditfile import AuditFile
from .records import Entry, RunKey, plain_key

if TYPE_CHECKING:
    from .policy import Policy

__all__ = ["AUDIT_NAME", "Gate"]

log = logging.getLogger("zmqtrack")

#: Name of the audit file, unless the policy has another.
AUDIT_NAME = "egress-audit.jsonl"
#: Bytes that are written to it at a time.
AUDIT_CHUNK = 1 << 20

#: Keys whose verdict is remembered, and files that are under way.
KNOWN_KEYS = 100_000
OPEN_FILES = 1000

_WHY = {
    "types": "its data type is not among the policy's types",
    "allow": "its key matches no pattern of the policy's allow",
    "deny": "its key matches a pattern of the policy's deny",
    "sizes": "it is larger than the policy's sizes",
    "rates": "more of its data type come in a second than the policy's rates",
    "piece": "it is a piece of a file or large value whose beginning was given up",
}

_clock = time.monotonic


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
        self._files: dict[tuple[Any, ...], bool] = {}  # under way: whether they pass
        self._audit = AuditFile(policy.audit or spool_dir / AUDIT_NAME)
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
            data_type, _, cut = entry[4].partition("/")
            if data_type == "lost":
                passed.append(entry)
                continue
            rule = self._rules.get(data_type) or self._new_rule(data_type, now)
            if data_type == "run":
                bare = not rule.leaves and entry[0] == "start"
                passed.append((entry[0], {}, *entry[2:]) if bare else entry)
            elif cut or data_type == "artifact":
                if self._passes_piece(entry, data_type, rule):
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
            verdict = self._policy.verdict(plain_key(key))
            if len(self._verdicts) < KNOWN_KEYS:
                self._verdicts[key] = verdict
        if verdict is not None:
            return verdict
        if rule.size is not None and (_size(value) if size is None else size) > rule.size:
            return "sizes"
        return None if rule.take() else "rates"

    def _passes_piece(self, entry: Entry, data_type: str, rule: _Rule) -> bool:
        """What its first piece met with holds for the whole file, or value."""
        key, (offset, size, piece, *number), _, when, _ = entry
        # A file's pieces have one time, which tells it from others of the key; a value's a number.
        file = key, when, *number
        if offset == 0:
            reason = self._reason(key, rule, None, wire.length(entry[1]) if number else size)
            if reason:
                self._hold(data_type, key, reason)
            if len(self._files) >= OPEN_FILES:  # of some the last piece was given up
                del self._files[next(iter(self._files))]
            self._files[file] = not reason
        elif file not in self._files:
            self._hold(data_type, key, "piece")
            self._files[file] = False
        passes = self._files[file]
        if offset + len(piece) >= size:
            del self._files[file]
        return passes

    def _hold(self, data_type: str, key: str, reason: str) -> None:
        key = plain_key(key)
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
