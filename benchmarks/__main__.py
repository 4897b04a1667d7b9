"""``python -m benchmarks``: see the package. No number is judged here, only shown."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from . import footprint, rates, report
from .contenders import CONTENDERS, Contender
from .plan import Plan, machine
from .processes import Broken, Child, Daemon, Workshop

#: A port where nobody listens, below those that a program may take.
NOBODY = "tcp://127.0.0.1:1"

Rows = list[dict[str, Any]]


class Bench:
    """Measures the rows whose id or title contains one of ``only``; each at a time."""

    def __init__(self, plan: Plan, only: list[str], shop: Workshop, console: Console) -> None:
        self.calls: Rows = []
        self.rates: Rows = []
        self.footprint: Rows = []
        self._plan = plan
        self._only = [part.lower() for part in only]
        self._shop = shop
        self._console = console

    def run(self) -> None:
        direct: Rows = []
        for contender in CONTENDERS:
            self._contender(contender, direct)
        _compare(self.calls, "median_us", 1)
        for id in rates.JOURNAL:
            self._journal(id)
        for name in rates.ADAPTERS:
            self._adapter(name)
        self.rates += direct
        _compare(self.rates, "metrics_per_second", -1)
        self._footprint()

    def _wanted(self, id: str, title: str) -> bool:
        text = f"{id} {title}".lower()
        return not self._only or any(part in text for part in self._only)

    # --- calls, and each logger's rate into its own files --------------------------------------

    def _contender(self, contender: Contender, direct: Rows) -> None:
        statements = [s for s in contender.statements if self._wanted(f"calls/{s.id}", s.title)]
        directs = [d for d in contender.direct if self._wanted(f"rates/direct/{d.id}", d.title)]
        if not statements and not directs:
            return
        spec = {
            "contender": contender.name,
            "statements": [s.id for s in statements],
            "seconds": self._plan.call_seconds,
            "direct_seconds": self._plan.direct_seconds,
            "direct": {d.id: self._plan.metrics(d.size) for d in directs},
        }

        def measure() -> dict[str, Any]:
            folder = self._shop.new(contender.name)
            with self._uri(contender, folder) as uri:
                return Child(folder, "benchmarks.calls", {**spec, "uri": uri}).result()

        found = self._attempt(contender.name, measure)
        common = {key: found[key] for key in ("missing", "failed") if key in found}
        self.calls += [
            {"id": s.id, "title": s.title, "versus": s.versus, **found.get(s.id, common)}
            for s in statements
        ]
        direct += [
            {
                "id": f"direct/{d.id}",
                "title": d.title,
                "versus": d.versus,
                **found.get(f"direct/{d.id}", common),
            }
            for d in directs
        ]

    @contextlib.contextmanager
    def _uri(self, contender: Contender, folder: Path) -> Iterator[str]:
        if contender.uri == "daemon":
            with Daemon(folder / "daemon") as daemon:
                yield daemon.address
        elif contender.uri == "sqlite":
            yield self._shop.mlflow_database(folder)
        elif contender.uri == "server":
            if self._plan.quick:
                raise Broken("left out by --quick")
            yield self._shop.mlflow_server()
        else:
            yield NOBODY

    # --- rates -------------------------------------------------------------------------------

    def _journal(self, id: str) -> None:
        title = rates.JOURNAL[id][0]
        if self._wanted(f"rates/{id}", title) or (
            id == "journal/1" and self._wanted("footprint/memory", "memory")
        ):
            found = self._attempt(title, lambda: rates.to_journal(id, self._plan, self._shop))
            self.rates.append({"id": id, "title": title, **found})

    def _adapter(self, name: str) -> None:
        titles = {
            n: f"→ {name}, {n} writer{'s' if n > 1 else ''}"
            for n in (1, 3)
            if self._wanted(f"rates/{name}/{n}", f"→ {name}, {n} writers")
        }
        if titles:
            found = self._attempt(
                f"→ {name}",
                lambda: rates.to_adapter(name, self._plan, self._shop, tuple(titles)),
            )
            self.rates += [
                {"id": f"{name}/{n}", "title": title, **found.get(f"{name}/{n}", found)}
                for n, title in titles.items()
            ]

    # --- footprint -----------------------------------------------------------------------------

    def _footprint(self) -> None:
        if self._wanted("footprint/wire", "bytes on the wire"):
            for row in footprint.on_the_wire():
                if "bytes_per_metric" in row:
                    row["text"] = (
                        f"{row['bytes_per_metric']:.1f} bytes a metric in batches of "
                        f"{footprint.BATCH:,}; header and topic: {row['other_frames_bytes']}"
                    )
                self.footprint.append({**row, "title": f"on the wire, {row['title']}"})
        if self._wanted("footprint/import", "import"):
            found = self._attempt("import", lambda: footprint.imports(self._plan))
            if "zmqtrack_ms" in found:
                found["text"] = (
                    f"{found['zmqtrack_ms']:.0f} ms beyond pyzmq's own {found['pyzmq_ms']:.0f} ms; "
                    f"the three writers: {found['writers_ms']:.0f} ms more"
                )
            self.footprint.append({"id": "import", "title": "import zmqtrack", **found})
        for row in self.rates:
            if row["id"] == "journal/1" and "writer_rss" in row:
                self.footprint += _memory(row)

    def _attempt(self, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row that cannot be measured says why and holds up none of the others."""
        with self._console.status(what):
            try:
                return measure()
            except Broken as error:
                return {"failed": str(error)}


def _memory(row: dict[str, Any]) -> Rows:
    writer, daemon = row["writer_rss"], row["daemon_rss"]
    return [
        {
            "id": "memory/writer",
            "title": "memory of the writer",
            "text": f"{_mib(writer['rss_imported'])} after the import, "
            f"{_mib(writer['rss_peak'])} at most while it logged {row['metrics']:,} in a loop, "
            f"{_mib(writer['rss_finished'])} at the end",
            **writer,
        },
        {
            "id": "memory/daemon",
            "title": "memory of the daemon",
            "text": f"{_mib(daemon['before'])} when idle, "
            f"{_mib(daemon['after'])} after {row['metrics']:,} metrics",
            **daemon,
        },
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _compare(rows: Rows, field: str, power: int) -> None:
    """Add to each row how many times zmqtrack's cost it is."""
    known = {row["id"]: row[field] for row in rows if row.get(field)}
    for row in rows:
        versus = known.get(row.get("versus", ""))
        if versus and row.get(field):
            row["ratio"] = (row[field] / versus) ** power


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; less exact")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="rows with this in their name"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times as long, say 0.1")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for bench.json")
    arguments = parser.parse_args()
    plan = Plan(arguments.quick, arguments.scale)
    console = Console(stderr=True)
    facts, began = machine(), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shop = Workshop(Path(tempfile.mkdtemp(prefix="work-", dir=arguments.out.absolute())))
    bench = Bench(plan, arguments.only, shop, console)
    try:
        bench.run()
    finally:
        shop.close()
    if not (bench.calls or bench.rates or bench.footprint):
        parser.error(f"no row has {' or '.join(arguments.only)} in its name")
    result = {
        "machine": {**facts, "load_after": machine()["load"]},
        "quick": plan.quick,
        "scale": plan.scale,
        "seconds": time.monotonic() - began,
        "calls": bench.calls,
        "rates": bench.rates,
        "footprint": bench.footprint,
    }
    report.show(result)
    path = arguments.out / "bench.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"the same as JSON: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
