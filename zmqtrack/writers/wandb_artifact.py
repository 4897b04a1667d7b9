"""W&B's ``Artifact``: files under one name."""

from __future__ import annotations

import enum
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run import Run as ZMQRun
from ._common import lose, note
from .wandb_errors import UsageError
from .wandb_media import Media
from .wandb_values import carried_key

__all__ = ["Artifact", "ArtifactTTL"]

#: What W&B's server alone gives to an artifact, or finds out about it.
_AT_SERVER = frozenset({
    "collection", "commit_hash", "created_at", "digest", "digest_algorithm", "entity", "file",
    "get_entry", "history_step", "id", "is_link", "linked_artifacts", "linked_at", "logged_by",
    "manifest", "new_draft", "project", "qualified_name", "source_artifact", "source_collection",
    "source_entity", "source_name", "source_project", "source_qualified_name", "source_version",
    "updated_at", "url", "used_by", "verify",
})  # fmt: skip


class ArtifactTTL(enum.Enum):
    """A lifetime as the server has it."""

    INHERIT = 0


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
        self.incremental = incremental
        self.use_as = use_as
        self.distributed_id: str | None = None
        self._ttl: Any = None
        self._run: ZMQRun | None = None  # that which it was logged to
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
    def new_file(
        self, name: str, mode: str = "x", encoding: str | None = None, policy: str = "mutable"
    ) -> Iterator[Any]:
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
        self._run = run
        for path, inner in self.files:
            run.log_artifact(path, f"{self.name}/{inner}" if inner else self.name)
        for inner, media in self._media:
            media.log_to(run, f"{self.name}/{inner}", None)
        if self._references:
            run.log_text(f"{self.name}/references.txt", "\n".join(self._references))
        if self.metadata or self.description:
            told = {"description": self.description} if self.description else {}
            run.log_param(f"artifact.{self.name}", {**told, **self.metadata})
        for what, names in (("aliases", self.aliases), ("tags", self.tags)):
            if names and (key := carried_key(run, f"artifact.{self.name}.{what}")):
                run.set_tag(key, ", ".join(map(str, names)))

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

    # --- what is known of it here -------------------------------------------------------------

    def get_added_local_path_name(self, local_path: str) -> str | None:
        """The name under which a file was added; None if it was not."""
        return next((inner for path, inner in self.files if str(path) == str(local_path)), None)

    def remove(self, item: Any) -> None:
        """Take out a file, an object, or a folder with all that lies in it.

        Raises:
            FileNotFoundError: nothing has that name.
        """
        name = str(getattr(item, "path", item))

        def stays(inner: str) -> bool:
            return inner != name and not inner.startswith(f"{name}/")

        files = [each for each in self.files if stays(each[1])]
        media = [each for each in self._media if stays(each[0])]
        if (len(files), len(media)) == (len(self.files), len(self._media)):
            raise FileNotFoundError(f"No such entry: {name}")
        self.files, self._media = files, media

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path, _ in self.files)

    @property
    def file_count(self) -> int:
        return len(self.files)

    @property
    def state(self) -> str:
        return "PENDING" if self._run is None else "COMMITTED"

    @property
    def ttl(self) -> Any:
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: Any) -> None:
        """Keep it in mind only: the files live as long as the trackers keep them."""
        self._ttl = ttl
        note("Artifact.ttl", "without effect: how long files live is told where the tracker is")

    # --- what is done with it at W&B's server -------------------------------------------------

    def _lose(self, what: str, text: str) -> None:
        if self._run is None:
            note(f"Artifact.{what}", f"not carried: {text}")
        else:
            lose(self._run, f"Artifact.{what}", text)

    def link(self, target_path: str, aliases: Any = None) -> Artifact:
        """Not carried."""
        self._lose("link", "a link in W&B's registry; log_artifact logs the files")
        return self

    def unlink(self) -> None:
        """Not carried."""
        self._lose("unlink", "a link in W&B's registry")

    def delete(self, delete_aliases: bool = False) -> None:
        """Not carried."""
        self._lose("delete", "what is logged is deleted where the tracker is")

    def __getattr__(self, name: str) -> Any:
        if name in _AT_SERVER:
            raise self._needs_server(name)
        raise AttributeError(f"Artifact has no {name!r}")
