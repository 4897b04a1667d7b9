"""Who belongs gets in, as itself, and sees what it may; nobody else gets anything (G7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zmqtrack
from harness import PATIENCE, jsonl, read_jsonl
from keyed import Make, Place, Site, batch, doctor, hello, send
from zmqtrack import keys, wire
from zmqtrack.control import ControlClient, connect
from zmqtrack.errors import ControlError, KeyFileError
from zmqtrack.keyring import KeyRing
from zmqtrack.keys import Key

#: How long to wait for something that must not happen, in seconds.
NEVER = 0.5


@pytest.fixture
def place(daemon: Make, tmp_path: Path) -> Iterator[Place]:
    with Place(daemon, tmp_path / "place") as made:
        yield made


# --- those who belong -----------------------------------------------------------------------------


def test_a_key_file_is_all_that_a_writer_needs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQTRACK_KEY", str(Site(place, "site-1").file))
    with zmqtrack.init("e", "r") as run:
        assert run.key.site == "site-1"
        run.log_metric("a", 1.5)
    place.served.drain()
    assert [line["value"] for line in place.lines("site-1")] == [1.5]


def test_a_key_that_is_made_while_the_daemon_runs_works_at_once(place: Place) -> None:
    for name in ("late-1", "late-2"):
        with Site(place, name).init() as run:
            run.log_metric("a", 1)
            assert run.finish(timeout=PATIENCE) is None
        place.served.drain()
        assert len(place.lines(name)) == 1


def test_init_refuses_a_site_that_is_not_the_keys(place: Place) -> None:
    site = Site(place, "site-1")
    with pytest.raises(ValueError, match="is that of site 'site-1', not 'other'"):
        site.init(site="other")


def test_a_second_key_lets_a_site_change_over_without_a_gap(place: Place) -> None:
    first = Site(place, "site-1")
    with first.init() as run:
        run.log_metric("a", 1)
    second = place.ring.new("site-1", [], rotate=True)
    file = place.folder / "second.key"
    keys.write(file, second._replace(address=place.address).fields())
    for each, value in ((first.file, 2), (file, 3)):
        with zmqtrack.init("e", "r", key=each) as run:
            run.log_metric("a", value)
    assert place.ring.revoke("site-1", older=True) == 1
    place.wait_for_audit("revoked", "", "site-1")
    assert doctor(place.address, first.file)["hello"] == "revoked"
    assert "hello" in doctor(place.address, file)
    place.served.drain()
    assert [line["value"] for line in place.lines("site-1")] == [1, 2, 3]


# --- those who do not -----------------------------------------------------------------------------


def outsiders(place: Place) -> dict[str, tuple[Key | None, str]]:
    """Who is not let in, and what ``doctor`` says to each."""
    unknown = Key("site-1", place.address, place.ring.public, *keys.new_pair())
    revoked = place.ring.new("gone", ["writer", "subscriber", "operator"])
    place.ring.revoke("gone")
    place.wait_for_audit  # noqa: B018 -- the daemon looks by itself
    other = KeyRing.create(place.folder / "other-keys", place.address)
    return {
        "no key": (None, "no_key"),
        "unknown key": (unknown, "unknown_key"),
        "revoked key": (revoked, "revoked"),
        "key for another server": (other.new("site-1", ["writer"]), "wrong_server"),
    }


def test_without_a_good_key_nothing_gets_in_and_nothing_out(place: Place) -> None:
    member = Site(place, "member")
    for who, (key, code) in outsiders(place).items():
        file = None
        if key is not None:
            file = place.folder / f"{who}.key"
            keys.write(file, key._replace(address=place.address).fields())
        found = doctor(place.address, file)
        assert code in found.values(), (who, found)
        push = connect(zmq.PUSH, place.sockets["ingest"], key=key)
        listen = connect(zmq.SUB, place.sockets["publish"], key=key)
        listen.subscribe(b"")
        client = ControlClient(place.address, key)
        assert not push.poll(int(1000 * NEVER), zmq.POLLOUT), f"{who} may push"
        for op in ("status", "replay", "subscribe"):
            with pytest.raises(ControlError) as caught:
                client.request(op, timeout=NEVER, name="x", after=0, types=None)
            assert caught.value.reason in ("unreachable", "key_refused", "timeout", "revoked"), who
        with member.init() as run:  # something that could be overheard
            run.log_metric("a", 1)
        assert not listen.poll(int(1000 * NEVER)), f"{who} overhears"
        for each in (push, listen, client):
            each.close()
    refused = {line.get("reason") for line in place.audit() if line["event"] == "refused"}
    assert {"unknown_key", "revoked"} <= refused
    assert ("rejected", "revoked", "gone") in {
        (line["event"], line.get("reason"), line.get("name")) for line in place.audit()
    }
    assert place.served.status()["daemon"]["received_batches"] == 4 * 3  # the member's


def test_a_key_that_others_can_read_is_not_used(place: Place) -> None:
    site = Site(place, "site-1")
    site.file.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"can be read by others \(mode 0644\).*chmod 600"):
        site.init()
    assert doctor(place.address, site.file) == {"key": "key_readable_by_others"}


def test_a_key_that_is_revoked_stops_a_connection_that_stands(place: Place) -> None:
    site, watcher = Site(place, "site-1"), Site(place, "watcher", "subscriber")
    listen = watcher.sock(zmq.SUB, "publish")
    listen.subscribe(b"")
    control = connect(zmq.DEALER, place.address, key=site.key)
    push = site.sock(zmq.PUSH, "ingest")
    control.sndtimeo = push.sndtimeo = listen.rcvtimeo = int(1000 * PATIENCE)
    push.send_multipart(batch("site-1", 1))
    while listen.recv_multipart()[0] != b"metric/site-1/":
        pass
    place.served.drain()
    for name in ("site-1", "watcher"):
        place.ring.revoke(name)
        place.wait_for_audit("revoked", "", name)
    place.served.wait_for("all of them have to connect anew")
    push.send_multipart(batch("site-1", 2))
    control.send(wire.encode_control("hello"))
    assert control.poll(int(1000 * PATIENCE))
    assert wire.decode_control(control.recv())["reason"] == "revoked"
    place.wait_for_audit("refused", "revoked", "site-1")
    with Site(place, "other").init() as run:
        run.log_metric("a", 1)
    while listen.poll(int(1000 * NEVER)):
        assert listen.recv_multipart()[0] in (b"head/", b"pulse/"), "overheard"
    place.served.drain()
    assert len(place.lines("site-1")) == 1
    assert len(place.lines("other")) == 1
    for each in (listen, control, push):
        each.close()


def test_what_a_revoked_site_logs_stays_there_until_it_has_a_new_key(place: Place) -> None:
    site = Site(place, "site-1")
    run = site.init(exit_timeout=0.2)
    run.log_metric("a", 1)
    assert run.flush()
    place.served.drain()
    place.ring.revoke("site-1")
    place.wait_for_audit("revoked", "", "site-1")
    run.log_metric("a", 2)
    run.finish()
    site.file.unlink()
    again = place.ring.new("site-1", ["writer"])
    keys.write(site.file, again._replace(address=place.address).fields())
    other = Site(place, "other").init(exit_timeout=0)
    place.ring.revoke("other")
    place.wait_for_audit("revoked", "", "other")
    other.log_metric("a", 3)
    other.finish()
    sent = subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", "spool", "send"],
        env={**os.environ, "ZMQTRACK_KEY": str(site.file)}, check=True, timeout=PATIENCE,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "what waits of other takes a key of theirs" in sent.stdout
    place.served.drain()
    assert [line["value"] for line in place.lines("site-1")] == [1, 2]


# --- those who belong, and want more --------------------------------------------------------------


def test_a_site_cannot_write_as_another(place: Place) -> None:
    a, b = Site(place, "a"), Site(place, "b")
    with pytest.raises(ControlError, match="says that it is site b"):
        hello(a, "b")
    with b.init() as run:
        run.log_metric("a", 1)
    stream = bytes.fromhex(place.served.status()["streams"][0]["stream"])
    before = place.served.status()["streams"]
    send(
        a,
        batch("b", 1, b"n" * 16),  # a stream of its own, in another's name
        batch("b", 4, stream),  # the next of another's stream
        batch("a", 4, stream),  # the same, in its own name
        batch("b", 1, stream),  # one that was captured, again
        [wire.topic("lost"), *batch("b", 4, stream)[1:]],
        batch("a", 1, b"o" * 16),  # and one that is its own
    )
    place.wait_for_audit("rejected", "wrong_site", "a")
    place.wait_for_audit("rejected", "foreign_stream", "a")
    with pytest.raises(ControlError, match="which is another's"):
        hello(a, "a", stream)
    while not place.lines("a"):
        place.served.drain()
    after = {each["stream"]: each for each in place.served.status()["streams"]}
    assert after[stream.hex()] == before[0]
    assert place.lines("b") == place.lines("b")[:1]
    assert [line["value"] for line in place.lines("a")] == [1.0]
    assert place.served.status()["losses"] == []
    # The other's stream goes on as if nothing had been.
    send(b, batch("b", 4, stream, value=9.0))
    while len(place.lines("b")) < 2:
        place.served.drain()
    assert place.lines("b")[-1]["value"] == 9.0


def test_a_writer_can_neither_subscribe_nor_command(place: Place) -> None:
    site = Site(place, "site-1")
    requests: dict[str, dict[str, Any]] = {
        "subscribe": {"name": "jsonl"},
        "replay": {"after": 0},
        "commit": {"name": "jsonl", "session": 1},
        "report": {"name": "jsonl", "session": 1},
        "status": {},
        "drain": {},
        "dlq": {},
        "dlq_retry": {"ids": [1]},
        "dlq_drop": {"ids": [1]},
    }
    for op, fields in requests.items():
        with pytest.raises(ControlError, match="takes the role") as caught:
            site.request(op, **fields)
        assert caught.value.reason == "not_allowed"
    listen = site.sock(zmq.SUB, "publish")
    listen.subscribe(b"")
    place.wait_for_audit("refused", "no_subscriber", "site-1")
    with site.init() as run:
        run.log_metric("a", 1)
    assert not listen.poll(int(1000 * NEVER))
    listen.close()


def test_a_subscriber_sees_the_types_and_sites_that_it_is_granted(place: Place) -> None:
    viewer = Site(place, "viewer", "subscriber", topics=["metric"], sites=["w1"])
    listen = viewer.sock(zmq.SUB, "publish")
    for topic in (b"", b"metric/", b"metric/w", b"metric/w1/", b"metric/w10/", b"head/", b"text/"):
        listen.subscribe(topic)
    welcome = viewer.request("subscribe", name="mine", types=["metric"])
    # The subscription may still be on its way: wait for its first heartbeat.
    assert listen.poll(int(1000 * PATIENCE))
    for name in ("w1", "w10"):
        with Site(place, name).init() as run:
            run.log_metric("a", 1)
            run.log_text("note", "private")
    heard = set()
    while b"metric/w1/" not in heard:
        heard.add(listen.recv_multipart()[0])
    while listen.poll(int(1000 * NEVER)):
        topic = listen.recv_multipart()[0]
        heard.add(topic)
        if topic == b"pulse/" and b"metric/w1/" in heard:
            break
    assert heard <= {b"metric/w1/", b"pulse/"}
    page = viewer.request("replay", after=0)
    assert page["types"] == ["metric"]
    assert wire.decode_header(page["frames"][0]).run.site == "w1"
    with pytest.raises(ControlError, match="'viewer' may not see text"):
        viewer.request("subscribe", name="mine", types=["metric", "text"])
    with pytest.raises(ControlError):
        viewer.request("dlq_drop", ids=[1])
    assert welcome["offset"] == 0
    listen.close()


def test_a_subscriber_cannot_move_the_cursor_of_our_own_adapters(place: Place) -> None:
    viewer = Site(place, "viewer", "subscriber")
    session = viewer.request("subscribe", name="jsonl")["session"]
    with Site(place, "site-1").init() as run:
        run.log_metric("a", 1)
    place.served.drain()
    viewer.request(
        "commit", name="jsonl", session=session, offset=0, frames=[b""], counters={}, dead=[]
    )
    adapters = place.served.status()["adapters"]
    assert set(adapters) == {"jsonl", "viewer:jsonl"}
    assert adapters["jsonl"]["lag"] == 0
    assert len(place.lines("site-1")) == 1


def test_an_adapter_on_another_machine_delivers_what_it_is_granted(
    place: Place, tmp_path: Path
) -> None:
    viewer = Site(place, "viewer", "subscriber", sites=["w1"])
    out = tmp_path / "there"
    config = tmp_path / "there.yaml"
    config.write_text(
        json.dumps(
            {
                "daemon": {"control": place.address, "state_dir": str(tmp_path / "state")},
                "adapters": [jsonl(out, name="there")],
            }
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqtrack.adapters", "--config", str(config), "--name", "there"],
        env={**os.environ, "ZMQTRACK_KEY": str(viewer.file)},
    )
    try:
        for name in ("w1", "w10"):
            with Site(place, name).init() as run:
                for step in range(100):
                    run.log_metric("a", step, step=step)
        place.served.drain()
        deadline = time.monotonic() + PATIENCE
        while len(read_jsonl(out, "e", "r", "w1")) < 102:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert len(read_jsonl(out, "e", "r", "w1")) == 102
    assert not read_jsonl(out, "e", "r", "w10")


# --- closed, whatever fails -----------------------------------------------------------------------


def test_off_loopback_it_does_not_start_without_keys(daemon: Make, tmp_path: Path) -> None:
    served = daemon(control="tcp://0.0.0.0:0")
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon", "--config", str(served.config)],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 78
    assert f"{served.config}:" in done.stderr
    assert "where other machines reach it, and there are no keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_insecure_is_said_at_every_start_and_in_the_status(daemon: Make) -> None:
    with daemon(control="tcp://0.0.0.0:0", insecure=True) as served:
        assert "insecure: anybody" in served.log
        served.address = served.address.replace("0.0.0.0", "127.0.0.1")
        assert served.status()["daemon"]["insecure"] is True
        shown = subprocess.run(
            [sys.executable, "-m", "zmqtrack.cli", "status", "-a", served.address],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert "insecure" in shown.stdout


def _start(place: Place, code: str = "") -> subprocess.CompletedProcess[str]:
    """Start a second daemon on the same keys, after ``code``; it is expected to end by itself."""
    config = place.folder / "second.yaml"
    config.write_text(
        json.dumps(
            {
                "daemon": {
                    "control": "tcp://127.0.0.1:0",
                    "state_dir": str(place.folder / "second"),
                    "keys": str(place.ring.path),
                }
            }
        )
    )
    main = "import sys\nfrom zmqtrack.daemon import __main__, auth, broker\n" + code
    main += f"\nsys.argv = ['zmqtrackd', '--config', {str(config)!r}]\nsys.exit(__main__.main())"
    return subprocess.run(
        [sys.executable, "-c", main], capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("an empty domain", "auth.Auth.secure = lambda self, s, d: s.setsockopt(47, 1)"),
        (
            "everybody is let in",
            "auth.Auth._decide = lambda self, r: [r[0], r[1], b'200', b'OK', b'x', b'']",
        ),
    ],
)
def test_a_daemon_that_a_stranger_could_enter_does_not_start(
    place: Place, fault: str, code: str
) -> None:
    if fault == "an empty domain":
        code = (
            "def secure(self, socket, domain):\n"
            "    socket.curve_server = True\n"
            "    socket.curve_publickey, socket.curve_secretkey = self.ring.public, "
            "self.ring.secret\n"
            "auth.Auth.secure = secure\n"
            "auth.Auth.step = lambda self: None\n"
            "import zmq\n"
            "bind = zmq.Socket.bind\n"
            "zmq.Socket.bind = lambda self, a: None if 'zap' in a else bind(self, a)\n"
        )
    done = _start(place, code)
    assert done.returncode == 1, done.stderr
    assert "a stranger's key" in done.stderr and "was not refused but accepted" in done.stderr


def test_a_daemon_whose_zap_handler_dies_lets_nobody_in(place: Place, tmp_path: Path) -> None:
    code = (
        "def prove(self, sockets):\n"
        "    self._zap.close()\n"
        "    self._zap = None\n"
        "auth.Auth.prove = prove\n"
    )
    done = _start(place, code)
    assert done.returncode == 1, done.stderr  # at the first turn of its loop
    assert "listening" in done.stderr


@pytest.mark.parametrize("what", ["server.key is gone", "others can write", "it is not JSON"])
def test_a_folder_of_keys_that_cannot_be_trusted_stops_the_start(place: Place, what: str) -> None:
    Site(place, "site-1")
    if what == "server.key is gone":
        (place.ring.path / "server.key").rename(place.folder / "aside")
    elif what == "others can write":
        place.ring.folder.chmod(0o777)
    else:
        (place.ring.folder / "site-1.json").write_text("{")
    done = _start(place)
    assert done.returncode == 78, done.stderr
    assert str(place.ring.path) in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_that_cannot_be_read_any_more_close_a_running_daemon(place: Place) -> None:
    site = Site(place, "site-1")
    with site.init() as run:
        run.log_metric("a", 1)
    file = place.ring.folder / "site-1.json"
    good = file.read_text()
    file.write_text("{")
    os.utime(place.ring.folder)
    place.served.wait_for("nobody is let in until that is mended")
    with pytest.raises(ControlError, match="does not let the key of site-1 in"):
        site.request("hello", timeout=5)
    file.write_text(good)
    os.utime(place.ring.folder)
    while True:
        try:
            site.request("hello", timeout=1)
            break
        except ControlError:
            pass
    with site.init() as run:
        run.log_metric("a", 2)
    place.served.drain()
    assert len(place.lines("site-1")) == 2
