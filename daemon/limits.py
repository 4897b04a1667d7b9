"""What one site may do: how fast, and how much."""

from __future__ import annotations

import collections
import time
from collections.abc import Hashable, Iterable

from zmqtrack import peek, wire
from zmqtrack.config import LimitsConfig
from zmqtrack.records import RunKey
from zmqtrack.wire import Header

__all__ = ["Exceeded", "Limits"]

#: A writer, or run, that has been silent for so long (seconds) no longer counts as open.
OPEN = 600.0
#: Where all are open, it is looked for such at most so often (seconds).
LOOK_AGAIN = 1.0
#: Distinct keys that are remembered in all, a run counting as one more; beyond, those of the
#: oldest runs are forgotten.
REMEMBERED_KEYS = 2_000_000
#: Sites whose rates, writers and runs are remembered.
REMEMBERED_SITES = 100_000


class Exceeded(Exception):
    """A limit on how much: ``reason`` is a fixed word, the message says the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Bucket:
    """Tokens for ``rate`` a second, a second's worth at most. May go below zero once."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = self._tokens = float(rate)
        self._when = now

    def wait(self, now: float) -> float:
        """Seconds until half of it is full again, if it is empty; else 0."""
        self._tokens = min(self._rate, self._tokens + (now - self._when) * self._rate)
        self._when = now
        return 0.0 if self._tokens > 0 else 0.5 - self._tokens / self._rate

    def take(self, n: float) -> None:
        self._tokens -= n


class _Open(dict[Hashable, float]):
    """What of one kind a site has open, and when it was heard of last."""

    _full_until = 0.0

    def add(self, name: Hashable, limit: int) -> bool:
        """It is open; False: it would be one too many, and is not taken."""
        now = time.monotonic()
        if name not in self and len(self) >= limit:
            if now < self._full_until:
                return False  # looked at a moment ago
            for other in [other for other, heard in self.items() if now - heard > OPEN]:
                del self[other]
            if len(self) >= limit:
                self._full_until = now + LOOK_AGAIN
                return False
        self[name] = now
        return True

    def remove(self, name: Hashable) -> None:
        if self.pop(name, None) is not None:
            self._full_until = 0.0


class _Keys(set[int]):
    """Hashes of the keys of a run, and how many bytes these have."""

    size = 0


class Limits:
    """Kept by the broker. ``open_runs``: those that the journal knows."""

    def __init__(self, config: LimitsConfig, open_runs: Iterable[RunKey]) -> None:
        self.config = config
        self._buckets: collections.OrderedDict[str, tuple[_Bucket, _Bucket]] = (
            collections.OrderedDict()
        )
        self._streams: dict[str, _Open] = {}
        self._runs: dict[str, _Open] = {}
        for run in open_runs:
            self._runs.setdefault(run.site, _Open())[run[:2]] = time.monotonic()
        self._keys: collections.OrderedDict[RunKey, _Keys] = collections.OrderedDict()
        self._n_keys = 0

    def configure(self, config: LimitsConfig) -> None:
        """Other limits from now on."""
        if config != self.config:
            self.config = config
            self._buckets.clear()

    def wait(self, site: str, size: int) -> float:
        """0 if a batch of ``size`` bytes may come in, and takes it into account; else seconds."""
        now = time.monotonic()
        buckets = self._buckets.get(site)
        if buckets is None:
            if len(self._buckets) >= REMEMBERED_SITES:
                self._buckets.popitem(last=False)
            config = self.config
            buckets = _Bucket(config.batches_per_second, now), _Bucket(config.bytes_per_second, now)
            self._buckets[site] = buckets
        batches, volume = buckets
        if wait := max(batches.wait(now), volume.wait(now)):
            return wait
        batches.take(1)
        volume.take(size)
        return 0.0

    def open_stream(self, stream: bytes, run: RunKey) -> None:
        """A writer begins.

        Raises:
            Exceeded: its site has too many of them open, or too many runs. Another that ends, or
                falls silent for :data:`OPEN` seconds, makes room.
        """
        site, limits = run.site, self.config
        runs, streams = _of_site(self._runs, site), _of_site(self._streams, site)
        new = run[:2] not in runs
        if not runs.add(run[:2], limits.runs):
            raise Exceeded(
                "too_many_runs",
                f"site {site} has {len(runs)} open runs; limits.runs is {limits.runs}: this one "
                "waits until another has ended",
            )
        if not streams.add(stream, limits.streams):
            if new:
                runs.remove(run[:2])
            raise Exceeded(
                "too_many_streams",
                f"site {site} has {len(streams)} open writers already; limits.streams is "
                f"{limits.streams}: this one waits until another has ended",
            )

    def hear(self, stream: bytes, run: RunKey) -> None:
        """A writer lives."""
        _of_site(self._runs, run.site).add(run[:2], self.config.runs)
        _of_site(self._streams, run.site).add(stream, self.config.streams)

    def end_run(self, run: RunKey, stream: bytes = b"") -> None:
        """A run is over; ``stream`` is that of the writer that says so."""
        if run.site in self._runs:
            self._runs[run.site].remove(run[:2])
        if run.site in self._streams:
            self._streams[run.site].remove(stream)

    def check(self, data_type: str, header: Header, body: bytes) -> None:
        """What stands in a batch.

        Raises:
            Exceeded: it is too much.
            FrameError: ``bad_body``.
        """
        config = self.config
        if header.count > config.records:
            raise Exceeded(
                "too_many_records",
                f"{header.count} records in a batch; limits.records is {config.records}",
            )
        if data_type == "metric":
            self._check_keys(header, body)
            return
        name, limit = self._size_limit(data_type)
        whole = data_type != "artifact" and not header.in_pieces
        if whole and limit >= (wire.MAX_BODY if header.codec else len(body)):
            return  # no value in it can be larger
        largest = max(peek.sizes(data_type, header.codec, body), default=0)
        # A few bytes more is what msgpack adds.
        if largest > limit + 8:
            raise Exceeded(f"{name}_too_large", f"{largest} bytes; limits.{name} is {limit}")

    def _size_limit(self, data_type: str) -> tuple[str, int]:
        """Name of the limit that a value of the type has, and the limit."""
        name = data_type if data_type in ("text", "image", "artifact") else "value"
        return name, getattr(self.config, name)

    def _check_keys(self, header: Header, body: bytes) -> None:
        known = self._keys.get(header.run)
        if known is None:
            known = self._keys[header.run] = _Keys()
            self._n_keys += 1
        new = {hash(key): key for key in peek.keys(header.codec, body)}
        for each in new.keys() & known:
            del new[each]
        if not new:
            return
        size = known.size + sum(len(key.encode(errors="replace")) for key in new.values())
        if size > self.config.key_bytes:
            raise Exceeded(
                "too_many_keys",
                f"run {'/'.join(header.run)} has {len(known)} keys of metrics of {known.size} "
                f"bytes, and this batch {len(new)} more; limits.key_bytes is "
                f"{self.config.key_bytes}",
            )
        known.update(new)
        known.size = size
        self._n_keys += len(new)
        while self._n_keys > REMEMBERED_KEYS and len(self._keys) > 1:
            self._n_keys -= 1 + len(self._keys.popitem(last=False)[1])


def _of_site(open_things: dict[str, _Open], site: str) -> _Open:
    found = open_things.get(site)
    if found is None:
        if len(open_things) >= REMEMBERED_SITES:
            open_things.clear()
        found = open_things[site] = _Open()
    return found
