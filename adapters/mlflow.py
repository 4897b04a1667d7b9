"""MLflow: each site a run in MLflow's experiment, the sites of one job under a parent run.

What a record becomes (PATH: inside the run's artifacts; MS: the writer's time, in ms):

========= ==================================================================================
metric    metric with the writer's time; no step: 0. MLflow knows a point by (key, ms, step,
          value): points that agree in all four are one there, which is counted. It stores
          ±inf as ±1.797e308.
param     param. Its 2nd, 3rd … value: tag ``param.KEY.N``; a value that it had before adds
          nothing. Too long: shortened, the whole at ``params/KEY.txt`` (``KEY.N.txt``).
tag       tag; too long: shortened, the whole at ``tags/KEY.txt``
text      a key with an extension and no step is a PATH; without both ``text/KEY.txt``, where
          more of it is appended; with a step ``text/KEY/STEP-MS-HASH.txt``
image     the same for a PATH; otherwise as ``log_image`` names it, which MLflow's page reads
histogram ``histograms/KEY/STEP-MS-HASH.json``
artifact  its key is the PATH
log       ``logs/KEY.txt``, appended; every MiB goes on in ``KEY.2.txt``, ``KEY.3.txt`` …
========= ==================================================================================

What MLflow does not take in a key is written ``_xHEX_``, as XML names do (``50%`` is
``50_x0025_``), and so is what would make a path leave its folder, and the whole of a name that
a file system which folds case would take for another; a key over 250 bytes is cut, with a hash
of the whole. Where a file of ours and one of the user's would have the same PATH, the second
to come gets a name with a hash. Everything can be sent again: runs are found by a tag, points
by MLflow's key, files by their name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, field_validator

from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch

from .base import (
    Adapter,
    Blocked,
    Context,
    Options,
    Refused,
    TrackerError,
    Unavailable,
    leads_elsewhere,
)
from .ledger import Ledger, replace_file
from .probe import folder_to_write

__all__ = ["MLflowAdapter"]

#: Runs whose id is remembered; others are looked up again.
MAX_RUNS = 1000
#: Most of each kind in one ``log_batch``: MLflow takes 1000 in all, and 1 MB.
MAX_METRICS, METRIC_BYTES = 800, 600_000
MAX_PAIRS, PAIR_BYTES = 100, 180_000
#: Longest key, and longest path of an artifact, in bytes.
MAX_KEY, MAX_PATH = 250, 700
#: An appended file is sent again with each addition; at this size another one begins.
PART_BYTES = 1 << 20
#: Our copy of an appended file is dropped when it had no addition for so long (seconds).
PART_AGE = 7 * 86400
#: Facts about the process that become tags.
MAX_FACTS = 30

_RUNNING = "RUNNING"
_ENDED = {"failed": "FAILED", "killed": "KILLED", "finished": "FINISHED"}  # the worst first
_IDENTITY = ("id", "run", "site", "adapter")

#: Set in our process unless the user did. The host retries; MLflow does so once and at once,
#: and only where the connection broke, as one does that was kept open and fell idle.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # it would write lines of its own form beside our log
}

_START = "Start the MLflow server, look at its log, or correct options.tracking_uri"
_CREDENTIALS = (
    "Give the adapter what that server asks for: under `secrets`, MLFLOW_TRACKING_TOKEN, or "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)

_IMAGE = re.compile(r"\.(png|jpe?g|gif|webp|bmp|tiff?)", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")
#: Folders where we make files of our own, whose names follow from keys alone.
_OURS = re.compile(r"(params|tags|text|logs)/.")
#: What a key that was cut looks like; one that is like it by itself is treated the same.
_WAS_CUT = re.compile(r".*-[0-9a-f]{32}(\.[A-Za-z][A-Za-z0-9]{0,4})?", re.DOTALL)


class MLflowOptions(Options):
    tracking_uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", ""),
        validate_default=True,
        description="The tracking server: http://HOST:PORT, a database such as sqlite:///PATH, or "
        "databricks. Default: MLFLOW_TRACKING_URI of the environment.",
    )
    experiment_prefix: str = Field(
        "", description="Stands before the name of each experiment in MLflow."
    )
    artifact_location: str | None = Field(
        None,
        description="Where the artifacts of new experiments go. Default: the tracking server's; "
        "with SQLite beside the database.",
    )

    @field_validator("tracking_uri")
    @classmethod
    def _holds_each_once(cls, uri: str) -> str:
        if not uri:
            raise ValueError("give an address, or set MLFLOW_TRACKING_URI")
        if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):
            raise ValueError(
                f"{uri!r} is a folder, where MLflow repeats what is sent again: "
                "use sqlite:///PATH or the address of a server"
            )
        return uri


@dataclass
class _Run:
    """A run as MLflow has it. ``end`` is its end time in ms, also when it was reopened."""

    id: str
    experiment: str
    status: str
    end: int
    #: Where its artifacts are, if that is a folder that we write to ourselves.
    folder: Path | None = None


@dataclass
class _Pending:
    """What one delivery has for one run, apart from files that are sent at once."""

    run: _Run
    metrics: dict[tuple[str, int, int, str], Any] = field(default_factory=dict)
    params: list[Record] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    appended: dict[str, list[str]] = field(default_factory=dict)


class MLflowAdapter(Adapter):
    requires = ("mlflow",)
    extra = "mlflow"
    Options = MLflowOptions
    options: MLflowOptions

    def __init__(self, options: MLflowOptions, context: Context) -> None:
        super().__init__(options, context)
        self._ledger = Ledger(context.state_dir, context.log)
        self._parts = context.state_dir / "appended"
        self._upload = context.state_dir / "upload"
        self._runs: OrderedDict[RunKey, _Run] = OrderedDict()
        self._client: Any = None
        self._merged = 0

    def open(self, note: bytes) -> None:
        self._ledger.open(note)
        self._runs.clear()
        shutil.rmtree(self._upload, ignore_errors=True)
        self._upload.mkdir(parents=True)
        for part in self._parts.rglob("*.*"):
            if part.is_file() and time.time() - part.stat().st_mtime > PART_AGE:
                os.truncate(part, 0)
        if (database := _sqlite_path(self.options.tracking_uri)) is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        with self._translated():
            self._client = _connect(self.options.tracking_uri)

    def deliver(self, batches: Sequence[Batch]) -> None:
        groups: dict[RunKey, list[Batch]] = {}
        for batch in batches:
            groups.setdefault(batch.run, []).append(batch)
        appended: dict[Path, bytes] = {}
        parents: dict[RunKey, None] = {}
        self._merged = 0
        with self._translated():
            for key, group in groups.items():
                if self._deliver_run(key, group, appended):
                    parents[_parent(key)] = None
            for key in parents:
                self._settle_parent(key)
        if appended:  # last: until here all could be sent again
            self._ledger.append(appended)
        if self._merged:
            self.context.count("mlflow: identical metric point merged", self._merged)

    def probe(self, timeout: float) -> str:
        uri = self.options.tracking_uri
        if (database := _sqlite_path(uri)) is not None:
            return _probe_sqlite(database, timeout)
        if urlsplit(uri).scheme not in ("http", "https", "databricks", ""):
            return _probe_database(uri, timeout)
        # Two requests, each once.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, int(timeout / 2)))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        try:
            with self._translated():
                return _probe_server(uri)
        except Unavailable as error:
            reason = re.search(r"\[Errno -?\d+\] ([^\"')]*)|timed out", str(error))
            if reason is None:
                raise
            raise Unavailable(
                f"no MLflow server answers at {uri}: {reason[1] or reason[0]}",
                advice=error.advice or _START,
            ) from None

    def note(self) -> bytes:
        return self._ledger.note()

    def close(self) -> None:
        self._ledger.close()

    # --- one run ------------------------------------------------------------------------------

    def _deliver_run(self, key: RunKey, group: list[Batch], appended: dict[Path, bytes]) -> bool:
        """Deliver what one run got; True if its parent's status may have changed."""
        starts = [r for batch in group if batch.type == "run" for r in batch if r.key == "start"]
        known = key in self._runs
        run = self._run(key, _ms((starts or group[0].records)[0].time))
        pending = _Pending(run)
        status, end = run.status, run.end
        for batch in group:
            handle = getattr(self, f"_on_{batch.type}")
            for record in batch:
                ms = _ms(record.time)
                if batch.type == "run" and record.key == "end":
                    if status == _RUNNING or ms >= end:
                        status, end = _ended(record), ms
                    continue
                # What was logged before the end may come after it, from another stream.
                if status != _RUNNING and ms > end:
                    status = _RUNNING
                handle(record, ms, pending)
        self._log_batches(pending)
        for path, texts in pending.appended.items():
            self._append(run, path, texts, appended)
        changed = (status, end) != (run.status, run.end)
        if changed:
            self._set_status(run, status, end)
        return changed or not known or any(batch.type == "run" for batch in group)

    def _on_run(self, record: Record, ms: int, pending: _Pending) -> None:
        if record.key != "start" or not isinstance(record.value, dict):
            return
        for name, value in list(record.value.items())[:MAX_FACTS]:
            if isinstance(value, (str, int, float)) and name not in _IDENTITY:
                pending.tags[_name(f"zmqtrack.{name}")] = _short(str(value), 500)

    def _on_metric(self, record: Record, ms: int, pending: _Pending) -> None:
        from mlflow.entities import Metric

        step = record.step or 0
        if not -(2**63) <= step < 2**63:
            raise Refused(f"metric {record.key!r}: MLflow cannot hold step {step}")
        key, value = _name(record.key), record.value + 0.0  # -0.0 is 0.0 to a database
        point = (key, ms, step, repr(value))
        self._merged += point in pending.metrics
        pending.metrics[point] = Metric(key, value, ms, step)

    def _on_param(self, record: Record, ms: int, pending: _Pending) -> None:
        pending.params.append(record)

    def _on_tag(self, record: Record, ms: int, pending: _Pending) -> None:
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        short = _short(record.value, MAX_TAG_VAL_LENGTH)
        if len(record.value) > MAX_TAG_VAL_LENGTH:
            self._put(pending.run, f"tags/{record.key}.txt", record.value.encode(), "tag")
        key = _name(record.key)
        if key.startswith("zmqtrack.") or key in ("mlflow.runName", "mlflow.parentRunId"):
            key = _hex(key[0]) + key[1:]  # these are ours
        pending.tags.pop(key, None)  # the last value last
        pending.tags[key] = short

    def _on_text(self, record: Record, ms: int, pending: _Pending) -> None:
        suffix = PurePosixPath(record.key).suffix
        is_path = _EXTENSION.fullmatch(suffix) is not None
        if record.step is not None:
            name = _series(record, ms, record.value.encode())
            path = f"text/{record.key}/{name}{suffix if is_path else '.txt'}"
            self._put(pending.run, path, record.value.encode(), owner=None)
        elif not is_path:
            pending.appended.setdefault(f"text/{record.key}", []).append(record.value)
        else:
            self._put(pending.run, record.key, record.value.encode())

    def _on_image(self, record: Record, ms: int, pending: _Pending) -> None:
        if record.step is None and _IMAGE.fullmatch(PurePosixPath(record.key).suffix):
            self._put(pending.run, record.key, record.value)
            return
        whole, small = _renditions(record)
        # The names that MlflowClient.log_image makes, but with a UUID that is the content's.
        digest = hashlib.sha256(record.value).hexdigest()
        uuid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
        key = _cut(_escape(record.key, r"[^A-Za-z0-9_\-./ ]"), 120).replace("/", "~")
        name = f"images/{key}+step+{record.step or 0}+timestamp+{ms}+{uuid}"
        self._put(pending.run, f"{name}.png", whole)
        self._put(pending.run, f"{name}+compressed.webp", small)
        pending.tags["mlflow.loggedImages"] = "True"

    def _on_histogram(self, record: Record, ms: int, pending: _Pending) -> None:
        whole = {**record.value, "key": record.key, "step": record.step, "time": record.time}
        data = json.dumps(whole, default=str, skipkeys=True).encode()
        self._put(pending.run, f"histograms/{record.key}/{_series(record, ms, data)}.json", data)

    def _on_artifact(self, record: Record, ms: int, pending: _Pending) -> None:
        self._put(pending.run, record.key, record.value)

    def _on_log(self, record: Record, ms: int, pending: _Pending) -> None:
        pending.appended.setdefault(f"logs/{record.key}", []).append(record.value)

    # --- metrics, params, tags ----------------------------------------------------------------

    def _log_batches(self, pending: _Pending) -> None:
        from mlflow.entities import Param, RunTag

        params, changes = self._sort_params(pending.run, pending.params)
        tags = {**pending.tags, **changes}
        for batch in zip_longest(
            _chunks(pending.metrics.values(), MAX_METRICS, METRIC_BYTES),
            _chunks([Param(*item) for item in params.items()], MAX_PAIRS, PAIR_BYTES),
            _chunks([RunTag(*item) for item in tags.items()], MAX_PAIRS, PAIR_BYTES),
            fillvalue=(),
        ):
            self._client.log_batch(pending.run.id, *batch, synchronous=True)

    def _sort_params(
        self, run: _Run, records: list[Record]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The params that are new, and the tags for those that have another value already."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        if not records:
            return params, tags
        there = self._client.get_run(run.id).data
        values: dict[str, list[str]] = {}  # that a param had, the first first
        for record in records:
            key, whole = record.key, str(record.value)
            if key not in values:
                names = (_name(f"param.{key}.{n}") for n in count(2))
                first = there.params.get(_name(key))
                values[key] = [] if first is None else [first]
                while values[key] and (later := there.tags.get(next(names))) is not None:
                    values[key].append(later)
            value = _short(whole, MAX_PARAM_VAL_LENGTH)
            if value in values[key]:
                continue
            values[key].append(value)
            n = len(values[key])
            if len(whole) > MAX_PARAM_VAL_LENGTH:
                path = f"params/{key}{f'.{n}' if n > 1 else ''}.txt"
                self._put(run, path, whole.encode(), f"param {key}")
            if n == 1:
                params[_name(key)] = value
            else:
                tags[_name(f"param.{key}.{n}")] = value
        return params, tags

    # --- files --------------------------------------------------------------------------------

    def _put(
        self, run: _Run, path: str, content: bytes | Path, owner: str | None = "the user's"
    ) -> None:
        """Make ``content`` the run's artifact at ``path``, or at what that becomes if unsafe.

        ``owner`` is whose path it is, where another one's could be the same.
        """
        if owner and _OURS.match(path):
            path = self._apart(run, path, owner)
        safe = _where_it_is_alone(run.folder, PurePosixPath(_path(path)))
        local = self._upload / safe.name
        local.unlink(missing_ok=True)
        try:
            if isinstance(content, Path):
                local.symlink_to(content.absolute())
            else:
                local.write_bytes(content)
            folder = str(safe.parent) if safe.parent.name else None
            self._client.log_artifact(run.id, str(local), folder)
        except Exception as error:
            if self._is_taken(run.id, safe):  # which a server answers with 500
                raise Refused(f"artifact {str(safe)!r}: a file and a folder of one name") from error
            raise
        finally:
            local.unlink(missing_ok=True)

    def _apart(self, run: _Run, path: str, owner: str) -> str:
        """``path``, or another one where it belongs to a record of another kind or key."""
        owners = self._parts / run.id / "owners"
        while True:
            mark = owners / hashlib.sha256(path.encode()).hexdigest()[:32]
            if not mark.exists():
                replace_file(mark, [owner.encode()], part=owners / "part")
            if mark.read_bytes() == owner.encode():
                return path
            digest = hashlib.sha256(f"{owner}\0{path}".encode()).hexdigest()[:32]
            path = f"{path.removesuffix('.txt')}-{digest}.txt"

    def _is_taken(self, run_id: str, path: PurePosixPath) -> bool:
        """Whether there is a folder where the file should be, or a file where its folder is."""
        for part in (path, *path.parents[:-1]):
            folder = str(part.parent) if part.parent.name else None
            for entry in self._client.list_artifacts(run_id, folder):
                if entry.path == str(part) and entry.is_dir == (part == path):
                    return True
        return False

    def _append(self, run: _Run, path: str, texts: list[str], appended: dict[Path, bytes]) -> None:
        """Send the file again with ``texts`` at its end; MLflow cannot append.

        Our own copy gets them when the whole delivery has succeeded, by way of ``appended``.
        """
        folder = self._parts / run.id / hashlib.sha256(path.encode()).hexdigest()[:32]
        numbers = sorted(int(part.stem) for part in folder.glob("*.txt"))
        number = numbers[-1] if numbers else 1
        before = (folder / f"{number}.txt").read_bytes() if numbers else b""
        if numbers and not 0 < len(before) < PART_BYTES:
            number, before = number + 1, b""
        for finished in numbers[-4:-2]:  # no longer needed; it marks the number as taken
            os.truncate(folder / f"{finished}.txt", 0)
        addition = bytearray()
        for text in texts:
            last = (addition or before)[-1:]
            addition += (b"\n" if last not in (b"", b"\n") else b"") + text.encode()
        part = f"{path}{f'.{number}' if number > 1 else ''}.txt"
        self._put(run, part, before + addition, f"appended {path}")
        appended[folder / f"{number}.txt"] = bytes(addition)

    # --- runs and their status ----------------------------------------------------------------

    def _run(self, key: RunKey, ms: int) -> _Run:
        """The run of that key: remembered, found by its tag, or made."""
        from mlflow.entities import ViewType

        if key in self._runs:
            self._runs.move_to_end(key)
            return self._runs[key]
        tags = {"zmqtrack.id": hashlib.sha256(json.dumps(key).encode()).hexdigest()}
        tags["zmqtrack.run"] = key.run
        if key.site:
            tags["zmqtrack.site"] = key.site
            tags["mlflow.parentRunId"] = self._run(_parent(key), ms).id
        experiment = self._experiment(self.options.experiment_prefix + key.experiment)
        query = f"tags.`zmqtrack.id` = '{tags['zmqtrack.id']}'"
        if not (found := self._search(experiment, query, ViewType.ALL)):
            self._client.create_run(experiment, ms, tags, key.site or key.run)
            found = self._search(experiment, query, ViewType.ALL)
        # A create_run that timed out may still have been done, and even late: the run that we
        # took is marked, and what is not marked beside it is empty.
        found.sort(key=lambda run: ("zmqtrack.adapter" not in run.data.tags, run.info.run_id))
        first = found[0]
        for twin in found[1:]:
            if twin.info.lifecycle_stage == "active" and "zmqtrack.adapter" not in twin.data.tags:
                self._client.delete_run(twin.info.run_id)
        if first.info.lifecycle_stage != "active":
            raise Blocked(
                f"{_describe(key)} is deleted in MLflow: restore it (mlflow runs restore "
                f"--run-id {first.info.run_id}) or remove it for good (mlflow gc)"
            )
        if "zmqtrack.adapter" not in first.data.tags:
            self._client.set_tag(first.info.run_id, "zmqtrack.adapter", self.context.name)
        run = _Run(
            first.info.run_id,
            experiment,
            first.info.status,
            first.info.end_time or 0,
            _local_folder(first.info.artifact_uri),
        )
        self._runs[key] = run
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return run

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = self.options.artifact_location
            database = _sqlite_path(self.options.tracking_uri)
            if location is None and database is not None:
                location = str(database.parent / "mlflow-artifacts")
            return str(self._client.create_experiment(name, location))
        if found.lifecycle_stage != "active":
            raise Blocked(
                f"experiment {name!r} is deleted in MLflow: restore it (mlflow experiments "
                f"restore -x {found.experiment_id}) or remove it for good (mlflow gc)"
            )
        return str(found.experiment_id)

    def _set_status(self, run: _Run, status: str, end: int) -> None:
        if status == _RUNNING:
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status, end)
        run.status, run.end = status, end

    def _settle_parent(self, key: RunKey) -> None:
        """Give the parent its status: running while a child is, and then the worst of theirs."""
        parent = self._run(key, 0)
        children = f"tags.`mlflow.parentRunId` = '{parent.id}'"

        def latest(query: str) -> Any:
            return next(iter(self._search(parent.experiment, query, most=1)), None)

        status, end = _RUNNING, parent.end
        having = f"{children} and attributes.status = '{{}}'".format
        if not latest(having(_RUNNING)) and (last := latest(children)):
            status = next((s for s in _ENDED.values() if latest(having(s))), last.info.status)
            end = last.info.end_time or 0
        if (status, end) != (parent.status, parent.end):
            self._set_status(parent, status, end)

    def _search(self, experiment: str, query: str, view: int = 1, most: int = 100) -> list[Any]:
        """Runs that have the tags, the last to end first."""
        order = ["attributes.end_time DESC"]
        return list(self._client.search_runs([experiment], query, view, most, order))

    # --- errors -------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """MLflow's errors, the network's and the disk's as those that the host knows."""
        outside = sys.exc_info()[1]  # what our caller is handling is no cause of ours
        try:
            yield
        except TrackerError:
            raise
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                self._runs.clear()  # removed meanwhile: the next attempt makes it anew
            known = _translate(error, outside)
            if known is None:
                raise
            raise known from None


