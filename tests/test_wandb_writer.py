"""W&B's syntax: names, what is set after ``init``, files, TensorBoard's writer, and its module."""

from __future__ import annotations

import argparse
import datetime
import decimal
import enum
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zmqtrack
import zmqtrack.writers.wandb
from harness import Daemon
from readers_wandb import config, folders, history, last_run, summary
from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_wandb_native import run_ours, wandb_adapter
from zmqtrack import SummaryWriter
from zmqtrack.records import RunKey
from zmqtrack.writers.wandb_config import Early

HOST = socket.gethostname()


@pytest.fixture
def wandb(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = zmqtrack.writers.wandb
    monkeypatch.delenv("ZMQTRACK_EXPERIMENT", raising=False)
    monkeypatch.setattr(module, "run", None)
    monkeypatch.setattr(module, "config", Early(module.Error))
    monkeypatch.setattr(module, "_patched", False)
    return module


def losses(spool: Spooled) -> dict[str, int]:
    return {key: count for key, count, _ in spool.values("lost")}


def tags(spool: Spooled) -> dict[str, str]:
    return {key: value for key, value, _ in spool.values("tag")}


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"name": "base"}, RunKey("p", "base", HOST)),
        ({"name": "base", "id": "i"}, RunKey("p", "base", HOST)),
        ({"id": "i"}, RunKey("p", "i", HOST)),
        ({"group": "g", "name": "n"}, RunKey("p", "g", "n")),
        ({"group": "g", "id": "i"}, RunKey("p", "g", "i")),
        ({"group": "g"}, RunKey("p", "g", f"{HOST}-{os.getpid()}")),
    ],
)
def test_name_is_the_run_and_with_group_the_site(
    wandb: Any, given: dict[str, str], key: RunKey
) -> None:
    assert wandb.init(project="p", **given).zmq_run.key == key


def test_the_launchers_names_win_and_what_lost_its_place_is_a_tag(
    spool: Spooled, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQTRACK_RUN", "job")
    monkeypatch.setenv("ZMQTRACK_SITE", "site-2")
    wandb.init(project="p", name="base")
    assert list(spool.runs()) == [RunKey("p", "job", "site-2")]
    assert tags(spool) == {"name": "base"}


# --- what is set after init, or before it -----------------------------------------------------


def test_config_that_is_set_before_init_becomes_the_runs(spool: Spooled, wandb: Any) -> None:
    wandb.config.update({"lr": 0.1})
    wandb.config.batch = 8
    wandb.init(config={"lr": 0.2})
    assert wandb.config.lr == 0.2  # init's own comes first
    assert wandb.config is wandb.run.config
    wandb.finish()
    wandb.config = {"depth": 3}
    wandb.init()
    wandb.run.config = {"width": 4}
    wandb.config = argparse.Namespace(late=5)  # carried when the run ends
    wandb.finish()
    with pytest.raises(wandb.Error, match=r"wandb\.init\(\)"):
        _ = wandb.config.depth
    params = [(key, value) for key, value, _ in spool.values("param")]
    assert params == [("lr", 0.2), ("batch", 8), ("depth", 3), ("width", 4), ("late", 5)]


def test_what_is_put_into_the_runs_folder_is_logged_when_it_finishes(
    spool: Spooled, wandb: Any, tmp_path: Path
) -> None:
    run = wandb.init(dir=tmp_path)
    assert not list(tmp_path.glob("wandb/*")), "made when it is asked for"
    folder = Path(run.dir)
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path)
    assert run.dir == str(folder)
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "note.txt").write_text("hi")
    (folder / "saved.txt").write_text("once")
    wandb.save(str(folder / "saved.txt"), policy="now")
    wandb.finish()
    found = {record.key: record.value[2] for record in spool.of("artifact")}
    assert found == {"saved.txt": b"once", "model.pt": b"weights", "sub/note.txt": b"hi"}
    assert len(spool.of("artifact")) == 3


