"""Who is alive: each run of a site is active, stale, ended, or killed after its lease.

Wall clocks do not matter here: silence is measured by the daemon's own monotonic clock, and a
run that ends for its silence ends at the time that its writer said last.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from zmqtrack.records import MAX_INT, RunKey

__all__ = ["Life", "Sites"]

#: Open runs that are watched; beyond, the one that was opened first is no longer.
WATCHED = 100_000
#: Others, of which it is remembered what they said last; and writers of one run.
REMEMBERED = 10_000
WRITERS = 1000


@dataclass(slots=True)
class Life:
    """What a run's writers last said. ``clock`` is theirs, in seconds since the epoch."""

    heard: float = field(default_factory=time.monotonic)
    clock: float = 0.0
    step: int | None = None
    #: By stream: when it beat last, and how many records waited in its spool.
    beats: dict[bytes, tuple[float, int]] = field(default_factory=dict)

    def spooled(self, since: float) -> int | None:
        """Records that wait at the writers that have beaten ``since`` then; None: none has."""
        waiting = [records for when, records in self.beats.values() if when >= since]
        return min(sum(waiting), MAX_INT) if waiting else None  # of what strangers say


class Sites:
    """The runs that are open: they have begun, and have not ended."""

    def __init__(self, open_runs: Iterable[RunKey]) -> None:
        self._open = {run: Life() for run in open_runs}  # after a start all have a whole lease
        self._others: OrderedDict[RunKey, Life] = OrderedDict()  # what the rest said last
        self._ended: OrderedDict[bytes, None] = OrderedDict()  # streams that said that they end

    def agree(self, open_runs: Iterable[RunKey]) -> None:
        """These are open, as the journal says after all: what their writers said still holds."""
        before = self._open.copy()
        self._open.clear()
        for run in open_runs:
            known = before.get(run) or self._others.get(run)
            before.pop(run, None)
            self._others.pop(run, None)
            self._open[run] = known or Life()
        for run, life in before.items():
            self._remember(run, life)

    def excuse(self, seconds: float) -> None:
        """We did not listen for so long: nobody is to be blamed for what we did not hear."""
        now = time.monotonic()
        for life in self._open.values():
            life.heard = min(now, life.heard + seconds)

    def hear(self, run: RunKey) -> bool:
        """Something came of a run; True if it was not open before."""
        known = self._open.get(run)
        if known is not None:
            known.heard = time.monotonic()
            return False
        if len(self._open) >= WATCHED:
            self.end(next(iter(self._open)))
        life = self._others.pop(run, None) or Life()
        life.heard = time.monotonic()
        self._open[run] = life
        return True

    def beat(
        self, run: RunKey, stream: bytes, spooled: int, step: int | None, clock: float
    ) -> None:
        """What a writer says of itself."""
        life = self._open.get(run) or self._others.get(run)
        if life is None:
            life = self._remember(run, Life())
        while len(life.beats) >= WRITERS and stream not in life.beats:
            del life.beats[min(life.beats, key=lambda each: life.beats[each])]
        life.beats[stream] = time.monotonic(), spooled
        life.clock = max(life.clock, clock)
        if step is not None:
            life.step = step

    def end(self, run: RunKey, stream: bytes = b"") -> None:
        """A run is over; ``stream`` is that of the writer that says so."""
        if stream:
            self._ended[stream] = None
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        life = self._open.pop(run, None) or self._others.get(run)
        if life is not None:
            life.beats.clear()
            self._remember(run, life)

    def is_over_for(self, stream: bytes) -> bool:
        """Whether that writer has ended its run: what it says later was only late."""
        return stream in self._ended

    def beats_since_the_end(self, run: RunKey, stream: bytes) -> bool:
        """Whether that writer has said that it lives since the run was over."""
        life = self._others.get(run)
        return life is not None and stream in life.beats

    def _remember(self, run: RunKey, life: Life) -> Life:
        self._others[run] = life
        if len(self._others) > REMEMBERED:
            self._others.popitem(last=False)
        return life

    def life(self, run: RunKey) -> Life | None:
        """What is known of an open run; None if it is not."""
        return self._open.get(run)

    def last_step(self, run: RunKey) -> int | None:
        """The step that a run's writers said last, open or not."""
        life = self._open.get(run) or self._others.get(run)
        return life.step if life else None

    def last_clock(self, run: RunKey) -> float:
        """The latest time that a run's writers said, open or not; 0.0: none."""
        life = self._open.get(run) or self._others.get(run)
        return life.clock if life else 0.0

    def silent(self, lease: float) -> list[tuple[RunKey, Life]]:
        """The open runs that nothing was heard of for ``lease`` seconds."""
        before = time.monotonic() - lease
        return [(run, life) for run, life in self._open.items() if life.heard < before]
