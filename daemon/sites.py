"""Who is alive: each run of a site is active, stale, ended, or killed after its lease.

Wall clocks do not matter here: silence is measured by the daemon's own monotonic clock, and a
run that ends for its silence ends at the time that its writer said last.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from zmqtrack.records import RunKey

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
    spooled: dict[bytes, int] = field(default_factory=dict)  # records, by stream


class Sites:
    """The runs that are open: they have begun, and have not ended."""

    def __init__(self, open_runs: Iterable[RunKey]) -> None:
        self._open = {run: Life() for run in open_runs}  # after a start all have a whole lease
        self._others: OrderedDict[RunKey, Life] = OrderedDict()  # what the rest said last

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
        if stream in life.spooled or len(life.spooled) < WRITERS:
            life.spooled[stream] = spooled
        life.clock = max(life.clock, clock)
        if step is not None:
            life.step = step

    def end(self, run: RunKey) -> None:
        life = self._open.pop(run, None)
        if life is not None:
            life.spooled.clear()
            self._remember(run, life)

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

    def silent(self, lease: float) -> list[tuple[RunKey, Life]]:
        """The open runs that nothing was heard of for ``lease`` seconds."""
        before = time.monotonic() - lease
        return [(run, life) for run, life in self._open.items() if life.heard < before]
