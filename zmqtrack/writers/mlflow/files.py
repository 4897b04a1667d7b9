"""Files and images in MLflow's syntax: the methods that ``MLflowWriter`` has for them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...image import image_format
from ...run import Run, _plain
from .._common import also_called, lose
from .tables import Table
from .values import as_seconds, as_step, in_range, log_bytes

if TYPE_CHECKING:
    from .writer import ActiveRun

__all__ = ["Files", "Image"]


class Image:
    """An image for ``log_image``: an array, a PIL image or a path."""

    def __init__(self, image: Any) -> None:
        self.image = image


class Files:
    """Each method logs to the run of ``run_id``, else to the active one."""

    def _run(self, run_id: str | None = None) -> Run:
        raise NotImplementedError

    def _target(self, run_id: str | None = None) -> ActiveRun:
        raise NotImplementedError

    @also_called(artifact_file_path="artifact_file")
    def log_text(self, text: str, artifact_file: str, run_id: str | None = None) -> None:
        """Log text as a file (NVFLARE's name for it is ``artifact_file_path``)."""
        if isinstance(artifact_file, str) and not PurePosixPath(artifact_file).suffix:
            artifact_file = f"./{artifact_file}"  # a path, though it does not look like one
        self._run(run_id).log_text(artifact_file, text)

    def log_dict(
        self,
        dictionary: Mapping[str, Any] | list[Any],
        artifact_file: str,
        run_id: str | None = None,
    ) -> None:
        """Log a dictionary or list as a file of JSON.

        Also when ``artifact_file`` ends in ``.yaml`` or ``.yml``: JSON is valid YAML, and the
        training process needs no YAML package.
        """
        text = json.dumps(_plain(dictionary, fallback=str), indent=2, ensure_ascii=False)
        self.log_text(text, artifact_file, run_id)

    def log_table(self, data: Any, artifact_file: str, run_id: str | None = None) -> None:
        """Log a table, a dictionary of columns or a data frame, as MLflow's JSON for tables.

        More of a table of this process is added to it, as in MLflow.
        """
        active = self._target(run_id)
        table = active.tables.get(artifact_file, Table())
        table.extend(data)
        active.tables[artifact_file] = table
        self.log_dict(table.as_json(), artifact_file, run_id)
        paths = [{"path": path, "type": "table"} for path in active.tables]
        active.set_tags({"mlflow.loggedArtifacts": json.dumps(paths)})

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = False,
        run_id: str | None = None,
    ) -> None:
        """Log an image, either as a file or under a key with step and time (milliseconds).

        Args:
            image: as :func:`zmqtrack.image.encode_image` takes it; as in MLflow floats beyond 0
                and 1 are scaled to what lies between their smallest and largest.

        Raises:
            TypeError: both of ``artifact_file`` and ``key`` or none of them.
        """
        if artifact_file is not None and any(
            argument is not None for argument in (key, step, timestamp)
        ):
            raise TypeError("artifact_file cannot be used together with key, step or timestamp")
        name = artifact_file if artifact_file is not None else key
        if name is None:
            raise TypeError("give either artifact_file or key")
        if isinstance(image, Image):
            image = image.image
        elif hasattr(image, "to_pil"):  # mlflow's own Image
            image = image.to_pil()
        run = self._run(run_id)
        run.log_image(name, in_range(image), as_step(name, step), as_seconds(timestamp))

    def log_figure(
        self,
        figure: Any,
        artifact_file: str,
        *,
        save_kwargs: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log a matplotlib or plotly figure as a file in the format of its extension."""
        format = Path(artifact_file).suffix[1:].lower()
        if hasattr(figure, "to_html"):  # plotly
            if format in ("", "html", "htm"):
                self.log_text(figure.to_html(**(save_kwargs or {})), artifact_file, run_id)
                return
            data = figure.to_image(format=format, **(save_kwargs or {}))
        elif hasattr(figure, "savefig"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"figure.{format or 'png'}")
                figure.savefig(path, **(save_kwargs or {}))
                data = path.read_bytes()
        else:
            raise TypeError(f"{type(figure).__name__} is no figure of matplotlib or plotly")
        if image_format(data) is None:
            log_bytes(self._run(run_id), data, artifact_file)
        else:
            self._run(run_id).log_image(artifact_file, data)

    def log_stream(self, stream: Any, artifact_file: str, run_id: str | None = None) -> None:
        """Log what a binary stream holds as a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "content")
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file)
            self._run(run_id).log_artifact(path, artifact_file)

    def log_artifact(
        self,
        local_path: str | os.PathLike[str],
        artifact_path: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log a file, or a folder with all in it, in the folder ``artifact_path``.

        Raises:
            OSError: it cannot be read.
        """
        name = Path(local_path).name or Path(local_path).resolve().name
        prefix = artifact_path.strip("/") if artifact_path else ""
        self._run(run_id).log_artifact(local_path, f"{prefix}/{name}" if prefix else name)

    def log_artifacts(
        self,
        local_dir: str | os.PathLike[str],
        artifact_path: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log all that is in a folder, in the folder ``artifact_path``.

        Where there is no such folder nothing is logged, as in MLflow, and the first such call
        says so.

        Raises:
            OSError: a file in it cannot be read.
        """
        run = self._run(run_id)
        try:
            paths = sorted(Path(local_dir).iterdir())
        except OSError as error:
            lose(run, "log_artifacts", f"{local_dir}: {error.strerror}")
            return
        for path in paths:
            name = f"{artifact_path.strip('/')}/{path.name}" if artifact_path else path.name
            run.log_artifact(path, name)
