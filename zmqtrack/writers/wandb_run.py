"""``WandBWriter``: what ``wandb.init`` returns, and NVFLARE's class of that name.

Where its records go, and what becomes of each value, stands in :mod:`zmqtrack.writers.wandb`.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..arrays import describe, is_array
from ..records import Entry, as_number
from ..rows import DEFINE, Axes
from ..run import BUFFER_RECORDS, _as_step, _plain
from ..run import Run as ZMQRun
from ._common import begin, disabled_run, join, leave, lose, note
from .wandb_artifact import Artifact
from .wandb_config import Config, Summary, as_dict
from .wandb_errors import Error, UsageError
from .wandb_media import Html, Media, Table
from .wandb_real import as_ours
from .wandb_values import carried_key, friendly, is_number

__all__ = ["Metric", "WandBWriter"]

_now = time.time

#: Greatest integer up to which all are floats.
MAX_EXACT = 1 << 53

#: Ways to sum up a metric that ``define_metric`` takes.
_SUMMARIES = frozenset({"min", "max", "mean", "last", "copy", "none", "first", "best"})


class Metric:
    """What ``define_metric`` returns."""

    def __init__(self, name: str, **facts: Any) -> None:
        self.name = name
        self.step_metric: str | None = facts.get("step_metric")
        self.step_sync: bool | None = facts.get("step_sync")
        self.summary = facts.get("summary")
        self.hidden: bool | None = facts.get("hidden")
        self.goal: str | None = facts.get("goal")


class WandBWriter:
    """What ``wandb.init`` returns; also NVFLARE's ``WandBWriter``, with ``log(metrics, step)``.

    Args:
        project, group, name, id: name the run, as :mod:`zmqtrack.writers.wandb` says.
        config: logged as params, but for ``config_exclude_keys`` or all but
            ``config_include_keys``.
        tags, notes, job_type, entity: logged as tags.
        mode: ``"disabled"`` logs nothing; the others are the same here.
        dir: where :attr:`dir` is made, when it is asked for.
        sync_tensorboard, tensorboard: a ``SummaryWriter`` of zmqtrack that this process makes
            from now on, and that is given no names of zmqtrack's own, logs into this run.
        resume, reinit, allow_val_change, force: nothing to do: the same names are the same run.
        resume_from, fork_from, save_code, monitor_gym: without effect, which is said once.
        settings: ``mode`` in it is heeded.
        experiment, run, site, address: as in :func:`zmqtrack.init`.
        zmq_run: log into this run, which ``finish`` then flushes and does not finish.

    Raises:
        TypeError, ValueError: names or values that cannot be used.
        SpoolError: no folder for the spool.
    """

    #: Called with each run that ends.
    ended: list[Callable[[WandBWriter], None]] = []  # noqa: RUF012 -- one list, for all

    def __init__(
        self,
        entity: str | None = None,
        project: str | None = None,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        config: Any = None,
        config_exclude_keys: Sequence[str] | None = None,
        config_include_keys: Sequence[str] | None = None,
        allow_val_change: bool | None = None,
        group: str | None = None,
        job_type: str | None = None,
        mode: str | None = None,
        force: bool | None = None,
        reinit: bool | str | None = None,
        resume: bool | str | None = None,
        resume_from: str | None = None,
        fork_from: str | None = None,
        save_code: bool | None = None,
        tensorboard: bool | None = None,
        sync_tensorboard: bool | None = None,
        monitor_gym: bool | None = None,
        settings: Any = None,
        anonymous: Any = None,
        *,
        experiment: str | None = None,
        run: str | None = None,
        site: str | None = None,
        address: str | None = None,
        zmq_run: ZMQRun | None = None,
    ) -> None:
        environ = os.environ.get
        project = project or environ("WANDB_PROJECT") or None
        group = group or environ("WANDB_RUN_GROUP") or None
        name = name or environ("WANDB_NAME") or None
        id = id or environ("WANDB_RUN_ID") or None
        job_type = job_type or environ("WANDB_JOB_TYPE") or None
        entity = entity or environ("WANDB_ENTITY") or None
        notes = notes or environ("WANDB_NOTES") or None
        if tags is None and environ("WANDB_TAGS"):
            tags = environ("WANDB_TAGS", "").split(",")
        self.disabled = zmq_run is None and _is_disabled(mode, settings)
        self._owns_run = zmq_run is None
        if zmq_run is not None:
            self.zmq_run = zmq_run
        elif self.disabled:
            self.zmq_run = disabled_run()
        else:
            worker = f"{socket.gethostname()}-{os.getpid()}"
            self.zmq_run = begin(
                {"experiment": experiment, "run": run, "site": site},
                {
                    "experiment": project,
                    "run": group or name or id,
                    "site": (name or id or worker) if group else None,
                },
                tags={
                    "experiment": "project",
                    **({"run": "group"} if group else {"run": "name"} if name else {}),
                    **({"site": "name"} if name and group else {}),
                },
                identity=id,
                label=name,
                exact=run is not None,
                address=address,
            )
        key = self.zmq_run.key
        self.zmq_run.rows.together = True
        self.id = id or "-".join((key.run, key.site))
        self._name = name or (key.site if group else key.run)
        self.project = project or key.experiment
        self.group = group or ""
        self.entity = entity or ""
        self.job_type = job_type or ""
        self._notes = notes
        self._tags = (tags,) if isinstance(tags, str) else tuple(tags or ())
        self.mode = mode or environ("WANDB_MODE") or "online"
        self._folder = Path(dir or environ("WANDB_DIR") or ".")
        self._files: Path | None = None  # what `dir` returned
        self._saved: dict[Path, tuple[int, int]] = {}
        self.offline = self.mode == "offline"
        self.resumed = False
        self.start_time = time.time()
        self.starting_step = 0
        self.step = 0
        self.url: str | None = None
        self.sweep_id: str | None = None
        self.path = f"{self.entity}/{self.project}/{self.id}"
        self._config = Config(self.zmq_run)
        self.summary = Summary(self.zmq_run)
        self.settings = settings
        self._last = self.summary._items
        self._keys = self.zmq_run._keys
        self._append_row = self.zmq_run._append_row
        self._rows = self.zmq_run.rows
        self._begin_row = self._rows.begun.append
        self._open: float | None = None  # the time of the row that the next call may add to
        self._open_step = 0
        self._defined = Axes()
        self._axes: Axes | None = None  # the same, once a metric has an axis
        labels = {
            "entity": entity,
            "id": id if id and id not in key else None,
            "tags": ", ".join(map(str, self._tags)),
            "notes": notes,
            "job_type": job_type,
            # Where the site is only this host, W&B's page shows the run under its own name.
            "display_name": name if key.run == name and key.site == socket.gethostname() else None,
        }
        self.zmq_run.set_tags({label: value for label, value in labels.items() if value})
        for option, value in (
            ("resume_from", resume_from),
            ("fork_from", fork_from),
            ("save_code", save_code),
            ("monitor_gym", monitor_gym),
        ):
            if value:
                note(f"wandb.init({option})", "without effect")
        if sync_tensorboard or tensorboard:
            join(self.zmq_run)
        if config is not None:
            items = as_dict(config)
            if config_include_keys is not None:
                items = {k: v for k, v in items.items() if k in config_include_keys}
            elif config_exclude_keys is not None:
                items = {k: v for k, v in items.items() if k not in config_exclude_keys}
            self.config.update(items)

    # --- rows ---------------------------------------------------------------------------------

    def log(
        self,
        data: Mapping[str, Any] | None = None,
        step: int | None = None,
        commit: bool | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a row; :mod:`zmqtrack.writers.wandb` says what each value becomes.

        Args:
            data: NVFLARE's name for it is ``metrics``.
            step: None: the run's own step, which counts rows from 0.
            commit: True ends the row, so that the next one has the next step. Default: True
                without ``step``, False with it.

        Raises:
            TypeError: no dictionary with strings as keys, or a value of a type that cannot be
                logged.
        """
        if data is None:
            data = metrics
        if data.__class__ is not dict and not isinstance(data, Mapping):
            raise TypeError(f"wandb.log must be passed a dictionary, not {describe(data)}")
        row, opened = self.step, self._open
        if step is not None:
            row = _as_step("log", step) if step.__class__ is not int else step
            if row > self.step:
                self.step = row
        if opened is None:
            when = _now()
        elif row == self._open_step:
            when = opened
        else:
            self._rows.ended, self._open = opened, None
            when, opened = _now(), None
        entries: list[Entry] = []
        others: list[tuple[str, Any]] | None = None
        for key, value in data.items():
            kind = value.__class__
            if kind is float:
                number = value
            elif kind is int and -MAX_EXACT <= value <= MAX_EXACT:
                number = float(value)
            elif isinstance(key, str):
                others = [*(others or ()), (key, value)]
                continue
            else:
                raise _no_string(key)
            if key not in self._keys and not (key := self._new_key(key)):
                continue
            self._last[key] = value
            entries.append((key, number, row, when, "metric"))
        ends = step is None if commit is None else commit
        usual = others is None and self._axes is None and entries
        if usual and (opened is None or not ends):
            if ends:
                self.step += 1
            elif opened is None:
                self._open, self._open_step = when, row
                self._begin_row(when)
            run = self.zmq_run
            if len(entries) == 1 and len(run._buffer) < BUFFER_RECORDS:
                run._append(entries[0])
            else:
                self._append_row(entries)
            return
        self._log_parted(entries, others or [], row, when, bool(ends))

    def _log_parted(
        self,
        numbers: list[Entry],
        others: list[tuple[str, Any]],
        row: int,
        when: float,
        ends: bool,
    ) -> None:
        """A row that is not appended at once: the sender must know where it begins and ends."""
        if when != self._open:
            self._begin_row(when)
        try:
            self._log_others(numbers, others, row, when)
        finally:
            self._open, self._open_step = when, row
            if ends:
                self._end_row()
        if ends:
            self.step += 1

    def _log_others(
        self, numbers: list[Entry], others: list[tuple[str, Any]], row: int, when: float
    ) -> None:
        """Log what is no plain number, behind the numbers: they may be its axes."""
        media = list[tuple[str, Any]]()
        for key, value in others:
            self._sort(key, value, row, when, numbers, media)
        if numbers:
            self._append_row([self._on_axis(entry) for entry in numbers])
        for key, value in media:
            self._log_value(key, value, self._step_of(key, row), when)

    def _end_row(self) -> None:
        if self._open is not None:
            self._rows.ended, self._open = self._open, None

    def _sort(
        self,
        key: str,
        value: Any,
        row: int,
        when: float,
        numbers: list[Entry],
        media: list[tuple[str, Any]],
    ) -> None:
        """Numbers, which may be axes of the others, are logged before those."""
        value = friendly(as_ours(value))
        if isinstance(value, Mapping):
            for inner, part in value.items():
                self._sort(f"{key}.{inner}", part, row, when, numbers, media)
        elif not (name := carried_key(self.zmq_run, key)):
            pass
        elif is_number(value):
            number = as_number(name, value)
            self._new_key(name)
            self._last[name] = number
            numbers.append((name, number, row, when, "metric"))
        elif not isinstance(value, int):
            media.append((name, value))
        else:
            media.append((name, str(value)))  # no float is so great

    def _new_key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _no_string(key)
        if name := carried_key(self.zmq_run, key):
            self.zmq_run._new_key(name)
        return name

    def _log_value(self, key: str, value: Any, step: int, when: float) -> None:
        run = self.zmq_run
        if isinstance(value, str):
            run.log_text(key, value, step, when)
            self._last[key] = value
        elif isinstance(value, Media):
            value.log_to(run, key, step, when)
        elif value is None:
            lose(run, "None", f"a value of None (key {key!r})")
        elif hasattr(value, "itertuples"):
            Table(dataframe=value).log_to(run, key, step, when)
        elif hasattr(value, "to_html") and hasattr(value, "to_image"):  # plotly
            Html(value.to_html(), data_is_not_path=True).log_to(run, key, step, when)
        elif hasattr(value, "savefig") or hasattr(value, "getbands"):
            run.log_image(key, value, step, when)
        elif hasattr(value, "gca") and hasattr(value, "gcf"):  # matplotlib.pyplot
            run.log_image(key, value.gcf(), step, when)
        elif is_array(value):
            run.log_histogram(key, value, step, when)
        elif isinstance(value, (list, tuple, range)) or hasattr(value, "__next__"):
            self._log_list(key, list(value), step, when)
        else:
            raise TypeError(
                f"{key!r}: {describe(value)} cannot be logged; give a number, a string, a "
                "dictionary of those, Image, Histogram, Html or Table"
            )

    def _log_list(self, key: str, values: list[Any], step: int, when: float) -> None:
        values = [as_ours(value) for value in values]
        if len(values) == 1 and isinstance(values[0], Media):
            values[0].log_to(self.zmq_run, key, step, when)
        elif values and all(isinstance(value, Media) for value in values):
            for number, value in enumerate(values):
                value.log_to(self.zmq_run, f"{key}.{number}", step, when)
        else:
            text = json.dumps(_plain(values, fallback=str), ensure_ascii=False)
            self.zmq_run.log_text(f"{key}.json", text, step, when)

    # --- axes ---------------------------------------------------------------------------------

    def define_metric(
        self,
        name: str,
        step_metric: str | Metric | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        overwrite: bool | None = None,
        goal: str | None = None,
    ) -> Metric:
        """Define a metric, or by ``"PREFIX*"`` many.

        ``step_metric`` is its axis: from now on its step is the axis's value in the same row, or
        where the row has none, the last one. (A fraction is cut: steps are integers.) All of the
        definition reaches W&B.

        Raises:
            Error: a name, or a way to sum up, that W&B does not take either.
        """
        if not name or not isinstance(name, str):
            raise Error("define_metric() requires non-empty name argument")
        if "*" in name[:-1]:
            raise Error(f"Unhandled define_metric() arg: name (glob suffixes only): {name}")
        if isinstance(step_metric, Metric):
            step_metric = step_metric.name
        if step_metric is not None and not isinstance(step_metric, str):
            raise Error(f"Unhandled define_metric() arg: step_metric type: {describe(step_metric)}")
        ways = [way.strip().lower() for way in summary.split(",")] if summary else []
        if strange := set(ways) - _SUMMARIES:
            raise Error(f"Unhandled define_metric() arg: summary op: {strange.pop()}")
        facts = {
            "step_metric": step_metric,
            "step_sync": step_sync,
            "hidden": hidden,
            "summary": ",".join(ways) or None,
            "overwrite": overwrite,
            "goal": goal,
        }
        facts = {fact: value for fact, value in facts.items() if value is not None}
        if pattern := carried_key(self.zmq_run, f"{DEFINE}{name}"):
            self.zmq_run.set_tag(pattern, json.dumps(facts))
        self._defined.define(name, step_metric)
        self._axes = self._defined or None
        return Metric(name, **facts)

    def _step_of(self, key: str, row: int) -> int:
        axis = self._axes.of(key) if self._axes else None
        value = self._last.get(axis) if axis is not None else None
        if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 2**63:
            return int(value)
        return row

    def _on_axis(self, entry: Entry) -> Entry:
        key, value, row, when, kind = entry
        return (key, value, self._step_of(key, row or 0), when, kind) if self._axes else entry

    # --- names that may change ----------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        """Show the run under another name, where a tracker can; its place stays the same."""
        self._name = str(name)
        self.zmq_run.set_tag("display_name", name)

    @property
    def tags(self) -> tuple[str, ...]:
        return self._tags

    @tags.setter
    def tags(self, tags: Sequence[str] | None) -> None:
        self._tags = tuple(tags or ())
        self.zmq_run.set_tag("tags", ", ".join(map(str, self._tags)))

    @property
    def notes(self) -> str | None:
        return self._notes

    @notes.setter
    def notes(self, notes: str | None) -> None:
        self._notes = notes
        self.zmq_run.set_tag("notes", notes or "")

    @property
    def config(self) -> Config:
        return self._config

    @config.setter
    def config(self, items: Any) -> None:
        self._config.update(items)

    @property
    def config_static(self) -> dict[str, Any]:
        """A copy of the config."""
        return self._config.as_dict()

    @property
    def sync_dir(self) -> str:
        """The folder that :attr:`dir` is in."""
        return str(Path(self.dir).parent)

    def project_name(self) -> str:
        return self.project

    def get_project_url(self) -> str | None:
        """None: the daemon's adapter knows W&B's server, this process does not."""
        return None

    get_url = get_sweep_url = get_project_url
    project_url = sweep_url = None

    def to_html(self, height: int = 420, hidden: bool = False) -> str:
        """A line for a notebook: there is no page to show here."""
        return f"<p>zmqtrack run {self.project}/{self.name}</p>"

    def display(self, height: int = 420, hidden: bool = False) -> bool:
        return False

    def status(self) -> None:
        note("wandb.run.status", "`zmqtrack status` shows what the daemon has")

    def disable_git(self) -> None:
        """Nothing to do."""

    # --- files --------------------------------------------------------------------------------

    @property
    def dir(self) -> str:
        """A folder of this run's own; what lies in it when the run finishes is logged then."""
        if self._files is None:
            name = f"run-{time.strftime('%Y%m%d_%H%M%S')}-{secrets.token_hex(4)}"
            self._files = (self._folder / "wandb" / name / "files").absolute()
            try:
                if self.disabled:
                    raise OSError  # such a run leaves nothing behind where the user works
                self._files.mkdir(parents=True)
            except OSError:
                self._files = Path(tempfile.mkdtemp(prefix="zmqtrack-wandb-"))
            atexit.register(self._log_files)
        return str(self._files)

    def _log_files(self) -> None:
        """Log what lies in :attr:`dir`, as it is now, unless ``save`` has logged it so."""
        folder, owner = self._files, self.zmq_run._owner if self._owns_run else os.getpid()
        if folder is None or self.zmq_run.finished or owner != os.getpid():
            return
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if self._saved.get(path) == _state(path):
                continue
            try:
                self.zmq_run.log_artifact(path, path.relative_to(folder).as_posix())
            except OSError as error:
                lose(self.zmq_run, "run.dir", f"{path}: {error.strerror or error}")

    def log_artifact(
        self,
        artifact_or_path: Any,
        name: str | None = None,
        type: str | None = None,
        aliases: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
    ) -> Artifact:
        """Log files: an :class:`Artifact`, or the path of a file or folder.

        Raises:
            OSError: one cannot be read.
        """
        if isinstance(artifact_or_path, Artifact):
            artifact = artifact_or_path
        else:
            path = Path(artifact_or_path)
            artifact = Artifact(name or path.name, type or "unspecified")
            if path.is_dir():
                artifact.add_dir(path)
            else:
                artifact.files.append((path, ""))
        artifact.aliases = [*artifact.aliases, *(aliases or ())]
        artifact.tags = [*artifact.tags, *(tags or ())]
        artifact.log_to(self.zmq_run)
        return artifact

    def upsert_artifact(
        self,
        artifact_or_path: Any,
        name: str | None = None,
        type: str | None = None,
        aliases: Sequence[str] | None = None,
        distributed_id: str | None = None,
    ) -> Artifact:
        """The same as :meth:`log_artifact`."""
        return self.log_artifact(artifact_or_path, name, type, aliases)

    finish_artifact = upsert_artifact

    def log_model(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        aliases: Sequence[str] | None = None,
    ) -> Artifact:
        """Log a model's file or folder.

        Raises:
            OSError: it cannot be read.
        """
        return self.log_artifact(path, name, "model", aliases)

    def link_model(
        self,
        path: str | os.PathLike[str],
        registered_model_name: str,
        name: str | None = None,
        aliases: Sequence[str] | None = None,
    ) -> Artifact:
        """Log a model, as ``name`` or its registered name; a registry is not reached from here."""
        note("link_model", "the model is logged; it is not linked in W&B's registry")
        return self.log_artifact(path, name or registered_model_name, "model", aliases)

    def link_artifact(self, artifact: Any, target_path: str, *args: Any, **kwargs: Any) -> None:
        lose(self.zmq_run, "link_artifact", "a link in W&B's registry; log_artifact logs the files")

    def use_artifact(self, artifact_or_name: Any, *args: Any, **kwargs: Any) -> Any:
        """An :class:`Artifact` of this process is noted as a tag.

        Raises:
            UsageError: a name: what it stands for is at W&B's server, which is not reached.
        """
        if isinstance(artifact_or_name, Artifact):
            self.zmq_run.set_tag(f"use_artifact/{artifact_or_name.name}", artifact_or_name.type)
            return artifact_or_name
        raise UsageError(
            f"wandb.use_artifact({artifact_or_name!r}) needs W&B's server, which zmqtrack does "
            "not ask: fetch it with the real wandb (`import wandb`; `wandb.Api().artifact(...)."
            "download()`) or give the path of the files"
        )

    def use_model(self, name: str) -> Any:
        """Always raises UsageError, as :meth:`use_artifact` does for a name."""
        return self.use_artifact(name)

    def restore(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Always raises UsageError: files at W&B's server are not reached."""
        raise UsageError(
            f"wandb.restore({name!r}) needs W&B's server, which zmqtrack does not ask: fetch the "
            "file with the real wandb, `wandb.Api().run(...).file(...).download()`"
        )

    def save(
        self,
        glob_str: str | os.PathLike[str] | None = None,
        base_path: str | os.PathLike[str] | None = None,
        policy: str = "live",
        glob: bool = True,
    ) -> list[str]:
        """Log the files that match, as they are now; names are relative to ``base_path``."""
        import glob as globbing

        if glob_str is None:
            return []
        pattern = os.fspath(glob_str)
        found = sorted(globbing.glob(pattern)) if glob else [pattern]  # noqa: PTH207 -- any path
        if policy == "live":
            note("save", "files are logged as they are at the call, not again when they change")
        base = base_path if base_path is not None else self._files
        for path in found:
            name = os.path.relpath(path, base) if base is not None else path
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            self.zmq_run.log_artifact(path, name if inside else Path(path).name)
            if Path(path).is_file():
                self._saved[Path(path).absolute()] = _state(Path(path))
        return found

    # --- what is not carried ------------------------------------------------------------------

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        idx: int | None = None,
        log_graph: bool = False,
    ) -> None:
        """Not carried; log histograms of gradients instead."""
        lose(self.zmq_run, "watch", "gradients are not watched; log wandb.Histogram of them")

    def unwatch(self, models: Any = None) -> None:
        """Nothing is watched."""

    def alert(self, title: str, text: str, level: Any = None, wait_duration: Any = None) -> None:
        """Log a line of output in the stream ``alert``."""
        self.zmq_run.log_line(
            f"{getattr(level, 'value', level) or 'INFO'} {title}: {text}", "alert"
        )

    def write_logs(self, text: str) -> None:
        """Log a line of output."""
        if not self.zmq_run.finished:
            self.zmq_run.log_line(str(text))

    def log_code(self, *args: Any, **kwargs: Any) -> None:
        """Not carried."""
        lose(self.zmq_run, "log_code", "code is not collected; use log_artifact")

    def _label(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do; frameworks say with it who they are."""

    _telemetry_callback = _label

    def mark_preempting(self) -> None:
        """Nothing to do: a killed process loses nothing."""

    def pin_config_keys(self, keys: Sequence[str] = ()) -> None:
        note("pin_config_keys", "without effect: which keys are pinned is chosen in the tracker")

    # --- life ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until what was logged is on this machine's disk; not for the network."""
        self.zmq_run.flush()

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run: finished, or failed if ``exit_code`` is not 0; another than 1 is a tag."""
        for forget in self.ended:
            forget(self)
        leave(self.zmq_run)
        self._end_row()
        self._log_files()
        atexit.unregister(self._log_files)
        if self._owns_run:
            if exit_code not in (None, 0, 1) and not self.zmq_run.finished:
                self.zmq_run.set_tag("exit_code", exit_code)
            self.zmq_run.finish("failed" if exit_code else "finished")
        else:
            self.zmq_run.flush()

    join = finish

    def __enter__(self) -> WandBWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(0 if kind is None else 1)

    def __repr__(self) -> str:
        return f"<WandBWriter {self.project}/{self.group or self.name}/{self.name}>"


def _no_string(key: Any) -> TypeError:
    return TypeError(f"keys passed to wandb.log must be strings, not {describe(key)}")


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _is_disabled(mode: str | None, settings: Any) -> bool:
    if mode is None and settings is not None:
        mode = (
            settings.get("mode") if isinstance(settings, dict) else getattr(settings, "mode", None)
        )
    if mode is None:
        mode = os.environ.get("WANDB_MODE")
        if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
            return True
    return mode == "disabled"
