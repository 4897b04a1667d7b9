"""The process that measures one logger: what its calls cost, and its rate into its own files.

The statement is compiled into the measuring loop, as ``timeit`` does it, so that nothing but
the user's own line is between two looks at the clock. Each call is timed alone, in blocks with
a pause after each; what the clock costs (the same loop with ``pass``) is taken off. The garbage
collector runs between blocks and not in them: its work would be billed to whatever call comes
next. The tight loop has no pause and no clock, and the collector works as it does in training.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS, Contender, Direct, Statement
from .plan import sample
from .processes import cpu_seconds, leave_result

_SOURCE = """
def measure(now, values, step, took, {names}):
    for value in values:
        before = now()
        {code}
        took(now() - before)
        step += 1

def loop(values, step, {names}):
    for value in values:
        {code}
        step += 1
"""

#: A block lasts about so long (seconds) or so many calls, and is followed by a pause.
BLOCK_SECONDS, BLOCK_CALLS, PAUSE = 0.002, 500, 0.002
#: Fewest calls that are timed, and most in a tight loop.
CALLS_MIN, LOOP_MAX = 20, 1_000_000
#: A tight loop looks at the clock about so often (seconds).
STRETCH = 0.02

VALUES = sample(4096)


def main() -> None:
    spec = json.loads(sys.argv[1])
    contender = next(c for c in CONTENDERS if c.name == spec["contender"])
    missing = [name for name in contender.requires if importlib.util.find_spec(name) is None]
    if missing:
        leave_result({"missing": f"not installed: {', '.join(missing)}"})
        return
    result: dict[str, Any] = {}
    for statement in contender.statements:
        if statement.id in spec["statements"]:
            before = time.perf_counter()
            names, close = contender.open(_folder(), spec["uri"])
            opened = time.perf_counter() - before
            result[statement.id] = _calls(statement, names, spec["seconds"])
            result[statement.id]["open_seconds"] = opened  # the first one with its imports
            close()
    for direct in contender.direct:
        if direct.id in spec["direct"]:
            result[f"direct/{direct.id}"] = _rate(contender, direct, spec)
    leave_result(result)


def _folder() -> Path:
    path = next(p for i in itertools.count() if not (p := Path.cwd() / f"logger-{i}").exists())
    path.mkdir()
    return path


def _compile(code: str, names: dict[str, Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    scope: dict[str, Any] = {}
    # The code is our own, from contenders.py.
    exec(_SOURCE.format(code=code, names=", ".join(names) or "*_"), scope)
    return scope["measure"], scope["loop"]


def _calls(statement: Statement, names: dict[str, Any], seconds: float) -> dict[str, Any]:
    measure, loop = _compile(statement.code, names)
    now = time.perf_counter_ns
    took: list[int] = []
    steps = itertools.count(0, BLOCK_CALLS)

    # Warm up, and see how long a call takes.
    until = now() + int(1e9 * min(0.2, seconds))
    while now() < until or len(took) < 3:
        measure(now, VALUES[:1], next(steps), took.append, **names)
    cost = max(1e-7, statistics.median(took) / 1e9)
    block = max(1, min(BLOCK_CALLS, int(BLOCK_SECONDS / cost)))

    took = []
    gc.collect()
    gc.freeze()
    gc.disable()
    blocks = itertools.cycle(range(0, len(VALUES) - block, block))
    until = now() + int(1e9 * seconds)
    while now() < until or len(took) < CALLS_MIN:
        at = next(blocks)
        measure(now, VALUES[at : at + block], next(steps), took.append, **names)
        gc.collect()
        time.sleep(PAUSE)
    gc.enable()
    gc.unfreeze()
    clock, bare = _overhead()

    time.sleep(0.2)  # what the logger does in the background is done by now
    cpu = cpu_seconds()
    count, lasted = _loop(loop, names, next(steps), seconds, LOOP_MAX, CALLS_MIN)
    time.sleep(0.2)  # and what it does behind the calls is done with, most of it
    cpu = cpu_seconds() - cpu
    each = 1e9 * lasted / count
    took.sort()
    return {
        "median_us": max(0.0, statistics.median(took) - clock) / 1000,
        "p99_us": max(0.0, took[min(len(took) - 1, int(0.99 * len(took)))] - clock) / 1000,
        "loop_us": max(0.0, each - bare) / 1000,
        "cpu_us_per_metric": 1e6 * cpu / count / statement.metrics,
        "calls": len(took),
        "loop_calls": count,
        "clock_ns": clock,
        "metrics_per_call": statement.metrics,
        "statement": statement.code,
    }


def _loop(
    loop: Callable[..., None],
    names: dict[str, Any],
    step: int,
    seconds: float,
    most: int,
    least: int = 1,
) -> tuple[int, float]:
    """Call without a pause for ``seconds``, but not more or less often than these.

    Returns how often, and how long it took.
    """
    count, stretch = 0, 1
    began = now = time.perf_counter()
    while count < most and (now - began < seconds or count < least):
        before = now
        values = VALUES[: min(stretch, most - count)]
        loop(values, step + count, **names)
        count += len(values)
        now = time.perf_counter()
        if now - before < STRETCH:
            stretch = min(2 * stretch, len(VALUES))
    return count, now - began


def _overhead() -> tuple[float, float]:
    """What the clock costs in a timed call, and the loop itself in the tight one, in ns."""
    measure, loop = _compile("pass", {})
    now = time.perf_counter_ns
    took: list[int] = []
    for _ in range(5):
        measure(now, VALUES, 0, took.append)
    each = []
    for _ in range(5):
        before = now()
        loop(VALUES, 0)
        each.append((now() - before) / len(VALUES))
    return statistics.median(took), min(each)


def _rate(contender: Contender, direct: Direct, spec: dict[str, Any]) -> dict[str, Any]:
    """From the first call until the logger has been closed."""
    names, close = contender.open(_folder(), spec["uri"])
    _, loop = _compile(direct.code, names)
    cpu = cpu_seconds()
    most = max(1, spec["direct"][direct.id] // direct.metrics)
    before = time.perf_counter()
    count, called = _loop(loop, names, 0, spec["direct_seconds"], most)
    close()
    seconds = time.perf_counter() - before
    return {
        "metrics": count * direct.metrics,
        "seconds": seconds,
        "cpu_us_per_metric": 1e6 * (cpu_seconds() - cpu) / count / direct.metrics,
        "close_seconds": seconds - called,
        "metrics_per_second": count * direct.metrics / seconds,
    }


if __name__ == "__main__":
    main()
