"""SummaryWriter does what torch's and tensorboardX's do, as far as a training can tell."""

from __future__ import annotations

import inspect
import io
import json
import logging
import math
import multiprocessing
import re
import socket
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboardX
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from torch.utils.tensorboard import SummaryWriter as TorchWriter
from torch.utils.tensorboard.summary import hparams, scalar, text

import zmqtrack
import zmqtrack.writers.tensorboard as syntax
from harness import Daemon, read_jsonl
from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from zmqtrack.errors import RunFinished
from zmqtrack.writers.tensorboard import FileWriter, GlobalSummaryWriter, SummaryWriter, TorchVis


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def losses(spool: Spooled) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key, count, _ in spool.values("lost"):
        counts[key] += count
    return dict(counts)


# --- its life ------------------------------------------------------------------------------------


def test_a_closed_writer_opens_again_with_the_next_call(spool: Spooled) -> None:
    writer = SummaryWriter("runs/exp")
    writer.add_scalar("fit", 1.0, 0)
    writer.close()
    assert writer.file_writer is None  # as torch has it
    assert writer.all_writers is None
    writer.close()
    writer.flush()
    writer.add_scalar("test", 2.0, 1)
    writer.add_text("note", "again")
    with writer:
        writer.add_scalars("acc", {"a": 3.0}, 2)
    writer.add_histogram("w", [1.0])
    runs = spool.runs()
    assert [key.run for key in runs] == ["exp"]
    assert [(key, value) for key, value, _ in spool.values("run") if key == "end"] == [
        ("end", "finished")
    ] * 3
    assert [key for key, _, _ in spool.values("metric")] == ["fit", "test", "acc/a"]
    assert len(spool.of("text")) == len(spool.of("histogram")) == 1


def test_a_lent_run_that_was_finished_is_not_begun_again(spool: Spooled) -> None:
    run = zmqtrack.init("e", "r", "s")
    writer = SummaryWriter(zmq_run=run)
    writer.close()
    writer.add_scalar("a", 1.0)
    run.finish()
    with pytest.raises(RunFinished):
        writer.add_scalar("a", 1.0)


def test_a_writer_that_shall_not_write_keeps_nothing_after_close_either(spool: Spooled) -> None:
    writer = SummaryWriter("runs/x", write_to_disk=False)
    writer.close()
    writer.add_scalar("a", 1.0)
    writer.close()
    assert not spool.runs()
    assert not Path("runs").exists()


@pytest.mark.parametrize("given", ["runs/exp/version_0", Path("elsewhere")])
def test_the_folder_is_made(spool: Spooled, given: Any) -> None:
    writer = SummaryWriter(given)
    assert Path(writer.log_dir) == Path(given)
    assert Path(writer.get_logdir()).is_dir()
    (Path(writer.log_dir) / "model.pt").write_bytes(b"x")
    SummaryWriter(given)  # it may be there


def test_the_default_folder_is_named_as_torch_names_it(spool: Spooled) -> None:
    theirs = TorchWriter(comment="-lr1")
    theirs.close()
    ours = SummaryWriter(comment="-lr1")
    pattern = rf"runs/[A-Z][a-z]{{2}}\d\d_\d\d-\d\d-\d\d_{re.escape(socket.gethostname())}-lr1"
    assert re.fullmatch(pattern, theirs.log_dir)
    assert re.fullmatch(pattern, ours.log_dir)
    assert Path(ours.log_dir).is_dir()


def test_a_folder_that_cannot_be_made_is_said_once_and_stops_nothing(
    spool: Spooled, caplog: pytest.LogCaptureFixture
) -> None:
    Path("taken").write_text("a file")
    for _ in range(2):
        with SummaryWriter("taken/run") as writer:
            writer.add_scalar("a", 1.0)
    assert len(spool.of("metric")) == 2
    assert len([line for line in said(caplog) if "cannot be made" in line]) == 1


def test_a_folder_in_a_store_of_objects_is_made_nowhere(spool: Spooled) -> None:
    with SummaryWriter("s3://bucket/exp") as writer:
        assert writer.log_dir == "s3://bucket/exp"
    assert not Path("s3:").exists()


