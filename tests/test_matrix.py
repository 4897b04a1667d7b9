"""Each syntax × each tracker × each data type, read back with the tracker's own reader.

One daemon with all trackers; each syntax in a process of its own, under a launcher's names. What
must be there is written down by hand, twice over: as the neutral facts that a script logs
(``…_facts``), and as the form in which docs/data-types.md and each adapter's own text say that a
tracker shows them (the functions marked ``@cell``). No adapter's code is asked.
"""

from __future__ import annotations

import getpass
import hashlib
import html
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import psutil
import pytest

from harness import Daemon

pytest.importorskip("mlflow")
pytest.importorskip("wandb")
pytest.importorskip("tensorboard")

from mlflow import MlflowClient
from PIL import Image

from readers import JSONLines, MLflowRun, Seen, TensorBoardRun, WandBRun, number
from zmqtrack.records import VOCABULARY

# The first test of the module waits for the servers, the daemon and all deliveries.
pytestmark = pytest.mark.timeout(600)

SYNTAXES = ("tensorboard", "mlflow", "wandb")
TRACKERS = ("jsonl", "tensorboard", "mlflow-sqlite", "mlflow-server", "wandb")
TYPES = ("run", "metric", "param", "tag", "text", "image", "histogram", "artifact", "log")

#: Cells that cannot be tested, (syntax, tracker, data type): why. There is none: where a syntax
#: has no call for a data type, the neutral Run that its writer stands on has one.
NOT_APPLICABLE: dict[tuple[str, str, str], str] = {}

EXPERIMENT, JOB = "matrix ü", "job 7"
SITES = {"tensorboard": "site-1", "mlflow": "klinik-süd", "wandb": "site 3 (c)"}
#: How each script ends its run.
STATUSES = {"tensorboard": "finished", "mlflow": "killed", "wandb": "failed"}

T = 1_700_000_000.125
#: Many metrics from each site.
MANY = 10_000


# --- the training scripts: each function runs in a process of its own --------------------

Mark = Callable[[str], AbstractContextManager[None]]


def pattern(n: int) -> Any:
    """A picture, rows × columns × colours, unlike those of other numbers."""
    import numpy

    rows, columns = numpy.indices((6, 8))
    return numpy.stack((rows * 40, columns * 30, rows * 0 + n), axis=-1).astype("uint8")


def figure(colour: str) -> Any:
    """A figure of 60 × 40 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(3, 2), dpi=20, facecolor=colour)


def tensorboard_syntax(mark: Mark, files: Path) -> None:
    import math

    from tensorboardX.summary import hparams

    from zmqtrack.writers.tensorboard import SummaryWriter

    at = 1_700_000_000.125
    with mark("start"):
        writer = SummaryWriter("runs/digits/first")
    writer.run.exit_timeout = 60
    for i, step in enumerate([0, 5, 5, 3, None]):
        writer.add_scalar("loss", 2.5 - i, step, at + i)
    for i, value in enumerate([math.nan, math.inf, -math.inf]):
        writer.add_scalar("odd", value, i, walltime=at + i)
    writer.add_scalar("Größe/50% (ü→µ)", 0.1, 2**40, at)
    writer.add_scalars("group", {"a": 1, "b": 2.0}, 9, at)
    with mark("now"):
        writer.add_scalar("now", True, 1)
    net = {"depth": [2, 3], "name": "ü", "drop": None}
    with mark("hparams"):
        params = {"lr": 0.1, "net": net, "50% dropout": True, "clip": math.inf}
        writer.add_hparams(params, {"hparam/acc": 0.5}, run_name="trial-1")
    with mark("hparams again"):
        for summary in hparams({"lr": 0.2}, {}):  # a second call would be another trial's
            writer._get_file_writer().add_summary(summary)
    writer.add_text("notes/read me.md", "# Grüße\n<b>&amp;", walltime=at)
    writer.add_text("said", "one", 1, at)
    writer.add_text("said", "two", 1, at + 1)
    writer.add_text("said", "three", 0, at + 2)
    writer.add_text("diary", "monday", walltime=at)
    writer.add_text("diary", "tuesday", walltime=at + 1)
    writer.add_image("val/digit", pattern(1).transpose(2, 0, 1), 1, at)
    writer.add_image("val/digit", pattern(2).transpose(2, 0, 1), 2, at + 1)
    writer.add_image("val/digit", pattern(3), 1, at + 2, dataformats="HWC")
    writer.add_figure("curve", figure("red"), 1, walltime=at)
    writer.add_figure("curve", figure("blue"), 2, walltime=at + 1)
    writer.add_histogram("weights/layer 1", [0.5, 1.5, 1.5, 3.0], 1, [0, 1, 2, 4], at)
    writer.add_histogram("weights/layer 1", [2.0, 4.0], 0, [0, 1, 2, 4], at + 1)
    # SummaryWriter has no call for these three; the neutral Run has.
    with mark("tags"):
        writer.run.set_tag("team", "blau")
        writer.run.set_tag("team", "rot")
        writer.run.set_tag("50% tag", "ja")
    with mark("artifact"):
        writer.run.log_artifact(files / "model.bin", "models/model.bin", step=3)
    with mark("log"):
        writer.run.log_line("one\ntwo", "stdout")
        writer.run.log_line("oops: ü", "stderr")
        writer.run.log_line("three\n", "stdout")
    with mark("end"):
        writer.close()


def mlflow_syntax(mark: Mark, files: Path) -> None:
    import math

    import zmqtrack.writers.mlflow as mlflow

    ms = 1_700_000_000_125
    mlflow.set_experiment("mine")
    with mark("start"):
        mlflow.start_run(run_name="baseline", tags={"owner": "Zoë"}, description="a trial")
    run = mlflow.active_run().zmq_run
    run.exit_timeout = 60
    for i, step in enumerate([5, 6, 5, 5, -3, None]):
        mlflow.log_metric("loss", 1 / (i + 1), step, timestamp=ms + 1000 * i)
    odd = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    mlflow.log_metrics(odd, step=2, timestamp=ms)
    mlflow.log_metric("Größe/50% (ü→µ)", 0.1, step=2**40, timestamp=ms)
    with mark("now"):
        mlflow.log_metric("now", 3)
    with mark("params"):
        mlflow.log_param("lr", 0.1)
        mlflow.log_params({"net": {"depth": [2, 3], "name": "ü"}, "50% dropout": True, "no": None})
        mlflow.log_param("lr", 0.2)
        mlflow.log_param("prompt", "grüß " * 2000)
    with mark("tags"):
        mlflow.set_tag("team", "blau")
        mlflow.set_tags({"team": "rot", "50% tag": 7})
    with mark("texts"):
        mlflow.log_text("# Grüße\n<b>&amp;", "notes/read me.md")
        mlflow.log_dict({"a": [1, "ü"]}, "conf.json")
        run.log_text("diary", "monday")  # MLflow has no call that appends
        run.log_text("diary", "tuesday")
    mlflow.log_image(pattern(1), key="val/digit", step=1, timestamp=ms)
    mlflow.log_image(pattern(2), key="val/digit", step=2, timestamp=ms + 1000)
    mlflow.log_image(pattern(3), key="val/digit", step=1, timestamp=ms + 2000)
    with mark("images"):
        mlflow.log_image(pattern(4), "plots/50% x.png")
        mlflow.log_figure(figure("red"), "plots/red.png")
        mlflow.log_figure(figure("blue"), "plots/blue.png")
    with mark("artifacts"):
        mlflow.log_artifact(files / "model.bin", "models")
        mlflow.log_artifact(files / "50% of it.txt")
    # MLflow has no call for these two; the neutral Run has.
    run.log_histogram("weights/layer 1", [0.5, 1.5, 1.5, 3.0], 4, ms / 1000, bins=[0, 1, 2, 4])
    run.log_histogram("weights/layer 1", [2.0, 4.0], 3, ms / 1000 + 1, bins=[0, 1, 2, 4])
    with mark("log"):
        run.log_line("one\ntwo", "stdout")
        run.log_line("three\n", "stdout")
    with mark("end"):
        mlflow.end_run("KILLED")


def wandb_syntax(mark: Mark, files: Path) -> None:
    import math

    import zmqtrack.writers.wandb as wandb

    config = {"lr": 0.1, "net": {"depth": [2, 3], "name": "ü"}, "clip": math.inf, "no": None}
    with mark("start"):
        wandb.init(
            project="mine", group="fedavg", name="n1", config=config, tags=["rot", "blau"], notes=""
        )
    run = wandb.run.zmq_run
    run.exit_timeout = 60
    for i, step in enumerate([None, None, 5, 5, 1, None]):
        with mark(f"loss {i}"):
            wandb.log({"loss": 1 / (i + 1), "acc": i}, step=step)
    with mark("odd"):
        wandb.log({"nan": math.nan, "inf": math.inf, "-inf": -math.inf}, step=7)
        wandb.log({"Größe/50% (ü→µ)": 0.1, "outer": {"inner": 1.5}}, step=7)
    with mark("config"):
        wandb.config.update({"lr": 0.2}, allow_val_change=True)
        wandb.config["50% dropout"] = True
    with mark("summary"):
        wandb.summary["best"] = 0.75
        wandb.summary["50% verdict"] = "gut"
        wandb.summary["50% verdict"] = "sehr gut"
    with mark("texts"):
        wandb.log({"said": "# Grüße\n<b>&amp;", "page": wandb.Html("<b>é</b>")}, step=7)
    with mark("text again"):
        wandb.log({"said": "again"}, step=6)
    with mark("image 1"):
        wandb.log({"val/digit": wandb.Image(pattern(1), caption="eins")}, step=1)
    with mark("image 2"):
        wandb.log({"val/digit": wandb.Image(pattern(2)), "curve": figure("red")}, step=2)
    with mark("image 3"):
        pair = [wandb.Image(pattern(4)), wandb.Image(pattern(5))]
        wandb.log({"val/digit": wandb.Image(pattern(3)), "curve": figure("blue"), "pair": pair}, 1)
    with mark("histogram 1"):
        ready = wandb.Histogram(np_histogram=([1, 2, 1], [0, 1, 2, 4]))
        wandb.log({"weights/layer 1": ready}, step=4)
    with mark("histogram 2"):
        wandb.log({"weights/layer 1": wandb.Histogram([2.0, 4.0], num_bins=2)}, step=3)
    with mark("artifact"):
        wandb.log_artifact(files / "model.bin", name="models/model.bin")
    with mark("log"):
        wandb.alert("Achtung", "über 50%")
        # W&B catches what is printed and has no other call for it; the neutral Run has.
        run.log_line("one\ntwo", "stdout")
        run.log_line("three\n", "stdout")
    with mark("end"):
        wandb.finish(exit_code=1)


def many_in_tensorboard_syntax(mark: Mark, files: Path) -> None:
    from zmqtrack.writers.tensorboard import SummaryWriter

    with SummaryWriter() as writer:
        writer.run.exit_timeout = 90
        wait_for_the_others(files)
        with mark("logging"):
            for i in range(10_000):
                writer.add_scalar(f"key-{i % 7}", i / 2, i // 7 % 100, 1_700_000_000 + i / 1000)
                breathe(i)


def many_in_mlflow_syntax(mark: Mark, files: Path) -> None:
    from zmqtrack.writers.mlflow import MLflowWriter

    writer = MLflowWriter()
    writer.start_run().zmq_run.exit_timeout = 90
    wait_for_the_others(files)
    with mark("logging"):
        for i in range(10_000):
            when = 1_700_000_000_000 + i
            writer.log_metric(f"key-{i % 7}", i / 2, i // 7 % 100, timestamp=when)
            breathe(i)
    writer.end_run()


def many_in_wandb_syntax(mark: Mark, files: Path) -> None:
    from zmqtrack.writers.wandb import WandBWriter

    writer = WandBWriter()
    writer.zmq_run.exit_timeout = 90
    wait_for_the_others(files)
    with mark("logging"):
        for i in range(10_000):
            writer.log({f"key-{i % 7}": i / 2}, step=i // 7 % 100)
            breathe(i)
    writer.finish()


def wait_for_the_others(files: Path) -> None:
    print("ready", flush=True)
    while not (files / "go").exists():
        time.sleep(0.001)


def breathe(i: int) -> None:
    """Slow enough for three processes to log at the same time on one core."""
    if i % 100 == 0:
        time.sleep(0.005)


MARKS: dict[str, tuple[float, float]] = {}


@contextmanager
def mark(name: str) -> Iterator[None]:
    """Note the time before and after: what is logged meanwhile has a time between."""
    time.sleep(0.002)  # for MLflow, whose times are in ms, to tell one mark from the next
    before = time.time()
    yield
    MARKS[name] = (before, time.time())


def script(function: Callable[[Mark, Path], None]) -> str:
    """A program that runs one of the functions above: it imports what training code imports."""
    parts = (pattern, figure, wait_for_the_others, breathe, mark, function)
    return "\n".join(
        (
            "from __future__ import annotations",
            "import json, sys, time",
            "from contextlib import contextmanager",
            "from pathlib import Path",
            "MARKS = {}",
            *map(inspect.getsource, parts),
            f"{function.__name__}(mark, Path(sys.argv[1]))",
            "Path(sys.argv[2]).write_text(json.dumps(MARKS))",
        )
    )


# --- what those scripts have logged ------------------------------------------------------


class Between:
    """Equals each number from one to another: a time that the script did not choose."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, float)) and self.first <= other <= self.last

    __hash__ = None  # type: ignore[assignment] # what equals many has no hash

    def __repr__(self) -> str:
        return f"<{self.first!r} to {self.last!r}>"


class Fact(NamedTuple):
    """One thing that a script logged: a record, with a time that may be Between."""

    type: str
    key: str
    value: Any
    step: int | None
    time: Any


class Pixels(NamedTuple):
    """An image as far as it can be compared: all its pixels, as RGB."""

    size: tuple[int, int]
    rgb: bytes

    @classmethod
    def of(cls, data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data)) as image:
            return cls(image.size, image.convert("RGB").tobytes())

    def __repr__(self) -> str:
        return f"<{self.size} {hashlib.sha256(self.rgb).hexdigest()[:8]}>"


def shown(n: int) -> Pixels:
    return Pixels((8, 6), pattern(n).tobytes())


def filled(*colour: int) -> Pixels:
    return Pixels((60, 40), bytes(colour) * 2400)


RED, BLUE = filled(255, 0, 0), filled(0, 0, 255)

#: [0.5, 1.5, 1.5, 3.0] and [2.0, 4.0], counted between 0, 1, 2 and 4.
FIRST_HISTOGRAM = {
    "counts": [1, 2, 1], "edges": [0.0, 1.0, 2.0, 4.0],
    "min": 0.5, "max": 3.0, "num": 4, "sum": 6.5, "sum_squares": 13.75,
}  # fmt: skip
SECOND_HISTOGRAM = {
    "counts": [0, 0, 2], "edges": [0.0, 1.0, 2.0, 4.0],
    "min": 2.0, "max": 4.0, "num": 2, "sum": 6.0, "sum_squares": 20.0,
}  # fmt: skip

ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
LONG = "grüß " * 2000

#: 1.2 MB, which no pattern can restore.
MODEL = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(37_500))
SMALL = "½ of it\r\n".encode()

At = Callable[[str], Between]


def tensorboard_facts(at: At) -> list[Fact]:
    net = {"depth": [2, 3], "name": "ü", "drop": None}
    return [
        *[
            Fact("metric", "loss", 2.5 - i, step, T + i)
            for i, step in enumerate([0, 5, 5, 3, None])
        ],
        *[Fact("metric", "odd", value, i, T + i) for i, value in enumerate(ODD.values())],
        Fact("metric", "Größe/50% (ü→µ)", 0.1, 2**40, T),
        Fact("metric", "group/a", 1.0, 9, T),
        Fact("metric", "group/b", 2.0, 9, T),
        Fact("metric", "now", 1.0, 1, at("now")),
        Fact("metric", "hparam/acc", 0.5, None, at("hparams")),
        Fact("param", "lr", 0.1, None, at("hparams")),
        Fact("param", "net", net, None, at("hparams")),
        Fact("param", "50% dropout", True, None, at("hparams")),
        Fact("param", "clip", math.inf, None, at("hparams")),
        Fact("param", "lr", 0.2, None, at("hparams again")),
        Fact("tag", "log_dir", "runs/digits/first", None, at("start")),
        Fact("tag", "hparams_run_name", "trial-1", None, at("hparams")),
        Fact("tag", "team", "blau", None, at("tags")),
        Fact("tag", "team", "rot", None, at("tags")),
        Fact("tag", "50% tag", "ja", None, at("tags")),
        Fact("text", "notes/read me.md", "# Grüße\n<b>&amp;", None, T),
        Fact("text", "said", "one", 1, T),
        Fact("text", "said", "two", 1, T + 1),
        Fact("text", "said", "three", 0, T + 2),
        Fact("text", "diary", "monday", None, T),
        Fact("text", "diary", "tuesday", None, T + 1),
        Fact("image", "val/digit", shown(1), 1, T),
        Fact("image", "val/digit", shown(2), 2, T + 1),
        Fact("image", "val/digit", shown(3), 1, T + 2),
        Fact("image", "curve", RED, 1, T),
        Fact("image", "curve", BLUE, 2, T + 1),
        Fact("histogram", "weights/layer 1", FIRST_HISTOGRAM, 1, T),
        Fact("histogram", "weights/layer 1", SECOND_HISTOGRAM, 0, T + 1),
        Fact("artifact", "models/model.bin", MODEL, 3, at("artifact")),
        Fact("log", "stdout", "one\ntwo", None, at("log")),
        Fact("log", "stderr", "oops: ü", None, at("log")),
        Fact("log", "stdout", "three\n", None, at("log")),
    ]


def mlflow_facts(at: At) -> list[Fact]:
    net = {"depth": [2, 3], "name": "ü"}
    return [
        *[
            Fact("metric", "loss", 1 / (i + 1), step, T + i)
            for i, step in enumerate([5, 6, 5, 5, -3, None])
        ],
        *[Fact("metric", key, value, 2, T) for key, value in ODD.items()],
        Fact("metric", "Größe/50% (ü→µ)", 0.1, 2**40, T),
        Fact("metric", "now", 3.0, None, at("now")),
        Fact("param", "lr", 0.1, None, at("params")),
        Fact("param", "net", net, None, at("params")),
        Fact("param", "50% dropout", True, None, at("params")),
        Fact("param", "no", None, None, at("params")),
        Fact("param", "lr", 0.2, None, at("params")),
        Fact("param", "prompt", LONG, None, at("params")),
        Fact("tag", "experiment_name", "mine", None, at("start")),
        Fact("tag", "run_name", "baseline", None, at("start")),
        Fact("tag", "description", "a trial", None, at("start")),
        Fact("tag", "owner", "Zoë", None, at("start")),
        Fact("tag", "team", "blau", None, at("tags")),
        Fact("tag", "team", "rot", None, at("tags")),
        Fact("tag", "50% tag", "7", None, at("tags")),
        Fact("text", "notes/read me.md", "# Grüße\n<b>&amp;", None, at("texts")),
        Fact("text", "conf.json", '{\n  "a": [\n    1,\n    "ü"\n  ]\n}', None, at("texts")),
        Fact("text", "diary", "monday", None, at("texts")),
        Fact("text", "diary", "tuesday", None, at("texts")),
        Fact("image", "val/digit", shown(1), 1, T),
        Fact("image", "val/digit", shown(2), 2, T + 1),
        Fact("image", "val/digit", shown(3), 1, T + 2),
        Fact("image", "plots/50% x.png", shown(4), None, at("images")),
        Fact("image", "plots/red.png", RED, None, at("images")),
        Fact("image", "plots/blue.png", BLUE, None, at("images")),
        Fact("histogram", "weights/layer 1", FIRST_HISTOGRAM, 4, T),
        Fact("histogram", "weights/layer 1", SECOND_HISTOGRAM, 3, T + 1),
        Fact("artifact", "models/model.bin", MODEL, None, at("artifacts")),
        Fact("artifact", "50% of it.txt", SMALL, None, at("artifacts")),
        Fact("log", "stdout", "one\ntwo", None, at("log")),
        Fact("log", "stdout", "three\n", None, at("log")),
    ]


def wandb_facts(at: At) -> list[Fact]:
    net = {"depth": [2, 3], "name": "ü"}
    # Two rows count 0 and 1; 5 twice leave the row open; 1 goes back; the last goes on at 5.
    steps = [0, 1, 5, 5, 1, 5]
    ready = {
        "counts": [1, 2, 1], "edges": [0.0, 1.0, 2.0, 4.0],
        # From the outer edges and the middles of the bins.
        "min": 0.0, "max": 4.0, "num": 4, "sum": 6.5, "sum_squares": 13.75,
    }  # fmt: skip
    counted = {
        "counts": [1, 1], "edges": [2.0, 3.0, 4.0],
        "min": 2.0, "max": 4.0, "num": 2, "sum": 6.0, "sum_squares": 20.0,
    }  # fmt: skip
    return [
        *[
            # A row has one time: what is added to the open one has that of its first call.
            Fact("metric", key, value, step, at(f"loss {2 if i == 3 else i}"))
            for i, step in enumerate(steps)
            for key, value in (("loss", 1 / (i + 1)), ("acc", float(i)))
        ],
        *[Fact("metric", key, value, 7, at("odd")) for key, value in ODD.items()],
        Fact("metric", "Größe/50% (ü→µ)", 0.1, 7, at("odd")),
        Fact("metric", "outer.inner", 1.5, 7, at("odd")),
        Fact("metric", "summary/best", 0.75, None, at("summary")),
        Fact("param", "lr", 0.1, None, at("start")),
        Fact("param", "net", net, None, at("start")),
        Fact("param", "clip", math.inf, None, at("start")),
        Fact("param", "no", None, None, at("start")),
        Fact("param", "lr", 0.2, None, at("config")),
        Fact("param", "50% dropout", True, None, at("config")),
        Fact("tag", "project", "mine", None, at("start")),
        Fact("tag", "group", "fedavg", None, at("start")),
        Fact("tag", "name", "n1", None, at("start")),
        Fact("tag", "tags", "rot, blau", None, at("start")),
        Fact("tag", "summary/50% verdict", "gut", None, at("summary")),
        Fact("tag", "summary/50% verdict", "sehr gut", None, at("summary")),
        Fact("text", "said", "# Grüße\n<b>&amp;", 7, at("odd")),
        Fact("text", "page.html", "<b>é</b>", 7, at("odd")),
        Fact("text", "said", "again", 6, at("text again")),
        Fact("text", "val/digit.caption", "eins", 1, at("image 1")),
        Fact("image", "val/digit", shown(1), 1, at("image 1")),
        Fact("image", "val/digit", shown(2), 2, at("image 2")),
        Fact("image", "curve", RED, 2, at("image 2")),
        Fact("image", "val/digit", shown(3), 1, at("image 3")),
        Fact("image", "curve", BLUE, 1, at("image 3")),
        Fact("image", "pair.0", shown(4), 1, at("image 3")),
        Fact("image", "pair.1", shown(5), 1, at("image 3")),
        Fact("histogram", "weights/layer 1", ready, 4, at("histogram 1")),
        Fact("histogram", "weights/layer 1", counted, 3, at("histogram 2")),
        Fact("artifact", "models/model.bin", MODEL, None, at("artifact")),
        Fact("log", "alert", "INFO Achtung: über 50%", None, at("log")),
        Fact("log", "stdout", "one\ntwo", None, at("log")),
        Fact("log", "stdout", "three\n", None, at("log")),
    ]


FACTS = {"tensorboard": tensorboard_facts, "mlflow": mlflow_facts, "wandb": wandb_facts}
SCRIPTS = {"tensorboard": tensorboard_syntax, "mlflow": mlflow_syntax, "wandb": wandb_syntax}


@dataclass
class Site:
    """One script's process, where its records belong, and what it has logged."""

    experiment: str
    job: str
    name: str
    syntax: str
    pid: int
    marks: Mapping[str, tuple[float, float]]
    #: How the job as a whole has ended: as the worst of its sites.
    job_status: str
    status: str

    def facts(self, data_type: str) -> list[Fact]:
        start, end = self.at("start"), self.at("end")
        about = {
            "host": socket.gethostname(),
            "pid": self.pid,
            "python": platform.python_version(),
            "user": getpass.getuser(),
            "script": "-c",
            "source": "LOCAL",
        }
        everything = [
            Fact("run", "start", about, None, start),
            *FACTS[self.syntax](self.at),
            Fact("run", "end", self.status, None, end),
        ]
        return [fact for fact in everything if fact.type == data_type]

    def at(self, name: str) -> Between:
        return Between(*self.marks[name])


# --- how each tracker shows a fact -------------------------------------------------------

Cell = Callable[[Any, Site, list[Fact]], None]
CELLS: dict[tuple[str, str], Cell] = {}


def cell(tracker: str, *types: str) -> Callable[[Cell], Cell]:
    """The function checks what this tracker has of these data types."""

    def register(function: Cell) -> Cell:
        for data_type in types:
            assert CELLS.setdefault((tracker, data_type), function) is function
        return function

    return register


def by_key(facts: list[Any]) -> dict[str, list[Any]]:
    keys: dict[str, list[Any]] = {}
    for fact in facts:
        keys.setdefault(fact.key, []).append(fact)
    return keys


def text_of(value: Any) -> str:
    """A value as people read it where there is only text: JSON, but a string as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def starting(found: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key.startswith(prefixes)}


# JSON lines: one line for each record, in order; what JSON lacks has a form of its own.

JSON_ODD = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@cell("jsonl", "run", "tag", "text", "histogram", "log")
def as_a_line(seen: JSONLines, site: Site, facts: list[Fact]) -> None:
    assert seen.of(facts[0].type) == [Seen(*fact[1:]) for fact in facts]
    streams = {line["stream"] for line in seen.lines}
    assert len(streams) == 1
    assert re.fullmatch("[0-9a-f]{32}", streams.pop())
    seqs = [line["seq"] for line in seen.lines]
    assert (seqs[0], seqs) == (1, sorted(seqs))


@cell("jsonl", "metric")
def as_a_number_in_a_line(seen: JSONLines, site: Site, facts: list[Fact]) -> None:
    assert seen.of("metric") == [
        Seen(f.key, JSON_ODD.get(str(f.value), f.value), f.step, f.time) for f in facts
    ]


@cell("jsonl", "param")
def as_a_value_in_a_line(seen: JSONLines, site: Site, facts: list[Fact]) -> None:
    assert seen.of("param") == [
        Seen(f.key, {"$float": "Infinity"} if f.value == math.inf else f.value, f.step, f.time)
        for f in facts
    ]


@cell("jsonl", "image", "artifact")
def as_a_file_beside_the_line(seen: JSONLines, site: Site, facts: list[Fact]) -> None:
    found = []
    for line in seen.of(facts[0].type):
        assert line.value["file"].startswith(f"{SAFE_NAMES.get(site.name, site.name)}.files/")
        content = (seen.folder / line.value["file"]).read_bytes()
        assert line.value["size"] == len(content)
        assert line.value["sha256"] == hashlib.sha256(content).hexdigest()
        value = Pixels.of(content) if facts[0].type == "image" else content
        found.append(line._replace(value=value))
    assert found == [Seen(*fact[1:]) for fact in facts]


#: A site's name as that of a file: what is not ASCII is written as in a URL.
SAFE_NAMES = {"klinik-süd": "klinik-s%C3%BCd"}


# TensorBoard: no step is 0; scalars have 32 bits; words are texts named TYPE/KEY.


@cell("tensorboard", "metric")
def as_a_scalar(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    assert seen.scalars == by_key(
        [Seen(f.key, number(numpy.float32(f.value)), f.step or 0, f.time) for f in facts]
    )


@cell("tensorboard", "run")
def as_texts_and_the_end_of_a_session(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    as_texts_of_the_type(seen, site, facts)
    assert seen.session_end.end_time_secs == facts[-1].time
    success, failure = 1, 2  # of TensorBoard's hparams plugin
    assert seen.session_end.status == (success if site.status == "finished" else failure)


@cell("tensorboard", "param")
def as_texts_and_hparams(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    as_texts_of_the_type(seen, site, facts)
    assert seen.hparams == {
        # Its numbers and bools are such; all else is a string, of 1000 characters at most.
        f.key: f.value
        if isinstance(f.value, (bool, float)) and f.value != math.inf
        else text_of(f.value)[:1000]
        for f in facts
    }


@cell("tensorboard", "tag")
def as_texts_of_the_type(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    prefix = f"{facts[0].type}/"
    assert starting(seen.texts, prefix) == by_key(
        [Seen(prefix + f.key, text_of(f.value), f.step or 0, f.time) for f in facts]
    )


@cell("tensorboard", "text")
def as_a_text(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    others = starting(seen.texts, "run/", "param/", "tag/", "artifact/", "log/")
    assert {tag: texts for tag, texts in seen.texts.items() if tag not in others} == by_key(
        [Seen(f"{f.key}/text_summary", f.value, f.step or 0, f.time) for f in facts]
    )


@cell("tensorboard", "log")
def as_a_text_whose_lines_stay_apart(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    lines = [f._replace(value="    " + f.value.replace("\nt", "\n    t")) for f in facts]
    as_texts_of_the_type(seen, site, lines)


@cell("tensorboard", "artifact")
def as_a_text_that_names_it(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    named = [f._replace(value=f"{f.key}, {len(f.value)} bytes") for f in facts]
    as_texts_of_the_type(seen, site, named)


@cell("tensorboard", "image")
def as_an_image(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    found = {
        tag: [image._replace(value=Pixels.of(image.value)) for image in images]
        for tag, images in seen.images.items()
    }
    assert found == by_key([Seen(f.key, f.value, f.step or 0, f.time) for f in facts])


@cell("tensorboard", "histogram")
def as_a_histogram(seen: TensorBoardRun, site: Site, facts: list[Fact]) -> None:
    found = {
        tag: [
            each._replace(
                value={
                    "counts": list(each.value.bucket),
                    "right edges": list(each.value.bucket_limit),
                    "min": each.value.min,
                    "max": each.value.max,
                    "num": each.value.num,
                    "sum": each.value.sum,
                    "sum_squares": each.value.sum_squares,
                }
            )
            for each in histograms
        ]
        for tag, histograms in seen.histograms.items()
    }
    expected = []
    for f in facts:
        value = {key: part for key, part in f.value.items() if key != "edges"}
        value["right edges"] = f.value["edges"][1:]
        expected.append(Seen(f.key, value, f.step or 0, f.time))
    assert found == by_key(expected)


# MLflow: no step is 0; time in ms; what is forbidden in a name is _xHEX_, as in XML.

MLFLOW_NAMES = {
    "Größe/50% (ü→µ)": "Größe/50_x0025_ _x0028_ü_x2192_µ_x0029_",
    "50% dropout": "50_x0025_ dropout",
    "50% tag": "50_x0025_ tag",
    "summary/50% verdict": "summary/50_x0025_ verdict",
    "50% of it.txt": "50_x0025_ of it.txt",
    "plots/50% x.png": "plots/50_x0025_ x.png",
}
MLFLOW_STATUSES = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def mlflow_name(key: str) -> str:
    return MLFLOW_NAMES.get(key, key)


def ms(when: float | Between) -> Any:
    if isinstance(when, Between):
        return Between(math.floor(when.first * 1000), math.ceil(when.last * 1000))
    return round(when * 1000)


#: Facts for which MLflow has tags of its own.
MLFLOW_FACTS = {
    "user": "mlflow.user",
    "script": "mlflow.source.name",
    "source": "mlflow.source.type",
}


@cell("mlflow", "run")
def as_a_run_of_the_jobs_name_or_below_one(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    start, end = facts
    info, tags = seen.run.info, seen.run.data.tags
    assert seen.experiment.name == site.experiment
    name = site.job if seen.parent is None else f"{site.job}/{site.name}"
    assert (info.run_name, info.status) == (name, MLFLOW_STATUSES[site.status])
    assert (info.start_time, info.end_time) == (ms(start.time), ms(end.time))
    assert (tags["zmqtrack.run"], tags["zmqtrack.site"]) == (site.job, site.name)
    for key, value in start.value.items():
        assert tags[MLFLOW_FACTS.get(key, f"zmqtrack.{key}")] == str(value)
    assert tags.get("mlflow.parentRunId") == (seen.parent and seen.parent.info.run_id)
    if seen.parent is None:
        return
    assert seen.parent.info.run_name == site.job
    assert seen.parent.info.status == MLFLOW_STATUSES[site.job_status]


@cell("mlflow", "metric")
def as_points(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    largest = {math.inf: sys.float_info.max, -math.inf: -sys.float_info.max}
    histories = seen.histories()
    expected = by_key(
        [
            Seen(mlflow_name(f.key), number(largest.get(f.value, f.value)), f.step or 0, ms(f.time))
            for f in facts
        ]
    )
    if site.syntax == "wandb":  # two points of one row have one time, and no order in MLflow
        histories, expected = (
            {key: sorted(points, key=lambda p: str(p.value)) for key, points in found.items()}
            for found in (histories, expected)
        )
    assert histories == expected


@cell("mlflow", "param")
def as_a_param_and_its_changes_as_tags(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    params = {}
    for key, (first, *changes) in by_key(facts).items():
        params[mlflow_name(key)] = str(first.value)
        for n, change in enumerate(changes, 2):
            assert seen.run.data.tags[f"param.{key}.{n}"] == str(change.value)
    found = dict(seen.run.data.params)
    files = starting(seen.files, "params/")
    if "prompt" in params:  # longer than MLflow takes
        whole, short = params.pop("prompt"), found.pop("prompt")
        assert len(short) == 6000
        assert short.startswith(LONG[:5000])
        assert files == {"params/prompt.txt": whole.encode()}
    else:
        assert files == {}
    assert found == params


@cell("mlflow", "tag")
def as_a_tag(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    ours = starting(seen.run.data.tags, "zmqtrack.", "mlflow.", "param.")
    tags = {key: value for key, value in seen.run.data.tags.items() if key not in ours}
    assert tags == {mlflow_name(f.key): f.value for f in facts}  # the last value


@cell("mlflow", "text")
def as_an_artifact_at_its_path(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    paths: dict[str, list[str]] = {}
    steps: list[tuple[Any, ...]] = []
    for f in facts:
        if f.step is not None:
            suffix = ".html" if f.key.endswith(".html") else ".txt"
            steps.append((f.key, f.step, suffix, ms(f.time), f.value))
        else:
            path = f.key if "." in f.key else f"text/{f.key}.txt"
            paths.setdefault(path, []).append(f.value)  # to which more of it is appended
    found = dict(seen.files)
    assert {path: found.pop(path).decode() for path in paths} == {
        path: "\n".join(texts) for path, texts in paths.items()
    }
    left = []
    for path, content in starting(found, "text/").items():
        parts = re.fullmatch(r"text/(.+)/(-?\d+)-(\d+)-[0-9a-f]{8}(\.[a-z]+)", path)
        assert parts, path
        key, step, when, suffix = parts.groups()
        left.append((key, int(step), suffix, int(when), content.decode()))
    # In each key by time: that is the order in which they were logged.
    left.sort(key=lambda text: (text[0], text[3]))
    steps.sort(key=lambda text: text[0])
    assert left == steps


@cell("mlflow", "image")
def as_log_image_names_it(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    expected = {mlflow_name(f.key): f.value for f in facts if f.step is None}
    assert {path: Pixels.of(seen.files[path]) for path in expected} == expected
    found = []
    small = set()
    for path, content in starting(seen.files, "images/").items():
        parts = re.fullmatch(
            r"images/(.+)\+step\+(-?\d+)\+timestamp\+(\d+)\+[0-9a-f-]{36}(\+compressed\.webp|\.png)",
            path,
        )
        assert parts, path
        key, step, when, suffix = parts.groups()
        if suffix == ".png":
            found.append(Seen(key.replace("~", "/"), Pixels.of(content), int(step), int(when)))
        else:
            small.add(path.removesuffix(suffix) + ".png")
    assert small == set(starting(seen.files, "images/")) - {
        path for path in seen.files if path.endswith(".webp")
    }
    found.sort(key=lambda image: image.time)
    assert by_key(found) == by_key(
        [Seen(f.key, f.value, f.step, ms(f.time)) for f in facts if f.step is not None]
    )
    assert seen.run.data.tags["mlflow.loggedImages"] == "True"


@cell("mlflow", "histogram")
def as_an_artifact_of_json(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    found = []
    for path, content in starting(seen.files, "histograms/").items():
        value = json.loads(content)
        parts = re.fullmatch(r"histograms/(.+)/(-?\d+)-(\d+)-[0-9a-f]{8}\.json", path)
        assert parts, path
        assert parts.groups() == (value["key"], str(value["step"]), str(ms(value["time"])))
        found.append(Seen(value.pop("key"), value, value.pop("step"), value.pop("time")))
    found.sort(key=lambda histogram: histogram.time)
    assert found == [Seen(*fact[1:]) for fact in facts]


@cell("mlflow", "artifact")
def as_an_artifact(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    kinds = ("text/", "images/", "histograms/", "logs/", "params/")
    elsewhere = [
        mlflow_name(f.key)
        for data_type in ("text", "image")
        for f in site.facts(data_type)
        if f.step is None
    ]
    found = {
        path: content
        for path, content in seen.files.items()
        if not path.startswith(kinds) and path not in elsewhere
    }
    assert found == {mlflow_name(f.key): f.value for f in facts}


@cell("mlflow", "log")
def as_an_artifact_that_grows(seen: MLflowRun, site: Site, facts: list[Fact]) -> None:
    files: dict[str, str] = {}
    for f in facts:
        path = f"logs/{f.key}.txt"
        before = files.get(path, "")
        files[path] = before + ("\n" if before and before[-1] != "\n" else "") + f.value
    assert starting(seen.files, "logs/") == {path: text.encode() for path, text in files.items()}


# W&B: rows in W&B's own order; the writer's step and time stand in columns.


def wandb_rows(seen: WandBRun, form: str) -> list[list[Seen]]:
    """Of each row the columns that hold a certain form of W&B's values."""

    def read(column: Seen) -> tuple[str, Seen]:
        value = column.value
        if isinstance(value, dict):
            bins = {"counts": value["values"], "edges": value["bins"]}
            return value["_type"], column._replace(value=bins)
        if isinstance(value, tuple):
            return value[0], column._replace(value=value[1])
        if isinstance(value, str) and column in seen.strings():
            return "string", column
        return "number", column._replace(value=number(value))

    return [
        [column for kind, column in map(read, columns) if kind == form] for columns in seen.rows()
    ]