def _translate(error: Exception, outside: BaseException | None = None) -> TrackerError | None:
    link: BaseException | None = error
    while link is not None and link is not outside:  # MLflow wraps what _hand_over_retries raises
        if isinstance(link, TrackerError):
            return link
        link = link.__cause__ or link.__context__
    response = getattr(error, "response", None)  # of requests, which artifacts come with
    text = f"MLflow: {str(error) or type(error).__name__}"
    if hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
        if "must be in the 'active' state" in text:
            return Blocked(f"{text} It was deleted in MLflow: restore it, or run mlflow gc.")
        # Removed meanwhile, or made meanwhile (by a request of ours whose answer was lost, or by
        # another adapter): the next attempt sees what is there.
        if getattr(error, "error_code", "") in (
            "RESOURCE_DOES_NOT_EXIST",
            "RESOURCE_ALREADY_EXISTS",
        ):
            return Unavailable(text)
    elif response is not None:
        status = response.status_code
    elif isinstance(error, OSError):
        return Blocked(text) if isinstance(error, PermissionError) else Unavailable(text)
    elif type(error).__module__.startswith("sqlalchemy"):
        return Unavailable(text)
    else:
        return None
    return _as_status(status, text)


def _as_status(status: int, text: str) -> TrackerError:
    """The error that an answer with this status is; with advice, for a probe."""
    code, advice = "", ""
    if status in (401, 403, 407):
        code, advice = "tracker_credentials", _CREDENTIALS
    elif status in (404, 501) or "valid JSON" in text:
        code, advice = "not_mlflow", "Correct options.tracking_uri: no MLflow server answers there"
    elif status >= 500:
        advice = _START
    return _kind(status)(text, code=code, advice=advice)


