"""Writes docs/compatibility.md: what each syntax does with every public name of its tool.

The names and parameters are those of the packages that are installed (``names_inventory``); what
becomes of each is found by calling it (``names_probe``) with the arguments of ``names_samples``.

``python docs/names.py`` writes the page. With ``--check`` it writes nothing and fails if a name is
missing, a parameter is swallowed without a word, or the page says something else. With other
versions of the tools than the page's, names and parameters that only one of them has are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import names_samples as data
from differences import DIFFERENCES
from names_places import PLACES
from names_probe import Place, Seen, observe, warm_up

PAGE = Path(__file__).parent / "compatibility.md"

#: Calls at a time: each waits for its sender more than it computes.
WORKERS = 4 * (os.cpu_count() or 1)

CARRIED, ANSWERED, NOTICED, REFUSED, IDLE = (
    "carried",
    "answered",
    "noticed",
    "refused",
    "nothing to do",
)
SILENT, MISSING = "without a word", "missing"
#: Verdicts in the page's order.
ORDER = (CARRIED, ANSWERED, NOTICED, REFUSED, IDLE, SILENT, MISSING)
#: Of what was seen of a parameter in several calls, that which says most.
PREFERRED = (CARRIED, NOTICED, ANSWERED, SILENT, REFUSED, MISSING)

HEAD = """\
<!-- Written by docs/names.py, which calls each name: run `python docs/names.py`. -->

# What each syntax carries

Every public name of the tools that zmqtrack's writers stand for, and every parameter of those that
log. Each was called, and what it did was looked up in the spool.

- **carried**: it is in what is logged, and reaches the trackers in the form that
  [data types](data-types.md) tells.
- **answered**: it gives back what the tool gives, as far as this process knows it.
- **noticed**: not carried. The first such call says so, and each that loses something is counted
  and shown by `zmqtrack status`. It does not raise.
- **refused**: it needs what only a tracker knows. It raises an error that says what to do.
- **nothing to do**: taken, and without effect for the reason that stands below the table.

