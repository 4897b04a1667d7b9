"""The daemon under systemd: what it tells a socket in systemd's place, its units, their install."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result
from zmqtrack.daemon import systemd
from zmqtrack.daemon.systemd import Notifier, summary

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import keys
from zmqtrack.cli.app import app
from zmqtrack.config import load
from zmqtrack.control import ControlClient
from zmqtrack.errors import KeyFileError
from zmqtrack.keyring import KeyRing

Make = Callable[..., Daemon]
UNITS = Path(__file__).parent.parent / "configs" / "systemd"
#: What `systemd-analyze security` may find.
EXPOSURE = 1.5


class Systemd:
    """The socket that a service is told to notify."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.said: list[dict[str, str]] = []

    def next(self, timeout: float = PATIENCE) -> dict[str, str]:
        self._socket.settimeout(timeout)
        message = self._socket.recv(65536).decode()
        self.said.append(dict(line.split("=", 1) for line in message.splitlines()))
        return self.said[-1]

    def wait_for(self, name: str, pattern: str = "") -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            said = self.next()
            if name in said and re.search(pattern, said[name]):
                return said
        raise AssertionError(f"no {name}={pattern} among {self.said}")

    def names(self) -> list[str]:
        return [name for said in self.said for name in said]

    def rest(self) -> list[str]:
        """What is there to be read without waiting."""
        before = len(self.said)
        try:
            while True:
                self.next(0.001)
        except (TimeoutError, BlockingIOError):
            return [name for said in self.said[before:] for name in said]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def pid1(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    path = str(tmp_path / "notify")
    made = Systemd(path if request.param == "path" else f"@zmqtrack-test-{os.getpid()}-{path}"[:90])
    yield made
    made.close()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(str(tmp_path / "notify"))
    yield made
    made.close()


# --- what is said ---------------------------------------------------------------------------------


def test_a_daemon_tells_when_it_is_ready_how_it_goes_and_that_it_lives(
    daemon: Make, tmp_path: Path, pid1: Systemd
) -> None:
    env = {"NOTIFY_SOCKET": pid1.address, "WATCHDOG_USEC": "400000"}
    served = daemon([jsonl(tmp_path / "out")], env=env)
    with served:
        pid1.wait_for("READY", "^1$")
        assert pid1.names()[:2] == ["STATUS", "EXTEND_TIMEOUT_USEC"]  # while it recovered
        assert pid1.said[0]["STATUS"] == "recovering"
        assert "WATCHDOG" not in pid1.names()
        for _ in range(3):
            pid1.wait_for("WATCHDOG", "^1$")
        with zmqtrack.init("e", "r", "site-1", served.address) as run:
            run.log_metric("m", 1.0)
            run.flush()
            served.drain()
            said = pid1.wait_for("STATUS", "1 site active")
        assert re.fullmatch(r"1 site active; jsonl \w+, lag \d+", said["STATUS"])
        for process in psutil.Process(served.process.pid).children(recursive=True):
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(process.environ())
        served.process.send_signal(signal.SIGTERM)
        pid1.wait_for("STOPPING", "^1$")
        pid1.wait_for("EXTEND_TIMEOUT_USEC", "^30000000$")


def test_ready_is_not_said_before_control_answers(daemon: Make, here: Systemd, nobody: str) -> None:
    served = daemon([], control=nobody, env={"NOTIFY_SOCKET": here.address})
    with served:
        here.wait_for("READY")
        client = ControlClient(nobody)
        try:
            assert client.request("hello", timeout=2)["op"] == "welcome"
        finally:
            client.close()


def test_a_daemon_that_cannot_begin_is_never_ready(
    daemon: Make, here: Systemd, tmp_path: Path
) -> None:
    with daemon([]) as first:
        command = [sys.executable, "-m", "zmqtrack.daemon", "--config", str(first.config)]
        second = subprocess.run(
            command,
            env={**os.environ, "NOTIFY_SOCKET": here.address},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert second.returncode == 1 and str(first.process.pid) in second.stderr
    here.rest()
    assert set(here.names()) == {"STATUS", "EXTEND_TIMEOUT_USEC"}


def test_a_reload_is_told_and_ends_whether_the_file_is_good_or_not(
    daemon: Make, here: Systemd, tmp_path: Path
) -> None:
    served = daemon([], env={"NOTIFY_SOCKET": here.address})
    with served:
        here.wait_for("READY")
        good = served.config.read_text()
        for text, said in ((good, "reloaded"), ("adapters: 3\n", "cannot reload")):
            served.config.write_text(text)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            served.process.send_signal(signal.SIGHUP)
            reloading = here.wait_for("RELOADING", "^1$")
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert before <= int(reloading["MONOTONIC_USEC"]) <= now
            served.wait_for(said)
            here.wait_for("READY", "^1$")


def test_a_loop_that_stands_says_nothing(daemon: Make, here: Systemd) -> None:
    """Nothing but the loop says that it lives."""
    env = {"NOTIFY_SOCKET": here.address, "WATCHDOG_USEC": "200000"}
    with daemon([], env=env) as served:
        here.wait_for("WATCHDOG")
        served.process.send_signal(signal.SIGSTOP)
        try:
            psutil.Process(served.process.pid).wait(0)
        except psutil.TimeoutExpired:
            pass
        here.rest()
        with pytest.raises(TimeoutError):
            here.next(1.0)
        served.process.send_signal(signal.SIGCONT)
        here.wait_for("WATCHDOG")


def test_the_watchdog_is_told_at_half_its_time_by_turns_alone(here: Systemd) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": here.address, "WATCHDOG_USEC": "200000"})
    assert notifier.watchdog == 0.1
    notifier.turned()
    notifier.turned()
    assert here.rest() == ["WATCHDOG"]
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        time.sleep(0.01)
    assert here.rest() == []
    notifier.turned()
    assert here.rest() == ["WATCHDOG"]


@pytest.mark.parametrize(
    ("pid", "seconds"),
    [(str(os.getpid()), 15.0), ("1", 0.0), ("no number", 0.0), ("", 15.0)],
    ids=["own", "another", "no number", "none"],  # workers have to agree on them
)
def test_only_the_watchdog_of_this_process_is_fed(here: Systemd, pid: str, seconds: float) -> None:
    environ = {"NOTIFY_SOCKET": here.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": pid}
    assert Notifier(environ).watchdog == seconds
    assert environ == {}


@pytest.mark.parametrize(
    "address", ["", "relative", "/is/not/there", "/" + 200 * "x", "@", "vsock:2:1"]
)
def test_without_a_socket_nothing_is_said_and_nothing_raised(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "many"})
    with notifier.extending("long"):
        notifier.ready()
    notifier.turned(lambda: "well")
    notifier.on_reload(True)
    notifier.stopping()


def test_a_socket_that_is_full_or_gone_holds_nobody_up(
    here: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "SEND_TIMEOUT", 0.1)
    monkeypatch.setattr(systemd, "STATUS_INTERVAL", 0.0)
    notifier = Notifier({"NOTIFY_SOCKET": here.address, "WATCHDOG_USEC": "1"})
    began = time.monotonic()
    for n in range(2000):
        notifier.turned(lambda n=n: f"status {n}")  # type: ignore[misc]
    notifier.ready()
    assert time.monotonic() - began < 5
    here.close()
    notifier.turned(lambda: "well")
    notifier.ready()


def test_time_is_asked_for_as_long_as_something_takes(
    here: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "EXTEND_INTERVAL", 0.02)
    notifier = Notifier({"NOTIFY_SOCKET": here.address})
    with notifier.extending("recovering"):
        for _ in range(3):
            here.wait_for("EXTEND_TIMEOUT_USEC", "^30000000$")
    here.rest()
    with pytest.raises(TimeoutError):
        here.next(0.2)
    monkeypatch.setattr(systemd, "EXTEND_INTERVAL", 60)
    for _ in range(2):  # the start, and a stop soon after
        with notifier.extending():
            here.wait_for("EXTEND_TIMEOUT_USEC")
    assert here.said[0] == {"STATUS": "recovering"}


def test_a_status_is_one_line_said_when_it_changes(
    here: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "STATUS_INTERVAL", 0.0)
    notifier = Notifier({"NOTIFY_SOCKET": here.address})
    for text in ("well", "well", "two\nREADY=1 lines"):
        notifier.turned(lambda text=text: text)  # type: ignore[misc]

    def broken() -> str:
        raise zmqtrack.ZMQTrackError("the disk is gone")

    notifier.turned(broken)
    here.rest()
    assert [said["STATUS"] for said in here.said] == [
        "well",
        "two READY=1 lines",
        "how it goes cannot be told: the disk is gone",
    ]


def test_the_summary_counts_sites_and_names_who_is_behind() -> None:
    facts = {
        "sites": [
            {"site": "a", "state": "active"},
            {"site": "a", "state": "stale"},
            {"site": "b", "state": "stale"},
            {"site": "c", "state": "ended"},
        ],
        "adapters": {f"n{n}": {"state": "running", "lag": n} for n in range(10)},
        "daemon": {"accepting": False},
    }
    text = summary(facts)
    assert text.startswith("1 site active, 1 stale; n9 running, lag 9, n8 running, lag 8, ")
    assert text.endswith("n2 running, lag 2 and 2 more; no room: writers keep their records")


# --- units ----------------------------------------------------------------------------------------


@pytest.fixture
def analyze() -> Callable[..., subprocess.CompletedProcess[str]]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if int(re.findall(r"\d+", version)[0]) < 252:
        pytest.skip("systemd-analyze is older than 252")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=PATIENCE
        )

    return run


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A zmqtrackd and its Python that units can name, wherever this is checked out."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("zmqtrackd", "python3"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder / "zmqtrackd"


def service(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["service", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def test_systemd_understands_every_line_of_the_units(
    tmp_path: Path,
    programs: Path,
    analyze: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service("install", "--root", tmp_path, "--executable", programs)
    units = tmp_path / "etc/systemd/system"
    (units / "zmqtrack-adapter@.service").rename(units / "zmqtrack-adapter@one.service")
    done = analyze("verify", "--man=no", *map(str, sorted(units.iterdir())))
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    service("install", "--user", "--root", tmp_path, "--executable", programs)
    user = tmp_path / "config/systemd/user/zmqtrackd.service"
    done = analyze("verify", "--user", "--man=no", str(user))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["zmqtrackd.service", "zmqtrack-adapter@.service"])
def test_the_units_can_do_little(
    unit: str, tmp_path: Path, analyze: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    copy = shutil.copy(UNITS / unit, tmp_path / unit.replace("@", "@one"))
    done = analyze("security", "--offline=true", str(copy))
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert score is not None, done.stdout + done.stderr
    assert float(score[1]) <= EXPOSURE, done.stdout


def test_the_stop_of_a_unit_lasts_longer_than_that_of_the_daemon() -> None:
    text = (UNITS / "zmqtrackd.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    default = load(UNITS / "zmqtrack.yaml").config.daemon.stop_timeout
    assert stop is not None and float(stop[1]) >= 2 * default


# --- zmqtrack service -----------------------------------------------------------------------------


def test_install_writes_units_and_a_configuration_that_is_good(
    tmp_path: Path, programs: Path
) -> None:
    done = service("install", "--root", tmp_path / "root", "--executable", programs)
    etc = tmp_path / "root/etc"
    assert "systemctl enable --now zmqtrackd" in done.output
    unit = (etc / "systemd/system/zmqtrackd.service").read_text()
    assert f"\nExecStart={programs} --config /etc/zmqtrack/zmqtrack.yaml\n" in unit
    assert f"\nExecReload={programs} --check --config " in unit
    adapter = (etc / "systemd/system/zmqtrack-adapter@.service").read_text()
    assert f"\nExecStart={programs.with_name('python3')} -m zmqtrack.adapters --config " in adapter
    assert "/usr/bin" not in unit + adapter
    config = load(etc / "zmqtrack/zmqtrack.yaml").config
    assert (str(config.daemon.state_dir), config.daemon.control) == (
        "/var/lib/zmqtrack",
        "tcp://127.0.0.1:5555",
    )
    assert [adapter.type for adapter in config.adapters] == ["jsonl"]
    (etc / "zmqtrack/adapters.d/one.yaml").write_text("type: jsonl\nname: one\n")
    assert len(load(etc / "zmqtrack/zmqtrack.yaml").config.adapters) == 2


def test_install_twice_changes_nothing_and_an_older_unit_is_updated(
    tmp_path: Path, programs: Path
) -> None:
    arguments = ("install", "--root", tmp_path, "--executable", programs)
    service(*arguments)
    unit = tmp_path / "etc/systemd/system/zmqtrackd.service"
    first = unit.read_text()
    again = service(*arguments)
    assert f"{unit} is as it should be" in again.output
    assert "zmqtrack.yaml is there, and stays as it is" in again.output
    other = programs.with_name("other")
    moved = service("install", "--root", tmp_path, "--executable", other)
    assert f"updated {unit}" in moved.output
    assert unit.read_text() != first
    assert f"ExecStart={other} " in unit.read_text()


def test_install_leaves_what_was_changed_unless_it_is_forced_to(
    tmp_path: Path, programs: Path
) -> None:
    arguments = ("install", "--root", tmp_path, "--executable", programs)
    service(*arguments)
    unit = tmp_path / "etc/systemd/system/zmqtrackd.service"
    config = tmp_path / "etc/zmqtrack/zmqtrack.yaml"
    config.write_text("daemon: {}\n")
    mine = unit.read_text().replace("WatchdogSec=30", "WatchdogSec=5")
    unit.write_text(mine)
    done = service(*arguments, code=1)
    assert f"{unit} was changed, and stays as it is; --force replaces it" in done.output
    assert unit.read_text() == mine
    done = service(*arguments, "--force")
    assert f"kept as {unit}.old" in done.output
    assert Path(f"{unit}.old").read_text() == mine
    assert "WatchdogSec=30" in unit.read_text()
    assert config.read_text() == "daemon: {}\n"


def test_uninstall_leaves_data_and_configuration_and_says_where(
    tmp_path: Path, programs: Path
) -> None:
    service("install", "--root", tmp_path, "--executable", programs)
    state = tmp_path / "var/lib/zmqtrack"
    state.mkdir(parents=True)
    adapter = tmp_path / "etc/systemd/system/zmqtrack-adapter@.service"
    adapter.write_text("[Service]\n")
    drop_in = tmp_path / "etc/systemd/system/zmqtrackd.service.d"
    drop_in.mkdir()
    done = service("uninstall", "--root", tmp_path)
    assert f"it was changed, and is kept as {adapter}.old" in done.output
    assert f"left: the configuration in {tmp_path}/etc/zmqtrack" in done.output
    assert f"left: the journal and what adapters wrote in {state}" in done.output
    assert f"left: drop-ins in {drop_in}" in done.output
    assert sorted(path.name for path in adapter.parent.iterdir()) == [
        "zmqtrack-adapter@.service.old",
        "zmqtrackd.service.d",
    ]
    assert (tmp_path / "etc/zmqtrack/zmqtrack.yaml").exists()
    assert "no unit of zmqtrack is in" in service("uninstall", "--root", tmp_path).output


def test_a_user_needs_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a home"  # with a blank
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no systemd"))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = service("install", "--user")
    assert "systemctl --user enable --now zmqtrackd" in done.output
    assert "loginctl enable-linger" in done.output
    unit = (home / ".config/systemd/user/zmqtrackd.service").read_text()
    program = Path(sys.executable).with_name("zmqtrackd")
    config = home / ".config/zmqtrack/zmqtrack.yaml"
    assert f'\nExecStart={program} --config "{config}"\n' in unit
    assert "DynamicUser" not in unit
    state = home / ".local/state/zmqtrack"
    assert f"\nWorkingDirectory=-{state}\n" in unit and state.is_dir()
    assert load(config).config.daemon.state_dir == state
    checked = subprocess.run([program, "--check", "--config", config], timeout=PATIENCE)
    assert checked.returncode == 0
    # As under su and cron: the system's own /run/systemd is not the user's.
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    done = service("uninstall", "--user")
    assert f"left: the configuration in {config.parent}" in done.output
    assert config.exists()


def test_a_service_of_the_system_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in ("install", "uninstall"):
        assert "takes root: use sudo; or --user" in service(command, code=1).output


def test_a_program_that_the_service_would_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "executable", "/home/me/venv/bin/python")
    done = service("install", "--root", tmp_path, code=1)
    assert "is in /home, which a service of the system does not see" in done.output
    assert "python3 -m venv /opt/zmqtrack" in done.output
    assert not any(tmp_path.glob("etc"))
    relative = service("install", "--root", tmp_path, "--executable", "bin/zmqtrackd", code=2)
    assert "name it with its whole path" in relative.output


# --- keys -----------------------------------------------------------------------------------------


def test_the_daemons_own_key_comes_as_a_credential_and_empty_means_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, given = tmp_path / "keys", tmp_path / "credentials"
    public = KeyRing.create(folder, "tcp://127.0.0.1:1").public
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    keys.write(given / "server.key", {})
    assert KeyRing(folder).public == public
    (folder / "server.key").rename(folder / "elsewhere")
    with pytest.raises(KeyFileError, match=r"has no server\.key"):
        KeyRing(folder)
    shutil.copy(folder / "elsewhere", given / "server.key")
    (given / "server.key").chmod(0o440)  # as systemd's ACL looks
    assert KeyRing(folder).public == public


def test_clients_can_be_read_by_whoever_may_read_their_folder(tmp_path: Path) -> None:
    ring = KeyRing.create(tmp_path / "keys", "tcp://127.0.0.1:1")
    modes = []
    for name, mode in (("private", 0o700), ("shared", 0o755)):
        ring.folder.chmod(mode)
        ring.new(name, ["writer"])
        modes.append(stat.S_IMODE((ring.folder / f"{name}.json").stat().st_mode))
    assert modes == [0o600, 0o644]
    assert stat.S_IMODE((ring.path / "server.key").stat().st_mode) == 0o600


def test_an_adapter_of_its_own_keeps_its_state_where_it_is_told(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    out, folder, key = tmp_path / "out", tmp_path / "own", tmp_path / "key"
    keys.write(key, {})  # systemd's word for: there is none
    with daemon([jsonl(out, external=True)], control=nobody) as served:
        with zmqtrack.init("e", "r", "site", nobody) as run:
            run.log_metric("m", 1.0)
        command = [sys.executable, "-m", "zmqtrack.adapters", "--config", str(served.config)]
        adapter = subprocess.Popen(
            [*command, "--name", "jsonl", "--folder", str(folder)],
            env={**os.environ, "ZMQTRACK_KEY": str(key)},
        )
        try:
            served.drain()
        finally:
            adapter.terminate()
            assert adapter.wait(PATIENCE) == 0
        facts = served.status()["adapters"]["jsonl"]
        assert (facts["state"], facts["detail"]) == ("away", "it was stopped")
    assert "m" in [line["key"] for line in read_jsonl(out, "e", "r", "site")]
    assert (folder / "lock").exists()
    assert not (served.state_dir / "adapters").exists()
    assert json.loads(key.read_text()) == {}
