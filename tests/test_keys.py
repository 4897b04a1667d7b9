"""Key files, the daemon's folder of them, and the commands that look after both."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmqtrack.daemon import audit as audit_module
from zmqtrack.daemon.audit import Audit
from zmqtrack.daemon.auth import grants

from zmqtrack import keys
from zmqtrack.errors import KeyFileError
from zmqtrack.keyring import Client, KeyRing

ADDRESS = "tcp://logs.example.org:5555"


def zmqtrack(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", "keys", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def good(folder: Path, *arguments: str) -> str:
    done = zmqtrack(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bad(folder: Path, *arguments: str) -> str:
    done = zmqtrack(folder, *arguments)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_life_of_a_key(tmp_path: Path) -> None:
    good(tmp_path, "init", "keys", "-a", ADDRESS)
    good(tmp_path, "new", "site-1", "--keys", "keys")
    good(tmp_path, "new", "eye", "--role", "subscriber", "--topic", "metric", "--keys", "keys")
    file = tmp_path / "site-1.key"
    for private in (file, tmp_path / "keys" / "server.key"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    key = keys.load(file)
    assert (key.name, key.address) == ("site-1", ADDRESS)
    listed = json.loads(good(tmp_path, "list", "--json", "--keys", "keys"))
    assert [(each["name"], each["roles"], each["topics"]) for each in listed] == [
        ("eye", ["subscriber"], ["metric"]),
        ("site-1", ["writer"], None),
    ]
    assert key.secret.decode() not in json.dumps(listed)
    ring = KeyRing(tmp_path / "keys")
    assert ring.clients()[key.public] == Client("site-1", frozenset({"writer"}))
    good(tmp_path, "roles", "site-1", "writer", "operator", "--keys", "keys")
    assert ring.clients()[key.public].roles == {"writer", "operator"}
    assert "site-1" in good(tmp_path, "roles", "site-1", "--keys", "keys")
    good(tmp_path, "roles", "eye", "subscriber", "operator", "--keys", "keys")
    assert ring.known("eye")["topics"] == ["metric"]  # what is not named stays
    good(tmp_path, "roles", "eye", "--topic", "*", "--keys", "keys")
    assert ring.known("eye")["topics"] is None
    good(tmp_path, "revoke", "site-1", "--keys", "keys")
    assert ring.clients()[key.public].revoked
    assert "revoked" in good(tmp_path, "list", "--keys", "keys")
    file.unlink()
    good(tmp_path, "new", "site-1", "--keys", "keys")  # again, with another key
    assert keys.load(file).public != key.public


def test_what_goes_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    assert "has no server.key" in bad(tmp_path, "list", "--keys", "nowhere")
    good(tmp_path, "init", "keys")
    assert "File exists" in bad(tmp_path, "init", "keys")
    good(tmp_path, "new", "a", "--keys", "keys")
    assert "a.key is there already" in bad(tmp_path, "new", "a", "--keys", "keys")
    (tmp_path / "a.key").unlink()
    assert "a has a key already" in bad(tmp_path, "new", "a", "--keys", "keys")
    assert "no such role: 'boss'" in bad(tmp_path, "new", "b", "--role", "boss", "--keys", "keys")
    assert "nobody is called 'c'; there are: a" in bad(tmp_path, "revoke", "c", "--keys", "keys")
    assert "cannot name a data type" in bad(
        tmp_path, "new", "b", "--role", "subscriber", "--topic", "No Such", "--keys", "keys"
    )
    assert "has no ':'" in bad(tmp_path, "new", "b:c", "--keys", "keys")
    assert "stays as it is" in bad(
        tmp_path, "new", "a", "--rotate", "--role", "operator", "--keys", "keys"
    )
    assert "has the role subscriber" in bad(
        tmp_path, "new", "b", "--topic", "metric", "--keys", "keys"
    )
    assert "names no machine" in bad(tmp_path, "init", "other", "-a", "tcp://*:5555")
    assert "is no address" in bad(tmp_path, "init", "other", "-a", "5555")
    # A key that could not be handed over lets nobody in.
    assert "nowhere" in bad(tmp_path, "new", "b", "--keys", "keys", "-o", "nowhere/b.key")
    assert [
        each for each in KeyRing(tmp_path / "keys").clients().values() if each.name == "b"
    ] == []


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"roles": "writer"},
        {"topics": "metric"},
        {"keys": [{"public": "x", "created": 1.0}]},
        {"keys": [{"public": "x" * 40}]},
        {"keys": [{}]},
    ],
)
def test_a_client_that_was_tampered_with_lets_nobody_in(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    ring = KeyRing.create(tmp_path / "keys", ADDRESS)
    ring.new("a", ["writer"])
    file = ring.folder / "a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(KeyFileError, match=r"a\.json does not say who may come in"):
        ring.clients()
    assert "does not say" in bad(tmp_path, "list", "--keys", "keys")


def test_check_and_start_look_at_the_keys_and_name_file_line_and_key(tmp_path: Path) -> None:
    config = tmp_path / "zmqtrack.yaml"
    config.write_text("daemon:\n  keys: keys\n")
    check = [sys.executable, "-m", "zmqtrack.cli", "check"]
    start = [sys.executable, "-m", "zmqtrack.daemon", "--config", str(config)]

    def told(command: list[str]) -> tuple[int, str]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, said = told(check)
    assert code == 78 and said.startswith("zmqtrack.yaml:2: daemon.keys: keys has no server.key")
    code, said = told(start)
    assert code == 78 and said.startswith(f"{config}:2: daemon.keys: keys has no server.key")
    good(tmp_path, "init", "keys")
    assert told(check) == (0, "")
    (tmp_path / "keys" / "clients").rmdir()
    code, said = told(check)
    assert code == 78
    place = "zmqtrack.yaml:2: daemon.keys: keys/clients"
    assert said == f"{place} cannot be read: No such file or directory\n"


def test_a_change_by_hand_is_seen(tmp_path: Path) -> None:
    ring = KeyRing.create(tmp_path / "keys", ADDRESS)
    ring.new("a", ["writer"])
    before = ring.version()
    file = ring.folder / "a.json"
    file.write_text(file.read_text().replace("writer", "operator"))
    assert ring.version() != before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[]", "it holds no JSON object"),
        (b"{}", "'name' is missing"),
        (
            b'{"name": "a", "address": "x", "server": "1", "public": "2", "secret": "3"}',
            "is no key",
        ),
    ],
)
def test_what_is_no_key_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match=said):
        keys.load(file)


def test_a_key_whose_halves_do_not_fit_is_refused(tmp_path: Path) -> None:
    ring = KeyRing.create(tmp_path / "keys", ADDRESS)
    key = ring.new("a", ["writer"])._replace(public=keys.new_pair()[0])
    keys.write(tmp_path / "a.key", key.fields())
    with pytest.raises(KeyFileError, match="do not belong together"):
        keys.load(tmp_path / "a.key")


def test_a_credential_of_systemd_may_look_readable_by_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KeyRing.create(tmp_path / "keys", ADDRESS).new("a", ["writer"])
    file = tmp_path / "a.key"
    keys.write(file, key.fields())
    file.chmod(0o440)
    with pytest.raises(KeyFileError, match="0440"):
        keys.load(file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.load(file) == key
    file.chmod(0o444)
    with pytest.raises(KeyFileError, match="0444"):
        keys.load(file)


@pytest.mark.parametrize(
    ("topics", "sites", "wanted", "granted"),
    [
        (None, None, b"", {b""}),
        (None, None, b"metric/", {b"metric/"}),
        ({"metric"}, None, b"", {b"metric/", b"pulse/"}),
        ({"metric"}, None, b"metric/w1/", {b"metric/w1/"}),
        ({"metric"}, None, b"text/", set()),
        ({"metric"}, {"w1"}, b"metric/", {b"metric/w1/"}),
        ({"metric"}, {"w1"}, b"metric/w1", {b"metric/w1/"}),
        ({"metric"}, {"w1"}, b"metric/w10/", set()),
        ({"metric"}, {"w1"}, b"met", {b"metric/w1/"}),
        (None, {"w1"}, b"metric/", {b"metric/w1/"}),
        (None, {"w1"}, b"own_type/", {b"own_type/w1/"}),
        (None, {"a/b"}, b"text/", {b"text/a%2Fb/"}),
        ({"metric"}, None, b"head/", {b"pulse/"}),
        ({"metric"}, None, b"pulse/", {b"pulse/"}),
        ({"metric"}, None, b"lost/", set()),
    ],
)
def test_a_subscription_becomes_what_is_granted_of_it(
    topics: set[str] | None, sites: set[str] | None, wanted: bytes, granted: set[bytes]
) -> None:
    client = Client(
        "eye",
        frozenset({"subscriber"}),
        None if topics is None else frozenset(topics),
        None if sites is None else frozenset(sites),
    )
    assert set(grants(client, wanted)) == granted


def test_an_audit_log_is_rotated_and_does_not_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "BYTES", 5000)
    log = Audit(tmp_path)
    for number in range(1000):
        log.write("refused", f"site-{number}", "revoked")
        log.write("refused", "the same", "revoked")
    log.close()
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert len(files) == 1 + audit_module.KEPT
    assert all(file.stat().st_size <= 5000 for file in files)
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert lines[0].keys() == {"time", "event", "name", "reason"}
    assert sum(line["name"] == "the same" for line in lines) <= 1
    assert {stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode)} == {0o600}


def test_an_audit_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    log = Audit(tmp_path)
    log._handler.stream.close()
    log._handler.stream = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115 -- closed by it
    log.write("refused", "a", "revoked")
    log.close()


def test_a_stranger_is_refused_and_not_merely_unheard(tmp_path: Path) -> None:
    """What the test at the start relies on: the outcome of a refusal is told from silence."""
    ring = KeyRing.create(tmp_path / "keys", ADDRESS)
    stranger = ring.new("a", ["writer"])
    assert keys.handshake(zmq.DEALER, "tcp://127.0.0.1:1", stranger, 0.2) == "timeout"
