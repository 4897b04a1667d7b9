"""TensorBoard's syntax: ``SummaryWriter`` of torch, tensorboardX and NVFLARE.

::

    from zmqtrack.writers.tensorboard import SummaryWriter   # the only line that changes

    with SummaryWriter("runs/mnist/lr0.1") as writer:
        writer.add_scalar("loss", loss, step)

**Where it goes.** Without other names, the last part of ``log_dir`` is the run and the one before
it the experiment, unless that is a customary root (``runs``, ``logs`` …):

=================== ============== =========
log_dir             experiment     run
=================== ============== =========
runs/exp1           default        exp1
runs/mnist/lr0.1    mnist          lr0.1
none                default        date, time and a few letters, and ``comment``
=================== ============== =========

The site is the host's name. ``ZMQTRACK_EXPERIMENT``, ``ZMQTRACK_RUN`` and ``ZMQTRACK_SITE``, which
a federation's launcher sets, come before ``log_dir`` (it is then the tag ``log_dir``); the
arguments ``experiment=``, ``run=`` and ``site=`` come before both. A second writer of the process
with another ``log_dir`` (train and validation) stays apart from the first: under
``ZMQTRACK_RUN=job`` its run is ``job.LAST-PART``. Two writers with one ``log_dir`` share a run.

**What differs.** Nothing is written to ``log_dir``. A step that was not given stays none; steps
that repeat or go back are kept. Scalars keep 64 bits. ``add_scalars(main, {"a": 1})`` is the metric
``main/a`` of the same run. Graphs, embeddings, audio, video, meshes, PR curves, tensors and layouts
have no tracker-neutral form: the first such call says so, all are counted, none raises.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from types import TracebackType
from typing import Any

from ..arrays import is_array, to_host
from ..histogram import summarise
from ..image import encode_image
from ..run import Run, _new_name, status_after
from ._common import also_called, begin, disabled_run, joined, lose, note

__all__ = ["FileWriter", "SummaryWriter"]

#: Folders that hold runs and name no experiment.
ROOTS = frozenset(
    {"runs", "logs", "log", "logdir", "tensorboard", "tb", "tb_logs", "lightning_logs", "tmp", "/"}
)

_MISSING: Any = object()


class SummaryWriter:
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
    ) -> None:
        log_dir = log_dir if log_dir is not None else logdir
        given = os.fspath(log_dir) if log_dir else None
        if zmq_run is None and write_to_disk and not (experiment or run or site or address):
            zmq_run = joined()  # of W&B's syntax with sync_tensorboard
        self._owns_run = zmq_run is None
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
            lost = [part for part, name in names.items() if getattr(self.run.key, part) != name]
            if given and any(names[part] for part in lost):
                self.run.set_tag("log_dir", given)
        if purge_step is not None:
            note("SummaryWriter(purge_step)", "nothing is purged; repeated steps are kept")
        if comet_config is not None and not comet_config.get("disabled", True):
            note("SummaryWriter(comet_config)", "without effect; the daemon chooses the trackers")
        self.log_dir = given or f"runs/{self.run.key.run}"
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self.file_writer = FileWriter(self)
        self.all_writers = {self.log_dir: self.file_writer}
        self._log_metric = self.run.log_metric

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
        display_name: str = "",
        summary_description: str = "",
    ) -> None:
        """Log a number (NVFLARE's name for it is ``scalar``); ``walltime`` in seconds.

        Raises:
            TypeError: no number, or no integer step.
        """
        if scalar_value is _MISSING:
            if scalar is _MISSING:
                raise TypeError("add_scalar() needs a value: add_scalar(tag, scalar_value, step)")
            scalar_value = scalar
        self._log_metric(tag, scalar_value, global_step, walltime)

    @also_called(tag="main_tag", scalars="tag_scalar_dict")
    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """Log several numbers as ``main_tag/tag``; all of them or, on an error, none."""
        metrics = {f"{main_tag}/{tag}": value for tag, value in tag_scalar_dict.items()}
        self.run.log_metrics(metrics, global_step, walltime)

    def add_text(
        self,
        tag: str,
        text_string: str,
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """Log text, which TensorBoard shows as Markdown."""
        self.run.log_text(tag, text_string, global_step, walltime)

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str | None = "CHW",
    ) -> None:
        """Log an image: uint8, or floats where 1 is full; other forms as ``log_image`` takes."""
        self.run.log_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str | None = "NCHW",
    ) -> None:
        """Log a stack of images as one grid of 8 columns, as torch does."""
        self.run.log_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: Sequence[str] | None = None,
    ) -> None:
        """Log an image with boxes drawn on it, each (left, top, right, bottom) in pixels.

        Pillow draws them; where it is not installed the image is logged without boxes, and the
        first such call says so.
        """
        image = encode_image(img_tensor, dataformats)
        try:
            from PIL import Image, ImageDraw
        except ImportError:
            lose(self.run, "add_image_with_boxes", "boxes need Pillow; the image alone is logged")
        else:
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            draw = ImageDraw.Draw(picture)
            boxes = to_host(box_tensor) if is_array(box_tensor) else box_tensor
            for number, box in enumerate(boxes):
                left, top, right, bottom = (float(edge) for edge in box)
                draw.rectangle((left, top, right, bottom), outline="red", width=2)
                if labels is not None:
                    draw.text((left + 3, top + 2), str(labels[number]), fill="red")
            size = int(picture.width * rescale), int(picture.height * rescale)
            image = encode_image(picture if rescale == 1 else picture.resize(size))
        self.run.log_image(tag, image, global_step, walltime)

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
            self.run.log_image(tag, [_render(f) for f in figures], global_step, walltime, "NHWC")
        else:
            figures = [figure]
            self.run.log_image(tag, figure, global_step, walltime)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if close and pyplot is not None:
            for each in figures:
                pyplot.close(each)

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
        if max_bins is not None:
            values = _fewer_bins(summarise(values, bins), max_bins)
        self.run.log_histogram(tag, values, global_step, walltime, bins)

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
            TypeError, ValueError: limits and counts that do not belong together.
        """
        limits = [float(limit) for limit in _listed(bucket_limits)]
        counts = _listed(bucket_counts)
        if len(limits) != len(counts) or not counts:
            raise ValueError(
                f"{len(counts)} bucket_counts need as many bucket_limits, not {len(limits)}"
            )
        if counts[0] == 0 and len(counts) > 1:
            counts = counts[1:]
        else:
            left = float(min)
            limits = [left if left < limits[0] else limits[0] - (abs(limits[0]) or 1.0), *limits]
        summary = {
            "counts": counts,
            "edges": limits,
            "min": float(min),
            "max": float(max),
            "num": num,
            "sum": float(sum),
            "sum_squares": float(sum_squares),
        }
        self.run.log_histogram(tag, summarise(summary), global_step, walltime)

    @also_called(name="run_name")
    def add_hparams(
        self,
        hparam_dict: Mapping[str, Any],
        metric_dict: Mapping[str, Any],
        hparam_domain_discrete: Mapping[str, Sequence[Any]] | None = None,
        run_name: str | None = None,
        global_step: int | None = None,
    ) -> None:
        """Log hyperparameters as params and their results as metrics, of this same run.

        ``run_name`` (tensorboardX: ``name``), for which torch makes a run of its own below
        ``log_dir``, becomes the tag ``hparams_run_name``; ``hparam_domain_discrete`` is a filter
        of TensorBoard's page and has no effect.

        Raises:
            TypeError: one of the two is no dictionary, or a metric is no number.
        """
        if not isinstance(hparam_dict, Mapping) or not isinstance(metric_dict, Mapping):
            raise TypeError("hparam_dict and metric_dict must be dictionaries")
        self.run.log_metrics(metric_dict, global_step)
        self.run.log_params(hparam_dict)
        if isinstance(run_name, str):
            self.run.set_tag("hparams_run_name", run_name)

    # --- what is not --------------------------------------------------------------------------

    def add_graph(
        self,
        model: Any,
        input_to_model: Any = None,
        verbose: bool = False,
        use_strict_trace: bool = True,
    ) -> None:
        lose(self.run, "add_graph")

    def add_onnx_graph(self, prototxt: Any) -> None:
        lose(self.run, "add_onnx_graph")

    def add_openvino_graph(self, xmlname: Any) -> None:
        lose(self.run, "add_openvino_graph")

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: int | None = None,
        tag: str = "default",
        metadata_header: Any = None,
    ) -> None:
        lose(self.run, "add_embedding")

    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: int | None = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        lose(self.run, "add_audio")

    def add_video(
        self,
        tag: str,
        vid_tensor: Any,
        global_step: int | None = None,
        fps: float = 4,
        walltime: float | None = None,
        dataformats: str = "NTCHW",
    ) -> None:
        lose(self.run, "add_video")

    def add_mesh(
        self,
        tag: str,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: Any = None,
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        lose(self.run, "add_mesh")

    def add_pr_curve(
        self,
        tag: str,
        labels: Any,
        predictions: Any,
        global_step: int | None = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        lose(self.run, "add_pr_curve")

    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: int | None = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        lose(self.run, "add_pr_curve_raw")

    def add_tensor(
        self, tag: str, tensor: Any, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        lose(self.run, "add_tensor")

    def add_custom_scalars(self, layout: Any) -> None:
        lose(self.run, "add_custom_scalars", "layouts are chosen in the tracker")

    def add_custom_scalars_marginchart(
        self, tags: Any, category: str = "default", title: str = "untitled"
    ) -> None:
        lose(self.run, "add_custom_scalars_marginchart", "layouts are chosen in the tracker")

    def add_custom_scalars_multilinechart(
        self, tags: Any, category: str = "default", title: str = "untitled"
    ) -> None:
        lose(self.run, "add_custom_scalars_multilinechart", "layouts are chosen in the tracker")

    # --- life ---------------------------------------------------------------------------------

    def get_logdir(self) -> str:
        """The folder that was given; nothing is written there."""
        return self.log_dir

    def flush(self) -> None:
        """Wait until what was logged is on this machine's disk; does not wait for the network."""
        self.run.flush()

    def close(self) -> None:
        """End the run, delivering what is left within its ``exit_timeout``."""
        self._end("finished")

    def _end(self, status: str) -> None:
        if self._owns_run:
            self.run.finish(status)
        else:
            self.run.flush()

    def _get_file_writer(self) -> FileWriter:
        return self.file_writer

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(status_after(error))


class FileWriter:
    """Stands where torch's writer has its event file, for code that reaches for it."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def get_logdir(self) -> str:
        return self._writer.log_dir

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def reopen(self) -> None:
        """There is no file to open."""

    def add_event(self, event: Any, step: Any = None, walltime: Any = None) -> None:
        lose(self._writer.run, "add_event")

    def add_summary(self, summary: Any, global_step: Any = None, walltime: Any = None) -> None:
        lose(self._writer.run, "add_summary")

    def add_graph(self, graph_profile: Any, walltime: Any = None) -> None:
        lose(self._writer.run, "add_graph")


def _names(log_dir: str) -> dict[str, str | None]:
    """Experiment and run that a folder's path names."""
    parts = [part for part in PurePath(log_dir).parts if part not in (".", "..", os.sep)]
    if not parts:
        return {"run": _new_name()}
    parent = parts[-2] if len(parts) > 1 else None
    return {"experiment": None if parent in ROOTS else parent, "run": parts[-1]}


def _listed(values: Any) -> list[Any]:
    values = to_host(values) if is_array(values) else values
    return list(values.tolist() if is_array(values) else values)


def _render(figure: Any) -> Any:
    """A figure's pixels, HWC."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3]


def _fewer_bins(summary: dict[str, Any], most: int) -> dict[str, Any]:
    """Put neighbouring bins together until there are ``most`` or fewer."""
    if most < 1:
        raise ValueError(f"max_bins must be at least 1, not {most}")
    counts, edges = summary["counts"], summary["edges"]
    together = -(-len(counts) // most)
    cuts = [*range(0, len(counts), together), len(counts)]
    return {
        **summary,
        "counts": [sum(counts[left:right]) for left, right in pairwise(cuts)],
        "edges": [edges[cut] for cut in cuts],
    }
