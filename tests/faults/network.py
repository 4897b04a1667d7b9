"""Two network namespaces, joined by one link that delays and loses packets: where that is allowed.

The link is two TUN devices and a thread between them: it needs no kernel module as tc netem does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import PATIENCE, Daemon

CLONE_NEWNET = 0x40000000
#: From linux/if_tun.h: attach to a device; of packets, without a header of its own.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)

_REQUEST = """
import json, sys
from zmqtrack.control import ControlClient
address, op, timeout, fields = json.loads(sys.argv[1])
print(json.dumps(ControlClient(address).request(op, timeout=timeout, **fields)))
"""


class Link(threading.Thread):
    """Carries packets between two TUN devices; set what it does to them at any time."""

    def __init__(self, ends: tuple[int, int]) -> None:
        super().__init__(daemon=True)
        #: Seconds that a packet is on its way, in either direction.
        self.delay = 0.0
        #: Which part of the packets is lost; 1.0: a partition.
        self.loss = 0.0
        self.lost = self.carried = 0
        self._far = dict(zip(ends, reversed(ends), strict=True))
        self._late: list[tuple[float, int, int, bytes]] = []  # due, order, to, packet
        self._chance = random.Random(0)
        self._ended = False

    def run(self) -> None:
        while not self._ended:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else 0.05
            for end in select.select(list(self._far), [], [], min(wait, 0.05))[0]:
                packet = os.read(end, 65536)
                if self._chance.random() < self.loss:
                    self.lost += 1
                    continue
                self.carried += 1
                due = time.monotonic() + self.delay
                heapq.heappush(self._late, (due, self.carried, self._far[end], packet))
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._late)
                os.write(end, packet)

    def end(self) -> None:
        self._ended = True
        self.join(10)


class Namespaces:
    """``daemon`` and ``writer``: nothing else is reachable from either, and both go at the end."""

    #: The daemon's address on the link.
    host = "10.77.0.1"
    link: Link

    def __init__(self) -> None:
        self.daemon, self.writer = (f"zmqtrack-{os.getpid()}-{who}" for who in ("d", "w"))
        self._ends: list[int] = []

    def __enter__(self) -> Namespaces:
        if shutil.which("ip") is None:
            pytest.skip("needs ip (apt-get install iproute2)")
        try:
            for name, own, peer in (
                (self.daemon, self.host, "10.77.0.2"),
                (self.writer, "10.77.0.2", self.host),
            ):
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
                with self.inside(name):
                    self._ends.append(_tun())
                _run("ip", "-n", name, "address", "add", own, "peer", peer, "dev", "link0")
                _run("ip", "-n", name, "link", "set", "link0", "up")
        except (subprocess.CalledProcessError, OSError) as error:
            self._remove()
            said = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"network namespaces or TUN devices are refused here: {said.strip()}")
        self.link = Link((self._ends[0], self._ends[1]))
        self.link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.link.end()
        self._remove()

    def _remove(self) -> None:
        for end in self._ends:
            os.close(end)
        for name in (self.daemon, self.writer):
            if Path("/run/netns", name).exists():
                _run("ip", "netns", "delete", name)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread, and each process that it starts meanwhile, is in that namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        away = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            _set_namespace(away)
            yield
        finally:
            _set_namespace(home)
            os.close(away)
            os.close(home)

    @contextlib.contextmanager
    def bad(self, *, delay: float = 0.0, loss: float = 0.0) -> Iterator[None]:
        self.link.delay, self.link.loss = delay, loss
        try:
            yield
        finally:
            self.link.delay = self.link.loss = 0.0


class FarDaemon(Daemon):
    """A daemon in a namespace of its own."""

    def __init__(self, network: Namespaces, folder: Path, adapters: list[dict[str, Any]]) -> None:
        super().__init__(folder, adapters, control=f"tcp://{network.host}:5555", insecure=True)
        self._network = network

    def start(self) -> Daemon:
        with self._network.inside(self._network.daemon):
            return super().start()

    def request(self, op: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        with self._network.inside(self._network.daemon):
            done = subprocess.run(
                [sys.executable, "-c", _REQUEST, json.dumps([self.address, op, timeout, fields])],
                stdout=subprocess.PIPE,
                text=True,
                timeout=timeout + 30,
                check=True,
            )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def connections(pid: int, port: int) -> int:
    """How many established connections to ``port`` a process's namespace has."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(row[3] == "01" and int(row[2].rpartition(":")[2], 16) == port for row in rows)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))


def _tun() -> int:
    """A device ``link0`` in this thread's namespace; what is sent there is read from the result."""
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"link0", IFF_TUN | IFF_NO_PI))
    return end


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
