"""A user's mistake is told in words, with the same exit code everywhere, and no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import zmqtrack
from harness import PATIENCE, Daemon

Make = Callable[..., Daemon]

COMMAND = [sys.executable, "-m", "zmqtrack.cli"]
DAEMON = [sys.executable, "-m", "zmqtrack.daemon"]

#: An adapter that is still being imported when Ctrl-C comes.
SLOW = """
import time
from pathlib import Path
Path(__file__).with_name("imported").touch()
time.sleep(600)
"""

#: One whose tracker never answers, and which has started something.
SLOW_PROBE = """
import subprocess, time
from pathlib import Path
from zmqtrack.adapters.base import Adapter
class Slow(Adapter):
    def deliver(self, batches): pass
    def probe(self, timeout):
        subprocess.Popen(["sleep", "3600"])
        Path(__file__).with_name("probed").touch()
        time.sleep(3600)
"""


def told(*arguments: Any, command: list[str] = COMMAND, **options: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, in which no traceback may stand."""
    for stream in ("stdout", "stderr"):
        options.setdefault(stream, subprocess.PIPE)
    done = subprocess.run([*command, *map(str, arguments)], text=True, timeout=60, **options)
    for said in (done.stdout or "", done.stderr or ""):
        assert "Traceback" not in said and "Exception ignored" not in said, said
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What may stand where a file is expected."""
    found = {kind: tmp_path / kind for kind in ("folder", "empty", "latin1", "closed", "missing")}
    found["folder"].mkdir()
    found["empty"].write_bytes(b"")
    found["latin1"].write_bytes("daemon: {state_dir: Zürich}\n".encode("latin-1"))
    found["closed"].write_text("{}")
    for name, mode in (("empty", 0o600), ("latin1", 0o600), ("closed", 0)):
        found[name].chmod(mode)
    return found


#: Takes from root what lets it read everything.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "Is a directory"),
        ("latin1", "not UTF-8"),
        ("closed", "Permission denied"),
        ("missing", "No such file or directory"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    files: dict[str, Path], kind: str, reason: str
) -> None:
    as_anybody = AS_ANYBODY if kind == "closed" and os.geteuid() == 0 else []
    for command in ([*COMMAND, "check"], [*DAEMON, "--config"]):
        code, out, error = told(files[kind], command=[*as_anybody, *command])
        assert (code, out) == (78, "")
        assert error.startswith(f"{files[kind]}: ") and reason in error
        assert len(error.splitlines()) == 1


def test_an_empty_configuration_is_one_without_adapters(files: dict[str, Path]) -> None:
    assert told("check", files["empty"])[:2] == (0, f"{files['empty']}: good, 0 adapters\n")


@pytest.mark.parametrize("kind", ["folder", "empty", "latin1", "closed", "missing"])
def test_a_key_file_that_is_none_is_named(files: dict[str, Path], kind: str, nobody: str) -> None:
    as_anybody = AS_ANYBODY if kind == "closed" and os.geteuid() == 0 else []
    command = ["status", "-a", nobody] if kind < "f" else ["spool", "send"]
    code, _, error = told(*command, "--key", files[kind], command=[*as_anybody, *COMMAND])
    assert code == 2
    assert str(files[kind]) in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ("statu", 2, "No such command 'statu'"),
        ("status --jsn", 2, "No such option: --jsn"),
        ("status -a tcp:/127.0.0.1:5555", 2, "'tcp:/127.0.0.1:5555' is no address"),
        ("drain -a tcp://127.0.0.1:99999", 2, "'tcp://127.0.0.1:99999' is no address"),
        ("spool send -a localhost", 2, "'localhost' is no address"),
        ("dlq retry 99999999999999999999", 2, "less than or equal"),
        ("dlq drop -- -1", 2, "greater than or equal to 1"),
        ("drain --timeout nan", 2, "nan is no number of seconds"),
        ("drain --timeout -1", 2, "-1 is no number of seconds"),
        ("check --timeout inf", 2, "inf is no number of seconds"),
        ("dlq retry one", 2, "Invalid value"),
        ("spool list --dir FILE", 2, "is a file"),
        ("spool list --dir MISSING", 2, "does not exist"),
        ("keys list --keys FILE", 1, "FILE has no server.key"),
        ("keys list --keys MISSING", 1, "MISSING has no server.key"),
        ("keys init FILE/keys", 1, "FILE/keys: Not a directory"),
        ("keys init FOLDER/keys -a tcp://0.0.0.0:5555", 2, "names no machine"),
    ],
)
def test_a_wrong_argument_is_named(
    files: dict[str, Path], arguments: str, code: int, reason: str
) -> None:
    places = {"FILE": files["empty"], "MISSING": files["missing"], "FOLDER": files["folder"]}
    for name, path in places.items():
        arguments, reason = arguments.replace(name, str(path)), reason.replace(name, str(path))
    # A wide terminal: a message is not broken into lines.
    found, out, error = told(*arguments.split(), env={**os.environ, "COLUMNS": "300"})
    assert (found, out) == (code, "")
    assert reason in error


# --- Ctrl-C, and readers that go away ------------------------------------------------------


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """As Ctrl-C at a terminal does it: to all in the foreground."""
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out, error


def start(*command: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize("command", ["status", "drain", "doctor"])
def test_ctrl_c_ends_a_command_that_waits_without_a_word(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        process = start(*COMMAND, *command.split(), "-a", address)
        connection, _ = silent.accept()  # now it waits for an answer
        with connection:
            code, _, error = interrupted(process)
    assert (code, error) == (130, "")


@pytest.mark.parametrize("command", [[*COMMAND, "check"], [*DAEMON, "--config"]])
def test_ctrl_c_ends_a_check_and_a_start_with_all_their_processes(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    config = tmp_path / "zmqtrack.yaml"
    config.write_text("adapters: [{type: slow:Slow}]\n")
    process = start(*command, str(config), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "imported").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    code, out, error = interrupted(process)
    assert code in (130, -signal.SIGINT)  # a shell shows both as 130
    assert (out, error) == ("", "")
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]


def test_ctrl_c_ends_a_check_of_trackers_with_all_that_they_have_started(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_PROBE)
    config = tmp_path / "zmqtrack.yaml"
    config.write_text("adapters: [{type: slow:Slow}]\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = start(*COMMAND, "check", "--connect", str(config), env=environment)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "probed").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert "sleep" in [child.name() for child in children]
    code, out, error = interrupted(process)
    assert (code, out, error) == (130, f"{config}: good, 1 adapters\n", "")
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]


@pytest.fixture
def served(daemon: Make) -> Any:
    with daemon([]) as running:
        with zmqtrack.init("e", "r", "s", running.address) as run:
            run.log_metric("loss", 0.5)
        yield running


def test_what_cannot_be_written_is_no_traceback(served: Daemon) -> None:
    config = str(served.config)
    for command in (["status", "-a", served.address], ["check", config, "--json"]):
        read, write = os.pipe()
        os.close(read)  # as `| head -1` does when it has its line
        try:
            assert told(*command, stdout=write)[::2] == (1, "")
        finally:
            os.close(write)
        with Path("/dev/full").open("w") as full:
            code, _, error = told(*command, stdout=full)
        assert code == 1 and "No space left on device" in error
        closed = ["bash", "-c", 'exec "$@" >&-', "bash"]
        told(*command, command=[*closed, *COMMAND])
        told(*command, command=["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *COMMAND])


def test_facts_are_json_wherever_they_are_printed(
    served: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts(*arguments: str) -> Any:
        code, out, error = told(*arguments, "--json", cwd=tmp_path)
        assert code == 0, error
        return json.loads(out)

    monkeypatch.setenv("ZMQTRACK_ADDRESS", served.address)
    assert facts("version")["version"] == zmqtrack.__version__
    assert facts("drain") == {"head": 3}
    assert facts("spool", "send") == {"delivered": 0, "left": 0, "take_other_keys": []}
    assert facts("spool", "list") == facts("dlq", "list") == []
    assert facts("status")["journal"]["head"] == 3
    assert facts("check", str(served.config))["problems"] == []
    made = facts("keys", "init")
    assert made == {"keys": str(tmp_path / "zmqtrack-keys"), "address": "tcp://127.0.0.1:5555"}
    assert facts("keys", "new", "site-1")["file"] == "site-1.key"
    assert facts("keys", "roles", "site-1")["roles"] == ["writer"]
    assert facts("keys", "list")[0]["name"] == "site-1"
    assert facts("keys", "revoke", "site-1") == {"name": "site-1", "revoked": 1}
    for command, verb in (("retry", "retrying"), ("drop", "dropped")):
        code, out, error = told("dlq", command, "7", "--json")
        assert (code, json.loads(out)) == (1, {verb: 0})
        assert re.match("1 of the numbers are no dead letter's", error)
