"""TensorBoard's HPARAMS tab, asked as its page asks: what a SummaryWriter of ours makes it show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter as TorchWriter
from torch.utils.tensorboard.summary import hparams

from harness import Daemon
from test_adapter_tensorboard import session_groups
from zmqtrack.writers.tensorboard import SummaryWriter

Make = Callable[..., Daemon]

PARAMS: dict[str, Any] = {"lr": 0.1, "name": "x", "flag": True, "n": 3}


def trials(writer: Any) -> None:
    writer.add_hparams(PARAMS, {"hparam/acc": 0.5}, run_name="first")
    writer.add_hparams({**PARAMS, "lr": 0.2}, {"hparam/acc": 0.25}, run_name="second")


def as_lightning(writer: Any) -> None:
    """Its logger hands over what torch has made of hyperparameters."""
    writer.add_scalar("hp_metric", -1, 0)
    for summary in hparams(PARAMS, {"hp_metric": -1}):
        writer._get_file_writer().add_summary(summary, 0)


def shown(logdir: Path) -> list[tuple[dict[str, Any], list[float], list[int]]]:
    """Hyperparameters, metrics and states of each line of the table, whatever it is called."""
    lines = [
        (
            {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()},
            [metric.value for metric in group.metric_values],
            [session.status for session in group.sessions],
        )
        for group in session_groups(logdir)
    ]
    return sorted(lines, key=str)


def test_the_tab_has_a_line_for_each_trial_and_for_what_lightning_hands_over(
    daemon: Make, tmp_path: Path
) -> None:
    adapter = {"type": "tensorboard", "options": {"logdir": str(tmp_path / "ours/out")}}
    with daemon([adapter]) as served:
        for name, log in (("trials", trials), ("fit", as_lightning)):
            with SummaryWriter(tmp_path / "e" / name, site="s", address=served.address) as ours:
                ours.run.exit_timeout = 60
                log(ours)
            with TorchWriter(str(tmp_path / "theirs/out" / name)) as theirs:
                log(theirs)
        served.drain()
    ours, theirs = shown(tmp_path / "ours"), shown(tmp_path / "theirs")
    assert len(ours) == 3
    assert _known(ours) == _known(theirs)
    # torch lists the metrics of its trials alone; TensorBoard finds Lightning's among ours too.
    assert sorted(metrics for _, metrics, _ in ours) == [[-1.0], [0.25], [0.5]]


def _known(lines: list[Any]) -> list[Any]:
    """Hyperparameters, as numbers where torch makes numbers of them, and states."""
    return sorted(
        (params["lr"], params["name"], float(params["flag"]), params["n"], states)
        for params, _, states in lines
    )
