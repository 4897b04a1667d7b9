"""Very many writers at once, all of which have to connect anew."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from many_sites import name

import zmqtrack
from harness import Daemon, jsonl
from oracle import BLOCK, HERE, Site, check, check_order, read_jsonl
from zmqtrack.sender import Sender

Make = Callable[..., Daemon]

LONG = int(os.environ.get("ZMQTRACK_FAULT_CYCLES", "0")) >= 100
WRITERS, PROCESSES = (1000, 10) if LONG else (200, 4)

#: Seconds for each step of the test: connecting, logging, delivering.
PATIENCE = 300.0 if LONG else 120.0

# --- what the daemon may take (I6) -------------------------------------------------------------

#: A writer has two connections, control and ingest. Everything else: the journal, the adapter's
#: pipe, three listeners, ZeroMQ's own, and a CLI or two.
FILES = 2 * WRITERS + 100
#: The interpreter with its modules takes about 45 MiB. A connection has a ZeroMQ engine (two
#: buffers of 8 KiB), a session and two pipes of 256 slots of 64 bytes each: about 56 KiB with what
#: malloc adds; a writer has two. On top, one commit of at most 500 small batches.
MEMORY = (64 << 20) + WRITERS * 2 * (80 << 10)


def journal_limit(batches: int, records: int) -> int:
    """Bytes of the journal's files: rows and their index, a stream's row, and the log behind it.

    A metric takes 20 bytes, a row's header and columns below 400, its index
    below 100; half of a page may be empty. SQLite's log is about 1000 pages between two
    checkpoints; a large commit may double it.
    """
    return 2 * (32 * records + 500 * batches + 400 * WRITERS) + (8 << 20)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[str], list[subprocess.Popen[str]]]]:
    started: list[subprocess.Popen[str]] = []

    def start(address: str) -> list[subprocess.Popen[str]]:
        ledgers = tmp_path / "ledgers"
        ledgers.mkdir()
        for number in range(PROCESSES):
            each = WRITERS // PROCESSES
            arguments = [str(ledgers), address, str(number * each), str(each)]
            with (tmp_path / f"writers-{number}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, str(HERE / "faults" / "many_sites.py"), *arguments],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env={**os.environ, "PYTHONPATH": str(HERE)},
                    )
                )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def usual_limit_of_open_files() -> Iterator[None]:
    """What processes begin with meanwhile, the daemon too: they must raise it themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.25)


def connections(served: Daemon) -> int:
    """How many established connections the daemon has."""
    made = psutil.Process(served.process.pid).net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in made)


def check_limits(served: Daemon) -> None:
    daemon = psutil.Process(served.process.pid)
    files, memory = daemon.num_fds(), daemon.memory_info().rss
    status = served.status()["journal"]
    size = sum(path.stat().st_size for path in served.state_dir.glob("journal.db*"))
    limit = journal_limit(status["head"], sum(records(served).values()))
    print(
        f"{WRITERS} writers: {files} of {FILES} files, {memory >> 20} of {MEMORY >> 20} MiB, "
        f"journal {size >> 10} of {limit >> 10} KiB"
    )
    assert files <= FILES and memory <= MEMORY and size <= limit


