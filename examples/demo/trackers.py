"""Reads back from each tracker what it has of a run, with the tracker's own reader.

Nothing in here asks zmqtrack.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .tally import Tally

__all__ = ["READERS"]

#: Folders and files in the demo's folder, by tracker; the configuration names them too.
JSONL, TENSORBOARD, MLFLOW, WANDB = "jsonl", "tensorboard", "mlflow.db", "wandb"


def read_jsonl(out: Path, experiment: str, run: str) -> dict[str, Tally]:
    tallies = {}
    for path in (out / JSONL / experiment / run).glob("*.jsonl"):
        tally = tallies[path.stem] = Tally()
        for line in map(json.loads, path.read_text().splitlines()):
            kind, key, value = line["type"], line["key"], line["value"]
            if kind == "metric":
                tally.metric(key, float(value), line["step"])
            elif kind == "param":
                tally.params({key: value})
            elif kind == "tag":
                tally.tags({key: value})
            elif kind != "run":
                tally.more(kind)
            elif key == "end":
                tally.end(value)
    return tallies


def read_tensorboard(out: Path, experiment: str, run: str) -> dict[str, Tally]:
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util.tensor_util import make_ndarray

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    kinds = ("scalars", "images", "histograms", "tensors")
    tallies = {}
    for folder in (out / TENSORBOARD / experiment / run).glob("*"):
        tally = tallies[folder.name] = Tally()
        events = event_accumulator.EventAccumulator(str(folder), dict.fromkeys(kinds, 0))  # 0: all
        events.Reload()
        tags = events.Tags()
        for key in tags["scalars"]:
            for scalar in events.Scalars(key):
                tally.metric(key, scalar.value, scalar.step)
        tally.more("image", sum(len(events.Images(key)) for key in tags["images"]))
        tally.more("histogram", sum(len(events.Histograms(key)) for key in tags["histograms"]))
        for tag in tags["tensors"]:  # texts; what TensorBoard has no place for is text too
            kind, _, key = tag.partition("/")
            for event in events.Tensors(tag):
                text = make_ndarray(event.tensor_proto).item().decode()
                if kind == "param":
                    tally.params({key: text})
                elif kind == "tag":
                    tally.tags({key: text})
                elif tag == "run/end":
                    tally.end(text)
                elif kind != "run":
                    tally.more("artifact" if kind == "artifact" else "text")
    return tallies


def read_mlflow(out: Path, experiment: str, run: str) -> dict[str, Tally]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / MLFLOW}")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    tallies = {}
    for there in client.search_runs([found.experiment_id], f"tags.`zmqtrack.run` = '{run}'"):
        if (site := there.data.tags.get("zmqtrack.site")) is None:
            continue  # the parent, which holds the sites together
        tally = tallies[site] = Tally()
        for key in there.data.metrics:
            for metric in client.get_metric_history(there.info.run_id, key):
                tally.metric(key, metric.value, metric.step)
        tally.params(there.data.params)
        own = ("mlflow.", "zmqtrack.")
        tally.tags({k: v for k, v in there.data.tags.items() if not k.startswith(own)})
        for path in _mlflow_files(client, there.info.run_id):
            if path.startswith("histograms/"):
                tally.more("histogram")
            elif path.endswith((".txt", ".md")):
                tally.more("text")
            elif path.endswith(".png"):
                tally.more("image")
            elif not path.endswith(".webp"):  # the small copies that MLflow's page shows
                tally.more("artifact")
        tally.end(there.info.status.lower())
    return tallies


def _mlflow_files(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _mlflow_files(client, run_id, entry.path)
        else:
            yield entry.path


def read_wandb(out: Path, experiment: str, run: str) -> dict[str, Tally]:
    tallies = {}
    files = list((out / WANDB / "wandb").glob("offline-run-*/run-*.wandb"))
    for name in {file.name for file in files}:
        tally = Tally()
        # A run that was interrupted goes on in one more folder; their names begin with the time.
        for file in sorted(file for file in files if file.name == name):
            config: dict[str, Any] = {}
            for record in _wandb_records(file):
                kind = record.WhichOneof("record_type")
                if kind in ("run", "config"):
                    part = record.run.config if kind == "run" else record.config
                    config |= {item.key: json.loads(item.value_json) for item in part.update}
                elif kind == "history":
                    _tally_row(record.history, tally)
                elif kind == "artifact":
                    tally.more("artifact")
                elif kind == "exit":
                    tally.end("failed" if record.exit.exit_code else "finished")
        where = config.pop("zmqtrack", {})  # which run this is
        tally.tags({key[4:]: value for key, value in config.items() if key.startswith("tag.")})
        tally.params({k: v for k, v in config.items() if not k.startswith(("tag.", "_"))})
        if (where.get("experiment"), where.get("run")) == (experiment, run):
            tallies[where["site"]] = tally
    return tallies


def _tally_row(history: Any, tally: Tally) -> None:
    kinds = {"histogram": "histogram", "image-file": "image", "html-file": "text"}
    row: dict[str, Any] = {}
    for item in history.item:
        key, *inner = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if inner:  # a dictionary, taken apart
            row.setdefault(key, {})[inner[0]] = value
        else:
            row[key] = value
    for key, value in row.items():
        if key.startswith(("_", "zmqtrack/")):
            continue
        if isinstance(value, dict):
            tally.more(kinds[value["_type"]])
        elif isinstance(value, str):  # a text that was logged in a row
            tally.more("text")
        else:
            tally.metric(key, value, row.get("zmqtrack/step"))


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records in a ``.wandb`` file: LevelDB's log format, behind 7 bytes.

    wandb has no reader for it in Python any more; the records are its own protobuf messages.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    at, whole = 7, b""
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        at += 7 + length
        whole = part if kind in (1, 2) else whole + part  # 1: all of it; 2, 3, 4: parts
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)


#: By the name of the tracker: reads a run of an experiment below a folder, by site.
READERS: dict[str, Callable[[Path, str, str], dict[str, Tally]]] = {
    "jsonl": read_jsonl,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}
