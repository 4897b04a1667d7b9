"""Weights & Biases: one W&B run per site, its group the run; many in this one process.

What becomes what (``zmqtrack/…`` is ours; a user's name of that kind gets ``user/`` before it):

========= ====================================================================================
metric    a history row; columns ``zmqtrack/step`` (the x axis: steps may repeat and go back),
          ``_timestamp`` (W&B's own column, with the writer's time), ``zmqtrack/id``. Metrics
          of one step and time that come together share a row.
text      Html: as it is where the key ends in ``.html``, else escaped in ``<pre>``
image     Image, the writer's bytes; in a format that W&B does not show: PNG; no image: artifact
histogram Histogram; bins are merged until W&B's 512 hold them
artifact  a file Artifact ``RUNID-KEY`` whose metadata tells key, step, time and run
log       the Logs tab; a row ``zmqtrack/log`` notes the key
param     config (the last value; W&B's JSON has no NaN and no bytes: those become text)
tag       config ``tag.KEY``; without a value also a W&B tag, where W&B takes it (64 long)
run       config ``zmqtrack``; at the end a row ``zmqtrack/end`` and an exit code
========= ====================================================================================

Confirmed is what has been read back from the run's ``.wandb`` file (its transaction log, kept
online too) and synced to disk; wandb alone would flush it now and then, and never sync it.
The rows in that file are also how a delivery in doubt is recognised: ``zmqtrack/id`` is
``STREAM/SEQ/PLACE@OFFSET``, PLACE that of the row's first record in its batch. Online, wandb
uploads behind that confirmation; what a crash of this machine keeps it from uploading,
``wandb sync`` sends from the run's folder.

A run that goes on after its end, or after this process, is opened again under the same id: W&B
makes one more folder, whose ``_step`` goes on where the last one ended, and ``wandb sync`` joins
them in order of their start. What W&B would forget then stands in ``DIR/zmqtrack/ID.json``.
"""

from __future__ import annotations

import html
import io
import logging
import math
import os
import re
import signal
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch

from .base import Adapter, Blocked, Options, TrackerError, Unavailable
from .probe import folder_to_write
from .wandb_run import ANNOUNCES, FLUSH_INTERVAL, Run

__all__ = ["WandBAdapter"]

#: W&B's limits: bins of a histogram, characters of a tag and of a project's name.
MAX_BINS, MAX_TAG, MAX_PROJECT = 512, 64, 128

EXIT_CODES = {"finished": 0, "failed": 1, "killed": 255, "left": 255}
#: Image formats that W&B shows; the file is kept as it is.
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp"}

_RESERVED = re.compile(r"(user/)*(_|zmqtrack($|/)|tag\.)")


class WandBOptions(Options):
    project: str | None = Field(
        None, description="The project of all runs. Default: the name of each run's experiment."
    )
    entity: str | None = Field(
        None, description="The user or team that the project is of. Default: wandb's own."
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="Whether runs are sent, or kept in files for `wandb sync`. The key and the "
        "server are read from wandb's own places (WANDB_API_KEY, WANDB_BASE_URL, netrc). Default: "
        "WANDB_MODE of the environment, else online.",
    )
    dir: Path = Field(Path(), description="The folder, in which wandb makes its folder wandb.")
    max_open_runs: int = Field(
        100,
        ge=1,
        description="Runs held open at once; one more closes that which was used longest ago.",
    )


