"""W&B's ``Artifact``: files under one name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run import Run as ZMQRun
from ._common import lose
from .wandb_errors import UsageError
from .wandb_media import Media

__all__ = ["Artifact"]


class Artifact:
    """Files under one name; ``log_artifact`` logs them as ``NAME/PATH``."""

    def __init__(
        self,
        name: str,
        type: str,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        incremental: bool = False,
        use_as: str | None = None,
        storage_region: str | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.description = description
        self.metadata = dict(metadata or {})
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.version = "v0"
        self.files: list[tuple[Path, str]] = []
        self._media: list[tuple[str, Media]] = []
        self._references: list[str] = []
        self._made: list[tempfile.TemporaryDirectory[str]] = []

    def add_file(
        self, local_path: str | os.PathLike[str], name: str | None = None, **_: Any
    ) -> None:
        """Add a file.

        Raises:
            ValueError: there is none.
        """
        path = Path(local_path)
        if not path.is_file():
            raise ValueError(f"path is not a file: {path}")
        self.files.append((path, name or path.name))

    def add_dir(
        self, local_path: str | os.PathLike[str], name: str | None = None, **_: Any
    ) -> None:
        """Add all files below a folder.

        Raises:
            ValueError: it is none.
        """
        folder = Path(local_path)
        if not folder.is_dir():
            raise ValueError(f"path is not a directory: {folder}")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            inner = path.relative_to(folder).as_posix()
            self.files.append((path, f"{name}/{inner}" if name else inner))

    @contextmanager
    def new_file(self, name: str, mode: str = "x", encoding: str | None = None) -> Iterator[Any]:
        """Open a new file; it is added when it is closed."""
        folder = tempfile.TemporaryDirectory(prefix="zmqtrack-artifact-")
        self._made.append(folder)
        path = Path(folder.name) / "file"
        with path.open(mode, encoding=encoding) as file:
            yield file
        self.files.append((path, name))

    def add(self, obj: Any, name: str, overwrite: bool = False) -> None:
        """Add a Table, an Image or another of W&B's objects.

        Raises:
            ValueError: it is none of them.
        """
        if not isinstance(obj, Media):
            raise ValueError(f"Expected one of W&B's objects to add to an artifact, got {obj!r}")
        self._media.append((name, obj))

    def add_reference(self, uri: Any, name: str | None = None, **_: Any) -> list[Any]:
        """What lies elsewhere is named in a text; it is not fetched."""
        self._references.append(f"{name or ''} {uri}".strip())
        return []

    def log_to(self, run: ZMQRun) -> None:
        """Log the files and objects, and what is known of them.

        Raises:
            OSError: a file cannot be read.
        """
        for path, inner in self.files:
            run.log_artifact(path, f"{self.name}/{inner}" if inner else self.name)
        for inner, media in self._media:
            media.log_to(run, f"{self.name}/{inner}", None)
        if self._references:
            run.log_text(f"{self.name}/references.txt", "\n".join(self._references))
        if self.metadata or self.description:
            told = {"description": self.description} if self.description else {}
            run.log_param(f"artifact.{self.name}", {**told, **self.metadata})
        if self.aliases:
            lose(run, "Artifact(aliases)", "aliases are W&B's own; the files are logged")

    def wait(self, timeout: float | None = None) -> Artifact:
        """Returns at once: logging it has read its files."""
        return self

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do before ``log_artifact``."""

    def finalize(self) -> None:
        """Nothing to do before ``log_artifact``."""

    def is_draft(self) -> bool:
        return False

    def _needs_server(self, what: str) -> UsageError:
        return UsageError(
            f"Artifact.{what} needs W&B's server, which zmqtrack does not ask: use the real wandb "
            f"for it, `wandb.Api().artifact({self.name!r})`"
        )

    def download(self, *args: Any, **kwargs: Any) -> str:
        """Always raises UsageError."""
        raise self._needs_server("download")

    def get(self, name: str) -> Any:
        """The object that was added under ``name``; None if there is none."""
        return dict(self._media).get(name)

    def get_path(self, name: str) -> Any:
        """Always raises UsageError."""
        raise self._needs_server("get_path")

    def checkout(self, *args: Any, **kwargs: Any) -> str:
        """Always raises UsageError."""
        raise self._needs_server("checkout")
