"""Histograms: many numbers become counts between edges, in the training process."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from .arrays import describe, is_array, loaded_numpy, to_host

__all__ = ["check_summary", "default_edges", "summarise"]

#: Most bins that a histogram may have.
MAX_BINS = 4096

#: Rules that choose the bins from the values.
RULES = ("tensorflow", "auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt")


def summarise(values: Any, bins: int | str | Sequence[float] = 64) -> dict[str, Any]:
    """Count ``values`` between edges.

    Args:
        values: numbers in lists and tuples of any nesting, an array or a tensor of any shape,
            or a summary that was made before: it is checked and returned.
        bins: how many bins of equal width; or the edges, increasing, one more than bins; or a
            rule: ``"tensorflow"`` (edges that grow by 10 %, only as many as are needed) or one
            of NumPy's names (``"doane"`` and ``"stone"`` are taken as ``"auto"``).

    Returns:
        ``counts`` (integers) and ``edges`` (one longer, increasing); a bin holds its left edge
        and not its right one, except the last, which holds both. ``min``, ``max``, ``num``,
        ``sum`` and ``sum_squares`` of the finite values, also of those outside the edges. The
        keys ``nan``, ``inf`` and ``-inf``, where there are such values, say how many; those
        are in no bin. With no finite value at all, ``counts`` is ``[0]`` and ``min`` and
        ``max`` are NaN.

    Raises:
        TypeError: not numbers.
        ValueError: no values, or bins that cannot be used.
    """
    if isinstance(values, Mapping):
        return check_summary(values)
    host = to_host(values) if is_array(values) else values
    if is_array(host):
        return _summarise_array(host, bins)
    if isinstance(host, (str, bytes)):
        raise TypeError(f"a histogram is made of numbers, not of {describe(values)}")
    try:
        numbers = [float(number) for number in _flatten(host)]
    except OverflowError as error:
        raise TypeError(f"a histogram is made of numbers: {error}") from None
    numpy = loaded_numpy()
    if numpy is not None and len(numbers) > 1000:
        return _summarise_array(numpy.asarray(numbers), bins)
    if not numbers:
        raise ValueError("a histogram needs at least one value")
    finite = [number for number in numbers if math.isfinite(number)]
    odd = {
        "nan": sum(map(math.isnan, numbers)),
        "inf": numbers.count(math.inf),
        "-inf": numbers.count(-math.inf),
    }
    if not finite:
        return _without_finite(odd)
    low, high = min(finite), max(finite)
    total = _sum(finite)
    deviation = quartiles = 0.0
    if isinstance(bins, str):
        mean = total / len(finite)
        deviation = math.sqrt(_sum((number - mean) ** 2 for number in finite) / len(finite))
        ordered = sorted(finite)
        quartiles = _quantile(ordered, 0.75) - _quantile(ordered, 0.25)
    edges = _edges(bins, low, high, len(finite), deviation, quartiles)
    counts = [0] * (len(edges) - 1)
    for number in finite:
        index = bisect_right(edges, number) - 1
        if number == edges[-1]:
            index -= 1
        if 0 <= index < len(counts):
            counts[index] += 1
    squares = _sum(number * number for number in finite)
    return _summary(counts, edges, low, high, len(finite), total, squares, odd)


def check_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a ready summary, in plain lists and numbers; what it lacks is worked out.

    ``counts`` and ``edges`` are needed; ``num`` follows from them, and ``min``, ``max``, ``sum``
    and ``sum_squares`` from the outer edges and the middles of the bins.

    Raises:
        TypeError, ValueError: counts and edges do not belong together.
    """
    if "counts" not in summary or "edges" not in summary:
        raise ValueError(
            "a histogram given as a dict needs 'counts' and 'edges', "
            f"one longer; got {sorted(map(str, summary))}"
        )
    counts = _plain_numbers("counts", summary["counts"])
    edges = _check_edges([float(edge) for edge in _plain_numbers("edges", summary["edges"])])
    if len(edges) != len(counts) + 1:
        raise ValueError(
            f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}: "
            "a bin lies between two edges"
        )
    if any(not count >= 0 or math.isinf(count) for count in counts):
        raise ValueError("a count is negative or not finite")
    middles = [left / 2 + right / 2 for left, right in pairwise(edges)]
    pairs = list(zip(counts, middles, strict=True))
    filled = {
        "min": edges[0],
        "max": edges[-1],
        "num": sum(counts),
        "sum": _sum(count * middle for count, middle in pairs),
        "sum_squares": _sum(count * middle * middle for count, middle in pairs),
    }
    for name, value in summary.items():
        if name in ("min", "max", "num", "sum", "sum_squares", "nan", "inf", "-inf"):
            filled[name] = _plain_numbers(name, [value])[0]
    return {"counts": counts, "edges": edges, **filled}


