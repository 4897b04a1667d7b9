"""W&B's syntax: its module of functions, and ``WandBWriter`` as NVFLARE has it.

::

    import zmqtrack.writers.wandb as wandb           # the only line that changes

    run = wandb.init(project="mnist", name="baseline", config={"lr": 0.1})
    wandb.log({"loss": loss, "samples": [wandb.Image(x) for x in batch]})
    wandb.finish()

or, one object and no global state, ``from zmqtrack.writers.wandb import WandBWriter``: it takes the
arguments of ``wandb.init`` and is what that returns.

**Where it goes.** ``project`` is the experiment. ``name`` is the run, and the site is this host.
With ``group``, W&B's word for many workers of one job, the group is the run and ``name`` the site.
Without ``name`` the run (with ``group``: the site) is ``id``, or else is called by date and time
(with ``group``: by host and process, so that workers stay apart). ``ZMQTRACK_EXPERIMENT``,
``ZMQTRACK_RUN`` and ``ZMQTRACK_SITE``, which a federation's launcher sets, come before those (a
name that lost its place is kept as the tag ``project``, ``group`` or ``name``): all sites run one
script and yet must be told apart and found in one run. The arguments ``experiment=``, ``run=`` and
``site=`` of ``WandBWriter`` come before both. ``WANDB_PROJECT``, ``WANDB_RUN_GROUP``,
``WANDB_NAME`` and ``WANDB_RUN_ID`` stand in for arguments that were not given. ``mode="disabled"``,
also by ``WANDB_MODE`` or ``WANDB_DISABLED``, logs nothing. Each ``init`` of the process is another
run, as in W&B, unless it gives the same ``id``; under ``ZMQTRACK_RUN=job`` they are ``job``,
``job.NAME`` … A process that is started again with the same ``name`` goes on with that run.

**What a row becomes.** Its own step counts up as in W&B: ``log(row)`` ends the row,
``log(row, commit=False)`` leaves it open, ``log(row, step=n)`` goes on at ``n``. Each value is a
record of that step, logged at once; all records of a row have one time, that of the row's first
call, and are one history row in W&B:

=========================== ======================================================================
number                      metric (also ``Decimal`` and ``Fraction``, whose text W&B keeps)
string                      text
nested dictionary           its values under ``KEY.INNER``, as W&B's page shows them
Image                       image; its caption is the text ``KEY.caption``
several Images              images ``KEY.0``, ``KEY.1`` …; likewise any list of W&B's objects
matplotlib figure, PIL      image
Histogram, array, tensor    histogram (an array of one number: metric)
Html, plotly figure         text ``KEY.html``
Table, data frame           text ``KEY.md``, a Markdown table, numbers at the right; Images and
                            the like in its cells: ``KEY/ROW/COLUMN``, which the cell names
``wandb.plot`` …            its Table, and the text ``KEY.chart`` that says which chart it was for
other list, set             text ``KEY.json``: its JSON
dates, enums, dataclasses … as W&B writes them: text, or their values
Video, Audio, … of a file   artifact ``KEY.EXTENSION``; others are counted as not carried
None                        counted as not carried
=========================== ======================================================================

In W&B what was logged under ``KEY`` stands there again under ``KEY``: the page, the table, the
list, and several images as one list.

``define_metric(name, step_metric=)``: from then on the metric's step is that metric's value in the
same row, or the last one before. ``config``: each item is a param. ``summary``: W&B shows it as
the run's last values. A number that is assigned is the metric ``summary/KEY`` without a step
(every tracker shows a metric's last value and sorts runs by it, and the prefix keeps it from
adding a point to the curve of that name); all else is the tag ``summary/KEY``. ``tags``,
``notes``, ``job_type`` and ``entity`` are tags, and so is ``run.name`` that is changed later
(``display_name``), and the code of ``finish`` where it is neither 0 nor 1 (``exit_code``). Files
in ``run.dir`` are artifacts when the run finishes.

``sync_tensorboard=True``, and ``wandb.tensorboard.patch``: a ``SummaryWriter`` of zmqtrack that is
made later in this process logs into the W&B run.

**W&B's own modules.** ``import wandb.plot`` in a script binds the name ``wandb`` to W&B's own
package, where that is installed: what the script logs with it comes to us all the same
(:mod:`.wandb_real`), and the first call says so.

**What differs.** Where W&B drops a row whose step goes back, it is kept; where a key is logged
twice in one row, both values are. ``watch`` and the like have no effect and say so. What needs an
answer of W&B's server (``Api``, ``use_artifact``, ``sweep`` …) raises :class:`UsageError`, which
says what to do.
"""

from __future__ import annotations

