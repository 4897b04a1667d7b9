"""W&B's smaller names: what an artifact, a table and an integration know or do without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_wandb_writer import losses, tags, wandb  # noqa: F401 -- a fixture


def test_aliases_and_tags_of_an_artifact_are_carried(
    wandb: Any,  # noqa: F811
    spool: Spooled,
    tmp_path: Path,
) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    run = wandb.init(project="p", name="r")
    run.log_artifact(str(model), "net", aliases=["best", "v2"], tags=["good"])
    run.log_model(str(model), "other", aliases=["last"])
    artifact = wandb.Artifact("third", "model")
    artifact.add_file(str(model))
    assert (artifact.size, artifact.file_count, artifact.state) == (7, 1, "PENDING")
    run.log_artifact(artifact).link("registry/third")
    run.finish()
    found = tags(spool)
    assert found["artifact.net.aliases"] == "best, v2"
    assert found["artifact.net.tags"] == "good"
    assert found["artifact.other.aliases"] == "last"
    assert losses(spool) == {"unsupported_Artifact.link": 1}


def test_what_only_the_server_knows_of_an_artifact_says_what_to_do(
    wandb: Any,  # noqa: F811
) -> None:
    artifact = wandb.Artifact("data", "dataset")
    with pytest.raises(wandb.UsageError, match="needs W&B's server"):
        _ = artifact.digest
    with pytest.raises(FileNotFoundError):
        artifact.remove("missing.txt")
    assert not hasattr(artifact, "no_such_name")


def test_a_table_is_read_and_computed_as_the_real_one(wandb: Any) -> None:  # noqa: F811
    import wandb as real

    def use(module: Any) -> list[Any]:
        table = module.Table(columns=["a", "b"], data=[[1, 2], [3, 4]])
        table.add_row(5, 6)
        table.add_computed_columns(lambda number, row: {"sum": row["a"] + row["b"] + number})
        frame = table.get_dataframe()
        return [
            table.columns,
            table.data,
            table.get_column("sum"),
            table.get_column("a", convert_to="numpy").tolist(),
            [(int(number), list(row)) for number, row in table.iterrows()],
            frame.to_dict("list"),
        ]

    assert use(wandb) == use(real)


def test_a_mode_of_an_image_is_heeded_and_other_options_are_said(
    wandb: Any,  # noqa: F811
    spool: Spooled,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pixels = np.arange(48, dtype="uint8").reshape(4, 4, 3)
    image = wandb.Image(pixels, mode="L", classes=[{"id": 0, "name": "cat"}], grouping=2)
    assert (image.image.mode, image.image.size) == ("L", (4, 4))
    run = wandb.init(project="p", name="r")
    run.log({"picture": image})
    run.finish()
    assert losses(spool) == {"unsupported_Image(classes)": 1}


def test_charts_of_an_integration_are_counted_and_its_callbacks_say_what_to_do(
    wandb: Any,  # noqa: F811
    spool: Spooled,
) -> None:
    run = wandb.init(project="p", name="r")
    wandb.sklearn.plot_roc([0, 1], [[1, 0], [0, 1]])
    with pytest.raises(wandb.UsageError, match=r"wandb\.keras\.WandbCallback .* wandb\.log"):
        wandb.keras.WandbCallback()
    run.finish()
    assert losses(spool) == {"unsupported_sklearn.plot_roc": 1}


def test_a_config_is_merged_and_an_evaluation_tells_its_columns(
    wandb: Any,  # noqa: F811
    spool: Spooled,
) -> None:
    run = wandb.init(project="p", name="r", config={"net": {"width": 2}})
    run.config.merge_locked({"net": {"depth": 3}})
    assert run.config["net"] == {"width": 2, "depth": 3}
    run.log({"eval": wandb.EvalTable(["q", "a"], [["x", "y"]], input_columns=["q"])})
    run.finish()
    assert ("eval.roles", "input: q", 0) in spool.values("text")