Made with {versions}.
Other versions may have names that are not here; a name that is not known raises
`AttributeError`.
"""

OTHERWISE = """\
The same calls, made with the real tool and here, show the same in that tool's tracker but for what
follows; a test makes them. *Where* is the script of the test and what was seen, as a pattern.
"""


class Row(NamedTuple):
    """A name, and what becomes of it and of its parameters."""

    name: str
    verdict: str
    parameters: dict[str, str]
    why: str  #: what was said or raised


# --- verdicts -----------------------------------------------------------------------------------


def examine(place: Place, name: str, facts: Mapping[str, Any], nothing: Seen) -> Row:
    """Call a name of ``place``; ``nothing`` is what there is to see when nothing is called."""
    if facts["kind"] == "module":
        seen = observe(place, name, _arguments(place, name, []))
        # Which of the tool's modules can be imported here depends on what else is installed.
        verdict = MISSING if seen.missing and "import" not in seen.raised else ANSWERED
        return Row(name, verdict, {}, seen.raised)
    variants: list[list[list[str]]] = facts["of"] or [[]]
    starts = [[p for p, kind in variant if kind == "needed"] for variant in variants]
    starts = data.NEEDS.get(f"{place.title}.{name}", starts)
    every = dict.fromkeys(p for variant in variants for p, _ in variant)
    bases = [(n, observe(place, name, _arguments(place, name, n), every)) for n in starts]
    if facts["kind"] == "class" and bases[0][1].missing and not bases[0][1].raised:
        return Row(name, ANSWERED, {}, "")  # there, and nobody's to make
    words = [_of_name(base, nothing) for _, base in bases]
    verdict = words[0]
    found: dict[str, str] = {}
    for (needs, _), word in zip(bases, words, strict=True):
        for parameter in needs:
            if ORDER.index(word) < ORDER.index(found.get(parameter, MISSING)) or word == MISSING:
                found[parameter] = word
    wanted = [parameter for parameter in every if parameter not in found]
    if verdict in (NOTICED, REFUSED) and bases[0][1].takes_all:
        return Row(name, verdict, dict.fromkeys([*found, *wanted], verdict), bases[0][1].why)
    for parameter in wanted if verdict != MISSING else ():
        tried = []
        for needs, base in bases:
            if beside := data.BESIDE.get(f"{place.title}.{name}.{parameter}"):
                needs = [*needs, beside]
                base = observe(place, name, _arguments(place, name, needs))
            seen = observe(place, name, _arguments(place, name, [*needs, parameter]))
            tried.append(_of_parameter(seen, base))
            if tried[-1] in (CARRIED, NOTICED):
                break
        found[parameter] = min(tried, key=PREFERRED.index)
    return Row(name, verdict, found, bases[0][1].why)


def _arguments(
    place: Place, name: str, parameters: list[str]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def make(samples: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for parameter in parameters:
            last = f"{name}.{parameter}"
            for key in (f"{place.title}.{last}", f"{place.tool}.{last}", last, parameter):
                if key in samples:
                    break
            made[parameter] = samples.get(key, "text")
        return made

    return make


def _of_name(seen: Seen, nothing: Seen) -> str:
    if seen.missing:
        return MISSING
    if seen.raised:
        return REFUSED
    if seen.records != nothing.records:
        return CARRIED
    if seen.lost or seen.said:
        return NOTICED
    return ANSWERED if seen.answer else SILENT


def _of_parameter(seen: Seen, without: Seen) -> str:
    if seen.missing or "unexpected keyword" in seen.raised:
        return MISSING
    if seen.raised and not without.raised:
        return REFUSED
    if seen.records != without.records:
        return CARRIED
    if (seen.lost, seen.said) != (without.lost, without.said):
        return NOTICED
    return ANSWERED if seen.answer != without.answer else SILENT


def examine_all(inventory: Mapping[str, Any], only: str = "") -> dict[str, list[Row]]:
    """By title: the rows; reasons of ``names_samples`` stand where a call did nothing."""
    tables: dict[str, list[Row]] = {}
    used: set[str] = set()
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:
        for title, names in inventory["names"].items():
            if not title.startswith(only):
                continue
            place = PLACES[title]
            nothing = observe(place, "", lambda samples: {})
            asked = {
                name: facts
                for name, facts in names.items()
                if not _listed(data.NOT_PUBLIC, title, name, used)
            }
            work = [(title, name, facts, nothing) for name, facts in asked.items()]
            rows = pool.map(_examine, work, chunksize=4)
            tables[title] = [_reasoned(title, row, used) for row in rows]
    unused = [key for key in (*data.IDLE, *data.NOT_PUBLIC) if key not in used]
    if unused and not only:
        print(f"names_samples.py: without use: {', '.join(unused)}", file=sys.stderr)
    return tables


def _examine(work: tuple[str, str, Mapping[str, Any], Seen]) -> Row:
    title, *rest = work
    return examine(PLACES[title], *rest)


def _reasoned(title: str, row: Row, used: set[str]) -> Row:
    words = {row.name: row.verdict}
    words.update({f"{row.name}({p})": word for p, word in row.parameters.items()})
    for name, word in words.items():
        if word == SILENT and _listed(data.IDLE, title, name, used):
            words[name] = IDLE
    parameters = {p: words[f"{row.name}({p})"] for p in row.parameters}
    return row._replace(verdict=words[row.name], parameters=parameters)


def _reason(reasons: Mapping[str, str], title: str, name: str) -> str | None:
    """The key under which the reason for a name stands."""
    return next((key for key in reasons if fnmatchcase(f"{title} {name}", key)), None)


def _listed(reasons: Mapping[str, str], title: str, name: str, used: set[str]) -> bool:
    key = _reason(reasons, title, name)
    if key is not None:
        used.add(key)
    return key is not None


# --- the page -----------------------------------------------------------------------------------


def page(tables: Mapping[str, list[Row]], versions: Mapping[str, str]) -> str:
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    parts = [HEAD.format(versions=f"{said} and NVFLARE 2.9")]
    for title, rows in tables.items():
        parts.append(f"## {title}\n")
        detailed = [row for row in rows if row.verdict == CARRIED and row.parameters]
        if detailed:
            columns = [w for w in ORDER if any(w in row.parameters.values() for row in detailed)]
            parts.append(f"| call | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
            for row in detailed:
                cells = (_ticked(p for p, w in row.parameters.items() if w == c) for c in columns)
                parts.append(f"| `{row.name}` | {' | '.join(cells)} |")
            parts.append("")
        for word in ORDER:
            group = [row.name for row in rows if row.verdict == word and row not in detailed]
            if group:
                parts.append(f"**{word}**: {_ticked(group)}\n")
        reasons = list(_reasons(title, rows))
        if reasons:
            parts += [*reasons, ""]
    parts += ["## What a tracker shows otherwise\n", OTHERWISE, "| with | where | why |"]
    parts += ["| --- | --- | --- |"]
    parts += [f"| {tool} | `{where.strip()}` | {why} |" for tool, where, why in DIFFERENCES]
    return "\n".join(parts).rstrip() + "\n"


def _ticked(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _reasons(title: str, rows: list[Row]) -> Iterator[str]:
    """Why there is nothing to do, once for each reason."""
    told: dict[str, list[str]] = {}
    for row in rows:
        words = {row.name: row.verdict}
        words.update({f"{row.name}({p})": word for p, word in row.parameters.items()})
        for name, word in words.items():
            if word == IDLE:
                key = _reason(data.IDLE, title, name)
                assert key is not None
                shown = key.rpartition("*")[2] if key.startswith("*(") else name
                names = told.setdefault(data.IDLE[key], [])
                if shown.strip("()") not in names:
                    names.append(shown.strip("()") if key.startswith("*(") else shown)
    for reason, names in told.items():
        yield f"- {_ticked(names)}: {reason}"


def read(text: str) -> dict[str, str]:
    """What a page says: ``TITLE NAME`` or ``TITLE NAME(PARAMETER)`` → verdict."""
    said: dict[str, str] = {}
    title = ""
    columns: list[str] = []
    for line in text.splitlines():
        ticked = re.findall(r"`([^`]+)`", line)
        if line.startswith("## "):
            title = line[3:]
        elif title == "What a tracker shows otherwise":
            pass
        elif line.startswith("| call |"):
            columns = [cell.strip() for cell in line.strip("|").split("|")][1:]
        elif line.startswith("| `"):
            name, *cells = line.strip("|").split("|")
            name = name.strip(" `")
            said[f"{title} {name}"] = CARRIED
            for column, cell in zip(columns, cells, strict=True):
                for parameter in re.findall(r"`([^`]+)`", cell):
                    said[f"{title} {name}({parameter})"] = column
        elif match := re.match(r"\*\*(.+?)\*\*: `", line):
            said.update({f"{title} {name}": match[1] for name in ticked})
    return said


def faults(tables: Mapping[str, list[Row]]) -> list[str]:
    """Names that are missing, and parameters that go astray in silence."""
    wrong = []
    for title, rows in tables.items():
        for row in rows:
            words = {row.name: row.verdict}
            if row.verdict == CARRIED:
                words.update({f"{row.name}({p})": word for p, word in row.parameters.items()})
            wrong += [f"{title} {n}: {w}" for n, w in words.items() if w in (SILENT, MISSING)]
    return wrong


def differences(written: str, now: str) -> list[str]:
    """Where two pages disagree about a name or parameter that both have."""
    if _made_with(written) == _made_with(now):
        return [] if written == now else [f"{PAGE.name} is not what `python docs/names.py` writes"]
    old, new = read(written), read(now)
    return [
        f"{key}: {old[key]}, now {new[key]}" for key in old.keys() & new if old[key] != new[key]
    ]


def _made_with(text: str) -> str:
    return text.partition("Made with")[2].partition("\n")[0]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing; fail at a difference")
    options.add_argument("--only", default="", help="tables whose title begins so, to the terminal")
    options.add_argument("--why", action="store_true", help="also print what was said and raised")
    given = options.parse_args()
    logging.disable(logging.NOTSET)
    inventory = json.loads(
        subprocess.run(
            [sys.executable, str(Path(__file__).parent / "names_inventory.py")],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    warm_up()
    tables = examine_all(inventory, given.only)
    text = page(tables, inventory["versions"])
    if given.why:
        for title, rows in tables.items():
            for row in rows:
                print(f"{title} {row.name}: {row.verdict}: {row.why:.200}")
    wrong = faults(tables)
    if given.only:
        print(text)
    elif given.check:
        written = PAGE.read_text() if PAGE.exists() else ""
        same = _made_with(written) == _made_with(text)
        known = read(written)
        # What only another version of a tool has is no fault of the page.
        wrong = [w for w in wrong if same or w.rpartition(": ")[0] in known]
        wrong += differences(written, text)
    else:
        PAGE.write_text(text)
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