import logging
import secrets
import string
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from . import wandb_errors as errors
from . import wandb_plot as plot
from . import wandb_real as real
from ._common import join as _join
from ._common import note
from .wandb_artifact import Artifact, ArtifactTTL
from .wandb_config import Config, Early, Summary, as_dict
from .wandb_errors import CommError, Error, UsageError
from .wandb_integrations import INTEGRATIONS, Integration
from .wandb_media import (
    Audio,
    Classes,
    EvalTable,
    Graph,
    Histogram,
    Html,
    Image,
    JoinedTable,
    Media,
    Molecule,
    Object3D,
    Plotly,
    Table,
    Video,
    box3d,
)
from .wandb_plot import plot_table, visualize
from .wandb_run import Metric
from .wandb_run import WandBWriter as Run

if TYPE_CHECKING:
    from .wandb_run import WandBWriter

__all__ = [
    "AlertLevel", "Api", "Artifact", "ArtifactTTL", "Audio", "Classes", "CommError", "Config",
    "Error", "EvalTable", "Graph", "Histogram", "Html", "Image", "JoinedTable", "Metric",
    "Molecule", "Object3D", "Plotly", "Run", "Settings", "Summary", "Table", "UsageError",
    "Video", "WandBWriter", "__version__",
    "agent", "alert", "box3d", "controller", "define_metric", "errors", "finish", "init", "join",
    "link_model", "log", "log_artifact", "log_code", "log_model", "login", "mark_preempting",
    "plot", "plot_table", "restore", "save", "setup", "sweep", "teardown", "termerror", "termlog",
    "termwarn", "unwatch", "use_artifact", "use_model", "util", "visualize", "watch",
]  # fmt: skip

#: The version of W&B's interface that is mimicked here.
__version__ = "0.31.0"

#: Libraries that W&B's own module has patched: none.
patched: dict[str, list[Any]] = {"tensorboard": [], "keras": [], "gym": []}

# --- the run that the module's functions log to -------------------------------------------------


def _too_early(text: str) -> Error:
    return Error(text)


class _EarlySummary:
    """``wandb.summary`` before ``wandb.init``."""

    def __getattr__(self, name: str) -> Any:
        raise _too_early(f"You must call wandb.init() before wandb.summary.{name}")

    def __setitem__(self, key: str, value: Any) -> None:
        raise _too_early(f"You must call wandb.init() before wandb.summary[{key!r}]")

    def __getitem__(self, key: str) -> Any:
        raise _too_early(f"You must call wandb.init() before wandb.summary[{key!r}]")


run: Run | None = None
#: Before ``init``: what is set here, or a dictionary that is put here, becomes the run's config.
config: Any = Early(_too_early)
summary: Any = _EarlySummary()
_patched = False  # wandb.tensorboard.patch was called before init


def init(*args: Any, **kwargs: Any) -> Run:
    """Begin the run that the module's functions log to; arguments as of :class:`WandBWriter`.

    While one is active it is returned; ``reinit=True`` (or ``"finish_previous"``) ends it first,
    and ``"create_new"`` leaves it and returns another that the module does not log to.
    """
    global run, config, summary
    reinit = kwargs.get("reinit")
    if reinit == "create_new":
        return Run(*args, **kwargs)
    if run is not None:
        if reinit is True or reinit == "finish_previous":
            run.finish()
        else:
            note("wandb.init", "a run is active; it is returned (reinit=True ends it first)")
            return run
    early = {} if isinstance(config, Config) else as_dict(config)
    run = Run(*args, **kwargs)
    run.config.setdefaults(early)
    config, summary = run.config, run.summary
    real.follow(sys.modules[__name__])
    if _patched:
        _join(run.zmq_run)
    return run


def _forget(ended: Run) -> None:
    global run, config, summary
    if run is ended:
        if config is not run.config:  # somebody put a dictionary there meanwhile
            run.config.update(config)
        run, config, summary = None, Early(_too_early), _EarlySummary()
        real.follow(sys.modules[__name__])


Run.ended.append(_forget)


def _active(name: str) -> Run:
    if run is None:
        raise Error(f"You must call wandb.init() before wandb.{name}()")
    return run


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the active run, if there is one."""
    if run is not None:
        run.finish(exit_code)


join = finish


def log(data: Mapping[str, Any], step: int | None = None, commit: bool | None = None) -> None:
    """Log a row to the active run; see :meth:`WandBWriter.log`.

    Raises:
        Error: there is none.
    """
    if run is None:
        raise Error("You must call wandb.init() before wandb.log()")
    run.log(data, step, commit)


def _forward(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(_active(name), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = getattr(Run, name).__doc__
    return call


alert = _forward("alert")
define_metric = _forward("define_metric")
link_model = _forward("link_model")
log_artifact = _forward("log_artifact")
log_code = _forward("log_code")
log_model = _forward("log_model")
mark_preempting = _forward("mark_preempting")
pin_config_keys = _forward("pin_config_keys")
save = _forward("save")
unwatch = _forward("unwatch")
use_artifact = _forward("use_artifact")
use_model = _forward("use_model")
watch = _forward("watch")
restore = _forward("restore")

# --- accounts, settings, messages ---------------------------------------------------------------


def login(*args: Any, **kwargs: Any) -> bool:
    """No account is needed here; the daemon's adapter has one."""
    return True


