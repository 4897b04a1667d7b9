"""W&B's syntax into W&B: the same calls, on the real package and here, read back from its files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Daemon, jsonl, read_jsonl
from readers_wandb import config, folders, history, last_run, summary

REAL = "import wandb"
OURS = "import zmqtrack.writers.wandb as wandb"

ROWS = """
import numpy as np
run = wandb.init(project="p", name="baseline", config={"lr": 0.1}, tags=["x"], notes="why")
picture = wandb.Image(np.zeros((4, 4, 3), "uint8"), caption="black")
wandb.log({"a": 1, "b": 2.5, "img": picture, "h": wandb.Histogram([1, 2, 3]), "s": "text"})
wandb.log({"c": 1}, commit=False)
wandb.log({"d": 2, "img": picture})
wandb.log({"e": 1}, step=5)
wandb.log({"f": 1}, step=5)
wandb.log({"g": 1}, step=9)
wandb.log({"h2": 1})
wandb.log({"x": 3, "y": 4})
wandb.log({"only": picture})
run.summary["best"] = 0.25
run.summary["verdict"] = "good"
wandb.config.update({"late": 3})
run.name = "renamed"
run.tags = ("x", "y")
run.notes = "because"
wandb.finish()
"""


def run_real(script: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "HOME": str(folder / "home")}
    env |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_X_DISABLE_STATS": "true"}
    subprocess.run([sys.executable, "-c", f"{REAL}\n{script}"], env=env, cwd=folder, check=True)


def run_ours(script: str, daemon: Daemon, folder: Path, **more: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "ZMQTRACK_"))}
    env |= {"ZMQTRACK_ADDRESS": daemon.address, "ZMQTRACK_SPOOL_DIR": str(folder / "spool")}
    env |= {"ZMQTRACK_EXPERIMENT": "p", **more}
    code = f"{OURS}\n{script}"
    subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, check=True)
    daemon.drain()


def wandb_adapter(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "type": "wandb",
        "flush_interval": 0.2,
        "options": {"mode": "offline", "dir": str(folder), **options},
    }


def by_column(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a comparison: media by their kind, caption and size; no clocks."""

    def simple(value: Any) -> Any:
        if isinstance(value, dict) and value.get("_type") == "image-file":
            return {k: value.get(k) for k in ("_type", "caption", "width", "height")}
        if isinstance(value, dict) and value.get("_type") == "histogram":
            return "histogram", sum(value["values"])
        return value

    drop = ("_runtime", "_timestamp")
    return [{k: simple(v) for k, v in sorted(row.items()) if k not in drop} for row in rows]


def test_one_call_is_one_row_with_wandbs_own_columns_and_steps(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    run_real(ROWS, tmp_path / "real")
    with daemon([wandb_adapter(tmp_path / "out"), jsonl(tmp_path / "lines")]) as served:
        run_ours(ROWS, served, tmp_path)
    theirs, ours = history(tmp_path / "real"), history(tmp_path / "out")
    assert by_column(ours) == by_column(theirs)
    clocks = [abs(a["_timestamp"] - b["_timestamp"]) for a, b in zip(ours, theirs, strict=True)]
    assert max(clocks) < 600
    assert {k: v for k, v in summary(tmp_path / "out").items() if k not in ("img", "only")} == {
        k: v for k, v in summary(tmp_path / "real").items() if k not in ("img", "only")
    }
    for key, value in config_of(tmp_path / "real").items():
        assert config_of(tmp_path / "out")[key] == value
    for fact in ("project", "display_name", "notes"):
        assert getattr(last_run(tmp_path / "out"), fact) == getattr(
            last_run(tmp_path / "real"), fact
        )
    assert list(last_run(tmp_path / "out").tags) == list(last_run(tmp_path / "real").tags)
    [path] = (tmp_path / "lines" / "p" / "baseline").glob("*.jsonl")
    lines = read_jsonl(tmp_path / "lines", "p", "baseline", path.stem)
    first = [line for line in lines if line["step"] == 0]
    assert {line["key"] for line in first} == {"a", "b", "img", "img.caption", "h", "s"}
    assert len({line["time"] for line in first}) == 1


def config_of(directory: Path) -> dict[str, Any]:
    [parts] = folders(directory).values()
    return {k: v for k, v in config(parts[-1][1]).items() if k != "_wandb"}


HUGGING_FACE = """
run = wandb.init(project="p", name="hf")
wandb.define_metric("train/global_step")
wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
wandb.define_metric("eval/acc", summary="max")
for step in (2, 4, 6, 8):
    wandb.log({"train/loss": 1 / step, "train/global_step": step})
wandb.log({"eval/acc": 0.5})
wandb.log({"eval/acc": 0.25})
wandb.finish()
"""


def test_a_metric_lies_on_its_axis_in_every_tracker_and_its_row_stays_one_in_wandb(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    run_real(HUGGING_FACE, tmp_path / "real")
    with daemon([wandb_adapter(tmp_path / "out"), jsonl(tmp_path / "lines")]) as served:
        run_ours(HUGGING_FACE, served, tmp_path)
    assert by_column(history(tmp_path / "out")) == by_column(history(tmp_path / "real"))
    assert summary(tmp_path / "out") == summary(tmp_path / "real")
    [path] = (tmp_path / "lines" / "p" / "hf").glob("*.jsonl")
    lines = read_jsonl(tmp_path / "lines", "p", "hf", path.stem)
    steps = {key: [one["step"] for one in lines if one["key"] == key] for key in KEYS}
    assert steps == {"train/loss": [2, 4, 6, 8], "train/global_step": [0, 1, 2, 3],
                     "eval/acc": [4, 5]}  # fmt: skip
    [parts] = folders(tmp_path / "out").values()
    defined = {
        r.metric.name or r.metric.glob_name: r.metric
        for _, records in parts
        for r in records
        if r.HasField("metric")
    }
    assert defined["*"].step_metric == "train/global_step"
    assert defined["*"].options.step_sync
    assert defined["eval/acc"].summary.max


KEYS = ("train/loss", "train/global_step", "eval/acc")


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
