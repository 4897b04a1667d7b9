"""A W&B run as the wandb adapter needs it: what it was given is on disk, and is known again.

wandb-core, the process that wandb starts, writes what it is given to the run's ``.wandb`` file
in its own time, and never syncs it to disk. So what was handed over is counted here, read back
there, and synced. After a crash the same file tells which rows are there already.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zmqtrack.records import Record, RunKey

from .base import safe_name

__all__ = ["ANNOUNCES", "FLUSH_INTERVAL", "Run"]

#: Seconds between wandb-core's writes to the file; a delivery waits for one of them.
FLUSH_INTERVAL = 0.2
#: Seconds without any progress in the file after which wandb-core is given up.
STALLED = 20.0
#: A row of these is only the announcement; the record of this kind after it is the thing.
ANNOUNCES = {
    "zmqtrack/log": "output_logger",
    "zmqtrack/artifact": "artifact",
    "zmqtrack/end": "exit",
}

_BLOCK = 32 * 1024


class Run:
    """One run: open in wandb or not, and what of it is on disk."""

    def __init__(self, key: RunKey, folder: Path, since: int) -> None:
        self.key = key
        self.id = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.wandb: Any = None
        #: Per stream how far it was handed over by this process: seq, records of that batch.
        self.done: dict[bytes, tuple[int, int]] = {}
        #: Names of the records that need no writing, from offset ``since`` to ``top``.
        self.held: set[str] = set()
        self.top = 0
        #: Records by kind that wandb was given, and that the ``.wandb`` file has.
        self.handed: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._files: list[Path] = []  # not yet synced
        self._log: _TransactionLog | None = None
        self._memo_file = folder / "zmqtrack" / f"{self.id}.json"
        self.memo: dict[str, Any] = {"config": {}, "labels": [], "exit": None, "step": 0}
        if self._memo_file.exists():
            self.memo = json.loads(self._memo_file.read_text())
        self._saved = json.dumps(self.memo)
        for path in (folder / "wandb").glob(f"*run-*-{self.id}*/run-{self.id}.wandb"):
            self._recall(_tail(path, since))

    def _recall(self, records: Iterable[Any]) -> None:
        announced: list[str] = []
        kind = ""
        for record in records:
            row = _columns(record)
            if "zmqtrack/id" in row:
                first, _, offset = json.loads(row["zmqtrack/id"]).rpartition("@")
                self.top = max(self.top, int(offset))
                kind = next((v for k, v in ANNOUNCES.items() if k in row), "")
                batch, _, place = first.rpartition("/")
                length = 1 if kind else sum(not k.startswith(("_", "zmqtrack/")) for k in row)
                names = [f"{batch}/{int(place) + i}" for i in range(length)]
                if kind:
                    announced = names
                else:
                    self.held.update(names)
            elif record.WhichOneof("record_type") == kind:
                self.held.update(announced)
                kind = ""
            if row:
                self.memo["step"] = max(self.memo["step"], record.history.step.num + 1)

    def open(self, init: Any) -> None:
        if self.wandb is None:
            self.wandb = init(self)
            folder = Path(self.wandb.sync_dir)
            self._log = _TransactionLog(folder / f"run-{self.id}.wandb")
            self._files += [folder, folder.parent]
            self.handed = Counter(run=1)
            self._seen = Counter()

    def configure(self, values: dict[str, Any], init: Any, labels: Sequence[str] = ()) -> None:
        known, dumps = self.memo["config"], json.dumps
        values = {k: v for k, v in values.items() if k not in known or dumps(known[k]) != dumps(v)}
        labels = [label for label in dict.fromkeys(labels) if label not in self.memo["labels"]]
        if not values and not labels:
            return
        self.open(init)
        if values:
            self.wandb.config.update(values, allow_val_change=True)
            self.handed["config"] += 1
            self.memo["config"] = {**known, **values}
        if labels:
            self.memo["labels"] += labels
            self.wandb.tags = self.memo["labels"]
            self.handed["run"] += 1

    def log(self, rows: list[dict[str, Any]]) -> None:
        if not self.handed["history"] and self.memo["step"] > self.wandb.step:
            # Logs nothing; the next row continues the steps of the run's earlier folders.
            self.wandb.log({}, step=self.memo["step"])
        for row in rows:
            for key, value in row.items():
                if hasattr(value, "bind_to_run"):  # under wandb's own name "../" would escape
                    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", key)[-100:].strip("._")
                    value.bind_to_run(self.wandb, name, self.handed["history"])
                    self._files += [Path(value._path), Path(value._path).parent]
            self.handed["history"] += 1
        self._publish(rows)

    def _publish(self, rows: list[dict[str, Any]]) -> None:
        """What ``run.log`` does for each row, without its change of thread: 6 times faster."""
        from wandb.proto import wandb_internal_pb2, wandb_server_pb2

        run, requests = self.wandb, []
        try:
            interface = run._interface
            assign, client, asyncer = interface._assign, interface._client, interface._asyncer
        except AttributeError:  # another wandb
            for row in rows:
                run.log(row)
            return
        for row in rows:
            record = wandb_internal_pb2.Record()
            record.control.local = True
            for key, value in row.items():
                item = record.request.partial_history.item.add()
                item.key = key
                item.value_json = json.dumps(value, default=lambda media: media.to_json(run))
            assign(record)
            requests.append(wandb_server_pb2.ServerRequest(record_publish=record))

        async def publish() -> None:
            for request in requests:
                await client.publish(request)

        asyncer.run(publish)

    def artifact(self, record: Record, path: Path) -> None:
        import wandb

        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", record.key)[-80:]
        if name != record.key:
            name += "-" + hashlib.sha256(record.key.encode()).hexdigest()[:8]
        metadata = {"key": record.key, "step": record.step, "time": record.time}
        artifact = wandb.Artifact(
            f"{self.id}-{name}", type="file", metadata={**metadata, **self.key._asdict()}
        )
        parts = [safe_name(part)[:100] for part in record.key.split("/") if part]
        entry = artifact.add_file(str(path), name="/".join(parts) or "file", skip_cache=True)
        self._files += [Path(entry.local_path), Path(entry.local_path).parent]
        self.wandb.log_artifact(artifact)
        if self.wandb.offline:
            self.handed["artifact"] += 1
        else:
            artifact.wait()  # not in the .wandb file; and the server knows it again by digest

    def settle(self, finished: bool = False) -> None:
        """Return when all that was handed over is on disk."""
        if self._log:
            until = time.monotonic() + STALLED
            while self._seen & self.handed != self.handed:
                read = Counter(r.WhichOneof("record_type") for r in self._log.read())
                if read:
                    self._seen += read
                    until = time.monotonic() + STALLED
                elif time.monotonic() > until:
                    raise TimeoutError(f"wandb-core does not write {self._log.path}")
                else:
                    time.sleep(0.02)
                    if not finished:
                        _ = self.wandb.step  # raises if wandb-core is gone
            os.fsync(self._log.file.fileno())
        for path in dict.fromkeys(self._files):
            _sync(path)
        self._files.clear()
        memo = json.dumps(self.memo)
        if memo != self._saved:
            new = self._memo_file.with_suffix(".new")
            new.write_text(memo)
            _sync(new)
            new.replace(self._memo_file)
            _sync(self._memo_file.parent)
            self._saved = memo

    def finish(self) -> None:
        """Close the run: for good if its end has come, else as one that is to be resumed."""
        if self.wandb is None:
            return
        self.settle()
        # A folder without a row of its own begins at 0: what earlier ones had still counts.
        self.memo["step"] = max(self.memo["step"], self.wandb.step)
        code = self.memo["exit"]
        if code is None:
            self.wandb.mark_preempting()
        self.wandb.finish(exit_code=1 if code is None else code)
        self.handed["exit"] += 1
        self.settle(finished=True)
        if self._log:
            self._log.file.close()
        self.wandb = self._log = None


class _TransactionLog:
    """Reads a ``.wandb`` file, also one that grows: LevelDB's log format after 7 bytes.

    ┌ chunk ──────────────────────────────────┐   chunks do not cross blocks of 32 KiB;
    │ crc32 u32 │ length u16 │ type u8 │ data │   type 1: a whole record, 2 3 … 4: parts
    └─────────────────────────────────────────┘   of one; a block's last bytes may be 0
    """

    def __init__(self, path: Path, block: int = 0) -> None:
        self.path = path
        self.file = path.open("rb")
        self._next = block * _BLOCK or 7

    def read(self) -> Iterator[Any]:
        """The complete records behind those that were read before."""
        from wandb.proto import wandb_internal_pb2

        start = self._next
        self.file.seek(start)
        data = self.file.read()
        at = 0
        parts: list[bytes] | None = None
        while at + 7 <= len(data):
            left = _BLOCK - (start + at) % _BLOCK
            if left < 7:
                at += left
                continue
            crc, length, kind = struct.unpack_from("<IHB", data, at)
            body = data[at + 7 : at + 7 + length]
            # Half written as yet, or torn by a crash; `wandb sync` too reads up to here.
            if len(body) < length or zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
                break
            at += 7 + length
            if kind in (1, 2):
                parts = []
            if parts is None:
                continue  # of a record that began before the first block
            parts.append(body)
            if kind in (1, 4):
                self._next = start + at
                yield wandb_internal_pb2.Record.FromString(b"".join(parts))


def _tail(path: Path, since: int) -> list[Any]:
    """The file's last records, as far back as a row of an offset before ``since``."""
    blocks, back = path.stat().st_size // _BLOCK, 32
    while True:
        log = _TransactionLog(path, max(0, blocks - back))
        with log.file:
            records = list(log.read())
        if back >= blocks or any(
            int(json.loads(row["zmqtrack/id"]).rpartition("@")[2]) < since
            for row in map(_columns, records)
            if "zmqtrack/id" in row
        ):
            return records
        back *= 8


def _columns(record: Any) -> dict[str, str]:
    """The columns of a history record, in JSON; of one that holds a dict only some part."""
    return {(i.nested_key[0] if i.nested_key else i.key): i.value_json for i in record.history.item}


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
