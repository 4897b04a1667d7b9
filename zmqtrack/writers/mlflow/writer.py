"""``MLflowWriter``: MLflow's fluent functions as methods, with its own stack of active runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ...facts import about_process
from ...run import Run
from .._common import also_called, begin, lose, note
from .entities import Experiment, RunData, RunInfo, RunStatus, Unread
from .entities import Run as RunEntity
from .exceptions import invalid, refused
from .files import Files, Image
from .tables import Table
from .values import as_param, as_seconds, as_step, as_value

__all__ = ["ActiveRun", "Image", "MLflowWriter", "RunOperations"]

_STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}

#: Runs of this process that have ended, of which ``get_run`` still knows.
MAX_ENDED = 1000

#: A filter of ``search_experiments`` that asks for one experiment by its name.
_ONE_NAME = re.compile(r"""\s*(?:attributes?\.)?name\s*=\s*(['"])(.+)\1\s*""")
_READ_IT = (
    "read that where the tracker is, with mlflow.MlflowClient(tracking_uri=…) of the package mlflow"
)


class RunOperations:
    """What an asynchronous call returns; there is nothing to wait for."""

    def wait(self) -> None:
        """Returns at once: the call has recorded its values."""


class ActiveRun(RunEntity):
    """What ``start_run`` returns: ``info``, ``data``, and a context manager.

    Leaving the context ends the run: FINISHED, or FAILED after an exception. As in MLflow,
    ``data`` is what the run began with.
    """

    def __init__(self, writer: MLflowWriter, run: Run) -> None:
        self.zmq_run = run
        self._writer = writer
        facts = about_process()
        user = facts.get("user", "unknown")
        uri = "zmqtrack:/" + "/".join(run.key)
        super().__init__(
            RunInfo(run.key.run, run.key.experiment, user=user, artifact_uri=uri),
            RunData({}, {}, {"mlflow.runName": run.key.run, "mlflow.user": user}),
        )
        #: What this process has logged to it, as text.
        self.params: dict[str, str] = {}
        self.tags = self.data.tags.copy()
        #: The tables that it has logged, by path: more of one is appended to it.
        self.tables: dict[str, Table] = {}

    def log_params(self, params: Mapping[str, Any]) -> None:
        for key, value in params.items():
            self._record(self.zmq_run.log_param, key, as_param(value), self.params)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self._record(self.zmq_run.set_tag, key, value, self.tags)

    def _record(
        self, log: Callable[[str, Any], None], key: str, value: Any, known: dict[str, str]
    ) -> None:
        try:
            log(key, value)
        except (TypeError, ValueError) as error:
            raise invalid(error, type(error)) from None
        known[key] = str(value)

    def now(self) -> RunEntity:
        """The run as ``get_run`` gives it: with all that is known here."""
        metrics = Unread(f"the metrics of run {self.info.run_id!r}", f"they are sent; {_READ_IT}")
        return RunEntity(self.info, RunData(metrics, self.params, self.tags))

    @classmethod
    def from_proto(cls, proto: Any) -> ActiveRun:
        """Always raises MlflowException."""
        raise refused("ActiveRun.from_proto", _READ_IT)

    @classmethod
    def from_dictionary(cls, the_dict: Mapping[str, Any]) -> ActiveRun:
        """Always raises MlflowException."""
        raise refused("ActiveRun.from_dictionary", _READ_IT)

    def to_proto(self) -> Any:
        """Always raises MlflowException."""
        raise refused("ActiveRun.to_proto", f"to_dictionary() has what is known here; {_READ_IT}")

    def __enter__(self) -> ActiveRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer._end(self, "FINISHED" if kind is None else "FAILED")


class MLflowWriter(Files):
    """MLflow's fluent functions as methods, with a stack of active runs of its own.

    Args:
        experiment, run, site, address: as in :func:`zmqtrack.init`; ``run`` names the first run,
            further ones are ``RUN.RUN_NAME``.
        zmq_run: log into this run, which ``end_run`` then flushes and does not finish.
    """

    def __init__(
        self,
        *,
        experiment: str | None = None,
        run: str | None = None,
        site: str | None = None,
        address: str | None = None,
        zmq_run: Run | None = None,
    ) -> None:
        self._own = {"experiment": experiment, "run": run, "site": site}
        self._address = address
        self._lent = zmq_run
        self._experiment: str | None = None
        self._stack: list[ActiveRun] = []
        self._others: dict[str, ActiveRun] = {}  # logged to by run_id while not active
        self._ended: dict[str, ActiveRun] = {}
        self._lost: list[str] = []  # what could not be carried while there was no run to count it
        self._last: ActiveRun | None = None
        #: Where metrics go: the innermost active run.
        self._log_metric: Callable[..., None] = self._begin_and_log_metric
        if zmq_run is not None:
            self._activate(ActiveRun(self, zmq_run))

    # --- experiments and runs -----------------------------------------------------------------

    def set_experiment(
        self,
        experiment_name: str | None = None,
        experiment_id: str | None = None,
        trace_location: Any = None,
    ) -> Experiment:
        """Name the experiment of the runs that begin from now on.

        Raises:
            MlflowException: not exactly one of name and id was given, or it is no name.
        """
        if (experiment_name is None) == (experiment_id is None):
            raise invalid("give either experiment_name or experiment_id")
        name = experiment_name if experiment_name is not None else experiment_id
        if not isinstance(name, str) or not name.strip():
            raise invalid(f"an experiment's name must be text, not {name!r:.60}", TypeError)
        self._experiment = name
        return Experiment(name)

    def start_run(
        self,
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
        tags: Mapping[str, Any] | None = None,
        description: str | None = None,
        log_system_metrics: bool | None = None,
    ) -> ActiveRun:
        """Begin a run, or with ``run_id`` go on with one; see the module for its name.

        Args:
            run_id: default: ``MLFLOW_RUN_ID`` of the environment; it is taken once, as in MLflow.
            description: is logged as the tag ``description``.

        Raises:
            RuntimeError: a run is active already and ``nested`` is not set.
        """
        parent = self._stack[-1] if self._stack else None
        if parent is not None and not nested and parent.zmq_run is not self._lent:
            raise RuntimeError(
                f"run {parent.info.run_name!r} is already active. To start a new run, first end "
                "it with end_run(); to start a nested run, call start_run with nested=True"
            )
        if log_system_metrics:
            note("start_run(log_system_metrics)", "system metrics are not collected")
        if parent is not None and not nested:
            active = parent  # the run that the writer was given: there is no other to begin
            if run_name is not None:
                active.zmq_run.set_tag("run_name", run_name)
        elif run_id := run_id or os.environ.pop("MLFLOW_RUN_ID", None):
            known = self._others.pop(run_id) if run_id in self._others else self._open(run_id)
            active = self._activate(known)
        else:
            active = self._activate(self._begin(experiment_id, run_name))
            above = parent_run_id or (parent.info.run_id if parent is not None else None)
            if above is not None:
                active.zmq_run.set_tag("parent_run", above)
        if description is not None:
            active.zmq_run.set_tag("description", description)
            active.data.tags["mlflow.note.content"] = description
        if tags:
            active.set_tags(tags)
            active.data.tags.update({key: str(value) for key, value in tags.items()})
        return active

    def end_run(self, status: str | int = "FINISHED") -> None:
        """End the innermost active run: FINISHED, FAILED or KILLED; without one do nothing.

        Raises:
            MlflowException: another status.
        """
        if self._stack:
            self._end(self._stack[-1], status)

    def active_run(self) -> ActiveRun | None:
        """The innermost active run, or None."""
        return self._stack[-1] if self._stack else None

    def last_active_run(self) -> ActiveRun | None:
        """The active run, else the one that was ended last."""
        return self._stack[-1] if self._stack else self._last

    def get_run(self, run_id: str) -> RunEntity:
        """A run of this process: its ``info``, and the params and tags that it has logged.

        Raises:
            MlflowException: it is another's. (Metrics raise it when they are read.)
        """
        known = [*self._stack, *self._others.values(), *self._ended.values()]
        for active in known:
            if active.info.run_id == run_id:
                return active.now()
        raise refused(f"get_run({run_id!r}), of a run that this process has not begun,", _READ_IT)

    def get_parent_run(self, run_id: str) -> RunEntity | None:
        """The run in which a nested one was begun, or None."""
        parent = self.get_run(run_id).data.tags.get("parent_run")
        return None if parent is None else self.get_run(parent)

    def get_experiment(self, experiment_id: str) -> Experiment:
        """The experiment of that name, whether or not a tracker has it yet."""
        return Experiment(experiment_id)

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        """The same."""
        return Experiment(name)

    def search_experiments(
        self,
        view_type: int = 1,
        max_results: int | None = None,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
    ) -> list[Experiment]:
        """The experiment of one name, for ``filter_string="name = 'NAME'"``, as above.

        Raises:
            MlflowException: any other question, which only a tracker can answer.
        """
        asked = _ONE_NAME.fullmatch(str(filter_string))
        if asked is None:
            raise refused("search_experiments", _READ_IT)
        return [Experiment(asked[2])]

    def get_artifact_uri(self, artifact_path: str | None = None) -> str:
        """A name of what the active run logged: ``zmqtrack:/EXPERIMENT/RUN/SITE/PATH``.

        It can be shown, not opened: the file is in the trackers.
        """
        uri = str(self._target().info.artifact_uri)
        return f"{uri}/{artifact_path}" if artifact_path else uri

    # --- values -------------------------------------------------------------------------------

    def log_metric(
        self,
        key: str,
        value: Any,
        step: int | None = None,
        synchronous: bool | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> RunOperations | None:
        """Log one number; ``timestamp`` in milliseconds since the epoch.

        Raises:
            MlflowException: no number (see :func:`.values.as_value`) and no text of one, a key that
                is no name, or a step that is no number.
        """
        when = None if timestamp is None else as_seconds(timestamp)
        try:
            if run_id is None:
                self._log_metric(key, value, step, when)
            else:
                self._run(run_id).log_metric(key, value, step, when)
        except (TypeError, ValueError):  # what only MLflow takes, or what it refuses too
            self._log_numbers(self._run(run_id), {key: value}, step, when)
        if model_id is not None or dataset is not None:
            self._links(model_id, dataset)
        return RunOperations() if synchronous is False else None

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> RunOperations | None:
        """Log several numbers with one step and time; all of them or, on an error, none."""
        run, when = self._run(run_id), None if timestamp is None else as_seconds(timestamp)
        try:
            run.log_metrics(metrics, step, when)
        except (TypeError, ValueError):
            self._log_numbers(run, metrics, step, when)
        if model_id is not None or dataset is not None:
            self._links(model_id, dataset)
        return RunOperations() if synchronous is False else None

    def log_param(self, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Log a parameter; returns ``value`` as MLflow does."""
        self._target().log_params({key: value})
        return RunOperations() if synchronous is False else value

    @also_called(values="params")
    def log_params(
        self,
        params: Mapping[str, Any],
        synchronous: bool | None = None,
        run_id: str | None = None,
    ) -> RunOperations | None:
        """Log several parameters (NVFLARE's name for them is ``values``)."""
        self._target(run_id).log_params(params)
        return RunOperations() if synchronous is False else None

    @also_called(tag="value")
    def set_tag(
        self, key: str, value: Any, synchronous: bool | None = None
    ) -> RunOperations | None:
        """Set a tag (NVFLARE's name for the value is ``tag``)."""
        self._target().set_tags({key: value})
        return RunOperations() if synchronous is False else None

    def set_tags(
        self, tags: Mapping[str, Any], synchronous: bool | None = None
    ) -> RunOperations | None:
        """Set several tags."""
        self._target().set_tags(tags)
        return RunOperations() if synchronous is False else None

    # --- accepted -----------------------------------------------------------------------------

    def set_tracking_uri(self, uri: str | os.PathLike[str]) -> None:
        """Without effect: trackers are named where the daemon runs."""
        note("set_tracking_uri", "without effect: trackers are named in the daemon's YAML")

    def set_registry_uri(self, uri: str | os.PathLike[str]) -> None:
        """Without effect: nothing is registered."""
        note("set_registry_uri", "without effect: nothing is registered")

    def get_registry_uri(self) -> str:
        """The same as the tracking URI, as in MLflow where nothing else was set."""
        return self.get_tracking_uri()

    def is_tracking_uri_set(self) -> bool:
        """True: where to is known from the beginning."""
        return True

    def get_tracking_uri(self) -> str:
        """The daemon's address as far as it is known."""
        active = self.active_run()
        known = active.zmq_run.address if active is not None else self._address
        return known or os.environ.get("ZMQTRACK_ADDRESS", "")

    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: Mapping[str, Any] | None = None,
        trace_location: Any = None,
    ) -> str:
        """Returns the experiment's id, its name; trackers make it with the first run in it."""
        if tags:
            note("create_experiment(tags)", "tags of experiments are not carried")
        return name

    def flush_async_logging(self) -> None:
        """Wait until what was logged is on this machine's disk."""
        self.flush()

    def flush(self) -> None:
        """The same; does not wait for the network."""
        for active in self._stack:
            active.zmq_run.flush()
        for active in self._others.values():
            active.zmq_run.flush()

    def lose(self, what: str) -> None:
        """Count a call that is not carried with the active run, else with the next one."""
        if self._stack:
            lose(self._stack[-1].zmq_run, what)
        else:
            note(what, f"not carried; such calls are counted as 'unsupported_{what}'")
            self._lost.append(what)

    # --- inside -------------------------------------------------------------------------------

    def _target(self, run_id: str | None = None) -> ActiveRun:
        """The run to log to: by its id, else the innermost active one, else a new one."""
        if run_id is None:
            return self._stack[-1] if self._stack else self.start_run()
        for active in self._stack:
            if active.info.run_id == run_id:
                return active
        if run_id not in self._others:
            self._others[run_id] = self._open(run_id)
        return self._others[run_id]

    def _run(self, run_id: str | None = None) -> Run:
        if run_id is None and self._stack:  # nearly always
            return self._stack[-1].zmq_run
        return self._target(run_id).zmq_run

    def _begin_and_log_metric(
        self, key: str, value: Any, step: int | None, time: float | None
    ) -> None:
        self._run().log_metric(key, value, step, time)

    def _log_numbers(
        self, run: Run, metrics: Mapping[str, Any], step: Any, time: float | None
    ) -> None:
        numbers = {key: as_value(key, value) for key, value in metrics.items()}
        try:
            run.log_metrics(numbers, as_step("/".join(map(str, numbers)), step), time)
        except (TypeError, ValueError) as error:
            raise invalid(error, type(error)) from None

    def _begin(self, experiment_id: str | None, run_name: str | None) -> ActiveRun:
        if run_name is None:
            run_name = os.environ.get("MLFLOW_RUN_NAME") or None
        if experiment_id == "0":  # MLflow's own for the experiment that nobody named
            experiment_id = None
        experiment = (
            experiment_id
            or self._experiment
            or os.environ.get("MLFLOW_EXPERIMENT_NAME")
            or os.environ.get("MLFLOW_EXPERIMENT_ID")
            or None
        )
        run = begin(
            self._own,
            {"experiment": experiment, "run": run_name},
            tags={"experiment": "experiment_name", "run": "run_name"},
            label=run_name,
            address=self._address,
        )
        return ActiveRun(self, run)

    def _open(self, run_id: str) -> ActiveRun:
        """Go on with the run of this name: that of this process, if there was one."""
        before = self._ended.pop(run_id, None)
        own = {**self._own, "run": run_id, **(before.zmq_run.key._asdict() if before else {})}
        tools = {"experiment": self._experiment}
        run = begin(own, tools, tags={}, exact=True, address=self._address)
        active = ActiveRun(self, run)
        if before is not None:
            active.params, active.tags, active.tables = before.params, before.tags, before.tables
        return active

    def _activate(self, active: ActiveRun) -> ActiveRun:
        self._stack.append(active)
        self._log_metric = active.zmq_run.log_metric
        while self._lost:
            lose(active.zmq_run, self._lost.pop(0))
        return active

    def _end(self, active: ActiveRun, status: str | int) -> None:
        word = RunStatus.to_string(status) if isinstance(status, int) else status
        RunStatus.from_string(word)
        if active.zmq_run is self._lent:
            active.zmq_run.flush()
            return
        if active in self._stack:
            self._stack.remove(active)
            self._last = active
            self._log_metric = (
                self._stack[-1].zmq_run.log_metric if self._stack else self._begin_and_log_metric
            )
        elif self._others.pop(active.info.run_id, None) is None:
            return
        active.info.status = word
        active.info.end_time = int(time.time() * 1000)
        self._ended[active.info.run_id] = active
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        if word not in _STATUSES:
            note("end_run", f"a run does not end as {word}: it ends as FINISHED")
        active.zmq_run.finish(_STATUSES.get(word, "finished"))

    @staticmethod
    def _operations(synchronous: bool | None) -> RunOperations | None:
        return RunOperations() if synchronous is False else None

    def _links(self, model_id: str | None, dataset: Any) -> None:
        if model_id is not None:
            lose(self._run(), "model_id", "a metric's link to a model; the metric is logged")
        if dataset is not None:
            lose(self._run(), "dataset", "a metric's link to a dataset; the metric is logged")