def _kind(status: int) -> type[TrackerError]:
    if status in (401, 403, 404, 407, 501):
        return Blocked
    if 400 <= status < 500 and status not in (408, 409, 425, 429, 499):
        return Refused
    return Unavailable


@lru_cache(maxsize=1)
def _hand_over_retries() -> None:
    """Let what MLflow hides reach the host: Retry-After, and a status without MLflow's JSON."""
    import mlflow.utils.request_utils as requests_of_mlflow
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util import Retry

    class HandOver(Retry):
        def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
            if status_code in (401, 403, 413, 422):
                raise _as_status(status_code, f"MLflow answers {status_code}")
            return super().is_retry(method, status_code, has_retry_after)

        def increment(self, *args: Any, response: Any = None, **more: Any) -> Any:
            if response is not None:
                response.drain_conn()
                wait = self.get_retry_after(response)
                raise Unavailable(f"MLflow answers {response.status} to {args}", wait)
            if isinstance(more.get("error"), ReadTimeoutError):
                raise Unavailable(f"MLflow does not answer: {more['error']}")
            return super().increment(*args, **more)

    requests_of_mlflow.Retry = HandOver  # MLflow has no setting for this


# --- where it is -------------------------------------------------------------------------


def _connect(uri: str) -> Any:
    """A client of the store at ``uri``, which has answered once."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    _hand_over_retries()
    with _alone(uri):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Several processes that make the tables of one new database at once would spoil it."""
    folder = None
    if (database := _sqlite_path(uri)) is not None:
        with suppress(OSError):  # no such folder, or a file system that cannot lock it
            folder = os.open(database.parent, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def _probe_server(uri: str) -> str:
    _connect(uri)
    version = ""
    if urlsplit(uri).scheme in ("http", "https"):
        from mlflow.tracking._tracking_service.utils import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        answer = http_request(get_default_host_creds(uri), "/version", "GET", raise_on_status=False)
        if answer.status_code == 200 and re.fullmatch(r"[\w.+-]{1,30}", answer.text.strip()):
            version = f" {answer.text.strip()}"
    return f"MLflow{version} at {uri} lets us in"


def _probe_sqlite(database: Path, timeout: float) -> str:
    """Without MLflow, which would make the tables, or change those of an older one."""
    if not database.exists():
        folder_to_write(database.parent, "tracking_uri")
        return f"SQLite database {database} does not exist yet and can be made"
    folder_to_write(database.parent, "tracking_uri")  # SQLite makes files beside it
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=rw", timeout, uri=True)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            known = "experiments" in names
            count = known and db.execute("SELECT count(*) FROM experiments").fetchone()[0]
            db.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise Unavailable(
                f"{database} has been locked by another process for {timeout:g} s",
                code="database_locked",
                advice="Look which holds it (`fuser`); sites that write much need a server",
            ) from error
        raise Blocked(
            f"{database} cannot be written: {error}",
            code="folder_not_writable",
            advice=(
                "Let the daemon's user write it (chown, chmod), or correct options.tracking_uri"
            ),
        ) from error
    except sqlite3.DatabaseError as error:
        raise Blocked(
            f"{database} is no SQLite database: {error}",
            code="not_a_database",
            advice="Correct options.tracking_uri, or put a backup in its place",
        ) from error
    if names and not known:
        raise Blocked(
            f"{database} is a database of something else: it has no table of MLflow's",
            code="not_mlflow",
            advice="Correct options.tracking_uri: name a file of its own for MLflow",
        )
    return f"MLflow's SQLite database {database} can be written, {count or 0} experiments"


def _probe_database(uri: str, timeout: float) -> str:
    """Any other that SQLAlchemy knows; only looked at."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    seconds = {"connect_timeout": max(1, int(timeout))}  # as both drivers' call it
    known = uri.startswith(("postgres", "mysql"))
    try:
        engine = create_engine(uri, poolclass=NullPool, connect_args=seconds if known else {})
        with engine.connect() as connection:
            made = inspect(connection).has_table("experiments")
    except (ImportError, NoSuchModuleError) as error:
        raise Blocked(
            f"no driver for this database: {error}",
            code="no_driver",
            advice=f"Install it beside zmqtrack: pip install "
            f"{getattr(error, 'name', None) or 'what SQLAlchemy names for such an address'}",
        ) from error
    except DBAPIError as error:
        raise Unavailable(
            f"the database does not let us in: {error.orig}",
            advice="Start it, or correct host, user and password in options.tracking_uri "
            "(best as MLFLOW_TRACKING_URI under `secrets`)",
        ) from error
    return f"the database answers; MLflow's tables {'are there' if made else 'will be made'}"


# --- names and values --------------------------------------------------------------------


def _hex(character: str) -> str:
    return f"_x{ord(character):04X}_"


def _escape(text: str, forbidden: str) -> str:
    """``text`` without what is forbidden, and as a path that stays where it is; reversible."""
    return re.sub(
        forbidden
        + r"|_(?=x[0-9A-F]{4,6}_)"  # what would look escaped
        + r"|\A/|(?<=/)/|/\Z|(?:(?<=/)|\A)\.(?=\.?(?:/|\Z))",  # empty parts, "." and ".."
        lambda match: _hex(match[0]),
        text,
    )


def _cut(text: str, limit: int) -> str:
    """``text``, or its beginning, a hash and the extension if it has more bytes."""
    if (size := len(text.encode())) <= limit and not (
        size > limit - 4 and _WAS_CUT.fullmatch(text)
    ):
        return text
    suffix = PurePosixPath(text).suffix
    suffix = suffix if _EXTENSION.fullmatch(suffix) else ""
    end = f"-{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"
    return text.encode()[: limit - len(end)].decode(errors="ignore") + end


@lru_cache(maxsize=10_000)
def _name(key: str) -> str:
    """``key`` as MLflow takes it for a metric, param or tag."""
    if not key:
        raise Refused("MLflow takes no empty key")
    return _cut(_escape(key, r"[^\w/.\- :]|\A\.(?=\.)"), MAX_KEY)


def _path(path: str) -> str:
    """``path`` as one that MLflow and a file system take, and that stays in the run."""
    if not path:
        raise Refused("MLflow takes no empty key")
    safe = _cut(_escape(path, r"[^\w/.\-+=@,()~ ]|\A\.(?=\.[^/]*/)"), MAX_PATH)
    return "/".join(_cut(part, 200) for part in safe.split("/"))


def _where_it_is_alone(folder: Path | None, path: PurePosixPath) -> PurePosixPath:
    """``path``, its parts spelled out where the folder's file system takes them for others."""
    if folder is None:
        return path
    parts: list[str] = []
    for part in path.parts:
        spelled = _cut("".join(map(_hex, part)), 200)
        here = folder.joinpath(*parts)
        known = [os.path.lexists(here / name) for name in (part, spelled)]
        alone = known != [False, True] and not leads_elsewhere(here, part)
        parts.append(part if alone else spelled)
    return PurePosixPath(*parts)


def _short(text: str, limit: int) -> str:
    text = text.replace("\0", "\u2400")  # NUL is not for databases
    if len(text) <= limit:
        return text
    note = f"… [{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}]"
    return text[: limit - len(note)] + note


def _series(record: Record, ms: int, data: bytes) -> str:
    """A file name by which records of one key neither replace nor repeat each other."""
    return f"{record.step or 0}-{ms}-{hashlib.sha256(data).hexdigest()[:8]}"


def _renditions(record: Record) -> tuple[bytes, bytes]:
    """The image as PNG, and as the small WebP that MLflow's page shows."""
    from io import BytesIO

    from PIL import Image

    whole, small = BytesIO(), BytesIO()
    try:
        with Image.open(BytesIO(record.value)) as image:
            image.load()
            if image.format == "PNG":
                whole.write(record.value)
            else:
                image.save(whole, "PNG")
            reduced = image.convert("RGBA" if "A" in image.getbands() else "RGB")
            reduced.thumbnail((256, 256))
            reduced.save(small, "WEBP")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"image {record.key!r} cannot be read: {error}") from error
    return whole.getvalue(), small.getvalue()


