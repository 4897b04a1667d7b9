"""The service in a really booted systemd: installed from the wheel, and treated badly.

`make systemd` makes the tree that is booted; `make test` boots it where it is there. The tests
follow each other in one container: what a run has logged is looked at once more at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from container import VENV, Container, build, obstacle, wheel
from harness import PATIENCE

_BUILD = os.environ.get("ZMQTRACK_SYSTEMD") == "1"
_OBSTACLE = obstacle(_BUILD)
pytestmark = [
    pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE),
    pytest.mark.timeout(900 if _BUILD else 120),
]

#: Logs until it is told to stop, or so many metrics; prints how many.
WRITER = """
import select, sys, zmqtrack
name, most, site = (sys.argv[1:] + ["0", "site"][len(sys.argv) - 2 :])[:3]
run = zmqtrack.init(experiment="e", run=name, site=site)
n = 0
while n < int(most) if int(most) else not select.select([sys.stdin], [], [], 0.0005)[0]:
    run.log_metric("m", n, step=n)
    n += 1
run.finish(timeout=60)
print(n)
"""
#: An adapter that takes its time, once, for what is logged in the run "slow".
SLOW = """
import time
from zmqtrack.adapters.base import Adapter

class Slow(Adapter):
    wait = 4

    def deliver(self, batches):
        if any(batch.run.run == "slow" for batch in batches):
            time.sleep(self.wait)
            self.wait = 0
