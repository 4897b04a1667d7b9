"""An adapter, a writer and a data type of the user's own: the text of the docs is what runs."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
import zmq

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.control import connect

Make = Callable[..., Daemon]

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language, as they stand in the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH."""
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def _deliver(served: Daemon) -> None:
    with zmqtrack.init("e", "r", "s", served.address) as run:
        for step in range(100):
            run.log_metric("loss", step / 2, step, time=1000.0 + step)
        run.log("confusion_matrix", "test", [[1, 2], [3, 4]], step=7)
    served.drain()


def test_the_adapter_of_the_docs_is_short_and_works(
    daemon: Make, tmp_path: Path, packages: Path
) -> None:
    (source,) = blocks("adapters.md", "python")
    assert len(source.splitlines()) < 40
    (packages / "table_adapter.py").write_text(source)
    (config,) = blocks("adapters.md", "yaml")
    with daemon([yaml.safe_load(config)], env={"PYTHONPATH": str(packages)}) as served:
        _deliver(served)
    db = sqlite3.connect(served.folder / "metrics.db")
    rows = db.execute(
        "SELECT key, value, step, time, run, site FROM metric ORDER BY seq, place"
    ).fetchall()
    db.close()
    metrics = [("loss", str(i / 2), i, 1000.0 + i, "r", "s") for i in range(100)]
    assert [row for row in rows if row[0] == "loss"] == metrics
    assert ("test", "[[1, 2], [3, 4]]", 7) in [row[:3] for row in rows]


def test_an_adapter_loads_through_an_entry_point(
    daemon: Make, tmp_path: Path, packages: Path
) -> None:
    (source,) = blocks("adapters.md", "python")
    (packages / "table_adapter.py").write_text(source)
    (toml,) = blocks("adapters.md", "toml")
    name, value = re.search(r'^(\w+) = "(.*)"', toml, re.M).groups()  # type: ignore[union-attr]
    info = packages / "table-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: table\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zmqtrack.adapters]\n{name} = {value}\n")
    adapter = {"type": "table", "flush_interval": 0, "options": {"path": "metrics.db"}}
    with daemon([adapter], env={"PYTHONPATH": str(packages)}) as served:
        _deliver(served)
    db = sqlite3.connect(served.folder / "metrics.db")
    assert db.execute("SELECT count(*) FROM metric").fetchone() == (101,)
    db.close()


def test_the_writer_of_the_docs_works(daemon: Make, tmp_path: Path, packages: Path) -> None:
    source, use = blocks("writers.md", "python")
    (packages / "track_writer.py").write_text(source)
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        subprocess.run(
            [sys.executable, "-c", use],
            env={
                "PYTHONPATH": str(packages),
                "ZMQTRACK_ADDRESS": served.address,
                "ZMQTRACK_SPOOL_DIR": str(tmp_path / "spool"),
            },
            check=True,
            timeout=60,
        )
        served.drain()
    lines = read_jsonl(out, "digits", "run-1", "site-1")
    got = [(line["type"], line["key"], line["value"], line["step"]) for line in lines]
    assert ("param", "lr", 0.1, None) in got
    assert ("metric", "train/loss", 0.25, 1) in got


def test_a_data_type_of_ones_own_has_a_topic_of_its_own(daemon: Make, tmp_path: Path) -> None:
    (example,) = blocks("data-types.md", "python")
    with daemon() as served:
        subscriber = connect(zmq.SUB, served.request("hello")["publish"])
        subscriber.rcvtimeo = 30_000
        subscriber.subscribe(wire.topic("confusion_matrix"))
        subscriber.subscribe(wire.topic("head"))
        subscriber.recv()  # a heartbeat: the subscription has arrived
        subscriber.unsubscribe(wire.topic("head"))
        run = zmqtrack.init("e", "r", "s", served.address)
        exec(example, {"run": run})
        run.finish()
        topic, header, body = _next(subscriber, b"confusion_matrix/")
        subscriber.close()
    assert topic == b"confusion_matrix/s/"
    decoded = wire.decode_header(header)
    (record,) = wire.decode_body("confusion_matrix", decoded, body)
    assert (record.key, record.step) == ("test", 7)
    assert record.value == [[3, 1], [0, 4]]


def _next(subscriber: zmq.Socket[bytes], prefix: bytes) -> list[bytes]:
    while True:
        frames = subscriber.recv_multipart()
        if frames[0].startswith(prefix):
            return frames
