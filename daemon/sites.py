"""Who is alive: each run of a site is active, stale, ended, or left or killed after its lease.

Wall clocks do not matter here: silence is measured by the daemon's own monotonic clock, and a
run that ends for its silence ends at the time that its writer said last.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from zmqtrack.records import MAX_INT, RunKey

__all__ = ["Beat", "Family", "Life", "Sites", "Who"]

#: Open runs that are watched; beyond, the one that was opened first is no longer.
WATCHED = 100_000
#: Others, of which it is remembered what they said last; and writers of one run.
REMEMBERED = 10_000
WRITERS = 10_000
#: Jobs that write to one run at the same time, beyond which nobody counts them; and the marks of
#: one of them.
FAMILIES, MARKS = 8, 64


class Who(NamedTuple):
    """A writer's process. Two that share a mark belong to one job, or one has started the other."""

    host: str
    pid: int
    marks: frozenset[bytes]


class Beat(NamedTuple):
    """What a writer says of itself: records in its spool, and the time of what it logged last.

    ``who``: None if it does not say.
    """

    waiting: int
    clock: float
    who: Who | None = None


@dataclass(slots=True)
class Family:
    """Writers of one run that belong together, by the one that was heard of first."""

    host: str
    pid: int
    marks: set[bytes]
    stream: bytes  # of the one that was heard of last
    first: float
    #: Another family wrote to the run at the same time.
    mixed: bool = False

    def learn(self, marks: Iterable[bytes]) -> None:
        """It has these marks too, as far as there is room for them."""
        for mark in marks:
            if len(self.marks) < MARKS:
                self.marks.add(mark)


@dataclass(slots=True)
class Life:
    """What a run's writers last said. ``clock`` is theirs, in seconds since the epoch."""

    heard: float = field(default_factory=time.monotonic)
    clock: float = 0.0
    #: By stream: when it beat last, and how many records waited in its spool; the latest are last.
    beats: OrderedDict[bytes, tuple[float, int]] = field(default_factory=OrderedDict)
    families: list[Family] = field(default_factory=list)
    #: Families that were told of each other.
    told: int = 0

    @property
    def mixed(self) -> list[Family]:
        """Those that wrote at the same time as another."""
        return [family for family in self.families if family.mixed]

    def meet(self, stream: bytes, who: Who) -> None:
        """A writer of ``who`` lives.

        That two families live at the same time is proved when one is heard of, is older than the
        other's first word, and so outlived it: not by who starts again what has crashed.
        """
        now = time.monotonic()
        own = [family for family in self.families if family.marks & who.marks]
        if not own:
            if len(self.families) >= FAMILIES:
                self.families.remove(min(self.families, key=lambda each: (each.mixed, each.first)))
            self.families.append(Family(who.host, who.pid, set(who.marks), stream, now))
            return
        family, *others = sorted(own, key=lambda each: each.first)
        for other in others:  # it turns out that they belong together
            family.learn(other.marks)
            self.families.remove(other)
        family.learn(who.marks)
        family.stream = stream
        for other in self.families:
            if other.first > family.first:
                family.mixed = other.mixed = True

    @property
    def last_waiting(self) -> int | None:
        """Records that waited at all writers when each was last heard of; None: none has said."""
        return self.waiting(-math.inf)

    def waiting(self, since: float) -> int | None:
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

    def beat(self, run: RunKey, stream: bytes, beat: Beat) -> Life:
        """What a writer says of itself."""
        life = self._open.get(run) or self._others.get(run)
        if life is None:
            life = self._remember(run, Life())
        life.beats[stream] = time.monotonic(), beat.waiting
        life.beats.move_to_end(stream)
        if len(life.beats) > WRITERS:
            life.beats.popitem(last=False)
        life.clock = max(life.clock, beat.clock)
        if beat.who is not None:
            life.meet(stream, beat.who)
        return life

    def end(self, run: RunKey, stream: bytes = b"") -> None:
        """A run is over; ``stream`` is that of the writer that says so."""
        if stream:
            self._ended[stream] = None
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        life = self._open.pop(run, None) or self._others.get(run)
        if life is not None:
            life.beats.clear()
            life.families.clear()
            life.told = 0
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

    def last_clock(self, run: RunKey) -> float:
        """The latest time that a run's writers said, open or not; 0.0: none."""
        life = self._open.get(run) or self._others.get(run)
        return life.clock if life else 0.0

    def silent(self, lease: float) -> list[tuple[RunKey, Life]]:
        """The open runs that nothing was heard of for ``lease`` seconds."""
        before = time.monotonic() - lease
        return [(run, life) for run, life in self._open.items() if life.heard < before]
