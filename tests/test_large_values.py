"""Values of any size travel in pieces: no logging call raises, and trackers get them whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from readers import TensorBoardRun
from test_host import Moody, until
from test_limits import losses as losses_of
from zmqtrack.image import encode_image

numpy = pytest.importorskip("numpy")

Make = Callable[..., Daemon]

MB = 1_000_000


def _noise(*shape: int) -> Any:
    return numpy.random.default_rng(7).integers(0, 256, shape, dtype=numpy.uint8)


def _files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_large_values_of_all_data_types_arrive_whole_and_in_order(
    daemon: Make, tmp_path: Path, codec: str
) -> None:
    if codec == "zstd":
        pytest.importorskip("zstandard")
    out = tmp_path / "out"
    image = encode_image(_noise(1500, 1500, 3))
    values = list(range(3_000_000))
    histogram = {"counts": [1] * 400_000, "edges": list(range(400_001))}
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address, codec=codec, exit_timeout=60) as run:
            run.log_text("note", "first", step=0)
            run.log_text("note", "ä" * (3 * MB), step=1)
            run.log_text("note", "between", step=2)
            run.log_text("note", "b" * (20 * MB), step=3)
            run.log_text("note", "last", step=4)
            run.log_image("noise", image, step=5)
            run.log_param("param", "p" * (5 * MB))
            run.set_tag("tag", "t" * (5 * MB))
            run.log_line("l" * (5 * MB))
            run.log("own", "list", values, step=6)
            run.log("own", "bytes", b"\xff" * (5 * MB), step=7)
            run.log_histogram("histogram", histogram, step=8)
            for _ in range(2):  # alike in all that a user says of them
                run.log_text("twin", "w" * (2 * MB), step=1, time=1.0)
        served.drain()
        assert served.status()["losses"] == []
    lines = read_jsonl(out, "e", "r", "s")
    texts = [line for line in lines if line["key"] == "note"]
    assert [line["step"] for line in texts] == [0, 1, 2, 3, 4]
    assert texts[1]["value"] == "ä" * (3 * MB)
    assert texts[3]["value"] == "b" * (20 * MB)
    assert [line["value"] for line in lines if line["key"] == "twin"] == ["w" * (2 * MB)] * 2
    by_key = {line["key"]: line for line in lines if line["type"] != "text"}
    assert by_key["param"]["value"] == "p" * (5 * MB)
    assert by_key["tag"]["value"] == "t" * (5 * MB)
    assert by_key["stdout"]["value"] == "l" * (5 * MB)
    assert by_key["list"]["value"] == values
    assert by_key["histogram"]["value"]["counts"] == [1] * 400_000
    assert image in _files(out)
    assert not list(served.state_dir.rglob("incoming/*"))


CALLS = """
import sys, numpy, zmqtrack
noise = numpy.random.default_rng(7).integers(0, 256, (64, 3, 224, 224), dtype=numpy.uint8)
large = numpy.random.default_rng(8).integers(0, 256, (1500, 1500, 3), dtype=numpy.uint8)
names = {"address": sys.argv[1]}
tb = zmqtrack.SummaryWriter("logs", **names)
tb.add_images("batch", noise, 1)
tb.add_text("long", "x" * 5_000_000, 2)
tb.close()
import zmqtrack.writers.mlflow as mlflow
with mlflow.start_run():
    mlflow.log_dict({str(n): "y" * 60 for n in range(90_000)}, "large.json")
    mlflow.log_image(large, "large.png")
