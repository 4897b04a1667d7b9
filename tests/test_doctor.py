"""``zmqtrack doctor`` names rightly where the way of a record ends (issue 5)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

import zmqtrack
from harness import PATIENCE, Daemon, jsonl
from keyed import Place, Site, batch
from zmqtrack import keys, wire
from zmqtrack.cli import findings
from zmqtrack.control import ControlClient
from zmqtrack.keyring import KeyRing

Make = Callable[..., Daemon]
Findings = dict[str, dict[str, Any]]

#: An adapter of one's own: what its options say happens.
ODD = """
import os, time
from pathlib import Path
from zmqtrack.adapters.base import Adapter, Options, Refused

class Odd(Adapter):
    class Options(Options):
        what: str = ""
        folder: str = "."
    def open(self, note):
        if self.options.what == "dies":
            os._exit(3)
    def deliver(self, batches):
        if self.options.what == "holds":
            while not (Path(self.options.folder) / "go on").exists():
                time.sleep(0.01)
        if self.options.what == "refuses" and any(b.type == "metric" for b in batches):
            raise Refused("not such a number")
    def probe(self, timeout):
        folder = Path(self.options.folder)
        if self.options.what == "waits":
            (folder / "pid").write_text(str(os.getpid()))
            (folder / "begun").touch()
            while not (folder / "go on").exists():
                time.sleep(0.01)
        return "it was there"
"""


def examine(address: str, key: Path | None = None, timeout: float = 5, code: int = 1) -> Findings:
    """What ``zmqtrack doctor`` finds, by step; it must end with exit code ``code``."""
    command = [sys.executable, "-m", "zmqtrack.cli", "doctor", "--json", "-a", address]
    command += ["--timeout", str(timeout), *(["--key", str(key)] if key else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stdout + done.stderr
    return {each["step"]: each for each in json.loads(done.stdout)}


def last(found: Findings) -> tuple[str, str, str]:
    """Where the way ends: step, code, advice. All before it is good."""
    *before, end = found.values()
    assert not any(each["code"] for each in before), found
    assert end["detail"] and end["advice"]
    return end["step"], end["code"], end["advice"]


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, str]:
    """The environment of a daemon that finds the module ``odd``."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "odd.py").write_text(ODD)
    return {"PYTHONPATH": str(folder)}


