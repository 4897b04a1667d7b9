"""How runs of one and of several sites stand in MLflow: names, parents, tags, descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("mlflow")

from zmqtrack.adapters.base import Unavailable
from zmqtrack.adapters.mlflow import MLflowOptions

from test_adapter_mlflow import (  # noqa: F401 -- fixtures among them
    Site,
    T,
    fail,
    folder,
    local,
    metrics,
    server_uri,
    site,
    sqlite_uri,
    uri,
)
from zmqtrack.records import Record

pytestmark = pytest.mark.timeout(300)


def beside(one: Site, name: str, run: str = "run-1") -> Site:
    """Another site that logs through the same adapter."""
    other = Site(one.uri, one.folder, name, run)
    other.adapter = one.adapter
    return other


def named(one: Site) -> list[str]:
    """All that MLflow's page would show, removed runs too."""
    runs = one.client.search_runs([one.experiment], run_view_type=3)
    return sorted(run.info.run_name for run in runs)


def start(one: Site, at: float = T, **facts: Any) -> None:
    one.log("run", Record("start", facts, None, at))


def end(one: Site, status: str, at: float) -> None:
    one.log("run", Record("end", status, None, at))


# --- one site, and several ----------------------------------------------------------------


def test_a_lone_site_is_one_run_with_the_runs_name(site: Site) -> None:  # noqa: F811
    start(site)
    site.log("metric", *metrics([0.5]))
    end(site, "finished", T + 1)
    assert named(site) == ["run-1"]
    assert "mlflow.parentRunId" not in site.run.data.tags


def test_a_second_site_brings_a_parent_and_both_become_its_children(
    site: Site,  # noqa: F811
) -> None:
    start(site, T + 3)
    run_id = site.run.info.run_id
    other = beside(site, "site-2")
    start(other, T)
    assert named(site) == ["run-1", "run-1/site-1", "run-1/site-2"]
    assert site.run.info.run_id == run_id, "it is the same run, called otherwise"
    for one in (site, other):
        assert one.run.data.tags["mlflow.parentRunId"] == site.parent.info.run_id
    assert site.parent.info.start_time == 1_700_000_000_125, "as its first site"
    third = beside(site, "site-3")
    third.log("metric", *metrics([1.0]))
    assert named(site) == ["run-1", "run-1/site-1", "run-1/site-2", "run-1/site-3"]
    another_job = beside(site, "site-1", "run-2")
    start(another_job)
    assert len(site.runs(parents=True)) == 1
    assert another_job.run.info.run_name == "run-2"


def test_the_parent_ends_with_the_last_site_and_as_the_worst(site: Site) -> None:  # noqa: F811
    other = beside(site, "site-2")
    start(site)
    end(site, "failed", T + 9)
    start(other)
    assert (site.run.info.status, site.parent.info.status) == ("FAILED", "RUNNING")
    end(other, "finished", T + 5)
    assert site.parent.info.status == "FAILED"
    assert site.parent.info.end_time == 1_700_000_009_125
    third = Site(site.uri, site.folder, "site-3")
    third.log("metric", *metrics([1.0]))
    assert site.parent.info.status == "RUNNING"


def test_a_parent_that_missed_the_end_in_a_crash_gets_it(
    local: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = beside(local, "site-2")
    start(local)
    end(other, "finished", T)
    last = local.batch("run", Record("end", "killed", None, T + 1))
    monkeypatch.setattr(local.adapter._runs, "settle", fail)
    with pytest.raises(Unavailable):
        local.adapter.deliver([last])
    local.restart()
    local.adapter.deliver([last])
    assert (local.run.info.status, local.parent.info.status) == ("KILLED", "KILLED")


class Crashes:
    """A client that dies before or after its Nth change."""

    CHANGES = ("create_run", "update_run", "set_tag", "log_batch", "set_terminated")

    def __init__(self, client: Any, at: int, after: bool) -> None:
        self._client, self._left, self._after = client, at, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)
        if name not in self.CHANGES:
            return call

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise KeyboardInterrupt
            answer = call(*args, **kwargs)
            if self._left == 0:
                raise KeyboardInterrupt
            return answer

        return counted


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_change_leaves_one_parent_and_one_run_for_each_site(
    site: Site,  # noqa: F811
    after: bool,
) -> None:
    """The first site is delivered; the second one's first delivery dies at each of its changes."""
    points = 0
    for at in range(1, 30):
        first = Site(site.uri, site.folder, "site-1", f"run {at}")
        start(first)
        second = Site(site.uri, site.folder, "site-2", f"run {at}")
        batches = [
            second.batch("run", Record("start", {}, None, T + 1)),
            second.batch("metric", *metrics([0.5])),
        ]
        client = second.adapter._client
        second.adapter._client = second.adapter._runs.client = Crashes(client, at, after)
        try:
            second.adapter.deliver(batches)
        except KeyboardInterrupt:
            points += 1
        else:
            break
        second.restart()
        second.adapter.deliver(batches)
        name = f"run {at}"
        of_job = [run for run in named(first) if run.split("/")[0] == name]
        assert of_job == [name, f"{name}/site-1", f"{name}/site-2"], f"died at change {at}"
        for one in (first, second):
            assert one.run.data.tags["mlflow.parentRunId"] == one.parent.info.run_id
        assert len(second.history("loss")) == 1
    assert points >= 9, "create, mark, name, tag: for each of three runs"


def test_adapters_of_different_sites_bring_their_runs_together(site: Site) -> None:  # noqa: F811
    start(site)
    other = Site(site.uri, site.folder / "other", "site-2")  # another daemon's
    other.key = site.key._replace(site="site-2")
    start(other)
    assert named(site) == ["run-1", "run-1/site-1", "run-1/site-2"]
    end(other, "finished", T + 1)
    assert site.parent.info.status == "RUNNING"
    end(site, "finished", T + 2)
    assert site.parent.info.status == "FINISHED"


