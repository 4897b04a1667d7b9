"""The operator's commands, run as a person runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.records import Record, RunKey
from zmqtrack.spool import Outgoing, Spool

RUN = RunKey("e", "r", "s")

Make = Callable[..., Daemon]


def zmqtrack_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_says_good_or_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text("adapters:\n  - {type: jsonl, options: {dir: out}}\n")
    good = zmqtrack_command("check", str(path))
    assert (good.returncode, good.stdout) == (0, f"{path}: good, 1 adapters\n")
    path.write_text("adapters:\n  - {type: jsnl}\n")
    bad = zmqtrack_command("check", str(path))
    assert bad.returncode == 78
    assert bad.stderr.startswith(f"{path}:2: adapter jsnl.type: unknown adapter type 'jsnl'")


def test_a_type_that_looks_like_a_built_in_one_is_allowed_with_a_hint(
    daemon: Make, tmp_path: Path
) -> None:
    hint = ": adapter jsonl.topics.1: 'metrics' is none of the built-in data types: did you mean"
    with daemon([jsonl(tmp_path / "out", topics=["metric", "metrics", "mine"])]) as served:
        assert f"WARNING [zmqtrackd] {served.config}:7{hint} 'metric'?" in served.lines
        checked = zmqtrack_command("check", str(served.config))
    assert (checked.returncode, checked.stdout) == (0, f"{served.config}: good, 1 adapters\n")
    assert checked.stderr == f"{served.config}:7{hint} 'metric'?\n"


def test_status_and_drain_tell_what_is_where(daemon: Make, tmp_path: Path) -> None:
    with daemon([jsonl(tmp_path / "out")]) as served:
        with zmqtrack.init("e", "r", "site-1", served.address) as run:
            for i in range(10):
                run.log_metric("a", i)
        drained = zmqtrack_command("drain", "--address", served.address)
        assert drained.returncode == 0 and drained.stdout.startswith("drained: every adapter")
        shown = zmqtrack_command("status", "--address", served.address)
        facts = json.loads(zmqtrack_command("status", "--json", "-a", served.address).stdout)
    assert shown.returncode == 0
    for word in ("site-1", "jsonl", "running", "12"):
        assert word in shown.stdout
    assert facts["adapters"]["jsonl"]["lag"] == 0
    assert facts["adapters"]["jsonl"]["counters"]["delivered"] == 12
    assert facts["losses"] == []


def test_a_drain_that_takes_too_long_names_who_is_behind_and_why(
    daemon: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    adapters = [jsonl(tmp_path / "out"), {**jsonl(tmp_path / "file" / "out"), "name": "stuck"}]
    with daemon(adapters) as served:
        with zmqtrack.init("e", "r", "s", served.address):
            pass
        while served.status()["adapters"]["stuck"]["state"] not in ("blocked", "retrying"):
            pass
        done = zmqtrack_command("drain", "-a", served.address, "--timeout", "1")
    assert done.returncode == 1
    assert re.fullmatch(
        r"not all is delivered after 1 s: stuck is \d+ batches behind, \w+ \(.*File exists\)\n",
        done.stderr,
    )


def test_no_name_is_cut_off_in_a_pipe_and_any_encoding_will_do(
    daemon: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "run-" + "long-" * 30
    with daemon() as served:
        with zmqtrack.init("é", name, "s", served.address):
            pass
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        for command in (["status"], ["top", "--once"]):
            done = zmqtrack_command(*command, "-a", served.address)
            assert (done.returncode, done.stderr) == (0, "")
            assert "\\xe9" in done.stdout
            assert name in done.stdout or command != ["status"]


def test_without_a_daemon_a_command_says_so_in_one_line(nobody: str) -> None:
    done = zmqtrack_command("drain", "--address", nobody, "--timeout", "0.3")
    assert done.returncode == 1
    assert (
        done.stderr
        == f"no daemon answers at {nobody} (waited 0.3 s); `zmqtrack doctor` looks for the reason\n"
    )


def test_an_address_that_is_none_is_a_mistake_of_usage() -> None:
    done = zmqtrack_command("status", "--address", "localhost")
    assert done.returncode == 2
    assert "'localhost' is no address" in done.stderr and "Traceback" not in done.stderr


def test_spool_send_names_an_outbox_that_no_longer_says_where_it_goes_and_sends_the_others(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon() as served:
        for address in ("", served.address):
            with closing(Spool.create(tmp_path / "left", RUN, address)) as spool:
                body = wire.encode_body([Record("m", 1.0, 1, 1.0)])
                header = wire.encode_header(wire.Header(spool.stream, 1, RUN, 1))
                spool.append([Outgoing(1, "metric", 1, header, body)])
        done = zmqtrack_command("spool", "send", "--dir", str(tmp_path / "left"))
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "name it with --address" in done.stderr
        (site,) = served.status()["sites"]
        assert site["records"] == 1
        done = zmqtrack_command(
            "spool", "send", "--dir", str(tmp_path / "left"), "-a", served.address
        )
        assert done.returncode == 0 and "1 records delivered, 0 left" in done.stdout


def test_spool_list_and_send_say_where_they_look_and_that_they_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, told in (
        ("empty", f"nothing waits in {tmp_path}/empty\n"),
        ("none", f"nothing waits here: there is no folder {tmp_path}/none\n"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        monkeypatch.setenv("ZMQTRACK_SPOOL_DIR", str(tmp_path / name))
        assert zmqtrack_command("spool", "list").stdout == told
    (tmp_path / "file").touch()  # as a folder that may not be read, which root may
    monkeypatch.setenv("ZMQTRACK_SPOOL_DIR", str(tmp_path / "file"))
    for command in ("list", "send"):
        done = zmqtrack_command("spool", command)
        assert done.returncode == 1
        assert (
            done.stderr == f"{tmp_path}/file: the outboxes cannot be looked at: Not a directory\n"
        )


def test_spool_list_shows_and_spool_send_delivers_what_was_left(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    assert "nothing waits" in zmqtrack_command("spool", "list").stdout
    run = zmqtrack.init("e", "r", "s", nobody)
    run.log_metrics({"a": 1, "b": 2}, step=1)
    run.finish(timeout=0)
    (facts,) = json.loads(zmqtrack_command("spool", "list", "--json").stdout)
    assert (facts["site"], facts["records"], facts["address"]) == ("s", 4, nobody)
    assert "tcp://" in zmqtrack_command("spool", "list").stdout
    failed = zmqtrack_command("spool", "send", "--timeout", "0.2")
    assert (failed.returncode, failed.stdout) == (1, "0 records delivered, 4 left\n")
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        sent = zmqtrack_command("spool", "send", "--address", served.address)
        assert (sent.returncode, sent.stdout) == (0, "4 records delivered, 0 left\n")
        served.drain()
    assert [line["key"] for line in read_jsonl(out, "e", "r", "s")] == ["start", "a", "b", "end"]
    assert not list((tmp_path / "spool").iterdir())