def test_the_runs_folder_is_logged_where_the_script_forgets_to_finish(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = """
run = wandb.init(project="p", name="n")
open(run.dir + "/out.txt", "w").write("hi")
"""
    with daemon([wandb_adapter(tmp_path / "out")]) as served:
        run_ours(script, served, tmp_path)
    [parts] = folders(tmp_path / "out").values()
    paths = [e.path for _, rs in parts for r in rs for e in r.artifact.manifest.contents]
    assert paths == ["out.txt"]


def test_images_in_the_cells_of_a_table_are_logged_beside_it(spool: Spooled, wandb: Any) -> None:
    picture = wandb.Image(np.zeros((2, 3, 3), "uint8"))
    wandb.init()
    wandb.log({"t": wandb.Table(columns=["x", "shown"], data=[[1, picture], [2, "none"]])})
    assert [key for key, _, _ in spool.values("image")] == ["t/0/shown"]
    [(key, text, step)] = spool.values("text")
    assert (key, step) == ("t.md", 0)
    assert text.splitlines()[2:] == ["| 1 | Image t/0/shown |", "| 2 | none |"]


def test_names_notes_and_tags_that_are_set_later_reach_wandb(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = """
run = wandb.init(project="p", name="n", tags=["a"], notes="first", job_type="train")
wandb.log({"x": 1}); run.flush()
run.name = "other"; run.tags = run.tags + ("b",); run.notes = "second"
wandb.finish()
"""
    with daemon([wandb_adapter(tmp_path / "out")]) as served:
        run_ours(script, served, tmp_path)
    last = last_run(tmp_path / "out")
    assert (last.display_name, last.notes, list(last.tags)) == ("other", "second", ["a", "b"])
    assert last.job_type == "train"


# --- options of W&B's adapter -----------------------------------------------------------------


def test_the_adapter_names_and_describes_runs_as_its_options_say(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    options = {
        "project": "fl-{experiment}",
        "name": "{run}-{site}-{date}",
        "group": "all of {experiment}",
        "job_type": "train",
        "notes": "from the federation",
        "tags": ["federated"],
        "config": {"cluster": "a100", "lr": 7},
    }
    script = 'run = wandb.init(config={"lr": 0.1}); wandb.log({"x": 1}); wandb.finish()'
    with daemon([wandb_adapter(tmp_path / "out", **options)]) as served:
        run_ours(script, served, tmp_path, ZMQTRACK_RUN="job", ZMQTRACK_SITE="site-1")
    run = last_run(tmp_path / "out")
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")
    assert run.project == "fl-p"
    assert run.display_name.startswith(f"job-site-1-{today}")
    assert (run.run_group, run.job_type, run.notes) == ("all of p", "train", "from the federation")
    assert list(run.tags) == ["federated"]
    [[(_, records)]] = folders(tmp_path / "out").values()
    assert (config(records)["cluster"], config(records)["lr"]) == ("a100", 0.1)


def test_a_pattern_with_an_unknown_name_is_refused() -> None:
    from zmqtrack.adapters.wandb import WandBOptions

    with pytest.raises(ValueError, match=r"no pattern of \{experiment\}"):
        WandBOptions(name="{host}")


# --- TensorBoard's writer in W&B's run --------------------------------------------------------


def test_a_summary_writer_joins_the_run_that_syncs_tensorboard(spool: Spooled, wandb: Any) -> None:
    wandb.init(project="cleanrl", name="dqn", sync_tensorboard=True, config={"lr": 0.1})
    writer = SummaryWriter("runs/dqn")
    writer.add_text("hyperparameters", "|lr|")
    for step in (10, 20):
        writer.add_scalar("charts/return", step / 2, step)
    writer.close()
    wandb.log({"more": 1})
    other = SummaryWriter("runs/apart", run="apart")
    other.add_scalar("x", 1, 0)
    other.close()
    wandb.finish()
    late = SummaryWriter("runs/late")
    late.add_scalar("y", 1, 0)
    late.close()
    runs = spool.runs()
    joined = runs.pop(RunKey("cleanrl", "dqn", HOST))
    keys = [record.key for kind, record in joined if kind in ("param", "metric")]
    assert keys == ["lr", "charts/return", "charts/return", "more"]
    assert [record.value for kind, record in joined if kind == "run"][-1] == "finished"
    assert {key.run for key in runs} == {"apart", "late"}


def test_patching_tensorboard_before_init_does_the_same(spool: Spooled, wandb: Any) -> None:
    wandb.tensorboard.patch(root_logdir="runs")
    wandb.init(project="p", name="n")
    writer = SummaryWriter("runs/n")
    writer.add_scalar("x", 1, 0)
    writer.close()
    wandb.finish()
    assert list(spool.runs()) == [RunKey("p", "n", HOST)]


def test_scalars_of_a_joined_writer_land_in_the_wandb_run(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = """
from zmqtrack import SummaryWriter
wandb.init(project="p", name="n", sync_tensorboard=True, config={"lr": 0.1})
writer = SummaryWriter("runs/n")
for step in (100, 200):
    writer.add_scalar("charts/return", step, step)
writer.close()
wandb.finish()
"""
    with daemon([wandb_adapter(tmp_path / "out")]) as served:
        run_ours(script, served, tmp_path)
    [[(_, records)]] = folders(tmp_path / "out").values()
    assert config(records)["lr"] == 0.1
    rows = [(row["charts/return"], row["_step"]) for row in history(tmp_path / "out")]
    assert rows == [(100, 100), (200, 200)]


# --- values -----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 3


@dataclass
class Score:
    right: int = 2


def test_values_that_wandb_takes_are_carried_as_it_writes_them(spool: Spooled, wandb: Any) -> None:
    run = wandb.init()
    run.log(
        {
            "decimal": decimal.Decimal("1.5"),
            "enum": Colour.RED,
            "data": Score(),
            "half": torch.tensor(0.5, dtype=torch.bfloat16),
            "numpy": np.float32(0.25),
            "big": 2**70,
            "huge": 10**400,
            "day": datetime.date(2020, 1, 2),
            "numpy day": np.datetime64("2020-01-02"),
            "set": {7},
            "bytes": b"abc",
            "complex": 1 + 2j,
            "function": len,
            "path": Path("/a"),
            "words": np.array(["a", "b"]),
            "lone \ud800": "x",
            "two\nlines": 1,
            "": 1,
        }
    )
    numbers = {key: value for key, value, _ in spool.values("metric")}
    assert numbers == {
        "decimal": 1.5, "enum": 3, "data.right": 2, "half": 0.5, "numpy": 0.25, "big": 2.0**70,
        "two lines": 1,
    }  # fmt: skip
    texts = {key: value for key, value, _ in spool.values("text")}
    assert texts.pop("huge") == str(10**400)
    assert texts == {
        "day": "2020-01-02", "numpy day": "2020-01-02", "set.json": "[7]", "bytes": "abc",
        "complex": "1+2j", "function": "builtins.len", "path": "/a", "words.json": '["a", "b"]',
        "lone ?": "x",
    }  # fmt: skip
    assert losses(spool) == {"unsupported_empty_key": 1}


def test_config_takes_what_wandbs_takes(spool: Spooled, wandb: Any) -> None:
    wandb.init(config={"enum": Colour.RED, "set": {7}, "data": Score(), "cls": Path, "a\nb": 1})
    assert [(key, value) for key, value, _ in spool.values("param")] == [
        ("enum", "RED"), ("set", [7]), ("data", {"right": 2}), ("cls", "pathlib.Path"), ("a b", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [object(), os, b"\xff", slice(1)])
def test_what_wandb_refuses_is_refused(wandb: Any, value: Any) -> None:
    wandb.init()
    with pytest.raises((TypeError, UnicodeDecodeError)):
        wandb.log({"x": value})


def test_overlong_keys_are_cut_and_stay_distinct(spool: Spooled, wandb: Any) -> None:
    wandb.init()
    wandb.log({"a" * 2000: 1, "a" * 2000 + "b": 2})
    keys = [key for key, _, _ in spool.values("metric")]
    assert len(set(keys)) == 2
    assert all(len(key) <= 1000 for key in keys)


# --- the module's names -----------------------------------------------------------------------


def test_every_public_name_of_wandbs_module_is_there() -> None:
    import wandb as real

    ours = zmqtrack.writers.wandb
    missing = {"profiler", "ArtifactTTL"}  # W&B's own server's
    assert [n for n in real.__all__ if not hasattr(ours, n) and n not in missing] == []
    assert ours.__version__ == real.__version__


def test_every_public_name_of_wandbs_run_is_there(wandb: Any) -> None:
    import wandb as real

    run = wandb.init()
    names = [name for name in dir(real.Run) if not name.startswith("_")]
    assert [name for name in names if not hasattr(run, name)] == []


@pytest.mark.parametrize("name", ["Api", "sweep", "agent", "controller"])
def test_what_needs_wandbs_server_says_what_to_do(wandb: Any, name: str) -> None:
    with pytest.raises(wandb.UsageError, match=f"real_wandb.{name}"):
        getattr(wandb, name)({})


def test_artifacts_by_name_and_files_at_the_server_say_what_to_do(wandb: Any) -> None:
    wandb.init()
    for call in (wandb.use_artifact, wandb.restore, wandb.use_model):
        with pytest.raises(wandb.UsageError, match="real wandb"):
            call("model:v3")


def test_charts_are_carried_as_their_tables_and_say_which_they_were(
    spool: Spooled, wandb: Any
) -> None:
    table = wandb.Table(columns=["x", "y"], data=[[1, 2], [3, 4]])
    wandb.init()
    wandb.log(
        {
            "line": wandb.plot.line(table, "x", "y", title="T"),
            "lines": wandb.plot.line_series([0, 1], [[5, 6], [7, 8]], keys=["a", "b"]),
            "confusion": wandb.plot.confusion_matrix(
                y_true=[0, 1, 1], preds=[0, 1, 0], class_names=["cat", "dog"]
            ),
            "own": wandb.plot_table("me/preset", table, {"x": "x"}),
        }
    )
    texts = {key: value for key, value, _ in spool.values("text")}
    assert texts["line.md"].splitlines()[2:] == ["| 1 | 2 |", "| 3 | 4 |"]
    assert texts["line.chart"] == "line (x: x, y: y, title: T)"
    assert "| 1 | b | 8 |" in texts["lines.md"]
    assert texts["confusion.md"].splitlines()[2:] == [
        "| cat | cat | 1 |", "| cat | dog | 0 |", "| dog | cat | 1 |", "| dog | dog | 1 |",
    ]  # fmt: skip
    assert texts["own.chart"].startswith("me/preset")


@pytest.mark.parametrize("name", ["roc_curve", "pr_curve"])
def test_curves_are_those_of_wandb(name: str) -> None:
    import wandb as real

    truth = [0, 1, 1, 0, 1, 0]
    scores = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.35, 0.65], [0.5, 0.5]]
    made = getattr(zmqtrack.writers.wandb.plot, name)(truth, scores)
    theirs = getattr(real.plot, name)(truth, scores)
    assert made.table.columns == theirs.table.columns
    ours = {tuple(row) for row in made.table.data}
    assert {(str(row[0]), *row[1:]) for row in theirs.table.data} <= ours


def test_models_and_artifacts_are_files(spool: Spooled, wandb: Any, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"w")
    run = wandb.init()
    run.log_model(tmp_path / "model.pt", name="net")
    artifact = wandb.Artifact("data", "dataset", description="d", metadata={"rows": 3})
    with artifact.new_file("notes.txt", "w") as file:
        file.write("hi")
    artifact.add(wandb.Table(columns=["x"], data=[[1]]), "table")
    artifact.add_reference("s3://bucket/x")
    run.log_artifact(artifact, aliases=["best"])
    run.use_artifact(artifact)
    assert [key for key, _, _ in spool.values("artifact")] == ["net", "data/notes.txt"]
    texts = {key: value for key, value, _ in spool.values("text")}
    assert texts["data/references.txt"] == "s3://bucket/x"
    assert "data/table.md" in texts
    assert ("artifact.data", {"description": "d", "rows": 3}, None) in spool.values("param")
    assert tags(spool)["use_artifact/data"] == "dataset"


def test_a_definition_travels_whole_and_wrong_ones_raise_as_wandbs(
    spool: Spooled, wandb: Any
) -> None:
    run = wandb.init()
    metric = run.define_metric("val/*", step_metric="epoch", summary="max,last", hidden=True)
    assert (metric.name, metric.step_metric) == ("val/*", "epoch")
    for name, more in (("", {}), ("a*b", {}), ("a", {"summary": "median"})):
        with pytest.raises(wandb.Error):
            run.define_metric(name, **more)
    facts = {"step_metric": "epoch", "summary": "max,last", "hidden": True}
    assert json.loads(tags(spool)["define/val/*"]) == facts


def test_messages_and_helpers_are_there(wandb: Any, caplog: pytest.LogCaptureFixture) -> None:
    wandb.termwarn("careful", repeat=False)
    wandb.termwarn("careful", repeat=False)
    assert caplog.text.count("careful") == 1
    assert len(wandb.util.generate_id()) == 8
    assert wandb.errors.CommError is wandb.CommError
    assert wandb.env.MODE == "WANDB_MODE"
    run = wandb.init(project="p")
    assert (run.url, run.get_url(), run.project_name()) == (None, None, "p")


def test_a_summary_that_is_updated_is_wandbs_summary(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = """
run = wandb.init(project="p", name="n")
wandb.log({"acc": 0.5})
run.summary.update({"acc": 0.75, "best": {"epoch": 3}, "verdict": "good"})
wandb.finish()
"""
    with daemon([wandb_adapter(tmp_path / "out")]) as served:
        run_ours(script, served, tmp_path)
    found = summary(tmp_path / "out")
    assert (found["acc"], found["verdict"]) == (0.75, "good")
    assert found["best.epoch"] == 3


def test_no_heavy_module_is_imported_by_the_module() -> None:
    code = "import sys, zmqtrack.writers.wandb as w; w.plot; print('wandb' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
