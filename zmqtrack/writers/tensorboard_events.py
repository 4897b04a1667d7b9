"""Where TensorBoard's writers have their event file, for code that reaches for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from ._common import lose

if TYPE_CHECKING:
    from .tensorboard import SummaryWriter

__all__ = ["FileWriter", "RecordWriter"]


class FileWriter:
    """Takes events that somebody made, and logs what is in them.

    Args:
        log_dir: names experiment and run, as for a SummaryWriter, which is then ``writer``.
        writer: log into this one's run.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
        *,
        logdir: str | os.PathLike[str] | None = None,
        writer: SummaryWriter | None = None,
    ) -> None:
        if writer is None:
            from .tensorboard import SummaryWriter

            writer = SummaryWriter(log_dir if logdir is None else logdir)
        self._writer = writer

    def get_logdir(self) -> str:
        return self._writer.log_dir

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def reopen(self) -> None:
        """The next call opens it."""

    @contextmanager
    def use_metadata(
        self, *, global_step: int | None = None, walltime: float | None = None
    ) -> Iterator[FileWriter]:
        """As :meth:`zmqtrack.SummaryWriter.use_metadata`."""
        with self._writer.use_metadata(global_step=global_step, walltime=walltime):
            yield self

    def add_event(self, event: Any, step: Any = None, walltime: Any = None) -> None:
        """Log what a protocol buffer ``Event`` of tensorboard or tensorboardX holds."""
        if event.WhichOneof("what") != "summary":
            lose(self._writer._open(), "add_event", "it holds no summary")
            return
        step = event.step if step is None else step
        self.add_summary(event.summary, step, walltime or event.wall_time or None)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Log what a ``Summary`` holds: scalars, images, histograms, texts and hyperparameters.

        Anything else is counted, and the first is said.
        """
        for value in getattr(summary, "value", [None]):
            try:
                self._log(value, global_step, walltime)
            except (AttributeError, ImportError, ValueError) as error:
                lose(self._writer._open(), "add_summary", str(error))

    def add_graph(self, graph_profile: Any, walltime: Any = None) -> None:
        lose(self._writer._open(), "add_graph")

    def add_onnx_graph(self, graph: Any, walltime: Any = None) -> None:
        lose(self._writer._open(), "add_onnx_graph")

    def add_openvino_graph(self, graph: Any, walltime: Any = None) -> None:
        lose(self._writer._open(), "add_openvino_graph")

    def _log(self, value: Any, step: Any, walltime: Any) -> None:
        writer, tensor = self._writer, value.tensor
        plugin = value.metadata.plugin_data.plugin_name
        match value.WhichOneof("value"):
            case "simple_value":
                writer.add_scalar(value.tag, value.simple_value, step, walltime)
            case "tensor" if plugin == "scalars" and (tensor.float_val or tensor.double_val):
                number = (tensor.float_val or tensor.double_val)[0]
                writer.add_scalar(value.tag, number, step, walltime)
            case "tensor" if plugin == "text":
                tag = value.tag.removesuffix("/text_summary")  # which add_text has given it
                for text in tensor.string_val:
                    writer.add_text(tag, text, step, walltime)
            case "image":
                image = bytes(value.image.encoded_image_string)
                writer.add_image(value.tag, image, step, walltime)
            case "histo":
                h = value.histo
                facts = (h.min, h.max, h.num, h.sum, h.sum_squares)
                limits, counts = list(h.bucket_limit), list(h.bucket)
                writer.add_histogram_raw(value.tag, *facts, limits, counts, step, walltime)
            case _ if plugin == "hparams":
                self._log_hparams(value)
            case _:
                lose(writer._open(), "add_summary", "no tracker-neutral form of it exists")

    def _log_hparams(self, value: Any) -> None:
        """The hyperparameters in it; what it says of the page and of the end is not needed."""
        if type(value).__module__.startswith("tensorboardX"):
            from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
        else:
            from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
                HParamsPluginData,
            )

        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        params = {}
        for name, held in data.session_start_info.hparams.items():
            kind = held.WhichOneof("kind")
            params[name] = getattr(held, kind) if kind != "null_value" and kind else None
        self._writer._open().log_params(params)


class RecordWriter:
    """Not carried: it writes a file of records that is for its caller, and for no tracker."""

    def __init__(self, path: Any, *others: Any) -> NoReturn:
        raise NotImplementedError(
            f"zmqtrack writes no record files: for {path!r} take RecordWriter from "
            "tensorboard.summary.writer.record_writer or from tensorboardX"
        )
