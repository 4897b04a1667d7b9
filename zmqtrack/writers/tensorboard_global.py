"""tensorboardX's two wrappers of a SummaryWriter."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from ._common import note
from .tensorboard import SummaryWriter
from .tensorboard_events import FileWriter

__all__ = ["GlobalSummaryWriter", "TorchVis"]

_writer: GlobalSummaryWriter | None = None


class GlobalSummaryWriter:
    """A writer for the processes of one job, which counts each tag's steps across all of them.

    Make it before they are forked. The arguments are those of :class:`zmqtrack.SummaryWriter`;
    ``coalesce_process`` has no effect.
    """

    def __init__(
        self,
        logdir: Any = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
        write_to_disk: bool = True,
        log_dir: Any = None,
        coalesce_process: bool = True,
        **others: Any,
    ) -> None:
        self.smw = SummaryWriter(
            log_dir=log_dir if logdir is None else logdir,
            comment=comment,
            purge_step=purge_step,
            max_queue=max_queue,
            flush_secs=flush_secs,
            filename_suffix=filename_suffix,
            write_to_disk=write_to_disk,
            **others,
        )
        self.lock = multiprocessing.Lock()
        self._scalars, self._images, self._texts = _Steps(), _Steps(), _Steps()

    def add_scalar(self, tag: str, scalar_value: Any, walltime: float | None = None) -> None:
        with self.lock:
            step = self._scalars.next(tag)
            self.smw.add_scalar(tag, scalar_value, step, walltime)

    def add_image(
        self, tag: str, img_tensor: Any, walltime: float | None = None, dataformats: str = "CHW"
    ) -> None:
        with self.lock:
            step = self._images.next(tag)
            self.smw.add_image(tag, img_tensor, step, walltime, dataformats)

    def add_text(self, tag: str, text_string: str, walltime: float | None = None) -> None:
        with self.lock:
            step = self._texts.next(tag)
            self.smw.add_text(tag, text_string, step, walltime)

    @staticmethod
    def getSummaryWriter() -> GlobalSummaryWriter:
        """The process's own, made by the first call."""
        global _writer
        if _writer is None:
            _writer = GlobalSummaryWriter()
        return _writer

    @property
    def file_writer(self) -> FileWriter:
        return self.smw._get_file_writer()

    def close(self) -> None:
        self.smw.flush()
        self.smw.close()


class _Steps:
    """Each tag's last step, in memory that a process shares with those that are forked from it.

    No server process keeps them, as :mod:`multiprocessing` would: where a signal ends its parent,
    that one stays for ever, and whoever reads the training's output waits for its end.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._number = os.memfd_create("zmqtrack-steps")
        else:
            self._number, path = tempfile.mkstemp(prefix="zmqtrack-steps-")
            Path(path).unlink()

    def __del__(self) -> None:
        os.close(self._number)

    def next(self, tag: Any) -> int:
        """The step after ``tag``'s last one; the caller keeps others away meanwhile."""
        number = self._number
        steps = json.loads(os.pread(number, os.fstat(number).st_size, 0) or b"{}")
        step: int = steps.get(str(tag), -1) + 1
        steps[str(tag)] = step
        os.pwrite(number, json.dumps(steps).encode(), 0)  # it never gets shorter
        return step


class TorchVis:
    """Calls each method on the writers that it has; of tensorboardX's two, ``"tensorboard"``."""

    def __init__(self, *formats: str, **options: Any) -> None:
        self.subscribers: dict[str, SummaryWriter] = {}
        self.register(*formats, **options)

    def register(self, *formats: str, **options: Any) -> None:
        for name in formats or ("tensorboard",):
            if name == "visdom":
                note("TorchVis(visdom)", "nothing is sent to Visdom; the daemon has the trackers")
            elif name == "tensorboard" and name not in self.subscribers:
                self.subscribers[name] = SummaryWriter(**options.get(name, {}))

    def unregister(self, *formats: str) -> None:
        for name in formats:
            writer = self.subscribers.pop(name, None)
            if writer is not None:
                writer.close()

    def __getattr__(self, name: str) -> Any:
        if name == "subscribers":
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> None:
            for writer in self.subscribers.values():
                method = getattr(writer, name, None)
                if method is not None:
                    method(*args, **kwargs)

        return call

    def __del__(self) -> None:
        for writer in self.__dict__.get("subscribers", {}).values():
            writer.close()
