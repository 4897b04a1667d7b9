"""The demo's ``zmqtrackd``: one daemon with four adapters, configured by YAML alone."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from zmqtrack.control import DEFAULT_ADDRESS, ControlClient
from zmqtrack.errors import ControlError

from .processes import DemoFailed, Process, stop_all
from .trackers import JSONL, MLFLOW, READERS, TENSORBOARD, WANDB

__all__ = ["Daemon"]

#: Seconds that it may take to start, to bring all to the trackers, and to stop.
START, DELIVER, STOP = 60, 120, 30

ANY_PORTS = "tcp://127.0.0.1:0"


def configuration(out: Path, control: str) -> dict[str, Any]:
    """All that is said of any tracker. Another tracker is another entry here, and no code."""
    database = f"sqlite:///{out / MLFLOW}"
    return {
        "daemon": {"control": control, "state_dir": str(out / "state")},
        "adapters": [
            {"type": "jsonl", "options": {"dir": str(out / JSONL)}},
            {"type": "tensorboard", "options": {"logdir": str(out / TENSORBOARD)}},
            {"type": "mlflow", "options": {"tracking_uri": database}},
            {"type": "wandb", "options": {"mode": "offline", "dir": str(out / WANDB)}},
        ],
    }


class Daemon:
    """Runs while the ``with`` block does, and is then stopped in order: what came in goes out.

    It listens at the default ports, or at any free ones if those are taken.

    Raises:
        DemoFailed: it does not start, dies on the way, or does not stop as it should.
    """

    def __init__(self, out: Path, keeps_open: int) -> None:
        self.config = out / "zmqtrack.yaml"
        self._out = out
        self._keeps_open = keeps_open

    def __enter__(self) -> Daemon:
        # Where somebody is faster at the default ports, the first attempt fails.
        attempts = [DEFAULT_ADDRESS, ANY_PORTS] if _are_free(DEFAULT_ADDRESS) else [ANY_PORTS]
        for control in attempts:
            self._process = self._start(control)
            try:
                self.address = self._await_address()
            except BaseException:
                stop_all([self._process])
                raise
            if self.address:
                self._client = ControlClient(self.address)
                return self
        raise DemoFailed(self._process.describe_end())

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._client.close()
        self._process.terminate()
        if self._process.wait(STOP) and kind is None:
            raise DemoFailed(self._process.describe_end())

    def check(self) -> None:
        """Raise DemoFailed if it has ended."""
        if self._process.exit_code is not None:
            raise DemoFailed(self._process.describe_end())

    def request(self, op: str) -> dict[str, Any]:
        """Ask it something, with zmqtrack's own client."""
        self.check()
        try:
            return self._client.request(op, timeout=15)
        except ControlError as error:
            raise DemoFailed(f"{error}. {self._process.describe_end()}") from None

    def wait_until_delivered(self, console: Console) -> None:
        """Wait until each adapter has delivered all that the daemon has."""
        deadline = time.monotonic() + DELIVER
        with console.status("") as line:
            while behind := {
                name: state
                for name, state in self._adapters().items()
                if state.get("lag", 1) > 0  # one that is not there yet has everything to get
            }:
                line.update(f"{', '.join(behind)}: still to get the rest")
                if time.monotonic() > deadline:
                    raise DemoFailed(f"not delivered: {behind}\n{self._process.describe_end()}")
                time.sleep(0.1)

    def _adapters(self) -> dict[str, dict[str, Any]]:
        known = self.request("status")["adapters"]
        return {name: known.get(name, {}) for name in READERS}

    def _start(self, control: str) -> Process:
        self.config.write_text(yaml.safe_dump(configuration(self._out, control), sort_keys=False))
        return Process(
            "zmqtrackd",
            "zmqtrack.daemon",
            *("--config", self.config),
            logs=self._out / "logs",
            env={},
            keeps_open=self._keeps_open,
        )

    def _await_address(self) -> str:
        """Where it listens, which it tells in its state's folder; empty if it has ended."""
        told = self._out / "state" / "address"
        deadline = time.monotonic() + START
        while self._process.exit_code is None:
            if told.exists() and (address := told.read_text().strip()):
                return address
            if time.monotonic() > deadline:
                raise DemoFailed(self._process.describe_end())
            time.sleep(0.05)
        return ""


def _are_free(control: str) -> bool:
    """Whether nobody listens at this port and the two after it."""
    first = int(control.rpartition(":")[2])
    for port in range(first, first + 3):
        with socket.socket() as probe:
            # So that ports of connections that have just ended count as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
