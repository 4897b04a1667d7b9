"""``python -m compat [SUITE …]``: run the suites, print the table; see the package."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import TimeoutExpired

from . import runner
from .cases import Case, Skipped, Sources
from .federated import Row

#: Modules ``suite_NAME``.
SUITES = ("tensorboardx", "frameworks", "scripts")

#: Modules ``run_NAME``: federated frameworks, whose jobs run several sites. They compare by
#: themselves, with a row for each site.
FEDERATED = ("nvflare", "flower")

#: Whose versions are printed.
PACKAGES = (
    "zmqtrack", "tensorboardX", "tensorboard", "mlflow", "wandb", "torch", "lightning",
    "transformers", "accelerate", "pytorch-ignite", "stable-baselines3", "mmengine",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="compat", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES + FEDERATED))
    parser.add_argument("--only", default="*", help="pattern of the cases' names")
    parser.add_argument(
        "--reuse", action="store_true", help="keep what the real tools left the last time"
    )
    parser.add_argument("--out", type=Path, default=Path("compat-out"))
    arguments = parser.parse_args()
    checkouts = os.environ.get("ZMQTRACK_COMPAT_CHECKOUTS")
    sources = Sources(
        Path(checkouts).absolute() if checkouts else None, (arguments.out / "sources").absolute()
    )
    suites = arguments.suites or SUITES + FEDERATED
    found = [
        each
        for suite in suites
        if suite not in FEDERATED
        for each in import_module(f"compat.suite_{suite}").cases(sources)
        if fnmatchcase(each.name, arguments.only)
    ]
    cases = [each for each in found if isinstance(each, Case)]
    skipped = [each for each in found if isinstance(each, Skipped)]
    out = (arguments.out / "run").absolute()
    results = runner.run(cases, out, _say, arguments.reuse) if cases else []
    rows: list[Row] = []
    for suite in suites:
        if suite in FEDERATED:
            for name, told in _federated(suite, arguments.only, (arguments.out / suite).absolute()):
                if isinstance(told, str):
                    skipped.append(Skipped(name, told))
                else:
                    rows += told
    print("\n".join(report(results, skipped, rows)))
    return 1 if any(_wrong(each) for each in results) or any(row.astray for row in rows) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _federated(suite: str, only: str, out: Path) -> Iterator[tuple[str, list[Row] | str]]:
    """Each job's name, and a row for each site or the reason why it is skipped.

    A job that does not end well is a row, too.
    """
    module = import_module(f"compat.run_{suite}")
    for each in module.NAMES:
        name = f"{suite}.{each}"
        if not fnmatchcase(name, only):
            continue
        _say(f"{name}: both")
        shutil.rmtree(out / each, ignore_errors=True)
        try:
            yield name, module.main([each], out)
        except (RuntimeError, TimeoutExpired) as error:
            yield name, [Row(name, 0, 0, "", str(error))]


def report(
    results: Sequence[runner.Result], skipped: Sequence[Skipped], rows: Sequence[Row] = ()
) -> Iterator[str]:
    """The table and what it does not have room for, in Markdown."""
    yield f"{datetime.date.today()}, Python {platform.python_version()}, " + ", ".join(_versions())
    yield ""
    yield (
        "| code | passes: real tool | passes: here | records: real tool | here | announced | "
        "differs | astray |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    total = Counter[str]()
    for result in results:
        row = _row(result)
        total.update(row)
        yield f"| {result.case.name} | {_cells(row)} |"
    for each in rows:
        row = Counter(
            real=1, passed=1, records=each.real, arrived=each.here, astray=int(bool(each.astray))
        )
        total.update(row)
        yield f"| {each.name} | {_cells(row)} |"
    yield f"| **all** | {_cells(total)} |"
    yield ""
    for title, lines in (
        (
            "What the real tool carries and we neither carry nor announce",
            [line for r in results for line in _wrong(r)]
            + [f"{each.name}: {each.astray}" for each in rows if each.astray],
        ),
        (
            "Announced",
            _announced(results)
            + [f"{each.name}: {each.announced}" for each in rows if each.announced],
        ),
        ("Known to differ", _known(results)),
        ("Does not pass with the real tool either", [p for r in results for p in _elsewhere(r)]),
        ("Skipped", [f"{each.name}: {each.reason}" for each in skipped]),
    ):
        yield f"{title}: {'' if lines else 'none'}"
        yield from (f"- {line}" for line in lines)
        yield ""


_COLUMNS = ("real", "passed", "records", "arrived", "announced", "differs", "astray")


def _cells(row: Counter[str]) -> str:
    return " | ".join(str(row[name]) for name in _COLUMNS)


def _row(result: runner.Result) -> Counter[str]:
    row = Counter[str]()
    for part in result.parts:
        if part.real == "passed":
            row["real"] += 1
            row["passed"] += part.here == "passed"
            row["differs"] += part.here != "passed" and bool(_reason(result.case, part.site))
        row["records"] += part.verdict.records
        row["arrived"] += part.verdict.arrived
        row["announced"] += part.verdict.announced
        row["differs"] += part.verdict.differs.total()
    row["astray"] = len(_wrong(result))
    return row


def _reason(case: Case, site: str) -> str:
    return next((why for pattern, why in case.differs.items() if fnmatchcase(site, pattern)), "")


def _wrong(result: runner.Result) -> list[str]:
    """What fails here and not with the real tool, and what went astray, but for what is known."""
    lines = []
    for part in result.parts:
        if _reason(result.case, part.site):
            continue
        if part.real == "passed" and part.here != "passed":
            lines.append(f"{part.site}: passes with the real tool, here {part.here}: {part.error}")
        if part.real == "passed":
            lines += [f"{part.site}: {text}" for text in part.verdict.astray]
    return lines


def _elsewhere(result: runner.Result) -> list[str]:
    return [
        f"{part.site}: {part.real} with the real tool: {part.error}"
        for part in result.parts
        if part.real != "passed"
    ]


def _announced(results: Sequence[runner.Result]) -> list[str]:
    counted = Counter[str]()
    for result in results:
        counted.update({f"{result.case.tool}: {name}": n for name, n in result.counted.items()})
    return [f"{name}, {n} times" for name, n in sorted(counted.items())]


def _known(results: Sequence[runner.Result]) -> list[str]:
    known = Counter[str]()
    for result in results:
        for part in result.parts:
            known.update(part.verdict.differs)
            why = _reason(result.case, part.site)
            if why and part.real == "passed":
                known[f"{part.site}: {why}"] += 1
    return [f"{text} ({n})" for text, n in sorted(known.items())]


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


if __name__ == "__main__":
    sys.exit(main())
