"""What leaves a site: only what its policy lets pass; the rest is counted and audited there."""

from __future__ import annotations

import collections
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack import auditfile, egress
from zmqtrack.egress import Gate
from zmqtrack.policy import Policy
from zmqtrack.records import RunKey

Make = Callable[..., Daemon]
Held = dict[tuple[str, str, str], int]

RUN = RunKey("e", "r", "s")


def write(folder: Path, name: str = "policy.json", **policy: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(policy))
    return path


def audited(path: Path) -> Held:
    """Records by (type, key, reason), over all lines of an audit file."""
    found: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for line in map(json.loads, path.read_text().splitlines()):
        assert (line["experiment"], line["run"], line["site"]) == RUN
        assert abs(line["time"] - time.time()) < 600
        found[line["type"], line["key"], line["reason"]] += line["records"]
    return dict(found)


def arrived(out: Path) -> list[tuple[str, str]]:
    return [(line["type"], line["key"]) for line in read_jsonl(out, *RUN)]


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., Gate]:
    def make(**policy: Any) -> Gate:
        return Gate(Policy.load(write(tmp_path, **policy)), RUN, tmp_path)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(egress, "_clock", lambda: now[0])
    return now


def metric(key: str, value: float = 0.5) -> tuple[str, Any, None, float, str]:
    return (key, value, None, 1.0, "metric")


def piece(key: str, offset: int, size: int, data: bytes, when: float = 1.0) -> Any:
    return (key, [offset, size, data], None, when, "artifact")


# --- from the call to the tracker --------------------------------------------------------