def _ms(seconds: float) -> int:
    try:
        ms = round(seconds * 1000)
    except (OverflowError, ValueError):
        ms = -1
    if not 0 <= ms < 2**63:
        raise Refused(f"MLflow cannot hold the time {seconds}")
    return ms


def _ended(record: Record) -> str:
    try:
        return _ENDED[record.value]
    except (KeyError, TypeError):
        raise Refused(f"a run cannot end as {record.value!r:.80}") from None


def _parent(key: RunKey) -> RunKey:
    return key._replace(site="")  # no site is called that


def _describe(key: RunKey) -> str:
    site = f", site {key.site!r}" if key.site else ""
    return f"run {key.run!r}{site} of experiment {key.experiment!r}"


def _chunks(items: Iterable[Any], most: int, most_bytes: int) -> Iterator[list[Any]]:
    """The items in lists that are short and, as JSON, small enough for one request."""
    chunk: list[Any] = []
    size = 0
    for item in items:
        bytes_ = 250 + len(json.dumps(item.key)) + len(json.dumps(item.value))
        if chunk and (len(chunk) == most or size + bytes_ > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += bytes_
    if chunk:
        yield chunk


def _local_folder(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)


def _sqlite_path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(parts.path[1:]).absolute() if parts.scheme.startswith("sqlite") else None
