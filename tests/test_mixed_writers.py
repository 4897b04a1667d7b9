"""Two processes under one run key: told apart from the workers of one job, and named everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from zmqtrack.daemon.sites import FAMILIES, MARKS, Beat, Sites, Who

from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.control import connect
from zmqtrack.records import RunKey

Make = Callable[..., Daemon]

#: A beat each second.
QUICK = {"stale_after": "3s"}

#: Logs what it is told to, a number a line, and says what it is told by the daemon on stderr.
WRITER = """
import os, sys, zmqtrack
run = zmqtrack.init("e", "r", "here")
print("ready", flush=True)
for line in sys.stdin:
    run.log_metric("m", float(line), step=int(line))
    run.flush()
    print("logged", flush=True)
run.finish(timeout=60)
"""

#: The same with a child that logs too, started as `START` says.
PARENT = """
import multiprocessing as mp, os, sys, zmqtrack

def child(ready, end):
    import zmqtrack
    global run
    run = globals().get("run") or zmqtrack.init("e", "r", "here")
    run.log_metric("child", 1.0)
    run.flush()
    ready.set()
    end.wait(60)
    run.finish(timeout=60)

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    run = zmqtrack.init("e", "r", "here")
    run.log_metric("parent", 1.0)
    run.flush()
    ready, end = context.Event(), context.Event()
    process = context.Process(target=child, args=(ready, end))
    process.start()
    assert ready.wait(60)
    print("ready", flush=True)
    sys.stdin.read()
    end.set()
    process.join(60)
    run.finish(timeout=60)
"""


@contextmanager
def started(
    served: Daemon, folder: Path, code: str, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A training that is ready; its stdin ends it."""
    folder.mkdir(exist_ok=True)
    script = folder / "training.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ZMQTRACK_ADDRESS": served.address,
            "ZMQTRACK_SPOOL_DIR": str(folder / "spool"),
            **(env or {}),
        },
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def log(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{step}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "logged\n"


def end(process: subprocess.Popen[str]) -> str:
    """What it said on stderr."""
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def site(served: Daemon) -> dict[str, Any]:
    (found,) = served.status()["sites"]
    return dict(found)


def beats(served: Daemon, streams: int) -> None:
    """Until so many writers are known, and have beaten twice more."""
    deadline = time.monotonic() + PATIENCE
    while sum(each["streams"] for each in served.status()["sites"]) < streams:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2.5)  # a beat comes each second