def test_only_what_is_allowed_arrives_and_the_audit_names_the_rest(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    policy = write(
        tmp_path,
        types=["metric", "param", "run"],
        allow=["train/*", "lr"],
        deny=["*secret*"],
    )
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init(*RUN, served.address, egress=policy, config={"lr": 0.1}) as run:
            for step in range(300):
                run.log_metric("train/loss", 0.5, step=step)
                run.log_metric("train/secret_loss", 0.5, step=step)
                run.log_metric("other", 0.5, step=step)
            run.log_text("train/note", "hello")
            run.log_param("seed", 7)
            run.log_line("output")
        served.drain()
        assert served.status()["losses"] == []
    got = collections.Counter(arrived(out))
    assert got == {
        ("run", "start"): 1,
        ("param", "lr"): 1,
        ("metric", "train/loss"): 300,
        ("run", "end"): 1,
    }
    assert run.held == {"deny": 300, "allow": 301, "types": 2}
    audit = tmp_path / "spool" / "egress-audit.jsonl"
    assert audited(audit) == {
        ("metric", "train/secret_loss", "deny"): 300,
        ("metric", "other", "allow"): 300,
        ("param", "seed", "allow"): 1,
        ("text", "train/note", "types"): 1,
        ("log", "stdout", "types"): 1,
    }
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_what_is_held_back_leaves_no_trace_in_spool_or_journal(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    policy = write(tmp_path, deny=["*canary*"])
    served = daemon(control=nobody)
    run = zmqtrack.init(*RUN, nobody, egress=policy)
    run.log_param("canary-key", "x")
    run.log_text("note", "kept-text")
    run.log_text("canary-note", "other-text")
    assert run.flush()
    spooled = b"".join(p.read_bytes() for p in (tmp_path / "spool").glob("*.spool*"))
    with served:
        run.finish(timeout=30)
    journalled = b"".join(p.read_bytes() for p in served.state_dir.rglob("*") if p.is_file())
    for found in (spooled, journalled):
        assert b"kept-text" in found
        assert b"canary" not in found and b"other-text" not in found


def test_a_run_opens_and_closes_without_its_facts_where_run_is_not_among_the_types(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    policy = write(tmp_path, types=[], deny=["*"])
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init(*RUN, served.address, egress=policy) as run:
            run.log_metric("a", 1)
            run.lose("unsupported_thing")
        served.drain()
        counted = {each["reason"]: each["n"] for each in served.status()["not_carried"]}
    lines = read_jsonl(out, *RUN)
    assert [(r["key"], r["value"]) for r in lines] == [("start", {}), ("end", "finished")]
    assert counted == {"unsupported_thing": 1}
    assert run.held == {"types": 1}


def test_the_facts_of_a_run_leave_where_nothing_says_otherwise(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init(*RUN, served.address, egress=write(tmp_path, deny=["*"])):
            pass
        served.drain()
    assert read_jsonl(out, *RUN)[0]["value"]["pid"] == os.getpid()
    assert not (tmp_path / "spool" / "egress-audit.jsonl").exists()


def test_a_file_arrives_whole_or_not_at_all(daemon: Make, tmp_path: Path) -> None:
    out, limit = tmp_path / "out", 2_000_000
    (tmp_path / "fits.bin").write_bytes(os.urandom(limit))
    (tmp_path / "large.bin").write_bytes(os.urandom(limit + 1))
    (tmp_path / "empty.bin").write_bytes(b"")
    policy = write(tmp_path, sizes={"artifact": limit, "*": 10}, deny=["*.key"])
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init(*RUN, served.address, egress=policy) as run:
            for name in ("fits.bin", "large.bin", "empty.bin"):
                run.log_artifact(tmp_path / name)
            run.log_artifact(tmp_path / "fits.bin", "private.key")
        served.drain()
    files = [line for line in read_jsonl(out, *RUN) if line["type"] == "artifact"]
    assert [(line["key"], line["value"]["size"]) for line in files] == [
        ("fits.bin", limit),
        ("empty.bin", 0),
    ]
    assert audited(tmp_path / "spool" / "egress-audit.jsonl") == {
        ("artifact", "large.bin", "sizes"): 1,
        ("artifact", "private.key", "deny"): 1,
    }


def test_a_file_among_more_than_its_rate_is_held_back_whole(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = os.urandom(1_500_000)
    (tmp_path / "model.bin").write_bytes(content)
    policy = write(tmp_path, rates={"artifact": 0.001})
    with daemon([jsonl(out)]) as served:
        with zmqtrack.init(*RUN, served.address, egress=policy) as run:
            for n in range(3):
                run.log_artifact(tmp_path / "model.bin", f"model-{n}.bin")
        served.drain()
    (line,) = [r for r in read_jsonl(out, *RUN) if r["type"] == "artifact"]
    assert (line["key"], line["value"]["size"]) == ("model-0.bin", len(content))
    assert run.held == {"rates": 2}


def test_while_the_audit_cannot_be_written_nothing_is_sent_and_then_all_of_it(
    daemon: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sift = Gate.sift

    def slow(gate: Gate, entries: Any) -> Any:
        time.sleep(0.5)
        return sift(gate, entries)

    out, audit = tmp_path / "out", tmp_path / "audit.jsonl"
    policy = write(tmp_path, deny=["bad"], audit="audit.jsonl")
    with daemon([jsonl(out)]) as served:
        run = zmqtrack.init(*RUN, served.address, egress=policy)
        run.log_metric("before", 1)
        assert run.flush()
        audit.mkdir()
        for step in range(10):
            run.log_metric("bad", 1, step=step)
            run.log_metric("good", 1, step=step)
        assert not run.flush(timeout=1)  # it does not claim what it could not keep
        run.log_metric("good", 1, step=10)
        assert not run.flush(timeout=1)
        assert run._buffer  # no more is taken out than what waits already
        served.drain()
        assert ("metric", "good") not in arrived(out)
        assert b"good" not in b"".join(
            p.read_bytes() for p in (tmp_path / "spool").glob("*.spool*")
        )
        # What flush returned for is kept: also what had waited in the buffer.
        monkeypatch.setattr(Gate, "sift", slow)
        audit.rmdir()
        run.log_metric("bad", 1, step=11)
        assert run.flush(timeout=30)
        assert audited(audit) == {("metric", "bad", "deny"): 11}
        run.finish(timeout=30)
        served.drain()
    lines = [r for r in read_jsonl(out, *RUN) if r["key"] == "good"]
    assert [line["step"] for line in lines] == list(range(11))
    said = [r.message for r in caplog.records if "nothing is sent" in r.message]
    assert len(said) == 1 and str(audit) in said[0]


def test_a_process_that_ends_while_the_audit_cannot_be_written_sends_nothing_and_says_so(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    policy = write(tmp_path, deny=["bad"], audit="audit.jsonl")
    code = (
        "import sys, pathlib, zmqtrack\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1], egress=sys.argv[2], exit_timeout=2)\n"
        "assert run.flush()\n"
        "pathlib.Path(sys.argv[3]).mkdir()\n"
        "run.log_metric('bad', 1)\n"
        "run.log_metric('good', 1)\n"
    )
    audit = tmp_path / "audit.jsonl"
    with daemon([jsonl(out)]) as served:
        done = subprocess.run(
            [sys.executable, "-c", code, served.address, policy, audit],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        served.drain()
    assert done.returncode == 0
    assert f"{audit} could not be written to the end" in done.stderr
    assert arrived(out) == [("run", "start")]


def test_a_forked_child_keeps_to_the_policy(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys, zmqtrack\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1], exit_timeout=30)\n"
        "run.log_metric('bad', 1)\n"
        "run.log_metric('parent', 1)\n"
        "run.flush()\n"
        "if os.fork() == 0:\n"
        "    run.log_metric('bad', 1)\n"
        "    run.log_metric('bad', 1)\n"
        "    run.log_metric('child', 1)\n"
        "    run.finish()\n"
        "    assert run.held == {'deny': 2}, run.held\n"
        "    os._exit(0)\n"
        "assert os.wait()[1] == 0\n"
    )
    env = {**os.environ, "ZMQTRACK_EGRESS": str(write(tmp_path, deny=["bad"]))}
    with daemon([jsonl(out)]) as served:
        subprocess.run([sys.executable, "-c", code, served.address], check=True, env=env)
        served.drain()
    assert sorted(arrived(out)) == [
        ("metric", "child"),
        ("metric", "parent"),
        ("run", "end"),
        ("run", "start"),
    ]
    assert audited(tmp_path / "spool" / "egress-audit.jsonl") == {("metric", "bad", "deny"): 3}


def test_a_child_that_has_nothing_to_send_still_waits_for_its_audit(
    nobody: str, tmp_path: Path
) -> None:
    policy = write(tmp_path, deny=["bad"], audit="audit.jsonl")
    code = (
        "import os, sys, pathlib, threading, zmqtrack\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1], egress=sys.argv[2], exit_timeout=0)\n"
        "if os.fork() == 0:\n"
        "    audit = pathlib.Path(sys.argv[3])\n"
        "    audit.mkdir()\n"
        "    run.log_metric('bad', 1)\n"
        "    threading.Timer(1, audit.rmdir).start()\n"
        "    run.finish(timeout=30)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    audit = tmp_path / "audit.jsonl"
    subprocess.run([sys.executable, "-c", code, nobody, policy, audit], check=True)
    assert audited(audit) == {("metric", "bad", "deny"): 1}


def test_each_reason_is_said_once_and_a_loop_does_not_write_a_line_for_each_record(
    nobody: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = write(tmp_path, types=["metric"], deny=["bad*"])
    run = zmqtrack.init(*RUN, nobody, egress=policy, exit_timeout=0)
    for step in range(20_000):
        run.log_metric(f"bad{step % 2}", 1, step=step)
    run.log_text("note", "x")
    run.finish()
    said = [r.message for r in caplog.records if "held back" in r.message]
    assert len(said) == 2 and all(str(policy) in message for message in said)
    audit = tmp_path / "spool" / "egress-audit.jsonl"
    assert audited(audit) == {
        ("metric", "bad0", "deny"): 10_000,
        ("metric", "bad1", "deny"): 10_000,
        ("text", "note", "types"): 1,
    }
    assert len(audit.read_text().splitlines()) < 200


# --- the policy --------------------------------------------------------------------------


def test_deny_wins_over_allow_and_patterns_are_for_the_whole_key(gate: Callable[..., Gate]) -> None:
    one = gate(allow=["train/*", "*.md", "Acc"], deny=["train/private/*"])
    keys = ["train/loss", "train/a/b", "train/private/x", "x/train/loss", "n.md", "n.mdx", "acc"]
    passed = [entry[0] for entry in one.sift([metric(key) for key in keys])]
    assert passed == ["train/loss", "train/a/b", "n.md"]
    assert one.held == {"deny": 1, "allow": 3}


def test_a_pattern_matches_however_its_accents_are_spelt(gate: Callable[..., Gate]) -> None:
    one = gate(deny=["*caf\u00e9*"])
    assert one.sift([metric("cafe\u0301/loss"), metric("caf\u00e9")]) == []


def test_sizes_are_those_of_the_data_type_else_those_of_all(gate: Callable[..., Gate]) -> None:
    one = gate(sizes={"*": 10, "image": 3})
    entries: list[tuple[str, Any, str]] = [
        ("fits", "x" * 10, "text"),
        ("larger", "x" * 11, "text"),
        ("umlauts", "ä" * 6, "text"),
        ("fits", b"123", "image"),
        ("larger", b"1234", "image"),
        ("fits", 1_000_000, "param"),
        ("larger", list(range(20)), "param"),
        ("larger", {"a": "x" * 20}, "own_type"),
        ("unmeasurable", object(), "own_type"),
        ("fits", 0.5, "metric"),
        ("start", {"host": "x" * 100}, "run"),
        ("reason", 10**12, "lost"),
    ]
    passed = one.sift([(key, value, None, 1.0, kind) for key, value, kind in entries])
    assert [entry[0] for entry in passed] == ["fits"] * 4 + ["start", "reason"]
    assert one.held == {"sizes": 6}


def test_rates_let_a_second_s_worth_pass_at_once_and_then_so_many_a_second(
    gate: Callable[..., Gate], clock: list[float]
) -> None:
    one = gate(rates={"metric": 10, "*": 2})

    def log(n: int, data_type: str = "metric") -> int:
        passed = len(one.sift([("a", 0.5, None, 1.0, data_type)] * n))
        one.audit()
        return passed

    assert log(25) == 10
    assert log(5) == 0
    clock[0] += 0.5
    assert log(25) == 5
    for _ in range(10):
        clock[0] += 0.1
        assert log(3) == 1
    clock[0] += 3600  # idle time is not saved up
    assert log(25) == 10
    assert (log(5, "text"), log(5, "own_type")) == (2, 2)  # each data type for itself
    assert log(5, "run") == 5 and log(5, "lost") == 5
    assert one.held == {"rates": 15 + 5 + 20 + 20 + 15 + 3 + 3}


def test_a_second_that_comes_in_ten_parts_is_a_whole_one(
    gate: Callable[..., Gate], clock: list[float]
) -> None:
    clock[0] = 0.0
    one = gate(rates={"metric": 1})
    assert one.sift([metric("a")])
    for _ in range(10):
        clock[0] += 0.1
        one.sift([])
    assert clock[0] < 1  # by a hair
    assert one.sift([metric("a")])


def test_less_than_a_record_a_second_is_still_one_now_and_then(
    gate: Callable[..., Gate], clock: list[float]
) -> None:
    one = gate(rates={"metric": 0.5})
    passed = []
    for _ in range(6):
        passed.append(len(one.sift([metric("a")])))
        clock[0] += 1
    assert passed == [1, 0, 1, 0, 1, 0]


def test_what_is_held_back_for_another_reason_takes_nothing_of_the_rate(
    gate: Callable[..., Gate], clock: list[float]
) -> None:
    one = gate(rates={"text": 1}, deny=["bad"], sizes={"text": 3})
    entries = [("bad", "x"), ("large", "xxxx"), ("good", "x"), ("late", "x")]
    passed = one.sift([(key, value, None, 1.0, "text") for key, value in entries])
    assert [entry[0] for entry in passed] == ["good"]
    assert one.held == {"deny": 1, "sizes": 1, "rates": 1}


def test_pieces_of_files_that_come_mixed_go_with_their_own_first_piece(
    gate: Callable[..., Gate],
) -> None:
    one = gate(sizes={"artifact": 4})
    mixed = [
        piece("a", 0, 4, b"aa", 1.0),
        piece("a", 0, 5, b"xx", 2.0),  # another file of the same key
        piece("b", 0, 3, b"bb"),
        piece("a", 2, 4, b"aa", 1.0),
        piece("a", 2, 5, b"xxx", 2.0),
    ]
    passed = one.sift(mixed)
    one.audit()
    passed += one.sift([piece("b", 2, 3, b"b"), piece("a", 0, 2, b"aa", 3.0)])
    assert passed == [
        mixed[0],
        mixed[2],
        mixed[3],
        piece("b", 2, 3, b"b"),
        piece("a", 0, 2, b"aa", 3.0),
    ]
    assert one.held == {"sizes": 1}
    assert not one._files  # nothing is remembered of files that are through


def test_a_file_whose_beginning_was_given_up_does_not_leave(gate: Callable[..., Gate]) -> None:
    one = gate()
    assert one.sift([piece("a", 2, 6, b"aa"), piece("a", 4, 6, b"aa")]) == []
    assert one.held == {"piece": 1}


def test_files_that_never_end_are_not_remembered_for_ever(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "OPEN_FILES", 5)
    monkeypatch.setattr(egress, "KNOWN_KEYS", 5)
    one = gate(deny=["bad"])
    one.sift(piece(f"f{n}", 0, 9, b"x") for n in range(50))
    assert (len(one._files), len(one._verdicts)) == (5, 5)
    assert [e[0] for e in one.sift([metric("bad"), metric("good")])] == ["good"]


# --- the audit file ----------------------------------------------------------------------


def test_several_processes_share_the_audit_file_and_set_it_aside_at_its_limit(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from zmqtrack import auditfile\n"
        "auditfile.BYTES, auditfile.KEPT, auditfile.PATIENCE = 8000, 100, 30\n"
        "audit = auditfile.AuditFile(Path(sys.argv[1]))\n"
        "for n in range(300):\n"
        "    audit.append(f'{sys.argv[2]}-{n} {\"x\" * 100}\\n'.encode())\n"
    )
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    parts = list(tmp_path.glob("audit.jsonl*"))
    assert len(parts) > 5 and all(part.stat().st_size <= 8000 for part in parts)
    lines = [line for part in parts for line in part.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{w}-{n} {'x' * 100}" for w in range(3) for n in range(300))


def test_nothing_is_added_to_a_file_that_was_set_aside_while_we_waited_for_it(
    gate: Callable[..., Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, lock = tmp_path / "egress-audit.jsonl", fcntl.flock
    aside = tmp_path / "egress-audit.jsonl.1"

    def flock(fd: int, how: int) -> None:
        if not aside.exists():
            path.rename(aside)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    one = gate(types=[])
    one.sift([metric("a")])
    one.audit()
    assert (aside.read_bytes(), len(path.read_bytes().splitlines())) == (b"", 1)


def test_the_audit_is_bounded_and_keeps_the_latest(
    gate: Callable[..., Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditfile, "BYTES", 3000)
    monkeypatch.setattr(egress, "AUDIT_CHUNK", 500)
    one = gate(types=[])
    one.sift(metric(f"key-{n}") for n in range(500))
    one.audit()
    assert not one.pending
    parts = [tmp_path / f"egress-audit.jsonl{end}" for end in ("", ".1", ".2", ".3")]
    assert sorted(tmp_path.glob("egress-audit*")) == sorted(parts)
    assert all(part.stat().st_size <= 3000 for part in parts)
    keys = [json.loads(line)["key"] for part in parts[::-1] for line in part.open()]
    assert keys == [f"key-{n}" for n in range(500)][-len(keys) :]


def test_what_was_written_in_part_is_written_again_whole_and_once(
    gate: Callable[..., Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path, write_all = gate(types=[]), tmp_path / "egress-audit.jsonl", os.write
    one.sift([metric("first")])
    one.audit()
    one.sift([metric("a"), metric("b")])
    monkeypatch.setattr(os, "write", lambda fd, data: write_all(fd, data[:150]))
    with pytest.raises(OSError, match="No space left"):
        one.audit()
    assert one.pending
    monkeypatch.undo()
    one.audit()
    assert [json.loads(line)["key"] for line in path.open()] == ["first", "a", "b"]


def test_a_line_that_a_killed_process_left_torn_spoils_no_other(
    gate: Callable[..., Gate], tmp_path: Path
) -> None:
    path = tmp_path / "egress-audit.jsonl"
    path.write_text('{"time": 17')
    one = gate(types=[])
    one.sift([metric("a")])
    one.audit()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"time": 17' and json.loads(whole)["key"] == "a"


def test_a_process_that_keeps_the_audit_locked_holds_us_up_for_a_bounded_time(
    gate: Callable[..., Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(auditfile, "PATIENCE", 0.1)
    one = gate(types=[])
    one.sift([metric("a")])
    with (tmp_path / "egress-audit.jsonl").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            one.audit()
    one.audit()
    assert audited(tmp_path / "egress-audit.jsonl") == {("metric", "a", "types"): 1}


def test_a_fifo_is_no_audit_file_and_does_not_hang_the_sender(
    gate: Callable[..., Gate], tmp_path: Path
) -> None:
    one = gate(types=[])
    os.mkfifo(tmp_path / "egress-audit.jsonl")
    one.sift([metric("a")])
    said: list[str] = []

    def work() -> None:
        try:
            one.audit()
        except OSError as error:
            said.append(str(error.strerror))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(10)
    assert said == ["not a regular file"] and one.pending


# --- files that are no policy ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"denny": ["x"]}', r"denny: unknown key; did you mean 'deny'\?"),
        ('{"deny": "x"}', r"deny: expected a list, .* not str 'x'"),
        ('{"deny": null}', "deny: expected a list, .* not nothing"),
        ('{"allow": ["x", 7]}', "allow: expected text .* not int 7"),
        ('{"allow": [""]}', "allow: expected text .* not str ''"),
        ('{"types": ["Metric"]}', r"types: 'Metric' cannot .*; did you mean 'metric'\?"),
        ('{"types": ["lost"]}', "types: 'lost' is the protocol's own"),
        ('{"types": {"metric": 1}}', "types: expected a list"),
        ('{"sizes": 100}', "sizes: expected a mapping"),
        ('{"sizes": {"imag": 1}}', r"sizes.imag: unknown data type; did you mean 'image'\?"),
        ('{"sizes": {"image": "1MB"}}', "sizes.image: expected a whole number of bytes"),
        ('{"sizes": {"image": -1}}', "sizes.image: expected a whole number"),
        ('{"sizes": {"image": true}}', "sizes.image: expected a whole number"),
        ('{"sizes": {"run": 1}}', "sizes.run: a run's beginning and end always leave"),
        ('{"rates": {"metric": 0}}', "rates.metric: expected a number of records above 0"),
        ('{"rates": {"metric": NaN}}', "rates.metric: expected a number"),
        ('{"rates": {"metric": 1e999}}', "rates.metric: expected a number"),
        ('{"rates": {"metrik": 5}}', r"rates.metrik: .*did you mean 'metric'\?"),
        ('{"audit": 7}', "audit: expected the path of a file"),
        ('{"audit": "nowhere/audit.jsonl"}', "audit: the folder .*nowhere is not there"),
        ('{"audit": "."}', "audit: .* is no regular file"),
        ('{"deny": ["a"], "deny": []}', "deny stands there twice"),
        ('{"sizes": {"text": 1, "text": 9}}', "text stands there twice"),
        ("deny: [a]\ndeny: []\n", "deny stands there twice"),
        ("rates:\n  text: 1\n  text: 9\n", "text stands there twice"),
        ("", r"is empty; .*\{\}"),
        ("# only a remark\n", "is empty"),
        ("[]", "expected a mapping with types, allow, deny"),
        ("deny: [*secret]\n", r"is neither JSON nor YAML: line 1: .*put patterns in quotes"),
        ("deny: *secret\n", r"is neither JSON nor YAML: line 1: .*put patterns in quotes"),
        ("deny: [a\n", "is neither JSON nor YAML: line 2: expected"),
        ("1: 2\n", "1: unknown key"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_file_that_is_no_policy_stops_init_and_names_what_would_be_right(
    tmp_path: Path, nobody: str, text: str, named: str
) -> None:
    policy = tmp_path / "policy"
    policy.write_text(text)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(policy))}: {named}"):
        zmqtrack.init(*RUN, nobody, egress=policy)
    assert not (tmp_path / "spool").exists()  # nothing has begun


def test_all_that_is_wrong_with_a_policy_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Policy.load(write(tmp_path, deni=[], types=7, sizes={"imag": 1}))
    assert len(str(caught.value).splitlines()) == 3


def test_a_policy_that_is_not_there_or_not_named_stops_init_and_every_writer(
    tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in (tmp_path / "none.json", tmp_path):
        monkeypatch.setenv("ZMQTRACK_EGRESS", str(missing))
        with pytest.raises(ValueError, match=f"{missing}: the egress policy cannot be read"):
            zmqtrack.init(*RUN, nobody)
    monkeypatch.setenv("ZMQTRACK_EGRESS", "")
    with pytest.raises(ValueError, match=r"ZMQTRACK_EGRESS.* is set and empty"):
        zmqtrack.init(*RUN, nobody)
    with pytest.raises(ValueError, match="is set and empty"):
        zmqtrack.SummaryWriter(experiment="e", address=nobody)
    (tmp_path / "latin").write_bytes(b'{"deny": ["\xe9"]}')
    with pytest.raises(ValueError, match="latin: expected text in UTF-8"):
        zmqtrack.init(*RUN, nobody, egress=tmp_path / "latin")


def test_the_argument_comes_before_the_variable(
    tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQTRACK_EGRESS", str(write(tmp_path, "one.json", deny=["a"])))
    two = write(tmp_path, "two.json", deny=["b"])
    for policy, held in ((None, 1), (two, 2)):
        run = zmqtrack.init(*RUN, nobody, egress=policy, exit_timeout=0)
        run.log_metrics({"a": 1, "b": 1})
        run.log_metric("b", 1)
        run.finish()
        assert run.held == {"deny": held}


def test_without_a_policy_nothing_is_held_back(nobody: str, tmp_path: Path) -> None:
    run = zmqtrack.init(*RUN, nobody, exit_timeout=0)
    run.log_metric("a", 1)
    run.finish()
    assert run.held == {} and run._sender._egress is None


NO_YAML = "import sys; sys.modules['yaml'] = None; import zmqtrack; "


def test_without_pyyaml_json_is_read_and_yaml_is_refused_with_the_way_out(tmp_path: Path) -> None:
    policy = write(tmp_path, deny=["bad"])
    code = NO_YAML + (
        "run = zmqtrack.init(egress=sys.argv[1], exit_timeout=0, address='tcp://127.0.0.1:9');"
        "run.log_metric('bad', 1); run.finish(); print(run.held)"
    )
    done = subprocess.run([sys.executable, "-c", code, policy], capture_output=True, text=True)
    assert done.stdout == "{'deny': 1}\n", done.stderr
    yaml = tmp_path / "policy.yaml"
    yaml.write_text("deny: [bad]\n")
    done = subprocess.run([sys.executable, "-c", code, yaml], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert re.search(
        rf"ValueError: {yaml}: is not JSON .*PyYAML, which is not installed: .*pip install pyyaml",
        done.stderr,
    )


def test_a_policy_in_json_loads_no_yaml(tmp_path: Path) -> None:
    code = (
        "import sys; from zmqtrack.policy import Policy; Policy.load(sys.argv[1]);"
        "print('yaml' in sys.modules)"
    )
    policy = write(tmp_path, deny=["bad"])
    done = subprocess.run([sys.executable, "-c", code, policy], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_policy_in_the_docs_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "egress.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "egress.yaml"
    path.write_text(example.replace("/var/log/zmqtrack/", f"{tmp_path}/"))
    gate = Gate(Policy.load(path), RUN, tmp_path)
    passed = gate.sift([metric("train/loss"), metric("train/patient/loss"), metric("test/loss")])
    assert [entry[0] for entry in passed] == ["train/loss"]
    gate.audit()
    written = json.loads((tmp_path / "egress-audit.jsonl").read_text().splitlines()[0])
    assert list(written) == list(json.loads(line))
