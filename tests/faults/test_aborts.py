"""What ends a process from inside libzmq, where no exception can be caught."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from harness import Daemon, jsonl, read_jsonl
from zmqtrack.wire import encode_control

#: How long a machine is taken to stand still: beyond each time-out of a connection.
PAUSE = 11.0
SITES = 6

LOGS = """
import sys, time, zmqtrack
run = zmqtrack.init("e", "r", sys.argv[1], sys.argv[2], spool_dir=sys.argv[3])
step = 0
while not sys.stdin.closed and step < 4000:
    run.log_metric("x", step, step)
    if step == 100:
        print("logging", flush=True)
    step += 1
    time.sleep(0.01)
    if step % 50 == 0 and __import__("select").select([sys.stdin], [], [], 0)[0]:
        break
run.finish(timeout=60)
print(step, flush=True)
"""


@pytest.mark.timeout(240)
def test_a_daemon_that_stood_still_goes_on_and_has_everything(tmp_path: Path) -> None:
    served = Daemon(tmp_path / "daemon", [jsonl(tmp_path / "lines")])
    with served:
        sites = [
            subprocess.Popen(
                [sys.executable, "-c", LOGS, f"s{n}", served.address, str(tmp_path / f"spool{n}")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(SITES)
        ]
        try:
            for site in sites:
                assert site.stdout is not None
                assert site.stdout.readline() == "logging\n"
            os.kill(served.process.pid, signal.SIGSTOP)
            time.sleep(PAUSE)  # the fault itself
            os.kill(served.process.pid, signal.SIGCONT)
            logged = {}
            for n, site in enumerate(sites):
                said, _ = site.communicate("end\n", timeout=120)
                logged[f"s{n}"] = int(said)
        finally:
            for site in sites:
                site.kill()
        assert served.process.poll() is None
        served.drain()
        for name, steps in logged.items():
            lines = read_jsonl(tmp_path / "lines", "e", "r", name)
            assert [each["step"] for each in lines if each["type"] == "metric"] == list(
                range(steps)
            )


@pytest.mark.timeout(120)
def test_a_client_cannot_end_the_daemon_by_taking_the_name_of_the_next_one(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4000)
    try:
        unseeded = int(subprocess.run(
            [sys.executable, "-c", FIRST_NUMBER], capture_output=True, text=True, check=True
        ).stdout)  # fmt: skip
        with Daemon(tmp_path / "daemon", [jsonl(tmp_path / "lines")]) as served:
            names = []
            for number in range(unseeded, unseeded + 50):
                taken = context.socket(zmq.DEALER)
                taken.linger = 0
                taken.routing_id = b"\0" + number.to_bytes(4, "big")
                taken.connect(served.address)
                taken.send(encode_control("hello"))
                taken.poll(1000)  # it is known there under that name, or somebody else is
                names.append(taken)
            for _ in range(3):
                assert served.status()["daemon"]["accepting"]
            assert served.process.poll() is None
    finally:
        context.destroy(linger=0)


#: What libzmq numbers the first client of a process with, where nobody has seeded C's rand.
FIRST_NUMBER = """
import zmq
context = zmq.Context()
router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
router.bind("inproc://here")
dealer.connect("inproc://here")
dealer.send(b"")
print(int.from_bytes(router.recv_multipart()[0][1:], "big"))
"""
