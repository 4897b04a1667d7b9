"""What ``zmqtrack top`` shows, drawn into whatever room there is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ..errors import ControlError
from . import show
from .findings import mixed_writers
from .watch import Watch

__all__ = ["ORDERS", "View"]

#: By state, sites stand in this order; those in any other state come last.
_STATES = ("active", "stale", "killed", "left", "ended")

#: How sites may be ordered, by the key that is pressed for it.
ORDERS = {
    "s": "state",
    "n": "name",
    "r": "rate",
    "c": "records",
    "p": "step",
    "w": "waiting",
    "l": "last seen",
    "m": "metric",
}
_HELP = (
    ("q", "end"),
    ("?", "this help, and back"),
    ("s", "sort sites by state, as at first: active, stale, killed, left, ended"),
    ("n", "by site, experiment and run"),
    ("r", "by records a second"),
    ("c", "by records"),
    ("p", "by step"),
    ("w", "by records that wait at their writers"),
    ("l", "by when they were heard of last"),
    ("m", "by the value of the metric that --metric names"),
    ("", "The same key again turns the order round."),
)


class Column(NamedTuple):
    """``keep``: those with the least go first where there is little room; ``flexible`` ones are
    shortened before."""

    title: str
    keep: int
    flexible: bool = False
    right: bool = True


_SITE = (
    Column("site", 9, flexible=True, right=False),
    Column("experiment", 1, flexible=True, right=False),
    Column("run", 4, flexible=True, right=False),
    Column("state", 9, right=False),
    Column("records/s", 8),
    Column("records", 7),
    Column("step", 6),
    Column("waiting", 5),
    Column("last seen", 3),
)
#: Of the metric that is wanted; its title is the metric's key.
_METRIC = Column("", 8, flexible=True)
_ADAPTER = (
    Column("adapter", 9, flexible=True, right=False),
    Column("state", 9, right=False),
    Column("records/s", 7),
    Column("lag, batches", 8),
    Column("retries", 4),
    Column("restarts", 3),
    Column("dead letters", 5),
)
#: A flexible column has so many characters at least; a longer one is shortened down to that.
LEAST = 10


class View:
    """The screen, drawn into whatever room there is when it is drawn."""

    def __init__(
        self,
        watch: Watch,
        keys: bool = False,
        order: str = "state",
        *,
        reverse: bool = False,
        help_wanted: bool = False,
    ) -> None:
        self._watch = watch
        self._keys = keys
        self._order, self._reverse = order, reverse
        self._help = help_wanted

    def press(self, key: str) -> None:
        """Somebody presses a key that changes how it looks."""
        if key == "?":
            self._help = not self._help
        elif order := ORDERS.get(key):
            self._reverse = order == self._order and not self._reverse
            self._order = order

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts, trouble, since = self._watch.facts, self._watch.trouble, self._watch.since
        facts = show.clean(facts)
        width = options.max_width
        # Within a live display of several, Rich tells a part no height.
        height = options.height or (console.height if console.is_alt_screen else None)
        first, second, *reasons = _head(facts, trouble, since)
        reasons = _wrapped(reasons, console, width)
        if height is not None:
            reasons = reasons[: max(1, height // 3)]
        head = [_cut(first, width), _cut(second, width), *reasons]
        yield from head
        yield ""
        if self._help:
            for key, text in _HELP:
                yield _cut(Text(f"{key:>3}  {text}"), width)
            return
        ordered = _in_order(facts["sites"], self._order, self._reverse)
        last = self._watch.last
        metric = show.clean(last.metric) if last else None
        columns = _SITE if metric is None else (*_SITE, _METRIC._replace(title=metric))
        sites = [_site_row(site, facts["now"], metric) for site in ordered]
        adapters = [_adapter_row(*item) for item in facts["adapters"].items()]
        notes = _wrapped(_notes(facts, last.trouble if last else ""), console, width)
        for_sites = for_adapters = 1 << 30
        if height is not None:
            # A blank line and a title to each, and the line of keys.
            room = max(2, height - len(head) - 4 - self._keys)
            if notes:
                notes = notes[: max(0, room // 2 - 1)]
                room -= len(notes) + bool(notes)
            for_adapters = min(len(adapters) or 1, max(1, room // 3))
            for_sites = max(1, room - for_adapters)
        style = "dim" if trouble else ""
        yield from _table(columns, sites, width, for_sites, style, "no site has logged yet")
        yield ""
        yield from _table(_ADAPTER, adapters, width, for_adapters, style, "no adapter yet")
        if notes:
            yield ""
            yield from notes
        if self._keys:
            turned = ", turned round" if self._reverse else ""
            line = f"q ends   ? helps   sites by {self._order}{turned}"
            yield _cut(Text(line, style="dim"), width)


def _notes(facts: dict[str, Any], trouble: str) -> list[Text]:
    """What takes a sentence: why adapters do not deliver, whose points are mixed."""
    notes = []
    for name, adapter in facts["adapters"].items():
        if detail := adapter.get("detail"):
            note = Text(f"{name}: ", style="bold")
            note.append(detail, style=show.COLOURS.get(adapter["state"], "red"))
            notes.append(note)
    for detail, advice in mixed_writers(facts):
        notes.append(Text(f"{detail}. {advice}.", style="yellow"))
    if trouble:
        notes.append(Text(f"values of the metric are no longer heard: {show.clean(trouble)}"))
    return notes


def _wrapped(texts: list[Text], console: Console, width: int) -> list[Text]:
    return [line for text in texts for line in text.wrap(console, max(1, width))]


def _head(facts: dict[str, Any], trouble: ControlError | None, since: float) -> list[Text]:
    journal, now = facts["journal"], facts["now"]
    up = show.age(now - facts["daemon"]["started"])
    first = Text(f"zmqtrackd {facts['version']} at {facts['control']}")
    first.append("" if trouble else f", up {up}")
    second = Text("")
    second.append(_rate(facts["rate"]) + " records/s", style="bold")
    second.append(f"   journal: offset {journal['head']}, {show.size(journal['bytes'])}")
    lost = sum(loss["n"] for loss in facts["losses"])
    refused = sum(facts["daemon"]["refused"].values())
    second.append("   ")
    second.append(f"refused {refused}, lost {lost}", style="red" if lost or refused else "dim")
    if kept_out := sum(each["n"] for each in facts["not_carried"]):
        second.append(f", not carried {kept_out}", style="dim")
    lines = [first, second]
    if trouble:
        clock = time.strftime("%H:%M:%S", time.localtime(since))
        reason = show.clean(str(trouble)).partition(" (waited")[0]
        lines.append(Text(f"no answer since {clock}, trying: {reason}", style="bold red"))
    elif held_back := show.held_back(facts["daemon"]):
        lines += [Text(line, style="bold red") for line in held_back]
    elif facts["daemon"].get("insecure"):
        lines.append(Text("insecure: anybody who reaches it can log as any site", style="red"))
    return lines


def _in_order(sites: list[dict[str, Any]], order: str, reverse: bool) -> list[dict[str, Any]]:
    """By name within what is equal, so that rows stay where they are."""

    def by_name(site: dict[str, Any]) -> tuple[str, ...]:
        return site["site"], site["experiment"], site["run"]

    def by_state(site: dict[str, Any]) -> tuple[int, float]:
        """Active ones first; then those last seen."""
        state = site.get("state", "")
        rank = _STATES.index(state) if state in _STATES else len(_STATES)
        return rank, 0.0 if rank == 0 else -site["last_seen"]

    def by_number(site: dict[str, Any]) -> float:
        """The greatest first; what is not known comes last."""
        field = {"last seen": "last_seen"}.get(order, order)
        value = site.get("metric", {}).get("value") if order == "metric" else site.get(field)
        number = None if value is None else float(value)  # JSON's "NaN" is text
        return math.inf if number is None or math.isnan(number) else -number

    found = sorted(sites, key=by_name)
    if order != "name":
        found.sort(key=by_state if order == "state" else by_number)
    return found[::-1] if reverse else found


def _site_row(site: dict[str, Any], now: float, metric: str | None) -> list[Text]:
    state = site.get("state", "?")
    style = show.SITE_COLOURS.get(state, "red" if state == "killed" else "")
    if site["writers"]:
        state, style = f"{state}, mixed", "yellow"
    row = [
        Text(site["site"]),
        Text(site["experiment"]),
        Text(site["run"]),
        Text(state, style=style),
        Text(_rate(site["rate"])),
        Text(_known(site["records"])),
        Text(_known(site.get("step"))),
        Text(_known(site.get("waiting")), style="yellow" if site.get("waiting") else ""),
        Text(f"{show.age(now - site['last_seen'])} ago"),
    ]
    if metric is not None:
        value = site.get("metric", {}).get("value")
        row.append(Text("" if value is None else f"{float(value):.6g}"))
    return row


def _adapter_row(name: str, adapter: dict[str, Any]) -> list[Text]:
    state, dead = adapter["state"], adapter["dead_letters"]
    return [
        Text(name),
        Text(state, style=show.COLOURS.get(state, "red")),
        Text(_rate(adapter["rate"])),
        Text(str(adapter["lag"]), style="yellow" if adapter["lag"] else ""),
        Text(str(adapter["counters"].get("retries", 0))),
        Text(_known(adapter.get("restarts"))),
        Text(str(dead), style="red" if dead else ""),
    ]


def _known(number: int | None) -> str:
    return "" if number is None else str(number)


def _rate(rate: float | None) -> str:
    if rate is None:
        return "?"
    if rate >= 1e6:
        return f"{rate / 1e6:.1f}M"
    if rate >= 1e4:
        return f"{rate / 1e3:.1f}k"
    return f"{rate:.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _table(
    columns: tuple[Column, ...],
    rows: list[list[Text]],
    width: int,
    height: int,
    style: str,
    nothing: str,
) -> Iterator[Table | Text]:
    """The rows that fit, one line each, and how many more there are."""
    if not rows:
        yield _cut(Text(nothing, style="dim"), width)
        return
    shown = rows if len(rows) <= height else rows[: max(1, height - 1)]
    widths = _widths(columns, shown, width)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, style=style)
    for column, room in zip(columns, widths, strict=True):
        if room is not None:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                width=room,
                no_wrap=True,
                overflow="ellipsis",
            )
    for row in shown:
        cells = [cell for cell, room in zip(row, widths, strict=True) if room is not None]
        table.add_row(*cells)
    yield table
    if more := len(rows) - len(shown):
        yield _cut(Text(f"… and {more} more", style="dim"), width)


def _widths(columns: tuple[Column, ...], rows: list[list[Text]], width: int) -> list[int | None]:
    """How wide each column is; None: it has no room. Names give way before facts go."""
    full = [
        max(cell_len(column.title), *(cell.cell_len for cell in cells))
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    least = [
        min(wanted, LEAST) if column.flexible else wanted
        for column, wanted in zip(columns, full, strict=True)
    ]
    # One that is empty in all rows, as is the detail of adapters that are well, takes none.
    kept = [place for place, wanted in enumerate(full) if wanted]
    while len(kept) > 1 and sum(least[place] + 2 for place in kept) - 2 > width:
        kept.remove(min(kept, key=lambda place: columns[place].keep))
    widths: list[int | None] = [None] * len(columns)
    left = width - sum(least[place] + 2 for place in kept) + 2
    for place in kept:
        more = max(0, min(left, full[place] - least[place]))
        widths[place] = max(1, least[place] + more + min(0, left))
        left -= more
    return widths


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
