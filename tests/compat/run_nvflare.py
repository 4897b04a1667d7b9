"""NVFLARE's tracking examples, with NVFLARE's own receivers and with the import changed.

::

    ZMQTRACK_COMPAT_CHECKOUTS=~/checkouts python tests/compat/run_nvflare.py [--keep DIR] [NAME …]

``~/checkouts/NVFlare`` is a checkout of NVIDIA/NVFlare. ``ZMQTRACK_COMPAT_NVFLARE`` may name the
Python of a virtual environment with nvflare, torch, tensorboard, mlflow, wandb, pyzmq and msgpack.
Each example runs twice in NVFLARE's simulator with two sites: as it is, which logs through
NVFLARE to the receiver that its ``job.py`` names, and with its script changed (:func:`changed`),
which logs to a ``zmqtrackd`` with four adapters. What each tracker then shows of each site is
compared. The example's data set is replaced by one that is made (folder ``stub``).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from federated import (
    ROOT,
    Daemon,
    Row,
    Seen,
    adapters,
    compare,
    interpreter,
    losses,
    ours,
    print_table,
    read_mlflow,
    read_tensorboard,
    read_wandb,
    started,
)

HERE = Path(__file__).parent
EXAMPLES = Path("examples/advanced/experiment-tracking")
RUN = "job-1"

#: The modules that have NVFLARE's writers here.
WRITERS = {"SummaryWriter": "tensorboard", "MLflowWriter": "mlflow", "WandBWriter": "wandb"}


def changed(script: str) -> str:
    """What docs/federated.md tells a user to change: the import, and the site's name."""

    def imports(match: re.Match[str]) -> str:
        names = match[1].split(", ")
        return "\n".join(f"from zmqtrack.writers.{WRITERS[n]} import {n}" for n in names)

    script = re.sub(r"from nvflare\.client\.tracking import (.*)", imports, script)
    return re.sub(rf"\b({'|'.join(WRITERS)})\(\)", r"\1(site=flare.get_site_name())", script)


def _tensorboard(workspace: Path) -> dict[str, Seen]:
    (folder,) = workspace.glob("*/server/simulate_job/tb_events")
    return read_tensorboard(folder)


def _mlflow(workspace: Path) -> dict[str, Seen]:
    uri = f"sqlite:///{workspace}/mlflow.db"
    return {run.info.run_name[: len("site-1")]: seen for run, seen in read_mlflow(uri)}


def _wandb(workspace: Path) -> dict[str, Seen]:
    return {config["client"]: seen for config, seen in read_wandb(workspace)}


@dataclass(frozen=True)
class Example:
    """One of NVFLARE's.

    Attributes:
        folder: below :data:`EXAMPLES`.
        read: gives each site's points in what NVFLARE's receiver left in the workspace.
        options: of its ``job.py``; ``{workspace}`` stands for the workspace's path.
        images: what the data set that is made has: the W&B example logs every 3,000 batches of 4.
        job: a text in its ``job.py``, and what is to stand there.
        calls: the tool in whose syntax ``nvflare_calls.py`` logs, in the place of ``client.py``.
    """

    folder: str
    read: Callable[[Path], dict[str, Seen]]
    options: tuple[str, ...] = ()
    images: int = 400
    job: tuple[str, str] = ("", "")
    calls: str = ""


_MLFLOW = "-t", "sqlite:///{workspace}/mlflow.db"

EXAMPLES_BY_NAME = {
    "tensorboard": Example("tensorboard", _tensorboard),
    "mlflow": Example("mlflow/hello-pt-mlflow", _mlflow, _MLFLOW),
    "wandb": Example("wandb", _wandb, ("--num_rounds", "2"), images=12_000),
    # Two clients take turns in one process after the other: the script begins anew each round.
    "tensorboard-in-turns": Example(
        "tensorboard", _tensorboard, job=("num_clients=2,", "num_clients=2, num_threads=1,")
    ),
    # The script is a process of its own.
    "wandb-outside": Example(
        "wandb", _wandb, ("--num_rounds", "1", "--launch_external_process"), images=12_000
    ),
    # And every call of NVFLARE's writers.
    "tensorboard-calls": Example("tensorboard", _tensorboard, calls="tensorboard"),
    "mlflow-calls": Example("mlflow/hello-pt-mlflow", _mlflow, _MLFLOW, calls="mlflow"),
    "wandb-calls": Example("wandb", _wandb, ("--num_rounds", "3"), calls="wandb"),
}


