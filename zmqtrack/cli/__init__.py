"""The operator's commands. They talk to the daemon over control and import none of it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    try:
        from .app import app
    except ImportError as error:
        print(f"zmqtrack's commands need {error.name}: pip install 'zmqtrack[daemon]'")
        return 1
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
