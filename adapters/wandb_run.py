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
from zmqtrack.rows import Axes

from .base import safe_name
from .wandb_rows import Row, Rows, names_in

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

OWN_COLUMNS = ("zmqtrack/id", "zmqtrack/step", "zmqtrack/summary")
#: Greatest step of a writer that becomes W&B's own ``_step``: from there it could not go on.
MAX_OWN_STEP = 2**53
#: Longest W&B tag.
MAX_LABEL = 64

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
        #: Something was told that W&B is to know, though nothing was logged.
        self.changed = False
        self._untold: dict[str, str] = {}  # of the summary
        #: Records by kind that wandb was given, and that the ``.wandb`` file has.
        self.handed: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._files: list[Path] = []  # not yet synced
        self._log: _TransactionLog | None = None
        self._memo_file = folder / "zmqtrack" / f"{self.id}.json"
        self.memo: dict[str, Any] = _new_memo()
        if self._memo_file.exists():
            self.memo.update(json.loads(self._memo_file.read_text()))
        self._saved = json.dumps(self.memo)
        for path in (folder / "wandb").glob(f"*run-*-{self.id}*/run-{self.id}.wandb"):
            self._recall(_tail(path, since))
        #: Rows that may still go on; what was published meanwhile is none of them any more.
        self.rows = Rows([row for row in self.memo["rows"] if not self._published(row)])
        self.held.update(self.rows.names())
        self.top = max([self.top, *(row["offset"] for row in self.rows.held())])
        self.axes = Axes()
        for pattern, facts in self.memo["define"].items():
            self.axes.define(pattern, facts.get("step_metric"))

    def _published(self, row: dict[str, Any]) -> bool:
        return not self.held.isdisjoint(Row(**row).names())

    def _recall(self, records: Iterable[Any]) -> None:
        announced: list[str] = []
        kind = ""
        for record in records:
            row = _columns(record)
            if "zmqtrack/id" in row:
                columns = sum(not k.startswith(("_", "zmqtrack/")) for k in row)
                kind = next((v for k, v in ANNOUNCES.items() if k in row), "")
                names, offset = names_in(json.loads(row["zmqtrack/id"]), 1 if kind else columns)
                self.top = max(self.top, offset)
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
        if self.wandb is not None:
            return
        self.wandb = init(self)
        folder = Path(self.wandb.sync_dir)
        self._log = _TransactionLog(folder / f"run-{self.id}.wandb")
        self._files += [folder, folder.parent]
        self.handed = Counter(run=1)
        self._seen = Counter()
        self.changed = False
        # The next row continues the steps of the run's earlier folders.
        self.memo["step"] = max(self.memo["step"], self.wandb.step)
        for own in (*OWN_COLUMNS, *ANNOUNCES):  # each by name: a user's "*" would win over a glob
            self._define(own, {"hidden": True, "summary": "none"})
        if "*" not in self.memo["define"]:
            self._define("*", {})
        for pattern, facts in self.memo["define"].items():
            self._define(pattern, facts)
        if self._untold:
            self.wandb.summary.update(self._untold)
            self._untold = {}

    # --- what is told of a run ------------------------------------------------------------

    def configure(self, values: dict[str, Any], labels: Sequence[str] = ()) -> None:
        known, dumps = self.memo["config"], json.dumps
        values = {k: v for k, v in values.items() if k not in known or dumps(known[k]) != dumps(v)}
        labels = [label for label in dict.fromkeys(labels) if label not in self.memo["labels"]]
        if values:
            self.memo["config"] = {**known, **values}
        self.memo["labels"] += labels
        if self.wandb is None:  # it will be opened with all of it
            self.changed = self.changed or bool(values or labels)
            return
        if values:
            self.wandb.config.update(values, allow_val_change=True)
            self.handed["config"] += 1
        if labels:
            self._label()

    def labels(self, others: Sequence[str] = ()) -> list[str]:
        """The W&B tags."""
        if others:
            self.memo["others"] = list(others)
        parts = self.memo["others"], self.memo["labels"], self.memo["tags"]
        return list(dict.fromkeys(label for part in parts for label in part))

    def _label(self) -> None:
        self.wandb.tags = self.labels()
        self.handed["run"] += 1

    def describe(self, what: str, value: str) -> None:
        """Tell W&B's own ``tags``, ``notes``, ``display_name`` or ``job_type``."""
        told: Any = value
        if what == "tags":
            told = [label for label in value.split(", ") if 0 < len(label) <= MAX_LABEL]
        if self.memo[what] == told:
            return
        self.memo[what] = told
        if self.wandb is None:
            self.changed = True
        elif what == "tags":
            self._label()
        elif what != "job_type":  # which wandb takes at the start of a run only
            setattr(self.wandb, "name" if what == "display_name" else what, value)
            self.handed["run"] += 1

    def define(self, pattern: str, facts: dict[str, Any]) -> None:
        """Define a metric, or by a pattern many, as :class:`zmqtrack.rows.Axes` has it."""
        if self.memo["define"].get(pattern) == facts:
            return
        self.memo["define"][pattern] = facts
        self.axes.define(pattern, facts.get("step_metric"))
        if self.wandb is None:
            self.changed = True
        else:
            self._define(pattern, facts)

    def _define(self, pattern: str, facts: dict[str, Any]) -> None:
        import wandb

        given = {k: v for k, v in facts.items() if k in ("hidden", "summary", "step_sync")}
        axis = facts.get("step_metric")
        # step_sync would give rows that have no step the last one.
        own = {"step_metric": "zmqtrack/step", "step_sync": False}
        if pattern.startswith("zmqtrack/"):
            own = {}
        elif axis is not None:
            own = {"step_metric": axis}
        try:
            self.wandb.define_metric(pattern, overwrite=True, **{**own, **given})
        except (wandb.Error, TypeError):  # what another version of wandb took
            self.wandb.define_metric(pattern, overwrite=True, **own)
        self.handed["metric"] += 1

    def summarise(self, key: str, value: str) -> None:
        """Set an item of the summary, told by a tag."""
        if self.memo["summary"].get(key) == value:
            return
        self.memo["summary"][key] = value
        if self.wandb is None:
            self._untold[key] = value
            self.changed = True
        else:
            self.wandb.summary.update({key: value})

    # --- rows -----------------------------------------------------------------------------

    def bind(self, key: str, media: Any) -> Any:
        """Put a medium into the run's folder; returns what stands in its column."""
        # Under wandb's own name "../" would escape.
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", key)[-100:].strip("._")
        if hasattr(media, "bind_to_run"):
            media.bind_to_run(self.wandb, name, self.handed["history"])
        if getattr(media, "_path", None):
            self._files += [Path(media._path), Path(media._path).parent]
        return media.to_json(self.wandb)

    def publish(self, rows: Sequence[Row]) -> None:
        """Hand rows over, each with the next ``_step``."""
        requests: list[tuple[int, dict[str, Any]]] = []
        for row in rows:
            if assigned := row.columns.get("zmqtrack/summary"):
                self._publish(requests)  # else they would set the summary behind it
                requests = []
                self.wandb.summary.update(assigned)  # on disk no later than its row
            step = self.memo["step"]
            if row.whole and row.step is not None and step < row.step < MAX_OWN_STEP:
                step = row.step
            self.memo["step"] = step + 1
            columns = _captioned(row.columns)
            if row.whole:
                columns = _listed(columns)
            columns = {"_timestamp": row.time, **columns, "zmqtrack/id": row.id()}
            if row.step is not None:
                columns["zmqtrack/step"] = row.step
            requests.append((step, columns))
        self._publish(requests)

    def _publish(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """What ``run.log`` does for each row, without its change of thread: 6 times faster."""
        from wandb.proto import wandb_internal_pb2, wandb_server_pb2

        self.handed["history"] += len(rows)
        run, requests = self.wandb, []
        try:
            interface = run._interface
            assign, client, asyncer = interface._assign, interface._client, interface._asyncer
        except AttributeError:  # another wandb
            for step, columns in rows:
                run.log(columns, step=step, commit=True)
            return
        for step, columns in rows:
            record = wandb_internal_pb2.Record()
            record.control.local = True
            history = record.request.partial_history
            for key, value in columns.items():
                item = history.item.add()
                item.key = key
                item.value_json = json.dumps(value)
            history.step.num = step
            history.action.flush = True
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
        self.memo["rows"] = self.rows.held()
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


def _new_memo() -> dict[str, Any]:
    """What is remembered of a run: what W&B would forget when it is opened again."""
    return {
        "config": {}, "labels": [], "others": [], "tags": [], "notes": "", "display_name": "",
        "job_type": "", "summary": {}, "define": {}, "exit": None, "exit_code": None,
        "step": 0, "rows": [],
    }  # fmt: skip


def _captioned(columns: dict[str, Any]) -> dict[str, Any]:
    """Put a caption that came beside an image into the image, as W&B has it."""
    for key in [key for key in columns if key.endswith(".caption")]:
        image = columns.get(key.removesuffix(".caption"))
        if isinstance(image, dict) and image.get("_type") == "image-file":
            columns = {**columns, key.removesuffix(".caption"): {**image, "caption": columns[key]}}
            del columns[key]
    return columns


def _listed(columns: dict[str, Any]) -> dict[str, Any]:
    """Put the images ``KEY.0``, ``KEY.1`` … of a row into one list under ``KEY``, as W&B has it."""
    for base in [key[:-2] for key in columns if key.endswith(".0")]:
        images: list[dict[str, Any]] = []
        while isinstance(image := columns.get(f"{base}.{len(images)}"), dict):
            if image.get("_type") != "image-file":
                break
            images.append(image)
        if len(images) < 2 or base in columns:
            continue
        first = images[0]
        listed: dict[str, Any] = {
            "_type": "images/separated",
            **{fact: first.get(fact) for fact in ("width", "height", "format")},
            "count": len(images),
            "filenames": [image["path"] for image in images],
        }
        if "caption" in first:
            listed["captions"] = [image.get("caption") for image in images]
        merged = {f"{base}.{number}" for number in range(len(images))}
        columns = {k: v for k, v in columns.items() if k not in merged} | {base: listed}
    return columns


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
