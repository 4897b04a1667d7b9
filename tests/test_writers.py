from __future__ import annotations

import argparse
import inspect
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zmqtrack
import zmqtrack.writers.mlflow
import zmqtrack.writers.wandb
from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_image import pixels
from zmqtrack.records import RunKey
from zmqtrack.writers.mlflow import MLflowWriter
from zmqtrack.writers.tensorboard import SummaryWriter
from zmqtrack.writers.wandb import WandBWriter
from zmqtrack.writers.wandb_config import Early

IMAGE = np.zeros((3, 4, 5), dtype=np.uint8)


@pytest.fixture
def mlflow(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as a process that has just imported it sees it."""
    monkeypatch.delitem(sys.modules, "zmqtrack.writers.mlflow")
    import importlib

    return importlib.import_module("zmqtrack.writers.mlflow")


@pytest.fixture
def wandb(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = zmqtrack.writers.wandb
    monkeypatch.setattr(module, "run", None)
    monkeypatch.setattr(module, "config", Early(module.Error))
    return module


def losses(spool: Spooled) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key, count, _ in spool.values("lost"):
        counts[key] = counts.get(key, 0) + count
    return counts


# --- TensorBoard ------------------------------------------------------------------------------


def test_scalars_keep_value_step_and_wall_time(spool: Spooled) -> None:
    with SummaryWriter("runs/exp") as writer:
        writer.add_scalar("loss", 0.1, 7, 1234.5)
        writer.add_scalar("loss", torch.tensor([0.25]), np.int64(7), new_style=True)
        writer.add_scalar("loss", scalar=np.float32(2), global_step=3)  # NVFLARE's name
        writer.add_scalar("loss", True)
        writer.add_scalar("loss", math.nan, 8, double_precision=True)
    metrics = spool.of("metric")
    assert [(m.value, m.step) for m in metrics[:4]] == [(0.1, 7), (0.25, 7), (2.0, 3), (1.0, None)]
    assert math.isnan(metrics[4].value)
    assert metrics[0].time == 1234.5


@pytest.mark.parametrize("value", ["one", None, [1.0, 2.0], torch.zeros(2), 1j])
def test_a_scalar_that_is_no_number_raises_at_the_call(spool: Spooled, value: Any) -> None:
    writer = SummaryWriter()
    with pytest.raises(TypeError, match="'loss'"):
        writer.add_scalar("loss", value, 1)
    with pytest.raises(TypeError, match="needs a value"):
        writer.add_scalar("loss")


def test_scalars_of_one_call_stand_under_the_main_tag(spool: Spooled) -> None:
    writer = SummaryWriter()
    writer.add_scalars("acc", {"train": 1, "val": 2}, 5)
    writer.add_scalars(tag="acc", scalars={"test": 3}, global_step=6)  # NVFLARE's names
    with pytest.raises(TypeError):
        writer.add_scalars("acc", {"train": 9, "val": "x"}, 7)
    assert spool.values("metric") == [
        ("acc/train", 1.0, 5),
        ("acc/val", 2.0, 5),
        ("acc/test", 3.0, 6),
    ]


def test_text_images_figures_and_histograms_are_carried(spool: Spooled) -> None:
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(1, 1))
    pair = [pyplot.figure(figsize=(1, 1), dpi=20) for _ in range(2)]
    with SummaryWriter() as writer:
        writer.add_text("note", "**hello**", 1)
        writer.add_image("chw", torch.zeros(3, 4, 5), 2)
        writer.add_image("hw", IMAGE[0], 2, dataformats="HW")
        writer.add_images("nchw", np.zeros((2, 3, 4, 5)), 3)
        writer.add_image_with_boxes("boxes", IMAGE, torch.tensor([[0, 0, 3, 3]]), labels=["a"])
        writer.add_figure("figure", figure, 4)
        writer.add_figure("figures", pair, 4, close=False)
        writer.add_histogram("weights", torch.randn(100), 5)
        writer.add_histogram("coarse", np.arange(100), 5, "auto", max_bins=3)
    assert spool.values("text") == [("note", "**hello**", 1)]
    images = {key: (size(value), step) for key, value, step in spool.values("image")}
    assert images == {
        "chw": ((5, 4), 2),
        "hw": ((5, 4), 2),
        "nchw": ((10, 4), 3),
        "boxes": ((5, 4), None),
        "figure": ((100, 100), 4),
        "figures": ((40, 20), 4),
    }
    assert not pyplot.fignum_exists(figure.number)
    assert pyplot.fignum_exists(pair[0].number)
    pyplot.close("all")
    histograms = {key: value for key, value, _ in spool.values("histogram")}
    assert histograms["weights"]["num"] == sum(histograms["weights"]["counts"]) == 100
    assert len(histograms["coarse"]["counts"]) <= 3
    assert sum(histograms["coarse"]["counts"]) == 100


def size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_a_raw_histogram_of_torch_keeps_its_buckets(spool: Spooled) -> None:
    writer = SummaryWriter()
    numbers = {"min": 0.5, "max": 2.5, "num": 4, "sum": 6.0, "sum_squares": 11.0}
    writer.add_histogram_raw(
        "a", **numbers, bucket_limits=np.array([0.0, 1, 2, 3]), bucket_counts=[0, 1, 2, 1]
    )
    writer.add_histogram_raw("b", **numbers, bucket_limits=[1, 2, 3], bucket_counts=[1, 2, 1])
    with pytest.raises(ValueError, match="as many bucket_limits"):
        writer.add_histogram_raw("c", **numbers, bucket_limits=[1, 2], bucket_counts=[1])
    values = {key: value for key, value, _ in spool.values("histogram")}
    assert values["a"] == {"counts": [1, 2, 1], "edges": [0.0, 1.0, 2.0, 3.0], **numbers}
    assert values["b"] == {"counts": [1, 2, 1], "edges": [0.5, 1.0, 2.0, 3.0], **numbers}


def test_hparams_are_params_and_their_results_metrics(spool: Spooled) -> None:
    writer = SummaryWriter()
    writer.add_hparams({"lr": 0.1, "bn": True}, {"hparam/acc": 0.9}, run_name="r", global_step=3)
    writer.add_hparams({"lr": 0.2}, {}, name="x")  # tensorboardX's name
    assert spool.values("param") == [("lr", 0.1, None), ("bn", True, None), ("x/lr", 0.2, None)]
    assert spool.values("metric") == [("hparam/acc", 0.9, 3)]
    assert spool.values("tag") == [("hparams_run_name", "r", None)]


def test_what_cannot_be_carried_says_so_once_and_is_counted(
    spool: Spooled,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    writer = SummaryWriter(purge_step=3)
    for _ in range(3):
        writer.add_graph(torch.nn.Linear(1, 1))
    writer.add_pr_curve("pr", [1], [0.5])
    writer.file_writer.add_summary(object())
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[1].strip() for line in told] == [
        "SummaryWriter(purge_step)",
        "add_graph",
        "add_pr_curve",
        "add_summary",
    ]
    assert losses(spool) == {
        "unsupported_add_graph": 3,
        "unsupported_add_pr_curve": 1,
        "unsupported_add_summary": 1,
    }


def test_a_writer_that_shall_not_write_checks_and_keeps_nothing(spool: Spooled) -> None:
    with SummaryWriter("runs/x", write_to_disk=False) as writer:
        writer.add_scalar("a", 1, 1)
        writer.add_graph(None)
        writer.add_image("i", IMAGE)
        with pytest.raises(TypeError):
            writer.add_scalar("a", "x")
        writer.flush()
    assert not spool.folder.exists()


@pytest.mark.parametrize(
    ("log_dir", "key"),
    [
        ("runs/exp1", ("default", "exp1")),
        ("exp1", ("default", "exp1")),
        ("runs/mnist/lr0.1/", ("mnist", "lr0.1")),
        ("../logs/exp2", ("default", "exp2")),
        (Path("/data/mnist/a"), ("mnist", "a")),
    ],
)
def test_a_log_dir_names_run_and_experiment(
    spool: Spooled,
    log_dir: Any,
    key: tuple[str, str],
) -> None:
    writer = SummaryWriter(log_dir)
    assert writer.run.key[:2] == key
    assert writer.get_logdir() == writer.file_writer.get_logdir() == os.fspath(log_dir)
    assert SummaryWriter(logdir=log_dir).run.key == writer.run.key


def test_the_launchers_names_come_before_log_dir_and_arguments_before_both(
    spool: Spooled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("experiment", "run", "site"):
        monkeypatch.setenv(f"ZMQTRACK_{name.upper()}", f"env-{name}")
    SummaryWriter("runs/train")
    SummaryWriter("runs/val")
    SummaryWriter("runs/train")
    SummaryWriter("runs/train", experiment="e", run="r", site="s")
    runs = spool.runs()
    assert list(runs) == [
        RunKey("env-experiment", "env-run", "env-site"),
        RunKey("env-experiment", "env-run.val", "env-site"),
        RunKey("e", "r", "s"),
    ]
    tags = [record.value for records in runs.values() for kind, record in records if kind == "tag"]
    assert tags == ["runs/train", "runs/train", "runs/val", "runs/train"]


def test_a_comment_ends_the_name_of_a_run_that_has_none(spool: Spooled) -> None:
    assert SummaryWriter(comment="_lr1").run.key.run.endswith("_lr1")


def test_the_run_ends_as_the_context_did(spool: Spooled) -> None:
    with SummaryWriter("good"):
        pass
    with pytest.raises(KeyError), SummaryWriter("bad"):
        raise KeyError
    ends = {
        run.run: record.value
        for run, records in spool.runs().items()
        for kind, record in records
        if (kind, record.key) == ("run", "end")
    }
    assert ends == {"good": "finished", "bad": "failed"}


@pytest.mark.parametrize("writer_class", [SummaryWriter, MLflowWriter, WandBWriter])
def test_a_run_that_was_lent_is_left_open(spool: Spooled, writer_class: Any) -> None:
    run = zmqtrack.init("e", "r", "s")
    writer = writer_class(zmq_run=run)
    for name in ("close", "end_run", "finish"):
        getattr(writer, name, lambda: None)()
    run.log_metric("after", 1)
    assert [key for key, _, _ in spool.values("metric")] == ["after"]


# --- MLflow -----------------------------------------------------------------------------------


def test_mlflows_functions_log_to_the_active_run(spool: Spooled, mlflow: Any) -> None:
    mlflow.set_experiment("exp")
    with mlflow.start_run(run_name="r", tags={"a": 1}, description="what it is") as run:
        assert (run.info.run_name, run.info.experiment_id) == ("r", "exp")
        assert mlflow.active_run() is run
        assert mlflow.log_param("lr", 0.1) == 0.1
        mlflow.log_params({"layers": [1, 2], "opt": "sgd"})
        mlflow.log_metric("loss", 0.5, step=1, timestamp=1500)
        mlflow.log_metric("loss", np.float32(0.25))
        mlflow.log_metrics({"acc": 1, "f1": 0.5}, step=2, timestamp=2500)
        mlflow.log_metric("async", 1, synchronous=False).wait()
        mlflow.set_tag("b", True)
        mlflow.set_tags({"c": "d"})
        mlflow.log_text("hi", "notes/a.txt")
        mlflow.log_dict({"k": [1, np.float64(2)]}, "conf.yaml")
        mlflow.log_image(IMAGE.transpose(1, 2, 0), "images/a.png")
        mlflow.log_image(IMAGE.transpose(1, 2, 0), key="sample", step=3, timestamp=3500)
        mlflow.log_table({"x": [1, 2], "y": ["a", "b"]}, "table.json")
    assert mlflow.active_run() is None
    assert mlflow.last_active_run() is run
    ((key, records),) = spool.runs().items()
    assert (key.experiment, key.run) == ("exp", "r")
    assert records[-1][1].value == "finished"
    metrics = spool.of("metric")
    assert [(m.key, m.value, m.step) for m in metrics] == [
        ("loss", 0.5, 1),
        ("loss", 0.25, None),
        ("acc", 1.0, 2),
        ("f1", 0.5, 2),
        ("async", 1.0, None),
    ]
    assert [m.time for m in metrics[::2][:2]] == [1.5, 2.5]
    assert spool.values("param") == [
        ("lr", 0.1, None),
        ("layers", [1, 2], None),
        ("opt", "sgd", None),
    ]
    tags = {key: value for key, value, _ in spool.values("tag")}
    assert "table.json" in tags.pop("mlflow.loggedArtifacts")
    assert tags == {"a": "1", "b": "True", "c": "d", "description": "what it is"}
    texts = {key: value for key, value, _ in spool.values("text")}
    assert texts["notes/a.txt"] == "hi"
    assert json.loads(texts["conf.yaml"]) == {"k": [1, 2.0]}
    assert json.loads(texts["table.json"]) == {"columns": ["x", "y"], "data": [[1, "a"], [2, "b"]]}
    images = spool.of("image")
    assert [(i.key, i.step) for i in images] == [("images/a.png", None), ("sample", 3)]
    assert images[1].time == 3.5


def test_nvflares_argument_names_are_taken(spool: Spooled) -> None:
    writer = MLflowWriter()
    writer.log_params(values={"a": 1})
    writer.set_tag("k", tag="v")
    writer.log_text("t", artifact_file_path="p.txt")
    WandBWriter().log(metrics={"m": 1}, step=2)
    assert spool.values("param") == [("a", 1, None)]
    assert spool.values("tag") == [("k", "v", None)]
    assert spool.values("text") == [("p.txt", "t", None)]
    assert spool.values("metric") == [("m", 1.0, 2)]


def test_logging_begins_a_run_where_there_is_none(spool: Spooled, mlflow: Any) -> None:
    mlflow.log_metric("loss", 1.0)
    assert mlflow.active_run() is not None
    mlflow.end_run()
    mlflow.end_run()  # without a run: nothing
    mlflow.log_metric("loss", 2.0)
    assert len(spool.runs()) == 2


def test_only_a_nested_run_begins_within_another(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run(run_name="outer"):
        with pytest.raises(RuntimeError, match="'outer' is already active"):
            mlflow.start_run()
        with mlflow.start_run(run_name="inner", nested=True):
            mlflow.log_metric("in", 1)
        mlflow.log_metric("out", 2)
    runs = {
        key.run: [r.key for kind, r in records if kind == "metric"]
        for key, records in spool.runs().items()
    }
    assert runs == {"outer": ["out"], "inner": ["in"]}
    assert spool.values("tag") == [("parent_run", "outer", None)]


def test_runs_that_mlflow_keeps_apart_are_not_mixed(
    spool: Spooled,
    mlflow: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZMQTRACK_RUN", "job")
    monkeypatch.setenv("ZMQTRACK_SITE", "site-1")
    for name in ("lr1", "lr2", "lr2", None):
        with mlflow.start_run(run_name=name):
            mlflow.log_metric("loss", 1)
    names = [key.run for key in spool.runs()]
    assert names == ["job", "job.lr2", "job.3", "job.2"]


def test_a_run_goes_on_under_its_id(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run() as first:
        pass
    with mlflow.start_run(run_id=first.info.run_id):
        mlflow.log_metric("again", 1)
    mlflow.log_metric("aside", 2, run_id=first.info.run_id)
    assert mlflow.active_run() is None
    assert [key.run for key in spool.runs()] == [first.info.run_id]
    assert [key for key, _, _ in spool.values("metric")] == ["again", "aside"]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_status_of_mlflow_is_a_status_of_the_run(
    spool: Spooled,
    mlflow: Any,
    status: str,
) -> None:
    mlflow.start_run()
    with pytest.raises(mlflow.MlflowException, match=r"'DONE' is unknown; known are .*FINISHED"):
        mlflow.end_run("DONE")
    mlflow.end_run(status)
    assert spool.of("run")[-1].value == status.lower()


def test_files_and_figures_are_artifacts_of_their_names(
    spool: Spooled,
    mlflow: Any,
    tmp_path: Path,
) -> None:
    from matplotlib.figure import Figure

    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 10)
    (folder / "deep" / "b.bin").write_bytes(b"b")
    figure = Figure(figsize=(1, 1), dpi=20)
    mlflow.log_artifact(folder / "a.bin")
    mlflow.log_artifact(folder / "a.bin", "models/")
    mlflow.log_artifact(folder, "all")
    mlflow.log_artifacts(folder, "these")
    mlflow.log_figure(figure, "plots/f.png")
    mlflow.log_figure(figure, "plots/f.svg")
    mlflow.log_text("é" * 3_000_000, "long.txt")
    pieces: dict[str, int] = {}
    for key, (_, total, piece), _ in spool.values("artifact"):
        pieces[key] = pieces.get(key, 0) + len(piece)
        assert pieces[key] <= total
    assert pieces.pop("plots/f.svg") > 100
    assert pieces == {
        "a.bin": 10,
        "models/a.bin": 10,
        "all/out/a.bin": 10,
        "all/out/deep/b.bin": 1,
        "these/a.bin": 10,
        "these/deep/b.bin": 1,
    }
    assert [(t.key, t.value) for t in spool.of("text")] == [("long.txt", "é" * 3_000_000)]
    assert [(i.key, size(i.value)) for i in spool.of("image")] == [("plots/f.png", (20, 20))]


def test_mlflows_image_rules_hold(spool: Spooled, mlflow: Any) -> None:
    with pytest.raises(TypeError, match="cannot be used together"):
        mlflow.log_image(IMAGE[0], "a.png", step=1)
    with pytest.raises(TypeError, match="either artifact_file or key"):
        mlflow.log_image(IMAGE[0])
    mlflow.log_image(mlflow.Image(np.array([[0.0, 50.0, 100.0]])), key="scaled")
    assert pixels(spool.of("image")[0].value).tolist() == [[0, 127, 255]]


def test_what_mlflow_has_beyond_a_run_says_so(
    spool: Spooled,
    mlflow: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    mlflow.set_tracking_uri("http://localhost:5000")
    mlflow.autolog()
    with mlflow.start_run():
        mlflow.log_input(object())
        mlflow.log_metric("m", 1, dataset=object())
    assert [line.split(":")[1].strip() for line in caplog.messages if "zmqtrack:" in line][:4] == [
        "set_tracking_uri",
        "autolog",
        "log_input",
        "dataset",
    ]
    assert losses(spool) == {
        "unsupported_autolog": 1,  # counted with the run that began after it
        "unsupported_log_input": 1,
        "unsupported_dataset": 1,
    }
    with pytest.raises(AttributeError, match="nothing else"):
        _ = mlflow.no_such_thing


# --- W&B --------------------------------------------------------------------------------------


def test_rows_count_their_steps_as_wandb_does(spool: Spooled, wandb: Any) -> None:
    run = wandb.init(project="p")
    wandb.log({"a": 1})
    wandb.log({"a": 2}, commit=False)
    wandb.log({"b": 3})
    wandb.log({"a": 4}, step=10)
    wandb.log({"b": 5}, step=10)
    wandb.log({"c": 6})
    wandb.log({"a": 7}, step=3)
    wandb.log({"a": 8}, step=20, commit=True)
    assert run.step == 21
    wandb.log({"a": 9})
    steps = [(key, int(value), step) for key, value, step in spool.values("metric")]
    assert steps == [
        ("a", 1, 0),
        ("a", 2, 1),
        ("b", 3, 1),
        ("a", 4, 10),
        ("b", 5, 10),
        ("c", 6, 10),
        ("a", 7, 3),
        ("a", 8, 20),
        ("a", 9, 21),
    ]


def test_wandbs_own_run_counts_the_same_steps(tmp_path: Path, spool: Spooled) -> None:
    code = (
        "import wandb\n"
        "run = wandb.init(mode='offline', settings=wandb.Settings(silent=True))\n"
        "steps = []\n"
        "for step, commit in CALLS:\n"
        "    run.log({'a': 1}, step=step, commit=commit)\n"
        "    steps.append(run.step)\n"
        "print(steps)\n"
    )
    calls = [(None, None), (None, False), (None, None), (10, None), (10, None), (None, None)]
    calls += [(3, None), (20, True), (None, True), (25, False), (None, None)]
    environ = {**os.environ, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    theirs = subprocess.run(
        [sys.executable, "-c", code.replace("CALLS", repr(calls))],
        capture_output=True,
        text=True,
        env=environ,
        cwd=tmp_path,
    )
    assert theirs.returncode == 0, theirs.stderr
    run, ours = WandBWriter(), []
    for step, commit in calls:
        run.log({"a": 1}, step=step, commit=commit)
        ours.append(run.step)
    assert ours == json.loads(theirs.stdout.splitlines()[-1])


def test_each_kind_of_value_has_its_place(spool: Spooled, wandb: Any, tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from PIL import Image as PILImage

    (tmp_path / "clip.mp4").write_bytes(b"video")
    wandb.init()
    wandb.log(
        {
            "loss": torch.tensor(0.5),
            "flag": np.bool_(True),
            "note": "text",
            "nested": {"train": {"acc": 1}, "val": 2},
            "image": wandb.Image(IMAGE.transpose(1, 2, 0), caption="black"),
            "images": [wandb.Image(torch.zeros(3, 4, 5)), wandb.Image(np.full((2, 2), 200.0))],
            "figure": Figure(figsize=(1, 1), dpi=20),
            "pil": PILImage.new("L", (2, 3)),
            "hist": wandb.Histogram([1, 2, 3], num_bins=2),
            "ready": wandb.Histogram(np_histogram=np.histogram([1, 2, 3], bins=4)),
            "weights": np.arange(10.0),
            "page": wandb.Html("<b>hi</b>"),
            "table": wandb.Table(columns=["a", "b|c"], data=[[1, "x"], [2, None]]),
            "list": [1, "two", None],
            "clip": wandb.Video(str(tmp_path / "clip.mp4"), caption="c"),
            "sound": wandb.Audio(np.zeros(100), sample_rate=10),
            "nothing": None,
        }
    )
    assert spool.values("metric") == [
        ("loss", 0.5, 0),
        ("flag", 1.0, 0),
        ("nested.train.acc", 1.0, 0),
        ("nested.val", 2.0, 0),
    ]
    texts = {key: value for key, value, step in spool.values("text") if step == 0}
    assert texts == {
        "note": "text",
        "image.caption": "black",
        "page.html": "<b>hi</b>",
        "table.md": "| a | b\\|c |\n| ---: | --- |\n| 1 | x |\n| 2 | None |",
        "list.json": '[1, "two", null]',
        "clip.caption": "c",
    }
    images = {key: size(value) for key, value, _ in spool.values("image")}
    assert images == {
        "image": (5, 4),
        "images.0": (5, 4),
        "images.1": (2, 2),
        "figure": (20, 20),
        "pil": (2, 3),
    }
    counts = {key: value["counts"] for key, value, _ in spool.values("histogram")}
    assert counts["hist"] == [1, 2]
    assert counts["ready"] == [1, 0, 1, 1]
    assert sum(counts["weights"]) == 10
    assert [key for key, _, _ in spool.values("artifact")] == ["clip.mp4"]
    assert losses(spool) == {"unsupported_Audio": 1, "unsupported_None": 1}


def test_a_value_of_no_known_kind_raises_with_key_and_type(spool: Spooled, wandb: Any) -> None:
    wandb.init()
    with pytest.raises(TypeError, match="'thing': object"):
        wandb.log({"thing": object()})
    with pytest.raises(TypeError, match="must be strings"):
        wandb.log({1: "x"})
    with pytest.raises(TypeError, match="dictionary"):
        wandb.log([1])
    with pytest.raises(TypeError, match="'x'"):
        wandb.log({"a": 1}, step="x")


def test_config_is_params_and_summary_is_last_values(spool: Spooled, wandb: Any) -> None:
    run = wandb.init(
        config=argparse.Namespace(lr=0.1, batch=8, secret="x"), config_exclude_keys=["secret"]
    )
    wandb.config.lr = 0.1  # the same: nothing new
    wandb.config["lr"] = 0.2
    wandb.config.update({"opt": {"name": "sgd"}}, allow_val_change=True)
    assert run.config.lr == run.config["lr"] == 0.2
    assert dict(run.config) == {"lr": 0.2, "batch": 8, "opt": {"name": "sgd"}}
    with pytest.raises(AttributeError):
        _ = run.config.missing
    wandb.log({"acc": 0.5})
    assert wandb.summary["acc"] == 0.5
    wandb.summary["acc"] = 0.9
    run.summary.verdict = "good"
    run.summary.update({"best": {"step": 3}})
    assert run.summary.acc == 0.9
    assert spool.values("param") == [
        ("lr", 0.1, None),
        ("batch", 8, None),
        ("lr", 0.2, None),
        ("opt", {"name": "sgd"}, None),
    ]
    assert spool.values("metric") == [
        ("acc", 0.5, 0),
        ("summary/acc", 0.9, None),
        ("summary/best.step", 3.0, None),
    ]
    assert spool.values("tag") == [("summary/verdict", "good", None)]


def test_project_group_and_name_are_experiment_run_and_site(spool: Spooled, wandb: Any) -> None:
    run = wandb.init(
        project="p", group="g", name="n", tags=["x", "y"], notes="why", job_type="train", id="i"
    )
    assert (run.project, run.group, run.name, run.id) == ("p", "g", "n", "i")
    wandb.finish(1)
    assert wandb.run is None
    ((key, records),) = spool.runs().items()
    assert key == RunKey("p", "g", "n")
    assert records[-1][1].value == "failed"
    tags = {key: value for key, value, _ in spool.values("tag")}
    assert tags == {"id": "i", "tags": "x, y", "notes": "why", "job_type": "train"}


def test_the_launchers_names_keep_sites_of_one_script_apart(
    spool: Spooled,
    wandb: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("experiment", "run", "site"):
        monkeypatch.setenv(f"ZMQTRACK_{name.upper()}", f"env-{name}")
    wandb.init(project="p", group="g", name="n")
    wandb.finish()
    wandb.init(project="p", name="second")
    runs = spool.runs()
    assert list(runs) == [
        RunKey("env-experiment", "env-run", "env-site"),
        RunKey("env-experiment", "env-run.second", "env-site"),
    ]
    tags = {key: value for key, value, _ in spool.values("tag")}
    assert tags == {"project": "p", "group": "g", "name": "second"}
    first = {r.key: r.value for kind, r in next(iter(runs.values())) if kind == "tag"}
    assert first == {"project": "p", "group": "g", "name": "n"}


def test_workers_of_a_group_without_names_stay_apart(spool: Spooled, wandb: Any) -> None:
    assert wandb.init(group="g").zmq_run.key.site.endswith(f"-{os.getpid()}")


def test_the_same_id_is_the_same_run(spool: Spooled, wandb: Any) -> None:
    first = wandb.init(project="p", id="abc", name="n")
    first.finish()
    second = wandb.init(project="p", id="abc", name="n", resume="must")
    assert first.zmq_run.key == second.zmq_run.key


@pytest.mark.parametrize("how", ["argument", "settings", "WANDB_MODE", "WANDB_DISABLED"])
def test_a_disabled_run_logs_nothing(
    spool: Spooled,
    wandb: Any,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    options: dict[str, Any] = {}
    if how == "argument":
        options = {"mode": "disabled"}
    elif how == "settings":
        options = {"settings": wandb.Settings(mode="disabled")}
    else:
        monkeypatch.setenv(how, "true" if how == "WANDB_DISABLED" else "disabled")
    with wandb.init(project="p", config={"a": 1}, **options) as run:
        run.log({"a": 1, "i": wandb.Image(IMAGE.transpose(1, 2, 0)), "n": None})
        run.summary["x"] = 1
        assert run.disabled
    assert not spool.folder.exists()


def test_an_active_run_is_returned_unless_a_new_one_is_asked_for(
    spool: Spooled,
    wandb: Any,
) -> None:
    with pytest.raises(wandb.Error, match=r"wandb\.init\(\)"):
        wandb.log({"a": 1})
    with pytest.raises(wandb.Error, match=r"wandb\.config"):
        _ = wandb.config.lr
    first = wandb.init()
    assert wandb.init() is first is wandb.run
    apart = wandb.init(reinit="create_new")
    assert apart is not first
    assert wandb.run is first
    assert wandb.init(reinit=True) is wandb.run is not first
    with pytest.raises(zmqtrack.RunFinished):
        first.log({"a": 1})


def test_artifacts_and_saved_files_are_carried(
    spool: Spooled,
    wandb: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (folder / name).write_text(name)
    run = wandb.init()
    artifact = wandb.Artifact("model", type="model")
    artifact.add_file(folder / "a.txt", name="weights.txt")
    artifact.add_dir(folder, name="all")
    run.log_artifact(artifact).wait()
    run.log_artifact(folder / "a.txt", name="single")
    assert len(run.save(folder / "*.txt", policy="now")) == 1
    run.save(str(folder / "sub" / "*.txt"), base_path=folder)
    assert [key for key, _, _ in spool.values("artifact")] == [
        "model/weights.txt",
        "model/all/a.txt",
        "model/all/sub/b.txt",
        "single",
        "a.txt",
        "sub/b.txt",
    ]


def test_what_wandb_has_beyond_logging_is_accepted(
    spool: Spooled,
    wandb: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    assert wandb.login()
    run = wandb.init(sync_tensorboard=True)
    run.define_metric("val/*", step_metric="epoch")
    run.watch(torch.nn.Linear(1, 1))
    run.alert("title", "text", level=wandb.AlertLevel.WARN)
    assert spool.values("log") == [("alert", "WARN title: text", None)]
    assert losses(spool) == {"unsupported_watch": 1}
    assert "watch" in "".join(caplog.messages)
    with pytest.raises(wandb.UsageError, match=r"wandb\.sweep"):
        wandb.sweep({})


# --- all three --------------------------------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]


#: What a tool has and the writer leaves out on purpose.
DELIBERATE = {
    # torch calls this argument img_tensor in one place and the rest follows it; tensorboardX's
    # `logdir` comes first there and is a keyword here, where torch's `log_dir` is first.
    "tensorboardX.SummaryWriter": {"logdir", "kwargs", "comet_config", "log_dir"},
    "tensorboardX.add_hparams": {"name"},
    "tensorboardX.add_onnx_graph": {"onnx_model_file"},
    "tensorboardX.add_scalar": {"display_name", "summary_description"},
}


def assert_starts_alike(ours: Any, theirs: Any, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    expected = [name for name in parameters(theirs) if name not in without]
    got = [name for name in parameters(ours) if name not in without]
    assert got[: len(expected)] == expected, f"{theirs.__module__}.{theirs.__qualname__}"


def test_the_summary_writer_has_torchs_signatures() -> None:
    from torch.utils.tensorboard import SummaryWriter as TorchWriter

    assert_starts_alike(SummaryWriter, TorchWriter)
    for name, theirs in inspect.getmembers(TorchWriter, inspect.isfunction):
        if not name.startswith("_"):
            assert_starts_alike(getattr(SummaryWriter, name), theirs)


def test_the_summary_writer_has_tensorboardxs_signatures() -> None:
    from tensorboardX import SummaryWriter as XWriter

    without = DELIBERATE["tensorboardX.SummaryWriter"]
    assert_starts_alike(SummaryWriter, XWriter, without)
    for name, theirs in inspect.getmembers(XWriter, inspect.isfunction):
        # The two are tensorboardX's alone: a JSON file of its own, and defaults for steps.
        if name.startswith("_") or name in ("export_scalars_to_json", "use_metadata"):
            continue
        ours = getattr(SummaryWriter, name)
        left_out = DELIBERATE.get(f"tensorboardX.{name}", set())
        expected = [p for p in parameters(theirs) if p not in left_out]
        assert set(expected) <= set(parameters(ours)), name
        common = [p for p in parameters(ours) if p in expected]
        assert common == expected, name


def test_defaults_are_those_of_torchs_writer() -> None:
    from torch.utils.tensorboard import SummaryWriter as TorchWriter

    for name, theirs in inspect.getmembers(TorchWriter, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(SummaryWriter, name)).parameters
        for parameter in inspect.signature(theirs).parameters.values():
            if parameter.default is not parameter.empty:
                assert ours[parameter.name].default == parameter.default, name


def test_mlflows_functions_have_its_signatures() -> None:
    import mlflow

    ours = zmqtrack.writers.mlflow
    public = [name for name, value in vars(ours).items() if inspect.ismethod(value)]
    assert len(public) > 20
    for name in public:
        assert_starts_alike(getattr(ours, name), getattr(mlflow, name))


def test_wandbs_functions_have_its_signatures() -> None:
    import wandb

    ours = zmqtrack.writers.wandb
    assert_starts_alike(WandBWriter, wandb.init)
    for name in ("log", "log_artifact", "save", "define_metric", "watch", "unwatch", "alert"):
        assert_starts_alike(getattr(WandBWriter, name), getattr(wandb.Run, name))
    for name in ("Image", "Histogram", "Html", "Table"):
        assert_starts_alike(getattr(ours, name), getattr(wandb, name))


def test_no_tool_is_imported_by_a_writer() -> None:
    code = (
        "import sys, zmqtrack.writers.tensorboard, zmqtrack.writers.mlflow, "
        "zmqtrack.writers.wandb\n"
        "names = 'numpy torch tensorboard tensorboardX mlflow wandb PIL matplotlib yaml pydantic'\n"
        "print([name for name in names.split() if name in sys.modules])\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr
