"""The scripts of the differential tests, and the process that runs them with one tool.

A script is lines of Python that are run one by one: with the real tool, and with zmqtrack's writer
for it. What a line raises is noted, and the next one runs. ``python differential.py SIDE TOOL
FOLDER`` runs all scripts of a tool, each in a run of its own, and writes FOLDER/outcomes.json.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

#: Names that the lines may use.
PREPARE = """
import datetime, decimal, enum, fractions, math, pathlib
import numpy as np, torch, matplotlib.pyplot
from matplotlib.figure import Figure
from PIL import Image as PILImage
rows, columns = np.indices((6, 8))
hwc = np.stack((rows * 40, columns * 30, rows * 0 + 7), axis=-1).astype("uint8")
chw = np.ascontiguousarray(hwc.transpose(2, 0, 1))
stack = np.stack([chw, 255 - chw])
def figure(colour="red"):
    return Figure(figsize=(2, 1), dpi=20, facecolor=colour)
class Colour(enum.Enum):
    red = 1
file = pathlib.Path(files, "weights.bin"); file.write_bytes(b"\\0weights")
tree = pathlib.Path(files, "tree"); (tree / "inner").mkdir(parents=True, exist_ok=True)
(tree / "a.txt").write_text("a"); (tree / "inner" / "b.txt").write_text("b")
page = pathlib.Path(files, "page.html"); page.write_text("<p>page")
ago = 1234.5
"""

TENSORBOARD = {
    "scalars": """
w.add_scalar("int", 3, 1)
w.add_scalar("float", 0.1, 1)
w.add_scalar("bool", True, 1)
w.add_scalar("float32", np.float32(0.1), 1)
w.add_scalar("float16", np.float16(0.1), 1)
w.add_scalar("int64", np.int64(7), 1)
w.add_scalar("array_of_one", np.array([2.5]), 1)
w.add_scalar("0-d", np.array(2.5), 1)
w.add_scalar("tensor", torch.tensor(2.5), 1)
w.add_scalar("tensor_of_one", torch.tensor([2.5]), 1)
w.add_scalar("gradient", torch.tensor(2.5, requires_grad=True), 1)
w.add_scalar("bfloat16", torch.tensor(2.5, dtype=torch.bfloat16), 1)
w.add_scalar("text_of_a_number", "2.5", 1)
w.add_scalar("Decimal", decimal.Decimal("2.5"), 1)
w.add_scalar("Fraction", fractions.Fraction(5, 2), 1)
w.add_scalar("nan", math.nan, 1)
w.add_scalar("inf", math.inf, 1)
w.add_scalar("-inf", -math.inf, 1)
w.add_scalar("huge", 1e300, 1)
w.add_scalar("big_int", 2**70, 1)
w.add_scalar("a/b/c", 1, 1)
w.add_scalar("Größe 50% (ü)", 1, 1)
w.add_scalar("new_style", 1.5, 1, new_style=True)
w.add_scalar("double", 1.5, 1, double_precision=True)
w.add_scalar("time", 1.5, 1, walltime=ago)
w.add_scalar("", 1, 1)
""",
    "steps": """
w.add_scalar("none", 1)
w.add_scalar("repeated", 1, 5)
w.add_scalar("repeated", 2, 5)
w.add_scalar("back", 1, 5)
w.add_scalar("back", 2, 3)
w.add_scalar("back", 3, 6)
w.add_scalar("float", 1, 3.7)
w.add_scalar("whole_float", 1, 3.0)
w.add_scalar("negative", 1, -2)
w.add_scalar("numpy", 1, np.int32(4))
w.add_scalar("numpy_float", 1, np.float64(4.9))
w.add_scalar("tensor", 1, torch.tensor(4))
w.add_scalar("text", 1, "4")
w.add_scalar("large", 1, 2**40)
w.add_scalar("bool", 1, True)
""",
    "groups": """
w.add_scalars("acc", {"train": 1, "val": 2.0}, 1)
w.add_scalars("acc", {"train": 3, "val": 4.0}, 2)
w.add_scalars("loss/all", {"a b": np.float32(0.5)}, 1, walltime=ago)
w.add_scalars("numbers", {"1": torch.tensor(1.0)}, 1)
""",
    "text": """
w.add_text("note", "**hello** <b>ü</b>", 1)
w.add_text("note", "again", 1)
w.add_text("none", "x")
w.add_text("empty", "", 1)
w.add_text("lines", "a\\n\\nb", 2, walltime=ago)
""",
    "images": """
w.add_image("chw", chw, 1)
w.add_image("hwc", hwc, 1, dataformats="HWC")
w.add_image("hw", hwc[..., 0], 1, dataformats="HW")
w.add_image("one_channel", chw[:1], 1)
w.add_image("four_channels", np.concatenate([chw, chw[:1]]), 1)
w.add_image("float", chw / 255.0, 1)
w.add_image("tensor", torch.from_numpy(chw), 1)
w.add_image("float_tensor", torch.from_numpy(chw).float() / 255, 1)
w.add_image("beyond", chw / 100.0, 1)
w.add_image("time", chw, 1, walltime=ago)
w.add_images("nchw", stack, 1)
w.add_images("nhwc", stack.transpose(0, 2, 3, 1), 1, dataformats="NHWC")
w.add_images("nine", np.concatenate([stack] * 5)[:9], 1)
w.add_images("nhw", stack[:, 0], 1, dataformats="NHW")
w.add_image_with_boxes("boxes", chw, np.array([[1, 1, 5, 4]]), 1)
w.add_figure("figure", figure(), 1)
w.add_figure("figures", [figure("red"), figure("blue")], 1)
""",
    "histograms": """
w.add_histogram("numbers", np.arange(100) / 10, 1)
w.add_histogram("tensor", torch.linspace(-1, 1, 50), 1)
w.add_histogram("auto", np.arange(100) / 10, 1, bins="auto")
w.add_histogram("edges", np.array([0.5, 1.5, 1.5]), 1, bins=[0.0, 1.0, 2.0])
w.add_histogram("max_bins", np.arange(100) / 10, 1, bins="auto", max_bins=4)
w.add_histogram("one_value", np.array([2.0]), 1)
w.add_histogram("integers", np.array([1, 2, 2, 3]), 1)
w.add_histogram("list", [1.0, 2.0, 2.0], 1)
w.add_histogram("time", np.arange(10.0), 1, walltime=ago)
w.add_histogram_raw("raw", 0.5, 2.5, 4, 6.0, 11.0, [0.0, 1.0, 2.0, 3.0], [0, 1, 2, 1], 1)
""",
    "hparams": """
w.add_hparams({"lr": 0.1, "name": "x", "flag": True, "n": 3}, {"hparam/acc": 0.5})
""",
    "not carried": """
w.add_audio("audio", np.zeros((1, 100), "float32"), 1)
w.add_pr_curve("pr", np.array([0, 1, 1]), np.array([0.1, 0.6, 0.9]), 1)
w.add_mesh("mesh", torch.zeros(1, 4, 3), global_step=1)
w.add_embedding(torch.eye(4), metadata=["a", "b", "c", "d"], global_step=1)
w.add_custom_scalars({"cat": {"chart": ["Multiline", ["a", "b"]]}})
""",
    "life": """
w.add_scalar("x", 1, 1)
w.flush()
w.close()
w.add_scalar("x", 2, 2)
w.close()
w.close()
""",
    "raises": """
w.add_scalar("none", None, 1)
w.add_scalar("word", "word", 1)
w.add_scalar("list", [1, 2], 1)
w.add_scalar("two", np.zeros(2), 1)
w.add_scalar("complex", 1j, 1)
w.add_scalar("step", 1, "word")
w.add_scalar(3, 1, 1)
w.add_scalar("dict", {}, 1)
w.add_scalars("a", None, 1)
w.add_text("number", 3, 1)
w.add_text("none", None, 1)
w.add_image("shape", np.zeros(3, "uint8"), 1)
w.add_image("two_channels", np.zeros((2, 4, 4), "uint8"), 1)
w.add_image("five_channels", np.zeros((5, 4, 4), "uint8"), 1)
w.add_image("none", None, 1)
w.add_histogram("empty", np.array([]), 1)
w.add_histogram("nan", np.array([1.0, math.nan]), 1)
w.add_histogram("words", ["a"], 1)
w.add_hparams({"lr": None}, {"acc": 1})
w.add_hparams({"lr": [1, 2]}, {"acc": 1})
w.add_hparams([], {})
w.add_hparams({}, {})
w.add_hparams({"lr": 0.1}, {"acc": "word"})
w.add_scalar("nested/", 1, 1)
w.add_scalar("/leading", 1, 1)
w.add_scalar("x" * 2000, 1, 1)
w.add_scalar("line\\nbreak", 1, 1)
""",
}

MLFLOW = {
    "metrics": """
m.log_metric("int", 3)
m.log_metric("float", 0.1, step=1)
m.log_metric("bool", True, step=1)
m.log_metric("float32", np.float32(0.1), step=1)
m.log_metric("array of one", np.array([2.5]), step=1)
m.log_metric("0-d", np.array(2.5), step=1)
m.log_metric("tensor", torch.tensor(2.5), step=1)
m.log_metric("tensor of one", torch.tensor([2.5]), step=1)
m.log_metric("gradient", torch.tensor(2.5, requires_grad=True), step=1)
m.log_metric("text of a number", "2.5", step=1)
m.log_metric("Decimal", decimal.Decimal("2.5"), step=1)
m.log_metric("Fraction", fractions.Fraction(5, 2), step=1)
m.log_metric("nan", math.nan, step=1)
m.log_metric("inf", math.inf, step=1)
m.log_metric("-inf", -math.inf, step=1)
m.log_metric("big int", 2**70, step=1)
m.log_metric("a/b.c-d e", 1, step=1)
m.log_metric("time", 1, step=1, timestamp=1234500)
m.log_metric("synchronous", 1, step=1, synchronous=True)
m.log_metrics({"both a": 1, "both b": 2.0}, step=2)
m.log_metrics({"both a": np.float64(3), "both b": torch.tensor(4.0)}, step=3, timestamp=1234500)
m.log_metrics({})
""",
    "steps": """
m.log_metric("none", 1)
m.log_metric("repeated", 1, step=5, timestamp=1000)
m.log_metric("repeated", 2, step=5, timestamp=2000)
m.log_metric("back", 1, step=5)
m.log_metric("back", 2, step=3)
m.log_metric("float", 1, step=3.7)
m.log_metric("whole float", 1, step=3.0)
m.log_metric("negative", 1, step=-2)
m.log_metric("numpy", 1, step=np.int64(4))
m.log_metric("tensor", 1, step=torch.tensor(4))
m.log_metric("text", 1, step="4")
m.log_metric("large", 1, step=2**40)
m.log_metric("float time", 1, step=1, timestamp=1234500.7)
""",
    "params": """
m.log_param("int", 3)
m.log_param("float", 0.1)
m.log_param("bool", True)
m.log_param("none", None)
m.log_param("text", "x ü")
m.log_param("empty", "")
m.log_param("list", [1, "a", 2.5])
m.log_param("tuple", (1, 2))
m.log_param("dict", {"a": {"b": 1}, "c": None})
m.log_param("nan", math.nan)
m.log_param("numpy", np.float32(0.1))
m.log_param("array", np.arange(3))
m.log_param("tensor", torch.tensor([1.0, 2.0]))
m.log_param("numpy int", np.int64(3))
m.log_param("numpy bool", np.bool_(True))
m.log_param("0-d", np.array(2.5))
m.log_param("scalar tensor", torch.tensor(2.5))
m.log_param("nested", {"a": (1, np.float32(0.1)), "b": [np.arange(2)]})
m.log_param("path", pathlib.Path("a/b"))
m.log_param("class", dict)
m.log_param("enum", Colour.red)
m.log_param("set", {1})
m.log_param("bytes", b"x")
m.log_param("Decimal", decimal.Decimal("2.50"))
m.log_param("date", datetime.date(2020, 1, 2))
m.log_param("a/b.c-d e", 1)
m.log_params({"two a": 1, "two b": "x"})
m.log_params({})
m.log_param("same", 1)
m.log_param("same", 1)
""",
    "tags": """
m.set_tag("text", "x ü")
m.set_tag("int", 3)
m.set_tag("none", None)
m.set_tag("dict", {"a": 1})
m.set_tag("changed", 1)
m.set_tag("changed", 2)
m.set_tags({"two a": 1, "two b": True})
m.set_tag("mlflow.note.content", "a note")
m.set_tag("gone", 1)
m.delete_tag("gone")
""",
    "files": """
m.log_text("hello ü\\n", "notes/a.txt")
m.log_text("<p>", "page.html")
m.log_text("", "empty.txt")
m.log_text("no extension", "plain")
m.log_text("again", "notes/a.txt")
m.log_dict({"a": [1, None, "ü"], "b": {"c": 0.5}}, "conf.json")
m.log_dict([1, 2], "list.json")
m.log_dict({"a": [1, 2], "b": "x"}, "conf.yaml")
m.log_dict({"a": 1}, "conf.txt")
m.log_table({"a": [1, 2], "b": ["x", "y"]}, "table.json")
m.log_table({"b": ["z"], "c": 4}, "table.json")
m.log_table({"a": [0.5]}, "second.json")
m.log_artifact(str(file))
m.log_artifact(file, "sub/folder")
m.log_artifact(str(tree), "whole")
m.log_artifacts(str(tree))
m.log_artifacts(tree, "below")
m.log_figure(figure(), "plots/figure.png")
m.log_figure(figure(), "plots/figure.svg")
m.log_figure(figure(), "plots/dpi.png", save_kwargs={"dpi": 40})
m.log_image(hwc, "images/array.png")
m.log_image(hwc[..., 0], "grey.png")
m.log_image(hwc[..., :1], "one.png")
m.log_image(hwc / 255.0, "float.png")
m.log_image(PILImage.fromarray(hwc), "pil.png")
m.log_image(PILImage.fromarray(hwc), "pil.jpg")
m.log_image(hwc, "array.jpeg")
m.log_image(hwc, "array.bmp")
m.log_image(PILImage.fromarray(hwc), "below/pil.webp")
m.log_image(m.Image(hwc), "wrapped.png")
""",
    "keyed images": """
m.log_image(hwc, key="dog", step=3, timestamp=1000)
m.log_image(hwc / 300.0, key="a/b", step=1, timestamp=1000)
m.log_image(255 - hwc, key="dog", step=4, timestamp=1000)
""",
    "failed": """
m.log_metric("x", 1)
m.end_run("FAILED")
""",
    "killed": """
m.log_metric("x", 1)
m.end_run("KILLED")
""",
    "context": """
m.end_run()
with m.start_run(run_name="inner", tags={"t": "1"}, description="why"): m.log_metric("x", 1)
""",
    "raises": """
m.log_metric("none", None)
m.log_metric("word", "word")
m.log_metric("list", [1, 2])
m.log_metric("two", np.zeros(2))
m.log_metric("complex", 1j)
m.log_metric("step", 1, step="word")
m.log_metric("bad|name", 1)
m.log_metric("", 1)
m.log_metric("x" * 300, 1)
m.log_metric(3, 1)
m.log_metrics({"a": "word"})
m.log_metrics(None)
m.log_param("bad|name", 1)
m.log_param("", 1)
m.log_param("long", "x" * 7000)
m.log_param("changed", 1)
m.log_param("changed", 2)
m.log_param("p" * 300, 1)
m.set_tag("", 1)
m.set_tag("long", "x" * 10000)
m.log_text(3, "a.txt")
m.log_text("a", "../a.txt")
m.log_dict({"a": object()}, "a.json")
m.log_dict({1: 2}, "int-keys.json")
m.log_table([1], "a.json")
m.log_image("word", "a.png")
m.log_image(np.zeros((4, 4, 5), "uint8"), "a.png")
m.log_image(np.zeros((4, 4, 2), "uint8"), "two.png")
m.log_image(hwc)
m.log_image(hwc, "a.png", key="a")
m.log_artifact("/nowhere/at/all")
m.log_artifacts("/nowhere/at/all")
m.log_figure(3, "a.png")
m.start_run()
m.end_run("WHAT")
""",
}

WANDB = {
    "numbers": """
run.log({"int": 3, "float": 0.1, "bool": True, "float32": np.float32(0.5), "int64": np.int64(7)})
run.log({"array of one": np.array([2.5]), "0-d": np.array(2.5)})
run.log({"tensor": torch.tensor(2.5), "tensor of one": torch.tensor([2.5])})
run.log({"gradient": torch.tensor(2.5, requires_grad=True)})
run.log({"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
run.log({"big": 2**70})
run.log({"none": None, "beside": 1})
run.log({"text": "word", "number in text": "2.5"})
run.log({"nested": {"a": 1, "b": {"c": 2}}})
run.log({"list": [1, 2], "tuple": (1, "a"), "empty": []})
run.log({"date": datetime.date(2020, 1, 2)})
run.log({"Decimal": decimal.Decimal("2.5")})
run.log({"a/b": 1, "a b": 2, "Größe": 3})
run.log({})
""",
    "steps": """
run.log({"x": 1})
run.log({"x": 2, "y": 1})
run.log({"x": 3}, step=5)
run.log({"y": 3}, step=5)
run.log({"x": 4}, step=7)
run.log({"x": 5}, commit=False)
run.log({"y": 5})
run.log({"x": 6}, step=np.int64(20))
run.log({"x": 7}, step=21, commit=True)
run.log({"x": 8})
run.log({"same": 1}, commit=False)
run.log({"same": 2})
""",
    "steps back": """
run.log({"x": 1}, step=5)
run.log({"x": 2}, step=3)
run.log({"x": 3}, step=6)
""",
    "axis": """
run.define_metric("epoch")
run.define_metric("val/*", step_metric="epoch")
run.log({"val/loss": 1.0, "epoch": 2})
run.log({"val/loss": 0.5, "epoch": 4})
""",
    "media": """
run.log({"image": wandb.Image(hwc), "loss": 0.5})
run.log({"caption": wandb.Image(hwc, caption="what")})
run.log({"pil": wandb.Image(PILImage.fromarray(hwc))})
run.log({"tensor": wandb.Image(torch.from_numpy(chw))})
run.log({"float": wandb.Image(hwc / 255.0)})
run.log({"grey": wandb.Image(hwc[..., 0])})
run.log({"several": [wandb.Image(hwc), wandb.Image(255 - hwc)]})
run.log({"figure": wandb.Image(figure())})
run.log({"histogram": wandb.Histogram([1.0, 2.0, 2.0, 4.0], num_bins=3)})
run.log({"np histogram": wandb.Histogram(np_histogram=([1, 2], [0.0, 1.0, 2.0]))})
run.log({"html": wandb.Html("<p>hello", inject=False)})
run.log({"html file": wandb.Html(str(page), inject=False)})
run.log({"array": np.arange(10.0)})
run.log({"table": wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, "y"]])})
""",
    "config": """
run.config["int"] = 3
run.config.text = "x ü"
run.config.update({"float": 0.1, "none": None, "flag": True})
run.config["list"] = [1, "a"]
run.config["tuple"] = (1, 2)
run.config["nested"] = {"a": {"b": 1}}
run.config["numpy"] = np.float32(0.5)
run.config["array"] = np.arange(3)
run.config["path"] = pathlib.Path("a/b")
run.config["class"] = dict
run.config["enum"] = Colour.red
run.config["set"] = {1}
run.config["nan"] = math.nan
run.config["date"] = datetime.date(2020, 1, 2)
run.config.setdefaults({"int": 4, "late": 1})
run.config.update({"int": 5}, allow_val_change=True)
run.config["dashed-key"] = 1
""",
    "summary": """
run.log({"loss": 1.0})
run.summary["best"] = 0.5
run.summary.update({"text": "word", "nested": {"a": 1}})
run.summary["loss"] = 0.1
""",
    "about": """
run.name = "another name"
run.tags = run.tags + ("late",)
run.notes = "late notes"
run.log({"x": 1})
""",
    "files": """
run.log_artifact(str(file), name="weights", type="model")
artifact = wandb.Artifact("data", "dataset", metadata={"n": 1}, description="what")
artifact.add_file(str(file)); artifact.add_dir(str(tree), name="t"); run.log_artifact(artifact)
run.save(str(file), base_path=str(files), policy="now")
pathlib.Path(run.dir, "own.txt").write_text("own")
""",
    "failed": """
run.log({"x": 1})
run.finish(exit_code=3)
""",
    "module": """
wandb.log({"x": 1})
wandb.config.update({"lr": 0.1})
wandb.summary["best"] = 1
wandb.finish()
""",
    "raises": """
run.log({"object": object()})
run.log({3: 1})
run.log([1])
run.log(None)
run.log({"complex": 1j})
run.log({"": 1})
run.log({"x": 1}, step="word")
run.log({"x": 1}, step=2.5)
run.log({"x": 1}, step=-1)
run.log({"_step": 1})
run.log({"x" * 2000: 1})
run.config["lr"] = 1
run.config["lr"] = 2
run.config[3] = 1
run.config["object"] = object()
run.summary["object"] = object()
wandb.Image("nowhere.png")
wandb.Image(np.zeros(3))
wandb.Histogram(np_histogram=(1, 2, 3))
wandb.Histogram([])
wandb.Table(columns=["a"], data=[[1, 2]])
wandb.Html(3)
wandb.Artifact("bad name!", "t")
wandb.Artifact("good", "t").add_file("nowhere")
run.log_artifact("/nowhere/at/all")
run.save("/nowhere/at/all")
run.log({"set": {1, 2}})
run.log({"bytes": b"x"})
run.log({"function": len})
""",
}

SCRIPTS = {"torch": TENSORBOARD, "tensorboardX": TENSORBOARD, "mlflow": MLFLOW, "wandb": WANDB}
#: The syntax of ours, by tool.
SYNTAX = {
    "torch": "tensorboard",
    "tensorboardX": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def experiment(tool: str) -> str:
    return f"diff-{SYNTAX[tool]}"


def lines(script: str) -> list[str]:
    return [line for line in script.splitlines() if line]


# --- the process that runs them -------------------------------------------------------------------


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(side: str, tool: str, folder: Path) -> None:
    said = _Said()
    logging.getLogger("zmqtrack").addHandler(said)
    files = folder / "files"
    files.mkdir(parents=True)
    os.chdir(folder)
    names: dict[str, Any] = {"files": str(files)}
    exec(PREPARE, names)
    outcomes: dict[str, dict[str, str]] = {}
    for name, script in SCRIPTS[tool].items():
        names.update(_begin(side, tool, name, folder))
        outcomes[name] = {}
        for line in lines(script):
            try:
                exec(line, names)
                outcomes[name][line] = ""
            except BaseException as error:
                outcomes[name][line] = f"{type(error).__name__}: {error}"[:300]
        _end(names, tool)
    (folder / "outcomes.json").write_text(json.dumps({"outcomes": outcomes, "said": said.lines}))


def _module(side: str, tool: str) -> Any:
    if side == "ours":
        return importlib.import_module(f"zmqtrack.writers.{SYNTAX[tool]}")
    return importlib.import_module("torch.utils.tensorboard" if tool == "torch" else tool)


def _begin(side: str, tool: str, name: str, folder: Path) -> dict[str, Any]:
    module = _module(side, tool)
    if SYNTAX[tool] == "tensorboard":
        return {"w": module.SummaryWriter(str(folder / experiment(tool) / name))}
    if tool == "mlflow":
        if side == "real":
            module.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        module.set_experiment(experiment(tool))
        module.start_run(run_name=name)
        return {"m": module}
    more = {}
    if side == "real":
        more["settings"] = module.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
    run = module.init(
        project=experiment(tool), name=name, mode="offline", dir=str(folder), tags=["early"],
        notes="early notes", config={"early": 1}, **more,
    )  # fmt: skip
    return {"run": run, "wandb": module}


def _end(names: dict[str, Any], tool: str) -> None:
    if SYNTAX[tool] == "tensorboard":
        names["w"].close()
    elif tool == "mlflow":
        while names["m"].active_run():
            names["m"].end_run()
    else:
        names["wandb"].finish()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
