"""Progress while it trains, as the daemon publishes it: a subscriber like any adapter.

A subscriber that is slow misses what it cannot take, which does no harm here: adapters, which must
miss nothing, ask the daemon for it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import zmq
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from zmqtrack import wire
from zmqtrack.control import connect

from .plan import SERVER, SITES

__all__ = ["Progress"]


class Progress:
    """What is known of each site; drawn in place in a terminal, else a line for each round."""

    def __init__(self, console: Console, publish: str, rounds: int) -> None:
        self._rounds = rounds
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._latest: dict[str, dict[str, float]] = {name: {} for name in (*SITES, SERVER)}
        self._steps = dict.fromkeys(self._latest, 0)
        self._said = 0  # rounds for which there is a line
        self._socket = connect(zmq.SUB, publish)
        self._socket.subscribe(wire.topic("metric"))

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
            self._live.update(self._table(), refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
        self._socket.close()

    def step(self, timeout: float = 0.1) -> None:
        """Take in what has been published; wait at most ``timeout`` seconds for it."""
        if not self._socket.poll(int(1000 * timeout)):
            return
        while self._socket.poll(0):
            topic, header, body = self._socket.recv_multipart()
            batch = wire.decode_header(header)
            latest = self._latest.get(batch.run.site, {})
            for record in wire.decode_body(wire.decode_topic(topic), batch, body):
                latest[record.key] = record.value
                if record.key == "train/loss":
                    self._steps[batch.run.site] += 1
                elif record.key == "accuracy":
                    self._steps[SERVER] += 1
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif self._steps[SERVER] > self._said:
            self._said = self._steps[SERVER]
            self._console.print(f"round {self._said}/{self._rounds}  {self._line()}")

    def _line(self) -> str:
        names = {SERVER: "accuracy", **dict.fromkeys(SITES, "local/accuracy")}
        parts: Iterable[str] = (
            f"{site} {_show(self._latest[site].get(key), '.1%')}" for site, key in names.items()
        )
        return f"accuracy: {', '.join(parts)}"

    def _table(self) -> Table:
        table = Table("site", "logs in the syntax of", box=box.SIMPLE_HEAD)
        for column in ("steps", "loss now", "loss", "accuracy"):
            table.add_column(column, justify="right", min_width=8)
        for site, plan in SITES.items():
            latest = self._latest[site]
            table.add_row(
                site,
                plan.syntax,
                str(self._steps[site]),
                _show(latest.get("train/loss"), ".3f"),
                _show(latest.get("local/loss"), ".3f"),
                _show(latest.get("local/accuracy"), ".1%"),
            )
        latest = self._latest[SERVER]
        table.add_row(
            SERVER,
            "zmqtrack (Run)",
            f"round {self._steps[SERVER]}/{self._rounds}",
            "",
            _show(latest.get("loss"), ".3f"),
            _show(latest.get("accuracy"), ".1%"),
            style="bold",
        )
        return table


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
