"""Reads back what wandb wrote offline: its ``.wandb`` files and the files beside them.

wandb has no reader of its own for them in Python (since 0.2x it is in wandb-core), so the
framing, LevelDB's log format, is undone here, independently of the adapter; the records in it
are wandb's own protobuf classes.
"""

from __future__ import annotations

import html
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2

BLOCK = 32768


class Row(NamedTuple):
    """A record as W&B has it; ``step`` and ``time`` are None where W&B keeps none."""

    type: str
    key: str
    value: Any
    step: int | None
    time: float | None
    site: str
    run: str
    experiment: str


def transaction_log(path: Path) -> Iterator[Any]:
    """The records of one ``.wandb`` file, up to a torn end."""
    data = path.read_bytes()
    assert data[:7] == b":W&B\xe1\xbe\x00", data[:7]
    at, parts = 7, []
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        if len(body) < length:
            return
        assert zlib.crc32(bytes([kind]) + body) == crc, f"{path} is damaged at {at}"
        at += 7 + length
        parts = [body] if kind in (1, 2) else [*parts, body]
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))


def folders(directory: Path) -> dict[str, list[tuple[Path, list[Any]]]]:
    """By W&B's run id: its folders with their records, in the order in which they sync."""
    found: dict[str, list[Any]] = {}
    for path in Path(directory).glob("wandb/*run-*/run-*.wandb"):
        records = list(transaction_log(path))
        run = next((record.run for record in records if record.HasField("run")), None)
        if run is not None:
            found.setdefault(run.run_id, []).append(
                (run.start_time.ToNanoseconds(), path.parent, records)
            )
    return {key: [part[1:] for part in sorted(parts)] for key, parts in found.items()}


def config(records: list[Any]) -> dict[str, Any]:
    """The config at the end of these records."""
    result: dict[str, Any] = {}
    for record in records:
        part = record.run.config if record.HasField("run") else record.config
        result.update({item.key: json.loads(item.value_json) for item in part.update})
    return result


def columns(record: Any) -> dict[str, Any]:
    """A history record's columns; wandb-core takes dicts apart, here they are whole again."""
    row: dict[str, Any] = {}
    for item in record.history.item:
        first, *rest = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if rest:
            row.setdefault(first, {})[rest[0]] = value
        else:
            row[first] = value
    return row


def read_wandb(directory: Path) -> list[Row]:
    """All records, by run and in order; params, tags and the start come last, once."""
    rows: list[Row] = []
    for parts in folders(directory).values():
        last_step = -1
        # As a server does: a later folder replaces the config, and may not go back in _step.
        final = config(parts[-1][1])
        names = final["zmqtrack"]
        where = (names["site"], names["run"], names["experiment"])
        for folder, records in parts:
            announced: tuple[str, str, Any, Any] | None = None
            for record in records:
                kind = record.WhichOneof("record_type")
                if kind == "history":
                    row = columns(record)
                    assert row["_step"] > last_step, "W&B drops rows whose _step goes back"
                    last_step = row["_step"]
                    step, time = row.get("zmqtrack/step"), float(row["_timestamp"])
                    assert step is None or isinstance(step, int)
                    announced = None
                    for column, value in row.items():
                        if column in ("zmqtrack/log", "zmqtrack/artifact", "zmqtrack/end"):
                            announced = (column.partition("/")[2], value, step, time)
                        elif column == "zmqtrack/summary":
                            for key, number in value.items():
                                name = f"summary/{key}"
                                rows.append(Row("metric", name, float(number), step, time, *where))
                        elif not column.startswith(("_", "zmqtrack/")):
                            key = column.removeprefix("user/")
                            rows.append(Row(*_value(folder, key, value), step, time, *where))
                elif announced and (announced[0], kind) in (
                    ("log", "output_logger"),
                    ("artifact", "artifact"),
                    ("end", "exit"),
                ):
                    data_type, key, step, time = announced
                    if data_type == "log":
                        value = record.output_logger.line.removesuffix("\n")
                    elif data_type == "artifact":
                        [entry] = record.artifact.manifest.contents
                        value = Path(entry.local_path).read_bytes()
                        metadata = json.loads(record.artifact.metadata)
                        assert metadata["key"] == key
                    else:
                        data_type, key, value = "run", "end", announced[1]
                        codes = {"finished": 0, "failed": 1, "killed": 255}
                        assert record.exit.exit_code == codes[value]
                    rows.append(Row(data_type, key, value, step, time, *where))
                    announced = None
        for key, value in final.items():
            if key == "zmqtrack":
                if "start" in value:
                    rows.append(Row("run", "start", value["start"], None, None, *where))
            elif key.startswith("tag."):
                rows.append(Row("tag", key[4:], value, None, None, *where))
            elif not key.startswith("_"):
                rows.append(Row("param", key.removeprefix("user/"), value, None, None, *where))
    return rows


def _value(folder: Path, key: str, value: Any) -> tuple[str, str, Any]:
    if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
        return "text", key, value
    if not isinstance(value, dict):
        return "metric", key, float(value)
    if value["_type"] == "histogram":
        return "histogram", key, {"counts": value["values"], "edges": value["bins"]}
    file = folder / "files" / value["path"]
    assert file.resolve().is_relative_to(folder.resolve())
    if value["_type"] == "image-file":
        return "image", key, file.read_bytes()
    assert value["_type"] == "html-file", value
    text = file.read_bytes().decode()
    if not key.endswith(".html"):
        text = html.unescape(text.removeprefix("<pre>").removesuffix("</pre>"))
    return "text", key, text


def history(directory: Path) -> list[dict[str, Any]]:
    """The history rows of the one run that is there, as W&B has them; ours without our columns."""
    [parts] = folders(directory).values()
    rows = [columns(r) for _, records in parts for r in records if r.HasField("history")]
    return [
        {key: value for key, value in row.items() if not key.startswith("zmqtrack/")}
        for row in rows
        if not {f"zmqtrack/{own}" for own in ("end", "log", "artifact", "summary")} & row.keys()
    ]


def summary(directory: Path) -> dict[str, Any]:
    """The summary of the one run that is there, one level deep."""
    [parts] = folders(directory).values()
    result: dict[str, Any] = {}
    for record in (record for _, records in parts for record in records):
        for item in record.summary.update:
            first, *rest = item.nested_key or [item.key]
            if rest and not isinstance(result.get(first), dict):
                result[first] = {}
            target = result[first] if rest else result
            target[rest[-1] if rest else first] = json.loads(item.value_json)
    return {k: v for k, v in result.items() if not k.startswith(("_", "zmqtrack/"))}


def last_run(directory: Path) -> Any:
    """The last thing that the one run that is there told of itself."""
    [parts] = folders(directory).values()
    return [r.run for _, records in parts for r in records if r.HasField("run")][-1]