"""
CONFIG = "etc/zmqtrack/zmqtrack.yaml"


class Service:
    """zmqtrackd in the container, and what it has written."""

    def __init__(self, machine: Container) -> None:
        self.machine = machine
        self.logged: dict[str, int] = {}
        self.run = machine.run

    def path(self, name: str) -> Path:
        return self.machine.root / name

    def pid(self) -> int:
        return int(self.machine.show("zmqtrackd", "MainPID")["MainPID"])

    def restarts(self) -> int:
        return int(self.machine.show("zmqtrackd", "NRestarts")["NRestarts"])

    def is_active(self) -> bool:
        state = self.machine.show("zmqtrackd", "ActiveState", "SubState")
        return state == {"ActiveState": "active", "SubState": "running"}

    def log(self, run: str, n: int, site: str = "site", **environ: str) -> None:
        python = (f"{VENV}/bin/python", "/root/writer.py", run, n, site)
        assert self.run(*python, **environ).stdout == f"{n}\n"
        self.logged[run] = n

    def logging(self, run: str) -> subprocess.Popen[str]:
        """Log from now on, until :meth:`end`."""
        command = self.machine.command(f"{VENV}/bin/python", "/root/writer.py", run)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self, run: str, writer: subprocess.Popen[str]) -> None:
        self.logged[run] = int(writer.communicate("\n", timeout=PATIENCE)[0])

    def drain(self) -> None:
        self.run("zmqtrack", "drain")

    def values(self, run: str, folder: str = "var/lib/private/zmqtrack/jsonl") -> list[float]:
        found = []
        for path in sorted(self.path(f"{folder}/e/{run}").glob("*.jsonl")):
            lines = map(json.loads, path.read_text().splitlines())
            found += [line["value"] for line in lines if line["type"] == "metric"]
        return found

    def check(self, run: str, folder: str = "var/lib/private/zmqtrack/jsonl") -> None:
        """Each record is there once, in order."""
        assert self.values(run, folder) == list(range(self.logged[run]))

    def add(self, name: str, text: str) -> Path:
        path = self.path(f"etc/zmqtrack/adapters.d/{name}.yaml")
        path.write_text(text)
        path.chmod(0o644)
        return path


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not after {PATIENCE:g} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if _BUILD:
        build()
    folder = tmp_path_factory.mktemp("container")
    machine = Container(folder)
    machine.install(wheel(folder))
    (machine.root / "root/writer.py").write_text(WRITER)
    with machine:
        found = Service(machine)
        yield found
        print(machine.journal("zmqtrackd")[-20_000:])


def test_installed_from_the_wheel_it_starts_and_carries_records(service: Service) -> None:
    said = service.run("zmqtrack", "service", "install").stdout
    print(said)
    assert "systemctl enable --now zmqtrackd" in said
    # As said; and a watchdog for which a test need not wait so long.
    drop_in = service.path("etc/systemd/system/zmqtrackd.service.d")
    drop_in.mkdir()
    (drop_in / "test.conf").write_text("[Service]\nWatchdogSec=3\nRestartSec=0\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "enable", "--now", "zmqtrackd")
    assert service.is_active()  # at once: it was waited for until it was ready
    service.log("first", 5000)
    service.drain()
    service.check("first")
    owner = service.run("systemctl", "show", "zmqtrackd", "--property=UID", "--value").stdout
    assert int(owner) > 60000  # nobody's account
    writer = service.logging("live")
    until(
        lambda: "1 site active" in service.machine.show("zmqtrackd", "StatusText")["StatusText"],
        "a status that tells of the site",
    )
    service.end("live", writer)
    print(service.run("systemctl", "status", "zmqtrackd").stdout)


def test_a_reload_adds_an_adapter_that_backfills(service: Service) -> None:
    before = service.pid()
    service.add("second", "type: jsonl\nname: second\noptions: {dir: second}\n")
    print(service.run("systemctl", "reload", "zmqtrackd").stdout)
    assert "added: second" in service.machine.journal("zmqtrackd")  # it was waited for
    service.drain()
    service.check("first", "var/lib/private/zmqtrack/second")
    assert service.pid() == before


def test_a_reload_of_a_broken_file_fails_and_says_where_and_the_old_goes_on(
    service: Service,
) -> None:
    before = service.pid()
    path = service.add("third", "type: jsonl\nname: third\noptions:\n  dri: third\n")
    done = service.run("systemctl", "reload", "zmqtrackd", check=False)
    assert done.returncode != 0
    place = "/etc/zmqtrack/adapters.d/third.yaml:4: adapter third.options.dri"
    assert place in service.machine.journal("zmqtrackd")
    print(
        done.stderr, *(x for x in service.machine.journal("zmqtrackd").splitlines() if place in x)
    )
    assert service.is_active() and service.pid() == before
    service.log("old", 1000)
    service.drain()
    service.check("old")
    path.unlink()
    service.run("systemctl", "reload", "zmqtrackd")


def test_killed_it_is_started_again_and_nothing_is_lost(service: Service) -> None:
    before, restarts = service.pid(), service.restarts()
    writer = service.logging("killed")
    until(lambda: len(service.values("killed")) > 100, "records")
    service.run("sh", "-c", f"kill -KILL {before}")
    until(lambda: service.restarts() == restarts + 1 and service.is_active(), "a restart")
    assert service.pid() != before
    service.end("killed", writer)
    service.drain()
    service.check("killed")
    service.check("killed", "var/lib/private/zmqtrack/second")


def test_a_loop_that_stands_is_ended_by_the_watchdog(service: Service) -> None:
    before, restarts = service.pid(), service.restarts()
    writer = service.logging("stood")
    until(lambda: len(service.values("stood")) > 100, "records")
    service.run("sh", "-c", f"kill -STOP {before}")
    until(lambda: service.restarts() == restarts + 1 and service.is_active(), "a restart")
    journal = service.machine.journal("zmqtrackd")
    assert "Watchdog timeout" in journal
    print(*(line for line in journal.splitlines() if "atchdog" in line), sep="\n")
    service.end("stood", writer)
    service.drain()
    service.check("stood")


def test_a_stop_under_load_is_in_order_and_the_rest_comes_after_the_next_start(
    service: Service,
) -> None:
    writer = service.logging("stopped")
    until(lambda: len(service.values("stopped")) > 100, "records")
    service.run("systemctl", "stop", "zmqtrackd")
    facts = service.machine.show("zmqtrackd", "ActiveState", "Result", "ExecMainStatus")
    assert facts == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    print(facts)
    left = service.run("ps", "ax", check=False).stdout
    assert "zmqtrack.adapters" not in left
    service.run("systemctl", "start", "zmqtrackd")
    service.end("stopped", writer)
    service.drain()
    service.check("stopped")


def test_a_stop_that_takes_longer_than_its_time_asks_for_more(service: Service) -> None:
    service.path("opt/slow.py").write_text(SLOW)
    drop_in = service.path("etc/systemd/system/zmqtrackd.service.d/slow.conf")
    drop_in.write_text("[Service]\nTimeoutStopSec=1\nEnvironment=PYTHONPATH=/opt\n")
    slow = service.add("slow", "type: 'slow:Slow'\nname: slow\nflush_interval: 0\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "restart", "zmqtrackd")
    service.drain()
    service.log("slow", 100)
    began = time.monotonic()
    service.run("systemctl", "stop", "zmqtrackd")
    took = time.monotonic() - began
    facts = service.machine.show("zmqtrackd", "ActiveState", "Result")
    assert facts == {"ActiveState": "inactive", "Result": "success"}
    assert took > 2  # and not killed after one
    print(f"stopped in order after {took:.1f} s, with TimeoutStopSec=1")
    drop_in.unlink()
    slow.unlink()
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "start", "zmqtrackd")


def test_an_adapter_is_a_unit_of_its_own(service: Service) -> None:
    own = "var/lib/private/zmqtrack-adapter/own"
    service.add("own", "type: jsonl\nname: own\nexternal: true\noptions: {dir: out}\n")
    service.run("systemctl", "reload", "zmqtrackd")
    service.run("systemctl", "start", "zmqtrack-adapter@own")
    service.drain()
    service.check("stopped", f"{own}/out")
    service.run("systemctl", "stop", "zmqtrack-adapter@own")
    service.log("own", 100)
    service.run("systemctl", "start", "zmqtrack-adapter@own")
    service.drain()
    service.check("own", f"{own}/out")
    assert service.path(f"{own}/lock").exists()


def test_keys_are_roots_and_come_and_go_while_it_runs(service: Service) -> None:
    """The daemon's own is a credential; who may come in is read from the folder itself."""
    folder = "/etc/zmqtrack/keys"
    service.run("zmqtrack", "keys", "init", folder)
    made = service.run(
        *("zmqtrack", "keys", "new", "own", "--role", "subscriber", "--keys", folder),
        *("--output", "/etc/zmqtrack/adapters/own.key"),
    )
    print(made.stdout)
    for name, role in (("boss", "operator"), ("site-1", "writer")):
        output = ("--keys", folder, "--output", f"/root/{name}.key")
        service.run("zmqtrack", "keys", "new", name, "--role", role, *output)
    config = service.path(CONFIG)
    text = config.read_text().replace("  # keys:", "  keys:")
    config.write_text(text)
    service.run("systemctl", "restart", "zmqtrackd", "zmqtrack-adapter@own")
    boss = {"ZMQTRACK_KEY": "/root/boss.key"}
    site = {"ZMQTRACK_KEY": "/root/site-1.key"}
    service.log("keyed", 500, "site-1", **site)
    output = ("--keys", folder, "--output", "/root/site-2.key")
    service.run("zmqtrack", "keys", "new", "site-2", *output)
    service.log("late", 500, "site-2", ZMQTRACK_KEY="/root/site-2.key")
    service.run("zmqtrack", "drain", **boss)
    for run in ("keyed", "late"):
        service.check(run)
        service.check(run, "var/lib/private/zmqtrack-adapter/own/out")
    service.run("zmqtrack", "keys", "revoke", "site-2", "--keys", folder)

    def refused() -> bool:
        done = service.run("zmqtrack", "doctor", check=False, ZMQTRACK_KEY="/root/site-2.key")
        return done.returncode != 0 and "revoked" in done.stdout

    until(refused, "a refusal")
    # What the service can read of it: not the daemon's own key.
    mode = service.path("etc/zmqtrack/keys/server.key").stat()
    assert (mode.st_uid, mode.st_mode & 0o777) == (0, 0o600)
    service.run("systemctl", "reload", "zmqtrackd")
    config.write_text(text.replace("  keys:", "  # keys:"))
    service.path("etc/zmqtrack/adapters/own.key").unlink()
    service.run("systemctl", "restart", "zmqtrackd", "zmqtrack-adapter@own")
    service.drain()


