"""A plug-in for pytest: each test in a folder and under a site of its own, told in a file."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from start import seed

ROOT = Path.cwd()


def site(nodeid: str) -> str:
    return re.sub(r"[^\w.-]+", "-", nodeid.rpartition("/")[2]).replace(".py-", ".")


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = site(request.node.nodeid)
    folder = ROOT / name
    folder.mkdir()
    # Tests find files of theirs beside them, by a path from where they were started.
    (folder / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(folder)
    seed()
    monkeypatch.setenv("ZMQTRACK_SITE", name)
    monkeypatch.setenv("ZMQTRACK_EXPERIMENT", name)
    yield
    module = sys.modules.get("zmqtrack.run")
    for run in list(getattr(module, "_live", ())):
        run.finish(timeout=20)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        _tell(report)


def pytest_collectreport(report: Any) -> None:
    if report.outcome != "passed":
        _tell(report)


def _tell(report: Any) -> None:
    error = str(report.longrepr or "").strip().splitlines()
    about = [line for line in error if line.startswith("E ")] or error[-1:]
    row = {"site": site(report.nodeid), "outcome": report.outcome, "error": " ".join(about)[:400]}
    with Path(os.fspath(ROOT), "outcomes.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