@pytest.mark.timeout(4 * PATIENCE)
def test_very_many_writers_that_all_reconnect_at_once_lose_and_double_nothing(
    daemon: Make,
    tmp_path: Path,
    nobody: str,
    processes: Callable[[str], list[subprocess.Popen[str]]],
) -> None:
    needed = max(FILES, 12 * WRITERS // PROCESSES)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files, and the hard limit is {hard}")
    lines = tmp_path / "lines"
    served = daemon([jsonl(lines, flush_interval="200ms")], control=nobody)
    with usual_limit_of_open_files(), served, steps() as step:
        writers = processes(nobody)
        for process in writers:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_until(lambda: len(served.status()["streams"]) == WRITERS, "all have come")
        wait_until(lambda: connections(served) >= 2 * WRITERS, "all are connected")
        step("connected")
        check_limits(served)
        served.kill()
        served.start()
        before = records(served)
        step("restarted")
        wait_until(lambda: grown(served, before), "all have come back, and send")
        step("reconnected")
        check_limits(served)
        logged = end(writers, tmp_path)
        step("finished")
        served.drain(PATIENCE)
        step("drained")
        fresh = Site("fresh", tmp_path / "more")  # I4
        _, stderr = fresh.start(nobody, 100).communicate(timeout=PATIENCE)
        served.drain(PATIENCE)
        check_limits(served)
        status = served.status()
    assert status["losses"] == [] and status["daemon"]["refused"] == {}, stderr  # I5
    shown = read_jsonl(lines)
    ledgers = tmp_path / "ledgers"
    sites = [Site(site, ledgers, [ledgers / site]) for site in map(name, range(WRITERS))]
    check([*sites, fresh], shown)
    check_order(shown)
    assert len(shown) == logged + 100
    assert not list(Path(os.environ["ZMQTRACK_SPOOL_DIR"]).glob("*.spool"))


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Tells how long each step took."""
    last = [time.monotonic()]

    def done(what: str) -> None:
        last.append(time.monotonic())
        print(f"{what} after {last[-1] - last[-2]:.1f} s")

    yield done


def end(writers: list[subprocess.Popen[str]], folder: Path) -> int:
    """Let all processes end by themselves; how many metrics they have logged."""
    for process in writers:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    logged = 0
    for number, process in enumerate(writers):
        out, _ = process.communicate(timeout=PATIENCE)
        said = (folder / f"writers-{number}.log").read_text()
        assert process.returncode == 0 and not said, said
        logged += int(out.split()[1]) * WRITERS // PROCESSES
    return logged


def records(served: Daemon) -> dict[str, int]:
    """How many records of each stream are journalled."""
    return {stream["stream"]: stream["records"] for stream in served.status()["streams"]}


def grown(served: Daemon, before: dict[str, int]) -> bool:
    """Whether each stream has at least a block more than before."""
    now = records(served)
    return all(now[stream] >= count + BLOCK for stream, count in before.items())


IDLE = """
import sys, time, zmqtrack
runs = [zmqtrack.init(site=f"site-{n}", exit_timeout=2) for n in range(40)]
for run in runs:
    run.log_metric("loss", 1.0)
    assert run.flush(60)
print("flushed", flush=True)
"""


@pytest.mark.timeout(120)
def test_a_process_with_many_runs_ends_within_the_deadline_of_one(nobody: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IDLE],
        env={**os.environ, "ZMQTRACK_ADDRESS": nobody},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "flushed\n"
        begin = time.monotonic()
        _, stderr = process.communicate(timeout=100)
        took = time.monotonic() - begin
    assert process.returncode == 0
    assert stderr.count("are not yet delivered") == 40  # each says what it leaves
    assert took < 20, f"{took} s; one after the other would take 80 s"


def test_a_run_that_logs_nothing_rests_and_the_next_record_wakes_it(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    turn = Sender._turn

    def counted(self: Sender) -> None:
        turns.append(time.monotonic())
        turn(self)

    monkeypatch.setattr(Sender, "_turn", counted)
    monkeypatch.setattr("zmqtrack.sender.DOZE", 3600.0)
    run = zmqtrack.init(address=nobody)
    sender = run._sender
    for _ in range(2):  # it goes to rest again, and again
        wait_until(lambda: bool(turns) and time.monotonic() - turns[-1] > 2.0, "it rests")
        spooled = sender._spool.last
        run.log_metric("loss", 1.0)
        # No flush, and no time-out within an hour: the call itself has woken it.
        wait_until(lambda last=spooled: sender._spool.last > last, "it is spooled")  # type: ignore[misc]
        run.log_metric("loss", 2.0)
        assert run.flush(60)
    run.finish(timeout=0)