def _summarise_array(array: Any, bins: int | str | Sequence[float]) -> dict[str, Any]:
    import numpy

    if array.dtype.kind not in "biufO":
        raise TypeError(f"a histogram is made of real numbers, not of {describe(array)}")
    try:
        flat = array.astype(numpy.float64, copy=False).ravel()
    except (TypeError, ValueError) as error:
        raise TypeError(f"a histogram is made of numbers: {error}") from None
    if not flat.size:
        raise ValueError("a histogram needs at least one value")
    finite = flat[numpy.isfinite(flat)]
    odd = {"nan": 0, "inf": 0, "-inf": 0}
    if finite.size != flat.size:
        odd = {
            "nan": int(numpy.isnan(flat).sum()),
            "inf": int((flat == math.inf).sum()),
            "-inf": int((flat == -math.inf).sum()),
        }
    if not finite.size:
        return _without_finite(odd)
    low, high = float(finite.min()), float(finite.max())
    with numpy.errstate(over="ignore", invalid="ignore"):
        deviation = quartiles = 0.0
        if isinstance(bins, str):
            deviation = float(finite.std())
            quartiles = float(numpy.subtract(*numpy.percentile(finite, [75, 25])))
        edges = _edges(bins, low, high, int(finite.size), deviation, quartiles)
        index: Any = numpy.searchsorted(numpy.asarray(edges), finite, side="right")
        index[finite == edges[-1]] -= 1
        counts = numpy.bincount(index, minlength=len(edges) + 1)[1 : len(edges)].tolist()
        total, squares = float(finite.sum()), float(numpy.dot(finite, finite))
    return _summary(counts, edges, low, high, int(finite.size), total, squares, odd)


def _summary(
    counts: list[int],
    edges: list[float],
    low: float,
    high: float,
    num: int,
    total: float,
    squares: float,
    odd: dict[str, int],
) -> dict[str, Any]:
    return {
        "counts": counts,
        "edges": edges,
        "min": low,
        "max": high,
        "num": num,
        "sum": total,
        "sum_squares": squares,
        **{name: count for name, count in odd.items() if count},
    }


def _without_finite(odd: dict[str, int]) -> dict[str, Any]:
    return _summary([0], [0.0, 1.0], math.nan, math.nan, 0, 0.0, 0.0, odd)


def _edges(
    bins: int | str | Sequence[float],
    low: float,
    high: float,
    num: int,
    deviation: float,
    quartiles: float,
) -> list[float]:
    if isinstance(bins, str):
        if bins not in RULES:
            raise ValueError(f"bins {bins!r} is unknown; known are {', '.join(RULES)}")
        if bins == "tensorflow":
            grid = default_edges()
            first = max(0, bisect_right(grid, low) - 1)
            last = min(len(grid) - 1, max(bisect_left(grid, high), first + 1))
            edges = list(grid[min(first, last - 1) : last + 1])
            # The outermost buckets of this grid take what lies beyond it.
            return [min(edges[0], low), *edges[1:-1], max(edges[-1], high)]
        width = _width(bins, high - low, num, deviation, quartiles)
        ratio = (high - low) / width if width > 0 else 1.0
        if math.isnan(ratio):  # the span is too large for a float
            ratio = math.log2(num) + 1
        return _equal(low, high, math.ceil(min(max(ratio, 1.0), MAX_BINS)))
    if isinstance(bins, int) or (hasattr(bins, "__index__") and getattr(bins, "ndim", 0) == 0):
        if isinstance(bins, bool) or not 1 <= int(bins) <= MAX_BINS:
            raise ValueError(f"bins must be 1 to {MAX_BINS}, not {bins!r}")
        return _equal(low, high, int(bins))
    edges = [float(edge) for edge in _plain_numbers("bins", bins)]
    if not 2 <= len(edges) <= MAX_BINS + 1:
        raise ValueError(f"bins given as edges must be 2 to {MAX_BINS + 1}, not {len(edges)}")
    return _check_edges(edges)


