"""What the daemon's own facts say of its health, and of each adapter and tracker behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Finding", "mixed_writers", "of_adapters", "of_daemon", "of_trackers"]

#: An adapter says something each 5 s, unless a delivery takes longer.
SILENT = 60.0
#: It is told of runs for so long (seconds) after they were heard of last.
TOLD = 86_400.0
#: Most such runs that are named one by one.
NAMED = 5


#: How runs end that went without a word, by state; and what to do.
_SILENT_ENDS = {
    "left": "went without saying how it ended, and nothing waited at it when it was last heard of",
    "killed": "went without saying how it ended, and more may wait at it",
}
_SILENT_ADVICE = {
    "left": "It may have succeeded: call finish() before a process leaves by os._exit, or is ended",
    "killed": "Look at its machine: `zmqtrack spool list` there shows what waits, and `zmqtrack "
    "spool send` sends it",
}


class Finding(NamedTuple):
    """One step of the way. ``code`` is a fixed word for what is wrong, empty if all is well.

    With ``warning`` records come through all the same, or did not in the past.
    """

    step: str
    code: str
    detail: str
    advice: str = ""
    warning: bool = False


def of_daemon(status: dict[str, Any]) -> Iterator[Finding]:
    """Whether it takes in what comes, and what it has refused and lost so far."""
    daemon = status["daemon"]
    if daemon["journal_full"]:
        last = max(status["adapters"].items(), key=lambda each: each[1]["lag"], default=None)
        behind = f"; {last[0]} is {last[1]['lag']} batches behind" if last else ""
        yield Finding(
            "journal",
            "journal_full",
            f"it holds {status['journal']['bytes']} bytes, daemon.max_bytes: writers are told to "
            f"wait, and keep their records{behind}",
            "Mend that adapter's tracker, or take the adapter out of the YAML and run `zmqtrack "
            "reload`; or set daemon.max_bytes higher",
        )
    elif daemon["disk_full"]:
        yield Finding(
            "journal",
            "disk_full",
            "its disk is full, or was in the last 30 s: writers are told to wait, and keep their "
            "records",
            "Make room on the disk of daemon.state_dir",
        )
    elif not daemon["accepting"]:
        yield Finding(
            "journal",
            "stopping",
            "the daemon is stopping: it takes nothing more, and writers keep their records",
            "Start it again, unless it is to be down",
        )
    else:
        yield Finding("journal", "", f"takes in what comes; offset {status['journal']['head']}")
    if daemon["insecure"]:
        yield Finding(
            "keys",
            "insecure",
            "anybody who reaches the daemon can log as any site",
            "Run `zmqtrack keys init keys`, and write `keys: keys` for `insecure: true`",
            warning=True,
        )
    if refused := daemon["refused"]:
        counts = ", ".join(f"{reason} {n}" for reason, n in sorted(refused.items()))
        yield Finding(
            "refusals",
            "refusals",
            f"since the daemon was started it has refused batches or requests: {counts}",
            "Its log says why, and audit.jsonl in daemon.state_dir who",
            warning=True,
        )
    if status["quarantined"]:
        yield Finding(
            "quarantine",
            "stream_conflict",
            f"{status['quarantined']} batches came under a stream and seq that had another "
            "content: a machine or a spool folder was copied while it was in use",
            "See them with `zmqtrack dlq list --adapter '(quarantine)'`; `zmqtrack dlq retry` "
            "takes them in after all, `drop` gives them up",
            warning=True,
        )
    if status["losses"]:
        yield Finding(
            "losses",
            "losses",
            f"not all was delivered: {_sums(status['losses'])}",
            "`zmqtrack status` names the sites",
            warning=True,
        )

    if status["not_carried"]:
        yield Finding(
            "not carried",
            "",
            f"calls that have no tracker-neutral form, which is no loss: "
            f"{_sums(status['not_carried'])}",
        )
    for state, what in _SILENT_ENDS.items():
        if names := _ended_as(status, state):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            detail = f"{what}: {', '.join(names[:NAMED])}{more}"
            yield Finding("ends", state, detail, _SILENT_ADVICE[state], warning=True)
    mixed = mixed_writers(status)
    for detail, advice in mixed[:NAMED]:
        more = f"; and {len(mixed) - NAMED} more such runs" if len(mixed) > NAMED else ""
        yield Finding("writers", "mixed_writers", detail + more, advice, warning=True)


def _ended_as(status: dict[str, Any], state: str) -> list[str]:
    """Runs that ended so in the last day, the latest first."""
    return [
        "/".join((site["experiment"], site["run"], site["site"]))
        for site in reversed(status["sites"])
        if site["state"] == state and status["now"] - site["last_seen"] < TOLD
    ]


def _sums(counts: list[dict[str, Any]]) -> str:
    """By reason."""
    sums: Counter[str] = Counter()
    for each in counts:
        sums[each["reason"]] += each["n"]
    return ", ".join(f"{reason} {n}" for reason, n in sorted(sums.items()))


def mixed_writers(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Runs that several jobs write to, or did in the last day; and what to do about each."""
    apart = (
        "site (ZMQTRACK_SITE, or site=)"
        if status["daemon"]["keys"] is None
        else "run (ZMQTRACK_RUN), or a site with a key of its own (`zmqtrack keys new SITE`)"
    )
    advice = f"Give each its own {apart}; if they are one job, the same ZMQTRACK_JOB"
    found = []
    for site in reversed(status["sites"]):
        if site["writers"] and status["now"] - site["last_seen"] < TOLD:
            names = [f"process {each['pid']} on {each['host']}" for each in site["writers"]]
            run = "/".join((site["experiment"], site["run"], site["site"]))
            detail = (
                f"{', '.join(names[:-1])} and {names[-1]} wrote at the same time to run {run}, and "
                "belong to different jobs: their points are mixed"
            )
            found.append((detail, advice))
    return found


