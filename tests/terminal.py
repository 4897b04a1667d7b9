"""A real terminal, for tests: tmux with a server of its own, and a shell in it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from harness import PATIENCE

#: Why there is none here, or nothing.
MISSING = "" if shutil.which("tmux") else "tmux is not installed"
#: What stands before each line that is typed.
PROMPT = "ready> "


class Terminal:
    """``with Terminal(80, 24) as terminal``; at its end nothing of it is left."""

    def __init__(self, width: int = 100, height: int = 30) -> None:
        # Short: the socket's path may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="zt"))
        env = {
            name: value for name, value in os.environ.items() if name not in ("TMUX", "NO_COLOR")
        }
        self._env = {**env, "TMUX_TMPDIR": str(self._folder), "LC_ALL": "C.UTF-8"}
        # A shell that runs a command, as tmux's does, would drop PS1 from the environment.
        shell = shlex.join(["env", f"PS1={PROMPT}", "bash", "--norc", "--noprofile"])
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height),
                   shell)  # fmt: skip
        self._tmux("set-option", "-g", "window-size", "manual")
        self.resize(width, height)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", "zmqtrack-test", *arguments],
            capture_output=True,
            text=True,
            env=self._env,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"tmux {arguments}: {done.stderr}"
        return done.stdout

    def type(self, line: str) -> None:
        self._tmux("send-keys", "-l", line)
        self.press("Enter")

    def run(self, *arguments: str) -> None:
        """Type a command of ours, and that its exit code be shown when it ends."""
        command = shlex.join([sys.executable, "-m", "zmqtrack.cli", *arguments])
        self.type(f'clear; {command}; echo "exit code": $?')

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def lines(self) -> list[str]:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p").splitlines()

    @property
    def screen(self) -> str:
        return "\n".join(self.lines())

    def fact(self, name: str) -> str:
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    @property
    def pid(self) -> int:
        """The shell's."""
        return int(self.fact("pane_pid"))

    def wait(self, seen: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < deadline, f"not seen: {what}\n{self.screen}"
            time.sleep(0.05)

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self.screen, text)

    def __enter__(self) -> Terminal:
        self.wait_for(PROMPT.strip())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            print(self.screen, file=sys.stderr)
        self._tmux("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)
