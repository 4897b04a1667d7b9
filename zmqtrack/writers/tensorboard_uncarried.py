"""Calls of a SummaryWriter that have no tracker-neutral form: counted, and said once."""

from __future__ import annotations

from typing import Any

from ..run import Run
from ._common import lose

__all__ = ["Uncarried"]

_LAYOUT = "layouts are chosen in the tracker"


class Uncarried:
    """The methods of :class:`zmqtrack.SummaryWriter` that log nothing."""

    def _open(self) -> Run:
        raise NotImplementedError

    def add_graph(
        self,
        model: Any,
        input_to_model: Any = None,
        verbose: bool = False,
        use_strict_trace: bool = True,
    ) -> None:
        lose(self._open(), "add_graph")

    def add_onnx_graph(self, prototxt: Any = None, *, onnx_model_file: Any = None) -> None:
        lose(self._open(), "add_onnx_graph")

    def add_openvino_graph(self, xmlname: Any) -> None:
        lose(self._open(), "add_openvino_graph")

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: int | None = None,
        tag: str = "default",
        metadata_header: Any = None,
    ) -> None:
        lose(self._open(), "add_embedding")

    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: int | None = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        lose(self._open(), "add_audio")

    def add_video(
        self,
        tag: str,
        vid_tensor: Any,
        global_step: int | None = None,
        fps: float = 4,
        walltime: float | None = None,
        dataformats: str = "NTCHW",
    ) -> None:
        lose(self._open(), "add_video")

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
        lose(self._open(), "add_mesh")

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
        lose(self._open(), "add_pr_curve")

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
        lose(self._open(), "add_pr_curve_raw")

    def add_tensor(
        self, tag: str, tensor: Any, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        lose(self._open(), "add_tensor")

    def add_custom_scalars(self, layout: Any) -> None:
        lose(self._open(), "add_custom_scalars", _LAYOUT)

    def add_custom_scalars_marginchart(
        self, tags: Any, category: str = "default", title: str = "untitled"
    ) -> None:
        lose(self._open(), "add_custom_scalars_marginchart", _LAYOUT)

    def add_custom_scalars_multilinechart(
        self, tags: Any, category: str = "default", title: str = "untitled"
    ) -> None:
        lose(self._open(), "add_custom_scalars_multilinechart", _LAYOUT)
