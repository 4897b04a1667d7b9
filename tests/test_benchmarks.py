"""The benchmarks run and report; how fast anything is, is no test's matter."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def bench(out: Path, *only: str) -> tuple[str, dict[str, Any]]:
    """What is printed, and what is in the JSON."""
    chosen = [part for name in only for part in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--scale", "0.02", "--out", out, *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "bench.json").read_text())


def test_the_benchmarks_print_a_table_and_write_the_same_as_json(tmp_path: Path) -> None:
    table, found = bench(
        tmp_path, "calls/zmqtrack/log_metric", "rates/journal/1", "rates/jsonl/1", "footprint"
    )
    assert found["machine"]["cores"] >= 1 and found["machine"]["python"] in table
    (call,) = found["calls"]
    assert call["title"] in table
    assert call["statement"] == 'run.log_metric("loss", value, step)'
    assert {"median_us", "p99_us", "loop_us", "clock_ns", "calls"} <= call.keys()
    assert [row["id"] for row in found["rates"]] == ["journal/1", "jsonl/1"]
    for row in found["rates"]:
        assert row["title"] in table
        assert row["metrics_per_second"] > 0 and "counters" not in row, row
    footprint = {row["id"]: row for row in found["footprint"]}
    assert footprint.keys() == {
        *("wire/none/32", "wire/zstd/32", "wire/zstd/64"),
        *("import", "memory/writer", "memory/daemon"),
    }
    assert footprint["wire/zstd/32"]["bytes_per_metric"] > 0
    assert all(row["title"] in table for row in found["footprint"])
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"], "it cleans up"


def test_a_logger_that_is_not_installed_has_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    calls = importlib.import_module("benchmarks.calls")
    (contender,) = (one for one in calls.CONTENDERS if one.name == "tensorboardX")
    absent = dataclasses.replace(contender, requires=("no_such_module",))
    monkeypatch.setattr(calls, "CONTENDERS", (absent,))
    spec = {"contender": "tensorboardX", "statements": ["tensorboardX"], "uri": "", "direct": {}}
    monkeypatch.setattr(sys, "argv", ["calls", json.dumps(spec)])
    monkeypatch.chdir(tmp_path)
    calls.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"missing": "not installed: no_such_module"}


def test_a_name_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "nothing-like-it", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no row has nothing-like-it in its name" in done.stderr
