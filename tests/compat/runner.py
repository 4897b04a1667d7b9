"""Runs cases: first all of them, then what they left is read and judged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Daemon

from . import facts
from .cases import Case
from .judge import Verdict, judge

__all__ = ["Part", "Result", "run"]

#: Seconds that a case may take.
PATIENCE = 900.0


@dataclass
class Part:
    """One part of a case: how it ended with the real tool and here, and what arrived."""

    site: str
    real: str
    here: str
    error: str = ""
    verdict: Verdict = field(default_factory=Verdict)


@dataclass
class Result:
    """A case's parts; ``counted`` holds what was announced, and how often."""

    case: Case
    parts: list[Part]
    counted: Counter[str]


def run(
    cases: Iterable[Case], folder: Path, say: Callable[[str], None], reuse: bool = False
) -> list[Result]:
    """Run each case twice and judge it; its output stays in ``folder``.

    Everything of the real tools goes to ``FOLDER/CASE/real``, everything of ours through one
    daemon with JSON lines and the adapters of the three tools to ``FOLDER/trackers``. ``reuse``
    keeps what the real tool left there last time, and runs the other half alone.
    """
    cases = list(cases)
    kept = {case.name for case in cases if reuse and (folder / case.name / "real.code").exists()}
    _clear(folder, kept)
    trackers = folder / "trackers"
    (trackers / "mlflow").mkdir(parents=True)
    tools = {case.tool for case in cases}
    if "mlflow" in tools:
        _make_empty_mlflow(folder)
        shutil.copy(folder / "mlflow.db", trackers / "mlflow")
    with Daemon(folder / "daemon", _adapters(trackers, tools)) as daemon:
        for case in cases:
            for here in (True,) if case.name in kept else (False, True):
                say(f"{case.name}: {'import changed' if here else 'real tool'}")
                _run_one(case, folder / case.name, here, daemon.address)
        say("waiting until all is delivered")
        daemon.drain(timeout=300)
        counted = _counted(daemon.status())
    say("reading")
    written = {tool: facts.READERS[tool](trackers / tool, True) for tool in tools}
    lines = facts.jsonl(trackers / "jsonl")
    return [_result(case, folder / case.name, written[case.tool], lines, counted) for case in cases]


def _clear(folder: Path, kept: set[str]) -> None:
    for path in list(folder.glob("*")):
        if path.name in kept:
            for left in path.glob("here*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def _adapters(trackers: Path, tools: Iterable[str]) -> list[dict[str, Any]]:
    options: dict[str, dict[str, str]] = {
        "jsonl": {"dir": str(trackers / "jsonl")},
        "tensorboard": {"logdir": str(trackers / "tensorboard")},
        "mlflow": {
            "tracking_uri": f"sqlite:///{(trackers / 'mlflow' / 'mlflow.db').absolute()}",
            "artifact_location": str((trackers / "mlflow" / "artifacts").absolute()),
        },
        "wandb": {"mode": "offline", "dir": str(trackers / "wandb")},
    }
    return [{"type": name, "options": options[name]} for name in ("jsonl", *sorted(tools))]


def _make_empty_mlflow(folder: Path) -> None:
    """A database without runs, to be copied: MLflow takes seconds to make one."""
    code = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


def _run_one(case: Case, folder: Path, here: bool, address: str) -> None:
    cwd = folder / ("here" if here else "real")
    (cwd / "tmp").mkdir(parents=True)
    if case.tool == "mlflow":
        shutil.copy(folder.parent / "mlflow.db", cwd)
    removed = ("ZMQTRACK_", "WANDB_", "MLFLOW_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    env |= {
        "MPLBACKEND": "agg",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{(cwd / 'mlflow.db').absolute()}",
    }
    if here:
        env |= {
            "ZMQTRACK_ADDRESS": address,
            ("ZMQTRACK_SITE" if case.launched else "COMPAT_HOST"): case.name,
            "ZMQTRACK_SPOOL_DIR": str(folder.parent / "spool"),
        }
    else:
        env["ZMQTRACK_SITE"] = case.name  # for sessions of several parts; the tools ignore it
    with (folder / f"{cwd.name}.log").open("w") as log, tempfile.TemporaryDirectory() as short:
        # A socket's path must be short: multiprocessing's managers have theirs in TMPDIR.
        env["TMPDIR"] = str(Path(short, "tmp"))
        Path(short, "tmp").symlink_to((cwd / "tmp").absolute())
        try:
            command = case.prepare(cwd, here)
            done = subprocess.run(
                command, cwd=cwd, env=env, stdout=log, stderr=log, timeout=PATIENCE
            )
            code: int | str = done.returncode
        except subprocess.TimeoutExpired:
            code = f"ran for more than {PATIENCE:g} s"
            log.write(f"\n{code}\n")
    (folder / f"{cwd.name}.code").write_text(str(code))


def _counted(status: Any) -> dict[str, Counter[str]]:
    """By site: what was counted as not carried, wherever the status tells of it."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)

    def look(value: Any) -> None:
        if isinstance(value, dict):
            reason = str(value.get("reason", ""))
            if reason.startswith("unsupported_"):
                counted[value.get("site", "")][reason.removeprefix("unsupported_")] += value["n"]
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(status)
    return counted


def _result(
    case: Case,
    folder: Path,
    written: facts.Facts,
    lines: dict[str, set[str]],
    counted: dict[str, Counter[str]],
) -> Result:
    real, here = _outcomes(folder, "real", case), _outcomes(folder, "here", case)
    said = set(re.findall(r"zmqtrack: ([\w.() ]+): ", (folder / "here.log").read_text()))
    several = (folder / "real" / "outcomes.jsonl").exists()
    parts, total = [], Counter[str]()
    # Where a part has a folder of its own, that is called as its site.
    there = {
        site: facts.READERS[case.tool](folder / "real" / (site if several else ""), False)
        for site in real
    }
    for site, (outcome, told) in real.items():
        ours, error = here.get(site, ("absent", "it did not run"))
        part = Part(site, outcome, ours, error if outcome == "passed" else told)
        part.verdict = judge(
            there[site].get(None, {}),
            written.get(site, {}),
            {*counted[site], *said},
            case.varies,
            case.differs,
        )
        part.verdict.astray += _besides(folder / "here" / (site if several else ""), case.tool)
        total += counted[site]
        parts.append(part)
        keys = {f.key for run in written.get(site, {}).values() for f in run if f.kind == "metric"}
        if not keys <= lines.get(site, set()):
            part.verdict.astray.append(f"metrics {keys - lines[site]} are not in the JSON lines")
    return Result(case, parts, total)


def _outcomes(folder: Path, side: str, case: Case) -> dict[str, tuple[str, str]]:
    """Site → outcome and error."""
    path = folder / side / "outcomes.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["site"]: (row["outcome"], row["error"]) for row in rows}
    code = (folder / f"{side}.code").read_text()
    text = (folder / f"{side}.log").read_text()
    return {case.name: ("passed" if code == "0" else "failed", _last_error(text))}


def _last_error(text: str) -> str:
    lines = [
        line for line in text.splitlines() if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)
    ]
    return (lines or text.splitlines() or [""])[-1][:300]


def _besides(folder: Path, tool: str) -> Iterator[str]:
    """What went to the real tool although the import was changed."""
    found = facts.READERS[tool](folder, False).get(None, {})
    kinds = Counter(fact.kind for run in found.values() for fact in run)
    if kinds:
        told = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        yield f"went to the real tool, in the script's own folder: {told}"