@contextlib.contextmanager
def http_server(status: int, body: bytes = b"no") -> Iterator[str]:
    """Gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(what)


def wait_for_state(served: Daemon, name: str, state: str) -> None:
    wait_until(
        lambda: served.status()["adapters"][name]["state"] == state, f"{name} is never {state}"
    )


# --- all is well ----------------------------------------------------------------------------------


def test_a_daemon_that_is_well_is_walked_to_the_end_and_keeps_nothing_of_it(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon([jsonl(tmp_path / "out")]) as served:
        wait_for_state(served, "jsonl", "running")
        found = examine(served.address, code=0)
        status = served.status()
    assert set(found) == {
        *("key", "address", "control", "hello", "ingest", "ack", "publish", "journal"),
        *("adapter jsonl", "tracker of jsonl"),
    }
    assert not any(each["code"] for each in found.values())
    assert "acknowledged" in found["ack"]["detail"] and " ms " in found["ack"]["detail"]
    assert f"folder {tmp_path / 'out'} can be made" in found["tracker of jsonl"]["detail"]
    assert not (tmp_path / "out").exists()
    assert (status["journal"]["head"], status["streams"], status["sites"]) == (0, [], [])
    assert status["daemon"]["refused"] == {} and status["losses"] == []


def test_a_writers_key_ends_at_the_acknowledgement_and_an_operators_at_the_trackers(
    daemon: Make, tmp_path: Path
) -> None:
    with Place(daemon, tmp_path) as place:
        site, boss = Site(place, "site-1"), Site(place, "boss", "operator")
        writer = examine(place.address, site.file, code=0)
        operator = examine(place.address, boss.file, code=0)
        assert place.served.status()["streams"] == []
    assert list(writer) == ["key", "address", "control", "hello", "ingest", "ack"]
    assert list(operator)[3:] == ["hello", "journal", "adapter jsonl", "tracker of jsonl"]


def test_a_probe_moves_no_stream_and_speaks_for_no_other_site(daemon: Make, tmp_path: Path) -> None:
    """The word that is answered and not kept cannot be used for anything else."""

    def probe(site: str, stream: bytes) -> list[bytes]:
        _, header, body = batch(site, stream=stream)
        return [wire.topic("probe"), header, body]

    with Place(daemon, tmp_path) as place:
        site = Site(place, "site-1")
        with site.init() as run:
            run.log_metric("a", 1)
        (used,) = [bytes.fromhex(each["stream"]) for each in place.served.status()["streams"]]
        before = place.served.status()["streams"]
        with contextlib.closing(site.sock(zmq.PUSH, "ingest")) as push:
            push.sndtimeo = int(1000 * PATIENCE)
            for each in (probe("site-1", used), probe("site-2", b"y" * 16)):
                push.send_multipart(each)
            refused = wait_until(
                lambda: len(found := place.served.status()["daemon"]["refused"]) == 2 and found,
                "the probes are not refused",
            )
        assert refused == {"bad_type": 1, "wrong_site": 1}
        assert place.served.status()["streams"] == before
        with pytest.raises(ValueError, match="probe"):
            site.init().log("probe", "a", 1)


# --- to the daemon --------------------------------------------------------------------------------


def test_what_is_no_daemon_is_told_apart(nobody: str, tmp_path: Path) -> None:
    assert last(examine(nobody))[:2] == ("control", "nobody_listens")
    assert last(examine("tcp://no-such-host.invalid:1"))[:2] == ("control", "unknown_host")
    for name in ("a..b", "x" * 64):
        found = examine(f"tcp://{name}:5555")
        assert last(found)[:2] == ("control", "unknown_host")
        assert "a part between its dots is empty or too long" in found["control"]["detail"]
    assert last(examine("5555"))[:2] == ("address", "bad_address")
    assert last(examine(f"ipc://{tmp_path}/none"))[:2] == ("control", "nobody_listens")
    with http_server(200) as address:
        assert last(examine(f"tcp://{address}"))[:2] == ("control", "not_zeromq")


def test_a_person_is_told_what_is_wrong_and_what_to_do(nobody: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", "doctor", "-a", nobody],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == (
        "  ok key: none is named (ZMQTRACK_KEY, --key)\n"
        f"  ok address: {nobody}\n"
        f"FAIL control: the machine answers, but nobody listens at {nobody}\n"
        "     Start zmqtrackd there (`systemctl start zmqtrackd`), or correct the address.\n"
    )


def test_an_abstract_socket_is_reached_as_one_that_is_in_a_folder_is(daemon: Make) -> None:
    address = f"ipc://@zmqtrack-test-{os.getpid()}"
    with daemon(control=address):
        found = examine(address, code=0)
    assert found["control"]["code"] == found["ack"]["code"] == ""
    assert last(examine(address))[:2] == ("control", "nobody_listens")


def test_a_machine_that_does_not_answer_is_unreachable() -> None:
    # A queue of connections that is full: the kernel drops what comes, as a firewall does.
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        found = examine(f"tcp://127.0.0.1:{full.getsockname()[1]}", timeout=0.5)
    step, code, advice = last(found)
    assert (step, code) == ("control", "unreachable")
    assert "firewall" in advice


def test_another_version_of_the_protocol_is_named() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        import msgpack

        identity, request = router.recv_multipart()
        asked = msgpack.unpackb(request)
        message = {"op": "welcome", "v": wire.VERSION + 1, "id": asked["id"]}
        router.send_multipart([identity, msgpack.packb(message)])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        step, code, advice = last(examine(f"tcp://127.0.0.1:{port}"))
    finally:
        thread.join(PATIENCE)
        context.destroy(linger=0)
    assert (step, code) == ("hello", "bad_version")
    assert "install the version that the daemon has" in advice


def test_a_daemon_of_another_version_is_named(daemon: Make) -> None:
    code = (
        "import sys; from zmqtrack import wire; wire.VERSION = 2\n"
        "from zmqtrack.cli import main; sys.argv[0] = 'zmqtrack'; main()"
    )
    with daemon() as served:
        done = subprocess.run(
            [sys.executable, "-c", code, "doctor", "--json", "-a", served.address],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    found = {each["step"]: each for each in json.loads(done.stdout)}
    assert found["hello"]["code"] == "bad_version", done.stderr
    assert "install the version" in found["hello"]["advice"]


def test_a_bad_key_file_is_told_from_a_daemon_without_keys(daemon: Make, tmp_path: Path) -> None:
    ring = KeyRing.create(tmp_path / "keys", "tcp://127.0.0.1:1")
    file = tmp_path / "site-1.key"
    keys.write(file, ring.new("site-1", ["writer"]).fields())
    with daemon() as served:
        assert last(examine(served.address, file))[:2] == ("control", "no_keys_there")
        assert last(examine(served.address, tmp_path / "none"))[:2] == ("key", "bad_key_file")
        file.chmod(0o640)
        step, code, advice = last(examine(served.address, file))
    assert (step, code) == ("key", "key_readable_by_others")
    assert f"chmod 600 {file}" in advice


def test_a_daemon_that_was_stopped_is_silent_and_goes_on_afterwards(daemon: Make) -> None:
    with daemon() as served:
        served.process.send_signal(signal.SIGSTOP)
        try:
            found = examine(served.address, timeout=0.5)
        finally:
            served.process.send_signal(signal.SIGCONT)
        assert examine(served.address, code=0)["ack"]["code"] == ""
    step, code, advice = last(found)
    assert (step, code) == ("control", "silent")
    assert "kill -CONT" in advice


def test_an_ingest_that_is_advertised_wrongly_is_named(daemon: Make, nobody: str) -> None:
    port = int(nobody.rpartition(":")[2])
    control, host = f"tcp://127.0.0.1:{port}", "tcp://127.0.0.1"
    with daemon(control=control, advertise_ingest=f"{host}:9") as served:
        found = examine(served.address)
    assert found["ingest"]["code"] == "nobody_listens"
    assert "set daemon.advertise_ingest" in found["ingest"]["advice"]
    assert found["publish"]["code"] == found["journal"]["code"] == ""  # what lies elsewhere
    with daemon(control=control, advertise_ingest=control) as served:
        found = examine(served.address, timeout=1)
    assert (found["ingest"]["code"], found["ack"]["code"]) == ("", "not_sent")
    assert "set daemon.advertise_ingest" in found["ack"]["advice"]


def test_a_daemon_whose_socket_is_another_daemons_does_not_acknowledge(
    daemon: Make, nobody: str
) -> None:
    with daemon(folder="other") as other:
        ingest = other.status()["ingest"]
        with daemon(advertise_ingest=ingest) as served:
            found = examine(served.address, timeout=1)
    assert (found["ingest"]["code"], found["ack"]["code"]) == ("", "no_ack")


# --- behind it ------------------------------------------------------------------------------------


def test_a_journal_that_is_full_is_named_with_who_is_behind(daemon: Make, tmp_path: Path) -> None:
    away = {**jsonl(tmp_path / "away"), "name": "away", "external": True}
    with daemon([jsonl(tmp_path / "out"), away], max_bytes=2000) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_param("long", "x" * 3000)
            run.flush(PATIENCE)
        wait_until(lambda: served.status()["daemon"]["journal_full"], "it is never full")
        wait_for_state(served, "jsonl", "running")
        command = [sys.executable, "-m", "zmqtrack.cli", "status", "--address", served.address]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout
        assert "the journal is full: sites keep their records\n" in shown
        found = examine(served.address)
    assert found["journal"]["code"] == "journal_full"
    assert "away is" in found["journal"]["detail"]
    assert "daemon.max_bytes" in found["journal"]["advice"]
    assert found["ack"]["code"] == "busy"
    assert found["adapter away"]["code"] == "away"
    assert (
        "python -m zmqtrack.adapters --config FILE --name away" in (found["adapter away"]["advice"])
    )
    assert found["adapter jsonl"]["code"] == found["tracker of jsonl"]["code"] == ""


def test_a_daemon_that_is_stopping_says_so_and_blames_no_disk(
    daemon: Make, odd: dict[str, str], tmp_path: Path
) -> None:
    options = {"what": "holds", "folder": str(tmp_path)}
    with daemon([{"type": "odd:Odd", "options": options}], env=odd) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
            assert run.flush(PATIENCE)
        served.process.terminate()
        wait_until(lambda: not served.status()["daemon"]["accepting"], "it does not stop")
        found = next(findings.of_daemon(served.status()))
        command = [sys.executable, "-m", "zmqtrack.cli", "status", "--address", served.address]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout
        (tmp_path / "go on").touch()
    assert (found.code, found.warning) == ("stopping", False)
    assert "the daemon is stopping: sites keep their records\n" in shown
    assert "disk" not in found.detail + shown


def test_trackers_that_are_down_refuse_us_or_cannot_be_written_are_told_apart(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    (tmp_path / "file").touch()
    token = "secret-token-of-the-tracker"
    mlflow = {"type": "mlflow", "retry_max": 1}
    with http_server(401) as address:
        adapters = [
            {**mlflow, "name": "down", "options": {"tracking_uri": f"http://{nobody[6:]}"}},
            {
                **mlflow,
                "name": "locked",
                "options": {"tracking_uri": f"http://{address}"},
                "secrets": {"MLFLOW_TRACKING_TOKEN": {"env": "MY_TOKEN"}},
            },
            {**jsonl(tmp_path / "file" / "out"), "name": "on-file"},
            {**jsonl(Path("/sys/zmqtrack")), "name": "on-sys"},
        ]
        with daemon(adapters, env={"MY_TOKEN": token}) as served:
            wait_for_state(served, "down", "retrying")
            wait_for_state(served, "locked", "blocked")
            found = examine(served.address)
    assert {name: each["code"] for name, each in found.items() if each["code"]} == {
        "adapter down": "retrying",
        "adapter locked": "blocked",
        "tracker of down": "tracker_unavailable",
        "tracker of locked": "tracker_credentials",
        "tracker of on-file": "not_a_folder",
        "tracker of on-sys": "folder_not_writable",
    }
    advice = {name: each["advice"] for name, each in found.items()}
    assert "Start the MLflow server" in advice["tracker of down"]
    assert "MLFLOW_TRACKING_TOKEN" in advice["tracker of locked"]
    assert "options.dir" in advice["tracker of on-sys"]
    assert f"{tmp_path / 'file'} is no folder" in found["tracker of on-file"]["detail"]
    assert token not in json.dumps(found) + served.log


def test_an_adapter_that_dies_says_where_to_look_and_dead_letters_are_a_warning(
    daemon: Make, odd: dict[str, str]
) -> None:
    def adapter(what: str) -> dict[str, Any]:
        options = {"what": what}
        return {"type": "odd:Odd", "name": what, "flush_interval": 0, "options": options}

    with daemon([adapter("refuses")], env=odd) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        served.drain()
        found = examine(served.address, code=0)  # a warning
        letters = served.request("dlq", name=None)["letters"]
        served.request("dlq_drop", ids=[letters[0]["id"]])
        lost = examine(served.address, code=0)
    letter = found["dead letters of refuses"]
    assert (letter["code"], letter["warning"]) == ("dead_letters", True)
    assert "zmqtrack dlq list --adapter refuses" in letter["advice"]
    assert found["tracker of refuses"]["detail"] == "it was there"
    assert "dead letters of refuses" not in lost
    assert (lost["losses"]["code"], lost["losses"]["warning"]) == ("losses", True)
    assert "dead_letter_dropped 1" in lost["losses"]["detail"]
    with daemon([adapter("dies")], env=odd, folder="second") as served:
        wait_for_state(served, "dies", "ended")
        found = examine(served.address)
    assert found["adapter dies"]["code"] == "ended"
    assert "exit code 3" in found["adapter dies"]["detail"]
    assert "journalctl" in found["adapter dies"]["advice"]


def test_the_daemon_goes_on_while_a_tracker_is_tried_and_leaves_no_process_behind(
    daemon: Make, odd: dict[str, str], tmp_path: Path
) -> None:
    options = {"what": "waits", "folder": str(tmp_path)}
    adapter = {"type": "odd:Odd", "name": "odd", "options": options}
    begun, go_on, answers = tmp_path / "begun", tmp_path / "go on", []

    def ask() -> None:
        client = ControlClient(served.address)
        answers.append(client.request("probe", timeout=PATIENCE, seconds=60))
        client.close()

    with daemon([adapter], env=odd) as served:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(begun.exists, "nobody tries it")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
            assert run.finish(timeout=PATIENCE) is None
        served.drain()
        assert not answers
        go_on.touch()
        thread.join(PATIENCE)
        assert [each["detail"] for each in answers[0]["trackers"]] == ["it was there"]
        begun.unlink()
        go_on.unlink()
        client = ControlClient(served.address)
        with contextlib.suppress(zmqtrack.errors.ControlError):
            client.request("probe", timeout=0.1, seconds=60)
        client.close()
        wait_until(begun.exists, "nobody tries it again")
        process = psutil.Process(int((tmp_path / "pid").read_text()))
    process.wait(5)  # raises if it was left behind
