"""One small tree of exceptions, each holding what a person needs to act."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ControlError",
    "FrameError",
    "KeyFileError",
    "RunFinished",
    "SpoolError",
    "ZMQTrackError",
]


class ZMQTrackError(Exception):
    """Base of all that zmqtrack raises on its own behalf."""


class FrameError(ZMQTrackError):
    """Bytes that are no valid batch or control message.

    ``reason`` is a short fixed word under which the error is counted
    (``bad_version``, ``bad_header`` …), ``detail`` says what was seen.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ConfigError(ZMQTrackError):
    """A configuration that cannot be used; ``problems`` has one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ControlError(ZMQTrackError):
    """The daemon could not be asked, or it answered with a refusal (``reason``)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class KeyFileError(ZMQTrackError):
    """A key that cannot be used: its file is missing, readable by others, or no key file."""


class SpoolError(ZMQTrackError):
    """A spool that cannot be opened: in use by another process, or damaged."""


class RunFinished(ZMQTrackError):
    """A logging call on a run that has been finished."""
