"""MLflow's syntax, in what MLflow itself makes of a call: params, tables, runs that go on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_mlflow_syntax import mlflow, tags  # noqa: F401 -- a fixture among them


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        *[(value, value) for value in (3, 0.1, True, None, "x", [1, "a"], {"a": [1.5, None]})],
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(3), "[0 1 2]"),
        (np.array(2.5), 2.5),
        (torch.tensor([1.0, 2.0]), "tensor([1., 2.])"),
        (torch.tensor(2.5), "tensor(2.5000)"),
        ((1, "a"), "(1, 'a')"),
        ({"a": (1, 2)}, "{'a': (1, 2)}"),
        (Path("a/b"), "a/b"),
        ({1}, "{1}"),
    ],
)
def test_a_param_has_mlflows_text_and_is_a_number_where_it_can(
    spool: Spooled,
    mlflow: Any,  # noqa: F811
    value: Any,
    kept: Any,
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_param("one", value)
        mlflow.log_params({"many": value})
        mlflow.MlflowClient().log_param(run.info.run_id, "client", value)
    logged = [held for _, held, _ in spool.values("param")]
    assert logged == [kept] * 3
    assert {str(held) for held in logged} == {str(value)}


def test_more_of_a_table_is_added_to_it(spool: Spooled, mlflow: Any) -> None:  # noqa: F811
    with mlflow.start_run() as run:
        mlflow.log_table({"a": [1, 2], "b": "x"}, "t.json")
        mlflow.log_table(pd.DataFrame({"b": ["y"], "c": [3]}), "t.json")
    with mlflow.start_run(run_id=run.info.run_id):  # it goes on
        mlflow.log_table({"a": [4]}, "t.json")
        mlflow.log_table({"a": [5]}, "other.json")
    *_, third, other = [json.loads(text) for _, text, _ in spool.values("text")]
    assert third == {
        "columns": ["a", "b", "c"],
        "data": [[1, "x", None], [2, None, None], [None, "y", 3], [4, None, None]],
    }
    assert other == {"columns": ["a"], "data": [[5]]}
    assert json.loads(tags(spool)["mlflow.loggedArtifacts"]) == [
        {"path": "t.json", "type": "table"},
        {"path": "other.json", "type": "table"},
    ]


def test_a_run_that_was_ended_goes_on_in_its_own_experiment(
    spool: Spooled,
    mlflow: Any,  # noqa: F811
) -> None:
    """As Lightning's logger does it: ``fit`` ends the run, and ``test`` logs on to it."""
    client = mlflow.MlflowClient()
    run_id = client.create_run("lightning", run_name="fit").info.run_id
    client.log_metric(run_id, "loss", 1.0)
    client.set_terminated(run_id)
    client.log_metric(run_id, "test", 2.0)
    client.set_terminated(run_id)
    ((key, records),) = spool.runs().items()
    assert (key.experiment, key.run) == ("lightning", "fit")
    assert [record.key for kind, record in records if kind == "metric"] == ["loss", "test"]


def test_where_there_is_no_folder_nothing_is_logged_and_that_is_said(
    spool: Spooled,
    mlflow: Any,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "zmqtrack"), mlflow.start_run():
        mlflow.log_artifacts(str(tmp_path / "nowhere"))
        mlflow.log_artifacts(tmp_path / "file", "below")
    (said,) = [line for line in caplog.messages if "log_artifacts" in line]
    assert "No such file or directory" in said
    assert spool.values("artifact") == []
    assert [n for key, n, _ in spool.values("lost") if "log_artifacts" in key] == [1, 1]


def test_a_file_of_text_without_an_extension_has_its_own_name(
    spool: Spooled,
    mlflow: Any,  # noqa: F811
) -> None:
    with mlflow.start_run():
        mlflow.log_text("a", "README")
        mlflow.log_text("b", "notes/README.md")
    assert [key for key, _, _ in spool.values("text")] == ["./README", "notes/README.md"]
