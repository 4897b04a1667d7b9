"""A daemon with keys, and sites that have one: for tests of who may do what."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import keys, wire
from zmqtrack.control import ControlClient, connect
from zmqtrack.keyring import KeyRing
from zmqtrack.records import RunKey

Make = Callable[..., Daemon]


class Site:
    """A site with its key file; ``sock`` and ``request`` go below the writers, as an attacker."""

    def __init__(self, place: Place, name: str, *roles: str, **grants: Any) -> None:
        self.key = place.ring.new(name, list(roles or ["writer"]), **grants)
        self.file = place.folder / f"{name}.key"
        keys.write(self.file, self.key._replace(address=place.address).fields())
        self._place = place
        self.request("hello")  # until the daemon knows it: a bare socket is refused only once

    def init(self, **more: Any) -> zmqtrack.Run:
        return zmqtrack.init("e", "r", key=self.file, **more)

    def sock(self, kind: int, which: str) -> zmq.Socket[bytes]:
        return connect(kind, self._place.sockets[which], key=self.key)

    def request(self, op: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        client = ControlClient(self._place.address, self.key)
        try:
            return client.request(op, timeout=timeout, **fields)
        finally:
            client.close()


class Place:
    """A daemon with keys, a jsonl adapter, and its operator."""

    def __init__(self, make: Make, folder: Path, **daemon: Any) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.ring = KeyRing.create(folder / "keys", "tcp://127.0.0.1:1")
        operator = self.ring.new("operator", ["operator"])
        self.served = make([jsonl(self.out)], keys=str(self.ring.path), operator=operator, **daemon)
        self.sockets: dict[str, str] = {}

    def __enter__(self) -> Place:
        self.served.start()
        status = self.served.status()
        self.sockets = {name: status[name] for name in ("control", "ingest", "publish")}
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.served.stop()
        else:
            self.served.process.kill()
            print(self.served.log, file=sys.stderr)

    @property
    def address(self) -> str:
        return self.served.address

    def audit(self) -> list[dict[str, Any]]:
        path = self.served.state_dir / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def wait_for_audit(self, event: str, reason: str, name: str = "") -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.audit():
                if (line["event"], line.get("reason", "")) == (event, reason) and (
                    not name or line.get("name") == name
                ):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {event} {reason} {name} in {self.audit()}")

    def lines(self, site: str) -> list[dict[str, Any]]:
        return [r for r in read_jsonl(self.out, "e", "r", site) if r["type"] == "metric"]


def batch(site: str, seq: int = 1, stream: bytes = b"x" * 16, value: float = 1.0) -> list[bytes]:
    """Frames as a writer sends them."""
    header = wire.Header(stream, seq, RunKey("e", "r", site), 1)
    body = wire.encode_body([("a", value, seq, 1.0)])
    return [wire.topic("metric"), wire.encode_header(header), body]


def send(site: Site, *batches: list[bytes]) -> None:
    """Push, without asking anybody."""
    socket = site.sock(zmq.PUSH, "ingest")
    for each in batches:
        socket.sndtimeo = int(1000 * PATIENCE)
        socket.send_multipart(each)
    socket.close(linger=10_000)


def hello(site: Site, name: str, stream: bytes = b"x" * 16) -> dict[str, Any]:
    return site.request(
        "hello", role="writer", stream=stream, run=["e", "r", name], acked=0, last=0
    )


def doctor(address: str, key: Path | None = None) -> dict[str, str]:
    """What ``zmqtrack doctor`` finds: {step: code}."""
    command = [sys.executable, "-m", "zmqtrack.cli", "doctor", "--json", "-a", address]
    command += ["--key", str(key)] if key else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    found = json.loads(done.stdout)
    assert done.returncode == any(each["code"] and not each["warning"] for each in found)
    return {each["step"]: each["code"] for each in found}