def setup(*args: Any, **kwargs: Any) -> None:
    """Nothing to set up."""


def teardown(exit_code: int | None = None) -> None:
    """End the active run, if there is one."""
    finish(exit_code)


def ensure_configured() -> None:
    """Nothing to configure."""


def require(*args: Any, **kwargs: Any) -> None:
    """Nothing to choose."""


def attach(*args: Any, **kwargs: Any) -> Run:
    """The active run: a forked process logs to it as it is.

    Raises:
        Error: there is none.
    """
    return _active("attach")


class Settings(SimpleNamespace):
    """Takes any setting; ``mode`` is heeded."""


class AlertLevel:
    """Levels of ``alert``."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


_log = logging.getLogger("zmqtrack")
_told: set[str] = set()


def _term(level: int, text: str, repeat: bool) -> None:
    if repeat or text not in _told:
        _told.add(text)
        _log.log(level, "wandb: %s", text)


def termlog(string: str = "", newline: bool = True, repeat: bool = True, **_: Any) -> None:
    _term(logging.INFO, string, repeat)


def termwarn(string: str, newline: bool = True, repeat: bool = True, **_: Any) -> None:
    _term(logging.WARNING, string, repeat)


def termerror(string: str, newline: bool = True, repeat: bool = True, **_: Any) -> None:
    _term(logging.ERROR, string, repeat)


def termsetup(*args: Any, **kwargs: Any) -> None:
    """Nothing to set up."""


# --- what W&B's server would answer -------------------------------------------------------------


def _asks_server(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            f"wandb.{name} needs W&B's server, which zmqtrack does not ask: use the real package "
            f"for it beside this one, `import wandb as real_wandb; real_wandb.{name}(...)`"
        )

    call.__name__ = call.__qualname__ = name
    call.__doc__ = "Always raises UsageError: W&B's server is not asked from here."
    return call


Api = _asks_server("Api")
sweep = _asks_server("sweep")
agent = _asks_server("agent")
controller = _asks_server("controller")


class _ServerApi:
    """``wandb.api``: W&B's old way to its server."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _asks_server(f"api.{name}")


api = _ServerApi()

# --- modules of W&B's module --------------------------------------------------------------------


def _module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(f"{__name__}.{name}", f"Stands for ``wandb.{name}``.")
    made.__dict__.update(members)
    return made


def generate_id(length: int = 8) -> str:
    """A random name of letters and digits, as W&B makes them for runs."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))


def _patch(*args: Any, **kwargs: Any) -> None:
    """Let each SummaryWriter of zmqtrack that is made from now on log into the active run."""
    global _patched
    _patched = True
    if run is not None:
        _join(run.zmq_run)


def _unpatch(*args: Any, **kwargs: Any) -> None:
    global _patched
    _patched = False


util = _module(
    "util", generate_id=generate_id, json_friendly=lambda obj: (obj, False), make_safe=str
)
data_types = _module(
    "data_types",
    **{
        kind.__name__: kind
        for kind in (
            Audio, Classes, Graph, Histogram, Html, Image, JoinedTable, Molecule, Object3D, Plotly,
            Table, Video,
        )
    },
    WBValue=Media,
)  # fmt: skip
env = _module("env", MODE="WANDB_MODE", PROJECT="WANDB_PROJECT", NAME="WANDB_NAME",
              ENTITY="WANDB_ENTITY", API_KEY="WANDB_API_KEY", BASE_URL="WANDB_BASE_URL",
              RUN_GROUP="WANDB_RUN_GROUP", RUN_ID="WANDB_RUN_ID", DIR="WANDB_DIR",
              NOTES="WANDB_NOTES", TAGS="WANDB_TAGS", RESUME="WANDB_RESUME",
              DISABLED="WANDB_DISABLED", SILENT="WANDB_SILENT")  # fmt: skip
wandb_sdk = sdk = _module(
    "sdk",
    wandb_run=_module("sdk.wandb_run", Run=Run),
    wandb_config=_module("sdk.wandb_config", Config=Config),
    wandb_summary=_module("sdk.wandb_summary", Summary=Summary),
    lib=_module("sdk.lib", runid=_module("sdk.lib.runid", generate_id=generate_id)),
    Settings=Settings,
    Artifact=Artifact,
    Config=Config,
)
tensorboard = tensorflow = _module("tensorboard", patch=_patch, unpatch=_unpatch)


def __getattr__(name: str) -> Any:
    if name == "WandBWriter":  # who takes it uses it, and the real wandb beside it if at all
        real.leave_alone()
        return Run
    if name in INTEGRATIONS:
        return Integration(name, lambda: run.zmq_run if run is not None else None)
    raise AttributeError(
        f"{__name__} has no {name!r}: it carries what W&B logs to a run, and nothing else"
    )


real.watch(sys.modules[__name__])
