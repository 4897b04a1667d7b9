"""Public training scripts, from checkouts that ``ZMQTRACK_COMPAT_CHECKOUTS`` names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from . import translate
from .cases import Case, Skipped, Sources, command


@dataclass(frozen=True)
class Script:
    """A script of a repository that is checked out as ``checkout``.

    ``needs`` are modules; ``beside`` are folders that it imports from; ``varies`` as of ``Case``.
    """

    checkout: str
    path: str
    tool: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    label: str = ""


_RL = {"needs": ("tyro", "gymnasium"), "beside": ("cleanrl_utils",), "varies": ("*SPS", "hyper*")}

SCRIPTS = (
    Script("tensorboardX", "examples/demo_custom_scalars.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_hparams.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_matplotlib.py", "tensorboard", needs=("matplotlib",)),
    Script("tensorboardX", "examples/demo_mesh.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_multiple_embedding.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_purge.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_global_writer.py", "tensorboard"),
    Script("tensorboardX", "examples/demo_multiprocessing.py", "tensorboard", varies=("*",)),
    Script("tensorboardX", "examples/demo.py", "tensorboard", needs=("torchvision",)),
    Script("tensorboardX", "examples/demo_graph.py", "tensorboard", needs=("torchvision",)),
    Script("mlflow-example", "train.py", "mlflow", ("0.5", "0.5")),
    Script("mlflow", "examples/quickstart/mlflow_tracking.py", "mlflow"),
    Script("mlflow", "examples/sklearn_logistic_regression/train.py", "mlflow"),
    Script(
        "cleanrl", "cleanrl/ppo.py", "tensorboard",
        ("--total-timesteps", "2048", "--num-envs", "2"), **_RL,
    ),
    Script(
        "cleanrl", "cleanrl/ppo.py", "wandb",
        ("--total-timesteps", "2048", "--num-envs", "2", "--track"), **_RL, label="track",
    ),
    Script(
        "cleanrl", "cleanrl/dqn.py", "tensorboard",
        ("--total-timesteps", "1200", "--learning-starts", "600", "--save-model"),
        **{**_RL, "needs": (*_RL["needs"], "pygame")},  # it makes videos of the saved model
    ),
    Script("wandb-examples", "examples/wandb-log/sqrt.py", "wandb", ("2",)),
    Script(
        "wandb-examples", "examples/api-examples/metrics-at-different-steps/train.py", "wandb",
        ("--max_epochs", "12", "--validate_every", "5"),
    ),
    Script(
        "wandb-examples", "examples/api-examples/group-and-resume/train.py", "wandb",
        ("--group_id", "g1"), varies=("job_type",),
    ),
    Script("wandb-examples", "examples/api-examples/group-and-resume/eval.py", "wandb",
           ("--group_id", "g1")),
    Script("wandb-examples", "examples/api-examples/plotly/run.py", "wandb", needs=("plotly",)),
    Script("wandb-examples", "examples/machine-learning/matplotlib/mpl.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-iris/train.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-iris/clustering.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-clustering/train.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-iris/binary_classification.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-classification/train.py", "wandb"),
    Script("wandb-examples", "examples/scikit/scikit-tests/test.py", "wandb"),
    Script("pytorch-examples", "mnist/main.py", "tensorboard", needs=("torchvision",)),
)  # fmt: skip


def cases(sources: Sources) -> Iterator[Case | Skipped]:
    for script in SCRIPTS:
        path = Path(script.path)
        parts = (script.checkout, path.parent.name, path.stem, script.label)
        name = ".".join(part for part in parts if part)
        checkout = sources.checkout(script.checkout)
        missing = [module for module in script.needs if find_spec(module) is None]
        if checkout is None:
            yield Skipped(name, f"no folder {script.checkout!r} in ZMQTRACK_COMPAT_CHECKOUTS")
        elif not (checkout / path).exists():
            yield Skipped(name, f"{script.checkout} has no {path}")
        elif missing:
            yield Skipped(name, f"{', '.join(missing)} is not installed")
        else:
            prepare = partial(_prepare, checkout, script)
            # Where W&B's syntax has a group, the site is not the machine.
            launched = script.tool != "wandb" or "--group_id" in script.arguments
            yield Case(name, script.tool, prepare, script.varies, launched=launched)


def _prepare(checkout: Path, script: Script, folder: Path, here: bool) -> list[str]:
    path = checkout / script.path
    if path.parent == checkout:
        for each in path.parent.iterdir():
            if each.is_file():
                translate.copy(each, folder, here)
        return command(Path(path.name), *script.arguments)
    translate.copy(path.parent, folder, here)
    for name in script.beside:
        translate.copy(checkout / name, folder, here)
    return command(Path(path.parent.name, path.name), *script.arguments)
