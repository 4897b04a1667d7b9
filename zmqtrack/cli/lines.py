"""One record as one line: for people, or as JSON."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

import typer
from rich.cells import cell_len, set_cell_size

from ..plain import number, plain
from ..records import Record
from ..wire import Header
from . import show

__all__ = ["as_json", "as_text"]

#: Characters of a value that are looked at: no line needs more.
MOST = 10_000

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def as_json(data_type: str, header: Header, record: Record) -> str:
    """All that there is. Bytes are base64; of a file or large value there is a piece."""
    return _encode(
        {
            "time": number(record.time),
            "site": header.run.site,
            "experiment": header.run.experiment,
            "run": header.run.run,
            "type": data_type,
            "key": record.key,
            "step": record.step,
            "value": _json_value(_kind(data_type, header), record.value),
            "stream": header.stream.hex(),
            "seq": header.seq,
            "offset": header.offset,
        }
    )


def _kind(data_type: str, header: Header) -> str:
    """A piece of any value is shown as one of a file is."""
    return "artifact" if header.in_pieces else data_type


def _json_value(data_type: str, value: Any) -> Any:
    if data_type == "metric":
        return number(value)
    if data_type == "image":
        return b64encode(value).decode()
    if data_type == "artifact":
        offset, size, piece, *_ = value
        return {"offset": offset, "size": size, "bytes": b64encode(piece).decode()}
    return plain(value)


def as_text(
    data_type: str, header: Header, record: Record, width: int | None, colours: bool
) -> str:
    """What matters first; on a terminal names are shortened, and the value gets what is left."""
    step = "" if record.step is None else f"step {record.step}"
    site, run, key = header.run.site, f"{header.run.experiment}/{header.run.run}", record.key
    room = (None, None, None) if width is None else (width // 8, width // 5, width // 5)
    parts = [
        (_clock(record.time), "bright_black"),
        (_short(site, room[0]), "cyan"),
        (_short(run, room[1]), "bright_black"),
        (data_type, "yellow"),
        (_short(key, room[2]), None),
        (step, "bright_black"),
        (_text_value(_kind(data_type, header), record.value), None),
    ]
    line, left = "", width
    for text, colour in parts:
        if not text:
            continue
        gap = "  " if line else ""
        if left is not None:
            left -= len(gap)
            if left <= 0:
                break
        text = _short(text, left)
        if left is not None:
            left -= cell_len(text)
        line += gap + (typer.style(text, fg=colour) if colours and colour else text)
    return line


def _clock(seconds: float) -> str:
    """The writer's time, in this machine's zone; a writer may say anything."""
    try:
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
    return f"{clock}.{int(seconds % 1 * 1000):03}"


def _short(text: str, width: int | None) -> str:
    """Fit for a terminal, and no wider."""
    text = show.clean(text[:MOST])
    if width is None or cell_len(text) <= width:
        return str(text)
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"


def _text_value(data_type: str, value: Any) -> str:
    if data_type == "image":
        return f"image {show.size(len(value))}"
    if data_type == "artifact":
        offset, size, piece, *_ = value
        done = offset + len(piece)
        return f"{done * 100 // size if size else 100} % of {show.size(size)}"
    if data_type == "histogram":
        low, high = value.get("min", value["edges"][0]), value.get("max", value["edges"][-1])
        values = f"{value.get('num', sum(value['counts'])):g} values"
        return f"{values} from {low:g} to {high:g}, {len(value['counts'])} bins"
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return f"bytes {show.size(len(value))}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(plain(value), ensure_ascii=False)
