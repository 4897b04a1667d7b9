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
from zmqtrack.config import AdapterConfig
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
    config, secret = blocks("adapters.md", "yaml")
    assert AdapterConfig.model_validate(yaml.safe_load(secret)).secrets["WANDB_API_KEY"].file
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


#: An adapter that leaves a mark where it is imported from, and by which process.
PROBE = """
import sys
from pathlib import Path
from zmqtrack.adapters.base import Adapter

with Path({mark!r}).open("a") as file:
    print(__file__, *sys.path, sep="|", file=file)

class Probe(Adapter):
    def deliver(self, batches):
        pass
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """The adapter, in the folder in which the daemon will be started; returns its mark."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    mark = tmp_path / "mark"
    (folder / "probe.py").write_text(PROBE.format(mark=str(mark)))
    return mark


def _by_hand(served: Daemon, name: str) -> subprocess.CompletedProcess[str]:
    config = served.folder / "by-hand.yaml"
    config.write_text(f"adapters:\n  - type: probe:Probe\n    name: {name}\n")
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.adapters", "--config", str(config), "--name", name],
        cwd=served.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_adapter_is_imported_from_the_folder_in_which_the_daemon_is_started(
    daemon: Make, probe: Path
) -> None:
    served = daemon([{"type": "probe:Probe"}])
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon", "--config", str(served.config)],
        cwd=served.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for ended in (done, _by_hand(served, "one")):
        assert ended.returncode == 78
        assert re.search(
            r"\.yaml:\d+: adapter \w+\.type: 'probe:Probe': cannot import 'probe': No module named "
            rf"'probe'\. It is in {served.folder}, but nothing is imported from the folder .* "
            r"install it \(pip install -e \.\), or name its folder in PYTHONPATH",
            ended.stderr,
        )
    assert not probe.exists()


def test_what_pythonpath_names_counts_as_installed_also_when_it_is_that_folder(
    daemon: Make, probe: Path
) -> None:
    folder = probe.parent / "daemon"
    with daemon([{"type": "probe:Probe"}], env={"PYTHONPATH": str(folder)}) as served:
        served.wait_for("delivering from")
    checked, running = [line.split("|") for line in probe.read_text().splitlines()]
    assert checked == running
    assert checked[0] == str(folder / "probe.py")
    assert checked[1:].count(str(folder)) == 1 and "" not in checked


def test_the_adapters_processes_look_for_nothing_in_the_folder_of_the_start(
    daemon: Make, probe: Path, packages: Path
) -> None:
    (probe.parent / "daemon" / "probe.py").rename(packages / "probe.py")
    with daemon([{"type": "probe:Probe"}], env={"PYTHONPATH": str(packages)}) as served:
        served.wait_for("delivering from")
    for line in probe.read_text().splitlines():
        path = line.split("|")[1:]
        assert str(packages) in path
        assert not {"", ".", str(served.folder)} & set(path)


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