def test_a_configuration_that_is_bad_at_the_start_is_not_tried_again(service: Service) -> None:
    path = service.add("bad", "type: nothing\n")
    service.run("systemctl", "restart", "zmqtrackd", check=False)
    facts = service.machine.show("zmqtrackd", "ActiveState", "ExecMainStatus", "NRestarts")
    assert facts == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    path.unlink()
    service.run("systemctl", "start", "zmqtrackd")
    assert service.is_active()


def test_a_user_has_a_service_without_root(service: Service) -> None:
    service.run("useradd", "--create-home", "--uid", "1234", "someone")
    service.run("systemctl", "start", "user@1234")
    runtime = "XDG_RUNTIME_DIR=/run/user/1234"
    user = ("runuser", "-u", "someone", "--", "env", runtime, "HOME=/home/someone")
    print(service.run(*user, "zmqtrack", "service", "install", "--user").stdout)
    config = service.path("home/someone/.config/zmqtrack/zmqtrack.yaml")
    config.write_text(config.read_text().replace(":5555", ":6555"))
    service.run(*user, "systemctl", "--user", "daemon-reload")
    service.run(*user, "systemctl", "--user", "enable", "--now", "zmqtrackd")
    address = "tcp://127.0.0.1:6555"
    service.log("mine", 100, ZMQTRACK_ADDRESS=address)
    service.run("zmqtrack", "drain", "--address", address)
    service.check("mine", "home/someone/.local/state/zmqtrack/jsonl")
    service.run(*user, "systemctl", "--user", "reload", "zmqtrackd")
    print(service.run(*user, "zmqtrack", "service", "uninstall", "--user").stdout)
    assert config.exists()
    service.run("systemctl", "stop", "user@1234")
    del service.logged["mine"]


def test_at_the_end_each_record_is_there_once_and_uninstall_leaves_them(service: Service) -> None:
    service.log("last", 100)
    service.drain()
    print(service.logged)
    print(service.run("zmqtrack", "status").stdout)
    assert set(service.logged) >= {"first", "old", "killed", "stood", "stopped", "own", "keyed"}
    for folder in ("zmqtrack/jsonl", "zmqtrack/second", "zmqtrack-adapter/own/out"):
        for run in service.logged:
            service.check(run, f"var/lib/private/{folder}")
    done = service.run("zmqtrack", "service", "uninstall")
    print(done.stdout)
    assert "left: the journal and what adapters wrote in /var/lib/zmqtrack" in done.stdout
    assert service.machine.show("zmqtrackd", "ActiveState") == {"ActiveState": "inactive"}
    assert not service.path("etc/systemd/system/zmqtrackd.service").exists()
    service.check("first")
    assert service.path(CONFIG).exists()
