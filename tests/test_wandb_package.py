"""The package ``wandb`` beside ``zmqtrack.writers.wandb``: where what a script logs goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_mlflow_package import run

pytest.importorskip("wandb")

pytestmark = pytest.mark.timeout(300)

SAID = "has imported W&B's own package"

#: The first line is the one that was changed; those below it bind the name to the real package.
REBOUND = """
import zmqtrack.writers.wandb as wandb
import wandb.errors
import wandb.sklearn
from wandb.plot import line_series
from wandb.sdk.data_types.image import Image
from wandb.sdk.lib import telemetry
import numpy as np
from sklearn.linear_model import LogisticRegression

assert wandb.__name__ == "wandb", "the name is bound to the real package"
pixels = np.zeros((2, 2, 3), "uint8")
run = wandb.init(project="p", name="r", config={"lr": 0.1})
assert wandb.run is run and wandb.config["lr"] == 0.1
with telemetry.context() as told:
    told.feature.keras = True
wandb.log({"loss": 1.0, "ours": wandb.Image(pixels)})
wandb.log({"theirs": Image(pixels), "list": [Image(pixels), Image(pixels)]})
wandb.log({"series": line_series([1, 2], [[3, 4]])})
model = LogisticRegression().fit([[0], [1], [2], [3]], [0, 0, 1, 1])
wandb.sklearn.plot_confusion_matrix([0, 1], [0, 1], ["a", "b"])
wandb.summary["best"] = 3
wandb.finish()
assert wandb.run is None
try:
    wandb.log({"late": 1})
except wandb.Error as error:
    print("refused:", error)
print(sorted(__import__("os").listdir()))
"""


def test_what_a_script_logs_with_the_rebound_name_comes_to_us_and_says_so(
    spool: Spooled, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    work = tmp_path / "work"
    work.mkdir()
    done = run(work, REBOUND, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert "refused: You must call wandb.init()" in done.stdout
    assert done.stdout.strip().endswith("['train.py']"), "nothing was left beside the script"
    assert done.stderr.count(SAID) == 1
    ((key, _),) = spool.runs().items()
    assert (key.experiment, key.run) == ("p", "r")
    metrics = [(key, value) for key, value, _ in spool.values("metric")]
    assert metrics == [("loss", 1.0), ("summary/best", 3.0)]
    images = {key for key, _, _ in spool.values("image")}
    assert {"ours", "theirs"} < images
    texts = {key for key, _, _ in spool.values("text")}
    assert {"series.chart", "confusion_matrix.chart"} <= texts
    assert not spool.values("lost")


APART = """
import wandb
theirs = wandb.init, wandb.Image, wandb.log
from zmqtrack.writers.wandb import WandBWriter
import wandb.errors

assert theirs == (wandb.init, wandb.Image, wandb.log)
assert wandb.run is None
WandBWriter(name="ours").finish()
print(theirs[0].__module__)
"""

BEFORE = """
import wandb as real
import zmqtrack.writers.wandb as wandb

wandb.init(project="p", name="r")
wandb.log({"ours": 1})
real.log({"theirs": real.Table(columns=["a"], data=[[1]])})
assert real.run is wandb.run
real.finish()
"""

ACTIVE = """
import wandb as real
real.init(mode="offline", settings=real.Settings(silent=True))
import zmqtrack.writers.wandb as wandb

real.log({"theirs": 1})
assert type(real.run).__module__ == "wandb.sdk.wandb_run"
real.finish()
"""

STAND_IN = """
import sys
import wandb as real
import zmqtrack.writers.wandb as ours

ours.__path__ = real.__path__
sys.modules["wandb"] = ours
import wandb
from wandb.errors import CommError

assert wandb is ours
wandb.init(project="p", name="r")
wandb.log({"ours": 1})
wandb.finish()
"""


def test_who_takes_the_writer_alone_keeps_wandb_for_itself(spool: Spooled, tmp_path: Path) -> None:
    done = run(tmp_path, APART, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert done.stdout.strip() == "wandb.sdk.wandb_init"
    assert SAID not in done.stderr


def test_a_package_that_was_imported_before_is_followed_too(spool: Spooled, tmp_path: Path) -> None:
    done = run(tmp_path, BEFORE, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert SAID in done.stderr
    assert [key for key, _, _ in spool.values("metric")] == ["ours"]
    assert len(spool.values("text")) == 1


def test_a_run_of_wandbs_own_that_is_active_goes_on(spool: Spooled, tmp_path: Path) -> None:
    home = {f"WANDB_{name}_DIR": str(tmp_path / "home") for name in ("CACHE", "CONFIG", "DATA")}
    done = run(tmp_path, ACTIVE, ZMQTRACK_SPOOL_DIR=str(spool.folder), **home)
    assert SAID not in done.stderr
    assert not spool.runs()


def test_a_writer_that_stands_in_for_the_package_says_nothing(
    spool: Spooled, tmp_path: Path
) -> None:
    done = run(tmp_path, STAND_IN, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert SAID not in done.stderr
    assert [key for key, _, _ in spool.values("metric")] == ["ours"]


def test_without_wandb_an_import_of_its_modules_says_what_to_install(tmp_path: Path) -> None:
    import msgpack
    import zmq

    site = tmp_path / "site"
    site.mkdir()
    (site / "zmqtrack").symlink_to(Path(__file__).parent.parent / "zmqtrack")
    for package in (zmq, msgpack):
        folder = Path(package.__path__[0])
        (site / folder.name).symlink_to(folder)
    for libraries in Path(zmq.__path__[0]).parent.glob("pyzmq.libs"):
        (site / libraries.name).symlink_to(libraries)
    code = "import zmqtrack.writers.wandb as wandb\ntry:\n    import wandb.plot\n"
    code += "except ModuleNotFoundError as error:\n    print(error)\n"
    done = run(tmp_path, code, "-S", PYTHONPATH=str(site))
    assert done.stdout.startswith("No module named 'wandb': zmqtrack.writers.wandb needs none")