def test_a_training_that_goes_on_after_close_is_one_finished_run_in_its_tracker(
    tmp_path: Path, spool: Spooled
) -> None:
    out = tmp_path / "out"
    with Daemon(tmp_path / "d", [{"type": "tensorboard", "options": {"logdir": str(out)}}]) as d:
        writer = SummaryWriter("runs/exp", site="s", address=d.address)
        writer.run.exit_timeout = 60
        for step in range(3):
            writer.add_scalar("loss", step, step)
        writer.close()
        d.drain()
        writer.add_scalar("loss", 9.0, 3)
        writer.run.exit_timeout = 60
        writer.close()
        d.drain()
        (site,) = d.status()["sites"]
        assert (site["run"], site["state"], site["streams"]) == ("exp", "ended", 2)
    events = EventAccumulator(str(out / "default/exp/s")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0), (1, 1), (2, 2), (3, 9)]


# --- charts of several lines, and trials ---------------------------------------------------------


def tensorboard_runs(folder: Path, main: str = ".") -> dict[str, dict[str, list[Any]]]:
    """What TensorBoard shows: run → tag → values; the main run is ``main``."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return {
        run: {
            tag: [(e.step, e.value) for e in multiplexer.Scalars(run, tag)]
            for tag in tags["scalars"]
        }
        for run, tags in multiplexer.Runs().items()
    }


def log_charts(writer: Any) -> None:
    for step in range(3):
        writer.add_scalar("Loss/train", step, step)  # a chart of its own, as well
        writer.add_scalars("Loss", {"train": step / 2, "val": step / 4}, step)
        writer.add_scalars("a/b", {"c": step}, step)
        writer.add_scalars("a", {"b/c": -step}, step)


def test_add_scalars_is_one_chart_with_several_lines_as_torch_writes_it(
    tmp_path: Path, spool: Spooled
) -> None:
    with TorchWriter(tmp_path / "theirs") as theirs:
        log_charts(theirs)
    out = tmp_path / "out"
    with Daemon(
        tmp_path / "d",
        [
            {"type": "tensorboard", "options": {"logdir": str(out)}},
            {"type": "jsonl", "options": {"dir": str(tmp_path / "lines")}},
        ],
    ) as d:
        with SummaryWriter("runs/exp", site="s", address=d.address) as ours:
            log_charts(ours)
            ours.run.exit_timeout = 60
        d.drain()
    expected = tensorboard_runs(tmp_path / "theirs")
    # A slash in a line's name is a folder there; here it is one folder, and so one run.
    expected["a_b%2Fc"] = expected.pop("a_b/c")
    assert tensorboard_runs(out / "default/exp/s") == expected
    lines = read_jsonl(tmp_path / "lines", "default", "exp", "s")
    keys = [line["key"] for line in lines if line["type"] == "metric"]
    assert keys[:5] == ["Loss/train", "Loss/train", "Loss/val", "a/b/c", "a/b/c"]


def log_trials(writer: Any, name: str) -> None:
    for i in range(3):
        writer.add_hparams({"lr": 0.1 * i, "bn": True}, {"hp/acc": i}, **{name: f"t{i}"})


def test_each_add_hparams_after_the_first_is_a_trial_of_its_own(
    tmp_path: Path, spool: Spooled
) -> None:
    out = tmp_path / "out"
    with Daemon(tmp_path / "d", [{"type": "tensorboard", "options": {"logdir": str(out)}}]) as d:
        with SummaryWriter("runs/exp", site="s", address=d.address) as ours:
            log_trials(ours, "run_name")
            ours.run.exit_timeout = 60
        d.drain()
    with TorchWriter(tmp_path / "theirs") as theirs:
        log_trials(theirs, "run_name")
    seen = tensorboard_runs(out / "default/exp/s")
    assert {run: seen[run] for run in ("t1", "t2")} == {
        run: tags
        for run, tags in tensorboard_runs(tmp_path / "theirs").items()
        if run in ("t1", "t2")
    }
    assert seen["."]["hp/acc"] == [(0, 0.0)]


def test_trials_keep_their_params_apart_in_any_tracker(spool: Spooled) -> None:
    with SummaryWriter("runs/exp") as writer:
        log_trials(writer, "name")
        writer.add_hparams({"lr": 9}, {})
    assert [key for key, _, _ in spool.values("param")] == [
        "lr", "bn", "t1/lr", "t1/bn", "t2/lr", "t2/bn", "4/lr",
    ]  # fmt: skip
    assert [key for key, _, _ in spool.values("metric")] == ["hp/acc", "t1/hp/acc", "t2/hp/acc"]


# --- values --------------------------------------------------------------------------------------

TAKEN: dict[str, tuple[Any, float]] = {
    "text": ("1.5", 1.5),
    "bytes": (b"2", 2.0),
    "Decimal": (Decimal("1.5"), 1.5),
    "Fraction": (Fraction(1, 2), 0.5),
    "a list of one": ([1.0], 1.0),
    "lists of one": ([[2.0]], 2.0),
    "a tensor of one": (torch.ones(1, 1), 1.0),
    "bfloat16": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "an array of no axes": (np.array(3.5), 3.5),
    "a bool": (True, 1.0),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_that_one_of_the_real_writers_takes_is_taken(spool: Spooled, name: str) -> None:
    value, expected = TAKEN[name]
    writer = SummaryWriter("runs/x")
    writer.add_scalar("a", value, 1)
    writer.add_scalars("m", {"a": value}, 1)
    writer.add_hparams({}, {"h": value})
    assert [number for _, number, _ in spool.values("metric")] == [expected] * 3


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1.7, 1), ("7", 7), (Decimal("2.5"), 2), (torch.tensor(3.7), 3), (True, 1), (-3, -3)],
)
def test_a_step_is_cut_as_the_real_writers_cut_it(
    spool: Spooled, tmp_path: Path, step: Any, expected: int
) -> None:
    with TorchWriter(tmp_path / "theirs") as theirs:
        theirs.add_scalar("a", 1.0, step)
    (event,) = EventAccumulator(str(tmp_path / "theirs")).Reload().Scalars("a")
    assert event.step == expected
    writer = SummaryWriter("runs/x")
    writer.add_scalar("a", 1.0, step)
    writer.add_scalars("m", {"b": 1.0}, step)
    writer.add_text("t", "text", step)
    writer.add_image("i", np.zeros((3, 2, 2), np.uint8), step)
    writer.add_histogram("h", [1.0], step)
    found = [spool.of(kind)[0].step for kind in ("metric", "text", "image", "histogram")]
    assert found == [expected] * 4


@pytest.mark.parametrize(
    ("tag", "key"), [("", "%"), (None, "%"), (b"loss", "loss"), ("a\nb", "a%0Ab")]
)
def test_a_tag_that_torch_takes_is_taken(spool: Spooled, tag: Any, key: str) -> None:
    writer = SummaryWriter("runs/x")
    writer.add_scalar(tag, 1.0)
    writer.add_text(tag, "text")
    writer.add_image(tag, np.zeros((3, 2, 2), np.uint8))
    writer.add_histogram(tag, [1.0])
    for kind in ("metric", "text", "image", "histogram"):
        assert [record.key for record in spool.of(kind)] == [key]


def test_what_no_real_writer_takes_raises(spool: Spooled) -> None:
    writer = SummaryWriter("runs/x")
    for value in ("abc", None, (1.0,), [1.0, 2.0], {}, 1j, 10**400):
        with pytest.raises(TypeError, match="'a'"):
            writer.add_scalar("a", value)
    with pytest.raises(TypeError):
        writer.add_scalar(5, 1.0)  # type: ignore[arg-type]
    for step in ("7.5", math.nan, [1]):
        with pytest.raises(TypeError, match="step"):
            writer.add_scalar("a", 1.0, step)  # type: ignore[arg-type]
    assert not spool.of("metric")


def test_keyword_arguments_of_nvflares_writers_are_taken_and_said(
    spool: Spooled, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SummaryWriter()
    for step in range(2):
        writer.add_scalar(tag="a", scalar=1.0, global_step=step, path="x", model="y")
        writer.add_scalars(tag="m", scalars={"a": 1.0}, global_step=step, path="x")
        writer.add_text(tag="t", text="hello", global_step=step, path="x")
    assert len(spool.of("metric")) == 4
    assert [value for _, value, _ in spool.values("text")] == ["hello"] * 2
    assert [line for line in said(caplog) if "no effect" in line] == [
        "zmqtrack: add_scalar(path): is taken and has no effect",
        "zmqtrack: add_scalar(model): is taken and has no effect",
        "zmqtrack: add_scalars(path): is taken and has no effect",
        "zmqtrack: add_text(path): is taken and has no effect",
    ]


def decoded(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


IMAGES: dict[str, tuple[Any, str]] = {
    "two channels": (np.arange(40, dtype=np.uint8).reshape(2, 4, 5), "CHW"),
    "a mask of integers": (np.eye(4, dtype=np.int64)[None], "CHW"),
    "integers beyond 255": (np.full((3, 4, 5), 300), "CHW"),
    "integers below 0": (np.full((3, 4, 5), -1), "CHW"),
    "16 bits": (np.full((3, 4, 5), 700, np.uint16), "CHW"),
    "complex": (np.full((3, 4, 5), 0.5 + 1j), "CHW"),
    "objects": (np.full((3, 4, 5), 1, object), "CHW"),
    "bools": (torch.ones(3, 4, 5).bool(), "CHW"),
    "floats out of range": (np.linspace(-1, 2, 60).reshape(3, 4, 5), "CHW"),
    "turned": (np.arange(20, dtype=np.uint8).reshape(4, 5), "WH"),
    "float16": (torch.rand(3, 4, 5).half(), "CHW"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_the_one_that_torch_writes(spool: Spooled, tmp_path: Path, name: str) -> None:
    image, dataformats = IMAGES[name]
    with TorchWriter(tmp_path / "theirs") as theirs:
        theirs.add_image("i", image, dataformats=dataformats)
    (event,) = EventAccumulator(str(tmp_path / "theirs")).Reload().Images("i")
    expected = decoded(event.encoded_image_string)
    SummaryWriter("runs/x").add_image("i", image, dataformats=dataformats)
    ((_, png, _),) = spool.values("image")
    got = decoded(png)
    if got.ndim == 2:  # grey, which torch writes as three equal channels
        got = np.stack([got] * 3, 2)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dataformats", ["CHW", "NCHW"])
def test_a_list_of_images_is_a_grid(spool: Spooled, dataformats: str) -> None:
    writer = SummaryWriter("runs/x")
    writer.add_images("i", [torch.rand(3, 4, 5) for _ in range(9)], 0, dataformats=dataformats)
    ((_, png, _),) = spool.values("image")
    assert decoded(png).shape == (8, 40, 3)


def test_boxes_are_drawn_with_the_arguments_of_either_writer(
    spool: Spooled, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SummaryWriter("runs/x")
    image, boxes = np.zeros((8, 12, 3), np.uint8), torch.tensor([[1, 1, 5, 5], [9, 7, 6, 2]])
    writer.add_image_with_boxes("torch", image, boxes, 0, None, 2, "HWC", ["a", "b"])
    writer.add_image_with_boxes("X", image, boxes, 0, None, "HWC", ["a", "b"])
    writer.add_image_with_boxes("fewer", image, boxes, dataformats="HWC", labels="a")
    shapes = {key: decoded(png).shape for key, png, _ in spool.values("image")}
    assert shapes == {"torch": (16, 24, 3), "X": (8, 12, 3), "fewer": (8, 12, 3)}
    assert len([line for line in said(caplog) if "1 labels for 2 boxes" in line]) == 1


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([torch.ones(3), torch.zeros(3)], "tensorflow"),
        (np.array([1 + 2j]), "auto"),
        (np.arange(5.0), 5000),
        (np.arange(5.0), [0, 1, 1, 2]),
        (np.arange(5.0), torch.tensor([0.0, 1.0, 2.0])),
        (np.arange(5.0), np.linspace(0, 5, 9000)),
        (1.0, "auto"),
        (np.array([math.nan, 1.0]), "tensorflow"),
    ],
)
def test_histograms_that_a_real_writer_takes_are_taken(
    spool: Spooled, values: Any, bins: Any
) -> None:
    SummaryWriter("runs/x").add_histogram("h", values, 1, bins)
    assert len(spool.of("histogram")) == 1


def test_a_raw_histogram_that_cannot_be_carried_is_counted_and_not_raised(spool: Spooled) -> None:
    writer = SummaryWriter("runs/x")
    for limits, counts in (([3, 2, 1], [0, 1, 1]), ([], []), ([1, 2, 3], [0, -1, 1])):
        writer.add_histogram_raw("h", 1, 3, 2, 4, 10, limits, counts, 0)
    assert losses(spool) == {"unsupported_add_histogram_raw": 3}


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [torch.utils.tensorboard, tensorboardX])
def test_each_public_name_of_the_real_modules_is_there(module: Any) -> None:
    for name in ("FileWriter", "RecordWriter", "SummaryWriter", "GlobalSummaryWriter", "TorchVis"):
        assert hasattr(syntax, name) or not hasattr(module, name)


@pytest.mark.parametrize("theirs", [TorchWriter, tensorboardX.SummaryWriter])
def test_a_writer_has_each_attribute_of_the_real_ones(
    spool: Spooled, tmp_path: Path, theirs: Any
) -> None:
    real, ours = theirs(str(tmp_path / "theirs")), SummaryWriter("runs/x")
    real.close()
    names = {name for name in (*vars(real), *dir(real)) if not name.startswith("_")}
    assert names >= {"add_scalar", "default_bins", "all_writers"}
    missing = {name for name in names if not hasattr(ours, name)}
    assert missing <= {"kwargs"}  # of a FileWriter, and none are known
    assert ours.default_bins == real.default_bins


@pytest.mark.parametrize("module", [torch.utils.tensorboard, tensorboardX])
def test_a_file_writer_has_each_method_of_the_real_ones(module: Any) -> None:
    for name, _ in inspect.getmembers(module.FileWriter, inspect.isfunction):
        assert name.startswith("_") or hasattr(FileWriter, name)


def test_scalars_are_exported_to_json_as_tensorboardx_does(spool: Spooled, tmp_path: Path) -> None:
    written = []
    for writer in (tensorboardX.SummaryWriter("runs/x"), SummaryWriter("runs/x")):
        for step in range(2):
            writer.add_scalars("m", {"a": step, "b": 1.0}, step, walltime=5.0)
        writer.export_scalars_to_json(tmp_path / "all.json")
        written.append(json.loads((tmp_path / "all.json").read_text()))
        assert writer.scalar_dict == {}
        writer.close()
    assert written[0] == written[1]


def test_what_is_exported_to_json_has_a_limit_which_is_said(
    spool: Spooled, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syntax, "EXPORTED", 3)
    writer = SummaryWriter("runs/x")
    for step in range(5):
        writer.add_scalars("m", {"a": step}, step)
    writer.export_scalars_to_json("all.json")
    (points,) = json.loads(Path("all.json").read_text()).values()
    assert [step for _, step, _ in points] == [0, 1, 2]
    assert "more than 3 numbers" in "".join(said(caplog))
    assert len(spool.of("metric")) == 5


def test_use_metadata_gives_step_and_time_to_calls_that_have_none(spool: Spooled) -> None:
    writer = SummaryWriter("runs/x")
    with writer.use_metadata(global_step=17, walltime=13.0):
        writer.add_scalar("both", 0.1)
        writer.add_scalar("time", 0.2, global_step=7)
        writer.add_scalar("step", 0.3, walltime=18.0)
        writer.add_scalars("m", {"both": 1})
        writer.add_text("t", "text")
        writer.close()
        writer.add_scalar("reopened", 1)
    with pytest.raises(ZeroDivisionError), writer.use_metadata(global_step=3):
        1 / 0  # noqa: B018
    writer.add_scalar("none", 0.4)
    found = {m.key: (m.step, m.time) for m in (*spool.of("metric"), *spool.of("text"))}
    assert found.pop("none")[0] is None
    assert found == {
        "both": (17, 13.0), "time": (7, 13.0), "step": (17, 18.0), "m/both": (17, 13.0),
        "t": (17, 13.0), "reopened": (17, 13.0),
    }  # fmt: skip


def test_events_that_somebody_made_are_logged(spool: Spooled, tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboardX.summary import hparams as x_hparams
    from tensorboardX.summary import scalar as x_scalar
    from torch.utils.tensorboard.summary import histogram, image, pr_curve

    writer = SummaryWriter("runs/x")
    add = writer._get_file_writer().add_summary
    add(scalar("torch", 1.5), 3, 4.0)
    add(scalar("new", 2.5, new_style=True), 3)
    add(x_scalar("X", 3.5), 3)
    add(text("note", "hello"), 1)
    add(image("i", np.zeros((3, 4, 5), np.uint8), dataformats="CHW"), 1)
    add(histogram("h", np.arange(5.0), [0.0, 2.0, 4.0]), 1)
    for each in (*hparams({"lr": 0.1}, {"a": 1}), *x_hparams({"bs": "x"}, {"a": 1})):
        add(each)
    add(pr_curve("pr", np.array([1, 0]), np.array([0.5, 0.5])), 1)
    writer.file_writer.add_event(Event(summary=scalar("event", 4.5), wall_time=9.0), 8)
    writer.file_writer.add_event(Event(file_version="brain.Event:2"))
    assert [(m.key, m.value, m.step) for m in spool.of("metric")] == [
        ("torch", 1.5, 3), ("new", 2.5, 3), ("X", 3.5, 3), ("event", 4.5, 8),
    ]  # fmt: skip
    assert [m.time for m in spool.of("metric")][::3] == [4.0, 9.0]
    assert spool.values("text") == [("note", "hello", 1)]
    assert len(spool.of("image")) == len(spool.of("histogram")) == 1
    assert spool.values("param") == [("lr", 0.1, None), ("bs", "x", None)]
    assert losses(spool) == {"unsupported_add_summary": 1, "unsupported_add_event": 1}


def test_a_file_writer_may_be_made_by_itself(spool: Spooled) -> None:
    made = FileWriter("runs/mine/one", 5, 60, ".x")
    made.add_summary(scalar("a", 1.0), 2)
    assert made.get_logdir() == "runs/mine/one"
    made.flush()
    made.close()
    made.reopen()
    ((key, _),) = spool.runs().items()
    assert key[:2] == ("mine", "one")
    assert spool.values("metric") == [("a", 1.0, 2)]


def test_a_record_writer_says_where_one_is(spool: Spooled) -> None:
    with pytest.raises(NotImplementedError, match="tensorboardX"):
        syntax.RecordWriter("x.tfrecord")


def test_torch_vis_calls_its_writers(spool: Spooled, caplog: pytest.LogCaptureFixture) -> None:
    vis = TorchVis("tensorboard", "visdom", tensorboard={"log_dir": "runs/vis"})
    vis.add_scalar("a", 1.0, 2)
    vis.unregister("tensorboard", "visdom")
    assert spool.values("metric") == [("a", 1.0, 2)]
    assert len([line for line in said(caplog) if "Visdom" in line]) == 1


def test_a_global_writer_counts_the_steps_of_all_its_processes(spool: Spooled) -> None:
    writer = GlobalSummaryWriter("runs/global")
    writer.add_scalar("a", 0.0)

    def train() -> None:
        for _ in range(5):
            writer.add_scalar("a", 1.0)
        writer.add_text("t", "text")

    children = [multiprocessing.get_context("fork").Process(target=train) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert writer.file_writer.get_logdir() == "runs/global"
    writer.close()
    assert sorted(step or 0 for _, _, step in spool.values("metric")) == list(range(16))
    assert sorted(step or 0 for _, _, step in spool.values("text")) == [0, 1, 2]


def test_the_global_writer_is_made_once(spool: Spooled) -> None:
    assert GlobalSummaryWriter.getSummaryWriter() is GlobalSummaryWriter.getSummaryWriter()


def test_losses_are_said_once(spool: Spooled, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    writer = SummaryWriter("runs/x")
    for _ in range(3):
        writer.add_onnx_graph(onnx_model_file="x")
        writer.add_openvino_graph("x")
    assert losses(spool) == {
        "unsupported_add_onnx_graph": 3,
        "unsupported_add_openvino_graph": 3,
    }
    assert len(said(caplog)) == 2