class WandBAdapter(Adapter):
    requires = ("wandb",)
    extra = "wandb"
    Options = WandBOptions
    options: WandBOptions

    def open(self, note: bytes) -> None:
        import wandb

        if "x_transaction_log_flush_interval" not in wandb.Settings.model_fields:
            raise Blocked(f"wandb {wandb.__version__} is too old: pip install 'wandb>=0.31'")
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()
        self._core: Any = None
        self._end_orphan()
        self._dir = self.options.dir.resolve()
        self._mode: Literal["online", "offline"] = "offline" if self._offline() else "online"
        try:
            (self._dir / "zmqtrack").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Blocked(f"{self._dir}: {error.strerror}") from error
        logging.getLogger("wandb").setLevel(logging.WARNING)
        # Else an artifact's files wait for their upload in the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._dir / "zmqtrack"))

    def _offline(self) -> bool:
        return (self.options.mode or os.environ.get("WANDB_MODE")) in ("offline", "dryrun")

    def deliver(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                self._apply(batch)
            for run in list(self._runs.values()):
                run.settle()
                if run.wandb and run.memo["exit"] is not None:  # late records of an ended run
                    run.finish()
        except TrackerError:
            raise
        except Exception as error:
            # wandb-core died, or may as well have: begin anew from what is on disk.
            self._abandon()
            raise Unavailable(f"wandb: {type(error).__name__}: {error}") from error

    def probe(self, timeout: float) -> str:
        folder = folder_to_write(self.options.dir.resolve(), "dir")
        if self._offline():
            return f"offline: {folder}; `wandb sync` sends it"
        from wandb.sdk import wandb_setup

        settings = wandb_setup.singleton().settings  # from wandb's own places
        base = settings.base_url.rstrip("/")
        if settings.identity_token_file:
            return f"{folder}; {base} not tried: an identity token is used"
        return f"{_probe_server(base, settings.api_key, timeout)}; {folder}"

    def close(self) -> None:
        import wandb

        try:
            for run in self._runs.values():
                run.finish()
            self._runs.clear()
            wandb.teardown()
        except Exception as error:  # noqa: BLE001 -- all is on disk; only ends are missing
            self.context.log.warning("runs not closed: %s", error)
            self._abandon()

    def _abandon(self) -> None:
        import wandb

        self._runs.clear()
        if self._core:
            self._core.kill()  # else it may write later what is about to be written again
            self._core.wait()
        try:
            wandb.teardown(exit_code=1)
        except Exception as error:  # noqa: BLE001 -- the other side of the socket is dead
            self.context.log.debug("wandb-core is gone: %s", error)

    def _note_core(self) -> None:
        """Remember wandb-core's process, also for the one after this."""
        import wandb

        try:
            core = wandb.setup().ensure_service()._proc._process
        except AttributeError:  # another wandb, or the operator's own WANDB_SERVICE
            return
        if core is not self._core:
            self._core = core
            (self.context.state_dir / "core.pid").write_text(str(core.pid))

    def _end_orphan(self) -> None:
        """A wandb-core outlives its killed parent for a second or so, and still writes."""
        try:
            pid = int((self.context.state_dir / "core.pid").read_text())
            while b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        except (OSError, ValueError):
            pass  # there is none

    # --- one batch -----------------------------------------------------------------------

    def _apply(self, batch: Batch) -> None:
        run = self._run(batch)
        stream, end = batch.header.stream, (batch.header.seq, batch.first + len(batch))
        if end <= run.done.get(stream, (0, 0)):
            return
        if batch.type in ("param", "tag"):
            self._configure(run, batch)
        elif batch.type == "run":
            for place, record in enumerate(batch):
                if record.key == "start":
                    run.memo["exit"] = None
                    if record.value:  # without facts: it was taken for dead, and goes on
                        facts = {**batch.run._asdict(), "start": _plain(record.value)}
                        run.configure({"zmqtrack": facts}, self._init)
                elif record.key == "end":
                    run.memo["exit"] = EXIT_CODES.get(record.value, 1)
                    self._log(run, batch.part(place, place + 1))
        else:
            self._log(run, batch)
        run.done[stream] = end

    def _log(self, run: Run, batch: Batch) -> None:
        rows = []
        for names, records in _rows(batch, run.held):
            run.open(self._init)
            row = self._row(batch.type, records)
            rows.append({**row, "zmqtrack/id": f"{names[0]}@{batch.header.offset}"})
            if not ANNOUNCES.keys().isdisjoint(row):
                run.log(rows)
                rows = []
                self._announced(run, batch, records[0])
            run.held.update(names)
        if rows:
            run.log(rows)

    def _run(self, batch: Batch) -> Run:
        if batch.run not in self._runs:
            while len(self._runs) >= self.options.max_open_runs:
                self._runs.popitem(last=False)[1].finish()
            self._runs[batch.run] = Run(batch.run, self._dir, batch.header.offset)
        self._runs.move_to_end(batch.run)
        run = self._runs[batch.run]
        if batch.header.offset > run.top:  # beyond all that is in doubt
            run.held.clear()
            run.top = batch.header.offset
        return run

    def _configure(self, run: Run, batch: Batch) -> None:
        prefix = "tag." if batch.type == "tag" else ""
        values = {
            prefix + record.key if prefix else _column(record.key): _plain(record.value)
            for record in batch
        }
        labels = [r.key for r in batch if prefix and r.value == "" and len(r.key) <= MAX_TAG]
        run.configure(values, self._init, labels)

    def _row(self, data_type: str, records: list[Record]) -> dict[str, Any]:
        """The columns that hold these records; media are not bound to their run yet."""
        key, value, step, when = records[0]
        row: dict[str, Any] = {"_timestamp": when}
        if step is not None:
            row["zmqtrack/step"] = step
        if data_type == "metric":
            row.update((_column(record.key), record.value) for record in records)
        elif data_type == "run":
            row["zmqtrack/end"] = value
        elif data_type in ("artifact", "log"):
            row[f"zmqtrack/{data_type}"] = key
        else:
            media = getattr(self, f"_{data_type}")(key, value)
            row.update({"zmqtrack/artifact": key} if media is None else {_column(key): media})
        return row

    def _announced(self, run: Run, batch: Batch, record: Record) -> None:
        if batch.type == "log":
            run.wandb.write_logs(record.value)
            run.handed["output_logger"] += 1
        elif batch.type == "run":
            run.finish()
        elif isinstance(record.value, Path):
            run.artifact(record, record.value)
        else:
            with tempfile.NamedTemporaryFile() as file:
                file.write(record.value)
                file.flush()
                run.artifact(record, Path(file.name))

    def _text(self, key: str, value: str) -> Any:
        import wandb

        if not key.endswith(".html"):
            value = f"<pre>{html.escape(value, quote=False)}</pre>"
        return wandb.Html(value, inject=False, data_is_not_path=True)

    def _image(self, key: str, value: bytes) -> Any:
        import wandb
        from PIL import Image

        try:
            with Image.open(io.BytesIO(value)) as image:
                if image.format not in FORMATS:
                    return wandb.Image(image.convert("RGBA"))
                with tempfile.NamedTemporaryFile(
                    dir=self.context.state_dir, suffix=FORMATS[image.format], delete=False
                ) as file:
                    file.write(value)
            media = wandb.Image(file.name)
            media._is_tmp = True  # moved into the run's folder, not copied
            return media
        except Exception as error:  # noqa: BLE001 -- Pillow's decoders raise anything
            self.context.log.debug("image %r: %s", key, error)
            self.context.count("an image that Pillow cannot read: kept as an artifact")
            return None

    def _histogram(self, key: str, value: dict[str, Any]) -> Any:
        import wandb

        counts, edges = value["counts"], value["edges"]
        if len(counts) > MAX_BINS:
            self.context.count(f"a histogram of more than {MAX_BINS} bins: neighbours merged")
            n = math.ceil(len(counts) / MAX_BINS)
            edges = [*edges[:-1:n], edges[-1]]
            counts = [sum(counts[i : i + n]) for i in range(0, len(counts), n)]
        if any(value.get(odd) for odd in ("nan", "inf", "-inf")):
            self.context.count("NaN and infinite values of a histogram: in none of W&B's bins")
        return wandb.Histogram(np_histogram=(counts, edges))

    # --- wandb.init ----------------------------------------------------------------------

    def _init(self, run: Run) -> Any:
        import wandb

        project = self.options.project or run.key.experiment
        try:
            opened = wandb.init(
                project=re.sub(r"[/\\#?%:]", "-", project)[:MAX_PROJECT],
                entity=self.options.entity,
                mode=self._mode,
                dir=str(self._dir),
                id=run.id,
                name=run.key.site,
                group=run.key.run,
                resume="allow",
                reinit="create_new",
                config={"zmqtrack": run.key._asdict(), **run.memo["config"]},
                tags=run.memo["labels"] or None,
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    label_disable=True,
                    save_code=False,
                    silent=True,
                    use_dot_wandb=False,
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                    x_skip_transaction_log=False,
                    x_transaction_log_flush_interval=FLUSH_INTERVAL,
                ),
            )
        except wandb.errors.UsageError as error:  # no key, a wrong key, a name that W&B refuses
            raise Blocked(f"wandb: {error}") from error
        except (wandb.errors.CommError, TimeoutError) as error:
            denied = isinstance(error, wandb.errors.AuthenticationError) or re.search(
                r"\b40[13]\b|ermission", str(error)
            )
            raise (Blocked if denied else Unavailable)(f"wandb: {error}") from error
        self._note_core()
        opened.define_metric("zmqtrack/*", hidden=True, summary="none")
        # step_sync would give rows that have no step the last one.
        opened.define_metric("*", step_metric="zmqtrack/step", step_sync=False)
        return opened