def _equal(low: float, high: float, count: int) -> list[float]:
    """Edges at equal distances; fewer where floats do not lie that close to each other."""
    if low == high:
        around = max(0.5, abs(low) * 2**-40)
        largest = sys.float_info.max
        low, high = max(low - around, -largest), min(high + around, largest)
    span = high - low
    if math.isfinite(span):
        edges = [low + i * (span / count) for i in range(count)]
    else:
        edges = [low * (1 - i / count) + high * (i / count) for i in range(count)]
    return [*sorted({edge for edge in edges if edge < high}), high]


@cache
def default_edges() -> tuple[float, ...]:
    """TensorFlow's buckets: from ±1e-12 to ±1e20, each 10 % wider than the one before."""
    positive = [1e-12]
    while positive[-1] * 1.1 < 1e20:
        positive.append(positive[-1] * 1.1)
    return (*(-edge for edge in reversed(positive)), 0.0, *positive)


def _width(rule: str, span: float, num: int, deviation: float, quartiles: float) -> float:
    """Width of a bin by the well-known rules; 0 where the rule gives none."""
    sturges = span / (math.log2(num) + 1)
    freedman_diaconis: float = 2 * quartiles / math.pow(num, 1 / 3)
    if rule == "sturges":
        return sturges
    if rule == "sqrt":
        return span / math.sqrt(num)
    if rule == "rice":
        return span / (2 * math.pow(num, 1 / 3))
    if rule == "scott":
        return deviation * math.pow(24 * math.sqrt(math.pi) / num, 1 / 3)
    if rule == "fd":
        return freedman_diaconis
    return min(sturges, freedman_diaconis) if freedman_diaconis else sturges


def _quantile(ordered: list[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _sum(numbers: Any) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # too large for a float; ValueError: inf with -inf
        return math.inf


def _check_edges(edges: list[float]) -> list[float]:
    if len(edges) < 2 or not all(left < right for left, right in pairwise(edges)):
        raise ValueError("edges must be at least two and increase")
    # Outer edges may be infinite where a tool's last bucket is open; floats stand in.
    largest = sys.float_info.max
    return [min(max(edge, -largest), largest) for edge in edges]


def _plain_numbers(what: str, values: Any) -> list[Any]:
    if is_array(values):
        values = to_host(values)
        values = values.tolist() if is_array(values) else values
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{what}: expected numbers, got {describe(values)}")
    return [
        int(number) if isinstance(number, int) else float(number) for number in _flatten(values)
    ]


def _flatten(value: Any) -> Iterator[Any]:
    """The numbers in lists, tuples and other iterables of any nesting."""
    stack = [iter((value,))]
    while stack:
        for item in stack[-1]:
            if isinstance(item, (int, float)):
                yield item
            elif is_array(item):
                item = to_host(item)
                stack.append(iter(item.ravel().tolist() if is_array(item) else [item]))
                break
            elif hasattr(item, "__iter__") and not isinstance(item, (str, bytes, Mapping)):
                stack.append(iter(item))
                if len(stack) > 100:
                    raise TypeError("a histogram's values are nested deeper than 100")
                break
            else:
                raise TypeError(f"a histogram is made of numbers, not of {describe(item)}")
        else:
            stack.pop()
