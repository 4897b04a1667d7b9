"""Bytes on the wire, and what an import costs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from random import Random
from typing import Any

from zmqtrack import wire
from zmqtrack.records import Record, RunKey

from .plan import Plan, sample
from .processes import ROOT

__all__ = ["imports", "on_the_wire"]

#: As many as a busy training loop gathers; larger batches are a little denser.
BATCH = 2000

_IMPORTS = """
import time
a = time.perf_counter()
import zmq
b = time.perf_counter()
import zmqtrack
c = time.perf_counter()
from zmqtrack import SummaryWriter, MLflowWriter, WandBWriter
d = time.perf_counter()
print(1000 * (b - a), 1000 * (c - b), 1000 * (d - c))
"""


def on_the_wire() -> list[dict[str, Any]]:
    """Bytes of a batch's body for each record: two metrics a step, a step each 10 ms or so."""
    rows = []
    for title, double, codec in (
        ("plain", False, "none"),
        ("zstd, values of float32", False, "zstd"),
        ("zstd, values of float64", True, "zstd"),
    ):
        row: dict[str, Any] = {"id": f"wire/{codec}/{64 if double else 32}", "title": title}
        if codec == "zstd" and importlib.util.find_spec("zstandard") is None:
            rows.append({**row, "missing": "not installed: zstandard"})
            continue
        random = Random(2)
        time = 1_700_000_000.0
        records = []
        for i, value in enumerate(sample(BATCH, double=double)):
            time += 1e-5 if i % 2 else random.gauss(0.01, 0.0005)
            records.append(Record(("loss", "accuracy")[i % 2], value, 10_000 + i // 2, time))
        body = wire.encode_body(records, wire.CODECS[codec])
        run = RunKey("federated-digits", "fedavg", "site-1")
        header = wire.encode_header(wire.Header(bytes(16), 1000, run, BATCH, wire.CODECS[codec]))
        other = len(header) + len(wire.topic("metric"))
        rows.append({**row, "bytes_per_metric": len(body) / BATCH, "other_frames_bytes": other})
    return rows


def imports(plan: Plan) -> dict[str, Any]:
    """Milliseconds in fresh interpreters, the best: pyzmq's own, and zmqtrack's beyond it."""
    times = []
    for _ in range(3 if plan.quick else 9):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append([float(part) for part in done.stdout.split()])
    zmq, own, writers = (min(column) for column in zip(*times, strict=True))
    return {"pyzmq_ms": zmq, "zmqtrack_ms": own, "writers_ms": writers}