#: What can be run.
NAMES = tuple(EXAMPLES_BY_NAME)


def _run(python: str, example: Example, source: Path, out: Path, **environment: str) -> None:
    """Run an example's job in ``out``, a copy of ``source``."""
    options = [option.format(workspace=out / "workspace") for option in example.options]
    command = [python, "job.py", *options]
    (out / "workspace").mkdir()
    done = started(
        command,
        source,
        out / "log.txt",
        PYTHONPATH=f"{HERE / 'stub'}:{ROOT}",
        NVFLARE_SIMULATOR_WORKSPACE_ROOT=str(out / "workspace"),
        STUB_IMAGES=str(example.images),
        NVFLARE_CALLS=example.calls,
        # Nobody listens there: NVFLARE's receiver then writes offline.
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="0" * 40,
        WANDB_DIR=str(out / "workspace"),
        **environment,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}; see {out / 'log.txt'}")


def _copied(example: Example, checkout: Path, out: Path, here: bool) -> Path:
    source = out / "source"
    shutil.copytree(checkout / EXAMPLES / example.folder, source)
    model, script, job = (source / f"{name}.py" for name in ("model", "client", "job"))
    # The server builds the first global model as soon as it has imported this.
    model.write_text(f"import torch; torch.manual_seed(7)\n{model.read_text()}")
    job.write_text(job.read_text().replace(*example.job))
    if example.calls:
        shutil.copy(HERE / "nvflare_calls.py", script)
    if here:
        script.write_text(changed(script.read_text()))
    return source


def side_by_side(name: str, python: str, checkout: Path, out: Path) -> list[Row]:
    """Run one example both ways, and compare."""
    example = EXAMPLES_BY_NAME[name]
    real, here = out / name / "real", out / name / "here"
    _run(python, example, _copied(example, checkout, real, here=False), real)
    with Daemon(here / "daemon", adapters(here)) as daemon:
        _run(
            python,
            example,
            _copied(example, checkout, here, here=True),
            here,
            ZMQTRACK_ADDRESS=daemon.address,
            ZMQTRACK_EXPERIMENT=name,
            ZMQTRACK_RUN=RUN,
            ZMQTRACK_SPOOL_DIR=str(here / "spool"),
        )
        daemon.drain()
        counted = losses(daemon)
    return compare(f"NVFLARE {name}", example.read(real / "workspace"), ours(here, RUN), counted)


def main(names: list[str] | None = None, keep: Path | None = None) -> list[Row] | str:
    """The table's rows, or the reason why there are none."""
    checkouts = os.environ.get("ZMQTRACK_COMPAT_CHECKOUTS")
    checkout = Path(checkouts or "", "NVFlare")
    if not checkouts or not (checkout / EXAMPLES).is_dir():
        return f"ZMQTRACK_COMPAT_CHECKOUTS names no folder with NVFlare/{EXAMPLES} in it"
    python, reason = interpreter("nvflare", "ZMQTRACK_COMPAT_NVFLARE")
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as temporary:
        out = (keep or Path(temporary)).absolute()
        rows: list[Row] = []
        for name in names or EXAMPLES_BY_NAME:
            rows += side_by_side(name, python, checkout, out)
        return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *EXAMPLES_BY_NAME])
    parser.add_argument("--keep", type=Path, help="a folder that does not exist: keep it all there")
    options = parser.parse_args()
    rows = main(options.names, options.keep)
    if isinstance(rows, str):
        sys.exit(f"skipped: {rows}")
    print_table("NVFLARE in its simulator", rows)
    sys.exit(any(row.astray for row in rows))
