"""What Prometheus is shown: the facts of a status, as metrics. Named in ``docs/operations.md``."""

from __future__ import annotations

import collections
import threading
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

__all__ = ["Metrics"]

#: Sites, adapters, reasons of losses, and an adapter's own counters, that have series of their own.
MAX_SITES, MAX_ADAPTERS, MAX_REASONS, MAX_COUNTERS = 1000, 200, 200, 50
#: The label that the rest shares.
OTHERS = "(others)"
#: Streams whose records are remembered, to see how many are new.
REMEMBERED_STREAMS = 100_000

ADAPTER_STATES = (
    "starting", "running", "retrying", "blocked", "ended", "away", "removed", "other"
)  # fmt: skip
RUN_STATES = ("active", "stale", "ended", "left", "killed")
#: Shown before they happen, so that an alert sees the first one too.
REFUSALS = ("disk_full", "no_room", "over_rate", "stream_conflict")
#: Counters of an adapter that have metrics of their own.
OWN_COUNTERS = ("delivered", "retries", "dead_letters")
#: Upper bounds, in seconds. An idle loop waits up to 0.1 s.
TURNS = (0.001, 0.005, 0.01, 0.05, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily
_FAMILIES: tuple[tuple[Any, str, str, tuple[str, ...]], ...] = (
    (InfoMetricFamily, "zmqtrack_build", "The version that runs.", ()),
    (_GAUGE, "zmqtrack_accepting", "1 while batches are taken, else 0.", ()),
    (_GAUGE, "zmqtrack_disk_full", "1 if the disk was full in the last 30 s.", ()),
    (_GAUGE, "zmqtrack_keys_admitted", "Keys that may come in; absent without keys.", ()),
    (HistogramMetricFamily, "zmqtrack_loop_turn_seconds", "Turns of the loop, with its wait.", ()),
    (_COUNTER, "zmqtrack_received_batches_total", "Batches that came in.", ()),
    (_COUNTER, "zmqtrack_duplicate_batches_total", "Those of them that were known already.", ()),
    (_COUNTER, "zmqtrack_refused_messages_total", "Batches and requests refused.", ("reason",)),
    (_GAUGE, "zmqtrack_journal_head", "Offset of the newest batch.", ()),
    (_GAUGE, "zmqtrack_journal_held_batches", "Batches in the journal.", ()),
    (_GAUGE, "zmqtrack_journal_held_bytes", "Bytes of their bodies.", ()),
    (_GAUGE, "zmqtrack_journal_limit_bytes", "Held bytes at which writers wait.", ()),
    (_GAUGE, "zmqtrack_journal_file_bytes", "Size of the journal's file.", ()),
    (_GAUGE, "zmqtrack_journal_full", "1 while the limit is reached.", ()),
    (_GAUGE, "zmqtrack_quarantined_batches", "Of a second writer under one stream.", ()),
    (_COUNTER, "zmqtrack_losses_total", "What was lost, by reason.", ("reason",)),
    (_COUNTER, "zmqtrack_not_carried_total", "Calls with no neutral form.", ("reason",)),
    (InfoMetricFamily, "zmqtrack_adapter", "Its type, and who starts it.", ("adapter",)),
    (_GAUGE, "zmqtrack_adapter_state", "1 for the state it is in.", ("adapter", "state")),
    (_GAUGE, "zmqtrack_adapter_lag_batches", "Batches not yet delivered.", ("adapter",)),
    (_GAUGE, "zmqtrack_adapter_dead_letters", "Dead letters that are kept.", ("adapter",)),
    (_GAUGE, "zmqtrack_adapter_last_seen_timestamp_seconds", "Last heard of.", ("adapter",)),
    (_COUNTER, "zmqtrack_adapter_delivered_records_total", "Confirmed records.", ("adapter",)),
    (_COUNTER, "zmqtrack_adapter_retries_total", "Attempts that failed.", ("adapter",)),
    (_COUNTER, "zmqtrack_adapter_restarts_total", "Its process was restarted.", ("adapter",)),
    (_COUNTER, "zmqtrack_adapter_notes_total", "Its own counters.", ("adapter", "reason")),
    (_GAUGE, "zmqtrack_site_runs", "Its runs, by state.", ("site", "state")),
    (_GAUGE, "zmqtrack_site_mixed_runs", "Its runs that several jobs wrote to.", ("site",)),
    (_GAUGE, "zmqtrack_site_waiting_records", "Records waiting at its writers.", ("site",)),
    (_GAUGE, "zmqtrack_site_last_seen_timestamp_seconds", "Last heard of.", ("site",)),
    (_COUNTER, "zmqtrack_site_records_total", "Records that were journalled.", ("site",)),
    (_COUNTER, "zmqtrack_site_losses_total", "What it lost, for any reason.", ("site",)),
    (_COUNTER, "zmqtrack_site_not_carried_total", "Its calls with no neutral form.", ("site",)),
    (_GAUGE, "zmqtrack_unlabelled", "How many share the label (others).", ("kind",)),
)


def _families() -> dict[str, Any]:
    return {name: kind(name, text, labels=labels) for kind, name, text, labels in _FAMILIES}


class _Labels:
    """The first ``limit`` names keep labels of their own, and the rest shares one.

    Not the largest: a counter must not change what it counts.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._names and len(self._names) >= self._limit:
            return OTHERS
        self._names.add(name)
        return name


class Metrics(Collector):
    """Made of :attr:`facts` whenever they are asked for; :meth:`turned` counts turns."""

    def __init__(self) -> None:
        #: What a status tells.
        self.facts: dict[str, Any] | None = None
        self._turns = [0] * (len(TURNS) + 1)
        self._turned = 0.0
        self._lock = threading.Lock()
        self._sites, self._adapters = _Labels(MAX_SITES), _Labels(MAX_ADAPTERS)
        self._reasons = _Labels(MAX_REASONS)
        self._counters: dict[str, _Labels] = {}
        self._records_of: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._records: collections.Counter[str] = collections.Counter()

    def turned(self, seconds: float) -> None:
        self._turns[bisect_left(TURNS, seconds)] += 1
        self._turned += seconds

    def describe(self) -> Iterable[Metric]:
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        families = _families()
        with self._lock:  # of several who ask at the same time
            if self.facts is not None:
                self._add_daemon(families, self.facts)
                for kind in ("losses", "not_carried"):
                    self._add_counts(families, kind, self.facts[kind])
                self._add_adapters(families, self.facts["adapters"])
                self._add_sites(families, self.facts)
        return families.values()

    def _add_daemon(self, families: dict[str, Any], facts: dict[str, Any]) -> None:
        daemon, journal = facts["daemon"], facts["journal"]
        families["zmqtrack_build"].add_metric((), {"version": facts["version"]})
        for name, value in (
            ("accepting", daemon["accepting"]),
            ("disk_full", daemon["disk_full"]),
            ("keys_admitted", daemon["keys"]),
            ("received_batches_total", daemon["received_batches"]),
            ("duplicate_batches_total", daemon["duplicate_batches"]),
            ("journal_head", journal["head"]),
            ("journal_held_batches", journal["batches"]),
            ("journal_held_bytes", journal["bytes"]),
            ("journal_limit_bytes", journal["max_bytes"]),
            ("journal_file_bytes", journal["file_bytes"]),
            ("journal_full", daemon["journal_full"]),
            ("quarantined_batches", facts["quarantined"]),
        ):
            if value is not None:
                families[f"zmqtrack_{name}"].add_metric((), value)
        refused = dict.fromkeys(REFUSALS, 0) | daemon["refused"]
        for reason, n in sorted(refused.items()):
            families["zmqtrack_refused_messages_total"].add_metric((reason,), n)
        counts = list(accumulate(self._turns))
        bounds = [*map(str, TURNS), "+Inf"]
        families["zmqtrack_loop_turn_seconds"].add_metric(
            (), list(zip(bounds, counts, strict=True)), self._turned
        )

    def _add_counts(
        self, families: dict[str, Any], kind: str, counts: list[dict[str, Any]]
    ) -> None:
        """By reason, and by site: not by both, which would be too many."""
        by_reason: collections.Counter[str] = collections.Counter()
        for each in counts:
            by_reason[self._reasons(each["reason"])] += each["n"]
        for reason, n in by_reason.items():
            families[f"zmqtrack_{kind}_total"].add_metric((reason,), n)

    def _add_adapters(self, families: dict[str, Any], adapters: dict[str, Any]) -> None:
        unlabelled = 0
        # Those that run come first, if there are too many.
        for name, facts in sorted(adapters.items(), key=lambda each: _is_gone(each[1])):
            if self._adapters(name) == OTHERS:
                unlabelled += 1
                continue
            labels, counters = (name,), facts["counters"]
            families["zmqtrack_adapter"].add_metric(
                labels, {"type": facts["type"], "external": str(facts["external"]).lower()}
            )
            current = facts["state"] if facts["state"] in ADAPTER_STATES else "other"
            for state in ADAPTER_STATES:
                families["zmqtrack_adapter_state"].add_metric((name, state), state == current)
            for metric, value in (
                ("lag_batches", facts["lag"]),
                ("dead_letters", facts["dead_letters"]),
                ("last_seen_timestamp_seconds", facts.get("seen") or None),
                ("delivered_records_total", counters.get("delivered", 0)),
                ("retries_total", counters.get("retries", 0)),
                ("restarts_total", facts["restarts"]),
            ):
                if value is not None:
                    families[f"zmqtrack_adapter_{metric}"].add_metric(labels, value)
            for reason, n in self._counters_of(name, counters).items():
                families["zmqtrack_adapter_notes_total"].add_metric((name, reason), n)
        families["zmqtrack_unlabelled"].add_metric(("adapter",), unlabelled)

    def _counters_of(self, name: str, counters: dict[str, int]) -> dict[str, int]:
        label = self._counters.setdefault(name, _Labels(MAX_COUNTERS))
        found: collections.Counter[str] = collections.Counter()
        for reason, n in counters.items():
            if reason not in OWN_COUNTERS:
                found[label(reason)] += n
        return found

    def _add_sites(self, families: dict[str, Any], facts: dict[str, Any]) -> None:
        states: collections.Counter[tuple[str, str]] = collections.Counter()
        waiting: collections.Counter[str] = collections.Counter()
        mixed: collections.Counter[str] = collections.Counter()
        seen: dict[str, float] = {}
        unlabelled = set()
        # Those that were heard of last come first, if there are too many.
        for run in sorted(facts["sites"], key=lambda run: -run["last_seen"]):
            label = self._sites(run["site"])
            states[label, run["state"]] += 1
            waiting[label] += run["waiting"] or 0
            mixed[label] += bool(run["writers"])
            seen[label] = max(seen.get(label, 0.0), run["last_seen"])
            if label == OTHERS:
                unlabelled.add(run["site"])
        for label, when in seen.items():
            for state in RUN_STATES:
                families["zmqtrack_site_runs"].add_metric((label, state), states[label, state])
            families["zmqtrack_site_mixed_runs"].add_metric((label,), mixed[label])
            families["zmqtrack_site_waiting_records"].add_metric((label,), waiting[label])
            families["zmqtrack_site_last_seen_timestamp_seconds"].add_metric((label,), when)
        families["zmqtrack_unlabelled"].add_metric(("site",), len(unlabelled))
        for stream in facts["streams"]:
            self._count_records(stream)
        for label, n in self._records.items():
            families["zmqtrack_site_records_total"].add_metric((label,), n)
        for kind in ("losses", "not_carried"):
            counts: collections.Counter[str] = collections.Counter()
            for each in facts[kind]:
                counts[self._sites(each["site"]) if each["site"] else ""] += each["n"]
            for label in {"", *self._records, *counts}:  # 0 too: see REFUSALS
                families[f"zmqtrack_site_{kind}_total"].add_metric((label,), counts[label])

    def _count_records(self, stream: dict[str, Any]) -> None:
        """Add what is new. A status tells of the latest streams alone: their sum would fall."""
        ident, records = stream["stream"], stream["records"]
        self._records[self._sites(stream["run"][2])] += records - self._records_of.get(ident, 0)
        self._records_of[ident] = records
        self._records_of.move_to_end(ident)
        if len(self._records_of) > REMEMBERED_STREAMS:
            self._records_of.popitem(last=False)


def _is_gone(facts: dict[str, Any]) -> bool:
    return facts["state"] in ("away", "removed")
