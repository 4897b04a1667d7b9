"""Runs as MLflow has them: found by a tag, made, named, brought together under a parent, ended.

A run is found by the tag ``zmqtrack.id``, which is made of its run key. A job (experiment, run)
that one site logs to is one run, called as the run. When a second site comes, the job gets a
parent, called so too; the sites' runs become its children and are called RUN/SITE. Each step of
that can be done again, so a crash between two of them does no harm: what is missing is done when
the delivery comes again. Other adapters, for other sites, may write to the same MLflow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmqtrack.records import RunKey

from .base import Blocked, Context
from .mlflow_store import local_folder, sqlite_path
from .patterns import filled

if TYPE_CHECKING:
    from .mlflow import MLflowOptions

__all__ = ["ENDED", "RUNNING", "Run", "Runs"]

#: Runs whose id is remembered; others are looked up again.
MAX_RUNS = 1000
#: Runs in one answer of MLflow's.
PAGE = 1000

RUNNING = "RUNNING"
#: The worst first. MLflow knows none for "it is not known": a tag says so.
ENDED = {"failed": "FAILED", "killed": "KILLED", "left": "KILLED", "finished": "FINISHED"}

_PARENT = "mlflow.parentRunId"
#: Logged by a writer: the run, of the same site, in which this one was begun.
NESTED = "parent_run"


@dataclass
class Run:
    """A run as MLflow has it. ``end`` is its end time in ms, also when it was reopened."""

    id: str
    experiment: str
    status: str
    end: int
    #: Where its artifacts are, if that is a folder that we write to ourselves.
    folder: Path | None = None


class Runs:
    """All runs of one MLflow that we write to."""

    def __init__(self, options: MLflowOptions, context: Context) -> None:
        self._options = options
        self._context = context
        self._known: OrderedDict[RunKey, Run] = OrderedDict()
        self.client: Any = None

    def __contains__(self, key: RunKey) -> bool:
        return key in self._known

    def forget(self) -> None:
        """Look all up again: something was removed in MLflow."""
        self._known.clear()

    def get(self, key: RunKey, ms: int) -> Run:
        """The run of that key: remembered, found by its tag, or made with this start time."""
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        experiment, found = self._find(key, ms)
        if not found:
            self._make(key, experiment, ms)
            experiment, found = self._find(key, ms)
        first = self._take(key, found)
        run = self._known[key] = Run(
            first.info.run_id,
            str(first.info.experiment_id),
            first.info.status,
            first.info.end_time or 0,
            local_folder(first.info.artifact_uri),
        )
        if len(self._known) > MAX_RUNS:
            self._known.popitem(last=False)
        return run

    def nested_in(self, key: RunKey, name: str, ms: int) -> str | None:
        """The id of the site's run of that name, if it is there, to be the parent of ``key``."""
        outer = key._replace(run=name)
        if outer == key:
            return None
        return self.get(outer, ms).id if outer in self or self._find(outer, ms)[1] else None

    def set_status(self, run: Run, status: str, end: int) -> None:
        if status == RUNNING:
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status, end)
        run.status, run.end = status, end

    # --- jobs ---------------------------------------------------------------------------------

    def settle(self, key: RunKey, *, joined: bool) -> None:
        """After ``key`` joined its job, or its status changed: let the job's parent follow.

        The parent runs while a site does, and ends as the worst of them.
        """
        job, run = _job(key), self.get(key, 0)
        if joined:
            has_parent = self._bring_together(job, run.experiment)
        else:
            tags = self.client.get_run(run.id).data.tags
            has_parent = _PARENT in tags and NESTED not in tags
        if has_parent:
            self._settle_parent(self.get(job, 0))

    def _bring_together(self, job: RunKey, experiment: str) -> bool:
        """Give the job's sites a parent, if there are several; False if there is none."""
        query = f"tags.`zmqtrack.job` = '{_id(job)}'"
        sites = [
            run
            for run in self._search(experiment, query, most=None)
            if "zmqtrack.site" in run.data.tags and NESTED not in run.data.tags
        ]
        alone = [run for run in sites if _PARENT not in run.data.tags]
        if len({run.data.tags["zmqtrack.site"] for run in sites}) < 2:
            return len(alone) < len(sites)
        parent = self.get(job, min(run.info.start_time for run in sites))
        for run in alone:
            key = job._replace(site=run.data.tags["zmqtrack.site"])
            began = run.info.start_time
            # The name first: the tag tells that both are done. Nor is a person's name replaced.
            if run.info.run_name == self._name(key, began, alone=True):
                self.client.update_run(run.info.run_id, name=self._name(key, began, alone=False))
            self.client.set_tag(run.info.run_id, _PARENT, parent.id)
        return True

    def _settle_parent(self, parent: Run) -> None:
        children = f"tags.`{_PARENT}` = '{parent.id}'"

        def latest(query: str) -> Any:
            return next(iter(self._search(parent.experiment, query, most=1)), None)

        status, end = RUNNING, parent.end
        having = f"{children} and attributes.status = '{{}}'".format
        if not latest(having(RUNNING)) and (last := latest(children)):
            status = next((s for s in ENDED.values() if latest(having(s))), last.info.status)
            end = last.info.end_time or 0
        if (status, end) != (parent.status, parent.end):
            self.set_status(parent, status, end)

    # --- one run ------------------------------------------------------------------------------

    def _find(self, key: RunKey, ms: int) -> tuple[str, list[Any]]:
        """The experiment of that run, and what there is of it, removed or not."""
        from mlflow.entities import ViewType

        query = f"tags.`zmqtrack.id` = '{_id(key)}'"
        pattern = self._options.experiment
        if "{date" in pattern:  # it may have begun on another day
            for experiment in self._dated(pattern, key):
                if found := self._search(experiment, query, ViewType.ALL):
                    return experiment, found
        experiment = self._experiment(filled(pattern, key, ms / 1000))
        return experiment, self._search(experiment, query, ViewType.ALL)

    def _dated(self, pattern: str, key: RunKey) -> list[str]:
        """The experiments that the pattern could have meant for this run."""
        name = re.escape(filled(pattern, key, 0)).replace(re.escape("1970-01-01"), ".*")
        return [
            str(there.experiment_id)
            for there in self._pages(self.client.search_experiments, None)
            if re.fullmatch(name, there.name, re.DOTALL)
        ]

    def _make(self, key: RunKey, experiment: str, ms: int) -> None:
        given = self._options
        tags = {name: filled(value, key, ms / 1000) for name, value in given.run_tags.items()}
        if given.description is not None:
            tags["mlflow.note.content"] = filled(given.description, key, ms / 1000)
        tags |= {
            "zmqtrack.id": _id(key),
            "zmqtrack.job": _id(_job(key)),
            "zmqtrack.run": key.run,
        }
        if key.site:
            tags["zmqtrack.site"] = key.site
        self.client.create_run(experiment, ms, tags, self._name(key, ms, alone=True))

    def _take(self, key: RunKey, found: list[Any]) -> Any:
        """The one of several that is ours.

        A create_run that timed out may still have been done, and even late: the run that we took
        is marked, and what is not marked beside it is empty.
        """
        found.sort(key=lambda run: ("zmqtrack.adapter" not in run.data.tags, run.info.run_id))
        first = found[0]
        for twin in found[1:]:
            if twin.info.lifecycle_stage == "active" and "zmqtrack.adapter" not in twin.data.tags:
                self.client.delete_run(twin.info.run_id)
        if first.info.lifecycle_stage != "active":
            raise Blocked(
                f"{_describe(key)} is deleted in MLflow: restore it (mlflow runs restore "
                f"--run-id {first.info.run_id}) or remove it for good (mlflow gc)"
            )
        if "zmqtrack.job" not in first.data.tags:  # of a version that made a parent for each
            self.client.set_tag(first.info.run_id, "zmqtrack.job", _id(_job(key)))
        if "zmqtrack.adapter" not in first.data.tags:
            self.client.set_tag(first.info.run_id, "zmqtrack.adapter", self._context.name)
        return first

    def _name(self, key: RunKey, ms: int, *, alone: bool) -> str:
        given = self._options
        return filled(given.run_name if alone else given.site_run_name, key, ms / 1000)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        tags = dict(self._options.experiment_tags)
        if self._options.experiment_description is not None:
            tags["mlflow.note.content"] = self._options.experiment_description
        if found is None:
            location = self._options.artifact_location
            database = sqlite_path(self._options.tracking_uri)
            if location is None and database is not None:
                location = str(database.parent / "mlflow-artifacts")
            return str(self.client.create_experiment(name, location, tags))
        if found.lifecycle_stage != "active":
            raise Blocked(
                f"experiment {name!r} is deleted in MLflow: restore it (mlflow experiments "
                f"restore -x {found.experiment_id}) or remove it for good (mlflow gc)"
            )
        for tag in tags.items() - found.tags.items():
            self.client.set_experiment_tag(found.experiment_id, *tag)
        return str(found.experiment_id)

    def _search(
        self, experiment: str, query: str, view: int = 1, most: int | None = 100
    ) -> list[Any]:
        """Runs that have the tags, the last to end first; ``most`` None: all."""
        order = ["attributes.end_time DESC"]
        return self._pages(self.client.search_runs, most, [experiment], query, view, order=order)

    def _pages(self, search: Any, most: int | None, *query: Any, order: Any = None) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = search(*query, max_results=most or PAGE, page_token=token, order_by=order)
            found += page
            token = page.token
            if most or not token:
                return found


def _job(key: RunKey) -> RunKey:
    return key._replace(site="")  # no site is called that


def _id(key: RunKey) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _describe(key: RunKey) -> str:
    site = f", site {key.site!r}" if key.site else ""
    return f"run {key.run!r}{site} of experiment {key.experiment!r}"