def command(served: Daemon, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", *arguments, "--address", served.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout


def test_a_second_writer_of_another_job_is_named_everywhere_and_all_is_kept(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon([jsonl(tmp_path / "out")], **QUICK) as served:
        with (
            started(served, tmp_path / "a", WRITER) as one,
            started(served, tmp_path / "b", WRITER) as two,
        ):
            for step in range(3):
                log(one, step)
                log(two, step)
            line = served.wait_for("belong to different jobs")
            pids = {one.pid, two.pid}
            assert {writer["pid"] for writer in site(served)["writers"]} == pids
            for text in (line, command(served, "status"), command(served, "top", "--once")):
                assert all(f"process {pid} on " in text for pid in pids), text
                assert "ZMQTRACK_SITE" in text
            found = {each["code"]: each for each in json.loads(command(served, "doctor", "--json"))}
            assert all(str(pid) in found["mixed_writers"]["detail"] for pid in pids)
            assert "ZMQTRACK_SITE" in found["mixed_writers"]["advice"]
            for process in (one, two):
                said = end(process)
                assert said.count("belong to different jobs") == 1, said
                assert all(f"process {pid} on " in said for pid in pids)
        served.drain()
        # It is so for ever: their points are in one run.
        assert {writer["pid"] for writer in site(served)["writers"]} == pids
    lines = read_jsonl(tmp_path / "out", "e", "r", "here")
    steps = [line["step"] for line in lines if line["type"] == "metric"]
    assert sorted(steps) == [0, 0, 1, 1, 2, 2]
    with daemon(**QUICK) as served:  # the same state
        assert {writer["pid"] for writer in site(served)["writers"]} == pids


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_children_of_a_process_belong_to_it(daemon: Make, tmp_path: Path, start: str) -> None:
    with (
        daemon(**QUICK) as served,
        started(served, tmp_path / "a", PARENT, start) as parent,
    ):
        beats(served, 2)
        assert site(served)["writers"] == []
        assert "different jobs" not in end(parent)
        assert "different jobs" not in served.log


@pytest.mark.parametrize(
    ("job", "same"),
    [
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"PMIX_NAMESPACE": "job-1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, True),
        ({"ZMQTRACK_JOB": "mine"}, True),
        # Of a job of one there are no ranks: a simulator may start its sites in it.
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7"}, False),
    ],
)
def test_ranks_of_a_job_belong_together(
    daemon: Make, tmp_path: Path, job: dict[str, str], same: bool
) -> None:
    with daemon(**QUICK) as served, ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(started(served, tmp_path / name, WRITER, env=job))
        if same:
            beats(served, 2)
        else:
            served.wait_for("belong to different jobs")
        assert bool(site(served)["writers"]) is not same


def test_who_starts_again_what_has_crashed_is_no_second_writer(
    daemon: Make, tmp_path: Path
) -> None:
    """Nor is who sends what the crashed one left."""
    with daemon(**QUICK) as served:
        for step in range(3):
            with started(served, tmp_path / "a", WRITER) as process:
                log(process, step)
                beats(served, 1)
                process.send_signal(signal.SIGKILL)
        with started(served, tmp_path / "a", WRITER) as last:
            beats(served, 4)
            assert "different jobs" not in end(last)
        assert site(served)["writers"] == []


def test_with_keys_the_advice_is_a_key_for_each() -> None:
    from zmqtrack.daemon import intake

    assert "zmqtrack keys new" in intake.APART_WITH_KEYS and "site=" not in intake.APART_WITH_KEYS


def _beat(name: str, *marks: str, pid: int = 1) -> Beat:
    return Beat(0, 1.0, Who(name, pid, frozenset(mark.encode() for mark in marks)))


RUN = RunKey("e", "r", "s")


def test_families_are_merged_where_one_turns_out_to_belong_to_both() -> None:
    sites = Sites([RUN])
    sites.beat(RUN, b"1", _beat("a", "x"))
    sites.beat(RUN, b"2", _beat("b", "y"))
    sites.beat(RUN, b"3", _beat("c", "x", "y"))
    life = sites.beat(RUN, b"1", _beat("a", "x"))
    assert len(life.families) == 1 and life.mixed == []


def test_what_writers_can_make_the_daemon_remember_of_them_is_bounded() -> None:
    sites = Sites([RUN])
    for number in range(1000):
        sites.beat(RUN, b"%d" % number, _beat("a", f"{number}"))
        life = sites.beat(RUN, b"%d" % (number // 2), _beat("a", f"{number // 2}"))
    assert len(life.families) <= FAMILIES and len(life.mixed) <= FAMILIES
    for number in range(1000):
        life = sites.beat(RUN, b"x", _beat("a", "same", f"{number}"))
    assert all(len(family.marks) <= MARKS for family in life.families)


@pytest.mark.parametrize(
    "strange",
    [
        {"host": "\x1b[31m"}, {"host": "x" * 256}, {"host": 1}, {"pid": -1}, {"pid": "1"},
        {"family": [b"short"]}, {"family": [b"12345678"] * 17}, {"family": b"12345678"},
    ],
)  # fmt: skip
def test_a_beat_of_a_strange_process_is_refused(daemon: Make, strange: dict[str, Any]) -> None:
    with daemon() as served:
        beat = {
            "op": "beat", "v": wire.VERSION, "stream": b"s" * 16, "run": list(RUN), "waiting": 0,
            "time": 1.0, "host": "a", "pid": 1, "family": [b"12345678"], **strange,
        }  # fmt: skip
        socket = connect(zmq.DEALER, served.address)
        socket.sndtimeo = socket.rcvtimeo = int(1000 * PATIENCE)
        socket.send(msgpack.packb(beat))
        assert wire.decode_control(socket.recv())["reason"] == "bad_control"
        socket.close()