def test_a_name_that_a_person_gave_is_kept(local: Site) -> None:  # noqa: F811
    start(local)
    local.client.update_run(local.run.info.run_id, name="my favourite")
    start(beside(local, "site-2"))
    assert named(local) == ["my favourite", "run-1", "run-1/site-2"]


def test_runs_below_a_parent_of_an_older_version_stay_where_they_are(
    local: Site,  # noqa: F811
) -> None:
    from zmqtrack.adapters.mlflow_runs import _id

    experiment = local.client.create_experiment(local.key.experiment)
    job = local.key._replace(site="")
    old = local.client.create_run(
        experiment, tags={"zmqtrack.id": _id(job), "zmqtrack.run": "run-1"}, run_name="run-1"
    )
    tags = {
        "zmqtrack.id": _id(local.key),
        "zmqtrack.run": "run-1",
        "zmqtrack.site": "site-1",
        "mlflow.parentRunId": old.info.run_id,
    }
    local.client.create_run(experiment, tags=tags, run_name="site-1")
    local.log("metric", *metrics([1.0]))
    start(beside(local, "site-2"))
    assert named(local) == ["run-1", "run-1/site-2", "site-1"]
    parents = {run.data.tags["mlflow.parentRunId"] for run in local.runs()}
    assert parents == {old.info.run_id}


def test_a_nested_run_is_below_the_one_in_which_it_was_begun(local: Site) -> None:  # noqa: F811
    start(local)
    inner = beside(local, "site-1", "run-1.inner")
    start(inner)
    inner.log("tag", Record("parent_run", "run-1", None, T))
    end(inner, "finished", T + 1)
    assert named(local) == ["run-1", "run-1.inner"]
    assert inner.run.data.tags["mlflow.parentRunId"] == local.run.info.run_id
    assert local.run.info.status == "RUNNING", "it is the user's run, no parent of ours"


# --- what MLflow's page shows of a run ----------------------------------------------------


def test_user_source_and_commit_are_mlflows_own_tags(site: Site) -> None:  # noqa: F811
    start(site, user="ada", script="train.py", source="LOCAL", commit="f" * 40, pid=7)
    tags = site.run.data.tags
    assert tags["mlflow.user"] == "ada"
    assert tags["mlflow.source.name"] == "train.py"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.git.commit"] == "f" * 40
    assert tags["zmqtrack.pid"] == "7"


@pytest.mark.parametrize("key", ["description", "notes"])
def test_a_description_is_shown_as_one(local: Site, key: str) -> None:  # noqa: F811
    local.log("tag", Record(key, "what it is", None, T))
    assert local.run.data.tags["mlflow.note.content"] == "what it is"
    assert local.run.data.tags[key] == "what it is"


# --- options ------------------------------------------------------------------------------


def test_names_tags_and_descriptions_are_patterns_of_the_run_and_its_date(
    local: Site,  # noqa: F811
) -> None:
    options: dict[str, Any] = {
        "experiment": "fl/{experiment}",
        "run_name": "{date} {run}",
        "site_run_name": "{site} of {run}",
        "experiment_tags": {"team": "vision"},
        "experiment_description": "All of it",
        "run_tags": {"began": "{date}", "where": "{site}"},
        "description": "Run *{run}* at {site}",
    }
    local.restart(**options)
    start(local)
    plain = local.key
    local.key = plain._replace(experiment=f"fl/{plain.experiment}")
    assert named(local) == ["2023-11-14 run-1"]
    tags = local.run.data.tags
    assert (tags["began"], tags["where"]) == ("2023-11-14", "site-1")
    assert tags["mlflow.note.content"] == "Run *run-1* at site-1"
    experiment = local.client.get_experiment_by_name(local.key.experiment)
    assert experiment.tags["team"] == "vision"
    assert experiment.tags["mlflow.note.content"] == "All of it"
    other = beside(local, "site-2")
    other.key = plain._replace(site="site-2")
    start(other)
    assert named(local) == ["2023-11-14 run-1", "site-1 of run-1", "site-2 of run-1"]
    local.key = plain
    local.restart(**{**options, "experiment_tags": {"team": "other"}})
    start(local)
    experiment = local.client.get_experiment_by_name(f"fl/{plain.experiment}")
    assert experiment.tags["team"] == "other"


def test_a_run_that_goes_on_the_next_day_stays_in_its_experiment(
    local: Site,  # noqa: F811
) -> None:
    pattern = "{experiment} {date}"
    local.restart(experiment=pattern)
    start(local)
    local.restart(experiment=pattern)
    local.log("metric", Record("loss", 1.0, 1, T + 86_400))
    names = [experiment.name for experiment in local.client.search_experiments()]
    assert [name for name in names if name.startswith(local.key.experiment)] == [
        f"{local.key.experiment} 2023-11-14"
    ]


@pytest.mark.parametrize("pattern", ["{user}", "{", "{0}", "{run!x}", ""])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is no pattern of \{experiment\}|at least 1 character"):
        MLflowOptions(tracking_uri="http://x", run_name=pattern)


def test_the_options_leave_what_a_writer_says_in_its_place(local: Site) -> None:  # noqa: F811
    local.restart(description="from the YAML", run_tags={"phase": "from the YAML"})
    start(local)
    local.log("tag", Record("description", "from the writer", None, T))
    local.log("tag", Record("phase", "one", None, T))
    tags = local.run.data.tags
    assert (tags["mlflow.note.content"], tags["phase"]) == ("from the writer", "one")
