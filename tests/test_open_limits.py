"""Limits stand where a fault begins: they bound bytes, and what is open now (G8)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmqtrack.daemon import limits
from zmqtrack.daemon.limits import Exceeded, Limits

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.config import LimitsConfig
from zmqtrack.control import connect
from zmqtrack.records import RunKey
from zmqtrack.spool import orphans

Make = Callable[..., Daemon]


def test_a_run_with_very_many_keys_loses_none(daemon: Make, tmp_path: Path) -> None:
    """Gradients by layer: 12,000 keys, at each of 4 steps."""
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init("e", "r", "s", served.address, exit_timeout=PATIENCE) as run:
            for step in range(4):
                for layer in range(12_000):
                    run.log_metric(f"gradients/block_{layer // 12}/weight_{layer}", 0.5, step)
        served.drain()
        assert served.status()["losses"] == []
    metrics = [line for line in read_jsonl(out, "e", "r", "s") if line["type"] == "metric"]
    assert len(metrics) == 48_000 and len({line["key"] for line in metrics}) == 12_000


def test_runs_one_after_another_are_never_too_many(daemon: Make) -> None:
    with daemon(limits={"runs": 2, "streams": 2}) as served:
        for number in range(8):
            with zmqtrack.init(
                "e", f"r{number}", "s", served.address, exit_timeout=PATIENCE
            ) as run:
                run.log_metric("a", 1)
        status = served.status()
        assert {site["records"] for site in status["sites"]} == {3} and len(status["sites"]) == 8
        assert status["daemon"]["refused"] == {} and status["losses"] == []


@pytest.mark.parametrize("limit", ["runs", "streams"])
def test_one_too_many_waits_with_its_records_until_another_has_ended(
    daemon: Make, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr("zmqtrack.link.PATIENCE_MAX", 0.5)
    with daemon(limits={limit: 2}) as served:
        first, second, third = (
            zmqtrack.init("e", f"r{number}", "s", served.address) for number in range(3)
        )
        waiting = [first, second, third]
        for run in waiting:
            run.log_metric("a", 1.0)
            run.flush()
        served.wait_for(f"limits.{limit} is 2: this one waits until another has ended")
        deadline = time.monotonic() + PATIENCE
        while len(open_now := {site["run"] for site in served.status()["sites"]}) < 2:
            assert time.monotonic() < deadline
        out = next(run for run in waiting if run.key.run not in open_now)
        ended = next(run for run in waiting if run.key.run in open_now)
        ended.finish(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while out.key.run not in {site["run"] for site in served.status()["sites"]}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for run in waiting:
            run.finish(timeout=PATIENCE)
        status = served.status()
        assert {site["records"] for site in status["sites"]} == {3} and status["losses"] == []


def test_an_outbox_that_waits_for_room_is_sent_by_the_same_run_once_there_is(
    daemon: Make, monkeypatch: pytest.MonkeyPatch, nobody: str, tmp_path: Path
) -> None:
    """And others that need no room do not wait behind it."""
    monkeypatch.setattr("zmqtrack.sender.ADOPT_INTERVAL", 0.5)
    for name in ("left", "one"):  # that which needs room is the older
        run = zmqtrack.init("e", name, "s", nobody)
        run.log_metric("a", 1.0)
        run.finish(timeout=0)
    with daemon(control=nobody, limits={"runs": 2}) as served:
        elsewhere = {"spool_dir": tmp_path / "elsewhere", "exit_timeout": PATIENCE}
        one, two = (zmqtrack.init("e", name, "s", nobody, **elsewhere) for name in ("one", "two"))

        def records(expected: dict[str, int]) -> None:
            deadline = time.monotonic() + PATIENCE
            while {s["run"]: s["records"] for s in served.status()["sites"]} != expected:
                assert time.monotonic() < deadline, served.status()["sites"]
                time.sleep(0.05)

        records({"one": 1, "two": 1})
        again = zmqtrack.init("e", "one", "s", nobody, exit_timeout=PATIENCE)  # it adopts
        records({"one": 1 + 3 + 1, "two": 1})
        assert len(orphans(tmp_path / "spool")) == 2  # its own, and the one that waits
        two.finish()
        records({"one": 5, "two": 2, "left": 3})
        again.finish()
        one.finish()


def test_what_was_killed_makes_room_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOK_AGAIN", 0.0)
    bounds = Limits(LimitsConfig.model_validate({"runs": 1, "streams": 1}), [RunKey("e", "r", "s")])
    with pytest.raises(Exceeded, match=r"limits\.runs is 1"):
        bounds.open_stream(b"1", RunKey("e", "other", "s"))
    bounds.open_stream(b"1", RunKey("e", "r", "s"))
    with pytest.raises(Exceeded, match=r"limits\.streams is 1"):
        bounds.open_stream(b"2", RunKey("e", "r", "s"))
    bounds.open_stream(b"1", RunKey("e", "r", "another site"))
    monkeypatch.setattr(limits, "OPEN", 0.0)
    bounds.open_stream(b"2", RunKey("e", "other", "s"))


def test_one_writer_too_many_leaves_no_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = Limits(LimitsConfig.model_validate({"runs": 2, "streams": 1}), [])
    bounds.open_stream(b"1", RunKey("e", "r1", "s"))
    for number in range(2, 5):
        with pytest.raises(Exceeded, match=r"limits\.streams is 1"):
            bounds.open_stream(b"2", RunKey("e", f"r{number}", "s"))


def test_a_file_of_more_than_ten_gib_is_taken(daemon: Make) -> None:
    """Its first piece tells the size of all of it."""
    with daemon() as served:
        status = served.status()
        control = connect(zmq.DEALER, status["control"])
        ingest = connect(zmq.PUSH, status["ingest"])
        for socket in (control, ingest):
            socket.sndtimeo = socket.rcvtimeo = int(1000 * PATIENCE)
        run = RunKey("e", "r", "s")
        hello = {"role": "writer", "stream": b"x" * 16, "run": list(run), "acked": 0, "last": 0}
        control.send(wire.encode_control("hello", **hello))
        assert wire.decode_control(control.recv())["sizes"]["artifact"] >= 1 << 40
        body = wire.encode_body([("model.pt", [0, 12 << 30, b"x"], None, 1.0)])
        header = wire.encode_header(wire.Header(b"x" * 16, 1, run, 1))
        ingest.send_multipart([wire.topic("artifact"), header, body])
        assert wire.decode_control(control.recv())["op"] == "ack"
        control.close()
        ingest.close()
        assert served.status()["losses"] == []
