"""What a writer logged, read back from its spool: no daemon is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zmqtrack.run
from zmqtrack import wire
from zmqtrack.records import Record, RunKey
from zmqtrack.spool import Spool, orphans
from zmqtrack.writers import _common

#: The discard port: nobody listens.
NOBODY = "tcp://127.0.0.1:9"

#: Names that the tests' own environment might set.
VARIABLES = (
    "ZMQTRACK_EXPERIMENT",
    "ZMQTRACK_RUN",
    "ZMQTRACK_SITE",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_NAME",
    "WANDB_PROJECT",
    "WANDB_RUN_GROUP",
    "WANDB_NAME",
    "WANDB_RUN_ID",
    "WANDB_MODE",
    "WANDB_DISABLED",
    "WANDB_ENTITY",
    "WANDB_JOB_TYPE",
)


class Spooled:
    """All that this process logged into one spool folder, once its runs have been finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finish(self) -> None:
        for run in list(zmqtrack.ending.live):
            if run._spool_dir == self.folder:
                run.finish(timeout=0)

    def runs(self) -> dict[RunKey, list[tuple[str, Record]]]:
        """Records of each run, in order, with their data types; the first run first."""
        self.finish()
        found: dict[RunKey, list[tuple[str, Record]]] = defaultdict(list)
        packed: dict[int, bytes] = defaultdict(bytes)
        for path in orphans(self.folder):
            spool = Spool.open(path)
            for batch in spool.after(0, 1_000_000):
                header = wire.decode_header(batch.header)
                for record in wire.decode_body(batch.type, header, batch.body):
                    if header.in_pieces:
                        offset, size, piece, number = record.value
                        packed[number] += piece
                        if offset + len(piece) < size:
                            continue
                        value = wire.decode_value(batch.type, record.key, packed[number])
                        record = record._replace(value=value)
                    found[header.run].append((batch.type, record))
            spool.close()
        return dict(sorted(found.items(), key=lambda item: _begun(item[1])))

    def of(self, data_type: str) -> list[Record]:
        """The records of one data type, of all runs."""
        runs = self.runs().values()
        return [record for records in runs for kind, record in records if kind == data_type]

    def values(self, data_type: str) -> list[tuple[str, Any, int | None]]:
        """The same as (key, value, step)."""
        return [(record.key, record.value, record.step) for record in self.of(data_type)]


def _begun(records: list[tuple[str, Record]]) -> float:
    return min(record.time for kind, record in records if (kind, record.key) == ("run", "start"))


@pytest.fixture(name="spool")
def spool_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spooled]:
    """A spool folder of the test's own; no names in the environment, nothing begun before."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)  # writers make the folders that they are given
    folder = tmp_path / "spool"
    monkeypatch.setenv("ZMQTRACK_SPOOL_DIR", str(folder))
    monkeypatch.setenv("ZMQTRACK_ADDRESS", NOBODY)
    monkeypatch.setattr(_common, "_begun", {})
    monkeypatch.setattr(_common, "_said", set())
    # Nobody will take what is logged here.
    monkeypatch.setattr(zmqtrack.run.init, "__kwdefaults__", _impatient())
    reader = Spooled(folder)
    yield reader
    reader.finish()


def _impatient() -> dict[str, Any]:
    return {**(zmqtrack.run.init.__kwdefaults__ or {}), "exit_timeout": 0.0}