def _probe_server(base: str, key: str | None, timeout: float) -> str:
    """Ask a W&B server who we are; wandb itself would try for minutes."""
    import requests
    from requests.utils import get_netrc_auth

    if key is None:
        key = (get_netrc_auth(base) or (None, None))[1]
    if key is None:
        raise Blocked(
            f"no API key for {base}",
            code="no_credentials",
            advice=f"Write the key of {base}/authorize into a file (chmod 600), and name it in the "
            "YAML: `secrets: {WANDB_API_KEY: {file: PATH}}`; or set `options: {mode: offline}`",
        )
    try:
        answer = requests.post(
            f"{base}/graphql",
            json={"query": "query { viewer { username entity } }"},
            auth=("api", key),
            timeout=timeout,
        )
        viewer = (answer.json().get("data") or {}).get("viewer") if answer.ok else None
    except (requests.JSONDecodeError, AttributeError) as error:
        raise Blocked(
            f"what answers at {base} is no W&B server",
            code="not_wandb",
            advice="Correct WANDB_BASE_URL",
        ) from error
    except requests.RequestException as error:
        raise Unavailable(
            f"no W&B server answers at {base}: {error}",
            advice="Look at the network (a proxy goes into HTTPS_PROXY), or correct WANDB_BASE_URL",
        ) from error
    if answer.status_code in (401, 403) or (answer.ok and viewer is None):
        raise Blocked(
            f"{base} refuses the API key ({answer.status_code})",
            code="tracker_credentials",
            advice=f"Get a valid one at {base}/authorize, and put it where `secrets` of the "
            "adapter names it as WANDB_API_KEY",
        )
    if viewer is None:
        raise Unavailable(f"{base} answers {answer.status_code} {answer.reason}")
    return f"{base} knows us as {viewer.get('username') or viewer.get('entity')}"


def _rows(batch: Batch, held: set[str]) -> Iterator[tuple[list[str], list[Record]]]:
    """Split what is not held into rows, each with the names of its records, in sequence."""
    names, row, keys = list[str](), list[Record](), set[str]()
    for place, record in enumerate(batch, batch.first):
        name = f"{batch.header.stream.hex()}/{batch.header.seq}/{place}"
        if row and (
            batch.type != "metric"
            or (record.step, record.time) != (row[0].step, row[0].time)
            or record.key in keys
            or name in held
        ):
            yield names, row
            names, row, keys = [], [], set()
        if name not in held:
            names.append(name)
            row.append(record)
            keys.add(record.key)
    if row:
        yield names, row


def _column(key: str) -> str:
    """A user's key as a column or config key that is neither W&B's nor ours."""
    return f"user/{key}" if _RESERVED.match(key) else key


def _plain(value: Any) -> Any:
    """What JSON, and so W&B's config, can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
