"""How weights travel between the server and its sites.

This is no part of zmqtrack: a federated learning framework would be in its place. Here it is a
socket of the standard library's, with pickled NumPy arrays.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader

from examples.digits import load_data, make_model, split

from .plan import PEER_GONE, SITES
from .tally import Tally

__all__ = ["Server", "Site"]

Weights = dict[str, numpy.ndarray]  # by the layers' names


class Server:
    """The aggregating server's side; ``folder`` is where sites find its address."""

    def __init__(self, folder: Path) -> None:
        self.model = make_model()
        _, self.test_data = load_data()
        self._sites: list[Connection] = []
        with Listener(("127.0.0.1", 0), authkey=_key()) as listener:
            _address_file(folder).with_suffix(".new").write_text(str(listener.address[1]))
            _address_file(folder).with_suffix(".new").replace(_address_file(folder))
            while len(self._sites) < len(SITES):
                self._sites.append(listener.accept())

    def train_round(self) -> int:
        """Let all sites train the model, average what they return; how many samples that was."""
        try:
            for site in self._sites:
                site.send(_weights(self.model))
            updates = [site.recv() for site in self._sites]
        except (EOFError, OSError):
            _give_up("a site has gone")
        total = sum(samples for _, samples in updates)
        average = {
            name: sum(torch.from_numpy(weights[name]) * (n / total) for weights, n in updates)
            for name in self.model.state_dict()
        }
        self.model.load_state_dict(average)
        return total

    def finish(self) -> None:
        for site in self._sites:
            site.send(None)
            site.close()


class Site:
    """A site's side: its data, the model and the line to the server.

    Who it is stands in ZMQTRACK_SITE, as for the writers.
    """

    def __init__(self, folder: Path, lr: float = 0.05, batch_size: int = 16) -> None:
        self.name = os.environ["ZMQTRACK_SITE"]
        parts = split(load_data()[0], [plan.share for plan in SITES.values()])
        data = parts[list(SITES).index(self.name)]
        self.train_data, self.held_out = split(data, [0.8, 0.2])
        self.batches = DataLoader(self.train_data, batch_size, shuffle=True)
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr, momentum=0.9)
        self.params = {"lr": lr, "batch_size": batch_size, "samples": len(self.train_data)}
        #: What this site logs is noted here too, for the comparison at the end.
        self.logged = Tally()
        self._folder = folder
        self._server = _join(_address_file(folder))

    def rounds(self) -> Iterator[int]:
        """For each round take the server's model; what was made of it goes back after the body."""
        number = 0
        try:
            while (weights := self._server.recv()) is not None:
                self.model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
                yield number
                self._server.send((_weights(self.model), len(self.train_data)))
                number += 1
        except (EOFError, OSError):
            _give_up("the server has gone")

    def finish(self) -> None:
        """To be called when the writer has been closed."""
        self.logged.end("finished")
        self.logged.save(self._folder / "logged" / f"{self.name}.json")


def _join(address: Path) -> Connection:
    """Wait for the server and connect to it."""
    deadline = time.monotonic() + 120
    while not address.exists():
        if time.monotonic() > deadline:
            _give_up("the server has not come")
        time.sleep(0.05)
    return Client(("127.0.0.1", int(address.read_text())), authkey=_key())


def _weights(model: nn.Module) -> Weights:
    return {name: value.numpy(force=True) for name, value in model.state_dict().items()}


def _address_file(folder: Path) -> Path:
    return folder / "federation-port"


def _key() -> bytes:
    """Pickles are taken only from whom the launcher has told this key."""
    return bytes.fromhex(os.environ["DEMO_KEY"])


def _give_up(why: str) -> None:
    print(f"giving up: {why}", file=sys.stderr)
    sys.exit(PEER_GONE)
