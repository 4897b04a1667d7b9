"""MLflow's syntax beyond its logging functions: values, the client, names that are not carried."""

from __future__ import annotations

import io
import json
import logging
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import zmqtrack.writers.mlflow as ours
from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from zmqtrack.writers.mlflow import exceptions, names


@pytest.fixture
def mlflow(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as a process that has just imported it sees it."""
    monkeypatch.delitem(sys.modules, "zmqtrack.writers.mlflow")
    import importlib

    return importlib.import_module("zmqtrack.writers.mlflow")


def tags(spool: Spooled) -> dict[str, str]:
    return {key: value for key, value, _ in spool.values("tag")}


# --- values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[("0.5", 0.5), (" 1e3 ", 1000.0), (b"0.5", 0.5), (True, 1.0), (Decimal("1.5"), 1.5)],
        *[(Fraction(1, 4), 0.25), (np.array([2.0]), 2.0), (np.array("0.5"), 0.5)],
        *[(torch.tensor([[3.0]]), 3.0), (np.float32(0.25), 0.25)],
    ],
)
def test_what_mlflow_makes_a_float_of_is_a_metric(
    spool: Spooled, mlflow: Any, value: Any, number: float
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("one", value)
        mlflow.log_metrics({"many": value})
        mlflow.MlflowClient().log_metric(run.info.run_id, "client", value)
    assert [v for _, v, _ in spool.values("metric")] == [number] * 3


@pytest.mark.parametrize(
    ("step", "kept"),
    [(1.5, 1), (-1.5, -1), (np.float32(2.7), 2), (np.int64(4), 4), (True, 1), (Decimal("3.7"), 3),
     (torch.tensor(3), 3), (1e30, 2**63 - 1), (float("-inf"), -(2**63))],
)  # fmt: skip
def test_a_step_is_cut_to_an_integer(spool: Spooled, mlflow: Any, step: Any, kept: int) -> None:
    with mlflow.start_run():
        mlflow.log_metric("one", 1, step=step)
        mlflow.log_metrics({"many": 1}, step=step)
        mlflow.log_image(np.zeros((2, 2), np.uint8), key="image", step=step)
    assert {s for _, _, s in spool.values("metric") + spool.values("image")} == {kept}


@pytest.mark.parametrize(
    "arguments",
    [
        *[{"value": v} for v in (None, "abc", [1.0], {}, 1j, np.array([1, 2]), 10**400)],
        *[{"step": s} for s in ("x", [1], float("nan"))],
        *[{"timestamp": t} for t in (-1, "1500")],
        *[{"key": k} for k in (None, 5, ("t",))],
    ],
)
def test_what_mlflow_refuses_raises_its_exception(
    spool: Spooled, mlflow: Any, arguments: dict[str, Any]
) -> None:
    """MLflow raises for each of these too, if not always an exception of its own."""
    call = {"key": "k", "value": 1.0, **arguments}
    key, value = call.pop("key"), call.pop("value")
    with mlflow.start_run():
        for log in (
            lambda: mlflow.log_metric(key, value, **call),
            lambda: mlflow.log_metrics({"good": 1.0, key: value}, **call),
        ):
            with pytest.raises(mlflow.exceptions.MlflowException) as raised:
                log()
            assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
            assert raised.value.message == str(raised.value)
    assert spool.values("metric") == []


def test_times_are_milliseconds_and_zero_is_now(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run():
        for timestamp in (1500, 1500.5, np.int64(7), 0):
            mlflow.log_metric("m", 1, timestamp=timestamp)
    times = [record.time for record in spool.of("metric")]
    assert times[:3] == [1.5, 1.5005, 0.007]
    assert times[3] > 1.7e9


def test_long_values_odd_params_and_uneven_tables_are_kept(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run():
        mlflow.log_param("long", "x" * 100_000)
        mlflow.log_params({"none": None, "object": Decimal(3)})
        mlflow.set_tag("number", 5)
        mlflow.log_table({"a": [1], "b": [1, 2]}, "t.json")
        mlflow.log_stream(io.BytesIO(b"stream"), "s.bin")
    params = {key: value for key, value, _ in spool.values("param")}
    assert params == {"long": "x" * 100_000, "none": None, "object": "3"}
    tables = [{"path": "t.json", "type": "table"}]
    assert tags(spool) == {"number": "5", "mlflow.loggedArtifacts": json.dumps(tables)}
    assert [value[2] for _, value, _ in spool.values("artifact")] == [b"stream"]


def test_an_exception_of_ours_is_one_of_mlflows_where_that_is_loaded() -> None:
    real = pytest.importorskip("mlflow.exceptions")
    error = exceptions.invalid("no", TypeError)
    assert isinstance(error, (real.MlflowException,))
    assert isinstance(error, exceptions.MlflowException)
    assert isinstance(error, TypeError)


# --- runs ---------------------------------------------------------------------------------


def test_a_run_says_what_began_it_and_what_was_logged(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run(run_name="r", tags={"a": 1}, description="text") as run:
        assert run.data.tags["a"] == "1"
        assert run.data.tags["mlflow.note.content"] == "text"
        assert (run.data.metrics, run.data.params) == ({}, {})
        mlflow.log_param("lr", 0.1)
        mlflow.log_metric("loss", 1)
        assert dict(run.info)["run_name"] == "r"
        assert mlflow.get_artifact_uri("model").endswith("/model")
    seen = mlflow.get_run(run.info.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.info.end_time >= seen.info.start_time
    assert seen.data.params == {"lr": "0.1"}
    with pytest.raises(mlflow.MlflowException, match="metrics of run 'r'"):
        seen.data.metrics["loss"]
    with pytest.raises(mlflow.MlflowException, match="MlflowClient"):
        mlflow.get_run("another")


def test_an_experiment_that_is_asked_for_by_name_is_that_name(spool: Spooled, mlflow: Any) -> None:
    found = mlflow.get_experiment_by_name("exp")
    experiment = found.experiment_id if found else mlflow.create_experiment("exp")
    assert mlflow.get_experiment(experiment).name == "exp"
    with mlflow.start_run(experiment_id=experiment):
        pass
    (key,) = spool.runs()
    assert key.experiment == "exp"
    assert mlflow.is_tracking_uri_set() is True
    assert mlflow.tracking.get_tracking_uri() == mlflow.get_tracking_uri()


def test_the_run_id_of_the_environment_is_taken_once(
    spool: Spooled, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "known")
    with mlflow.start_run() as first, mlflow.start_run(nested=True) as second:
        assert first.info.run_id == "known"
        assert second.info.run_id != "known"


# --- the client ---------------------------------------------------------------------------


def test_the_client_logs_to_the_runs_that_it_created(spool: Spooled, mlflow: Any) -> None:
    client = mlflow.tracking.MlflowClient()
    experiment = client.create_experiment("exp")
    run = client.create_run(experiment, tags={"k": "v", "mlflow.runName": "named"})
    run_id = run.info.run_id
    client.log_metric(run_id, "loss", 0.5, timestamp=1500, step=1)
    client.log_param(run_id, "lr", 0.1)
    client.set_tag(run_id, "phase", "one")
    entities = mlflow.entities
    client.log_batch(
        run_id,
        metrics=[entities.Metric("acc", "0.25", 2500, 2.0)],
        params=[entities.Param("layers", "3")],
        tags=[entities.RunTag("t", "u")],
        synchronous=False,
    ).wait()
    client.log_text(run_id, "hi", "a.txt")
    client.log_dict(run_id, {"a": 1}, "a.json")
    client.log_image(run_id, np.zeros((2, 2), np.uint8), "a.png")
    assert mlflow.active_run() is None
    assert client.get_run(run_id).data.params == {"lr": "0.1", "layers": "3"}
    client.set_terminated(run_id, "FAILED")
    assert client.get_run(run_id).info.status == "FAILED"
    ((key, records),) = spool.runs().items()
    assert (key.experiment, key.run) == ("exp", "named")
    assert records[-1][1].value == "failed"
    metrics = [(m.key, m.value, m.step, m.time) for m in spool.of("metric")]
    assert metrics == [("loss", 0.5, 1, 1.5), ("acc", 0.25, 2, 2.5)]
    assert tags(spool) == {"k": "v", "phase": "one", "t": "u"}
    assert [key for key, _, _ in spool.values("text")] == ["a.txt", "a.json"]
    assert [key for key, _, _ in spool.values("image")] == ["a.png"]


def test_the_client_reaches_the_active_run_by_its_id(spool: Spooled, mlflow: Any) -> None:
    with mlflow.start_run() as run:
        mlflow.client.MlflowClient().log_metric(run.info.run_id, "m", 1)
    assert len(spool.runs()) == 1


def test_the_rest_of_the_client_is_counted_or_raises(spool: Spooled, mlflow: Any) -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        client.log_inputs(run.info.run_id, [])
        client.delete_tag(run.info.run_id, "k")
        for name in ("search_runs", "get_metric_history", "list_artifacts", "download_artifacts"):
            with pytest.raises(mlflow.MlflowException, match=f"MlflowClient.{name} asks"):
                getattr(client, name)("x")
    assert sorted(key for key, _, _ in spool.values("lost")) == [
        "unsupported_MlflowClient.delete_tag",
        "unsupported_MlflowClient.log_inputs",
    ]


# --- names --------------------------------------------------------------------------------


def test_each_public_name_of_mlflow_is_carried_counted_or_refused() -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in sorted(set(mlflow.__all__)):
        if name != "context" and name not in names.MODULES:
            assert hasattr(ours, name), f"mlflow.{name}"
    flavours = {
        name for name, there in vars(mlflow).items() if type(there).__name__ == "LazyLoader"
    }
    assert flavours - names.MODULES <= {"genai"}, "of each, autolog may be called"


def test_a_call_that_is_not_carried_gives_what_may_be_kept_but_not_read(
    spool: Spooled, mlflow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    @mlflow.trace
    def double(x: int) -> int:
        return 2 * x

    @mlflow.trace(name="named")
    def triple(x: int) -> int:
        return 3 * x

    with mlflow.start_run():
        assert (double(2), triple(2)) == (4, 6)
        for _ in range(2):
            result = mlflow.evaluate("model", [1])
        with mlflow.start_span("s") as span:
            span.set_inputs({"a": 1})
        with pytest.raises(mlflow.MlflowException, match="result of evaluate"):
            print(result.metrics)
    lost: dict[str, int] = {}
    for key, n, _ in spool.values("lost"):
        lost[key] = lost.get(key, 0) + n
    assert lost == {"unsupported_trace": 2, "unsupported_evaluate": 2, "unsupported_start_span": 1}
    assert sum("evaluate" in line for line in caplog.messages) == 1
