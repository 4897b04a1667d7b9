"""The short form of ``make compat``: that it finds what goes astray, and one script per syntax."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from compat import runner, translate
from compat.__main__ import report
from compat.cases import Case, Skipped, command
from compat.facts import Fact
from compat.federated import Row
from compat.judge import judge


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "from torch.utils.tensorboard import SummaryWriter\n",
            "from zmqtrack.writers.tensorboard import SummaryWriter\n",
        ),
        (
            "if True:\n    from tensorboardX import x2num, SummaryWriter as W; a = 'é'\n",
            "if True:\n    from zmqtrack.writers.tensorboard import SummaryWriter as W; from "  # noqa: ISC004
            "tensorboardX import x2num; a = 'é'\n",
        ),
        ("import os, mlflow\n", "import os; import zmqtrack.writers.mlflow as mlflow\n"),
        ("import mlflow\nimport mlflow.sklearn\n",
         "import zmqtrack.writers.mlflow as mlflow\nimport mlflow.sklearn\n"),
        ("from mlflow import (\n    log_metric,\n    log_param as p,\n)\n",
         "from zmqtrack.writers.mlflow import log_metric, log_param as p\n"),
        ("import wandb as w\n", "import zmqtrack.writers.wandb as w\n"),
        ("from tensorboardX import summary\n", "from tensorboardX import summary\n"),
    ],
)  # fmt: skip
def test_only_the_import_of_a_tool_is_changed(source: str, expected: str) -> None:
    assert translate.translate(source) == expected


def test_a_record_that_is_not_here_and_was_not_announced_is_astray() -> None:
    real = {"run": [Fact("scalar", "loss", step, "1") for step in range(3)]}
    here = {"ours": [Fact("scalar", "loss", step, "1") for step in range(2)]}
    verdict = judge(real, here)
    assert (verdict.records, verdict.arrived) == (3, 2)
    assert verdict.astray == ["scalar 'loss': lacks 1 (first: step 2, 1)"]
    assert not judge(real, {"ours": real["run"]}).astray


def test_a_point_at_another_step_and_one_too_many_are_astray() -> None:
    real = {"run": [Fact("scalar", "loss", 2, "1")]}
    [moved] = judge(real, {"ours": [Fact("scalar", "loss", 0, "1")]}).astray
    assert "lacks 1 (first: step 2" in moved and "has besides 1 (first: step 0" in moved
    [twice] = judge(real, {"ours": real["run"] * 2}).astray
    assert "has besides 1" in twice


def test_what_is_announced_excuses_its_own_kind_and_no_other() -> None:
    real = {"run": [Fact("audio", "a", 0), Fact("mesh", "m", 0)]}
    verdict = judge(real, {}, ["add_audio"])
    assert verdict.announced == 1
    assert verdict.astray == ["mesh 'm': lacks 1 (first: step 0, None)"]


def test_runs_that_are_mixed_or_split_are_named() -> None:
    one, other = Fact("scalar", "a", 0, "1"), Fact("scalar", "a", 1, "2")
    [mixed] = judge({"x": [one], "y": [other]}, {"ours": [one, other]}).astray
    assert mixed == "run 'ours' mixes here ['x', 'y']"
    [split] = judge({"x": [one, other]}, {"ours": [one], "too": [other]}).astray
    assert split == "run 'x' is split here into ['ours', 'too']"


def test_values_that_vary_are_compared_by_their_steps_alone() -> None:
    real, here = Fact("metric", "time/fps", 1, "5"), Fact("metric", "time/fps", 1, "6")
    assert judge({"x": [real]}, {"y": [here]}).astray
    assert not judge({"x": [real]}, {"y": [here]}, varies=["*/fps"]).astray


#: For a loaded machine: of the four scripts each runs twice, one after the other.
pytestmark = pytest.mark.timeout(600)

SCRIPTS = {
    "tensorboard": """
        import numpy
        from tensorboardX import SummaryWriter

        with SummaryWriter("runs/short") as writer:
            for step in range(5):
                writer.add_scalar("loss", 1 / (step + 1), step)
            writer.add_histogram("weights", numpy.arange(10.0), 4)
            writer.add_text("note", "done", 4)
            writer.add_pr_curve("curve", numpy.arange(4) % 2, numpy.arange(4) / 4, 4)
    """,
    "mlflow": """
        import mlflow

        mlflow.set_experiment("short")
        with mlflow.start_run(run_name="one"):
            mlflow.log_param("lr", 0.1)
            mlflow.set_tag("kind", "test")
            for step in range(5):
                mlflow.log_metric("loss", 1 / (step + 1), step=step)
            mlflow.log_text("done", "note.txt")
    """,
    "wandb": """
        import wandb

        wandb.init(project="short", config={"lr": 0.1})
        for step in range(5):
            wandb.log({"loss": 1 / (step + 1)})
        wandb.finish()
    """,
}


#: At the end of the changed script alone: it logs to the real tool, too, and dies.
ELSEWHERE = """
import tensorboardX
with tensorboardX.SummaryWriter("left") as w:
    w.add_scalar("lost", 1, 1)
raise SystemExit("dies")
"""


def _case(name: str, tool: str, changed: str = "") -> Case:
    def prepare(folder: Path, here: bool) -> list[str]:
        script = folder / "train.py"
        lines = textwrap.dedent(SCRIPTS[tool])
        script.write_text((translate.translate(lines) + changed) if here else lines)
        return command(script)

    return Case(name, tool, prepare)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runner.Result]:
    """By name: all the cases through one daemon."""
    cases = [_case(tool, tool) for tool in SCRIPTS]
    cases += [_case("dies", "tensorboard", ELSEWHERE)]
    found = runner.run(cases, tmp_path_factory.mktemp("compat"), print)
    return {result.case.name: result for result in found}


@pytest.mark.parametrize("tool", SCRIPTS)
def test_a_script_with_its_import_changed_loses_nothing(
    tool: str, results: dict[str, runner.Result]
) -> None:
    [part] = results[tool].parts
    assert (part.real, part.here) == ("passed", "passed"), part.error
    assert part.verdict.records >= 6
    assert not part.verdict.astray
    assert part.verdict.arrived + part.verdict.announced == part.verdict.records
    assert results[tool].counted == ({"add_pr_curve": 1} if tool == "tensorboard" else {})


def test_a_script_that_dies_here_or_logs_elsewhere_is_told(
    results: dict[str, runner.Result],
) -> None:
    told = "\n".join(report([results["dies"]], [Skipped("other", "it is not there")]))
    assert "dies: passes with the real tool, here failed: dies" in told
    assert "went to the real tool, in the script's own folder: 1 scalar" in told
    assert "- other: it is not there" in told


def test_a_site_of_a_federation_is_a_row_and_what_it_lacks_is_told() -> None:
    rows = [Row("job, site-1", 8, 8, "", ""), Row("job, site-2", 8, 7, "", "wandb lacks 1")]
    told = list(report([], [], rows))
    assert "| job, site-1 | 1 | 1 | 8 | 8 | 0 | 0 | 0 |" in told
    assert "| job, site-2 | 1 | 1 | 8 | 7 | 0 | 0 | 1 |" in told
    assert "- job, site-2: wandb lacks 1" in told
