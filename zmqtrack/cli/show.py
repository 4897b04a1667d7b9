"""Facts, as a person reads them on a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import wire
from ..errors import FrameError
from .findings import Finding, mixed_writers

__all__ = [
    "COLOURS",
    "SITE_COLOURS",
    "age",
    "clean",
    "clients",
    "dead_letters",
    "finding",
    "held_back",
    "letters",
    "size",
    "spools",
    "status",
]

#: Names and reasons come from anywhere: what looks like markup in them is none. In a pipe nothing
#: is cut off: who reads there looks for names.
WIDE = None if sys.stdout is None or sys.stdout.isatty() or "COLUMNS" in os.environ else 1000
console = Console(highlight=False, markup=False, width=WIDE)

#: Colours by the state of an adapter; of a site. All others are red.
COLOURS = {"running": "green", "starting": "yellow", "retrying": "yellow", "removed": "dim"}
SITE_COLOURS = {"active": "green", "stale": "yellow", "left": "", "ended": "dim"}


def clean(facts: Any) -> Any:
    """Facts without anything that a terminal would act on: names and texts come from anywhere."""
    if isinstance(facts, str):
        return facts if facts.isprintable() else "".join(map(_printable, facts))
    if isinstance(facts, dict):
        return {clean(key): clean(value) for key, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [clean(each) for each in facts]
    return facts


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def status(facts: dict[str, Any]) -> None:
    facts = clean(facts)
    journal, now = facts["journal"], facts["now"]
    console.print(
        f"zmqtrackd {facts['version']} at {facts['control']}, up "
        f"{age(now - facts['daemon']['started'])}; journal: offset {journal['head']}, "
        f"{journal['batches']} batches, {size(journal['bytes'])}"
    )
    if facts["daemon"]["insecure"]:
        console.print("insecure: anybody who reaches it can log as any site", style="bold red")
    elif facts["daemon"]["keys"] is not None:
        console.print(f"keys: {facts['daemon']['keys']} may come in")
    for line in held_back(facts["daemon"]):
        console.print(line, style="bold red")
    if facts["quarantined"]:
        console.print(
            f"in quarantine: {facts['quarantined']} batches of a second writer under one stream; "
            "see `zmqtrack dlq list`",
            style="yellow",
        )
    table = Table(
        "site", "experiment", "run", "state", "records", "step", "waiting", "last seen", box=None
    )
    for site in sorted(facts["sites"], key=lambda s: (s["site"], s["experiment"], s["run"])):
        state = Text(site["state"], style=SITE_COLOURS.get(site["state"], "red"))
        counts = [site["records"], site["step"], site["waiting"]]
        table.add_row(
            site["site"],
            site["experiment"],
            site["run"],
            state,
            *("" if count is None else str(count) for count in counts),
            f"{age(now - site['last_seen'])} ago",
        )
    console.print(table if facts["sites"] else "no site has logged yet")
    if earlier := facts["runs_total"] - len(facts["sites"]):
        console.print(f"… and {earlier} runs that were seen before these")
    for detail, advice in mixed_writers(facts):
        console.print(f"{detail}. {advice}.", style="yellow", soft_wrap=True)
    table = Table("adapter", "state", "cursor", "lag", "delivered", "dead letters", "", box=None)
    for name, adapter in facts["adapters"].items():
        state = adapter["state"]
        table.add_row(
            name,
            Text(state, style=COLOURS.get(state, "red")),
            str(adapter["cursor"]),
            str(adapter["lag"]),
            str(adapter["counters"].get("delivered", 0)),
            str(adapter["dead_letters"]),
            adapter.get("detail", ""),
        )
    console.print(table if facts["adapters"] else "no adapter has ever subscribed")
    _counts(facts)


def _counts(facts: dict[str, Any]) -> None:
    """What was refused or lost; and what is no loss."""
    losses = [(loss["reason"], loss["site"], loss["n"]) for loss in facts["losses"]]
    losses += [(reason, "", n) for reason, n in sorted(facts["daemon"]["refused"].items())]
    others = [(each["reason"], each["site"], each["n"]) for each in facts["not_carried"]]
    for name, adapter in facts["adapters"].items():
        others += [
            (reason, f"adapter {name}", n)
            for reason, n in sorted(adapter["counters"].items())
            if reason not in ("delivered", "retries", "dead_letters")
        ]
    for title, counts in (
        ("refused or lost", losses),
        ("not carried, or held in part", others),
    ):
        if counts:
            table = Table(title, "where", "count", box=None)
            for reason, where, n in counts:
                table.add_row(reason, where, str(n))
            console.print(table)


def behind(adapters: dict[str, Any]) -> str:
    """Which of them have not delivered all, and why."""
    return "; ".join(
        f"{name} is {facts['lag']} batches behind, {facts['state']}"
        + (f" ({facts['detail']})" if facts.get("detail") else "")
        for name, facts in clean(adapters).items()
        if facts["lag"] and facts["state"] != "removed" and ":" not in name
    )


def held_back(daemon: dict[str, Any]) -> list[str]:
    """Why nothing is taken in, a line for each reason."""
    lines = []
    if daemon["journal_full"]:
        lines.append("the journal is full: sites keep their records")
    if daemon["disk_full"]:
        lines.append("the disk is full, or was in the last 30 s: sites keep their records")
    if not (daemon["accepting"] or lines):
        lines.append("the daemon is stopping: sites keep their records")
    return lines


#: What a reload tells, and how it is called.
RELOAD = {
    "problems": "problems",
    "added": "added",
    "changed": "changed, restarted",
    "removed": "removed, stopping when it has delivered",
    "at_next_start": "takes effect at the next start",
}


def reloaded(facts: dict[str, list[str]]) -> None:
    if problems := facts["problems"]:
        console.print("The daemon goes on with what it had:", style="bold red")
        for problem in problems:
            console.print(problem, soft_wrap=True)
        return
    for name, text in RELOAD.items():
        if facts[name]:
            console.print(f"{text}: {', '.join(facts[name])}", soft_wrap=True)
    if not any(facts.values()):
        console.print("read again: nothing has changed")


def spools(found: list[dict[str, Any]], folder: Path) -> None:
    if not found:
        where = f"in {folder}" if folder.exists() else f"here: there is no folder {folder}"
        console.print(f"nothing waits {where}", soft_wrap=True)
        return
    table = Table("stream", "experiment", "run", "site", "records", "bytes", "for", box=None)
    found = clean(found)
    for spool in found:
        if spool["state"] == "waiting":
            table.add_row(
                spool["stream"][:8],
                spool["experiment"],
                spool["run"],
                spool["site"],
                str(spool["records"]),
                size(spool["bytes"]),
                spool["address"],
            )
    console.print(table)
    for spool in found:
        if spool["state"] != "waiting":
            console.print(spool["detail"], soft_wrap=True)


def finding(found: Finding) -> None:
    """One step of ``doctor``, as it is found."""
    mark = Text("FAIL", style="bold red") if found.code else Text("  ok", style="green")
    if found.warning:
        mark = Text("warn", style="yellow")
    console.print(mark, clean(f"{found.step}: {found.detail}"), soft_wrap=True)
    if found.advice:
        console.print(clean(f"     {found.advice}."), soft_wrap=True)


def clients(found: list[dict[str, Any]], now: float) -> None:
    """Who may come in."""
    found = clean(found)
    table = Table("name", "roles", "sees", "keys", box=None)
    for facts in found:
        sees = ""
        if "subscriber" in facts["roles"]:
            topics = ", ".join(facts["topics"] or ["all types"])
            sees = f"{topics} of {', '.join(facts['sites'] or ['all sites'])}"
        ages = [
            f"revoked {age(now - key['revoked'])} ago"
            if "revoked" in key
            else f"made {age(now - key['created'])} ago"
            for key in facts["keys"]
        ]
        table.add_row(facts["name"], ", ".join(facts["roles"]), sees, "; ".join(ages))
    console.print(table)


def dead_letters(letters: list[dict[str, Any]], total: int) -> None:
    if not letters:
        console.print("no dead letters")
        return
    for letter in clean(letters):
        again = ", to be tried again" if letter["retrying"] else ""
        console.print(
            f"{letter['id']:>6}  {letter['adapter']}  {letter['type']}, {letter['records']} of "
            f"{'/'.join(letter['run'])}{again}",
            soft_wrap=True,
        )
        console.print(f"        {letter['reason']}", soft_wrap=True)
    if total > len(letters):
        console.print(f"and {total - len(letters)} more")


def letters(facts: list[list[Any]], frames: list[bytes]) -> list[dict[str, Any]]:
    """Dead letters with their records, or with the raw body where it cannot be decoded."""
    found = []
    for (ident, adapter, data_type, reason, place), header, body in zip(
        facts, frames[::2], frames[1::2], strict=True
    ):
        decoded = wire.decode_header(header)
        letter = {"id": ident, "adapter": adapter, "type": data_type, "reason": reason}
        letter |= decoded.run._asdict() | {
            "stream": decoded.stream.hex(),
            "seq": decoded.seq,
            "place": place,
        }
        try:
            records = wire.decode_body(data_type, decoded, body)
            letter["records"] = [record._asdict() for record in records]
        except FrameError as error:
            letter |= {"undecodable": str(error), "body": body.hex()}
        found.append(letter)
    return found


def age(seconds: float) -> str:
    """So long."""
    seconds = max(0, round(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def size(n: float) -> str:
    """So many bytes."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
