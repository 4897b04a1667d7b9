"""What one site may do: how fast, and how much."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

from zmqtrack import peek, wire
from zmqtrack.config import LimitsConfig
from zmqtrack.records import RunKey
from zmqtrack.wire import Header

__all__ = ["Exceeded", "Limits"]

#: A writer that has been silent for so long (seconds) no longer counts as open.
OPEN = 600.0
#: Distinct keys that are remembered in all, a run counting as one more; beyond, those of the
#: oldest runs are forgotten.
REMEMBERED_KEYS = 2_000_000
#: Sites whose rates, writers and runs are remembered.
REMEMBERED_SITES = 100_000


class Exceeded(Exception):
    """A limit that time does not cure: ``reason`` is a fixed word, the message says the rest."""

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


class Limits:
    """Kept by the broker. ``runs_of`` tells which runs the journal knows of a site."""

    def __init__(
        self, config: LimitsConfig, runs_of: Callable[[str], set[tuple[str, str]]]
    ) -> None:
        self.config = config
        self._runs_of = runs_of
        self._buckets: collections.OrderedDict[str, tuple[_Bucket, _Bucket]] = (
            collections.OrderedDict()
        )
        self._streams: dict[str, dict[bytes, float]] = {}
        self._runs: dict[str, set[tuple[str, str]]] = {}
        self._keys: collections.OrderedDict[RunKey, set[int]] = collections.OrderedDict()
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
        """A writer greets.

        Raises:
            Exceeded: its site has too many of them, or too many runs.
        """
        now = time.monotonic()
        if run.site not in self._streams and len(self._streams) >= REMEMBERED_SITES:
            self._streams.clear()
        streams = self._streams.setdefault(run.site, {})
        if stream not in streams and len(streams) >= self.config.streams:
            for other in [key for key, seen in streams.items() if now - seen > OPEN]:
                del streams[other]
            if len(streams) >= self.config.streams:
                raise Exceeded(
                    "too_many_streams",
                    f"site {run.site} has {len(streams)} open writers already; "
                    f"limits.streams is {self.config.streams}",
                )
        self.open_run(run)
        streams[stream] = now

    def open_run(self, run: RunKey) -> None:
        """A batch of ``run`` comes in.

        Raises:
            Exceeded: it would be one too many of its site.
        """
        runs = self._runs.get(run.site)
        if runs is None:
            if len(self._runs) >= REMEMBERED_SITES:
                self._runs.clear()
            runs = self._runs[run.site] = self._runs_of(run.site)
        if run[:2] not in runs:
            if len(runs) >= self.config.runs:
                raise Exceeded(
                    "too_many_runs",
                    f"site {run.site} has had {len(runs)} runs; limits.runs is {self.config.runs}",
                )
            runs.add(run[:2])

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
            known = self._keys[header.run] = set()
            self._n_keys += 1
        new = {hash(key) for key in peek.keys(header.codec, body)} - known
        if not new:
            return
        if len(known) + len(new) > self.config.keys:
            raise Exceeded(
                "too_many_keys",
                f"run {'/'.join(header.run)} has {len(known)} keys of metrics, and this batch "
                f"{len(new)} more; limits.keys is {self.config.keys}",
            )
        known |= new
        self._n_keys += len(new)
        while self._n_keys > REMEMBERED_KEYS and len(self._keys) > 1:
            self._n_keys -= 1 + len(self._keys.popitem(last=False)[1])
