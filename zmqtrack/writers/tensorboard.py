"""TensorBoard's syntax: ``SummaryWriter`` of torch, tensorboardX and NVFLARE.

::

    from zmqtrack.writers.tensorboard import SummaryWriter   # the only line that changes

    with SummaryWriter("runs/mnist/lr0.1") as writer:
        writer.add_scalar("loss", loss, step)

**Where it goes.** Without other names, the last part of ``log_dir`` is the run and the one before
it the experiment, unless that is a customary root (``runs``, ``logs`` …):

=================== ============== ======================================================
log_dir             experiment     run
=================== ============== ======================================================
runs/exp1           default        exp1
runs/mnist/lr0.1    mnist          lr0.1
none                default        date, time and a few letters, and ``comment``
=================== ============== ======================================================

The site is the host's name. ``ZMQTRACK_EXPERIMENT``, ``ZMQTRACK_RUN`` and ``ZMQTRACK_SITE``, which
a federation's launcher sets, come before ``log_dir`` (it is then the tag ``log_dir``); the
arguments ``experiment=``, ``run=`` and ``site=`` come before both. A second writer of the process
with another ``log_dir`` (train and validation) stays apart from the first: under
``ZMQTRACK_RUN=job`` its run is ``job.LAST-PART``. Two writers with one ``log_dir`` share a run.

**The folder** is made, as torch makes it, because scripts put checkpoints there and choose the
next ``version_N`` by what is there. The default is torch's too, ``runs/DATE_HOST`` and
``comment``. No event file is written. A folder that cannot be made is said, and does not raise.

**A closed writer** opens again with the next call, as torch's does, under the same names: in a
tracker the run goes on, and ends again with the next ``close``.

**What differs.** A step that was not given stays none; steps that repeat or go back are kept.
Scalars keep 64 bits. What ``add_scalars(main, {"a": 1})`` logs is one chart with several lines in
TensorBoard, and the metric ``main/a`` elsewhere. The first ``add_hparams`` of a writer gives the
params and metrics of its run, each later one those of a trial in it (a run of its own below it in
TensorBoard, ``RUN_NAME/KEY`` elsewhere). Graphs, embeddings, audio, video, meshes, PR curves,
tensors and layouts have no tracker-neutral form: the first such call says so, all are counted,
none raises. A tag that is empty, over 1,000 bytes or has control characters is spelled otherwise,
which is said. Other keyword arguments than those named are taken, as NVFLARE's writers take them,
and have no effect, which is said too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..histogram import default_edges, summarise
from ..image import encode_image
from ..records import as_number
from ..run import Run, _new_name, init, status_after
from . import tensorboard_values as values_of
from ._common import also_called, begin, disabled_run, joined, lose, note
from .tensorboard_events import FileWriter, RecordWriter
from .tensorboard_uncarried import Uncarried

if TYPE_CHECKING:
    from .tensorboard_global import GlobalSummaryWriter, TorchVis

__all__ = ["FileWriter", "GlobalSummaryWriter", "RecordWriter", "SummaryWriter", "TorchVis"]

#: The version of tensorboardX whose functions these are like.
__version__ = "2.6.5"

#: Folders that hold runs and name no experiment.
ROOTS = frozenset(
    {"runs", "logs", "log", "logdir", "tensorboard", "tb", "tb_logs", "lightning_logs", "tmp", "/"}
)
#: Numbers of ``add_scalars`` that are remembered for ``export_scalars_to_json``.
EXPORTED = 100_000

_MISSING: Any = object()


class SummaryWriter(Uncarried):
    """Logs what TensorBoard's writers log, to one :class:`zmqtrack.Run` (attribute ``run``).

    Args:
        log_dir: names experiment and run, as the module says. Also called ``logdir``.
        comment: is appended to the run's name when neither ``log_dir`` nor anything else names it.
        purge_step: nothing is purged: what is logged again after a crash is kept twice.
        max_queue, flush_secs, filename_suffix: without effect; everything is on disk within
            50 ms and there is no event file.
        write_to_disk: False, as on the ranks that shall not log: nothing is logged.
        experiment, run, site, address: as in :func:`zmqtrack.init`.
        zmq_run: log into this run, which the writer then flushes and does not finish.

    Raises:
        TypeError, ValueError: names that cannot be used.
        SpoolError: no folder for the spool.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
        write_to_disk: bool = True,
        *,
        logdir: str | os.PathLike[str] | None = None,
        comet_config: Mapping[str, Any] | None = None,
        experiment: str | None = None,
        run: str | None = None,
        site: str | None = None,
        address: str | None = None,
        zmq_run: Run | None = None,
        **others: Any,
    ) -> None:
        _unused("SummaryWriter", others)
        log_dir = log_dir if log_dir is not None else logdir
        given = os.fspath(log_dir) if log_dir else None
        if zmq_run is None and write_to_disk and not (experiment or run or site or address):
            zmq_run = joined()  # of W&B's syntax with sync_tensorboard
        self.log_dir = given or _default_log_dir(comment)
        #: Begins the run anew after ``close``; None: it is not ours to end.
        self._begin: Callable[[], Run] | None = None
        if zmq_run is not None:
            self.run = zmq_run
        elif not write_to_disk:
            self.run = disabled_run()
        else:
            names = _names(given) if given else {"run": f"{_new_name()}{comment}"}
            self.run = begin(
                {"experiment": experiment, "run": run, "site": site},
                names,
                tags={},
                # Writers without a folder of their own are told apart by nothing: one run.
                identity=given or "",
                label=names["run"] if given else None,
                exact=run is not None,
                address=address,
            )
            self._begin = partial(init, *self.run.key, self.run.address)
            lost = [part for part, name in names.items() if getattr(self.run.key, part) != name]
            if given and any(names[part] for part in lost):
                self.run.set_tag("log_dir", self.log_dir)
        if write_to_disk:
            _make_folder(self.log_dir)
        if purge_step is not None:
            note("SummaryWriter(purge_step)", "nothing is purged; repeated steps are kept")
        if comet_config is not None and not comet_config.get("disabled", True):
            note("SummaryWriter(comet_config)", "without effect; the daemon chooses the trackers")
        self.logdir = self.log_dir
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self._exported: list[tuple[str, float, Any, dict[str, float]]] = []
        self._exportable = EXPORTED
        self._defaults: tuple[Any, Any] | None = None
        self._trials = 0
        self.file_writer: FileWriter | None = None
        self.all_writers: dict[str, FileWriter] | None = None
        self._ended = False
        self._log_metric: Callable[..., None]
        self._get_file_writer()

    # --- what is carried ----------------------------------------------------------------------

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any = _MISSING,
        global_step: int | None = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
        *,
        scalar: Any = _MISSING,
        **others: Any,
    ) -> None:
        """Log a number (NVFLARE's name for it is ``scalar``); ``walltime`` in seconds.

        Raises:
            TypeError: no number, or a step that is none.
        """
        if scalar_value is _MISSING:
            if scalar is _MISSING:
                raise TypeError("add_scalar() needs a value: add_scalar(tag, scalar_value, step)")
            scalar_value = scalar
        try:
            self._log_metric(tag, scalar_value, global_step, walltime)
        except TypeError:
            meant = values_of.tag(tag), values_of.number(scalar_value)
            if meant[0] is tag and meant[1] is scalar_value:
                raise
            self._log_metric(*meant, global_step, walltime)
        if others:
            _unused("add_scalar", others)

    @also_called(tag="main_tag", scalars="tag_scalar_dict")
    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        walltime: float | None = None,
        **others: Any,
    ) -> None:
        """Log several numbers as lines of one chart; all of them or, on an error, none."""
        step, when = self._at(global_step, walltime)
        when = time.time() if when is None else float(when)
        chart = values_of.tag(main_tag)
        numbers = {
            line: value if value.__class__ is float else as_number(line, values_of.number(value))
            for line, value in tag_scalar_dict.items()
        }
        self._open().log_metrics(numbers, step, when, chart=chart)
        self._exportable -= len(numbers)
        if self._exportable >= 0:
            self._exported.append((chart, when, step, numbers))
        if others:
            _unused("add_scalars", others)

    @property
    def scalar_dict(self) -> dict[str, list[list[Any]]]:
        """The numbers of ``add_scalars`` that :meth:`export_scalars_to_json` would write."""
        found: dict[str, list[list[Any]]] = {}
        for chart, when, step, numbers in self._exported:
            for line, number in numbers.items():
                found.setdefault(f"{self.log_dir}/{chart}/{line}", []).append([when, step, number])
        return found

    def export_scalars_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers of ``add_scalars`` to a file and forget them; tensorboardX's.

        It maps a name to lists of time, step and value: of some 100,000 numbers since the last
        call, the first, which is said where there were more.
        """
        if self._exportable < 0:
            note("export_scalars_to_json", f"more than {EXPORTED} numbers: the first are written")
        Path(path).write_text(json.dumps(self.scalar_dict))
        self._exported, self._exportable = [], EXPORTED

    @also_called(text="text_string")
    def add_text(
        self,
        tag: str,
        text_string: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        **others: Any,
    ) -> None:
        """Log text, which TensorBoard shows as Markdown; of anything else its ``str``."""
        if isinstance(text_string, bytes):
            text_string = text_string.decode(errors="replace")
        self._open().log_text(
            values_of.tag(tag), str(text_string), *self._at(global_step, walltime)
        )
        _unused("add_text", others)

    @also_called(image="img_tensor")
    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str | None = "CHW",
        **others: Any,
    ) -> None:
        """Log an image: uint8, or numbers where 1 is full; other forms as ``log_image`` takes."""
        self._log_image(tag, values_of.pixels(img_tensor), global_step, walltime, dataformats)
        _unused("add_image", others)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str | None = "NCHW",
    ) -> None:
        """Log a stack of images, or a list of them, as one grid of 8 columns, as torch does."""
        if isinstance(img_tensor, (list, tuple)):
            img_tensor, dataformats = values_of.stack(img_tensor, dataformats)
        self._log_image(tag, values_of.pixels(img_tensor), global_step, walltime, dataformats)

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        rescale: float | str = 1,
        dataformats: Any = "CHW",
        labels: Sequence[str] | str | None = None,
    ) -> None:
        """Log an image with boxes drawn on it, each (left, top, right, bottom) in pixels.

        Pillow draws them; where it is not installed the image is logged without boxes, and the
        first such call says so.
        """
        if isinstance(rescale, str):  # tensorboardX has dataformats and labels in these places
            labels = labels if dataformats == "CHW" else dataformats
            rescale, dataformats = 1, rescale
        image = encode_image(values_of.pixels(img_tensor), dataformats)
        try:
            image = values_of.boxes(image, box_tensor, labels, rescale)
        except ImportError:
            what = "add_image_with_boxes"
            lose(self._open(), what, "boxes need Pillow; the image alone is logged")
        self._log_image(tag, image, global_step, walltime)

    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: int | None = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Log a matplotlib figure, or several of one size as a grid; ``close`` closes them."""
        if isinstance(figure, (list, tuple)):
            figures = list(figure)
            drawn = [values_of.figure(each) for each in figures]
            self._log_image(tag, drawn, global_step, walltime, "NHWC")
        else:
            figures = [figure]
            self._log_image(tag, figure, global_step, walltime)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if close and pyplot is not None:
            for each in figures:
                pyplot.close(each)

    def _log_image(
        self, tag: str, image: Any, step: Any, walltime: Any, dataformats: str | None = None
    ) -> None:
        step, when = self._at(step, walltime)
        self._open().log_image(values_of.tag(tag), image, step, when, dataformats)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: int | None = None,
        bins: int | str | Sequence[float] = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Log the distribution of ``values``; see :func:`zmqtrack.histogram.summarise`.

        With ``max_bins``, neighbours are put together until there are no more than that. Values
        that are not finite are counted beside the bins and do not raise.
        """
        values, bins = values_of.real(values), values_of.bins(bins)
        if max_bins is not None:
            values = values_of.fewer_bins(summarise(values, bins), max_bins)
        step, when = self._at(global_step, walltime)
        self._open().log_histogram(values_of.tag(tag), values, step, when, bins)

    def add_histogram_raw(
        self,
        tag: str,
        min: float,
        max: float,
        num: int,
        sum: float,
        sum_squares: float,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """Log a histogram that was made elsewhere.

        Args:
            bucket_limits: the right edge of each bucket, increasing.
            bucket_counts: as many counts. If the first is 0, that bucket only gives the left edge
                of the next one; else the first bucket begins at ``min``.

        Raises:
            ValueError: not as many limits as counts. One that cannot be used for another reason
                is counted and said: torch takes anything.
        """
        edges, counts = values_of.raw_bins(min, bucket_limits, bucket_counts)
        facts = {"min": min, "max": max, "num": num, "sum": sum, "sum_squares": sum_squares}
        try:
            summary = summarise({"counts": counts, "edges": edges, **facts})
        except ValueError as error:
            lose(self._open(), "add_histogram_raw", str(error))
            return
        step, when = self._at(global_step, walltime)
        self._open().log_histogram(values_of.tag(tag), summary, step, when)

    @also_called(name="run_name")
    def add_hparams(
        self,
        hparam_dict: Mapping[str, Any],
        metric_dict: Mapping[str, Any],
        hparam_domain_discrete: Mapping[str, Sequence[Any]] | None = None,
        run_name: str | None = None,
        global_step: int | None = None,
    ) -> None:
        """Log hyperparameters and their results: those of this run, or of one more trial in it.

        What the first call of a writer gives are the run's params and metrics. Each later one
        gives those of a trial called ``run_name`` (tensorboardX: ``name``; default: its number),
        which is a run below this one in TensorBoard, and ``run_name/KEY`` in other trackers.
        The first call's ``run_name`` becomes the tag ``hparams_run_name``;
        ``hparam_domain_discrete`` is a filter of TensorBoard's page and has no effect.

        Raises:
            TypeError: one of the two is no dictionary, or a metric is no number.
        """
        if not isinstance(hparam_dict, Mapping) or not isinstance(metric_dict, Mapping):
            raise TypeError("hparam_dict and metric_dict must be dictionaries")
        run, (step, when) = self._open(), self._at(global_step, None)
        metrics = {key: values_of.number(value) for key, value in metric_dict.items()}
        if self._trials:
            trial = run_name if isinstance(run_name, str) and run_name else f"{self._trials + 1}"
            run.log_trial(trial, hparam_dict, metrics, step, when)
        else:
            run.log_metrics(metrics, step, when)
            run.log_params(hparam_dict)
            if isinstance(run_name, str) and run_name:
                run.set_tag("hparams_run_name", run_name)
        self._trials += 1

    # --- life ---------------------------------------------------------------------------------

    @cached_property
    def default_bins(self) -> list[float]:
        """The edges of the bins that are called ``"tensorflow"``."""
        return list(default_edges())

    def get_logdir(self) -> str:
        """The folder that was given; zmqtrack writes nothing there."""
        return self.log_dir

    @contextmanager
    def use_metadata(
        self, *, global_step: int | None = None, walltime: float | None = None
    ) -> Iterator[SummaryWriter]:
        """Give calls that have none this step, this time; tensorboardX's."""
        self._defaults = global_step, walltime
        self._aim()
        try:
            yield self
        finally:
            self._defaults = None
            self._aim()

    def _at(self, step: Any, walltime: Any) -> tuple[Any, Any]:
        """Step and time of a call, from ``use_metadata`` where it has none."""
        if self._defaults is None:
            return step, walltime
        default_step, default_time = self._defaults
        return (
            default_step if step is None else step,
            default_time if walltime is None else walltime,
        )

    def flush(self) -> None:
        """Wait until what was logged is on this machine's disk; does not wait for the network."""
        self.run.flush()

    def close(self) -> None:
        """End the run, delivering what is left within its ``exit_timeout``; a call opens it."""
        self._end("finished")

    def _end(self, status: str) -> None:
        if self.file_writer is None:
            return
        self.file_writer = self.all_writers = None
        self._aim()
        if self._begin is None:
            self.run.flush()
        else:
            self.run.finish(status)
            self._ended = True

    def _open(self) -> Run:
        """The run to log to, begun again if the writer has been closed."""
        self._get_file_writer()
        return self.run

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            if self._ended and self._begin is not None:
                self.run, self._ended = self._begin(), False
            self.file_writer = FileWriter(self.log_dir, writer=self)
            self.all_writers = {self.log_dir: self.file_writer}
            self._aim()
        return self.file_writer

    def _aim(self) -> None:
        """Choose what ``add_scalar`` calls: the run itself, unless something stands between."""
        direct = self.file_writer is not None and self._defaults is None
        self._log_metric = self.run.log_metric if direct else self._log_metric_indirectly

    def _log_metric_indirectly(self, tag: Any, value: Any, step: Any, walltime: Any) -> None:
        step, when = self._at(step, walltime)
        self._open().log_metric(tag, value, step, when)

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(status_after(error))


def _names(log_dir: str) -> dict[str, str | None]:
    """Experiment and run that a folder's path names."""
    parts = [part for part in PurePath(log_dir).parts if part not in (".", "..", os.sep)]
    if not parts:
        return {"run": _new_name()}
    parent = parts[-2] if len(parts) > 1 else None
    return {"experiment": None if parent in ROOTS else parent, "run": parts[-1]}


def _default_log_dir(comment: str) -> str:
    """The folder that torch takes where none is named."""
    return f"runs/{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}{comment}"


def _make_folder(log_dir: str) -> None:
    if "://" in log_dir:
        return  # in a store of objects, where there are no folders
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(
            "SummaryWriter(log_dir)",
            f"the folder cannot be made ({error}); zmqtrack writes nothing there, but what the "
            "program itself puts there has no place",
        )


def _unused(what: str, others: Mapping[str, Any]) -> None:
    for name in others:
        note(f"{what}({name})", "is taken and has no effect")


def __getattr__(name: str) -> Any:
    """tensorboardX's wrappers stand on this module, and so come after it."""
    if name in ("GlobalSummaryWriter", "TorchVis"):
        from . import tensorboard_global

        return getattr(tensorboard_global, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