import zmqtrack.writers.wandb as wandb
run = wandb.init(project="p")
run.log({"image": wandb.Image(large), "html": wandb.Html("<p>" + "z" * 5_000_000 + "</p>")})
run.finish()
"""


def test_what_the_tools_take_arrives_in_every_tracker(daemon: Make, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    places = {name: tmp_path / name for name in ("lines", "tensorboard", "wandb")}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    adapters = [
        jsonl(places["lines"]),
        {"type": "tensorboard", "options": {"logdir": str(places["tensorboard"])}},
        {
            "type": "mlflow",
            "options": {"tracking_uri": uri, "artifact_location": str(tmp_path / "mlflow")},
        },
        {"type": "wandb", "options": {"mode": "offline", "dir": str(places["wandb"])}},
    ]
    environment = os.environ | {
        "ZMQTRACK_EXPERIMENT": "e",
        "ZMQTRACK_RUN": "r",
        "ZMQTRACK_SITE": "s",
        "ZMQTRACK_EXIT_TIMEOUT": "60",
    }
    with daemon(adapters, env={"MLFLOW_DISABLE_TELEMETRY": "true"}) as served:
        done = subprocess.run(
            [sys.executable, "-c", CALLS, served.address],
            env=environment | {"ZMQTRACK_ADDRESS": served.address},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        served.drain(timeout=100)
        status = served.status()
        assert status["losses"] == []
        assert served.request("dlq")["total"] == 0
        for name, adapter in status["adapters"].items():
            assert not {c for c in adapter["counters"] if "incomplete" in c}, name
    batch = max(_files(places["lines"]), key=len)
    assert len(batch) > 9 * MB
    html = b"<p>" + b"z" * (5 * MB) + b"</p>"
    found = {name: _files(folder) for name, folder in places.items()}
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("e")
    found["mlflow"] = _files(Path(experiment.artifact_location.removeprefix("file://")))
    for name in ("mlflow", "wandb"):
        assert batch in found[name], name
        assert any(html in file for file in found[name]), name
        assert any(b"x" * (5 * MB) in file for file in found[name]), name
    assert any(b"y" * 60 in file and len(file) > 6 * MB for file in found["mlflow"])
    images = {
        seen.value
        for folder in places["tensorboard"].glob("e/r*")
        for all_of in TensorBoardRun(places["tensorboard"], "e", folder.name, "s").images.values()
        for seen in all_of
    }
    assert batch in images
    assert len(images) == 2  # both others show the same
    assert any(b"z" * (5 * MB) in file for file in found["tensorboard"])


def test_what_is_over_a_limit_is_told_once_and_counted_and_does_not_raise(
    daemon: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    limits = {"text": 3 * MB, "image": 3 * MB, "value": 3 * MB, "artifact": 3 * MB}
    image = encode_image(_noise(1500, 1500, 3))
    (tmp_path / "file").write_bytes(bytes(4 * MB))
    with daemon([jsonl(out)], limits=limits) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            until(lambda: run._sender._own and run._sender._own.sizes)
            for step in range(3):
                run.log_text("large", "x" * (4 * MB), step=step)
                run.log_text("fits", "x" * (3 * MB), step=step)
            run.log_image("large", image)
            run.log_param("large", "p" * (4 * MB))
            run.log("own", "large", [1.5] * MB)
            run.log_artifact(tmp_path / "file")
            run.log_metric("a", 1)
        served.drain()
        losses = losses_of(served)
    assert losses == {
        "text_too_large": 3,
        "image_too_large": 1,
        "value_too_large": 2,
        "artifact_too_large": 1,
    }
    said = [text for text in caplog.messages if "_too_large" in text]
    assert len(said) == 4
    assert sum("limits.image" in text for text in said) == 1
    lines = [line for line in read_jsonl(out, "e", "r", "s") if line["type"] != "run"]
    assert {(line["type"], line["key"]) for line in lines} == {("text", "fits"), ("metric", "a")}
    assert len(lines) == 4


def test_a_writer_that_does_not_know_the_limit_is_refused_by_it(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    out = tmp_path / "out"
    run = zmqtrack.init("e", "r", "s", nobody, exit_timeout=60)
    run.log_image("large", encode_image(_noise(1500, 1500, 3)))
    run.log_metric("a", 1)
    assert run.flush()
    with daemon([jsonl(out)], control=nobody, limits={"image": 3 * MB}) as served:
        run.finish()
        served.drain()
        losses = losses_of(served)
    assert losses == {"image_too_large": 13}  # pieces
    types = [line["type"] for line in read_jsonl(out, "e", "r", "s")]
    assert sorted(types) == ["metric", "run", "run"]


def test_a_refused_large_value_is_a_dead_letter_and_can_be_retried(
    daemon: Make, tmp_path: Path
) -> None:
    one = Moody(tmp_path / "moody", daemon, "")
    text = "t" * (10 * MB)
    with one.daemon as served:
        with zmqtrack.init("e", "r", "s", served.address, exit_timeout=60) as run:
            for key in ("bad", "good", "bad"):
                run.log_text(key, text, step=1, time=2.0)
        served.drain()
        assert [row[0] for row in one.rows("text")] == ["good"]
        assert one.status()["dead_letters"] == 6  # pieces of 4 MiB
        command = [sys.executable, "-m", "zmqtrack.cli", "dlq", "show", "1"]
        shown = subprocess.run(
            [*command, "--address", served.address], capture_output=True, timeout=60, check=True
        )
        offset, size, *_ = json.loads(shown.stdout)[0]["records"][0]["value"]
        assert (offset, size) == (0, 10 * MB + 5)
        one.set("lenient")
        one.retry_all()
        until(lambda: one.status()["dead_letters"] == 0)
        until(lambda: len(one.rows("text")) == 3)
    assert [row[:2] for row in one.rows("text")] == [
        ("good", text), ("bad", text), ("bad", text)
    ]  # fmt: skip


def test_a_value_of_which_a_piece_was_given_up_is_counted_once(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    out = tmp_path / "out"
    run = zmqtrack.init("e", "r", "s", nobody, spool_bytes=4 * MB, exit_timeout=60)
    for step in range(3):
        run.log_text("large", "x" * (3 * MB), step=step)
        assert run.flush()
    with daemon([jsonl(out)], control=nobody) as served:
        run.finish()
        served.drain()
        status = served.status()
        assert losses_of(served)["spool_full"] > 0
    steps = [line["step"] for line in read_jsonl(out, "e", "r", "s") if line["type"] == "text"]
    assert steps == [2]  # the newest
    assert status["adapters"]["jsonl"]["counters"]["value_incomplete"] == 1


def test_what_may_leave_is_decided_for_a_large_value_as_a_whole(
    daemon: Make, tmp_path: Path
) -> None:
    out, policy = tmp_path / "out", tmp_path / "policy.yaml"
    policy.write_text(json.dumps({"sizes": {"text": 3 * MB}, "deny": ["secret*"]}))
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address, egress=policy) as run:
            run.log_text("exactly", "x" * (3 * MB))
            run.log_text("more", "x" * (3 * MB + 1))
            run.log_text("secret", "x" * (2 * MB))
            run.flush()
            assert run.held == {"sizes": 1, "deny": 1}
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    assert [line["key"] for line in lines if line["type"] == "text"] == ["exactly"]


MEMORY = """
import json, resource, sys, zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=100)
run.log_metric("a", 1)
run.flush()
image = b"\\x89PNG\\r\\n\\x1a\\n" + bytes(100_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run.log_image("large", image)
run.finish()
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000))
"""


def test_neither_writer_nor_adapter_holds_a_large_value_many_times(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, served.address],
            capture_output=True,
            text=True,
            timeout=110,
            check=True,
        )
        served.drain()
        adapter = re.search(r"adapter jsonl runs as process (\d+)", served.log)[1]  # type: ignore[index]
        status = Path(f"/proc/{adapter}/status").read_text()
    peak = int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) / 1000
    assert max(map(len, _files(out))) == 100 * MB + 8
    assert json.loads(done.stdout) < 250, done.stdout  # MB beside the value: its encoding, pieces
    assert peak < 60 + 350, peak