def of_adapters(status: dict[str, Any]) -> Iterator[Finding]:
    """What each says of itself, and what waits because of it."""
    for name, facts in status["adapters"].items():
        yield _of_adapter(name, facts, status["now"])
        if facts["dead_letters"]:
            yield Finding(
                f"dead letters of {name}",
                "dead_letters",
                f"{facts['dead_letters']} records that its tracker refused for good",
                f"See them with `zmqtrack dlq list --adapter {name}`; then `zmqtrack dlq retry` "
                "or `drop`",
                warning=True,
            )


def _of_adapter(name: str, facts: dict[str, Any], now: float) -> Finding:
    step, state = f"adapter {name}", facts["state"]
    detail = f"{state}: {facts['detail']}" if facts.get("detail") else state
    waiting = f"{facts['lag']} batches wait for it"
    match state:
        case "running" if now - facts["seen"] > SILENT:
            return Finding(
                step,
                "silent",
                f"it has said nothing for {now - facts['seen']:.0f} s; {waiting}",
                "It may hang, or its tracker be slow: look at the daemon's log",
                warning=True,
            )
        case "running":
            return Finding(step, "", f"running, {facts['lag']} batches behind")
        case "starting":
            return Finding(step, "starting", f"{detail}; {waiting}", warning=True)
        case "retrying":
            return Finding(
                step,
                state,
                f"{detail}; {waiting}",
                "Put its tracker right: it goes on by itself, and nothing is lost",
            )
        case "blocked":
            return Finding(
                step,
                state,
                f"{detail}; {waiting}",
                "Put right what its tracker says (credentials, permissions, room): it goes on by "
                "itself; after a change of the YAML or of a secret run `zmqtrack reload`",
            )
        case "ended":
            return Finding(
                step,
                state,
                f"its process ended, {facts.get('detail')}; {waiting}",
                "The daemon's log says why (`journalctl -u zmqtrackd`); `zmqtrack check FILE` "
                "whether its configuration is good; `zmqtrack reload` starts it again",
            )
        case "away" if facts.get("external"):
            return Finding(
                step,
                state,
                f"it is a service of its own, and {facts.get('detail') or 'has not come in'}; "
                f"{waiting}",
                f"Start it where it runs: `systemctl start zmqtrack-adapter@{name}`, or "
                f"python -m zmqtrack.adapters --config FILE --name {name}",
            )
        case "away" if ":" in name:
            return Finding(step, "", "a subscriber that is not here now")
        case "away":
            return Finding(
                step,
                state,
                f"its process has not come in; {waiting}",
                "The daemon's log says why (`journalctl -u zmqtrackd`)",
            )
        case "removed":
            return Finding(step, "", "no longer configured")
    return Finding(step, state, f"{detail}; {waiting}", "Look at the daemon's log")


def of_trackers(trackers: list[dict[str, Any]]) -> Iterator[Finding]:
    """What was found when each was tried."""
    for each in sorted(trackers, key=lambda found: found["index"]):
        step = f"tracker of {each['adapter']}"
        yield Finding(step, each["code"], each["detail"], each["advice"])
