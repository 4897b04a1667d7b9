"""From the call to an adapter, over real sockets: order, identity, time; stops and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.control import connect

Make = Callable[..., Daemon]


def test_records_arrive_with_key_value_step_time_site_and_run(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("digits", "run-7", "site-1", served.address) as run:
            run.log_metric("loss", 0.5, step=3, time=1_700_000_000.125)
            run.log_param("lr", 0.1)
            run.set_tag("team", "blue")
            run.log_text("note.md", "# hello", step=1)
            run.log("confusion_matrix", "test", [[3, 1], [0, 4]], step=2)
        served.drain()
    lines = read_jsonl(out, "digits", "run-7", "site-1")
    seen = {(line["type"], line["key"]): line for line in lines}
    loss = seen["metric", "loss"]
    assert (loss["value"], loss["step"], loss["time"]) == (0.5, 3, 1_700_000_000.125)
    assert seen["param", "lr"]["value"] == 0.1
    assert seen["tag", "team"]["value"] == "blue"
    assert seen["text", "note.md"]["value"] == "# hello"
    assert seen["confusion_matrix", "test"]["value"] == [[3, 1], [0, 4]]
    assert (lines[0]["type"], lines[0]["key"]) == ("run", "start")
    assert (lines[-1]["key"], lines[-1]["value"]) == ("end", "finished")


def test_three_concurrent_sites_arrive_whole_and_each_in_order(
    daemon: Make, tmp_path: Path
) -> None:
    out, count = tmp_path / "out", 10_000
    script = (
        "import sys, zmqtrack\n"
        "run = zmqtrack.init('fed', 'run-1', sys.argv[1], sys.argv[2])\n"
        f"for i in range({count}):\n"
        "    run.log_metric(f'key-{i % 7}', i * 1.5, step=i // 2, time=1000.0 + i)\n"
        "run.finish(timeout=60)\n"
    )
    sites = ["site-1", "site-2", "site-3"]
    with daemon([jsonl(out, flush_interval="50ms")]) as served:
        writers = [
            subprocess.Popen([sys.executable, "-c", script, site, served.address]) for site in sites
        ]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        served.drain()
    expected = [(f"key-{i % 7}", i * 1.5, i // 2, 1000.0 + i) for i in range(count)]
    for site in sites:
        lines = read_jsonl(out, "fed", "run-1", site)
        got = [
            (line["key"], line["value"], line["step"], line["time"])
            for line in lines
            if line["type"] == "metric"
        ]
        assert got == expected


def test_a_flush_interval_of_zero_sends_each_call_at_once(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        run = zmqtrack.init("e", "r", "s", served.address, flush_interval=0)
        run.log_metric("a", 1)
        run.finish()
        served.drain()
    assert "a" in [line["key"] for line in read_jsonl(out, "e", "r", "s")]


def test_several_adapters_get_one_stream_and_a_topic_filter_holds(
    daemon: Make, tmp_path: Path
) -> None:
    adapters = [
        jsonl(tmp_path / "all", name="all"),
        jsonl(tmp_path / "some", name="some", topics=["metric", "confusion_matrix"]),
    ]
    with daemon(adapters) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
            run.log_param("p", "x")
            run.log("confusion_matrix", "c", [1])
        served.drain()
    everything = {line["type"] for line in read_jsonl(tmp_path / "all", "e", "r", "s")}
    assert everything == {"run", "metric", "param", "confusion_matrix"}
    some = {line["type"] for line in read_jsonl(tmp_path / "some", "e", "r", "s")}
    assert some == {"metric", "confusion_matrix"}


def test_an_adapter_that_cannot_hold_a_data_type_says_so_and_counts_it(
    daemon: Make, tmp_path: Path
) -> None:
    adapter = {
        "type": "tensorboard",
        "topics": ["metric", "confusion_matrix"],
        "flush_interval": 0,
        "options": {"logdir": str(tmp_path / "tb")},
    }
    with daemon([adapter]) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            for step in range(3):
                run.log("confusion_matrix", "c", [step], step=step)
        served.drain()
        counters = served.status()["adapters"]["tensorboard"]["counters"]
    assert counters["unsupported_type:confusion_matrix"] == 3
    assert served.log.count("unsupported_type:confusion_matrix") == 1


def test_sigterm_delivers_what_came_in_and_exits_with_0(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A long interval: only the stop can have made the adapter deliver.
    with daemon([jsonl(out, flush_interval="1h")]) as served:
        served.wait_for("delivering from offset")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        served.stop()
    assert [line["key"] for line in read_jsonl(out, "e", "r", "s")] == ["start", "a", "end"]


def test_a_stop_while_an_adapter_is_still_starting_delivers_too(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        served.wait_for("adapter jsonl runs as process")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        served.stop()
    assert [line["key"] for line in read_jsonl(out, "e", "r", "s")] == ["start", "a", "end"]


def test_an_adapter_that_is_killed_comes_back_and_nothing_is_lost_or_doubled(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        line = served.wait_for("adapter jsonl runs as process")
        served.wait_for("delivering from offset")
        run = zmqtrack.init("e", "r", "s", served.address)
        for i in range(100):
            run.log_metric("a", i, step=i)
        run.flush()
        os.kill(int(line.rsplit(" ", 1)[1]), signal.SIGKILL)
        for i in range(100, 200):
            run.log_metric("a", i, step=i)
        run.finish()
        served.wait_for("delivering from offset")
        served.drain()
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert steps == list(range(200))


def test_a_daemon_that_is_killed_and_started_again_loses_and_doubles_nothing(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    out = tmp_path / "out"
    served = daemon([jsonl(out)], control=nobody)
    served.start()
    run = zmqtrack.init("e", "r", "s", nobody)
    for i in range(1000):
        run.log_metric("a", i, step=i)
        if i == 500:
            run.flush()
            served.kill()
            served.start()
    run.finish(timeout=30)
    served.drain()
    served.stop()
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert steps == list(range(1000))


def test_a_late_adapter_starts_from_the_beginning_or_from_now(daemon: Make, tmp_path: Path) -> None:
    first = daemon()
    with first, zmqtrack.init("e", "r", "early", first.address) as run:
        run.log_metric("a", 1)
    adapters = [
        jsonl(tmp_path / "all", name="all"),
        jsonl(tmp_path / "new", name="new", start="now"),
    ]
    with daemon(adapters) as served:
        served.wait_for("delivering from offset")
        served.wait_for("delivering from offset")
        with zmqtrack.init("e", "r", "late", served.address) as run:
            run.log_metric("a", 2)
        served.drain()
    assert read_jsonl(tmp_path / "all", "e", "r", "early")
    assert read_jsonl(tmp_path / "all", "e", "r", "late")
    assert not read_jsonl(tmp_path / "new", "e", "r", "early")
    assert read_jsonl(tmp_path / "new", "e", "r", "late")


def test_a_large_artifact_arrives_byte_for_byte(daemon: Make, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "model.bin").write_bytes(content)
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_artifact(tmp_path / "model.bin", "models/model.bin")
        served.drain()
    (line,) = [r for r in read_jsonl(out, "e", "r", "s") if r["type"] == "artifact"]
    assert line["key"] == "models/model.bin"
    (found,) = [p for p in out.rglob("*model.bin*") if p.is_file()]
    assert found.read_bytes() == content


def test_zstd_bodies_pass_through_the_daemon_untouched(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address, codec="zstd") as run:
            for i in range(500):
                run.log_metric("a", i, step=i)
        served.drain()
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert steps == list(range(500))


def test_many_threads_may_log_to_one_run(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:

            def work(name: str) -> None:
                for i in range(2000):
                    run.log_metric(name, i, step=i)

            threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        served.drain()
    lines = [r for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    for n in range(4):
        assert [r["step"] for r in lines if r["key"] == f"t{n}"] == list(range(2000))


def test_a_drain_that_is_repeated_waits_for_what_there_was_when_it_was_asked_first(
    daemon: Make, tmp_path: Path
) -> None:
    """A client repeats it while it waits, and what comes in meanwhile is not waited for."""
    with daemon([jsonl(tmp_path / "out", name="away", external=True)]) as served:
        dealer = connect(zmq.DEALER, served.address)
        dealer.sndtimeo = dealer.rcvtimeo = int(1000 * PATIENCE)

        def ask(op: str, **fields: Any) -> None:
            dealer.send(wire.encode_control(op, **fields))

        def log(name: str) -> int:
            with zmqtrack.init("e", name, "s", served.address) as run:
                run.log_metric("a", 1)
                assert run.finish(timeout=PATIENCE) is None
            return int(served.status()["journal"]["head"])

        first = log("r1")
        ask("drain", id=1)
        ask("status", id=2)
        assert wire.decode_control(dealer.recv())["id"] == 2
        log("r2")
        for _ in range(100):
            ask("drain", id=1)
        ask("status", id=3)
        assert wire.decode_control(dealer.recv())["id"] == 3
        session = served.request("subscribe", name="away")["session"]
        served.request("commit", name="away", session=session, offset=first, frames=[b""],
                       counters={}, dead=[])  # fmt: skip
        answer = wire.decode_control(dealer.recv())
        assert (answer["op"], answer["id"], answer["head"]) == ("drained", 1, first)
        dealer.close()


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_one_address_is_all_that_anyone_is_told(daemon: Make, tmp_path: Path, kind: str) -> None:
    control = f"ipc://{tmp_path}/control" if kind == "ipc" else "tcp://127.0.0.1:0"
    out = tmp_path / "out"
    with daemon([jsonl(out)], control=control) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        served.drain()
    assert len(read_jsonl(out, "e", "r", "s")) == 3
