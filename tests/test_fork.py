"""Children that are forked while their parent logs, and end at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Daemon, jsonl, read_jsonl

Make = Callable[..., Daemon]

#: Children log from two threads and tell through a pipe what they have flushed; their parent logs
#: from a thread of its own all the while, and ends them 0 to 100 ms after their start.
PARENT = """
import collections, json, multiprocessing, os, random, signal, struct, sys, threading, time
import zmqtrack

run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=20)
number, n = getattr(signal, sys.argv[2]), int(sys.argv[3])
stop = threading.Event()

def parent():
    for step in range(10_000_000):
        run.log_metric("parent", step, step=step)
        if step % 20 == 0 and stop.wait(0.001):
            return

def also(name):
    for step in range(1_000_000):
        run.log_metric(name, step, step=step)
        time.sleep(0.001)

def child(name, pipe):
    threading.Thread(target=also, args=(name + "-too",), daemon=True).start()
    for step in range(1_000_000):
        run.log_metric(name, step, step=step)
        if step % 3 == 0 and run.flush():
            os.write(pipe, struct.pack("i", step))
        time.sleep(0.0005)

thread = threading.Thread(target=parent)
thread.start()
context = multiprocessing.get_context("fork")
flushed, codes, hung = {}, collections.Counter(), 0
random.seed(7)
while len(flushed) < n:
    children = []
    for i in range(4):
        name = f"child-{len(flushed)}"
        flushed[name] = -1
        read, write = os.pipe()
        process = context.Process(target=child, args=(name, write))
        process.start()
        os.close(write)
        children.append((process, name, read))
    for place, (process, name, read) in enumerate(children):
        if place == 0:  # one of them lives until it has flushed
            flushed[name] = struct.unpack("i", os.read(read, 4))[0]
        else:
            time.sleep(random.random() * 0.1 / 3)
        os.kill(process.pid, number)
    for process, name, read in children:
        process.join(60)
        if process.is_alive():
            hung += 1
            process.kill()
            process.join()
        codes[process.exitcode] += 1
        while told := os.read(read, 4):
            flushed[name] = struct.unpack("i", told)[0]
        os.close(read)
stop.set()
thread.join()
run.finish(timeout=60)
print(json.dumps({"hung": hung, "codes": codes, "flushed": flushed}))
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", -signal.SIGTERM), ("SIGINT", 1)])
def test_a_child_that_is_ended_at_any_moment_ends_and_loses_nothing_that_it_has_flushed(
    daemon: Make, tmp_path: Path, number: str, code: int
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = subprocess.run(
            [sys.executable, "-c", PARENT, served.address, number, "100"],
            capture_output=True,
            text=True,
            timeout=350,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        assert "Exception ignored" not in process.stderr
        assert "before it is started" not in process.stderr
        told = json.loads(process.stdout)
        assert told["hung"] == 0
        assert told["codes"] == {str(code): 100}
        _send_what_is_left(served.address)
        served.drain()
    steps = defaultdict(list)
    for line in read_jsonl(out, "e", "r", "s"):
        if line["type"] == "metric":
            steps[line["key"]].append(line["step"])
    assert all(found == list(range(len(found))) for found in steps.values())
    assert len(steps["parent"]) > 100
    flushed = told["flushed"]
    assert sum(step >= 0 for step in flushed.values()) >= 25
    assert {name: step for name, step in flushed.items() if step >= len(steps[name])} == {}


def _send_what_is_left(address: str) -> None:
    command = [sys.executable, "-m", "zmqtrack.cli", "spool", "send", "--address", address]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


HANDLER = """
import os, signal, sys, time, zmqtrack
from zmqtrack.spool import Spool

run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=20)
run.flush()
if (pid := os.fork()) == 0:
    create = Spool.create
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGALRM)  # its handler logs while the first call begins
        return create(*arguments)
    Spool.create = interrupted
    signal.signal(signal.SIGALRM, lambda *_: run.log_metric("of the handler", 1, step=1))
    run.log_metric("of the child", 0, step=0)
    run.finish()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_handler_may_log_while_the_first_call_of_a_child_is_under_way(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        subprocess.run([sys.executable, "-c", HANDLER, served.address], check=True, timeout=60)
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    logged = [line["key"] for line in lines if line["type"] == "metric"]
    assert sorted(logged) == ["of the child", "of the handler"]


FAMILY = """
import os, sys, zmqtrack

run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=20)
run.flush()
if (child := os.fork()) == 0:
    assert run.flush(), "there is nothing to flush"
    files = [os.open(os.devnull, os.O_RDWR) for _ in range(10)]
    if (grandchild := os.fork()) == 0:
        for file in files:
            os.fstat(file)  # none was closed, though the parent's of such numbers were
        run.log_metric("of the grandchild", 1, step=1)
        run.finish()
        os._exit(0)
    os._exit(0 if os.waitpid(grandchild, 0)[1] == 0 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_that_does_not_log_leaves_the_files_of_its_own_children_alone(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        subprocess.run([sys.executable, "-c", FAMILY, served.address], check=True, timeout=60)
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    assert [line["key"] for line in lines if line["type"] == "metric"] == ["of the grandchild"]


LOCKED = """
import os, signal, sys, threading, time, zmqtrack

run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=20)
run.log_metric("before", 1, step=1)
with run._lock:  # as inside any call that the signal may interrupt
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
for step in range(2, 20_000):
    run.log_metric("after", step, step=step)
    time.sleep(0.001)
print("went on")
"""


def test_sigterm_waits_for_no_lock_and_the_training_soon_logs_no_further(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = subprocess.run(
            [sys.executable, "-c", LOCKED, served.address],
            capture_output=True,
            text=True,
            timeout=60,
        )
        served.drain()
    assert (process.returncode, process.stdout) == (-signal.SIGTERM, ""), process.stderr
    lines = read_jsonl(out, "e", "r", "s")
    assert [line["step"] for line in lines if line["type"] == "metric"][:2] == [1, 2]
    assert [line["value"] for line in lines if line["key"] == "end"] == ["killed"]


def test_a_program_that_ends_while_sigterm_ends_its_runs_dies_by_the_signal(nobody: str) -> None:
    code = (
        "import os, signal, sys, zmqtrack\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1], exit_timeout=2)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, nobody], capture_output=True, timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_a_second_sigterm_ends_the_process_at_once(nobody: str) -> None:
    code = (
        "import os, signal, sys, time, zmqtrack\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1], exit_timeout=1000)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(1000)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, nobody], timeout=60, env=os.environ)
    assert process.returncode == -signal.SIGTERM


GLOBAL = """
import multiprocessing, os, sys, time
from zmqtrack.writers.tensorboard import GlobalSummaryWriter

writer = GlobalSummaryWriter(
    "runs/r", experiment="e", run="r", site="s", address=sys.argv[1]
)

def child():
    for _ in range(50):
        writer.add_scalar("loss", 1.0)
    writer.smw.flush()

children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(3)]
for each in children:
    each.start()
for each in children:
    each.join()
print("counted", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_global_writer_counts_across_children_and_leaves_no_process_when_it_is_killed(
    daemon: Make, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = subprocess.Popen(
            [sys.executable, "-c", GLOBAL, served.address],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "counted\n"
            process.send_signal(number)
            # It ends only when nobody holds its standard output any more.
            process.communicate(timeout=30)
        finally:
            process.kill()
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    assert sorted(line["step"] for line in lines if line["key"] == "loss") == list(range(150))
