"""The configuration is read again while the daemon runs: SIGHUP, `zmqtrack reload`, adapters.d."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl


class Place(Daemon):
    """A daemon whose adapters stand in adapters.d, one file each."""

    def __init__(self, folder: Path, **daemon: Any) -> None:
        super().__init__(folder, **daemon)
        self.files = folder / "adapters.d"
        self.files.mkdir()
        facts = yaml.safe_load(self.config.read_text())
        self.write({**facts, "include": "adapters.d/*.yaml"})

    def write(self, facts: dict[str, Any]) -> None:
        self.config.write_text(yaml.safe_dump(facts))

    def set(self, **daemon: Any) -> None:
        facts = yaml.safe_load(self.config.read_text())
        facts["daemon"].update(daemon)
        self.write(facts)

    def add(self, name: str, **more: Any) -> Path:
        """An adapter of that name, writing to a folder of that name."""
        adapter = {**jsonl(self.folder / name), "name": name, **more}
        (self.files / f"{name}.yaml").write_text(yaml.safe_dump(adapter))
        return self.folder / name

    def remove(self, name: str) -> None:
        (self.files / f"{name}.yaml").unlink()

    def reload(self) -> dict[str, Any]:
        facts = self.request("reload")
        return {name: facts[name] for name in ("problems", "added", "changed", "removed")}

    def adapter_processes(self) -> dict[str, int]:
        """PIDs of the adapters, by name, as the log tells."""
        found: dict[str, int] = {}
        for line in self.lines:
            if " runs as process " in line:
                words = line.split()
                found[words[-5]] = int(words[-1])
        return {name: pid for name, pid in found.items() if psutil.pid_exists(pid)}

    def state(self, name: str) -> str:
        return str(self.status()["adapters"].get(name, {}).get("state"))


def log(served: Daemon, first: int, last: int, site: str = "site") -> None:
    with zmqtrack.init(
        experiment="e", run="r", site=site, address=served.address, config={}
    ) as run:
        for number in range(first, last):
            run.log_metric("m", number, step=number)


def values(folder: Path, site: str = "site") -> list[float]:
    return [
        line["value"] for line in read_jsonl(folder, "e", "r", site) if line["type"] == "metric"
    ]


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.05)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place")
    place.add("first")
    with place:
        wait_until(lambda: place.state("first") == "running")
        yield place


def test_a_file_more_is_an_adapter_more_that_backfills_and_disturbs_no_other(
    served: Place,
) -> None:
    log(served, 0, 100)
    served.drain()
    before = served.adapter_processes()
    second = served.add("second")
    assert served.reload() == {"problems": [], "added": ["second"], "changed": [], "removed": []}
    log(served, 100, 200)
    served.drain()
    assert values(second) == values(served.folder / "first") == list(range(200))
    assert served.adapter_processes()["first"] == before["first"]
    assert served.status()["adapters"]["first"]["restarts"] == 0


def test_a_changed_adapter_restarts_alone(served: Place) -> None:
    served.add("second")
    served.reload()
    log(served, 0, 100)
    served.drain()
    before = served.adapter_processes()
    served.add("second", flush_interval="10ms")
    assert served.reload()["changed"] == ["second"]
    log(served, 100, 200)
    served.drain()
    wait_until(lambda: served.adapter_processes().get("second") not in (None, before["second"]))
    assert served.adapter_processes()["first"] == before["first"]
    assert values(served.folder / "second") == list(range(200))


def test_a_removed_adapter_delivers_what_was_logged_and_stops(served: Place) -> None:
    second = served.add("second", flush_interval="1s")
    served.reload()
    log(served, 0, 1000)
    served.remove("second")
    assert served.reload()["removed"] == ["second"]
    wait_until(lambda: "second" not in served.adapter_processes())
    assert values(second) == list(range(1000))
    wait_until(lambda: served.state("second") == "removed")
    log(served, 1000, 1100)
    served.drain()  # which no longer waits for it
    assert values(second) == list(range(1000))


def test_an_adapter_that_will_not_come_back_can_be_forgotten(served: Place) -> None:
    served.add("second")
    served.reload()
    log(served, 0, 3)
    served.drain()

    def forget(name: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "zmqtrack.cli", "forget", name, "-a", served.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr

    code, told = forget("second")
    assert code == 1 and "'second' is in use: take it out of the YAML, and reload" in told
    served.remove("second")
    served.reload()
    wait_until(lambda: served.state("second") == "removed")
    assert forget("second") == (0, "second is forgotten\n")
    assert set(served.status()["adapters"]) == {"first"}
    code, told = forget("second")
    assert code == 1 and "nothing is known of an adapter 'second'" in told
    served.add("second", options={"dir": str(served.folder / "again")})
    served.reload()
    served.drain()
    assert values(served.folder / "again") == [0, 1, 2]  # from the beginning


def test_an_adapter_that_comes_back_goes_on_where_it_was(served: Place) -> None:
    second = served.add("second")
    served.reload()
    log(served, 0, 100)
    served.remove("second")
    served.reload()  # it may still be stopping when it is wanted again
    served.add("second")
    assert served.reload()["added"] == ["second"]
    log(served, 100, 200)
    served.drain()
    assert values(second) == list(range(200))


def test_a_bad_file_leaves_all_as_it_was_and_is_named_with_line_and_key(served: Place) -> None:
    before = served.adapter_processes()
    bad = served.files / "bad.yaml"
    bad.write_text("type: jsonl\nname: bad\noptions:\n  dri: /tmp/x\n")
    served.add("second")
    answer = served.reload()
    assert answer["added"] == []
    (problem,) = [line for line in answer["problems"] if "dri" in line]
    assert problem.startswith(f"{bad}:4:") and "options.dri" in problem
    log(served, 0, 100)
    served.drain()
    assert values(served.folder / "first") == list(range(100))
    assert served.adapter_processes() == before and served.state("second") == "None"
    bad.unlink()
    assert served.reload()["added"] == ["second"]


def test_the_command_says_what_changed_and_ends_with_78_for_a_bad_file(served: Place) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zmqtrack.cli", "reload", "-a", served.address, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    served.add("second")
    done = run()
    assert (done.returncode, done.stdout) == (0, "added: second\n"), done.stderr
    assert "nothing has changed" in run().stdout
    (served.files / "bad.yaml").write_text("type: jsonl\ntpoics: [metric]\n")
    done = run("--json")
    assert done.returncode == 78
    (problem,) = json.loads(done.stdout)["problems"]
    assert "bad.yaml:2" in problem and "topics" in problem


#: An adapter whose import never comes to an end, and which has started something.
HANGS = """
import subprocess, time
from pathlib import Path
started = subprocess.Popen(["sleep", "3600"])
Path(__file__).with_name("started").write_text(str(started.pid))
time.sleep(3600)
"""

#: Ten seconds, which are enough for all that answers, where a person is given more.
IMPATIENT = """
import sys
if "zmqtrack.daemon" in sys.orig_argv:
    import zmqtrack.daemon.configuration
    zmqtrack.daemon.configuration.IMPORT = 10.0
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Place:
    """A daemon, not started yet, that has the module ``hangs``."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "hangs.py").write_text(HANGS)
    return Place(tmp_path / "place", env={"PYTHONPATH": str(packages)})


def importing(served: Place) -> list[psutil.Process]:
    """The processes that import the module ``hangs``, once they do."""
    started = served.folder.parent / "packages" / "started"
    wait_until(lambda: started.exists() and started.read_text() != "")
    other = psutil.Process(int(started.read_text()))
    return [other, *other.parents()[:1]]


def test_a_module_that_hangs_at_its_import_is_named_and_neither_the_daemon_nor_a_reload_waits_on(
    hanging: Place,
) -> None:
    (hanging.folder.parent / "packages" / "sitecustomize.py").write_text(IMPATIENT)
    first = hanging.add("first")
    with hanging as served, ThreadPoolExecutor() as pool:
        bad = hanging.files / "bad.yaml"
        bad.write_text("name: bad\ntype: hangs:Hangs\n")
        asked = pool.submit(hanging.reload)
        processes = importing(hanging)
        log(served, 0, 100)
        served.drain()
        assert values(first) == list(range(100))
        (problem,) = asked.result(PATIENCE)["problems"]
        assert problem.startswith(
            f"{bad}:2: adapter bad.type: cannot import 'hangs:Hangs': nothing"
        )
        assert problem.endswith("was heard of it within 10 s")
        assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]
        bad.unlink()
        hanging.add("second")
        assert hanging.reload()["added"] == ["second"]


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill], ids=["stop", "kill"])
def test_a_reload_that_hangs_ends_with_its_daemon(
    hanging: Place, end: Callable[[Daemon], None]
) -> None:
    served = hanging.start()
    (hanging.files / "bad.yaml").write_text("type: hangs:Hangs\n")
    os.kill(served.process.pid, signal.SIGHUP)
    processes = importing(hanging)
    end(served)
    assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]


def test_a_daemon_without_adapters_says_that_records_go_nowhere(tmp_path: Path) -> None:
    nowhere = r"WARNING \[zmqtrackd\] there are no adapters: records are journalled and go nowhere"
    place = Place(tmp_path / "none")
    with place as served:
        assert re.search(nowhere, served.log)
        served.add("first")
        served.reload()
        served.remove("first")
        served.reload()
    assert len(re.findall(nowhere, place.log)) == 2


def test_sighup_reloads(served: Place) -> None:
    served.add("second")
    os.kill(served.process.pid, signal.SIGHUP)
    served.wait_for(r"reloaded .*added: second")
    wait_until(lambda: served.state("second") == "running")


def test_limits_change_at_once_and_addresses_at_the_next_start(served: Place) -> None:
    served.set(limits={"records": 10}, control="tcp://127.0.0.1:1", log_level="debug")
    facts = served.request("reload")
    assert facts["at_next_start"] == ["daemon.control", "daemon.ingest", "daemon.publish"]
    log(served, 0, 100)
    served.drain()
    status = served.status()
    assert status["control"] == served.address
    assert sum(loss["n"] for loss in status["losses"] if loss["reason"] == "too_many_records") > 0


def test_an_adapter_that_could_not_run_is_started_again_by_a_reload(served: Place) -> None:
    secret = served.folder / "token"
    secret.write_text("x")
    secret.chmod(0o600)
    third = served.add("third", secrets={"TOKEN": {"file": str(secret)}})
    served.reload()
    wait_until(lambda: served.state("third") == "running")
    before = served.adapter_processes()
    secret.unlink()
    os.kill(before["third"], signal.SIGKILL)
    served.wait_for("adapter third cannot run as configured")
    secret.write_text("y")
    secret.chmod(0o600)
    served.reload()
    log(served, 0, 100)
    served.drain()
    assert values(third) == list(range(100))
    assert served.adapter_processes()["first"] == before["first"]


def test_a_changed_secret_restarts_its_adapter(served: Place) -> None:
    secret = served.folder / "token"
    secret.write_text("x")
    secret.chmod(0o600)
    served.add("third", secrets={"TOKEN": {"file": str(secret)}})
    served.reload()
    assert served.reload()["changed"] == []
    secret.write_text("y")
    os.utime(secret, ns=(1, 1))
    assert served.reload()["changed"] == ["third"]


def test_an_external_adapter_is_waited_for_and_not_started(served: Place) -> None:
    second = served.add("second", external=True)
    served.reload()
    log(served, 0, 100)
    assert served.status()["adapters"]["second"] | {"types": None} == {
        **served.status()["adapters"]["second"],
        "state": "away",
        "external": True,
        "cursor": 0,
    }
    assert not second.exists()
    served.set(control=served.address)
    own = subprocess.Popen(
        [sys.executable, "-m", "zmqtrack.adapters", "--config", served.config, "--name", "second"],
        cwd=served.folder,
    )
    try:
        served.drain()
    finally:
        own.terminate()
        assert own.wait(PATIENCE) == 0
    assert values(second) == list(range(100))
    served.remove("second")
    assert served.reload()["removed"] == ["second"]
    log(served, 100, 200)
    served.drain()


@pytest.mark.timeout(300)
def test_fifty_reloads_under_load_lose_nothing_and_leave_nothing_behind(served: Place) -> None:
    script = (
        "import sys, zmqtrack\n"
        "run = zmqtrack.init(experiment='e', run='r', site='site', config={})\n"
        "n = 0\n"
        "import select, time\n"
        "while not select.select([sys.stdin], [], [], 0.0005)[0]:\n"
        "    run.log_metric('m', n, step=n); n += 1\n"
        "run.finish(timeout=60)\n"
        "print(n)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ZMQTRACK_ADDRESS": served.address},
    )
    try:
        wait_until(lambda: served.state("first") == "running")
        daemon = psutil.Process(served.process.pid)
        served.reload()
        files, threads = daemon.num_fds(), daemon.num_threads()
        for cycle in range(50):
            served.add("second", flush_interval=f"{cycle + 1}ms")
            if cycle % 3 == 2:
                served.remove("second")
            (served.files / "bad.yaml").write_text("type: nonesuch\n" if cycle % 2 else "")
            answer = served.reload()
            assert bool(answer["problems"]) == bool(cycle % 2)
        (served.files / "bad.yaml").unlink()
        served.add("second")
        assert served.reload()["problems"] == []
        out, _ = writer.communicate("\n", timeout=PATIENCE)
    finally:
        writer.kill()
        writer.wait()
    served.drain()
    logged = list(range(int(out)))
    assert len(logged) > 100
    for name in ("first", "second"):
        assert values(served.folder / name) == logged
    # One adapter more than at the beginning, which has a pipe.
    wait_until(lambda: daemon.num_fds() <= files + 2 and daemon.num_threads() <= threads)
    wait_until(lambda: len(daemon.children(recursive=True)) == 2)