def wandb_columns(seen: WandBRun, form: str) -> list[Seen]:
    return [column for row in wandb_rows(seen, form) for column in row]


@cell("wandb", "run")
def as_a_run_of_the_group(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    start, end = facts
    assert (seen.about.project, seen.about.run_group) == (site.experiment, site.job)
    assert seen.about.display_name == site.name
    names = {"experiment": site.experiment, "run": site.job, "site": site.name}
    assert seen.config["zmqtrack"] == {**names, "start": start.value}
    ((row, between),) = seen.noted("zmqtrack/end")
    assert (row.value, row.step, row.time) == (end.value, end.step, end.time)
    (code,) = [record.exit.exit_code for record in between if record.HasField("exit")]
    assert (code == 0) is (site.status == "finished")


@cell("wandb", "metric")
def as_a_column_of_a_row(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    left = [Seen(f.key, number(f.value), f.step, f.time) for f in facts]
    # Metrics of one step and time may share a row, which has no order in itself.
    for row in wandb_rows(seen, "number"):
        assert by_key(row) == by_key(left[: len(row)])
        left = left[len(row) :]
    assert left == []


@cell("wandb", "param")
def as_config(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    ours = starting(seen.config, "tag.", "zmqtrack", "_")
    found = {key: value for key, value in seen.config.items() if key not in ours}
    assert found == {f.key: "Infinity" if f.value == math.inf else f.value for f in facts}


@cell("wandb", "tag")
def as_config_named_tag(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    assert starting(seen.config, "tag.") == {f"tag.{f.key}": f.value for f in facts}


@cell("wandb", "text")
def as_html(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    found = [text._replace(value=text.value.decode()) for text in wandb_columns(seen, "html-file")]
    expected = []
    if site.syntax == "wandb":  # logged in rows: plain strings, and captions within their images
        strings = [f for f in facts if not f.key.endswith(".html")]
        assert seen.strings() == [Seen(*fact[1:]) for fact in strings]
        facts = [f for f in facts if f not in strings]
    for f in facts:
        escaped = f"<pre>{html.escape(f.value, quote=False)}</pre>"
        value = f.value if f.key.endswith(".html") else escaped
        key = f.key.removesuffix(".html") if site.syntax == "wandb" else f.key
        expected.append(Seen(key, value, f.step, f.time))
    assert found == expected


@cell("wandb", "image")
def as_wandb_image(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    found = [i._replace(value=Pixels.of(i.value)) for i in wandb_columns(seen, "image-file")]
    # Images of one row have no order among each other.
    assert by_key(found) == by_key([Seen(*fact[1:]) for fact in facts])


@cell("wandb", "histogram")
def as_wandb_histogram(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    assert wandb_columns(seen, "histogram") == [
        Seen(f.key, {key: f.value[key] for key in ("counts", "edges")}, f.step, f.time)
        for f in facts
    ]


@cell("wandb", "artifact")
def as_wandb_artifact(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    found = []
    for row, between in seen.noted("zmqtrack/artifact"):
        (artifact,) = [record.artifact for record in between if record.HasField("artifact")]
        (entry,) = artifact.manifest.contents
        found.append(row._replace(value=Path(entry.local_path).read_bytes()))
        about = json.loads(artifact.metadata)
        assert (about["key"], about["step"], about["time"]) == (row.value, row.step, row.time)
        names = (about["experiment"], about["run"], about["site"])
        assert names == (site.experiment, site.job, site.name)
    expected = [Seen("zmqtrack/artifact", f.value, f.step, f.time) for f in facts]
    assert found == expected
    assert [row.value for row, _ in seen.noted("zmqtrack/artifact")] == [f.key for f in facts]


@cell("wandb", "log")
def as_the_logs_tab(seen: WandBRun, site: Site, facts: list[Fact]) -> None:
    found = []
    for row, between in seen.noted("zmqtrack/log"):
        lines = [r.output_logger.line for r in between if r.HasField("output_logger")]
        found.append(Seen(row.value, "".join(lines).rstrip("\n"), row.step, row.time))
    assert found == [Seen(f.key, f.value.rstrip("\n"), f.step, f.time) for f in facts]


# --- one daemon, all trackers ------------------------------------------------------------


@dataclass
class Delivered:
    """What all trackers were given, and how to read it there."""

    folder: Path
    uris: dict[str, str]
    sites: dict[str, Site] = field(default_factory=dict)
    many: dict[str, Site] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    dead_letters: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    left_behind: list[psutil.Process] = field(default_factory=list)

    @cache  # noqa: B019 -- there is one of these, as long as the module is tested
    def read(self, tracker: str, experiment: str, job: str, site: str) -> Any:
        names = (experiment, job, site)
        if tracker == "jsonl":
            return JSONLines(self.folder / "jsonl", *names)
        if tracker == "tensorboard":
            return TensorBoardRun(self.folder / "tensorboard", *names)
        if tracker == "wandb":
            return WandBRun(self.folder / "wandb", *names)
        download = self.folder / "downloads" / tracker / str(hash(names))
        return MLflowRun(self.uris[tracker], *names, download)

    __hash__ = object.__hash__


def clean_environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's own settings, and nothing of wandb's in the real home."""
    foreign = ("ZMQTRACK_", "WANDB_", "MLFLOW_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    (folder / "tmp").mkdir(exist_ok=True)
    environment |= {f"WANDB_{k}_DIR": str(folder / "home" / k) for k in ("CACHE", "CONFIG", "DATA")}
    return environment | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "NETRC": str(folder / "home" / "netrc"),
        "ZMQTRACK_SPOOL_DIR": str(folder / "spool"),
        "MPLBACKEND": "Agg",
    }


@contextmanager
def launched(
    function: Callable[[Mark, Path], None],
    folder: Path,
    address: str,
    experiment: str,
    job: str,
    site: str,
) -> Iterator[subprocess.Popen[str]]:
    """A site's process, with the names that a federation's launcher gives it."""
    environment = clean_environment(folder) | {
        "ZMQTRACK_ADDRESS": address,
        "ZMQTRACK_EXPERIMENT": experiment,
        "ZMQTRACK_RUN": job,
        "ZMQTRACK_SITE": site,
    }
    marks = folder / f"{function.__name__}.json"
    process = subprocess.Popen(
        [sys.executable, "-c", script(function), str(folder), str(marks)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_sites(
    functions: Mapping[str, Callable[[Mark, Path], None]],
    folder: Path,
    address: str,
    experiment: str,
    job: str,
    *,
    together: bool = False,
) -> dict[str, Site]:
    """Run the scripts side by side to their end, and say what they were."""
    with ExitStack() as stack:
        processes = {
            syntax: stack.enter_context(
                launched(function, folder, address, experiment, job, SITES[syntax])
            )
            for syntax, function in functions.items()
        }
        if together:
            for process in processes.values():
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            (folder / "go").touch()
        codes = {syntax: process.wait(120) for syntax, process in processes.items()}
        assert codes == dict.fromkeys(functions, 0)
        statuses = [STATUSES[syntax] for syntax in functions]
        worst = next(s for s in ("failed", "killed", "finished") if s in statuses)
        return {
            syntax: Site(
                experiment,
                job,
                SITES[syntax],
                syntax,
                processes[syntax].pid,
                json.loads((folder / f"{function.__name__}.json").read_text()),
                worst,
                STATUSES[syntax],
            )
            for syntax, function in functions.items()
        }


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of two MLflow servers with nothing in them."""
    folder = tmp_path_factory.mktemp("servers")
    new = folder / "new.db"
    MlflowClient(f"sqlite:///{new}").search_experiments()  # makes the tables, which takes seconds
    environment = clean_environment(folder) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    started: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    try:
        for name in ("one", "two"):
            place = folder / name
            place.mkdir()
            shutil.copy(new, place / "mlflow.db")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            command = [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port),
                *("--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}", "--workers", "1"),
                *("--artifacts-destination", str(place / "artifacts")),
            ]
            with (place / "log").open("w") as log:
                server = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=place,
                    start_new_session=True,
                )
            started.append((f"http://127.0.0.1:{port}", place / "log", server))
        for uri, log_file, server in started:
            wait_for_server(f"{uri}/health", server, log_file)
        yield [uri for uri, _, _ in started]
    finally:
        end([server for _, _, server in started])


def wait_for_server(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(health, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"mlflow server does not answer:\n{log.read_text()[-3000:]}")


def end(servers: list[subprocess.Popen[bytes]]) -> None:
    """End servers and their workers, which are their children."""
    family = [psutil.Process(server.pid) for server in servers if server.poll() is None]
    family += [child for parent in family for child in parent.children(recursive=True)]
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait(60)
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, servers: list[str]) -> Iterator[Delivered]:
    """All scripts have run against one daemon with all trackers, which has stopped since."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "model.bin").write_bytes(MODEL)
    (folder / "50% of it.txt").write_bytes(SMALL)
    result = Delivered(
        folder,
        {
            "mlflow-sqlite": f"sqlite:///{folder / 'sqlite' / 'mlflow.db'}",
            "mlflow-server": servers[0],
        },
    )
    adapters = [
        {"type": "jsonl", "options": {"dir": str(folder / "jsonl")}},
        {"type": "tensorboard", "options": {"logdir": str(folder / "tensorboard")}},
        *[
            {"type": "mlflow", "name": name, "options": {"tracking_uri": uri}}
            for name, uri in result.uris.items()
        ],
        {"type": "wandb", "options": {"mode": "offline", "dir": str(folder / "wandb")}},
    ]
    (folder / "sqlite").mkdir()
    shutil.copy(
        Path(tmp_path_factory.getbasetemp(), "servers0", "new.db"), folder / "sqlite" / "mlflow.db"
    )
    served = Daemon(folder / "daemon", adapters, env=clean_environment(folder))
    with served:
        result.sites = run_sites(SCRIPTS, folder, served.address, EXPERIMENT, JOB)
        result.many = run_sites(MANY_SCRIPTS, folder, served.address, "load", JOB, together=True)
        try:
            served.drain(timeout=240)
        except Exception as error:  # then the cells of that tracker are red, and others are not
            result.problem = f"{error!r}\n{served.log}"
        result.status = served.status()
        result.dead_letters = served.request("dlq")
        family = psutil.Process(served.process.pid).children(recursive=True)
    _, result.left_behind = psutil.wait_procs(family, timeout=20)
    yield result
    Delivered.read.cache_clear()


MANY_SCRIPTS = {
    "tensorboard": many_in_tensorboard_syntax,
    "mlflow": many_in_mlflow_syntax,
    "wandb": many_in_wandb_syntax,
}


# --- the matrix --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("syntax", "tracker", "data_type"),
    [
        pytest.param(*names, id="{}-syntax->{}/{}".format(*names))
        for names in itertools.product(SYNTAXES, TRACKERS, TYPES)
    ],
)
def test_what_a_syntax_logs_is_in_the_tracker_with_key_value_step_time_site_and_run(
    delivered: Delivered, syntax: str, tracker: str, data_type: str
) -> None:
    if reason := NOT_APPLICABLE.get((syntax, tracker, data_type)):
        pytest.skip(reason)
    site = delivered.sites[syntax]
    facts = site.facts(data_type)
    check = CELLS.get((tracker.partition("-")[0], data_type))
    assert facts, f"the {syntax} script logs no {data_type}, and NOT_APPLICABLE does not say why"
    assert check, f"{data_type} in {tracker} is not checked, and NOT_APPLICABLE does not say why"
    check(delivered.read(tracker, site.experiment, site.job, site.name), site, facts)


def test_the_matrix_has_all_data_types_and_lists_nothing_that_it_has_not() -> None:
    assert set(TYPES) == VOCABULARY
    assert set(NOT_APPLICABLE) <= set(itertools.product(SYNTAXES, TRACKERS, TYPES))
    assert all(NOT_APPLICABLE.values())


def test_everything_was_delivered_and_nothing_lost_refused_or_shown_in_part(
    delivered: Delivered,
) -> None:
    assert not delivered.problem
    assert delivered.status["losses"] == []
    assert delivered.dead_letters["total"] == 0, delivered.dead_letters
    adapters = delivered.status["adapters"]
    assert {name: each["lag"] for name, each in adapters.items()} == dict.fromkeys(TRACKERS, 0)
    # A counter beside this one would tell what a tracker holds only in part.
    everything = sum(len(site.facts(kind)) for site in delivered.sites.values() for kind in TYPES)
    everything += len(SYNTAXES) * (MANY + len(("start", "end")))
    for name, each in adapters.items():
        assert each["counters"] == {"delivered": everything}, name


def test_no_process_outlives_the_daemon(delivered: Delivered) -> None:
    assert delivered.left_behind == []


# --- many, at once -----------------------------------------------------------------------


def many(site: Site) -> list[Seen]:
    """What a site has logged, in order: steps repeat, and go back 14 times for each key."""
    during = site.at("logging")
    return [
        Seen(f"key-{i % 7}", i / 2, i // 7 % 100, during if site.syntax == "wandb" else moment(i))
        for i in range(MANY)
    ]


def moment(i: int) -> float:
    return (1_700_000_000_000 + i) / 1000


def many_in(tracker: str, seen: Any) -> list[Seen]:
    """What a tracker that keeps order shows, in that order."""
    if tracker == "jsonl":
        return list(seen.of("metric"))
    if tracker == "tensorboard":
        return list(seen.scalars_in_order())
    return wandb_columns(seen, "number")


def test_the_three_sites_logged_at_the_same_time(delivered: Delivered) -> None:
    times = [site.at("logging") for site in delivered.many.values()]
    assert max(time.first for time in times) < min(time.last for time in times)


@pytest.mark.parametrize("tracker", ["jsonl", "tensorboard", "wandb"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_ten_thousand_metrics_of_each_concurrent_site_are_there_in_order(
    delivered: Delivered, syntax: str, tracker: str
) -> None:
    site = delivered.many[syntax]
    found = many_in(tracker, delivered.read(tracker, site.experiment, site.job, site.name))
    expected = many(site)
    assert Counter(point[:3] for point in found) == Counter(point[:3] for point in expected)
    if (syntax, tracker) == ("wandb", "wandb"):  # metrics of one row have no order in it
        assert by_key(found) == by_key(expected)
    else:
        assert found == expected
    times = [point.time for point in found]
    assert times == sorted(times)


@pytest.mark.parametrize("tracker", ["mlflow-sqlite", "mlflow-server"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_ten_thousand_metrics_of_each_concurrent_site_are_in_mlflow_by_time_and_step(
    delivered: Delivered, syntax: str, tracker: str
) -> None:
    site = delivered.many[syntax]
    seen = delivered.read(tracker, site.experiment, site.job, site.name)
    histories = seen.histories()
    expected = by_key([point._replace(time=ms(point.time)) for point in many(site)])
    assert Counter(p[:3] for points in histories.values() for p in points) == Counter(
        p[:3] for points in expected.values() for p in points
    )
    if syntax == "wandb":  # times are those of the calls, of which several fall into one ms
        logged = {key: sorted(points, key=lambda p: p.value) for key, points in histories.items()}
        for points in logged.values():
            times = [point.time for point in points]
            assert times == sorted(times)
        histories = logged
    assert histories == expected


# --- one stream, many trackers -----------------------------------------------------------

TWO_SERVERS = """\
daemon:
  control: tcp://127.0.0.1:0
  state_dir: {folder}/state
adapters:
  - type: mlflow
    name: hospital
    options: {{tracking_uri: "{hospital}"}}
  - type: mlflow
    name: university
    options: {{tracking_uri: "{university}"}}
  - type: tensorboard
    options: {{logdir: "{folder}/tensorboard"}}
"""


def test_one_stream_goes_into_two_mlflow_servers_and_a_tensorboard_folder_by_yaml_alone(
    servers: list[str], tmp_path: Path
) -> None:
    hospital, university = servers
    (tmp_path / "model.bin").write_bytes(MODEL)
    served = Daemon(tmp_path / "daemon", env=clean_environment(tmp_path))
    served.config.write_text(
        TWO_SERVERS.format(folder=tmp_path, hospital=hospital, university=university)
    )
    with served:
        only = {"tensorboard": tensorboard_syntax}
        site = run_sites(only, tmp_path, served.address, "two servers", JOB)["tensorboard"]
        served.drain(timeout=120)
        assert served.request("dlq")["total"] == 0
    names = (site.experiment, site.job, site.name)
    readers = {
        "hospital": MLflowRun(hospital, *names, tmp_path / "hospital"),
        "university": MLflowRun(university, *names, tmp_path / "university"),
        "tensorboard": TensorBoardRun(tmp_path / "tensorboard", *names),
    }
    for name, seen in readers.items():
        for data_type in TYPES:
            tracker = "tensorboard" if name == "tensorboard" else "mlflow"
            CELLS[tracker, data_type](seen, site, site.facts(data_type))
    assert readers["hospital"].run.data.tags["zmqtrack.adapter"] == "hospital"
    assert readers["university"].run.data.tags["zmqtrack.adapter"] == "university"
